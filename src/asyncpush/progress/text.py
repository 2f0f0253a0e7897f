"""How events read on a screen or in a log: plain words, aligned from line to line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from asyncpush.events import ImageDone, ImageFailed, Notice, Retrying
from asyncpush.progress.meter import Totals
from asyncpush.units import rate_text, size_text, time_text

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
