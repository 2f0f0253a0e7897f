"""The manual as ``asyncpush help`` shows it: in a terminal and in a pipe."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest

import asyncpush
from asyncpush.cli.help import TOPICS
from asyncpush.cli.main import run_app
from support.commands import cli_environment, run_cli, run_here

DOCS = Path(asyncpush.__file__).parent / "docs"


class Terminal(io.StringIO):
    """A terminal, as far as a command can tell."""

    def isatty(self) -> bool:
        return True


def test_help_lists_every_page_in_one_line_of_eighty_columns() -> None:
    done = run_cli("help")

    assert done.status == 0, done.err
    listed = dict(re.findall(r"^  ([a-z-]+) +(\S.+)$", done.out, flags=re.MULTILINE))
    assert set(listed) == {page.stem for page in DOCS.glob("*.md")} == set(TOPICS)
    assert max(map(len, done.out.splitlines())) <= 80
    assert all(line.endswith(".") for line in listed.values())


def test_in_a_pipe_a_page_is_its_markdown() -> None:
    done = run_cli("help", "migrate")

    assert done.status == 0, done.err
    assert done.out == (DOCS / "migrate.md").read_text()


def test_on_a_terminal_a_page_is_rendered_for_its_width() -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "asyncpush", "help", "migrate"]
    environment = cli_environment(COLUMNS="80", TERM="xterm", NO_COLOR="1")
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        process = subprocess.Popen(command, stdout=theirs, env=environment)
        os.close(theirs)
        shown = b""
        try:
            while data := terminal.read(65536):
                shown += data
        except OSError:  # how Linux says that the other side of a terminal is closed
            pass
        assert process.wait(timeout=30) == 0

    text = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode())
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "`" not in text
    assert "##" not in text
    assert "The journal (asyncpush help journal)" in " ".join(text.split())


@pytest.mark.parametrize("topic", TOPICS)
def test_no_word_of_a_page_is_cut_off_at_eighty_columns(topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    terminal = Terminal()
    with redirect_stdout(terminal):
        assert run_app(["help", topic]) == 0

    assert "…" not in terminal.getvalue()


@pytest.mark.parametrize(
    ("word", "advice"), [("migrat", "did you mean migrate?"), ("sevre", "did you mean serve?"), ("xyzzy", "use one of")]
)
def test_an_unknown_topic_is_a_usage_error_with_advice(word: str, advice: str) -> None:
    done = run_here("help", word)

    assert done.status == 2
    assert done.out == ""
    assert done.err.startswith(f"asyncpush: error: the manual has no page '{word}'; {advice}")
    assert done.err.count("\n") == 1


def test_every_command_has_a_page() -> None:
    shown = run_here("--help").out
    commands = re.findall(r"^│ ([a-z][a-z-]*) ", shown, flags=re.MULTILINE)

    assert "migrate" in commands
    for command in commands:
        assert run_here("help", command).out.startswith("# ")
