"""Work that many tasks request: it is done once, or fails once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar, cast

import anyio

from asyncpush.digest_set import PackedSet

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Does the work for each key once, however many tasks ask for it; after a failure, the next task tries again.

    A run can have millions of keys: a key that ends in a digest takes little memory, and so does the usual result.

    Args:
        usual: the result of most keys.
    """

    def __init__(self, usual: T | None = None) -> None:
        self._usual = usual
        self._usually_done = PackedSet()
        self._done: dict[Hashable, T] = {}
        self._running: dict[Hashable, anyio.Event] = {}
        self._claimed = PackedSet()

    async def do(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> tuple[T, bool]:
        """Return the result of *work* for *key*, and whether this call did the work."""
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
                self._claimed.discard(key)
            finally:
                del self._running[key]
                finished.set()
            return result, True
        return self._done.get(key, cast("T", self._usual)), False

    def waiting(self, key: Hashable) -> int:
        """Return how many tasks wait for the running work on *key*."""
        running = self._running.get(key)
        return running.statistics().tasks_waiting if running else 0

    def claim(self, key: Hashable) -> bool:
        """Claim *key* ahead of its work, so that the work is counted once; False if it is claimed or done already."""
        if self.is_known(key):
            return False
        self._claimed.add(key)
        return True

    def is_known(self, key: Hashable) -> bool:
        """Whether the work for *key* is done, or claimed."""
        return key in self._claimed or self._is_done(key)

    def release(self, key: Hashable) -> None:
        """Give up a claim on *key*, so that another task can claim it."""
        self._claimed.discard(key)

    def forget(self, key: Hashable) -> None:
        """Forget the result for *key*, so that the work is done again; it stays claimed, since it was counted."""
        if self._is_done(key):
            self._claimed.add(key)
        self._usually_done.discard(key)
        self._done.pop(key, None)

    def _is_done(self, key: Hashable) -> bool:
        return key in self._usually_done or key in self._done


class CachedResult(Generic[T]):
    """The result of *load*, which is awaited once for all callers; a failure is not cached."""

    def __init__(self, load: Callable[[], Awaitable[T]]) -> None:
        self._load = load
        self._lock = anyio.Lock()
        self._results: list[T] = []

    async def get(self) -> T:
        """Return the result, or raise what *load* raises."""
        async with self._lock:
            if not self._results:
                self._results.append(await self._load())
        return self._results[0]


class FirstFailure:
    """Does work that fails only once: every later task gets the first error.

    Args:
        kind: the errors that every later task would get, too.
    """

    def __init__(self, kind: type[Exception]) -> None:
        self._kind = kind
        self._failures: dict[object, Exception] = {}

    async def do(self, key: object, work: Callable[[], Awaitable[T]]) -> T:
        """Return the result of *work*, or raise the error of an earlier attempt for *key*."""
        if (known := self._failures.get(key)) is not None:
            raise known.with_traceback(None)
        try:
            return await work()
        except self._kind as error:
            self._failures[key] = error
            raise

    def forget(self) -> None:
        """Forget all failures, so that everything can be tried again."""
        self._failures.clear()
