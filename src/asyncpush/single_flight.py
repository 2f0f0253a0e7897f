"""Work that many ask for: what is done is done once, and what can't be done is tried once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar, cast

import anyio

from asyncpush.digest_set import PackedSet

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Does each thing once, however many ask for it; a failure is forgotten, so that somebody else may try.

    A run has millions of things to do: keys that end in a digest take little memory, and so do usual results.

    Args:
        usual: a result that most things have.
    """

    def __init__(self, usual: T | None = None) -> None:
        self._usual = usual
        self._usually_done = PackedSet()
        self._done: dict[Hashable, T] = {}
        self._running: dict[Hashable, anyio.Event] = {}
        self._announced = PackedSet()

    async def do(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> tuple[T, bool]:
        """The result of *work* for *key*, and whether it was this call that did it."""
        while not self._is_done(key):
            if (running := self._running.get(key)) is not None:
                await running.wait()
                continue
            finished = self._running[key] = anyio.Event()
            try:
                result = await work()
                if result == self._usual:
                    self._usually_done.add(key)
                else:
                    self._done[key] = result
                self._announced.discard(key)
            finally:
                del self._running[key]
                finished.set()
            return result, True
        return self._done.get(key, cast("T", self._usual)), False

    def waiting(self, key: Hashable) -> int:
        """How many wait for what somebody does for *key*."""
        running = self._running.get(key)
        return running.statistics().tasks_waiting if running else 0

    def announce(self, key: Hashable) -> bool:
        """Whether nobody has announced *key* before, so that work is counted once."""
        if key in self._announced or self._is_done(key):
            return False
        self._announced.add(key)
        return True

    def retract(self, key: Hashable) -> None:
        """Let *key* be announced again, unless it was done."""
        self._announced.discard(key)

    def forget(self, key: Hashable) -> None:
        """Let *key* be done again."""
        if self._is_done(key):
            self._announced.add(key)  # it was counted
        self._usually_done.discard(key)
        self._done.pop(key, None)

    def _is_done(self, key: Hashable) -> bool:
        return key in self._usually_done or key in self._done


class FirstFailure:
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
