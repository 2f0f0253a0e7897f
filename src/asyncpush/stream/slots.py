"""Layers in flight: few at first, and more as long as more of them are faster."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from anyio import CapacityLimiter

#: Slots at the beginning: enough to see what the network gives, few enough for any account and machine.
FIRST_SLOTS = 16

#: How much faster a round must be than the one before, for its slots to have paid.
_WORTH_IT = 1.1

#: Rounds without growth after which more slots are tried again: networks change, and so does who else uses them.
_PATIENCE = 50


class Slots:
    """Slots for layers in flight, taken with ``async with``; who asks first is served first.

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
        self._limiter = CapacityLimiter(min(first, most))
        self._clock = clock
        self._growing = True
        self._rounds = 0
        self._round, self._last = _Round(self.count, clock()), _Round(self.count, clock())

    @property
    def count(self) -> int:
        """Slots that there are now, taken or free."""
        return int(self._limiter.total_tokens)

    @property
    def taken(self) -> int:
        """Slots that layers have now."""
        return self._limiter.borrowed_tokens

    async def __aenter__(self) -> None:
        await self._limiter.acquire()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._limiter.release()

    def acknowledged(self, size: int) -> None:
        """Hear that ECR has a part of *size* bytes, and open or close slots."""
        if not self._limiter.statistics().tasks_waiting:
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
        elif self._rounds >= _PATIENCE:
            self._growing, self._rounds = True, 0
        self._round = _Round(self.count, self._clock())

    def _set(self, count: int) -> None:
        self._limiter.total_tokens = min(count, self._most)


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
