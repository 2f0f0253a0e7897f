"""How fast requests may start: for each operation a rate that begins at ECR's quota and follows what ECR bears."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

import anyio

from asyncpush.reference import Service
from asyncpush.settings import RetryPolicy

#: Requests a second, per account and region; "Amazon ECR service quotas", "Amazon ECR Public service quotas".
#: Operations that are not here have no quota there.
QUOTAS: dict[Service, dict[str, int]] = {
    "ecr": {
        "BatchCheckLayerAvailability": 1000,
        "BatchGetImage": 2000,
        "CompleteLayerUpload": 100,
        "InitiateLayerUpload": 100,
        "PutImage": 10,
        "UploadLayerPart": 500,
    },
    "ecr-public": {
        "BatchCheckLayerAvailability": 200,
        "CompleteLayerUpload": 10,
        "InitiateLayerUpload": 10,
        "PutImage": 10,
        "UploadLayerPart": 260,
    },
}

#: What to suppose where no quota is known and a request is refused: the smallest that ECR documents.
_SMALLEST_QUOTA = 10

#: The aim as a share of the quota. The rest is for the bucket's burst and for others in the account: at four fifths
#: and a burst of one fifth, no second sees more than the quota.
_AIM = 0.8
#: An image has about ten layers, which should begin at once; a quota of 10 a second bears that, too.
_SMALLEST_BURST = 10

_SLOWEST_RATE = RetryPolicy().slowest_rate

#: What a success adds to the rate below the aim. At full use that is 25 % a second: two seconds from half to aim.
_RECOVERY = 0.25
#: What it adds above the aim, at first, and by how much that grows a second: eight seconds from the aim to a quarter
#: more, where ECR's limit was or should be; half a minute to ten times as much.
_PROBE = 0.01
_PROBE_GROWTH = 0.004
#: The share of refusals, beyond those that are not ours, up to which the rate grows.
_GROWS_UP_TO = 0.02

#: Seconds over which a limit without a rate counts what was started, at least: bursts are shorter.
_SHORTEST_COUNT = 0.25

#: What of the rate that has succeeded is tried next.
_CUT = 0.8
#: Where others share the quota, how far the rate may grow quickly again: a trial may have cut too much.
_REGAIN = 4.0

#: Where a token is one in spite of rounding.
_ROUNDING = 1e-6

#: The domains of AWS's partitions, dual-stack ones included; VPC endpoints are in them, too.
_AWS_DOMAINS = (
    ".amazonaws.com",
    ".amazonaws.com.cn",
    ".amazonaws.eu",
    ".api.amazonwebservices.com.cn",
    ".api.amazonwebservices.eu",
    ".api.aws",
    ".api.aws.hci.ic.gov",
    ".api.aws.ic.gov",
    ".api.aws.scloud",
    ".api.cloud-aws.adc-e.uk",
    ".c2s.ic.gov",
    ".cloud.adc-e.uk",
    ".csp.hci.ic.gov",
    ".sc2s.sgov.gov",
)

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class OperationStatistics:
    """One operation's requests so far.

    Attributes:
        operation: its name, such as ``PutImage``.
        sent: requests that were started, retries included.
        throttled: those that were refused for their rate.
        retried: those that were sent again, for any cause.
        waiting: requests that wait for their turn now.
        rate: requests that may start a second now; None while there is no limit.
    """

    operation: str
    sent: int
    throttled: int
    retried: int
    waiting: int
    rate: float | None


class RateLimiter:
    """The rate at which one operation's requests start.

    A bucket holds a burst of requests that may start at once, and gains ``rate`` more each second; who finds it empty
    waits in line. The rate begins at its aim: four fifths of the quota, or no limit where none is to be kept.
    Single throttles change nothing. Once the share of refused requests is surely too high, the rate is cut to less than
    what has succeeded, and what is refused then tells why: next to nothing, and there is a limit, which becomes the
    aim; as much as before, and others share the quota, so that the rate is what it was, and that share is borne
    (``throttles.Trial``). Every success raises the rate, while few are refused: quickly up to the aim; above it slowly
    at first, then ever faster, and only while requests wait. So it hovers about what ECR bears, be that less than the
    documented quota or more. Answers to requests that started before the rate was cut tell nothing about it.

    Args:
        operation: the operation's name.
        quota: its quota in requests a second, None if there is none.
        limited: whether to keep to the quota from the start, or only once a request was refused.
        slowest_rate: requests a second, at the least.
        clock: tells the time in seconds.
    """

    def __init__(
        self,
        operation: str,
        quota: int | None,
        *,
        limited: bool,
        slowest_rate: float = _SLOWEST_RATE,
        clock: Clock = time.monotonic,
    ) -> None:
        self._operation = operation
        self._slowest_rate = slowest_rate
        self._clock = clock
        self._supposed_quota = quota or _SMALLEST_QUOTA
        self._aim = _AIM * quota if limited and quota else math.inf
        self._rate = self._aim
        self._burst = max(_SMALLEST_BURST, (1 - _AIM) * self._supposed_quota)
        self._tokens = float(self._burst)
        self._filled = clock()
        self._probe = _PROBE
        self._borne = Borne()
        self._count = Count(clock())
        self._trial: RateTrial | None = None
        self._served = -math.inf
        self._line: deque[anyio.Event] = deque()
        self._sent = self._throttled = self._retried = 0

    async def acquire(self) -> float:
        """Wait until a request may start; who comes first goes first.

        Returns:
            When it starts, for ``succeeded`` or ``throttled`` to be told.
        """
        started = self._clock()
        if self._line or self._take(started):
            await self._wait_in_line()
            started = self._clock()
        self._sent += 1
        self._count.started += 1
        return started

    def succeeded(self, started: float) -> None:
        """Take note that the request of *started* was done."""
        self._served = self._clock()
        if self._judge(started, refused=False) or math.isinf(self._rate):
            return
        if self._count.share > self._borne.share + _GROWS_UP_TO:
            return
        if self._rate < self._aim:
            self._raise_rate(_RECOVERY)
        elif self._line:
            self._raise_rate(self._probe)
            self._probe += _PROBE_GROWTH / self._rate

    def since(self, started: float) -> float:
        """Seconds since the request of *started*."""
        return self._clock() - started

    def starved(self, since: float) -> float:
        """Seconds since *since* in which no request was done."""
        return self._clock() - max(since, self._served)

    def throttled(self, started: float) -> None:
        """Take note that the request of *started* was refused for its rate."""
        self._throttled += 1
        self._judge(started, refused=True)

    def _judge(self, started: float, *, refused: bool) -> bool:
        """Count an answer, and see what the answers so far say; whether nothing more is to be learnt from it."""
        now, count = self._clock(), self._count
        if started < count.began:
            return True
        count.add(refused=refused)
        if self._trial is None:
            self._borne.forget(now)
            if count.exceeds(self._borne.share):
                self._trial = RateTrial(self._rate, count.share, count.low)
                self._cut(now)
            elif count.is_full(now):
                self._count = Count(now)
            return False
        match self._trial.verdict(count):
            case "limit":
                self._aim = self._trial.good or self._aim
                self._borne = Borne()
            case "shared":
                self._borne.confirm(count.share, now)
                self._rate = self._trial.rate_before(count.share) or self._rate
                self._aim = max(self._aim, _REGAIN * self._rate)
            case "too much":
                self._trial.again(count.share)
                self._cut(now)
                return True
            case None:
                return True
        self._trial, self._count = None, Count(now)
        return True

    def _cut(self, now: float) -> None:
        """Go on at less than the rate that has succeeded."""
        assert self._trial is not None, "a cut is tried"  # noqa: S101
        count = self._count
        seconds = max(now - count.began, _SHORTEST_COUNT if math.isinf(self._rate) else _ROUNDING)
        sent = min(self._rate, count.started / seconds)
        if count.share < 1:
            self._trial.good = (1 - count.share) * sent
            rate = _CUT * self._trial.good
        else:
            rate = sent / 2
            if math.isfinite(self._aim):
                self._trial.good = None  # others take all, for now
        self._rate = max(self._slowest_rate, rate)
        self._tokens, self._filled, self._probe = 0.0, now, _PROBE
        self._count = Count(now)

    def retried(self) -> None:
        """Take note that a request will be sent again."""
        self._retried += 1

    def statistics(self) -> OperationStatistics:
        """What there is to know now."""
        rate = None if math.isinf(self._rate) else self._rate
        return OperationStatistics(self._operation, self._sent, self._throttled, self._retried, len(self._line), rate)

    async def _wait_in_line(self) -> None:
        # Only the first in line has a timer, whatever the length of the line.
        place = anyio.Event()
        self._line.append(place)
        try:
            if self._line[0] is not place:
                await place.wait()
            while wait := self._take(self._clock()):  # noqa: ASYNC110 - it waits for time to pass, not for a task
                await anyio.sleep(wait)
        finally:
            self._line.remove(place)
            if self._line:
                self._line[0].set()

    def _take(self, now: float) -> float:
        """Take a token, or say in how many seconds there will be one."""
        if math.isinf(self._rate):
            self._filled = now
            return 0.0
        self._fill(now)
        if self._tokens < 1 - _ROUNDING:
            return (1 - self._tokens) / self._rate
        self._tokens -= 1
        return 0.0

    def _fill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + (now - self._filled) * self._rate)
        self._filled = now

    def _raise_rate(self, step: float) -> None:
        self._fill(self._clock())
        self._rate += step


class Pace:
    """The paces of all operations over one connection: ECR meters each on its own, per account and region.

    Args:
        service: whose quotas count.
        endpoint_url: the endpoint. Where it is not AWS's own (an emulator, say), there is no limit until a request is
            refused for its rate.
        clock: tells the time in seconds.
    """

    def __init__(
        self,
        service: Service,
        endpoint_url: str,
        *,
        slowest_rate: float = _SLOWEST_RATE,
        clock: Clock = time.monotonic,
    ) -> None:
        self._slowest_rate = slowest_rate
        self._quotas = QUOTAS[service]
        self._limited = is_aws(endpoint_url)
        self._clock = clock
        self._operations: dict[str, RateLimiter] = {}

    def of(self, operation: str) -> RateLimiter:
        """The pace of *operation*."""
        pace = self._operations.get(operation)
        if pace is None:
            quota = self._quotas.get(operation)
            pace = RateLimiter(
                operation, quota, limited=self._limited, slowest_rate=self._slowest_rate, clock=self._clock
            )
            self._operations[operation] = pace
        return pace

    def statistics(self) -> tuple[OperationStatistics, ...]:
        """What there is to know now, of each operation that was used, by name."""
        return tuple(self._operations[name].statistics() for name in sorted(self._operations))


def is_aws(endpoint_url: str) -> bool:
    """Whether an endpoint is AWS's own: a service's, or a VPC endpoint's."""
    host = urlsplit(endpoint_url).hostname or ""
    return host.rstrip(".").endswith(_AWS_DOMAINS)


