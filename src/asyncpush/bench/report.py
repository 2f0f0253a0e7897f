"""A sweep for readers: a JSON document with every round, for programs, and a table with the medians, for people."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeAlias

from rich.console import Console
from rich.table import Table

from asyncpush.bench.figures import OPERATIONS, Latency, Medians, Spread, summarise, verdicts
from asyncpush.bench.sweep import Outcome, Sample
from asyncpush.bench.trials import Combination, size_word

Json: TypeAlias = "Mapping[str, str | int | float | Json | Sequence[Json] | Sequence[float] | None]"

#: Increased when a member changes its name or meaning; new members may be added at any time.
_VERSION = 1

_PACKAGES = ("asyncpush", "aioboto3", "aiobotocore", "aiohttp", "anyio", "botocore", "pybase64")

#: Decimals of a second: microseconds.
_DIGITS = 6


def document(outcome: Outcome) -> Json:
    """The JSON document of a sweep; sizes are bytes, times are seconds."""
    plan, endpoint = outcome.plan, outcome.endpoint
    return {
        "version": _VERSION,
        "made": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "machine": machine(),
        "versions": versions(_PACKAGES),
        "endpoint": {
            "url": endpoint.url,
            "service": endpoint.service,
            "registryId": endpoint.registry_id,
            "region": endpoint.region,
            "emulator": endpoint.local,
        },
        "plan": {"warmUp": plan.warm_up, "rounds": plan.rounds, "maxMemory": plan.max_memory, "bytes": plan.total},
        "combinations": _combinations(outcome.samples),
        "rounds": [_round(sample) for sample in outcome.samples],
        "failure": outcome.failure,
    }


def machine() -> Json:
    """The machine that measures, its memory in bytes; blocks."""
    load = os.getloadavg() if hasattr(os, "getloadavg") else ()
    return {
        "system": platform.platform(),
        "processor": _processor() or platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load": [round(each, 2) for each in load],
    }


def _processor() -> str:
    """The processor's name, which only Linux gives without running a program; empty elsewhere."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text("utf-8").splitlines() if listing.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of Python and of those of *packages* that are installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


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
        "round": sample.trial.round,
        **_members(sample.trial.combination),
        "bytes": sample.trial.combination.total,
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


#: Columns of a pipe, which has no width of its own: enough for the widest table.
_PIPE_WIDTH = 200

_MB = 10**6

#: The dimensions of a sweep: a column where combinations differ, a word above the table where they do not.
_Dimension: TypeAlias = tuple[str, Callable[[Combination], str]]
_DIMENSIONS: tuple[_Dimension, ...] = (
    ("layers", lambda combination: str(combination.layers)),
    ("size", lambda combination: size_word(combination.size)),
    ("max-layers", lambda combination: str(combination.max_layers)),
    ("part-size", lambda combination: part_word(combination.part_size)),
)


def part_word(part_size: int | None) -> str:
    """A part size as tables show it; ``default`` is the endpoint's own."""
    return size_word(part_size) if part_size else "default"


def table(outcome: Outcome) -> str:
    """The table of *outcome*, which has samples, and the conclusions below it."""
    summaries = summarise(outcome.samples)
    combinations = [summary.combination for summary in summaries]
    swept = [each for each in _DIMENSIONS if len({each[1](combination) for combination in combinations}) > 1]
    constant = [f"{name} {word(combinations[0])}" for name, word in _DIMENSIONS if (name, word) not in swept]
    rounds = min(summary.rounds for summary in summaries)
    console = make_console()
    shown = _table(summaries, swept, narrow=False)
    measured = console.measure(shown, options=console.options.update(max_width=_PIPE_WIDTH))
    if measured.maximum > console.width:
        shown = _table(summaries, swept, narrow=True)
    with console.capture() as captured:
        console.print(outcome.heading, soft_wrap=True)
        console.print(", ".join([*constant, _rounds(rounds)]), soft_wrap=True)
        console.print()
        console.print(shown)
        console.print()
        for line in _conclusions(summaries):
            console.print(line, soft_wrap=True)
    return captured.get()


def make_console() -> Console:
    """A console on standard output that cuts nothing off, or folds it, where that is a pipe."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)


def make_table(headings: Iterable[str], *, title: str | None = None, names: int = 0, narrow: bool = False) -> Table:
    """An empty table without lines: *names* columns of text, aligned left, and the others of figures, aligned right."""
    made = Table(
        title=title,
        title_justify="left",
        box=None,
        pad_edge=False,
        header_style="bold",
        collapse_padding=narrow,
    )
    for position, heading in enumerate(headings):
        made.add_column(heading, justify="left" if position < names else "right", overflow="fold", vertical="top")
    return made


def _table(summaries: Sequence[Medians], swept: Sequence[_Dimension], *, narrow: bool) -> Table:
    """A row for each summary; a *narrow* table has spreads below their medians, and fits into 80 columns."""
    refusals = _refusals(summaries)
    headings = [name.replace("-", "-\n") for name, _ in swept]
    headings += ["seconds", "MB/s", "CPU\ns/GiB", "part, ms\np50/p90/p99", "compl., ms\np50/p90/p99"]
    headings += ["throttled", "retried"] if refusals else []
    shown = make_table(headings, narrow=narrow)
    for summary in summaries:
        cells = [word(summary.combination) for _, word in swept]
        cells += [
            _spread(figure, summary.rounds, narrow) for figure in (summary.seconds, _mega(summary.rate), summary.cpu)
        ]
        cells += [_latency(summary.latencies.get(operation)) for operation in OPERATIONS]
        cells += [str(summary.throttled), str(summary.retried)] if refusals else []
        shown.add_row(*cells)
    return shown


def _refusals(summaries: Sequence[Medians]) -> int:
    return sum(summary.throttled + summary.retried for summary in summaries)


def _mega(rate: Spread) -> Spread:
    return Spread(rate.median / _MB, rate.least / _MB, rate.largest / _MB)


def _spread(figure: Spread, rounds: int, narrow: bool) -> str:
    if rounds == 1:
        return brief(figure.median)
    return f"{brief(figure.median)}\n{brief(figure.least)}-{brief(figure.largest)}" if narrow else figure.show(brief)


def _latency(latency: Latency | None) -> str:
    if latency is None:
        return "-"
    return "/".join(f"{seconds * 1000:.0f}" for seconds in (latency.p50, latency.p90, latency.p99))


def brief(value: float) -> str:
    """*value* in about three digits, without an exponent."""
    return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"


def _rounds(count: int) -> str:
    return f"medians of {count} rounds (least-largest)" if count > 1 else "one round"


def _conclusions(summaries: Sequence[Medians]) -> list[str]:
    lines = [] if _refusals(summaries) else ["No request was throttled or sent again."]
    for verdict in verdicts(summaries):
        combination = verdict.fastest.combination
        line = (
            f"Fastest for {combination.layers} x {size_word(combination.size)}: {_limits(combination)}, "
            f"{brief(verdict.fastest.rate.median / _MB)} MB/s"
        )
        if not verdict.slower:
            line += "; the spreads of all overlap: more --rounds, or a quieter machine, would tell more"
        elif verdict.as_fast:
            line += f"; within its spread: {'; '.join(_limits(each.combination) for each in verdict.as_fast)}"
        lines.append(line)
    return lines


def _limits(combination: Combination) -> str:
    return f"max-layers {combination.max_layers}, part-size {part_word(combination.part_size)}"
