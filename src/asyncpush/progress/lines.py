"""Progress as lines, text or JSON; and what all displays share: words, figures and a stream that may go away."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import TextIO

from asyncpush.errors import cause_of
from asyncpush.events import Event, ImageDone, ImageFailed, Limited, Notice, Retrying, Unanswered
from asyncpush.model import Digest
from asyncpush.progress.meter import Clock, Meter, Totals
from asyncpush.units import count_text, format_rate, rate_text, size_text, time_text


class Sink:
    """Writes to *stream* until that fails: a reader that closes the pipe (``2>&1 | head``) must not break a push."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._gone = False

    @property
    def encoding(self) -> str:
        """The encoding of the stream; UTF-8 if it has none."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write *text*, escaping characters that the encoding lacks; never raises."""
        if not self._gone:
            try:
                self._stream.write(self._encodable(text))
            except (OSError, ValueError):
                self._gone = True
        return len(text)

    def flush(self) -> None:
        """Flush the stream; never raises."""
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


#: Heartbeats come at least this much rarer than lines do: retries alone must not keep them away.
_LONGEST_SILENCE = 4

#: Width of the first column: each line begins with a status, of which "already there" is the longest.
_STATUS = 15
_OUTCOMES = {"pushed": "pushed", "present": "already there"}

#: Below this width, the line of an image has no room for columns and digest.
_NARROW = 60


@dataclass(frozen=True, slots=True)
class Field:
    """A part of the line of totals; without room, the parts with the highest ``rank`` are dropped first."""

    text: str
    rank: int


def printable(text: str) -> str:
    """*text* on one line, without control characters: names come from archives and can contain any."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def shortened(text: str, width: int, ellipsis: str) -> str:
    """*text* in at most *width* characters, without its middle, since both ends of a name matter."""
    if len(text) <= width:
        return text
    room = width - len(ellipsis)
    if room < 2:
        return text[: max(width, 0)]
    return text[: room - room // 2] + ellipsis + text[-(room // 2) :]


def image_line(event: ImageDone | ImageFailed, width: int | None = None) -> str:
    """The line for the end of an image.

    Args:
        event: the event.
        width: the columns of the screen. If the line is too long, the registry's host is dropped, then the digest; a
            reason or repository is never cut, but wraps.
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


def retry_line(event: Retrying, meter: Meter, more: int = 0) -> str:
    """The line for a request that is retried; *more* were retried since the last such line.

    It names what the request is for as far as that is known: the image, the layer and the host.
    """
    count = f", {more} more" if more else ""
    layer = meter.layers.get(event.layer)
    title = "" if layer is None else layer.title if event.image else meter.name(layer)
    subject = " ".join(filter(None, (_without_host(event.image), title)))
    details = [name for name in (subject, event.host) if name and name not in event.reason]
    reason = f"{event.reason} ({', '.join(details)})" if details else event.reason
    return (
        f"{'retrying':{_STATUS}}{event.operation} in {event.delay:.1f} s "
        f"(try {event.attempt}{count}): {printable(reason)}"
    )


def silence_text(event: Unanswered) -> str:
    """The host that does not answer, in words."""
    return f"no answer from {printable(event.host)} for {event.seconds:.0f} s"


def limit_text(event: Limited) -> str:
    """The limit that makes something wait, in words."""
    rate = f"{event.rate:.1f}".removesuffix(".0")
    if event.operation == "bandwidth":
        return f"--bandwidth {format_rate(event.rate)}"
    match event.reason:
        case "throttling":
            return f"held to {rate} {event.operation}/s by throttling ({event.throttled} so far)"
        case "quota":
            return f"{event.operation} {rate}/s (quota {event.quota:g}/s)"
        case "user":
            return f"{printable(event.operation)} {rate} requests/s (plan)"
        case "source":
            return f"{printable(event.operation)}'s limit, until {event.until}"