#: Answers that a share is judged by, at least: fewer are chance.
_FEWEST = 16
#: Deviations by which a share must be beyond what is borne: answers are looked at often, and each look may err.
_SURE = 3.0
#: And by which it must be beyond what is ever borne.
_RATHER_SURE = 2.5
#: The share of refusals that needs no explanation, and how much more than what is borne it must be.
_MARGIN = 0.05
_MORE = 1.2
#: The largest share that is ever put down to others; beyond it the rate is cut again.
_MOST_BORNE = 0.65

#: Answers after which a count begins again: seconds and answers at least, or at most where some were refused.
_FULL = (1.0, 20)
_FULL_AT_LAST = (30.0, 200)

#: Refusals by which a trial is decided, or as many answers as should bring half as many more.
_DECISIVE = 20
#: What of the share before is refused, at most, where a limit was met, and at least, where it was not.
_LIMIT_BELOW = 0.3
_SHARED_FROM = 0.6
#: How much more than before says that even the lower rate is too high: a burst had hidden it.
_WORSE = 1.5
#: Odds (their logarithm) at which a limit is certain early.
_CERTAIN = 6.0

#: Seconds for which a share is borne without another trial: at first, and at most, as trials confirm it.
_BELIEF = 20.0
_LONGEST_BELIEF = 120.0


