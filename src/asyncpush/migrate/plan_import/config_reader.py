"""Reads another tool's configuration: checks the types of members, and reports members that were not read."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from asyncpush.errors import UsageError
from asyncpush.migrate.plan.diagnostics import member
from asyncpush.migrate.plan.yaml_loader import RawScalar, Value

Warn = Callable[[str], None]


class ConfigReader:
    """A mapping of another tool's configuration; each method raises UsageError for a member of a wrong type.

    If a selection of tags can't be read, its whole part is left out, so that never more tags are imported than meant.

    Args:
        value: the mapping.
        place: its place in the configuration.
        warn: takes notes on what can't be imported.

    Raises:
        UsageError: *value* is not a mapping.
    """

    def __init__(self, value: Value, place: str, warn: Warn) -> None:
        if not isinstance(value, dict):
            raise UsageError(f"{place or 'the document'} is not a mapping")
        self._value = value
        self._place = place
        self._warn = warn
        self._unread = dict.fromkeys(value)

    def __contains__(self, key: str) -> bool:
        return self._value.get(key) is not None

    def place(self, key: str) -> str:
        """The place of a member."""
        return member(self._place, key)

    def value(self, key: str) -> Value:
        """A value of any type; None if it is missing."""
        self._unread.pop(key, None)
        return self._value.get(key)

    def text(self, key: str) -> str | None:
        """A text, as it is written; None if it is missing."""
        value = self.value(key)
        if value is None or isinstance(value, str):
            return None if value is None else str(value)
        raise self._wrong(key, "text")

    def texts(self, key: str) -> list[str]:
        """A list of texts, or one text."""
        value = self.value(key)
        if value is None or isinstance(value, str):
            return [] if value is None else [str(value)]
        if isinstance(value, list) and all(isinstance(text, str) for text in value):
            return [str(text) for text in value]
        raise self._wrong(key, "a list of texts")

    def flag(self, key: str) -> bool | None:
        """A boolean; None if it is missing."""
        value = self.value(key)
        if value is None:
            return None
        if isinstance(value, str) and value.lower() in ("true", "yes", "on", "false", "no", "off"):
            return value.lower() in ("true", "yes", "on")
        raise self._wrong(key, "true or false")

    def number(self, key: str) -> int | None:
        """A number of at least 1; None if it is missing, or 0."""
        value = self.value(key)
        if value is None:
            return None
        if isinstance(value, RawScalar) and value.isdecimal() and len(value) < 10:
            return int(value) or None
        raise self._wrong(key, "a number")

    def mapping(self, key: str) -> ConfigReader | None:
        """A mapping; None if it is missing."""
        value = self.value(key)
        if value is None or isinstance(value, dict):
            return None if value is None else ConfigReader(value, self.place(key), self._warn)
        raise self._wrong(key, "a mapping")

    def names(self) -> list[str]:
        """The keys that were not read yet."""
        return list(self._unread)

    def members(self) -> Iterator[tuple[str, Value]]:
        """All members that were not read yet."""
        for key in self.names():
            yield key, self.value(key)

    def items(self, key: str) -> Iterator[tuple[str, Value]]:
        """The places and values of a list."""
        value = self.value(key)
        if value is not None and not isinstance(value, list):
            raise self._wrong(key, "a list")
        for at, each in enumerate(value if isinstance(value, list) else []):
            yield f"{self.place(key)}[{at}]", each

    def drop(self, *keys: str) -> None:
        """Ignore members that have no meaning for a single migration."""
        for key in keys:
            self._unread.pop(key, None)

    def finish(self) -> None:
        """Warn what was not taken."""
        for key in self._unread:
            self._warn(f"{self.place(key)} can't be imported")

    def refuse(self) -> None:
        """Check that all members were read, where an unknown one could mean fewer tags.

        Raises:
            UsageError: one was not read.
        """
        for key in self._unread:
            raise UsageError(f"{self.place(key)} is not understood")

    def _wrong(self, key: str, wanted: str) -> UsageError:
        return UsageError(f"{self.place(key)} is not {wanted}")
