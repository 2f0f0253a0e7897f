"""Pictures of measurements by matplotlib: panels of bars or lines with their spreads, and the panels of a sweep."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from asyncpush.bench.figures import OPERATIONS, Medians, Spread, summarise
from asyncpush.bench.sweep import Outcome
from asyncpush.bench.trials import size_word
from asyncpush.errors import AsyncpushError, UsageError
from asyncpush.settings import MiB

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_REMEDY = "pip install 'asyncpush[bench]'"

#: Panels side by side.
_COLUMNS = 3

#: Letters in a line of a panel's title, and in a column's share of the heading.
_TITLE, _HEADING = 52, 70

#: The share of the axis that the numbers beside the bars take.
_ROOM_FOR_LABELS = 0.2

#: A colour a name, in all panels.
_COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3", "#8c8c8c")


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a panel.

    Attributes:
        name: what the legend calls it; lines of one name have one colour.
        points: x and the spread of y, from left to right.
        style: matplotlib's line style.
    """

    name: str
    points: Sequence[tuple[float, Spread]]
    style: str = "-"


@dataclass(frozen=True, slots=True)
class Panel:
    """One diagram: bars, or lines.

    Attributes:
        title: what it shows, and in which unit.
        bars: a bar for each name.
        lines: instead of bars.
        x_label: what the lines run along.
        doubling: whether each step of the x axis doubles; else it has a tick for each point.
        legend: whether the lines are named.
        better: which values are better; empty if that makes no sense.
    """

    title: str
    bars: Mapping[str, Spread] = field(default_factory=dict)
    lines: Sequence[Line] = ()
    x_label: str = ""
    doubling: bool = False
    legend: bool = True
    better: Literal["", "lower", "higher"] = "lower"


def draw_panels(path: Path, heading: str, panels: Sequence[Panel]) -> None:
    """Draw panels side by side into the PNG file *path*; blocks.

    Raises:
        ImportError: matplotlib is not installed.
        OSError: the file can't be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    names = dict.fromkeys(name for panel in panels for name in panel.bars)
    colours = {name: _COLOURS[position % len(_COLOURS)] for position, name in enumerate(names)}
    most_bars = max(len(panel.bars) for panel in panels)
    figure = Figure(figsize=(5.0 * columns, rows * max(4.5, 1.2 + 0.35 * most_bars)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for empty in axes.flat[len(panels) :]:
        empty.set_axis_off()
    for axis, panel in zip(axes.flat, panels, strict=False):
        axis.set_title(_title(panel), fontsize=10)
        if panel.bars:
            _draw_bars(axis, panel.bars, colours)
        else:
            _draw_lines(axis, panel)
    figure.suptitle(textwrap.fill(heading, _HEADING * columns), fontsize=9, color="#666666")
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=130)
    path.write_bytes(image.getvalue())


def _title(panel: Panel) -> str:
    """What a panel shows, and in which direction it is better; no line is wider than the panel."""
    direction = f"\n({panel.better} is better)" if panel.better else ""
    return textwrap.fill(panel.title, _TITLE) + direction


def _draw_bars(axis: Axes, bars: Mapping[str, Spread], colours: Mapping[str, str]) -> None:
    medians = [spread.median for spread in bars.values()]
    errors = _errors(list(bars.values()))
    of_bars = [colours[name] for name in bars]
    drawn = axis.barh(list(bars), medians, xerr=errors, color=of_bars, ecolor="#333333", capsize=3)
    labels = [f"{median:,.0f}" if median >= 1000 else f"{median:.3g}" for median in medians]
    axis.bar_label(drawn, labels=labels, padding=4, fontsize=8)
    axis.invert_yaxis()
    axis.margins(x=_ROOM_FOR_LABELS)
    axis.tick_params(labelsize=8)


def _draw_lines(axis: Axes, panel: Panel) -> None:
    names = list(dict.fromkeys(line.name for line in panel.lines))
    for line in panel.lines:
        x = [each for each, _ in line.points]
        spreads = [spread for _, spread in line.points]
        axis.errorbar(
            x,
            [spread.median for spread in spreads],
            yerr=_errors(spreads) if any(spread.least != spread.largest for spread in spreads) else None,
            fmt=line.style,
            marker="o",
            capsize=3,
            label=line.name,
            color=_COLOURS[names.index(line.name) % len(_COLOURS)],
        )
    axis.set_xlabel(panel.x_label)
    if panel.doubling:
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
    else:
        ticks = sorted({x for line in panel.lines for x, _ in line.points})
        axis.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    if panel.legend:
        axis.legend(fontsize=8)


def _errors(spreads: Sequence[Spread]) -> tuple[list[float], list[float]]:
    """How far each spread reaches below and above its median."""
    below = [spread.median - spread.least for spread in spreads]
    return below, [spread.largest - spread.median for spread in spreads]


def check_plot(path: Path) -> None:
    """Check that a picture can be drawn into *path*, before an hour is spent on measuring; blocks.

    Raises:
        UsageError: it is not a .png file, can't be written, or matplotlib is missing.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(f"--plot {path} is not a .png file", hint="pictures are PNG files: give a name that says so")
    try:
        existed = path.exists()
        path.open("ab").close()
        if not existed:
            path.unlink()
    except OSError as error:
        raise UsageError(f"--plot {path} can't be written: {error.strerror}", hint="give another name") from error
    try:
        import matplotlib.figure  # noqa: F401 - whether it can be imported is the question
    except ImportError as error:
        raise UsageError(f"--plot needs matplotlib: {error}", hint=_REMEDY) from error


