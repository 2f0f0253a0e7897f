"""The runs of a journal, and the reports that were kept of them, even while a run writes it.

Everything here blocks: call it in a worker thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from asyncpush.errors import UsageError
from asyncpush.journal.database import has_table, read_database
from asyncpush.journal.export import ImageRow, RunRow, image_rows, run_rows


@dataclass(frozen=True, slots=True)
class KeptRun:
    """A run, and what its reports tell without reading them.

    Attributes:
        run: the run.
        reports: how many there are: one for each process that worked on it and was not killed.
        seconds: how long these processes took.
        sent: bytes of layers that they sent.
    """

    run: RunRow
    reports: int
    seconds: float
    sent: int


@dataclass(frozen=True, slots=True)
class KeptReports:
    """One run, what is known of its images, and its reports, oldest first."""

    run: RunRow
    images: tuple[ImageRow, ...]
    reports: tuple[bytes, ...]


def kept_runs(path: Path) -> list[KeptRun]:
    """All runs, oldest first.

    Raises:
        UsageError: there is no journal.
        JournalError: it is damaged.
    """
    with read_database(path) as connection:
        sums: dict[int, tuple[int, float, int]] = {}
        if has_table(connection, "report"):
            query = "SELECT run, count(*), total(seconds), total(sent) FROM report GROUP BY run"
            sums = {run: (count, seconds, int(sent)) for run, count, seconds, sent in connection.execute(query)}
        return [KeptRun(run, *sums.get(run.id, (0, 0.0, 0))) for run in run_rows(connection)]


def kept_reports(path: Path, number: int | None = None) -> KeptReports:
    """A run and its reports; without a *number*, the last run.

    Raises:
        UsageError: there is no journal, or no such run in it.
        JournalError: it is damaged.
    """
    with read_database(path) as connection:
        runs = {run.id: run for run in run_rows(connection)}
        if not runs:
            raise UsageError(f"the journal {path} has no runs", hint="only asyncpush migrate records runs")
        chosen = max(runs) if number is None else number
        if chosen not in runs:
            raise UsageError(
                f"the journal {path} has no run {number}", hint="see them with `asyncpush journal show --runs`"
            )
        images = tuple(image for image in image_rows(connection) if image.run == chosen)
        documents: list[tuple[bytes]] = []
        if has_table(connection, "report"):
            query = "SELECT document FROM report WHERE run = ? ORDER BY begun"
            documents = connection.execute(query, (chosen,)).fetchall()
        return KeptReports(runs[chosen], images, tuple(document for (document,) in documents))
