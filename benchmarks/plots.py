"""Pictures of results: panels side by side, bars or lines, by matplotlib if it is installed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860", "#da8bc3", "#8c8c8c")

#: Panels side by side.
_ACROSS = 3


@dataclass(frozen=True, slots=True)
class Series:
    """A line: points from left to right."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture: bars by name, with the least and the largest value, or lines.

    Attributes:
        title: what is shown, and its unit.
        bars: value, least and largest by name.
        lines: instead of bars.
        x_label: what lines go along; its scale doubles.
    """

    title: str
    bars: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    lines: Sequence[Series] = ()
    x_label: str = ""


def draw(path: Path, title: str, panels: Sequence[Panel]) -> str:
    """Draw *panels* into *path*; returns what to say about it."""
    try:
        # Not before all rounds are over: what the harness holds in memory, contenders are spawned from.
        import matplotlib as mpl

        mpl.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        return "no picture, since matplotlib is not installed (pip install 'asyncpush[bench]')"
    most = max((len(panel.bars) for panel in panels), default=0)
    columns = min(_ACROSS, len(panels))
    rows = -(-len(panels) // columns)
    size = (5.5 * columns, rows * max(4.0, 1.2 + 0.35 * most))
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, panel in zip(axes.flat, panels, strict=False):
        _bars(axis, panel) if panel.bars else _lines(axis, panel)
        axis.set_title(panel.title, fontsize=10)
    figure.suptitle(title, fontsize=9, color="#666666")
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return str(path)


def _bars(axis: Axes, panel: Panel) -> None:
    names = list(panel.bars)
    values = [middle for middle, _, _ in panel.bars.values()]
    below = [middle - least for middle, least, _ in panel.bars.values()]
    above = [most - middle for middle, _, most in panel.bars.values()]
    colours = [_COLOURS[position % len(_COLOURS)] for position in range(len(names))]
    drawn = axis.barh(names, values, xerr=(below, above), color=colours, ecolor="#333333", capsize=3)
    axis.bar_label(drawn, labels=[_figure(value) for value in values], padding=4, fontsize=8)
    axis.invert_yaxis()
    axis.margins(x=0.2)
    axis.tick_params(labelsize=8)


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _lines(axis: Axes, panel: Panel) -> None:
    for position, series in enumerate(panel.lines):
        axis.plot(series.x, series.y, marker="o", label=series.name, color=_COLOURS[position % len(_COLOURS)])
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_ylim(bottom=0)
    axis.set_xlabel(panel.x_label)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
