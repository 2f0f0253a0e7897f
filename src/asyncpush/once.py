"""Work that many ask for: what is done is done once, and what can't be done is tried once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

import anyio

T = TypeVar("T")


class Once(Generic[T]):
    """Does each thing once, however many ask for it; a failure is forgotten, so that somebody else may try."""

    def __init__(self) -> None:
        self._done: dict[Hashable, T] = {}
        self._running: dict[Hashable, anyio.Event] = {}
        self._announced: set[Hashable] = set()

    async def do(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> tuple[T, bool]:
        """The result of *work* for *key*, and whether it was this call that did it."""
        while key not in self._done:
            if (running := self._running.get(key)) is not None:
                await running.wait()
                continue
            finished = self._running[key] = anyio.Event()
            try:
                self._done[key] = await work()
            finally:
                del self._running[key]
                finished.set()
            return self._done[key], True
        return self._done[key], False

    def waiting(self, key: Hashable) -> int:
        """How many wait for what somebody does for *key*."""
        running = self._running.get(key)
        return running.statistics().tasks_waiting if running else 0

    def announce(self, key: Hashable) -> bool:
        """Whether nobody has announced *key* before, so that work is counted once."""
        if key in self._announced:
            return False
        self._announced.add(key)
        return True

    def retract(self, key: Hashable) -> None:
        """Let *key* be announced again, unless it was done."""
        if key not in self._done:
            self._announced.discard(key)

    def forget(self, key: Hashable) -> None:
        """Let *key* be done again."""
        self._done.pop(key, None)


class FailsOnce:
    """Does not do again what has failed, so that it fails once for all that ask for it, until it is forgotten.

    Args:
        kind: the failures that others would meet, too.
    """

    def __init__(self, kind: type[Exception]) -> None:
        self._kind = kind
        self._failures: dict[object, Exception] = {}

    async def do(self, key: object, work: Callable[[], Awaitable[T]]) -> T:
        """The result of *work*; or else the failure of whoever has tried *key* before."""
        if (known := self._failures.get(key)) is not None:
            raise known.with_traceback(None)
        try:
            return await work()
        except self._kind as error:
            self._failures[key] = error
            raise

    def forget(self) -> None:
        """Let all be tried again."""
        self._failures.clear()
