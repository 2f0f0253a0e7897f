"""Group commit: the work of many tasks goes into one transaction, and each task waits for its commit."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import anyio
from anyio import CancelScope, CapacityLimiter, to_thread

from asyncpush.errors import JournalError
from asyncpush.journal.database import journal_error, missing_error, transaction

T = TypeVar("T")


def _nothing() -> None:
    """Do nothing after the commit."""


class _PendingWork(Generic[T]):
    """Work that waits for its transaction, and its result."""

    result: T

    def __init__(self, work: Callable[[sqlite3.Connection], T], then: Callable[[], object]) -> None:
        self.work = work
        self.then = then
        self.error: Exception | None = None
        self.done = anyio.Event()

    def run(self, connection: sqlite3.Connection) -> None:
        self.result = self.work(connection)


class GroupCommit:
    """The only access to a journal's connection; ``run`` must run in a task meanwhile.

    While one transaction is being committed in a worker thread, the next one collects work. There is never more than
    one, and work is done in the order in which it arrives.

    Args:
        connection: to the file, in autocommit mode.
        path: the file, for errors.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._waiting: list[_PendingWork[object]] = []
        self._wanted = anyio.Event()
        self._closed = False
        # A limiter of its own, so that it never waits for threads that read, compress or wait.
        self._thread = CapacityLimiter(1)

    async def do(self, work: Callable[[sqlite3.Connection], T], then: Callable[[], object] = _nothing) -> T:
        """Do *work* in a transaction, in a worker thread; return its result once that is committed.

        A caller that is cancelled does not wait, but its work is done: what ECR has acknowledged stays true.

        Args:
            work: reads or writes through the connection; called twice if the first transaction is rolled back.
            then: called on the event loop after the commit, before any caller continues.

        Raises:
            JournalError: it could not be written; nothing was.
        """
        if self._closed:
            raise JournalError(f"the journal {self._path} is closed")
        entry = _PendingWork(work, then)
        self._waiting.append(entry)  # type: ignore[arg-type] # a list of entries of many types, each used by its own
        self._wanted.set()
        await entry.done.wait()
        if entry.error is not None:
            raise entry.error
        return entry.result

    async def run(self) -> None:
        """Commit work until ``close``, and the work that remains then."""
        with CancelScope(shield=True):
            while self._waiting or not self._closed:
                if not self._waiting:
                    self._wanted = anyio.Event()
                    await self._wanted.wait()
                    continue
                batch, self._waiting = self._waiting, []
                await to_thread.run_sync(self._commit, batch, limiter=self._thread)
                for entry in batch:
                    if entry.error is None:
                        entry.then()
                    entry.done.set()

    def close(self) -> None:
        """Let ``run`` end once all work is committed."""
        self._closed = True
        self._wanted.set()

    def _commit(self, batch: list[_PendingWork[object]]) -> None:
        if (missing := missing_error(self._path)) is not None:
            # SQLite would go on, and write to a file that nobody can open again.
            for entry in batch:
                entry.error = missing
            return
        try:
            self._transact(batch)
        except Exception as error:  # noqa: BLE001 - raised in the tasks that it concerns
            if len(batch) > 1 and not isinstance(error, sqlite3.OperationalError):
                # One entry is at fault, and not the disk: commit the others without it.
                for entry in batch:
                    self._commit([entry])
                return
            for entry in batch:
                entry.error = error
                if isinstance(error, sqlite3.DatabaseError):
                    entry.error = journal_error(self._path, error)
                    entry.error.__cause__ = error

    def _transact(self, batch: list[_PendingWork[object]]) -> None:
        with transaction(self._connection):
            for entry in batch:
                entry.run(self._connection)
