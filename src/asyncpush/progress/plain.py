"""Progress as lines of plain text, for logs and pipes."""

from __future__ import annotations

import time
from dataclasses import dataclass

from asyncpush.events import Event, ImageDone, ImageFailed, Notice, Retrying
from asyncpush.progress.meter import Clock, Meter
from asyncpush.progress.sink import Sink
from asyncpush.progress.text import Field, image_line, joined, notice_line, progress_fields, retry_line


@dataclass(slots=True)
class _Retries:
    """The retries of one operation: when the last line about them was written, and what has happened since."""

    written: float
    more: int = 0
    latest: Retrying | None = None


class PlainFace:
    """A line for each image that ends, for notices and retries, and a heartbeat while there is nothing else to say.

    Args:
        sink: where the lines go.
        images: how many images there will be; None if unknown.
        interval: seconds of silence before a heartbeat, and between two lines on one operation's retries.
        clock: seconds from any beginning.
    """

    period = 0.5

    def __init__(
        self, sink: Sink, *, images: int | None = None, interval: float = 5.0, clock: Clock = time.monotonic
    ) -> None:
        self._sink = sink
        self._clock = clock
        self._interval = interval
        self._meter = Meter(clock, images)
        self._retries: dict[str, _Retries] = {}
        self._spoke = clock()

    def take(self, event: Event) -> None:
        """Count *event*, and write its line if it has one."""
        self._meter.take(event)
        match event:
            case ImageDone() | ImageFailed():
                self._say(image_line(event))
            case Notice():
                self._say(notice_line(event))
            case Retrying():
                self._retrying(event)
            case _:
                pass

    def tick(self) -> None:
        """Write what has become due: retries held back, a heartbeat."""
        now = self._clock()
        for retries in self._retries.values():
            if retries.latest is not None and now - retries.written >= self._interval:
                self._say(retry_line(retries.latest, retries.more))
                retries.written, retries.more, retries.latest = now, 0, None
        if now - self._spoke >= self._interval:
            self._heartbeat()

    def close(self) -> None:
        """Do nothing: each line was complete when it was written."""

    def _retrying(self, event: Retrying) -> None:
        retries = self._retries.get(event.operation)
        if retries is None:
            self._retries[event.operation] = _Retries(self._clock())
            self._say(retry_line(event))
        else:
            retries.more += retries.latest is not None
            retries.latest = event

    def _heartbeat(self) -> None:
        totals = self._meter.totals()
        fields = progress_fields(totals)
        if totals.in_flight:
            fields.append(Field(f"{totals.in_flight} layer{'s' if totals.in_flight != 1 else ''} in flight", 0))
        if totals.present_layers:
            fields.append(Field(f"{totals.present_layers} already there", 0))
        if fields:
            self._say("  " + joined(fields))

    def _say(self, line: str) -> None:
        self._sink.write(line + "\n")
        self._sink.flush()
        self._spoke = self._clock()
