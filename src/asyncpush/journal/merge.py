"""Journals of shards, merged into one: what each of them recorded, and the result of the latest run of each.

Everything here blocks: call it in a worker thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from asyncpush.errors import UsageError
from asyncpush.journal.database import has_table, open_database, opening, read_database, resolved, transaction
from asyncpush.journal.export import ImageRow, RunRow, image_rows, run_rows


@dataclass(frozen=True, slots=True)
class JournalResult:
    """The latest run of a journal.

    Attributes:
        name: the journal.
        run: its latest run; None if there is none.
        images: the outcome of each image of that run.
    """

    name: str
    run: RunRow | None
    images: tuple[ImageRow, ...]


def merge(journals: Sequence[tuple[str, Path]], into: Path) -> list[JournalResult]:
    """Add everything in some journals to another one, which is created if there is none.

    Merging again adds nothing twice. Of two records of one thing, the later counts.

    Args:
        journals: the name and the file of each; no run may be using *into*, but any of these.
        into: the journal to add to.

    Raises:
        UsageError: one of the files is missing, or is not a journal; or *into* is in use.
        JournalError: one is damaged; those before it may have been merged.
    """
    for name, path in journals:
        if resolved(path) == resolved(into):
            raise UsageError(f"{name} can't be merged into itself", hint="name another file to merge into")
    results = []
    with open_database(into) as target, opening(into):
        for name, path in journals:
            with read_database(path) as source:
                with transaction(target):
                    _copy(source, target)
                results.append(_result(name, source))
    return results


def _result(name: str, source: sqlite3.Connection) -> JournalResult:
    run = max(run_rows(source), key=lambda run: (run.resumed or run.started, run.id), default=None)
    images = tuple(image for image in image_rows(source) if run is not None and image.run == run.id)
    return JournalResult(name, run, images)


def _copy(source: sqlite3.Connection, target: sqlite3.Connection) -> None:
    _copy_runs(source, target)
    # Of journals from before a column or table existed, which are only read, it is missing.
    choice = "choice" if "choice" in _columns(source, "known") else "''"
    target.executemany(
        "INSERT INTO known (repository, tag, source_digest, digest, at, choice) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET source_digest = excluded.source_digest, digest = excluded.digest,"
        " at = excluded.at, choice = excluded.choice WHERE excluded.at >= at",
        source.execute(f"SELECT repository, tag, source_digest, digest, at, {choice} FROM known"),  # noqa: S608 - a word of ours
    )
    target.executemany(
        "INSERT INTO carried (repository, digest, at) VALUES (?, ?, ?)"
        " ON CONFLICT DO UPDATE SET at = max(at, excluded.at)",
        source.execute("SELECT repository, digest, at FROM carried"),
    )
    target.executemany(
        "INSERT OR IGNORE INTO compressed (identity, media_type, digest, size) VALUES (?, ?, ?, ?)",
        source.execute("SELECT identity, media_type, digest, size FROM compressed"),
    )
    if has_table(source, "making"):
        target.executemany(
            "INSERT OR REPLACE INTO making (repository, at) VALUES (?, ?)",
            source.execute("SELECT repository, at FROM making"),
        )
    if has_table(source, "proved"):
        target.executemany(
            "INSERT INTO proved (repository, reference, digest, deep, at) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET digest = excluded.digest, deep = excluded.deep, at = excluded.at"
            " WHERE CASE WHEN excluded.digest = digest THEN (excluded.deep, excluded.at) > (deep, at)"
            " ELSE excluded.at >= at END",
            source.execute("SELECT repository, reference, digest, deep, at FROM proved"),
        )
    target.executemany(
        "INSERT OR IGNORE INTO repository (address) VALUES (?)", source.execute("SELECT address FROM repository")
    )
    target.executemany(
        "INSERT INTO layer (repository, digest, size, referenced)"
        " VALUES ((SELECT key FROM repository WHERE address = ?), ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET referenced = max(referenced, excluded.referenced)",
        source.execute("SELECT address, digest, size, referenced FROM repository JOIN layer ON repository = key"),
    )
    uploads = "repository, identity, id, asked_part_size, max_parts, part_size, received, begun, heard"
    target.executemany(
        f"INSERT INTO upload ({uploads}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 - words of ours
        " ON CONFLICT DO UPDATE SET id = excluded.id, asked_part_size = excluded.asked_part_size,"
        " max_parts = excluded.max_parts, part_size = excluded.part_size, received = excluded.received,"
        " begun = excluded.begun, heard = excluded.heard WHERE excluded.heard > heard",
        source.execute(f"SELECT {uploads} FROM sound_upload"),  # noqa: S608 - likewise
    )


def _copy_runs(source: sqlite3.Connection, target: sqlite3.Connection) -> None:
    """Copy runs, with new numbers; those with the same plan and start are one run, of which the later copy counts."""
    columns = "plan, started, begun, ended, failed, images_finished, images_failed"
    has_reports = has_table(source, "report")
    for key, plan, started, begun, ended, *counts in source.execute(f"SELECT id, {columns} FROM run ORDER BY id"):  # noqa: S608
        found = target.execute(
            "SELECT id, begun, ended FROM run WHERE plan = ? AND started = ?", (plan, started)
        ).fetchone()
        if found is not None:
            number, begun_there, ended_there = found
            if (begun_there, ended_there or 0.0) > (begun, ended or 0.0):
                continue
            target.execute("DELETE FROM run WHERE id = ?", (number,))
            target.execute("DELETE FROM image WHERE run = ?", (number,))
            target.execute("DELETE FROM report WHERE run = ?", (number,))
        new = target.execute(
            f"INSERT INTO run ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)",  # noqa: S608 - words of ours
            (plan, started, begun, ended, *counts),
        ).lastrowid
        target.executemany(
            "INSERT INTO image (run, copy, source_digest, digest, outcome, reason, at) VALUES (?, ?, ?, ?, ?, ?, ?)",
            _images(source, key, new),
        )
        if has_reports:
            target.executemany(
                "INSERT OR REPLACE INTO report (run, begun, seconds, sent, document) VALUES (?, ?, ?, ?, ?)",
                _reports(source, key, new),
            )


def _images(source: sqlite3.Connection, run: int, new: int | None) -> Iterator[tuple[object, ...]]:
    rows: Iterable[tuple[object, ...]] = source.execute(
        "SELECT copy, source_digest, digest, outcome, reason, at FROM image WHERE run = ?", (run,)
    )
    return ((new, *row) for row in rows)


def _reports(source: sqlite3.Connection, run: int, new: int | None) -> Iterator[tuple[object, ...]]:
    rows: Iterable[tuple[object, ...]] = source.execute(
        "SELECT begun, seconds, sent, document FROM report WHERE run = ?", (run,)
    )
    return ((new, *row) for row in rows)


def _columns(source: sqlite3.Connection, table: str) -> set[str]:
    return {str(column[1]) for column in source.execute(f"PRAGMA table_info({table})")}
