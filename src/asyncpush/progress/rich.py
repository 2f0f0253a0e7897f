"""Progress as bars on a terminal: one for each layer in flight, with a line of totals below."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TextIO, cast

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.style import Style
from rich.text import Text

from asyncpush.events import Event, ImageDone, ImageFailed, Notice, Retrying
from asyncpush.progress.lines import (
    Failures,
    Field,
    Sink,
    closing_fields,
    image_line,
    joined,
    limit_text,
    notice_line,
    printable,
    progress_fields,
    retry_line,
    shortened,
)
from asyncpush.progress.meter import Clock, LayerProgress, Meter
from asyncpush.units import percent_text, rate_text, size_text

_DIM = Style(dim=True)
_STRONG = Style(bold=True)
_WARNING = Style(color="yellow")
_FAILURE = Style(color="red")

#: A longer bar shows no more, and separates the figures from the titles.
_LONGEST_BAR = 60

#: Seconds for which a retry stays on the screen after its request was sent again.
_LINGER = 2.0

#: From this width, bytes are shown beside the bar; below, a percentage.
_WIDE = 64

#: Below this width, only a title and a percentage are shown.
_SLIM = 32


class RichDisplay:
    """Draws bars on each tick; a finished image leaves a line above them.

    Args:
        sink: the terminal.
        images: how many images there will be; None if unknown.
        redirect: show other output to ``sys.stderr`` above the bars.
        clock: a clock, in seconds.
        console: a console on *sink*; created if None.
    """

    period = 0.1

    def __init__(
        self,
        sink: Sink,
        *,
        images: int | None = None,
        redirect: bool = False,
        clock: Clock = time.monotonic,
        console: Console | None = None,
    ) -> None:
        self._console = console or Console(file=cast("TextIO", sink), highlight=False, markup=False, emoji=False)
        self._meter = Meter(clock, images)
        self._screen = _Screen(self._meter, clock)
        self._lines: list[Text] = []
        self._live = Live(
            self._screen,
            console=self._console,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=redirect,
            vertical_overflow="crop",
        )
        self._begun = False
        self._failures = Failures()

    def take(self, event: Event) -> None:
        """Count *event*, without drawing."""
        self._begun = True
        self._meter.take(event)
        match event:
            case ImageDone():
                self._lines.append(Text(image_line(event, self._console.width)))
            case ImageFailed():
                if line := self._failures.line(event, self._console.width):
                    self._lines.append(Text(line, _FAILURE))
            case Notice():
                self._lines.append(Text(notice_line(event), _WARNING))
            case Retrying():
                self._screen.retry(event)
            case _:
                pass

    def tick(self) -> None:
        """Draw, if there is something to show: until then, the terminal may prompt for an MFA code."""
        if not self._begun:
            return
        self._live.start()
        if self._lines:
            # If the terminal wraps long names, they can be copied.
            self._console.print(*self._lines, sep="\n", soft_wrap=True)
            self._lines.clear()
        else:
            self._live.refresh()

    def close(self) -> None:
        """Draw the final state, which stays, and show the cursor again."""
        try:
            self._screen.closed = True
            if self._lines:
                self.tick()
            elif self._begun:
                self._live.start()
        finally:
            self._live.stop()


class _Screen:
    """The current content of the screen, in the lines and columns that there are."""

    def __init__(self, meter: Meter, clock: Clock) -> None:
        self.closed = False
        self._meter = meter
        self._clock = clock
        self._retrying: Retrying | None = None
        self._retry_until = 0.0
        self._title_width = 0

    def retry(self, event: Retrying) -> None:
        """Show *event* until its request had time to succeed."""
        self._retrying = event
        self._retry_until = self._clock() + event.delay + _LINGER

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = list(self._lines(console, options))
        for number, line in enumerate(lines):
            if number:
                yield Segment.line()
            yield from line

    def _lines(self, console: Console, options: ConsoleOptions) -> Iterator[list[Segment]]:
        width, height = options.size
        # Leave the last column empty: terminals differ in what they do after writing there.
        width = max(width - 1, 1)
        below = list(self._below(width))
        room = max(height - 1 - len(below), 0)
        layers = self._meter.layers
        shown = len(layers) if len(layers) <= room else max(room - 1, 0)
        yield from self._bars(islice(layers.values(), shown), width, console, options)
        if shown < len(layers) and room:
            yield [Segment(f"+ {len(layers) - shown} more layers"[:width], _DIM)]
        yield from below

    def _below(self, width: int) -> Iterator[list[Segment]]:
        totals = self._meter.totals()
        fields = closing_fields(totals) if self.closed else progress_fields(totals)
        if totals.present_layers:
            fields.append(Field(f"{totals.present_layers} layers already there", 4))
        line = joined(fields, width)
        if line and (totals.images or totals.layers):
            yield [Segment(line, _STRONG)]
        limits = [limit_text(limited) for limited in self._meter.limits]
        if limits and not self.closed:
            yield [Segment(set_cell_size(f"limited by {'; '.join(limits)}", width), _DIM)]
        if self._retrying is not None and not self.closed and self._clock() < self._retry_until:
            words = retry_line(self._retrying).split()
            yield [Segment(set_cell_size(" ".join(words), width), _WARNING)]

    def _bars(
        self, layers: Iterable[LayerProgress], width: int, console: Console, options: ConsoleOptions
    ) -> Iterator[list[Segment]]:
        now = self._clock()
        ellipsis = "..." if options.ascii_only else "…"
        shown = [(layer, printable(layer.title)) for layer in layers]
        # It only grows: columns that move with each layer would be unreadable.
        self._title_width = max([self._title_width, *(cell_len(title) for _, title in shown)])
        title_width, bar_width = _columns(self._title_width, width)
        for layer, title in shown:
            line = [Segment(_fitted(title, title_width, ellipsis) + " ")]
            if bar_width:
                line += _bar(layer, bar_width, console, options)
            line.append(Segment(_figures(layer, width, now)))
            yield line


def _bar(layer: LayerProgress, width: int, console: Console, options: ConsoleOptions) -> list[Segment]:
    bar = ProgressBar(
        total=layer.size, completed=layer.read, width=width, complete_style="cyan", finished_style="green"
    )
    segments = [segment for segment in bar.__rich_console__(console, options) if isinstance(segment, Segment)]
    drawn = sum(segment.cell_length for segment in segments)
    return [*segments, Segment(" " * (width - drawn + 1))]


def _columns(longest_title: int, width: int) -> tuple[int, int]:
    """The widths of titles and bars; the figures behind them have 32, 16 or 4 columns."""
    if width < _SLIM:
        return max(width - 5, 0), 0
    figures = 32 if width >= _WIDE else 16
    title = min(longest_title, max(width * 3 // 10, 12))
    return title, min(width - title - figures - 2, _LONGEST_BAR)


def _fitted(title: str, width: int, ellipsis: str) -> str:
    """*title* in exactly *width* columns; characters can be two columns wide."""
    return set_cell_size(shortened(title, width, ellipsis), width)


def _figures(layer: LayerProgress, width: int, now: float) -> str:
    read = min(max(layer.read, 0), layer.size)
    if width < _SLIM:
        return percent_text(read, layer.size)
    pace = f"{_pace(layer, now):>11}"
    if width < _WIDE:
        return f"{percent_text(read, layer.size)} {pace}"
    return f"{size_text(read):>8} of {size_text(layer.size):>8} {pace}"


def _pace(layer: LayerProgress, now: float) -> str:
    """The rate; or ``completing`` while ECR, which has all bytes, completes the layer."""
    if layer.size and layer.read >= layer.size:
        return "completing"
    rate = layer.rate.at(now)
    return "" if rate is None else rate_text(rate)
