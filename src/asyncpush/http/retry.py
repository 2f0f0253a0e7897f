"""Retries for every client of HTTP: when a request is sent again, how long it waits, and when it is given up.

``RetryLoop`` makes the tries of one request, ``RetryRules`` say what a client's failures mean, and ``HostBackoff`` and
``SilenceLimit`` know how long a silent host is waited for. ``settings.RetryPolicy`` has all times.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Literal, Protocol, TypeAlias, TypeVar

import anyio

from asyncpush.errors import AsyncpushError
from asyncpush.events import Emit, Retrying, ignore, purpose
from asyncpush.http.silence import SilenceReporter
from asyncpush.settings import RetryPolicy

T = TypeVar("T")

#: What a failure is worth: no other try, another one, or a pause.
Verdict = Literal["final", "transient", "throttled"]

Clock: TypeAlias = Callable[[], float]

#: Doublings after which a wait has long reached its maximum.
_DOUBLINGS = 10
#: Seconds that a host which has never answered may stay silent, over all tries of a request; a second try is made after
#: a longer one, too, since a network may lose any answer.
_FIRST_ANSWER = 60.0
#: Seconds without a failure after which the next failure begins a new outage, where the last one was given up.
_FORGOTTEN = 60.0


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed try, as its client explains it.

    Attributes:
        verdict: whether another try can help.
        silence: the host that gave no answer at all, and when the try was sent to it; None if something came.
        asked: seconds that the answer asks to wait; None if it asks for none.
        host: the host that the try was sent to.
    """

    verdict: Verdict
    silence: tuple[HostBackoff, float] | None = None
    asked: float | None = None
    host: str = ""


@dataclass(frozen=True, slots=True)
class Rest:
    """The wait before the next try.

    Attributes:
        seconds: how long it is.
        charged: how much of it counts against ``RetryPolicy.throttled``.
    """

    seconds: float
    charged: float = 0.0


class RetryRules(Protocol):
    """What differs between clients: the meaning of their errors, and how they keep to a rate."""

    def explain(self, error: AsyncpushError) -> Failure:
        """Say what a failed try means for the next one."""
        ...

    def rest(self, failure: Failure, count: int) -> Rest | None:
        """Choose the wait after the *count*-th failure of this verdict; None gives up."""
        ...

    def note_retry(self, failure: Failure, delay: float) -> None:
        """Note that the request rests for *delay* seconds, and is then sent again."""
        ...


class RetryLoop:
    """The tries of one request.

    Args:
        operation: its name in events.
        policy: how long it may wait.
        rules: what its failures mean.
        emit: receives each new try.
        max_attempts: failures in a row that end it; throttles, and silence of a host that has answered, are none.
    """

    def __init__(
        self, operation: str, policy: RetryPolicy, rules: RetryRules, emit: Emit, max_attempts: int | None = None
    ) -> None:
        self._operation = operation
        self._policy = policy
        self._rules = rules
        self._emit = emit
        self._max_attempts = policy.attempts if max_attempts is None else max_attempts
        self._silence = SilenceLimit()
        self._failures = self._throttles = self._total = 0
        self._waited = 0.0
        self._tries, self._began = 0, anyio.current_time()

    async def run(self, send: Callable[[], Awaitable[T]]) -> T:
        """Await ``send()`` until it succeeds, or no other try can help.

        Raises:
            AsyncpushError: the last failure.
        """
        while True:
            try:
                return await send()
            except AsyncpushError as error:
                delay = self._delay(error)
            await anyio.sleep(delay)

    async def wait(self, error: AsyncpushError) -> None:
        """Wait until it is time for the next try.

        Raises:
            AsyncpushError: *error* itself, if no other try can help.
        """
        await anyio.sleep(self._delay(error))

    def restart(self) -> None:
        """Note that something has arrived: earlier failures no longer count."""
        self._failures = self._throttles = 0
        self._waited = 0.0
        self._tries, self._began = 0, anyio.current_time()
        self._silence.end()

    def _delay(self, error: AsyncpushError) -> float:
        self._total += 1
        self._tries += 1
        failure = self._rules.explain(error)
        delay = None
        if failure.verdict != "final":
            delay = self._after_answer(failure) if failure.silence is None else self._after_silence(*failure.silence)
        if delay is None:
            if failure.silence is not None and self._tries > 1:
                error.message += f" ({self._tries} tries in {anyio.current_time() - self._began:.0f} s)"
            raise error
        self._rules.note_retry(failure, delay)
        throttled, host, work = failure.verdict == "throttled", failure.host, purpose()
        self._emit(
            Retrying(self._operation, self._total, delay, error.message, throttled, host, work.image, work.layer)
        )
        return delay

    def _after_silence(self, host: HostBackoff, began: float) -> float | None:
        delay = self._silence.wait(host, began)
        self._failures += not host.answered
        return None if self._failures >= self._max_attempts else delay

    def _after_answer(self, failure: Failure) -> float | None:
        self._silence.end()
        if failure.verdict == "throttled":
            self._throttles += 1
        else:
            self._failures += 1
        if self._failures >= self._max_attempts:
            return None
        rest = self._rules.rest(failure, self._throttles if failure.verdict == "throttled" else self._failures)
        if rest is None:
            return None
        self._waited += rest.charged
        return rest.seconds if self._waited <= self._policy.throttled else None


