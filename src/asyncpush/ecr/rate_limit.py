"""Rate limits: each operation starts at ECR's documented quota, and then follows what ECR accepts."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import anyio

from asyncpush.ecr.quotas import METERED_AS, QUOTA_CODES, QUOTAS, Quota
from asyncpush.ecr.regions import is_aws
from asyncpush.events import Emit, Limited, ignore
from asyncpush.http.token_bucket import LimitReporter
from asyncpush.reference import Service
from asyncpush.settings import RetryPolicy

#: The quota to assume when a request is throttled and no quota is known: the smallest that ECR documents.
_SMALLEST_QUOTA = 10

#: The target rate as a share of the quota. The rest is for the bucket's burst and for other clients of the account:
#: with four fifths and a burst of one fifth, no second exceeds the quota.
_TARGET = 0.8
#: The smallest burst: an image has about ten layers, which should start at once; even a quota of 10 a second allows it.
_SMALLEST_BURST = 10

_SLOWEST_RATE = RetryPolicy().slowest_rate

#: What a success adds to a rate below the target. At full use that is 25 % a second: two seconds from half the target
#: to the target.
_RECOVERY = 0.25
#: What a success adds to a rate above the target, at first, and how much that grows a second: eight seconds from the
#: target to a quarter more, where ECR's limit was or should be; half a minute to ten times as much.
_PROBE = 0.01
_PROBE_GROWTH = 0.004
#: The share of throttled requests, beyond the tolerated share, up to which the rate grows.
_MAX_SHARE_TO_GROW = 0.02

#: The shortest time over which an unlimited rate is measured: bursts are shorter.
_SHORTEST_COUNT = 0.25
#: The seconds in which a request is one of the latest.
_LATEST = 1.0

#: The share of the rate that has succeeded to try next.
_REDUCTION = 0.8
#: Where other clients share the quota, how far the rate may grow quickly again: a trial may have reduced it too much.
_REGAIN = 4.0

#: How much less than 1 a token may be, because of rounding.
_ROUNDING = 1e-6

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class OperationStatistics:
    """One operation's requests so far.

    Attributes:
        operation: its name, such as ``PutImage``.
        sent: requests that were started, retries included.
        throttled: requests that ECR throttled.
        retried: requests that were sent again, for any reason.
        waiting: requests that wait for the rate limiter now.
        rate: requests a second that may start now; None while there is no limit.
    """

    operation: str
    sent: int
    throttled: int
    retried: int
    waiting: int
    rate: float | None


class Pace:
    """The rate limiters of all operations over one connection: ECR meters each operation, per account and region.

    Args:
        service: the service whose quotas apply.
        endpoint_url: the endpoint. An endpoint that is not AWS's, such as an emulator, has no limit until it throttles.
        quotas: the account's quotas, where they are not ECR's defaults; they hold at any endpoint.
        slowest_rate: the lowest rate of an operation, in requests a second.
        share: the part of every quota that this client keeps to; None if it need not share.
        assumed: whether an endpoint that is not AWS's has the quotas, too.
        clock: returns the time in seconds.
        emit: receives which limits requests wait for.
    """

    def __init__(
        self,
        service: Service,
        endpoint_url: str,
        *,
        quotas: Mapping[str, float] | None = None,
        slowest_rate: float = _SLOWEST_RATE,
        share: float | None = None,
        assumed: bool = False,
        clock: Clock = time.monotonic,
        emit: Emit = ignore,
    ) -> None:
        self._slowest_rate = slowest_rate
        self._service: Service = service
        self._stated = quotas or {}
        self._quotas: Mapping[str, float] = {**QUOTAS[service], **self._stated}
        self._share = share
        self._is_limited = is_aws(endpoint_url) or assumed
        self._clock = clock
        self._emit = emit
        self._limiters: dict[str, RateLimiter] = {}

    def of(self, operation: str) -> RateLimiter:
        """The rate limiter of *operation*."""
        limiter = self._limiters.get(operation)
        if limiter is None:
            metered = METERED_AS.get(operation, operation)
            limiter = RateLimiter(
                operation,
                self._quotas.get(metered),
                limited=self._is_limited or metered in self._stated,
                slowest_rate=self._slowest_rate,
                share=self._share,
                clock=self._clock,
                emit=self._emit,
            )
            self._limiters[operation] = limiter
        return limiter

    def quota(self, operation: str) -> Quota | None:
        """The account's quota for *operation*; None if it has none."""
        rate = self._quotas.get(operation)
        if rate is None:
            return None
        return Quota(operation, rate, QUOTA_CODES[self._service].get(operation), is_stated=operation in self._stated)

    def statistics(self) -> tuple[OperationStatistics, ...]:
        """The current statistics of each operation that was used, by name."""
        return tuple(self._limiters[name].statistics() for name in sorted(self._limiters))


