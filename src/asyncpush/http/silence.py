"""Reports that a host has not answered for a while, so that a run that waits for it does not look hung."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio

from asyncpush.errors import AsyncpushError
from asyncpush.events import Emit, Unanswered, ignore

Clock = Callable[[], float]

#: Seconds between two reports.
_INTERVAL = 1.0

#: Seconds for which a request that got no answer may rest before it is sent again: until then, the silence lasts.
_LONGEST_REST = 30.0


class SilenceReporter:
    """Emits ``Unanswered`` while requests wait for one host that gives no sign of life.

    Only requests that have been sent count, and those that rest after they got no answer: not those that wait for
    their turn.

    Args:
        first: seconds of silence before the first report.
        emit: receives the reports.
        clock: tells the time in seconds.

    Attributes:
        host: the host's name.
    """

    def __init__(self, host: str, first: float, emit: Emit = ignore, *, clock: Clock = anyio.current_time) -> None:
        self.host = host
        self._first = first
        self._emit = emit
        self._clock = clock
        self._since: float | None = None
        self._rested = self._paused = 0.0
        self._waiting = 0
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count a request that waits for an answer within the block."""
        self._waiting += 1
        if self._since is None:
            self._since = self._clock() - self._paused
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._first, self._check)
        is_unanswered = False
        try:
            yield
        except AsyncpushError:
            is_unanswered = True  # unless ``heard`` was called
            raise
        finally:
            self._waiting -= 1
            self._rested = self._clock()
            if not (self._waiting or is_unanswered) and self._since is not None:
                # It was cancelled, maybe since it took too long; or ``heard`` was called just now.
                self._paused, self._since = self._rested - self._since, None

    def heard(self) -> None:
        """Note a sign of life: an answer, or bytes of a request that the host takes."""
        self._since = self._clock() if self._waiting else None
        self._paused = 0.0

    def _check(self) -> None:
        self._timer = None
        now, since = self._clock(), self._since
        if since is None or (not self._waiting and now - self._rested > _LONGEST_REST):
            self._since = None
            return
        silent = now - since
        if silent >= self._first:
            self._emit(Unanswered(self.host, silent))
        delay = max(self._first - silent, _INTERVAL if silent >= self._first else 0.0)
        self._timer = asyncio.get_running_loop().call_later(delay, self._check)
