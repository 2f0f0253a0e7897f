"""What a command writes: results on standard output, words on standard error; a reader who leaves breaks nothing."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TextIO

from asyncpush import open_files
from asyncpush.errors import AsyncpushError
from asyncpush.events import Event, Notice
from asyncpush.redaction import shown, shown_document, shown_line, without_secrets

#: What stands for ``-`` while arguments are parsed: cyclopts takes a lone hyphen for an option.
STANDARD_INPUT = "/dev/stdin"

_encode_row = json.JSONEncoder(separators=(",", ":")).encode


@contextmanager
def standard_streams() -> Iterator[None]:
    """See that both streams are there for the block, and that nothing of them is left for Python to fail at.

    What is logged meanwhile and nobody handles goes to standard error, as all else that is said there.
    """
    for name in ("stdout", "stderr"):
        # Closed by the shell (`>&-`), it leaves its number to the next file or socket that is opened.
        if getattr(sys, name) is None:
            setattr(sys, name, _Closed(os.devnull, "w"))
    # What libraries log that have a handler of their own stays theirs.
    unheard, logging.lastResort = logging.lastResort, _SaidLog(logging.WARNING)
    try:
        yield
    finally:
        logging.lastResort = unheard
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                _abandon(stream)


@contextmanager
def debug_log() -> Iterator[None]:
    """Say all that is logged during the block, by whom and when."""
    log, said = logging.getLogger(), _SaidLog()
    said.setFormatter(logging.Formatter("%(asctime)s - %(name)s - %(message)s"))
    handlers, level = log.handlers, log.level
    log.handlers = [said]
    log.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        log.handlers = handlers
        log.setLevel(level)


class _SaidLog(logging.Handler):
    """What is logged, said."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say *record*."""
        say(self.format(record))


class _Closed(io.TextIOWrapper):
    """What stands for a stream that the shell has closed: it takes all and keeps none."""

    def __init__(self, path: str, mode: str) -> None:
        super().__init__(io.FileIO(path, mode), encoding="utf-8")


def say_notice(event: Event) -> None:
    """Say on standard error what a face would, where nobody else does: notices, and no other event."""
    if isinstance(event, Notice):
        say(f"asyncpush: note: {event.text}")


def write_lines(lines: Iterable[str]) -> None:
    """Write a result on standard output, for people and pipes; likewise as ``write_document`` raises it."""
    write_as_it_is("".join(f"{shown_line(line)}\n" for line in lines))


def write_document(document: Mapping[str, Any]) -> None:
    """Write a result on standard output as one JSON document, for programs.

    Raises:
        AsyncpushError: it can't be written; but a reader who has left is not a failure.
    """
    write_as_it_is(json.dumps(shown_document(document), indent=2) + "\n")


def write_rows(rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a result's rows on standard output, each as a JSON document on one line; likewise."""
    write_as_it_is("".join(f"{_line_of(row)}\n" for row in rows))


def _line_of(row: Mapping[str, Any]) -> str:
    line = _encode_row(row)
    # There may be a million, and hardly one has anything to hide.
    if "\\" in line or without_secrets(line) != line:
        line = _encode_row(shown_document(row))
    return line


def write_as_it_is(text: str, *, needed: bool = False) -> None:
    """Write *text* on standard output with all that is in it: an answer of ECR's, which may be a password; a script.

    Args:
        text: what to write.
        needed: whether it is a failure that standard output is closed, and not the user's way to see nothing.

    Raises:
        AsyncpushError: it can't be written; but a reader who has left is not a failure.
    """
    if needed and text and isinstance(sys.stdout, _Closed):
        raise AsyncpushError("the result can't be written: standard output is closed")
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        _abandon(sys.stdout)
    except OSError as error:
        _abandon(sys.stdout)
        raise AsyncpushError(
            f"the result can't be written: {open_files.reason(error)}",
            hint="what was pushed is there; the same command again prints it",
        ) from error


def say(text: str) -> None:
    """Write a line on standard error, if somebody listens."""
    with suppress(OSError, ValueError):
        sys.stderr.write(f"{shown(text)}\n")
        sys.stderr.flush()


def _abandon(stream: TextIO) -> None:
    """Drop what *stream* still holds: Python would try again at the end, and exit with 120."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()