class RateLimiter:
    """The rate at which the requests of one operation start.

    A token bucket holds a burst of requests that may start at once, and gains ``rate`` tokens a second; requests that
    find it empty wait in a queue. The rate starts at its target: four fifths of the quota, or unlimited.

    Single throttles change nothing. Once the share of throttled requests is significantly too high, the rate is reduced
    to less than what has succeeded (``RateTrial``), and the answers at that rate show the reason. If next to nothing is
    throttled, the higher rate exceeded a limit, which becomes the target. If as much as before is throttled, other
    clients use the same quota: the rate returns to what it was, and that share of throttles is tolerated.

    While few requests are throttled, every success raises the rate: quickly up to the target; above it slowly at first,
    then ever faster, and only while requests wait. So the rate follows what ECR accepts, whether that is less or more
    than the documented quota. Answers to requests that started before a reduction do not count.

    Args:
        operation: the operation's name.
        quota: its quota in requests a second; None if there is none.
        limited: whether to keep to the quota from the start, or only after the first throttles.
        slowest_rate: the lowest rate, in requests a second.
        share: the part of the quota, and of the burst, that this client keeps to: where the quota is known, it does
            not try for more, since the others have the rest. None if it need not share.
        clock: returns the time in seconds.
        emit: receives that requests wait.
    """

    def __init__(
        self,
        operation: str,
        quota: float | None,
        *,
        limited: bool,
        slowest_rate: float = _SLOWEST_RATE,
        share: float | None = None,
        clock: Clock = time.monotonic,
        emit: Emit = ignore,
    ) -> None:
        part = 1.0 if share is None else share
        self._operation = operation
        self._quota = quota
        self._report = LimitReporter(emit, self._limit, clock)
        self._slowest_rate = part * slowest_rate
        self._clock = clock
        self._target = _TARGET * part * quota if limited and quota else math.inf
        self._rate = self._target
        self._may_probe = share is None or not limited
        self._burst = max(1.0, part * max(_SMALLEST_BURST, (1 - _TARGET) * (quota or _SMALLEST_QUOTA)))
        self._tokens = float(self._burst)
        self._filled_at = clock()
        self._probe = _PROBE
        self._tolerated = ToleratedShare()
        self._count = AnswerCount(clock())
        self._latest: deque[float] = deque()
        self._trial: RateTrial | None = None
        self._last_success = -math.inf
        self._queue: deque[anyio.Event] = deque()
        self._sent = self._throttled = self._retried = 0

    async def acquire(self) -> float:
        """Wait until a request may start; requests start in the order in which they come.

        Returns:
            The time at which the request starts, for ``note_success`` or ``note_throttle``.
        """
        started = self._clock()
        if self._queue or self._take_token(started):
            await self._wait_in_queue()
            self._report()
            started = self._clock()
        self._sent += 1
        self._count.started += 1
        self._latest.append(started)
        self._forget(started)
        return started

    def note_success(self, started: float) -> None:
        """Note that the request that started at *started* succeeded."""
        self._last_success = self._clock()
        if self._count_answer(started, throttled=False) or math.isinf(self._rate):
            return
        if self._count.share > self._tolerated.share + _MAX_SHARE_TO_GROW:
            return
        if self._rate < self._target:
            self._raise_rate(_RECOVERY)
        elif self._queue and self._may_probe:
            self._raise_rate(self._probe)
            self._probe += _PROBE_GROWTH / self._rate

    def note_throttle(self, started: float) -> None:
        """Note that ECR throttled the request that started at *started*."""
        self._throttled += 1
        self._count_answer(started, throttled=True)

    def note_retry(self) -> None:
        """Note that a request will be sent again."""
        self._retried += 1

    def seconds_since(self, started: float) -> float:
        """Seconds since *started*."""
        return self._clock() - started

    def seconds_starved(self, since: float) -> float:
        """Seconds without a success, counted from *since* at the earliest."""
        return self._clock() - max(since, self._last_success)

    def statistics(self) -> OperationStatistics:
        """The operation's current statistics."""
        rate = None if math.isinf(self._rate) else self._rate
        return OperationStatistics(self._operation, self._sent, self._throttled, self._retried, len(self._queue), rate)

    def _limit(self) -> Limited:
        """Why requests wait now: it is ECR's quota while the rate is at least its target for that quota."""
        is_held = self._throttled > 0 and (self._quota is None or self._rate < _TARGET * self._quota - _ROUNDING)
        reason: Literal["quota", "throttling"] = "throttling" if is_held or self._quota is None else "quota"
        return Limited(self._operation, self._rate, reason, self._quota, self._throttled)

    async def _wait_in_queue(self) -> None:
        # Only the first in the queue has a timer, however long the queue is.
        is_first = anyio.Event()
        self._queue.append(is_first)
        try:
            if self._queue[0] is not is_first:
                await is_first.wait()
            while wait := self._take_token(self._clock()):  # noqa: ASYNC110 - it waits for time to pass, not for a task
                await anyio.sleep(wait)
        finally:
            self._queue.remove(is_first)
            if self._queue:
                self._queue[0].set()

    def _take_token(self, now: float) -> float:
        """Take a token; if there is none, return the seconds until there is one."""
        if math.isinf(self._rate):
            self._filled_at = now
            return 0.0
        self._fill(now)
        if self._tokens < 1 - _ROUNDING:
            return (1 - self._tokens) / self._rate
        self._tokens -= 1
        return 0.0

    def _fill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now

    def _raise_rate(self, step: float) -> None:
        self._fill(self._clock())
        self._rate += step

    def _count_answer(self, started: float, *, throttled: bool) -> bool:
        """Count an answer, and adapt the rate to what all answers so far show; whether the caller must not raise it."""
        now, count = self._clock(), self._count
        if started < count.since:
            return True
        count.add(throttled=throttled)
        if self._trial is None:
            self._tolerated.expire(now)
            if count.exceeds(self._tolerated.share):
                self._trial = RateTrial(self._rate, count.share, count.likely_share)
                self._reduce_rate(self._trial, now)
            elif count.is_full(now):
                self._count = AnswerCount(now)
            return False
        match self._trial.verdict(count):
            case "limit":
                self._target = self._trial.good_rate or self._target
                self._tolerated = ToleratedShare()
            case "shared":
                self._tolerated.confirm(count.share, now)
                self._rate = self._trial.rate_before(count.share) or self._rate
                self._target = max(self._target, _REGAIN * self._rate)
            case "too much":
                self._trial.repeat(count.share)
                self._reduce_rate(self._trial, now)
                return True
            case None:
                return True
        self._trial, self._count = None, AnswerCount(now)
        return True

    def _reduce_rate(self, trial: RateTrial, now: float) -> None:
        """Continue at less than the rate that has succeeded."""
        count = self._count
        sent = min(self._rate, self._start_rate(now))
        if count.share < 1:
            trial.good_rate = (1 - count.share) * sent
            rate = _REDUCTION * trial.good_rate
        else:
            rate = sent / 2
            if math.isfinite(self._target):
                trial.good_rate = None  # other clients use the whole quota for now
        self._rate = max(self._slowest_rate, rate)
        self._tokens, self._filled_at, self._probe = 0.0, now, _PROBE
        self._count = AnswerCount(now)

    def _start_rate(self, now: float) -> float:
        """Requests a second: of this count, or of the last second, since a pause says nothing of what ECR accepts."""
        self._forget(now)
        seconds = max(now - self._count.since, _SHORTEST_COUNT if math.isinf(self._rate) else _ROUNDING)
        return max(self._count.started / seconds, len(self._latest) / _LATEST)

    def _forget(self, now: float) -> None:
        while self._latest and self._latest[0] <= now - _LATEST:
            self._latest.popleft()