def draw(path: Path, outcome: Outcome) -> None:
    """Draw *outcome*, which has samples, into *path*, which ``check_plot`` has checked; blocks.

    Lines run along the dimension that has the most values.

    Raises:
        AsyncpushError: it can't be written.
    """
    try:
        draw_panels(path, outcome.heading, list(_panels(summarise(outcome.samples))))
    except OSError as error:
        raise AsyncpushError(f"--plot {path} can't be written: {error.strerror}", hint="the table is whole") from error


class _Dimension(NamedTuple):
    """A value that a sweep may vary: what an axis and a legend call it."""

    label: str
    value: Callable[[Medians], float]
    word: Callable[[Medians], str]


#: The summaries that make a line, from left to right, by the line's name.
_Lines: TypeAlias = Mapping[str, Sequence[Medians]]

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


def _panels(summaries: Sequence[Medians]) -> Iterator[Panel]:
    varied = [each for each in _DIMENSIONS if len({each.value(summary) for summary in summaries}) > 1]
    along = max(varied or _DIMENSIONS[:1], key=lambda each: len({each.value(summary) for summary in summaries}))
    lines = _lines(summaries, along, [each for each in varied if each is not along])

    def drawn(spread: Callable[[Medians], Spread]) -> list[Line]:
        return [Line(name, [(along.value(one), spread(one)) for one in line]) for name, line in lines.items()]

    rates = drawn(lambda summary: _scaled(summary.rate, 1e-6))
    yield Panel("MB/s", lines=rates, x_label=along.label, better="higher")
    yield Panel("CPU s/GiB", lines=drawn(lambda summary: summary.cpu), x_label=along.label, legend=False)
    yield _latencies(lines, along)


def _lines(summaries: Sequence[Medians], along: _Dimension, others: Sequence[_Dimension]) -> _Lines:
    """A line for each combination of the other dimensions that were varied."""

    def name(summary: Medians) -> str:
        words = [f"{each.label.partition(',')[0]} {each.word(summary)}" for each in others]
        return ", ".join(words) or "median, least and largest"

    ordered = sorted(summaries, key=lambda summary: [each.value(summary) for each in (*others, along)])
    return {key: list(points) for key, points in groupby(ordered, name)}


def _latencies(lines: _Lines, along: _Dimension) -> Panel:
    operation = OPERATIONS[0]
    drawn = []
    for name, summaries in lines.items():
        found = [(along.value(one), one.latencies[operation]) for one in summaries if operation in one.latencies]
        for percentile, style in (("p50", "-"), ("p99", ":")):
            points = [(x, Spread.of([getattr(latency, percentile) * 1000])) for x, latency in found]
            drawn.append(Line(name, points, style))
    title = f"{operation}, ms: p50 solid, p99 dotted"
    return Panel(title, lines=drawn, x_label=along.label, legend=False)


def _scaled(spread: Spread, factor: float) -> Spread:
    return Spread(*(value * factor for value in astuple(spread)))
