"""Runs that went before: which images the last run of a plan finished and which failed, and a run that continues it.

The functions run within a transaction, in a worker thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from asyncpush.journal.sql import BegunRun, FinishedImage, optional_digest, packed_text, unpacked, unpacked_text


@dataclass(frozen=True, slots=True)
class EarlierRun:
    """The last run of a plan, or the last runs of all its shards in a merged journal.

    Attributes:
        runs: their numbers in the journal.
        begun: when the last of them began, UTC.
        has_ended: whether all of them came to their ends; otherwise there are images that they did not try.
        finished: the images that they finished, by ``copy``.
        failed: the ``copy`` of each image that failed.
    """

    runs: tuple[int, ...]
    begun: datetime
    has_ended: bool
    finished: dict[str, FinishedImage] = field(default_factory=dict)
    failed: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class _Run:
    """A row of a run; ``plan`` is its fingerprint, of which ``shard`` and ``shards`` are a part."""

    id: int
    plan: str
    begun: float
    has_ended: bool

    @property
    def whole(self) -> str:
        """The fingerprint without the shard."""
        return self.plan.partition(" ")[0]

    @property
    def shards(self) -> int:
        """How many shards the plan is divided into; 1 if it is not."""
        count = self.plan.partition("/")[2]
        return int(count) if count.isdecimal() else 1


def plan_of(whole: str, shard: object | None) -> str:
    """The fingerprint of a plan, or of a *shard* ``I/N`` of it; runs of shards show that they belong together."""
    return whole if shard is None else f"{whole} {shard}"


def find_earlier(connection: sqlite3.Connection, plan: str) -> EarlierRun | None:
    """The last run of *plan*; if it has none, of any plan, since it may have been changed; None if there is none."""
    rows = connection.execute("SELECT id, plan, begun, ended IS NOT NULL FROM run ORDER BY begun, id")
    runs = [_Run(key, text, begun, bool(ended)) for key, text, begun, ended in rows]
    asked = _Run(0, plan, 0.0, has_ended=False)
    own = [run for run in runs if run.plan == plan] if asked.shards > 1 else []
    own = own or [run for run in runs if run.whole == asked.whole] or runs
    if not own:
        return None
    last = own[-1]
    group = {last.plan: last}
    if last.plan != plan:
        group |= {run.plan: run for run in own if (run.whole, run.shards) == (last.whole, last.shards)}
    has_ended = all(run.has_ended for run in group.values()) and (last.plan == plan or len(group) == last.shards)
    finished: dict[str, FinishedImage] = {}
    failed: set[str] = set()
    for copy, source, digest, outcome in _images(connection, [run.id for run in group.values()]):
        name = unpacked_text(copy)
        if digest is None:
            failed.add(name)
            finished.pop(name, None)
        else:
            failed.discard(name)
            finished[name] = FinishedImage(optional_digest(source), unpacked(digest), outcome)
    numbers = tuple(run.id for run in group.values())
    return EarlierRun(numbers, datetime.fromtimestamp(last.begun, UTC), has_ended, finished, frozenset(failed))


def _images(
    connection: sqlite3.Connection, runs: Sequence[int]
) -> Iterable[tuple[bytes, bytes | None, bytes | None, str]]:
    for run in runs:
        yield from connection.execute(
            "SELECT copy, source_digest, digest, outcome FROM image WHERE run = ? ORDER BY at", (run,)
        )


def continue_run(connection: sqlite3.Connection, plan: str, earlier: EarlierRun, now: float) -> BegunRun:
    """Begin a run of *plan* that has what an earlier run finished; it is the same one if that was of the same plan."""
    last = connection.execute("SELECT plan, started FROM run WHERE id = ?", (earlier.runs[-1],)).fetchone()
    if len(earlier.runs) == 1 and last is not None and last[0] == plan:
        [key] = earlier.runs
        connection.execute("UPDATE run SET begun = ?, ended = NULL, failed = 0 WHERE id = ?", (now, key))
        return BegunRun(key, True, last[1], dict(earlier.finished))
    added = connection.execute("INSERT INTO run (plan, started, begun) VALUES (?, ?, ?)", (plan, now, now))
    assert added.lastrowid is not None, "an INSERT has one"  # noqa: S101
    for run in earlier.runs:
        connection.execute(
            "INSERT OR REPLACE INTO image (run, copy, source_digest, digest, outcome, reason, at)"
            " SELECT ?, copy, source_digest, digest, outcome, reason, at FROM image WHERE run = ?",
            (added.lastrowid, run),
        )
    return BegunRun(added.lastrowid, True, now, dict(earlier.finished))


def forget_failures(connection: sqlite3.Connection, run: int, copies: Collection[str]) -> None:
    """Delete images that failed in an earlier run, and do not any more."""
    connection.executemany(
        "DELETE FROM image WHERE run = ? AND copy = ? AND digest IS NULL",
        [(run, packed_text(copy)) for copy in copies],
    )