#: The fewest answers from which a share is judged: fewer are chance.
_FEWEST_ANSWERS = 16
#: Standard deviations by which a share must exceed the tolerated one: each of many looks at the answers may err.
_DEVIATIONS = 3.0
#: Standard deviations by which it must exceed the largest share that is ever tolerated.
_DEVIATIONS_TOO_MUCH = 2.5
#: The share of throttles that needs no explanation, and the factor by which a share must exceed the tolerated one.
_MARGIN = 0.05
_EXCESS = 1.2
#: The largest share that is ever attributed to other clients; beyond it the rate is reduced again.
_MAX_TOLERATED = 0.65

#: When a count starts afresh: after so many seconds and answers without a throttle, or so many of either with some.
_FULL_SECONDS, _FULL_ANSWERS = 1.0, 20
_FULL_SECONDS_THROTTLED, _FULL_ANSWERS_THROTTLED = 30.0, 200

#: Throttles that decide a trial; so do the answers that should have brought one and a half times as many.
_DECISIVE = 20
#: The share that is throttled now, relative to the share before: at most this if a limit was exceeded, at least that if
#: other clients share the quota.
_LIMIT_BELOW = 0.3
_SHARED_FROM = 0.6
#: The factor of the share before from which even the lower rate is too high: a burst had hidden it.
_WORSE = 1.5
#: Log odds at which a limit is certain early.
_CERTAIN = 6.0

