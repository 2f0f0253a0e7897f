"""Runs of the command line: as a process, or in this one, without the half second of a start."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
from anyio import to_thread

from asyncpush.cli.main import run_app


@dataclass(frozen=True, slots=True)
class Ran:
    """A finished run of the command line."""

    status: int
    out: str
    err: str

    @property
    def references(self) -> str:
        """What it printed, without the host of the emulator, which precedes each reference."""
        return re.sub(r"(?m)^127\.0\.0\.1:[0-9]+/", "", self.out)


@dataclass(frozen=True, slots=True)
class Server:
    """An emulator in a process of its own."""

    url: str
    environment: dict[str, str]

    @property
    def host(self) -> str:
        """Its host, from which images are pulled."""
        return self.url.removeprefix("http://")

    def run(
        self,
        *words: str | Path,
        stdin: bytes | None = None,
        timeout: float = 60,
        bound: bool = False,
        **environment: str,
    ) -> Ran:
        """Run ``asyncpush`` against it, as a user would."""
        return run_cli(*words, stdin=stdin, timeout=timeout, bound=bound, **{**self.environment, **environment})


#: Runs a command of root's without the right to read and write what modes forbid.
BOUND = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")


def cli_environment(**environment: str) -> dict[str, str]:
    """The environment of a command: this process's, and *environment*; empty values remove variables."""
    merged = {**os.environ, "COLUMNS": "200", **environment}
    return {name: value for name, value in merged.items() if value}


def run_cli(
    *words: str | Path, stdin: bytes | None = None, timeout: float = 60, bound: bool = False, **environment: str
) -> Ran:
    """Run ``asyncpush`` to its end; *bound* by the modes of files, which root is not."""
    unbound = bound and os.geteuid() == 0
    done = subprocess.run(
        [*(BOUND if unbound else ()), sys.executable, "-m", "asyncpush", *map(str, words)],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        timeout=timeout,
        env=cli_environment(**environment),
        check=False,
    )
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())


def run_here(*words: str | Path, **environment: str) -> Ran:
    """Run ``asyncpush`` with these words; empty values of *environment* remove variables. Not for event loops."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name, value in {"COLUMNS": "200", **environment}.items():
            if value:
                patch.setenv(name, value)
            else:
                patch.delenv(name, raising=False)
        status = run_app([str(word) for word in words])
    return Ran(status, out.getvalue(), err.getvalue())


async def run_beside(*words: str | Path, **environment: str) -> Ran:
    """The same beside the servers of this event loop; no signal reaches it there. One at a time."""
    return await to_thread.run_sync(partial(run_here, *words, **environment))
