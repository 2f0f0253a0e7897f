"""Limits the layers in flight: few at first, then more for as long as that is faster; the largest layers go first."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio

from asyncpush.settings import MiB

#: Slots at the beginning: enough to measure the network, few enough for any account.
FIRST_SLOTS = 32

#: Bytes up to which a layer is small: its requests take longer than its bytes, so it must not wait behind layers that
#: take minutes.
SMALL = MiB

#: The share of the slots that is reserved for small layers while they wait.
_SHARE_OF_SMALL = 0.25

#: How many times as fast as the round before a round must be to keep its slots.
_MIN_SPEEDUP = 1.1

#: Rounds without growth after which more slots are tried again: the network and its other users change.
_ROUNDS_PER_PROBE = 50


@dataclass(order=True, slots=True)
class _Waiter:
    rank: tuple[int, int]
    is_small: bool = field(compare=False)
    granted: anyio.Event = field(compare=False, default_factory=anyio.Event)
    is_cancelled: bool = field(compare=False, default=False)


class AdaptiveLimiter:
    """Slots for layers in flight, taken with ``async with limiter.hold(size)``.

    The largest waiting layer goes first, so that no large layer is left for the end. Small layers always have a share
    of the slots, because images wait for them, too.

    One stream into ECR is slow, and many are fast, up to a limit of the network, the account or this machine that is
    not known beforehand. So while layers wait, each acknowledged part opens one more slot: each round of parts doubles
    the slots. A round that is hardly faster than the one before ends the growth, and its new slots are closed again.

    Args:
        most: the most slots that there may ever be.
        first: the slots at the beginning.
        clock: returns the time in seconds.
    """

    def __init__(self, most: int, *, first: int = FIRST_SLOTS, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._total = min(first, most)
        self._large = self._small = 0
        self._waiting_large: list[_Waiter] = []
        self._waiting_small: deque[_Waiter] = deque()
        self._requests = 0
        self._clock = clock
        self._growing = True
        self._rounds = 0
        self._round, self._last = _Round(self.count, clock()), _Round(self.count, clock())

    @property
    def count(self) -> int:
        """The number of slots now, taken or free."""
        return self._total

    @property
    def taken(self) -> int:
        """The number of slots that layers hold now."""
        return self._large + self._small

    @property
    def is_idle(self) -> bool:
        """Whether a slot is free and no layer waits."""
        return self.taken < self._total and not (self._waiting_large or self._waiting_small)

    @asynccontextmanager
    async def hold(self, size: int = 0) -> AsyncIterator[None]:
        """Wait for a slot for a layer of *size* bytes, and hold it for the block."""
        self._requests += 1
        waiter = _Waiter((-size, self._requests), size <= SMALL)
        if waiter.is_small:
            self._waiting_small.append(waiter)
        else:
            heapq.heappush(self._waiting_large, waiter)
        self._grant()
        try:
            await waiter.granted.wait()
            yield
        finally:
            self._leave(waiter)

    def _leave(self, waiter: _Waiter) -> None:
        if not waiter.granted.is_set():
            # It stays in the queue: to remove it takes a step per waiter, and all may be cancelled at once.
            waiter.is_cancelled = True
            self._skip_cancelled()
            return
        if waiter.is_small:
            self._small -= 1
        else:
            self._large -= 1
        self._grant()

    def _grant(self) -> None:
        while self.taken < self._total and (waiter := self._next()) is not None:
            if waiter.is_small:
                self._small += 1
            else:
                self._large += 1
            waiter.granted.set()

    def _next(self) -> _Waiter | None:
        """Remove the waiter that gets the next slot from its queue."""
        waiter: _Waiter | None = None
        if self._waiting_large and not (self._waiting_small and self._large >= self._total * (1 - _SHARE_OF_SMALL)):
            waiter = heapq.heappop(self._waiting_large)
        elif self._waiting_small:
            waiter = self._waiting_small.popleft()
        self._skip_cancelled()
        return waiter

    def _skip_cancelled(self) -> None:
        """Make sure that the first waiter of each queue still waits."""
        while self._waiting_large and self._waiting_large[0].is_cancelled:
            heapq.heappop(self._waiting_large)
        while self._waiting_small and self._waiting_small[0].is_cancelled:
            self._waiting_small.popleft()

    def acknowledged(self, size: int) -> None:
        """Record that ECR has a part of *size* bytes, and open or close slots."""
        if not (self._waiting_large or self._waiting_small):
            # No layer would use another slot, and the last layers say nothing about the network.
            self._round = _Round(self.count, self._clock())
            return
        self._round.add(size)
        if self._growing:
            self._set_count(self.count + 1)
        if self._round.parts >= self._round.slots:
            self._end_round()

    def _end_round(self) -> None:
        """End a round, and decide whether to keep its new slots."""
        last, self._last = self._last, self._round
        self._last.end(self._clock())
        self._rounds += 1
        if self._growing and not self._last.is_faster_than(last):
            self._growing, self._rounds = False, 0
            self._set_count(last.slots)
        elif self._rounds >= _ROUNDS_PER_PROBE:
            self._growing, self._rounds = True, 0
        self._round = _Round(self.count, self._clock())

    def _set_count(self, count: int) -> None:
        self._total = min(count, self._most)
        self._grant()


class _Round:
    """A measurement over as many parts as there were slots at its beginning."""

    def __init__(self, slots: int, began: float) -> None:
        self.slots = slots
        self.parts = 0
        self.parts_per_second = 0.0
        self.bytes_per_second = 0.0
        self._began = began
        self._bytes = 0

    def add(self, size: int) -> None:
        self.parts += 1
        self._bytes += size

    def end(self, now: float) -> None:
        seconds = max(now - self._began, 1e-9)
        self.parts_per_second = self.parts / seconds
        self.bytes_per_second = self._bytes / seconds

    def is_faster_than(self, other: _Round) -> bool:
        """Whether bytes or parts were faster: small layers cost more for their requests than for their bytes."""
        return (
            self.bytes_per_second > other.bytes_per_second * _MIN_SPEEDUP
            or self.parts_per_second > other.parts_per_second * _MIN_SPEEDUP
        )
