"""Progress as lines, text or JSON; and what all displays share: words, figures and a stream that may go away."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import TextIO

from asyncpush.events import Event, ImageDone, ImageFailed, Notice, Retrying
from asyncpush.model import Digest
from asyncpush.progress.meter import Clock, Meter, Totals
from asyncpush.units import rate_text, size_text, time_text


class Sink:
    """Writes to *stream* until that fails. A reader who leaves (``2>&1 | head``) must not break a push."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._gone = False

    @property
    def encoding(self) -> str:
        """The stream's encoding; UTF-8 where it has none."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write *text*; letters that the stream's encoding lacks are escaped. Never raises."""
        if not self._gone:
            try:
                self._stream.write(self._encodable(text))
            except (OSError, ValueError):
                self._gone = True
        return len(text)

    def flush(self) -> None:
        """Hand on what was written. Never raises."""
        if not self._gone:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._gone = True

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        try:
            return self._stream.isatty()
        except (OSError, ValueError):
            return False

    def fileno(self) -> int:
        """The stream's file descriptor.

        Raises:
            OSError: it has none.
        """
        return self._stream.fileno()

    def _encodable(self, text: str) -> str:
        return text.encode(self.encoding, "backslashreplace").decode(self.encoding)


#: Every line begins with what happened, in a column as wide as "already there" and two spaces.
_STATUS = 15
_OUTCOMES = {"pushed": "pushed", "present": "already there"}

#: Below this width, a line about an image has no room for columns and digest.
_NARROW = 60


@dataclass(frozen=True, slots=True)
class Field:
    """A part of the line of totals; where there is no room, those with the highest ``rank`` go first."""

    text: str
    rank: int


def printable(text: str) -> str:
    """*text* on one line, and harmless: names come from archives, and may hold what moves a cursor."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def shortened(text: str, width: int, ellipsis: str) -> str:
    """*text* in at most *width* letters, its middle left out: both ends of a name tell it from others."""
    if len(text) <= width:
        return text
    room = width - len(ellipsis)
    if room < 2:
        return text[: max(width, 0)]
    return text[: room - room // 2] + ellipsis + text[-(room // 2) :]


def image_line(event: ImageDone | ImageFailed, width: int | None = None) -> str:
    """The line that says how an image ended.

    Args:
        event: the image's end.
        width: the screen's, in columns. What does not fit drops the registry's host, then the digest; the rest is
            left to wrap, since a reason or a repository cut short helps nobody.
    """
    if isinstance(event, ImageDone):
        status, digest, rest = _OUTCOMES[event.outcome], event.digest.short, ""
    else:
        status, digest, rest = "failed", "", f": {event.reason}"
    name, short_name = printable(event.destination), _without_host(printable(event.destination))
    rest = printable(rest)
    if width is not None and width < _NARROW:
        return f"{status}  {short_name}{rest}"
    line = f"{status:{_STATUS}}{digest:14}{name}{rest}"
    return line if width is None or len(line) <= width else f"{status:{_STATUS}}{digest:14}{short_name}{rest}"


def notice_line(event: Notice) -> str:
    """The line for a notice."""
    return f"{'note':{_STATUS}}{printable(event.text)}"


def retry_line(event: Retrying, more: int = 0) -> str:
    """The line for a request that will be sent again; *more* were so since the last such line."""
    count = f", {more} more" if more else ""
    return (
        f"{'retrying':{_STATUS}}{event.operation} in {event.delay:.1f} s "
        f"(try {event.attempt}{count}): {printable(event.reason)}"
    )


def progress_fields(totals: Totals) -> list[Field]:
    """What there is to say about a run under way."""
    fields = list(_counts(totals))
    about = "~" if totals.estimated else ""
    if totals.size:
        fields.append(Field(f"{size_text(totals.read)} of {about}{size_text(totals.size)}", 0))
    if totals.rate is not None:
        fields.append(Field(rate_text(totals.rate), 2))
    if totals.left is not None and totals.read < totals.size:
        fields.append(Field(f"{about}{time_text(totals.left)} left", 1))
    return fields


def closing_fields(totals: Totals) -> list[Field]:
    """What there is to say once nothing more will happen: the mean rate in place of the latest."""
    fields = list(_counts(totals))
    if totals.size:
        size = size_text(totals.read)
        all_read = totals.read >= totals.size
        about = "~" if totals.estimated else ""
        fields.append(Field(size if all_read else f"{size} of {about}{size_text(totals.size)}", 0))
    fields.append(Field(f"in {time_text(totals.elapsed)}", 1))
    if totals.read and totals.elapsed > 0:
        fields.append(Field(rate_text(totals.read / totals.elapsed), 2))
    return fields


def joined(fields: Sequence[Field], width: int | None = None) -> str:
    """*fields* in one line, as many of them as *width* has room for."""
    kept = list(fields)
    while kept:
        line = ", ".join(field.text for field in kept)
        if width is None or len(line) <= width:
            return line
        kept.remove(max(kept, key=lambda field: field.rank))
    return ""


def _counts(totals: Totals) -> Iterator[Field]:
    if totals.images > 1:
        yield Field(f"{totals.images_done}/{totals.images} images", 3)
    elif totals.layers:
        yield Field(f"{totals.layers_done}/{totals.layers} layers", 3)
    if totals.images_failed:
        yield Field(f"{totals.images_failed} failed", 2)


def _without_host(destination: str) -> str:
    host, slash, name = destination.partition("/")
    return name if slash and ("." in host or ":" in host) else destination


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


_INNER_CAPITAL = re.compile(r"(?<!^)(?=[A-Z])")


def _utc_now() -> datetime:
    return datetime.now(UTC)


def event_line(event: Event, when: datetime) -> str:
    """*event* as a JSON object: ``type`` (``part-sent``), ``time`` (ISO 8601, UTC, milliseconds), then its own fields.

    Sizes are bytes, times seconds, digests ``sha256:<hex>``. The text is ASCII, without a line break.
    """
    name = _INNER_CAPITAL.sub("-", type(event).__name__).lower()
    time = when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    values = {field.name: getattr(event, field.name) for field in fields(event)}
    return json.dumps({"type": name, "time": time, **values}, default=_text)


def _text(value: object) -> str:
    if isinstance(value, Digest):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


class JsonFace:
    """Writes every event, several at a time, so that the event loop makes few system calls.

    Args:
        sink: where the lines go.
        now: the time, in UTC.
    """

    period = 0.25

    def __init__(self, sink: Sink, *, now: Callable[[], datetime] = _utc_now) -> None:
        self._sink = sink
        self._now = now
        self._lines: list[str] = []

    def take(self, event: Event) -> None:
        """Keep *event* for the next writing."""
        self._lines.append(event_line(event, self._now()))

    def tick(self) -> None:
        """Write what was kept."""
        if self._lines:
            self._sink.write("\n".join(self._lines) + "\n")
            self._sink.flush()
            self._lines.clear()

    def close(self) -> None:
        """Write the rest."""
        self.tick()
