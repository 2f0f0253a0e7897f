"""Layers in flight: few at first, and more as long as more of them are faster; the largest go first."""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio

from asyncpush.settings import MiB

#: Slots at the beginning: enough to see what the network gives, few enough for any account.
FIRST_SLOTS = 32

#: A layer up to this size takes its requests' time, not its bytes': it must not wait behind layers that take minutes.
SMALL = MiB

#: The share of the slots that larger layers leave to small ones while those wait.
_FOR_SMALL = 0.25

#: How much faster a round must be than the one before, for its slots to have paid.
_WORTH_IT = 1.1

#: Rounds without growth after which more slots are tried again: networks change, and so does who else uses them.
_ROUNDS_PER_PROBE = 50


@dataclass(order=True, slots=True)
class _Waiting:
    rank: tuple[int, int]
    is_small: bool = field(compare=False)
    granted: anyio.Event = field(compare=False, default_factory=anyio.Event)
    has_left: bool = field(compare=False, default=False)


class AdaptiveLimiter:
    """Slots for layers in flight, taken with ``async with slots.hold(size)``.

    The largest layer that waits goes first, so that none of them is left for the end; but small ones always have a
    share of the slots, since images wait for them, too.

    One stream into ECR is slow, and many are fast, up to what the network, the account or this machine gives; nobody
    knows beforehand where that is. So each acknowledged part opens one more slot while layers wait for one: a round of
    parts doubles them. A round that is hardly faster than the one before ends that, and takes its slots back.

    Args:
        most: slots that there may ever be.
        first: slots to begin with.
        clock: the time in seconds.
    """

    def __init__(self, most: int, *, first: int = FIRST_SLOTS, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._total = min(first, most)
        self._large = self._small = 0
        self._waiting_large: list[_Waiting] = []
        self._waiting_small: deque[_Waiting] = deque()
        self._asked = 0
        self._clock = clock
        self._growing = True
        self._rounds = 0
        self._round, self._last = _Round(self.count, clock()), _Round(self.count, clock())

    @property
    def count(self) -> int:
        """Slots that there are now, taken or free."""
        return self._total

    @property
    def taken(self) -> int:
        """Slots that layers have now."""
        return self._large + self._small

    @property
    def is_idle(self) -> bool:
        """Whether there is a slot that no layer waits for."""
        return self.taken < self._total and not (self._waiting_large or self._waiting_small)

    @asynccontextmanager
    async def hold(self, size: int = 0) -> AsyncIterator[None]:
        """Wait for a slot for a layer of *size* bytes, and have it for the block."""
        self._asked += 1
        place = _Waiting((-size, self._asked), size <= SMALL)
        if place.is_small:
            self._waiting_small.append(place)
        else:
            heapq.heappush(self._waiting_large, place)
        self._grant()
        try:
            await place.granted.wait()
            yield
        finally:
            self._leave(place)

    def _leave(self, place: _Waiting) -> None:
        if not place.granted.is_set():
            # To look for it would take a step for each that waits, and all of them may leave at once.
            place.has_left = True
            self._skip_those_who_left()
            return
        if place.is_small:
            self._small -= 1
        else:
            self._large -= 1
        self._grant()

    def _grant(self) -> None:
        while self.taken < self._total and (place := self._next()) is not None:
            if place.is_small:
                self._small += 1
            else:
                self._large += 1
            place.granted.set()

    def _next(self) -> _Waiting | None:
        """Who has a slot next."""
        place: _Waiting | None = None
        if self._waiting_large and not (self._waiting_small and self._large >= self._total * (1 - _FOR_SMALL)):
            place = heapq.heappop(self._waiting_large)
        elif self._waiting_small:
            place = self._waiting_small.popleft()
        self._skip_those_who_left()
        return place

    def _skip_those_who_left(self) -> None:
        """See that whoever is first in a line is still there."""
        while self._waiting_large and self._waiting_large[0].has_left:
            heapq.heappop(self._waiting_large)
        while self._waiting_small and self._waiting_small[0].has_left:
            self._waiting_small.popleft()

    def acknowledged(self, size: int) -> None:
        """Hear that ECR has a part of *size* bytes, and open or close slots."""
        if not (self._waiting_large or self._waiting_small):
            # Nobody would use another one; and what the last layers do tells nothing about it.
            self._round = _Round(self.count, self._clock())
            return
        self._round.add(size)
        if self._growing:
            self._set(self.count + 1)
        if self._round.parts >= self._round.slots:
            self._judge()

    def _judge(self) -> None:
        """End a round, and see whether its slots have paid."""
        last, self._last = self._last, self._round
        self._last.end(self._clock())
        self._rounds += 1
        if self._growing and not self._last.is_faster_than(last):
            self._growing, self._rounds = False, 0
            self._set(last.slots)
        elif self._rounds >= _ROUNDS_PER_PROBE:
            self._growing, self._rounds = True, 0
        self._round = _Round(self.count, self._clock())

    def _set(self, count: int) -> None:
        self._total = min(count, self._most)
        self._grant()


class _Round:
    """As many parts as there were slots when it began."""

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
        """Whether bytes or parts came faster: where layers are small, each costs its requests more than its bytes."""
        return (
            self.bytes_per_second > other.bytes_per_second * _WORTH_IT
            or self.parts_per_second > other.parts_per_second * _WORTH_IT
        )