@dataclass(slots=True)
class Count:
    """Answers to requests that started after ``began``.

    Attributes:
        began: since when is counted, in seconds.
        started: requests that have started since then.
        answers: those that were answered.
        refused: and refused for their rate.
    """

    began: float
    started: int = 0
    answers: int = 0
    refused: int = 0

    @property
    def share(self) -> float:
        """The share of those refused."""
        return self.refused / self.answers if self.answers else 0.0

    @property
    def low(self) -> float:
        """The share that there is rather surely: a high one has drawn attention, and is chance in part."""
        return max((self.share + self._bound(_SURE)) / 2, _MARGIN)

    def add(self, *, refused: bool) -> None:
        """Count an answer."""
        self.answers += 1
        self.refused += refused

    def exceeds(self, borne: float) -> bool:
        """Whether more are refused than *borne*, the share that is put down to others."""
        return self.answers >= _FEWEST and self._bound(_SURE) > _MARGIN + _MORE * borne

    @property
    def is_too_much(self) -> bool:
        """Whether more are refused than is ever borne."""
        return self._bound(_RATHER_SURE) > _MOST_BORNE

    def is_full(self, now: float) -> bool:
        """Whether to begin again: what was long ago tells little."""
        seconds, answers = now - self.began, self.answers
        if seconds < _FULL[0] or answers < _FULL[1]:
            return False
        return not self.refused or seconds >= _FULL_AT_LAST[0] or answers >= _FULL_AT_LAST[1]

    def _bound(self, deviations: float) -> float:
        """A share that the true one is above, by so many deviations."""
        share, answers = self.share, self.answers
        return share - deviations * math.sqrt(share * (1 - share) / answers + 1 / answers**2)


