"""A token bucket: what asks passes at a rate, in its order; and the report of what waits for which limit."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import anyio

from asyncpush.events import Emit, Limited

Clock = Callable[[], float]

#: The time whose tokens are saved up while nobody takes them: it makes up for a busy event loop.
_SAVED_SECONDS = 0.25
#: The time whose tokens one call takes at most, so that many callers share the rate evenly.
_GRANT_SECONDS = 0.05
#: Seconds after which a change of the rate is noticed.
_LONGEST_WAIT = 0.5

#: How much less than it needs a bucket may hold, because of rounding.
_ROUNDING = 1e-6


class TokenBucket:
    """Lets bytes or requests pass at a rate, and not in bursts.

    Args:
        rate: returns the tokens a second, which may change at any time; None is no limit.
        smallest: tokens that a call may always take at once: smaller pieces are not worth their cost.
        on_wait: called when a call had to wait.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        rate: Callable[[], float | None],
        *,
        smallest: int = 1,
        on_wait: Callable[[], None] | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._rate = rate
        self._smallest = smallest
        self._on_wait = on_wait
        self._clock = clock
        self._tokens = 1.0
        self._filled_at = clock()
        self._queue: deque[anyio.Event] = deque()

    @property
    def rate(self) -> float | None:
        """Tokens a second now; None is no limit."""
        return self._rate()

    async def take(self, most: int) -> int:
        """Wait until tokens are there, in the order of the calls; return how many were taken, at most *most*."""
        granted = 0 if self._queue else self._try(most)
        if granted:
            return granted
        turn = anyio.Event()
        self._queue.append(turn)
        try:
            if self._queue[0] is not turn:
                await turn.wait()
            while not (granted := self._try(most)):  # noqa: ASYNC110 - it waits for time to pass, not for a task
                await anyio.sleep(self._seconds_short(most))
        finally:
            self._queue.remove(turn)
            if self._queue:
                self._queue[0].set()
        if self._on_wait:
            self._on_wait()
        return granted

    def give_back(self, tokens: int) -> None:
        """Return tokens that were taken and not used."""
        self._tokens += tokens

    def _try(self, most: int) -> int:
        now, rate = self._clock(), self._rate()
        elapsed, self._filled_at = now - self._filled_at, now
        if rate is None:
            return most
        self._tokens = min(self._tokens + elapsed * rate, max(self._smallest, rate * _SAVED_SECONDS))
        wanted = self._wanted(most, rate)
        if self._tokens < wanted - _ROUNDING:
            return 0
        self._tokens -= wanted
        return wanted

    def _wanted(self, most: int, rate: float) -> int:
        return min(most, max(self._smallest, int(rate * _GRANT_SECONDS)))

    def _seconds_short(self, most: int) -> float:
        rate = self._rate()
        return 0.0 if rate is None else min((self._wanted(most, rate) - self._tokens) / rate, _LONGEST_WAIT)


#: Seconds between two reports of one limit.
_REPORT_INTERVAL = 1.0


class LimitReporter:
    """Emits that a limit makes requests wait, at most once a second; each limit has its own.

    Args:
        emit: receives the event.
        describe: makes it.
        clock: returns the time in seconds.
    """

    def __init__(self, emit: Emit, describe: Callable[[], Limited], clock: Clock = time.monotonic) -> None:
        self._emit = emit
        self._describe = describe
        self._clock = clock
        self._next = clock()

    def __call__(self) -> None:
        """Note that something had to wait."""
        now = self._clock()
        if now >= self._next:
            self._next = now + _REPORT_INTERVAL
            self._emit(self._describe())
