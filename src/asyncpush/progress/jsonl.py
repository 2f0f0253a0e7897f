"""Progress as one JSON object a line, for programs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime

from asyncpush.events import Event
from asyncpush.model import Digest
from asyncpush.progress.sink import Sink

_INNER_CAPITAL = re.compile(r"(?<!^)(?=[A-Z])")


def _utc_now() -> datetime:
    return datetime.now(UTC)


def event_line(event: Event, when: datetime) -> str:
    """*event* as a JSON object: ``type`` (``part-sent``), ``time`` (ISO 8601, UTC, milliseconds), then its own fields.

    Sizes are bytes, times seconds, digests ``sha256:<hex>``. The text is ASCII, without a line break.
    """
    name = _INNER_CAPITAL.sub("-", type(event).__name__).lower()
    time = when.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    values = {field: getattr(event, field) for field in (each.name for each in fields(event))}
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
