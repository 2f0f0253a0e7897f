"""The output of a command: results on standard output, messages on standard error. A closed pipe is no failure."""

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
    """Provide both standard streams for the block, and flush them so that Python does not fail at its end.

    Log records that no handler takes go to standard error, as all messages do.
    """
    for name in ("stdout", "stderr"):
        # If the shell closed it (`>&-`), the next file or socket that is opened would get its number.
        if getattr(sys, name) is None:
            setattr(sys, name, _Closed(os.devnull, "w"))
    # Libraries with a handler of their own keep it.
    unheard, logging.lastResort = logging.lastResort, _SayingHandler(logging.WARNING)
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
    """Write everything that is logged during the block to standard error, with time and logger."""
    log, handler = logging.getLogger(), _SayingHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s - %(name)s - %(message)s"))
    handlers, level = log.handlers, log.level
    log.handlers = [handler]
    log.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        log.handlers = handlers
        log.setLevel(level)


class _SayingHandler(logging.Handler):
    """Writes log records as ``say`` does."""

    def emit(self, record: logging.LogRecord) -> None:
        """Say *record*."""
        say(self.format(record))


class _Closed(io.TextIOWrapper):
    """Replaces a stream that the shell closed: it discards everything."""

    def __init__(self, path: str, mode: str) -> None:
        super().__init__(io.FileIO(path, mode), encoding="utf-8")


def say_notice(event: Event) -> None:
    """Write notices, and no other event, to standard error where no progress display does."""
    if isinstance(event, Notice):
        say(f"asyncpush: note: {event.text}")


def is_terminal() -> bool:
    """Whether the result goes to a terminal, where a person sees it."""
    try:
        return sys.stdout.isatty()
    except (OSError, ValueError):
        return False


def write_lines(lines: Iterable[str]) -> None:
    """Write a result to standard output, for people and pipes; raises what ``write_document`` raises."""
    write_as_it_is("".join(f"{shown_line(line)}\n" for line in lines))


def write_document(document: Mapping[str, Any]) -> None:
    """Write a result to standard output as one JSON document, for programs.

    Raises:
        AsyncpushError: it can't be written; a reader that closed the pipe is not a failure.
    """
    write_as_it_is(json.dumps(shown_document(document), indent=2) + "\n")


def write_rows(rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a result's rows to standard output, each as a JSON document on one line; likewise."""
    write_as_it_is("".join(f"{_line_of(row)}\n" for row in rows))


def _line_of(row: Mapping[str, Any]) -> str:
    line = _encode_row(row)
    # There may be a million rows, and hardly any has something to hide.
    if "\\" in line or without_secrets(line) != line:
        line = _encode_row(shown_document(row))
    return line


def write_as_it_is(text: str, *, needed: bool = False) -> None:
    """Write *text* to standard output unchanged: a response of ECR, which may be a password; or a script.

    Args:
        text: what to write.
        needed: whether a closed standard output is a failure, and not the user's way to discard the output.

    Raises:
        AsyncpushError: it can't be written; a reader that closed the pipe is not a failure.
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
            hint="run the same command again to print it; a push sends nothing twice",
        ) from error


def say(text: str) -> None:
    """Write a line to standard error, if it is open."""
    with suppress(OSError, ValueError):
        sys.stderr.write(f"{shown(text)}\n")
        sys.stderr.flush()


def _abandon(stream: TextIO) -> None:
    """Discard what *stream* still buffers: Python would try to write it again at its end, and exit with 120."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
        stream.flush()
