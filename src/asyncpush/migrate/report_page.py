"""The page of a run: one HTML file with the run's document in it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import msgspec

from asyncpush import open_files
from asyncpush.errors import AsyncpushError
from asyncpush.files import write_small
from asyncpush.html_page import content_security_policy, embedded
from asyncpush.migrate.run_document import RunDocument

#: Where the template takes its policy, and its data.
_POLICY, _DATA = "{{policy}}", "{{data}}"


def render_report(documents: Sequence[RunDocument]) -> str:
    """The page of one run: what each process did for it, the last one first to be seen."""
    template = files("asyncpush.migrate").joinpath("report_page.html").read_text(encoding="utf-8")
    data = embedded(msgspec.json.encode(list(documents)).decode())
    head, _, rest = template.replace(_POLICY, content_security_policy(template)).partition(_DATA)
    return f"{head}{data}{rest}"


def write_report(path: Path, documents: Sequence[RunDocument]) -> None:
    """Write the page; blocks.

    Raises:
        AsyncpushError: it can't be written.
    """
    try:
        write_small(path, render_report(documents).encode())
    except OSError as error:
        raise AsyncpushError(
            f"{path} can't be written: {open_files.reason(error)}", hint="name another file for the report"
        ) from error
