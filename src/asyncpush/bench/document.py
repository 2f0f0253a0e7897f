"""A sweep as one JSON document for programs: the machine, every round's raw figures, medians."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TypeAlias

from asyncpush.bench.figures import OPERATIONS, Latency, Spread, summarise
from asyncpush.bench.measure import Sample
from asyncpush.bench.plan import Combination
from asyncpush.bench.sweep import Outcome

Json: TypeAlias = "Mapping[str, str | int | float | Json | Sequence[Json] | Sequence[float] | None]"

#: Counted up when a member changes its name or meaning; new members may come at any time.
_VERSION = 1

_PACKAGES = ("asyncpush", "aioboto3", "aiobotocore", "aiohttp", "anyio", "botocore", "pybase64")

#: Digits behind the point of a second: microseconds.
_DIGITS = 6


def document(outcome: Outcome) -> Json:
    """All that there is to tell. Sizes are bytes, times seconds."""
    plan, place = outcome.plan, outcome.place
    return {
        "version": _VERSION,
        "made": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "machine": _machine(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "endpoint": {
            "url": place.url,
            "service": place.service,
            "registryId": place.registry_id,
            "region": place.region,
            "emulator": place.local,
        },
        "plan": {"warmUp": plan.warm_up, "rounds": plan.rounds, "maxMemory": plan.max_memory, "bytes": plan.total},
        "combinations": _combinations(outcome.samples),
        "rounds": [_round(sample) for sample in outcome.samples],
        "failure": outcome.failure,
    }


def _machine() -> Json:
    load = os.getloadavg() if hasattr(os, "getloadavg") else ()
    return {
        "system": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "load": [round(each, 2) for each in load],
    }


def _combinations(samples: Iterable[Sample]) -> list[Json]:
    return [
        {
            **_members(summary.combination),
            "rounds": summary.rounds,
            "seconds": _spread_json(summary.seconds),
            "bytesPerSecond": _spread_json(summary.rate),
            "cpuSecondsPerGiB": _spread_json(summary.cpu),
            "latencies": {name: _latency_json(latency) for name, latency in summary.latencies.items()},
            "throttled": summary.throttled,
            "retried": summary.retried,
        }
        for summary in summarise(samples)
    ]


def _round(sample: Sample) -> Json:
    return {
        "round": sample.turn.round,
        **_members(sample.turn.combination),
        "bytes": sample.turn.combination.total,
        "seconds": round(sample.seconds, _DIGITS),
        "bytesPerSecond": round(sample.rate, _DIGITS),
        "cpuSeconds": round(sample.cpu, _DIGITS),
        "cpuSecondsPerGiB": round(sample.cpu_per_gib, _DIGITS),
        "requests": dict(sorted(sample.counts().items())),
        "throttled": sample.throttled,
        "retried": sample.retried,
        "latencies": {
            operation: [round(seconds, _DIGITS) for seconds in sample.latencies(operation)] for operation in OPERATIONS
        },
    }


def _members(combination: Combination) -> Json:
    return {
        "layers": combination.layers,
        "size": combination.size,
        "maxLayers": combination.max_layers,
        "partSize": combination.part_size,
    }


def _spread_json(spread: Spread) -> Json:
    return {name: round(value, _DIGITS) for name, value in asdict(spread).items()}


def _latency_json(latency: Latency) -> Json:
    return {name: round(value, _DIGITS) for name, value in asdict(latency).items()}