#: Seconds for which a share is tolerated without another trial, at first and at most; each confirmation doubles them.
_SHORTEST_TOLERANCE = 20.0
_LONGEST_TOLERANCE = 120.0


@dataclass(slots=True)
class AnswerCount:
    """Answers to requests that started at ``since`` or later.

    Attributes:
        since: the time in seconds from which requests count.
        started: requests that have started.
        answers: requests that were answered.
        throttled: answers that were throttles.
    """

    since: float
    started: int = 0
    answers: int = 0
    throttled: int = 0

    @property
    def share(self) -> float:
        """The share of throttles among the answers."""
        return self.throttled / self.answers if self.answers else 0.0

    @property
    def likely_share(self) -> float:
        """A cautious estimate of the true share: a high share that drew attention is partly chance."""
        return max((self.share + self._lower_bound(_DEVIATIONS)) / 2, _MARGIN)

    def add(self, *, throttled: bool) -> None:
        """Count an answer."""
        self.answers += 1
        self.throttled += throttled

    def exceeds(self, tolerated: float) -> bool:
        """Whether the share is significantly higher than *tolerated*, the share that is attributed to other clients."""
        return self.answers >= _FEWEST_ANSWERS and self._lower_bound(_DEVIATIONS) > _MARGIN + _EXCESS * tolerated

    @property
    def is_too_much(self) -> bool:
        """Whether the share is significantly higher than any that is tolerated."""
        return self._lower_bound(_DEVIATIONS_TOO_MUCH) > _MAX_TOLERATED

    def is_full(self, now: float) -> bool:
        """Whether to start a new count: old answers say little."""
        seconds, answers = now - self.since, self.answers
        if seconds < _FULL_SECONDS or answers < _FULL_ANSWERS:
            return False
        return not self.throttled or seconds >= _FULL_SECONDS_THROTTLED or answers >= _FULL_ANSWERS_THROTTLED

    def _lower_bound(self, deviations: float) -> float:
        """The share less so many standard deviations: the true share is above it."""
        share, answers = self.share, self.answers
        return share - deviations * math.sqrt(share * (1 - share) / answers + 1 / answers**2)


@dataclass(slots=True)
class ToleratedShare:
    """The share of throttles that is attributed to other clients, until the next trial."""

    share: float = 0.0
    _until: float = -math.inf
    _duration: float = _SHORTEST_TOLERANCE

    def expire(self, now: float) -> None:
        """Tolerate nothing any more if the time is over."""
        if now > self._until:
            self.share = 0.0

    def confirm(self, share: float, now: float) -> None:
        """Tolerate *share* for some time, which doubles with each call."""
        self.share, self._until = share, now + self._duration
        self._duration = min(2 * self._duration, _LONGEST_TOLERANCE)


class RateTrial:
    """A lower rate, tried to learn whether this client or others caused the throttles at the higher one.

    Args:
        rate: the rate at which too many requests were throttled; may be infinite.
        share: the share of throttles at that rate.
        likely_share: a cautious estimate of the true share.

    Attributes:
        good_rate: requests a second that succeeded last; None if that is unknown.
    """

    def __init__(self, rate: float, share: float, likely_share: float) -> None:
        self.good_rate: float | None = None
        self._rate = rate
        self._first_share = self._share = share
        self._likely_share = min(likely_share, 0.5)

    def verdict(self, count: AnswerCount) -> Literal["limit", "shared", "too much"] | None:
        """What the answers at the lower rate show; None while they are too few."""
        share, likely = count.share, self._likely_share
        negligible = 0.15 * likely + 0.005
        odds = count.throttled * math.log(likely / negligible)
        odds += (count.answers - count.throttled) * math.log((1 - likely) / (1 - negligible))
        if odds < -_CERTAIN:
            return "limit"
        if count.is_too_much:
            return "too much"
        if count.throttled < _DECISIVE and count.answers < 1.5 * _DECISIVE / likely:
            return None
        if share <= _LIMIT_BELOW * likely:
            return "limit"
        return "shared" if _SHARED_FROM * likely <= share <= _WORSE * self._share else "too much"

    def repeat(self, share: float) -> None:
        """Try an even lower rate, since *share* was throttled at this one."""
        self._share, self._likely_share = share, min(max(share, _MARGIN), 0.9)

    def rate_before(self, share: float) -> float | None:
        """The rate before the trial, if *share* shows that it did not cause the throttles; otherwise None."""
        return self._rate if share >= _SHARED_FROM * self._first_share else None
