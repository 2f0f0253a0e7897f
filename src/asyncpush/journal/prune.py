"""Delete old runs and uploads from a journal, and free their disk space."""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path

from asyncpush.journal.database import journal_error, open_database, resolved, transaction


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was deleted: how many of each, and the bytes of disk space that were freed."""

    runs: int
    images: int
    tags: int
    uploads: int
    freed: int


def prune(path: Path, older_than: float, *, unfinished: bool = False) -> Pruned:
    """Delete old runs, what they found (images, tags and referrers), old proofs and open uploads; blocks.

    The layers of repositories and compressed blobs stay: they save work, and ECR corrects them where they are wrong.

    Args:
        path: the journal; no run may be using it.
        older_than: seconds since a run ended, or since an upload was last heard of.
        unfinished: also delete old runs that could be resumed.

    Raises:
        UsageError: there is no journal, it is in use, or it can't be used.
        JournalError: it is damaged, or its disk is full.
    """
    path, before = resolved(path), time.time() - older_than
    taken = _size(path)
    with open_database(path, make=False) as connection:
        try:
            counts = _forget(connection, before, unfinished)
            connection.execute("VACUUM")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except sqlite3.Error as error:
            raise journal_error(path, error) from error
        return Pruned(*counts, freed=max(taken - _size(path), 0))


def _forget(connection: sqlite3.Connection, before: float, unfinished: bool) -> tuple[int, int, int, int]:
    with transaction(connection):
        # The last run of a plan, if it has not ended, can be resumed.
        old = connection.execute(
            "SELECT id FROM run WHERE coalesce(ended, begun) < ? AND (? OR ended IS NOT NULL"
            " OR EXISTS (SELECT 1 FROM run AS later WHERE later.plan = run.plan AND later.id > run.id))",
            (before, unfinished),
        ).fetchall()
        images = connection.executemany("DELETE FROM image WHERE run = ?", old).rowcount
        runs = connection.executemany("DELETE FROM run WHERE id = ?", old).rowcount
        connection.execute("DELETE FROM report WHERE run NOT IN (SELECT id FROM run)")
        tags = connection.execute("DELETE FROM known WHERE at < ?", (before,)).rowcount
        connection.execute("DELETE FROM carried WHERE at < ?", (before,))
        connection.execute("DELETE FROM proved WHERE at < ?", (before,))
        uploads = connection.execute("DELETE FROM upload WHERE heard < ?", (before,)).rowcount
    # executemany counts -1 if it had nothing to do.
    return max(runs, 0), max(images, 0), tags, uploads


def _size(path: Path) -> int:
    """Bytes of the file and of its write-ahead log; 0 if there is no file."""
    files = (path, path.with_name(f"{path.name}-wal"))
    try:
        return sum(file.stat().st_size for file in files if file.exists())
    except OSError:  # opening it says what is wrong
        return 0
