"""Runs of the command line in this process: an exit status and two texts, without the half second of a start."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

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
        status = run_app([str(word) for word in words])
    return Ran(status, out.getvalue(), err.getvalue())