def progress_fields(totals: Totals) -> list[Field]:
    """The fields for a run under way."""
    fields = list(_counts(totals))
    about = "~" if totals.estimated else ""
    if totals.listing:
        fields.append(Field(size_text(totals.read), 3))
    elif totals.size:
        fields.append(Field(f"{size_text(totals.read)} of {about}{size_text(totals.size)}", 0))
        fields.append(Field(f"{totals.percent}%", 2))
    if totals.rate is not None:
        fields.append(Field(rate_text(totals.rate), 4))
    if fields:
        fields.append(Field(f"{time_text(totals.elapsed)} elapsed", 3))
    if totals.left and not totals.listing:
        fields.append(Field(f"{about}{time_text(totals.left)} left", 1))
    return [*fields, *_not_sent(totals)]


def closing_fields(totals: Totals) -> list[Field]:
    """The fields at the end of a run, with the mean rate instead of the current one."""
    fields = list(_counts(totals))
    if totals.size:
        size = size_text(totals.read)
        all_read = totals.read >= totals.size
        about = "~" if totals.estimated else ""
        fields.append(Field(size if all_read else f"{size} of {about}{size_text(totals.size)}", 0))
    fields.append(Field(f"in {time_text(totals.elapsed)}", 1))
    if totals.read and totals.elapsed > 0:
        fields.append(Field(rate_text(totals.read / totals.elapsed), 2))
    if totals.retries:
        throttled = f" ({totals.throttled} throttled)" if totals.throttled else ""
        fields.append(Field(count_text(totals.retries, "retry", "retries") + throttled, 3))
    return [*fields, *_not_sent(totals)]


def joined(fields: Sequence[Field]) -> str:
    """*fields* in one line."""
    return ", ".join(field.text for field in fields)


def wrapped(fields: Sequence[Field], width: int, most: int) -> list[str]:
    """As many of *fields* as fit into *most* lines of *width* columns."""
    kept = list(fields)
    while kept:
        lines = [""]
        for field in kept:
            line = f"{lines[-1]}, {field.text}" if lines[-1] else field.text
            lines[-1:] = [line] if len(line) <= width or not lines[-1] else [lines[-1], field.text]
        if len(lines) <= most and max(map(len, lines)) <= width:
            return lines
        kept.remove(max(kept, key=lambda field: field.rank))
    return []


def _not_sent(totals: Totals) -> Iterator[Field]:
    if totals.present_layers:
        yield Field(f"{count_text(totals.present_layers, 'layer')} already there", 5)
    if totals.shared_layers:
        yield Field(f"{totals.shared_layers} shared", 6)


def _counts(totals: Totals) -> Iterator[Field]:
    if totals.listing:
        listed, total = totals.listing
        yield Field(f"listing {listed} of {count_text(total, 'repository', 'repositories')}", 0)
        if totals.images_done:
            yield Field(f"{count_text(totals.images_done, 'image')} done", 1)
    elif totals.images > 1:
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
    """The retries of one operation: when the last line was written, and the retries since then."""

    written: float
    more: int = 0
    latest: Retrying | None = None


class Failures:
    """The first failure of each cause: the command names all at its end, which may be hours away."""

    def __init__(self) -> None:
        self._causes: set[str] = set()
        self._new: list[ImageFailed] = []

    def take(self, event: ImageFailed) -> bool:
        """Note a failure; return whether it is the first of its cause."""
        cause = cause_of(event.reason, event.destination)
        is_first = cause not in self._causes
        if is_first:
            self._causes.add(cause)
            self._new.append(event)
        return is_first

    def new(self) -> list[ImageFailed]:
        """The first failures of causes that came up since the last call."""
        new, self._new = self._new, []
        return new


