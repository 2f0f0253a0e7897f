"""How fast something happens: over the last seconds, for screens; and over a share of the run, for the time left."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque

#: ECR takes about 0.3 s for a part of 10 MiB, so this spans about 30 parts of each layer: stable, but not sluggish.
WINDOW = 10.0

#: Parts that end within this time share a sample, so that the cost of a rate does not depend on the number of parts.
_SAMPLE = 0.25

#: A rate over less time is meaningless.
_SHORTEST = 0.5

#: Before a rate is this old, it can't predict the time left.
_FORECAST = 2.0

#: The share of the time so far that predicts the time left: the beginning, while a run gets up to speed, does not.
_SHARE = 0.5

#: Seconds of a trend, at least: over less, parts that end together make it jump.
_SHORTEST_TREND = 2.5

#: Samples of a trend, at most: when there are more, every other one is dropped.
_MOST_SAMPLES = 1000


class Rate:
    """Bytes a second over the last ``WINDOW`` seconds."""

    __slots__ = ("_moved", "_samples", "_since", "_sum")

    def __init__(self, now: float) -> None:
        self._samples: deque[tuple[float, int]] = deque()
        self._since = now
        self._sum = 0
        self._moved = False

    def resume(self, now: float) -> None:
        """Restart the time, unless bytes moved recently: idle time before the first byte does not count."""
        self._forget(now)
        if not self._samples:
            self._since = now

    def add(self, now: float, size: int) -> None:
        """Count *size* bytes at *now*."""
        self._sum += size
        self._moved = True
        if self._samples and now - self._samples[-1][0] < _SAMPLE:
            began, so_far = self._samples[-1]
            self._samples[-1] = (began, so_far + size)
            return
        self._forget(now)
        self._samples.append((now, size))

    def at(self, now: float) -> float | None:
        """The rate at *now*; None before the first byte."""
        self._forget(now)
        if not self._moved:
            return None
        return self._sum / max(min(now - self._since, WINDOW), _SHORTEST)

    def is_steady(self, now: float) -> bool:
        """Whether it is old enough to predict the time left."""
        return now - self._since >= _FORECAST

    def _forget(self, now: float) -> None:
        while self._samples and now - self._samples[0][0] > WINDOW:
            self._sum -= self._samples.popleft()[1]


class Trend:
    """What happens a second, over the last half of the time since it began."""

    __slots__ = ("_spacing", "_sums", "_times", "_total")

    def __init__(self) -> None:
        self._times: list[float] = []
        self._sums: list[int] = []  # so far, at each of the times
        self._total = 0
        self._spacing = _SAMPLE

    def begin(self, now: float) -> None:
        """Begin at *now*, unless it has begun."""
        if not self._times:
            self.add(now, 0)

    def begin_later(self, now: float) -> None:
        """Begin at *now* instead, unless something has happened."""
        if not self._total:
            self._times, self._sums = [now], [0]

    def add(self, now: float, count: int) -> None:
        """Count *count* at *now*."""
        self._total += count
        if self._times and now - self._times[-1] < self._spacing:
            return
        self._times.append(now)
        self._sums.append(self._total)
        if len(self._times) > _MOST_SAMPLES:
            self._times, self._sums = self._times[::2], self._sums[::2]
            self._spacing *= 2

    def at(self, now: float) -> float:
        """The trend at *now*; 0 before anything has happened."""
        if not self._times:
            return 0.0
        begin = now - max((now - self._times[0]) * _SHARE, _SHORTEST_TREND)
        place = max(bisect_right(self._times, begin) - 1, 0)
        return (self._total - self._sums[place]) / max(now - self._times[place], _SHORTEST)

    def left(self, now: float, count: float) -> float | None:
        """The seconds that *count* more would take; None if that is not known."""
        pace = self.at(now)
        return count / pace if pace and now - self._times[0] >= _FORECAST else None