def backoff(first: float, longest: float, tries: int) -> float:
    """Seconds to wait after *tries* failures: exponential, with jitter so that many clients do not return at once."""
    share = random.uniform(0.1, 1)  # noqa: S311 - nothing is kept secret by it
    return share * min(longest, first * 2.0 ** min(tries - 1, _DOUBLINGS))


def retry_after(value: str | None) -> float | None:
    """The seconds that Retry-After asks to wait (RFC 9110, section 10.2.3: a number or a date); None if it has none."""
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
def note_if_slow(what: str, tell: Callable[[str], None], seconds: float) -> Iterator[None]:
    """Call *tell* with *what* if the block takes longer than *seconds*, so that the user knows what takes so long."""
    text = f"{what} after {seconds:g} seconds; still waiting"
    timer = asyncio.get_running_loop().call_later(seconds, tell, text)
    try:
        yield
    finally:
        timer.cancel()


class HostBackoff:
    """What all requests to one host know of it: whether it has ever answered, and whether it is silent now.

    A host that has answered may be silent for ``max_outage`` seconds. From the first request without an answer on, one
    request at a time probes it, with growing pauses, and the others wait for the outcome. After that time the outage is
    given up: waiting requests fail, and each later one gets one try.

    Args:
        retry: how long the host may be silent, and the waits between two tries.
        name: the host's name.
        emit: receives that requests wait for it.
        clock: tells the time in seconds.

    Attributes:
        silence: reports that requests wait for it.
        max_outage: seconds that the host may be silent.
        answered: whether the host has ever answered.
    """

    def __init__(
        self,
        retry: RetryPolicy | None = None,
        *,
        name: str = "",
        emit: Emit = ignore,
        clock: Clock = anyio.current_time,
    ) -> None:
        self._retry = retry or RetryPolicy()
        self.silence = SilenceReporter(name, self._retry.note_after, emit, clock=clock)
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
        """Wait until a request may be sent to the host, and send it within the block.

        Args:
            failed: the failure of the last try; raised if the host is given up meanwhile.

        Yields:
            Whether this request probes the host for all others.
        """
        probe = await self._wait_turn()
        if failed is not None and self.is_given_up:
            raise failed
        try:
            yield probe is not None
        finally:
            if probe is not None:
                probe.leave()

    def note_answer(self) -> None:
        """Note that the host has answered, even with an error."""
        self.silence.heard()
        self.answered = True
        outage, self._outage = self._outage, None
        if outage is not None:
            outage.end()

    def note_silence(self, began: float) -> None:
        """Note that a request which was sent at *began* got no answer."""
        if not self.answered:
            return
        now = self._clock()
        outage = self._outage
        if outage is None or (began > outage.failed + _FORGOTTEN and outage.is_over(now, self.max_outage)):
            outage = self._outage = _Outage(began)
        # Requests that were in flight when the host fell silent fail together: that counts as one failure.
        if began >= outage.failed:
            outage.failures += 1
            outage.next_try = now + self.wait_after(outage.failures)
        outage.failed, outage.took = now, now - began
        outage.given_up = outage.is_over(now, self.max_outage)

    def wait_after(self, failures: int) -> float:
        """Seconds that a request waits after so many failures in a row."""
        return backoff(self._retry.first_wait, self._retry.longest_wait, failures)

    def renew(self) -> None:
        """Start an outage that was given up afresh, so that requests wait for the host again."""
        if self._outage is not None and not self.is_silent:
            self._outage.since = self._outage.next_try = self._clock()
            self._outage.took, self._outage.given_up = 0.0, False

    async def _wait_turn(self) -> _QueueEntry | None:
        """Wait until the host may be asked; the entry belongs to a request that probes for all, None to no outage."""
        while (outage := self._outage) is not None and not outage.is_over(self._clock(), self.max_outage):
            entry = _QueueEntry(outage)
            try:
                await entry.wait()
                # Until it is time, or an earlier request has got an answer.
                if not outage.is_over(self._clock(), self.max_outage):
                    with anyio.move_on_after(outage.next_try - self._clock()):
                        await outage.ended.wait()
            except BaseException:
                entry.leave()
                raise
            if self._outage is outage and not outage.is_over(self._clock(), self.max_outage):
                return entry
            entry.leave()
        return None


