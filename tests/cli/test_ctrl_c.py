"""Two Ctrl-C at a terminal: the second ends a command at once, whatever it does, and the cursor is back."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import pytest
from aiohttp import web
from anyio import to_thread

from asyncpush.emulator import Emulator
from support.aws import REGION
from support.commands import cli_environment
from support.images import Layout, layer_tar
from support.registry_server import RegistryServer, running

HIDE, SHOW, CTRL_C = b"\x1b[?25l", b"\x1b[?25h", b"\x03"

#: A watchdog: what takes longer hangs.
_LIMIT = 30

STUBBORN = """
import sys, anyio
from asyncpush.cli.run import run
from asyncpush.events import ImageStarted, Notice
from asyncpush.progress import progress
async def main():
    async with progress("rich") as emit:
        emit(ImageStarted("a", "b"))
        emit(Notice("begun"))
        while type(sys.stdout).__name__ != "FileProxy":
            await anyio.sleep(0.01)
        print("r" * 300)
        try:
            await anyio.sleep_forever()
        finally:
            print("closing", file=sys.stderr)
            with anyio.CancelScope(shield=True):
                {stubborn}
sys.exit(run(main))
"""


class Terminal:
    """A command with a terminal of its own, and what it has written there."""

    def __init__(self, *words: str | Path, **environment: str) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, b"\x18\x00\x50\x00\x00\x00\x00\x00")
        self.process = subprocess.Popen(
            [sys.executable, *map(str, words)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=cli_environment(**{"TERM": "xterm-256color", "CI": "", **environment}),
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)
        self.written = b""

    def press(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._ours, keys)

    def wait(self, condition: Callable[[], bool]) -> None:
        """Read what is written until *condition*, which must come."""
        end = time.monotonic() + _LIMIT
        while not condition():
            assert time.monotonic() < end, self.written
            self._read(0.02)

    def end(self) -> int:
        """Wait for the end; the exit status, as a shell has it."""
        self.wait(lambda: self.process.poll() is not None)
        while self._read(0):
            pass
        return self.process.returncode if self.process.returncode >= 0 else 128 - self.process.returncode

    def close(self) -> None:
        """End it, if it has not ended."""
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def _read(self, seconds: float) -> bool:
        if not select.select([self._ours], [], [], seconds)[0]:
            return False
        try:
            block = os.read(self._ours, 65536)
        except OSError:  # the last one has closed it
            return False
        self.written += block
        return bool(block)


@contextmanager
def terminal(*words: str | Path, **environment: str) -> Iterator[Terminal]:
    opened = Terminal(*words, **environment)
    try:
        yield opened
    finally:
        opened.close()


def has_cursor(written: bytes) -> bool:
    """Whether the cursor is seen at the end."""
    return written.rfind(SHOW) >= written.rfind(HIDE)


@pytest.mark.parametrize("stubborn", ["await anyio.sleep_forever()", "while True: pass"])
def test_a_live_display_gives_the_cursor_back_when_a_second_one_ends_it(stubborn: str) -> None:
    with terminal("-c", STUBBORN.format(stubborn=stubborn)) as there:
        # A result is above the display, on a line that was empty, and whole.
        there.wait(lambda: b"\x1b[2K" + b"r" * 300 in there.written)
        assert b"begun" in there.written
        assert not has_cursor(there.written)
        there.press(CTRL_C)
        there.wait(lambda: b"closing" in there.written)
        there.press(CTRL_C)
        assert there.end() == 130
        assert has_cursor(there.written)


async def test_a_push_and_a_hostile_regex_end_at_two(tmp_path: Path, emulator: Emulator) -> None:
    layout, asked, released = Layout(), threading.Event(), anyio.Event()
    environment = {
        "AWS_ENDPOINT_URL_ECR": emulator.endpoint_url,
        "AWS_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "DOCKER_CONFIG": str(tmp_path),
    }
    async with running(RegistryServer()) as source:
        source.hold(layout, layout.image(layer_tar("slow")), "team/app", "1")
        source.tags["team/app"] = ["a" * 100]

        @source.rule("GET", "/blobs/")
        async def never(_: web.Request) -> web.StreamResponse | None:
            asked.set()
            await released.wait()
            return None

        plan = {
            "version": 1,
            "registries": {source.host: {"plain_http": True}},
            "images": [{"from": f"{source.host}/team/app", "to": "team/app", "tags": {"regex": "(a+)+b"}}],
        }
        (tmp_path / "plan.json").write_text(json.dumps(plan))
        push = ("push", f"docker://{source.host}/team/app:1", "team/app:1", "--src-plain-http", "--create-repository")

        def pushes() -> Terminal:
            with terminal("-m", "asyncpush", *push, **environment) as there:
                there.wait(lambda: asked.is_set() and HIDE in there.written)
                there.press(CTRL_C + CTRL_C)
                assert there.end() == 130
                return there

        def matches() -> Terminal:
            with terminal("-m", "asyncpush", "migrate", tmp_path / "plan.json", **environment) as there:
                there.wait(lambda: bool(children(there.process.pid)))
                there.press(CTRL_C + CTRL_C)
                assert there.end() == 130
                return there

        try:
            for use in (pushes, matches):
                assert has_cursor((await to_thread.run_sync(use)).written)
        finally:
            released.set()


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