@dataclass(slots=True)
class Borne:
    """The share of refusals that is put down to others, until it is tried again."""

    share: float = 0.0
    _until: float = -math.inf
    _belief: float = _BELIEF

    def forget(self, now: float) -> None:
        """Bear nothing any more once it was believed for long enough."""
        if now > self._until:
            self.share = 0.0

    def confirm(self, share: float, now: float) -> None:
        """Bear *share* for a while, each time longer."""
        self.share, self._until = share, now + self._belief
        self._belief = min(2 * self._belief, _LONGEST_BELIEF)


class RateTrial:
    """A lower rate, tried to learn what the refusals at the higher one were: ours, or others'.

    Args:
        rate: the rate at which too many were refused; may be infinite.
        share: the share of them.
        low: the share that there was rather surely.

    Attributes:
        good: requests a second that have succeeded last.
    """

    def __init__(self, rate: float, share: float, low: float) -> None:
        self.good: float | None = None
        self._rate = rate
        self._first = self._share = share
        self._low = min(low, 0.5)

    def verdict(self, count: Count) -> Literal["limit", "shared", "too much"] | None:
        """What the answers at the lower rate say: None while they say nothing yet."""
        share, low = count.share, self._low
        none = 0.15 * low + 0.005
        odds = count.refused * math.log(low / none)
        odds += (count.answers - count.refused) * math.log((1 - low) / (1 - none))
        if odds < -_CERTAIN:
            return "limit"
        if count.is_too_much:
            return "too much"
        if count.refused < _DECISIVE and count.answers < 1.5 * _DECISIVE / low:
            return None
        if share <= _LIMIT_BELOW * low:
            return "limit"
        return "shared" if _SHARED_FROM * low <= share <= _WORSE * self._share else "too much"

    def again(self, share: float) -> None:
        """Try a still lower rate, since *share* was refused at this one."""
        self._share, self._low = share, min(max(share, _MARGIN), 0.9)

    def rate_before(self, share: float) -> float | None:
        """The rate that the first refusals had nothing to do with, if *share* is about theirs."""
        return self._rate if share >= _SHARED_FROM * self._first else None
