"""The course of a run, gathered from its events in bounded memory: when images and layers were under way, how fast."""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable

import msgspec

from asyncpush.events import (
    Event,
    ImageDone,
    ImageFailed,
    ImageStarted,
    LayerDone,
    LayerFailed,
    LayerStarted,
    Notice,
    PartSent,
    RequestDone,
    Retrying,
)

#: Layers that are kept: those that took longest.
_LAYERS = 2_000

#: Intervals of the throughput: when there are more, each two become one of twice the length.
_INTERVALS = 600

_NOTICES = 100


class Interval(msgspec.Struct, rename="camel"):
    """What happened in an interval of the run: bytes acknowledged, requests, throttled requests."""

    sent: int = 0
    requests: int = 0
    throttled: int = 0


class LayerTime(msgspec.Struct, frozen=True, rename="camel", order=False):
    """A layer, and when it was under way, in seconds from the start."""

    title: str
    destination: str
    bytes: int
    begin: float
    end: float
    outcome: str
    digest: str | None = None


class OperationTimes(msgspec.Struct, rename="camel"):
    """Requests of one operation, by how they ended, and the seconds that they took."""

    succeeded: int = 0
    throttled: int = 0
    refused: int = 0
    unanswered: int = 0
    seconds: float = 0.0
    slowest: float = 0.0


class Timeline(msgspec.Struct, frozen=True, rename="camel"):
    """The course of a run.

    Attributes:
        started: when it began, in seconds since 1970.
        seconds: how long it took.
        width: seconds of an interval.
        intervals: what happened in each interval.
        images: when each destination was tried first, and when that ended last, in seconds from the start.
        layers: the layers that took longest, in the order of their start.
        layers_left: layers that are not in *layers*.
        operations: requests to ECR.
        retries: how often requests of each operation were sent again.
        notices: the first of them.
    """

    started: float
    seconds: float
    width: float
    intervals: list[Interval]
    images: dict[str, tuple[float, float]]
    layers: list[LayerTime]
    layers_left: int
    operations: dict[str, OperationTimes]
    retries: dict[str, int]
    notices: list[str]


class TimelineRecorder:
    """Gathers a timeline: call it with each event.

    Args:
        clock: seconds since any moment.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._started = time.time()
        self._width = 1.0
        self._intervals = [Interval()]
        self._images: dict[str, tuple[float, float]] = {}
        self._open: dict[str, tuple[LayerStarted, float]] = {}
        self._sizes: Counter[str] = Counter()
        self._longest: list[tuple[float, int, LayerTime]] = []
        self._ended = 0
        self._operations: dict[str, OperationTimes] = {}
        self._retries: Counter[str] = Counter()
        self._notices: list[str] = []

    def __call__(self, event: Event) -> None:
        """Take an event in."""
        now = round(self._clock() - self._began, 3)
        match event:
            case PartSent():
                self._interval(now).sent += event.sent
                self._sizes[event.layer] += event.sent
            case RequestDone():
                self._note_request(event, now)
            case LayerStarted():
                self._open[event.layer] = (event, now)
            case LayerDone():
                self._end_layer(event.layer, now, event.outcome, str(event.digest))
            case LayerFailed():
                self._end_layer(event.layer, now, "interrupted" if event.interrupted else "failed", None)
            case ImageStarted():
                self._images.setdefault(event.destination, (now, now))
            case ImageDone() | ImageFailed():
                self._images[event.destination] = (self._images.get(event.destination, (now, now))[0], now)
            case Retrying():
                self._retries[event.operation] += 1
            case Notice() if len(self._notices) < _NOTICES:
                self._notices.append(event.text)

    def timeline(self) -> Timeline:
        """The course so far."""
        now = round(self._clock() - self._began, 3)
        for layer in list(self._open):
            self._end_layer(layer, now, "interrupted", None)
        layers = sorted((layer for _, _, layer in self._longest), key=lambda layer: layer.begin)
        return Timeline(
            started=self._started,
            seconds=now,
            width=self._width,
            intervals=list(self._intervals),
            images=dict(self._images),
            layers=layers,
            layers_left=self._ended - len(layers),
            operations=dict(self._operations),
            retries=dict(self._retries),
            notices=list(self._notices),
        )

    def _interval(self, now: float) -> Interval:
        place = int(now / self._width)
        while place >= _INTERVALS:
            pairs = zip(self._intervals[::2], [*self._intervals[1::2], Interval()], strict=False)
            self._intervals = [_joined(*pair) for pair in pairs]
            self._width *= 2
            place = int(now / self._width)
        while len(self._intervals) <= place:
            self._intervals.append(Interval())
        return self._intervals[place]

    def _note_request(self, event: RequestDone, now: float) -> None:
        interval = self._interval(now)
        interval.requests += 1
        interval.throttled += event.outcome == "throttled"
        operation = self._operations.setdefault(event.operation, OperationTimes())
        setattr(operation, event.outcome, getattr(operation, event.outcome) + 1)
        operation.seconds += event.seconds
        operation.slowest = max(operation.slowest, event.seconds)

    def _end_layer(self, key: str, now: float, outcome: str, digest: str | None) -> None:
        started = self._open.pop(key, None)
        size = self._sizes.pop(key, 0)
        if started is None:
            return
        event, begin = started
        self._ended += 1
        layer = LayerTime(event.title, event.destination, size or event.size, begin, now, outcome, digest)
        entry = (now - begin, self._ended, layer)
        if len(self._longest) < _LAYERS:
            heapq.heappush(self._longest, entry)
        else:
            heapq.heappushpop(self._longest, entry)


def _joined(one: Interval, other: Interval) -> Interval:
    return Interval(one.sent + other.sent, one.requests + other.requests, one.throttled + other.throttled)
