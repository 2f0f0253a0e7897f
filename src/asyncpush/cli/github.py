"""What GitHub Actions shows of a run: groups and annotations in its log, the step's summary, and its outputs.

Source: GitHub's "Workflow commands for GitHub Actions".
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from asyncpush.cli.streams import say
from asyncpush.errors import Position
from asyncpush.events import Emit
from asyncpush.progress import ProgressKind, progress

#: Rows of a summary: a step's may take 1 MiB.
_MOST_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Row:
    """An image in the summary of a step.

    Attributes:
        image: its destination.
        outcome: what became of it.
        digest: its digest; empty if it failed.
        size: bytes that were sent.
        note: why it failed.
        reference: what to pull.
    """

    image: str
    outcome: str
    digest: str = ""
    size: int = 0
    note: str = ""
    reference: str | None = None


def _is_here() -> bool:
    return os.environ.get("GITHUB_ACTIONS") == "true"


@asynccontextmanager
async def grouped_progress(
    kind: ProgressKind, *, images: int | None = None, each: bool = False, summarized: bool = False
) -> AsyncIterator[Emit]:
    """Show the progress of a run (``progress``), which GitHub Actions folds, so that its log shows the result."""
    with _group("Progress", kind):
        async with progress(kind, images=images, each=each, summarized=summarized) as emit:
            yield emit


@contextmanager
def _group(title: str, kind: ProgressKind) -> Iterator[None]:
    if kind in ("none", "json") or not _is_here():
        yield
        return
    say(f"::group::{title}")
    try:
        yield
    finally:
        say("::endgroup::")


def annotated(text: str, position: Position | None = None) -> str:
    """An error's line, which GitHub Actions shows as an annotation, at its *position*: the same line anywhere else."""
    if not _is_here():
        return text
    properties = {"title": "asyncpush"}
    if position is not None and position.file is not None:
        properties |= {"file": str(position.file), "line": str(position.line)}
        properties |= {} if position.column is None else {"col": str(position.column)}
    listed = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
    return f"::error {listed}::{_data(text.removeprefix('asyncpush: error: '))}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def report(rows: Sequence[Row]) -> None:
    """Append a table to the summary of the step, and set its outputs; do nothing elsewhere.

    The outputs are ``digest`` and ``image`` of the first image, and ``images``, a line for each.
    """
    done = [row for row in rows if row.digest]
    if path := os.environ.get("GITHUB_STEP_SUMMARY"):
        _append(path, _table(rows))
    if path := os.environ.get("GITHUB_OUTPUT"):
        names = [row.reference or f"{row.image}@{row.digest}" for row in done]
        outputs = {"digest": done[0].digest if done else "", "image": names[0] if names else ""}
        _append(path, _outputs({**outputs, "images": "\n".join(names)}))


def _table(rows: Sequence[Row]) -> str:
    lines = ["| image | | digest | sent |", "| --- | --- | --- | ---: |"]
    for row in rows[:_MOST_ROWS]:
        digest = f"`{row.digest.removeprefix('sha256:')[:12]}`" if row.digest else ""
        cells = (f"`{row.image}`", row.outcome, digest or row.note, f"{row.size:,}" if row.size else "")
        lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    if len(rows) > _MOST_ROWS:
        lines.append(f"| and {len(rows) - _MOST_ROWS} more | | | |")
    return "\n".join(lines) + "\n\n"


def _cell(text: str) -> str:
    """*text* in a cell: names and reasons come from elsewhere."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _outputs(values: Mapping[str, str]) -> str:
    """The lines of outputs; a value of several lines stands between delimiters, which no reference contains."""
    return "".join(f"{name}<<END_OF_OUTPUT\n{value}\nEND_OF_OUTPUT\n" for name, value in values.items())


def _append(path: str, text: str) -> None:
    try:
        with open(path, "a", encoding="utf-8") as file:  # noqa: PTH123 - the name is GitHub's
            file.write(text)
    except OSError as error:
        say(f"asyncpush: note: {path} can't be written: {error.strerror}")