class _Outage:
    """A time in which a host does not answer.

    Attributes:
        since: when it began.
        failures: consecutive tries without an answer.
        failed: when the last one failed, and how long it ``took``.
        next_try: when the host may be asked again.
        queue: the waiting requests; the first one probes the host.
        given_up: whether it has lasted too long.
        ended: set once the host has answered.
    """

    def __init__(self, since: float) -> None:
        self.since = since
        self.failures = 0
        self.failed = -math.inf
        self.took = 0.0
        self.given_up = False
        self.next_try = since
        self.queue: deque[_QueueEntry] = deque()
        self.ended = anyio.Event()

    def is_over(self, now: float, max_outage: float) -> bool:
        """Whether the next try would end too late, if it takes as long as the last one."""
        return self.given_up or max(now, self.next_try) + self.took > self.since + max_outage

    def end(self) -> None:
        """Release all waiting requests."""
        self.ended.set()
        for entry in self.queue:
            entry.is_first.set()


class _QueueEntry:
    """A request's place among those that wait for a host; creating it joins the queue."""

    def __init__(self, outage: _Outage) -> None:
        self.is_first = anyio.Event()
        self._outage = outage
        outage.queue.append(self)
        if outage.queue[0] is self:
            self.is_first.set()

    async def wait(self) -> None:
        """Wait until all earlier requests have left, or the outage has ended."""
        await self.is_first.wait()

    def leave(self) -> None:
        """Leave the queue; the next request becomes the first."""
        queue = self._outage.queue
        queue.remove(self)
        if queue:
            queue[0].is_first.set()


class SilenceLimit:
    """How long one request has had no answer, whether or not its host answers others.

    Args:
        clock: tells the time in seconds.
    """

    def __init__(self, *, clock: Clock = anyio.current_time) -> None:
        self._clock = clock
        self._since: float | None = None
        self._failures = 0

    def end(self) -> None:
        """Note that the request was answered."""
        self._since, self._failures = None, 0

    def wait(self, host: HostBackoff, began: float) -> float | None:
        """Note that a try, sent to *host* at *began*, got no answer.

        Returns:
            The seconds to wait before the next try; None gives up.
        """
        self._failures += 1
        self._since = began if self._since is None else self._since
        host.note_silence(began)
        now = self._clock()
        delay = host.wait_after(self._failures)
        if not host.answered:
            limit = host.max_outage if self._failures == 1 else min(_FIRST_ANSWER, host.max_outage)
            return delay if now < self._since + limit else None
        if not host.is_silent or now + delay + (now - began) > self._since + host.max_outage:
            return None
        return delay
