"""When a request is sent again, for all clients of HTTP: its waits, and how long a silent host is waited for."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from email.utils import parsedate_to_datetime

import anyio

from asyncpush.settings import RetryPolicy

#: From here on the waits have long been the longest.
_DOUBLINGS = 10
#: Seconds that a host which has never answered may take, over all tries of a request.
_FIRST_ANSWER = 60.0
#: Seconds without a failure, after which a failure begins another outage than the one that was given up.
_FORGOTTEN = 60.0

Clock = Callable[[], float]


def backoff(first: float, longest: float, tries: int) -> float:
    """Seconds to wait after *tries* failures: doubled with each, at random, so that many do not come back at once."""
    share = random.uniform(0.1, 1)  # noqa: S311 - nothing is kept secret by it
    return share * min(longest, first * 2.0 ** min(tries - 1, _DOUBLINGS))


def retry_after(value: str | None) -> float | None:
    """The seconds that Retry-After asks to wait (RFC 9110, 10.2.3: a number or a date); None if it does not."""
    if not value:
        return None
    value = value.strip()
    try:
        if value.isascii() and value.isdecimal():
            return float(value[:12])
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (OverflowError, ValueError):
        return None


@contextmanager
def note_if_slow(word: str, tell: Callable[[str], None], seconds: float) -> Iterator[None]:
    """Tell *word*, and for how long, if the block takes longer than *seconds*: somebody may wonder."""
    text = f"{word}, for {seconds:g} seconds; it is waited for"
    timer = asyncio.get_running_loop().call_later(seconds, tell, text)
    try:
        yield
    finally:
        timer.cancel()


class HostBackoff:
    """What all requests to one host know of it: whether it has ever answered, and whether it is silent now.

    A host that has answered may be silent for ``max_outage`` seconds: from the first request that gets no answer on,
    one request at a time asks it again, ever more rarely, and the others wait for what becomes of it. After that time
    the outage is given up: who waits fails, and who comes later gets one try.

    Args:
        retry: how long the host may be silent, and the waits between two tries.
        clock: tells the time in seconds.

    Attributes:
        max_outage: seconds that the host may be silent.
        answered: whether the host has ever answered.
    """

    def __init__(self, retry: RetryPolicy | None = None, *, clock: Clock = time.monotonic) -> None:
        self._retry = retry or RetryPolicy()
        self.max_outage = self._retry.outage
        self.answered = False
        self._clock = clock
        self._outage: _Outage | None = None

    @property
    def is_silent(self) -> bool:
        """Whether requests should wait for one that asks for all of them."""
        return self._outage is not None and not self._outage.is_over(self._clock(), self.max_outage)

    @property
    def is_given_up(self) -> bool:
        """Whether it has been silent for too long."""
        return self._outage is not None and self._outage.is_over(self._clock(), self.max_outage)

    @asynccontextmanager
    async def asking(self, failed: Exception | None = None) -> AsyncIterator[bool]:
        """Wait until the host may be asked, and ask it within the block.

        Args:
            failed: what the last try has failed of; raised if the host is given up meanwhile.

        Yields:
            Whether this request asks for all others.
        """
        probe = await self._turn()
        if failed is not None and self.is_given_up:
            raise failed
        try:
            yield probe is not None
        finally:
            if probe is not None:
                probe.leave()

    def heard(self) -> None:
        """Note that the host has answered, whatever it said."""
        self.answered = True
        outage, self._outage = self._outage, None
        if outage is not None:
            outage.end()

    def lost(self, began: float) -> None:
        """Note that a request which was sent at *began* got no answer."""
        if not self.answered:
            return
        now = self._clock()
        outage = self._outage
        if outage is None or (began > outage.failed + _FORGOTTEN and outage.is_over(now, self.max_outage)):
            outage = self._outage = _Outage(began)
        # What was under way when it fell silent fails at once: that is one failure.
        if began >= outage.failed:
            outage.failures += 1
            outage.next_try = now + self.rest(outage.failures)
        outage.failed, outage.took = now, now - began
        outage.given_up = outage.is_over(now, self.max_outage)

    def rest(self, failures: int) -> float:
        """Seconds that a request should rest after so many failures in a row."""
        return backoff(self._retry.first_wait, self._retry.longest_wait, failures)

    def renew(self) -> None:
        """Wait for the host once more, as long as the first time, if an outage was given up."""
        if self._outage is not None and not self.is_silent:
            self._outage.since = self._outage.next_try = self._clock()
            self._outage.took, self._outage.given_up = 0.0, False

    async def _turn(self) -> _Place | None:
        """Wait until the host may be asked; the place of who asks for all, None where nobody need wait."""
        while (outage := self._outage) is not None and not outage.is_over(self._clock(), self.max_outage):
            place = _Place(outage)
            try:
                await place.reached()
                # Until it is time, or an answer has come to somebody who had asked before.
                if not outage.is_over(self._clock(), self.max_outage):
                    with anyio.move_on_after(outage.next_try - self._clock()):
                        await outage.ended.wait()
            except BaseException:
                place.leave()
                raise
            if self._outage is outage and not outage.is_over(self._clock(), self.max_outage):
                return place
            place.leave()
        return None


class _Outage:
    """A time without an answer.

    Attributes:
        since: when it began.
        failures: tries that got no answer, one after the other.
        failed: when the last one did, and how long it ``took``.
        next_try: when the host may be asked again.
        line: who waits; the first asks, or has asked.
        given_up: it has lasted too long.
        ended: set once an answer has come.
    """

    def __init__(self, since: float) -> None:
        self.since = since
        self.failures = 0
        self.failed = -math.inf
        self.took = 0.0
        self.given_up = False
        self.next_try = since
        self.line: deque[_Place] = deque()
        self.ended = anyio.Event()

    def is_over(self, now: float, max_outage: float) -> bool:
        """Whether the next try, if it takes as long as the last one, would end too late."""
        return self.given_up or max(now, self.next_try) + self.took > self.since + max_outage

    def end(self) -> None:
        """Let all who wait go."""
        self.ended.set()
        for place in self.line:
            place.turn.set()


class _Place:
    """A place in the line of those who wait for a host; it is taken when it is made."""

    def __init__(self, outage: _Outage) -> None:
        self.turn = anyio.Event()
        self._outage = outage
        outage.line.append(self)
        if outage.line[0] is self:
            self.turn.set()

    async def reached(self) -> None:
        """Wait until all before have left, or the outage has ended."""
        await self.turn.wait()

    def leave(self) -> None:
        """Let the next one be first."""
        line = self._outage.line
        line.remove(self)
        if line:
            line[0].turn.set()


class SilenceLimit:
    """How long one request has got no answer, while its host may well answer others.

    Args:
        clock: tells the time in seconds.
    """

    def __init__(self, *, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None
        self._failures = 0

    def end(self) -> None:
        """Note that it got one."""
        self._since, self._failures = None, 0

    def wait(self, host: HostBackoff, began: float) -> float | None:
        """Note that a try which was sent to *host* at *began* got no answer.

        Returns:
            The seconds to rest before the next one; None if that has no sense any more.
        """
        self._failures += 1
        self._since = began if self._since is None else self._since
        host.lost(began)
        now = self._clock()
        delay = host.rest(self._failures)
        if not host.answered:
            return delay if now < self._since + min(_FIRST_ANSWER, host.max_outage) else None
        if not host.is_silent or now + delay + (now - began) > self._since + host.max_outage:
            return None
        return delay