class PlainDisplay:
    """Writes lines for notices and retries, a heartbeat in between, and with it the causes of new failures.

    Args:
        sink: the stream.
        images: how many images there will be; None if unknown.
        each: also write a line for each image that ends.
        interval: seconds of silence before a heartbeat, and between two lines on one operation's retries.
        clock: a clock, in seconds.
    """

    period = 0.5

    def __init__(
        self,
        sink: Sink,
        *,
        images: int | None = None,
        each: bool = False,
        interval: float = 5.0,
        clock: Clock = time.monotonic,
    ) -> None:
        self._sink = sink
        self._each = each
        self._clock = clock
        self._interval = interval
        self._meter = Meter(clock, images)
        self._retries: dict[str, _Retries] = {}
        self._failures = Failures()
        self._waited_for: set[str] = set()
        self._spoke = self._beat = clock()

    def take(self, event: Event) -> None:
        """Count *event*, and write its line, if it has one."""
        self._meter.take(event)
        match event:
            case ImageDone() | ImageFailed() if self._each:
                self._say(image_line(event))
            case ImageFailed():
                self._failures.take(event)
            case Notice():
                self._say(notice_line(event))
            case Retrying():
                self._retrying(event)
            case Unanswered() if event.host not in self._waited_for:
                self._waited_for.add(event.host)
                self._say(f"{'waiting':{_STATUS}}{silence_text(event)}")
            case _:
                pass

    def tick(self) -> None:
        """Write what is due: retries that were held back, or a heartbeat."""
        now = self._clock()
        self._waited_for.intersection_update(event.host for event in self._meter.silent)
        for retries in self._retries.values():
            if retries.latest is not None and now - retries.written >= self._interval:
                self._say(retry_line(retries.latest, self._meter, retries.more))
                retries.written, retries.more, retries.latest = now, 0, None
        if now - self._spoke >= self._interval or now - self._beat >= _LONGEST_SILENCE * self._interval:
            self._heartbeat()

    def close(self, *, summarized: bool = False) -> None:
        """Do nothing: each line is complete when it is written."""

    def _retrying(self, event: Retrying) -> None:
        retries = self._retries.get(event.operation)
        if retries is None:
            self._retries[event.operation] = _Retries(self._clock())
            self._say(retry_line(event, self._meter))
        else:
            retries.more += retries.latest is not None
            retries.latest = event

    def _heartbeat(self) -> None:
        self._beat = self._clock()
        for failure in self._failures.new():
            self._say(image_line(failure))
        totals = self._meter.totals()
        fields = progress_fields(totals)
        if totals.in_flight:
            fields.append(Field(f"{count_text(totals.in_flight, 'layer')} in flight", 0))
        fields += [Field(silence_text(event), 0) for event in self._meter.silent]
        fields += [Field(limit_text(limited), 0) for limited in self._meter.limits]
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
    return _line(name, when, {field.name: getattr(event, field.name) for field in fields(event)})


def _line(name: str, when: datetime, values: Mapping[str, object]) -> str:
    stamp = when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"type": name, "time": stamp, **values}, default=_text)


def _text(value: object) -> str:
    if isinstance(value, Digest):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


#: The totals in the last line.
_TOTALS = (
    "images",
    "images_done",
    "images_failed",
    "layers",
    "layers_done",
    "present_layers",
    "shared_layers",
    "images_present",
    "read",
    "size",
    "retries",
    "throttled",
    "elapsed",
)


class JsonDisplay:
    """Writes every event, several at a time to save system calls.

    Args:
        sink: the stream.
        now: a clock, in UTC.
        clock: a clock, in seconds.
    """

    period = 0.25

    def __init__(self, sink: Sink, *, now: Callable[[], datetime] = _utc_now, clock: Clock = time.monotonic) -> None:
        self._sink = sink
        self._now = now
        self._meter = Meter(clock)
        self._lines: list[str] = []

    def take(self, event: Event) -> None:
        """Keep *event* until the next tick."""
        self._meter.take(event)
        self._lines.append(event_line(event, self._now()))

    def tick(self) -> None:
        """Write the events since the last tick."""
        if self._lines:
            self._sink.write("\n".join(self._lines) + "\n")
            self._sink.flush()
            self._lines.clear()

    def close(self, *, summarized: bool = False) -> None:  # noqa: ARG002 - as all displays
        """Write the rest, and the totals: a reader that finds no ``end`` knows that the process was killed."""
        totals = self._meter.totals()
        self._lines.append(_line("end", self._now(), {name: getattr(totals, name) for name in _TOTALS}))
        self.tick()
