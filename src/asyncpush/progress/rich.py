"""Progress as bars on a terminal: one for each layer in flight, with a line of totals below."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
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
    Sink,
    closing_fields,
    image_line,
    limit_text,
    notice_line,
    printable,
    progress_fields,
    retry_line,
    shortened,
    silence_text,
    wrapped,
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

#: Lines that the totals may take.
_TOTALS_LINES = 2

#: Below this width, only a title and a percentage are shown.
_SLIM = 32


class RichDisplay:
    """Draws bars on each tick.

    Args:
        sink: the terminal.
        images: how many images there will be; None if unknown.
        each: an image that ends leaves a line above the bars.
        redirect: show other output to this terminal, by ``sys.stderr`` and ``sys.stdout``, above the bars.
        clock: a clock, in seconds.
        console: a console on *sink*; created if None.
    """

    period = 0.1

    def __init__(
        self,
        sink: Sink,
        *,
        images: int | None = None,
        each: bool = False,
        redirect: bool = False,
        clock: Clock = time.monotonic,
        console: Console | None = None,
    ) -> None:
        # If the terminal wraps long names, they can be copied.
        self._console = console or Console(
            file=cast("TextIO", sink), highlight=False, markup=False, emoji=False, soft_wrap=True
        )
        self._meter = Meter(clock, images)
        self._screen = _Screen(self._meter, clock)
        self._lines: list[Text] = []
        self._live = Live(
            self._screen,
            console=self._console,
            auto_refresh=False,
            redirect_stdout=redirect and sys.stdout.isatty(),
            redirect_stderr=redirect,
            vertical_overflow="crop",
        )
        self._begun = False
        self._each = each
        self._failures = Failures()

    def take(self, event: Event) -> None:
        """Count *event*, without drawing."""
        self._begun = True
        self._meter.take(event)
        match event:
            case ImageDone() if self._each:
                self._lines.append(Text(image_line(event, self._console.width)))
            case ImageFailed() if self._each:
                self._lines.append(Text(image_line(event, self._console.width), _FAILURE))
            case ImageFailed() if self._failures.take(event):
                self._screen.failure(event)
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

    def close(self, *, summarized: bool = False) -> None:
        """Draw the final state, which stays, and show the cursor again.

        Args:
            summarized: the run has come to its end, and the command sums it up: leave nothing.
        """
        try:
            self._screen.closed = True
            self._live.transient = summarized
            if self._lines:
                self.tick()
            elif self._begun and not summarized:
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
        self._failed: ImageFailed | None = None
        self._title_width = 0

    def failure(self, event: ImageFailed) -> None:
        """Show *event*, the first failure of its cause, until there is another cause."""
        self._failed = event

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
        layers = len(self._meter.layers)
        shown = layers if layers <= room else max(room - 1, 0)
        yield from self._bars(self._meter.moving(shown), width, console, options)
        if shown < layers and room:
            noun = "layers" if self._meter.totals().in_flight == layers else "uploads of layers"
            yield [Segment(f"+ {layers - shown} more {noun}"[:width], _DIM)]
        yield from below[max(len(below) - height, 0) :]

    def _below(self, width: int) -> Iterator[list[Segment]]:
        totals = self._meter.totals()
        fields = closing_fields(totals) if self.closed else progress_fields(totals)
        if totals.images or totals.layers or totals.listing:
            for line in wrapped(fields, width, _TOTALS_LINES):
                yield [Segment(line, _STRONG)]
        if self.closed:
            return
        waits = [silence_text(event) for event in self._meter.silent]
        limits = [limit_text(limited) for limited in self._meter.limits]
        if limits:
            waits.append(f"limit: {'; '.join(limits)}")
        if waits:
            yield [Segment(set_cell_size("; ".join(waits), width), _DIM)]
        if self._failed is not None:
            yield self._sentence(image_line(self._failed), width, _FAILURE)
        if self._retrying is not None and self._clock() < self._retry_until:
            yield self._sentence(retry_line(self._retrying, self._meter), width, _WARNING)

    @staticmethod
    def _sentence(line: str, width: int, style: Style) -> list[Segment]:
        """The words of *line*, without its columns, as far as they fit."""
        return [Segment(set_cell_size(" ".join(line.split()), width), style)]

    def _bars(
        self, layers: Iterable[LayerProgress], width: int, console: Console, options: ConsoleOptions
    ) -> Iterator[list[Segment]]:
        now = self._clock()
        ellipsis = "..." if options.ascii_only else "…"
        shown = [(layer, printable(self._meter.name(layer))) for layer in layers]
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
    title = min(longest_title, max(width * 3 // 10, min(width * 4 // 10, 20)))
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
