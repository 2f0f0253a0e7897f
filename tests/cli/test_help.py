"""What ``--help`` says, at 80 columns, as `help/` has it; ``ASYNCPUSH_WRITE_HELP=1`` writes that again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from cyclopts import App

from asyncpush.awscli.global_options import is_aws_command
from asyncpush.cli.main import app
from support.commands import cli_environment

FOLDER = Path(__file__).parent / "help"
WRITE = bool(os.environ.get("ASYNCPUSH_WRITE_HELP"))

# One process for all, since what has once shown a command's help keeps the width that it was shown at.
SHOW = """
import io, json, sys
from contextlib import redirect_stdout
from asyncpush.cli.main import run_app
for words in json.load(sys.stdin):
    with redirect_stdout(io.StringIO()) as shown:
        status = run_app(words)
    print(json.dumps([status, shown.getvalue()]))
"""


def commands(of: App, *before: str) -> Iterator[tuple[str, ...]]:
    """Every command and each of its commands, as words after ``asyncpush``; the operations of `ecr` are botocore's."""
    yield before
    for name in () if is_aws_command(before) else of:
        if not name.startswith("-"):
            yield from commands(of[name], *before, name)


def test_help_of_every_command_is_what_its_snapshot_has() -> None:
    wanted = list(commands(app))
    asked = [[*words, "help" if is_aws_command(words) else "--help"] for words in wanted]
    done = subprocess.run(
        [sys.executable, "-c", SHOW],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
        env=cli_environment(COLUMNS="80", NO_COLOR="1"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    shown = {}
    for words, line in zip(wanted, done.stdout.splitlines(), strict=True):
        status, text = json.loads(line)
        assert status == 0, words
        shown["-".join(("asyncpush", *words))] = "".join(f"{each.rstrip()}\n" for each in text.splitlines())

    if WRITE:
        for name, text in shown.items():
            (FOLDER / f"{name}.txt").write_text(text)
    snapshots = {path.stem: path.read_text() for path in FOLDER.glob("*.txt")}

    assert shown == snapshots, "if that is meant, ASYNCPUSH_WRITE_HELP=1 writes the snapshots again"
    assert max(len(line) for text in shown.values() for line in text.splitlines()) <= 80
