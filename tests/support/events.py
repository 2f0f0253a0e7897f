"""Events that a test collects."""

from __future__ import annotations

from typing import Any

from asyncpush.events import Event


class Events(list[Event]):
    """An ``Emit`` that collects events."""

    def __call__(self, event: Event) -> None:
        self.append(event)

    def of(self, kind: type) -> list[Any]:
        """The events of one kind."""
        return [event for event in self if isinstance(event, kind)]
