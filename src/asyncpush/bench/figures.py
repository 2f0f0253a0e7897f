"""Statistics of samples: medians with their spread, percentiles of latencies, and the fastest combination."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Self

from asyncpush.bench.sweep import Sample
from asyncpush.bench.trials import Combination

#: The operations whose latencies are reported: one carries a layer's bytes, the other makes ECR hash them.
OPERATIONS = ("UploadLayerPart", "CompleteLayerUpload")


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over the rounds: its median, least and largest value."""

    median: float
    least: float
    largest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """The spread of at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def show(self, number: Callable[[float], str]) -> str:
        """Write the median, and the least and the largest value in parentheses, each as *number* does."""
        return f"{number(self.median)} ({number(self.least)}-{number(self.largest)})"

    def overlaps(self, other: Spread) -> bool:
        """Whether both ranges overlap, so that neither can be called the larger."""
        return self.least <= other.largest and other.least <= self.largest


@dataclass(frozen=True, slots=True)
class Latency:
    """How long *count* requests took, in seconds; each percentile is a time that one of them took (nearest rank)."""

    count: int
    p50: float
    p90: float
    p99: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Self | None:
        """The percentiles of these times; None if there are none."""
        ordered = sorted(seconds)
        if not ordered:
            return None
        return cls(len(ordered), *(ordered[math.ceil(share * len(ordered) / 100) - 1] for share in (50, 90, 99)))


@dataclass(frozen=True, slots=True)
class Medians:
    """One combination, over its counted rounds.

    Attributes:
        combination: what was pushed.
        rounds: how many rounds there were.
        seconds: of a push.
        rate: bytes of layers a second.
        cpu: processor seconds for each GiB of layers.
        latencies: by operation, of all rounds together; operations without requests are left out.
        throttled: requests refused for their rate, in all rounds.
        retried: requests sent again, in all rounds.
    """

    combination: Combination
    rounds: int
    seconds: Spread
    rate: Spread
    cpu: Spread
    latencies: Mapping[str, Latency]
    throttled: int
    retried: int


def summarise(samples: Iterable[Sample]) -> list[Medians]:
    """A summary of each combination that has a counted round, in order of appearance."""
    by_combination: dict[Combination, list[Sample]] = {}
    for sample in samples:
        if sample.trial.round:
            by_combination.setdefault(sample.trial.combination, []).append(sample)
    return [_summary(combination, counted) for combination, counted in by_combination.items()]


def _summary(combination: Combination, samples: Sequence[Sample]) -> Medians:
    latencies = {
        operation: latency
        for operation in OPERATIONS
        if (latency := Latency.of(each for sample in samples for each in sample.latencies(operation)))
    }
    return Medians(
        combination,
        len(samples),
        Spread.of([sample.seconds for sample in samples]),
        Spread.of([sample.rate for sample in samples]),
        Spread.of([sample.cpu_per_gib for sample in samples]),
        latencies,
        sum(sample.throttled for sample in samples),
        sum(sample.retried for sample in samples),
    )


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of several ways to push the same layers: the fastest, those within its spread, and the slower ones."""

    fastest: Medians
    as_fast: tuple[Medians, ...]
    slower: tuple[Medians, ...]


def verdicts(summaries: Sequence[Medians]) -> list[Verdict]:
    """A verdict for each number and size of layers that was pushed in more than one way."""

    def layers(summary: Medians) -> tuple[int, int]:
        return summary.combination.layers, summary.combination.size

    found = []
    for _, group in groupby(sorted(summaries, key=layers), layers):
        ways = list(group)
        if len(ways) > 1:
            fastest = max(ways, key=lambda summary: summary.rate.median)
            others = [way for way in ways if way is not fastest]
            as_fast = tuple(way for way in others if way.rate.overlaps(fastest.rate))
            found.append(Verdict(fastest, as_fast, tuple(way for way in others if way not in as_fast)))
    return found
