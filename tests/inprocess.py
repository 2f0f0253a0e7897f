"""Runs of the command line in this process: an exit status and two texts, without the half second of a start."""

from __future__ import annotations

import io
import threading
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path

import pytest
from anyio import TASK_STATUS_IGNORED, CancelScope, to_thread
from anyio.abc import TaskStatus

from asyncpush.cli.main import run_app
from conftest import Ran


def run_here(*words: str | Path, **environment: str) -> Ran:
    """Run ``asyncpush`` with these words; empty values of *environment* are taken out. Not for use in an event loop."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name, value in {"COLUMNS": "200", **environment}.items():
            if value:
                patch.setenv(name, value)
            else:
                patch.delenv(name, raising=False)
        if threading.current_thread() is not threading.main_thread():
            patch.setattr("asyncpush.cli.run._watch", _no_signals)
        status = run_app([str(word) for word in words])
    return Ran(status, out.getvalue(), err.getvalue())


async def run_beside(*words: str | Path, **environment: str) -> Ran:
    """The same beside the servers of this event loop; no signal reaches it there. One at a time."""
    return await to_thread.run_sync(partial(run_here, *words, **environment))


async def _no_signals(_: CancelScope, __: object, *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
    task_status.started()
