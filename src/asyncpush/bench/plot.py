"""A sweep as a picture: lines along what was swept most, by matplotlib."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import astuple
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

from asyncpush.bench.figures import OPERATIONS, Medians, Spread, summarise
from asyncpush.bench.sweep import Outcome
from asyncpush.bench.trials import size_word
from asyncpush.errors import AsyncpushError, UsageError
from asyncpush.settings import MiB

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_REMEDY = "pip install 'asyncpush[bench]'"


class _Dimension(NamedTuple):
    """A value that a sweep may vary: what an axis and a legend call it."""

    label: str
    value: Callable[[Medians], float]
    word: Callable[[Medians], str]


#: A line of a panel: its name, and its points from left to right.
_Line: TypeAlias = tuple[str, list[Medians]]

_DIMENSIONS = (
    _Dimension("max-layers", lambda each: each.combination.max_layers, lambda each: f"{each.combination.max_layers}"),
    _Dimension(
        "part-size, MiB",
        lambda each: (each.combination.part_size or 0) / MiB,
        lambda each: size_word(each.combination.part_size or 0),
    ),
    _Dimension("layers", lambda each: each.combination.layers, lambda each: f"{each.combination.layers}"),
    _Dimension("size, MiB", lambda each: each.combination.size / MiB, lambda each: size_word(each.combination.size)),
)


def check_plot(path: Path) -> None:
    """See that a picture can be drawn into *path*, before an hour is spent on measuring; blocking.

    Raises:
        UsageError: it is not a .png, can't be written, or matplotlib is missing.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(f"--plot {path} is not a .png file", hint="pictures are PNG files: give a name that says so")
    try:
        was_there = path.exists()
        path.open("ab").close()
        if not was_there:
            path.unlink()
    except OSError as error:
        raise UsageError(f"--plot {path} can't be written: {error.strerror}", hint="give another name") from error
    try:
        import matplotlib.figure  # noqa: F401 - whether it can be imported is the question
    except ImportError as error:
        raise UsageError(f"--plot needs matplotlib: {error}", hint=_REMEDY) from error


def draw(path: Path, outcome: Outcome) -> None:
    """Draw *outcome*, which has samples, into *path*, which ``check_plot`` has seen; blocking.

    Raises:
        AsyncpushError: it can't be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    summaries = summarise(outcome.samples)
    varied = [each for each in _DIMENSIONS if len({each.value(summary) for summary in summaries}) > 1]
    along = max(varied or _DIMENSIONS[:1], key=lambda each: len({each.value(summary) for summary in summaries}))
    lines = _lines(summaries, along, [each for each in varied if each is not along])
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    rate, cpu, parts = figure.subplots(1, 3)
    _errors(rate, "MB/s", lines, along, lambda each: _scaled(each.rate, 1e-6))
    _errors(cpu, "CPU s/GiB", lines, along, lambda each: each.cpu)
    _latencies(parts, lines, along)
    rate.legend(fontsize=8)
    figure.suptitle(outcome.heading, fontsize=9, color="#666666")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=130)
    try:
        path.write_bytes(drawn.getvalue())
    except OSError as error:
        raise AsyncpushError(f"--plot {path} can't be written: {error.strerror}", hint="the table is whole") from error


def _lines(summaries: Sequence[Medians], along: _Dimension, others: Sequence[_Dimension]) -> list[_Line]:
    """A line for each combination of what else was varied: its name, and its points from left to right."""

    def name(summary: Medians) -> str:
        words = [f"{each.label.partition(',')[0]} {each.word(summary)}" for each in others]
        return ", ".join(words) or "median, least and largest"

    ordered = sorted(summaries, key=lambda summary: [each.value(summary) for each in (*others, along)])
    return [(key, list(points)) for key, points in groupby(ordered, name)]


def _errors(
    axes: Axes,
    title: str,
    lines: Sequence[_Line],
    along: _Dimension,
    figure: Callable[[Medians], Spread],
) -> None:
    for name, points in lines:
        spreads = [figure(point) for point in points]
        middles = [spread.median for spread in spreads]
        below = [spread.median - spread.least for spread in spreads]
        above = [spread.largest - spread.median for spread in spreads]
        x = [along.value(point) for point in points]
        axes.errorbar(x, middles, yerr=(below, above), marker="o", capsize=3, label=name)
    _finish(axes, title, lines, along)


def _latencies(axes: Axes, lines: Sequence[_Line], along: _Dimension) -> None:
    operation = OPERATIONS[0]
    for position, (_, points) in enumerate(lines):
        asked = [(along.value(point), point.latencies[operation]) for point in points if operation in point.latencies]
        for share, style in (("p50", "-"), ("p99", ":")):
            values = [getattr(latency, share) * 1000 for _, latency in asked]
            axes.plot([x for x, _ in asked], values, style, marker="o", color=f"C{position % 10}")
    _finish(axes, f"{operation}, ms: p50 solid, p99 dotted", lines, along)


def _finish(axes: Axes, title: str, lines: Sequence[_Line], along: _Dimension) -> None:
    ticks = sorted({along.value(point) for _, points in lines for point in points})
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(along.label)
    axes.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)


def _scaled(spread: Spread, factor: float) -> Spread:
    return Spread(*(value * factor for value in astuple(spread)))
