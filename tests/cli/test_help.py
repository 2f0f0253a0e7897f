"""What ``--help`` says, at 80 columns, as `help/` has it; ``ASYNCPUSH_WRITE_HELP=1`` writes that again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclopts import App

from asyncpush.awscli.global_options import is_aws_command
from asyncpush.cli.main import app
from support.commands import run_here

FOLDER = Path(__file__).parent / "help"
WRITE = bool(os.environ.get("ASYNCPUSH_WRITE_HELP"))


def commands(of: App, *before: str) -> Iterator[tuple[str, ...]]:
    """Every command and each of its commands, as words after ``asyncpush``."""
    yield before
    for name in of:
        if not name.startswith("-"):
            yield from commands(of[name], *before, name)


COMMANDS = {"-".join(("asyncpush", *words)): words for words in commands(app)}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_what_the_snapshot_has(name: str) -> None:
    words = COMMANDS[name]
    help_word = "help" if is_aws_command(words) else "--help"

    ran = run_here(*words, help_word, COLUMNS="80")

    assert (ran.status, ran.err) == (0, "")
    text = "".join(f"{line.rstrip()}\n" for line in ran.out.splitlines())
    snapshot = FOLDER / f"{name}.txt"
    if WRITE:
        snapshot.write_text(text)
    assert text == snapshot.read_text(), "if that is meant, ASYNCPUSH_WRITE_HELP=1 writes the snapshots again"
    assert max(map(len, text.splitlines())) <= 80


def test_each_snapshot_is_of_a_command() -> None:
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(COMMANDS)
