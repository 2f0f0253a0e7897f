"""Another tool's document: what is asked for is taken, of the type that it must have; what is left is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from asyncpush.errors import UsageError
from asyncpush.migrate.plan.diagnostics import member
from asyncpush.migrate.plan.yaml_loader import RawScalar, Value

Say = Callable[[str], None]


class ConfigReader:
    """A mapping of another tool's document; each method raises UsageError for a member of a wrong type.

    Where what selects tags can't be read, all of its part is left out: fewer tags than meant is never more.

    Args:
        value: the mapping.
        place: where it is in the document.
        say: hears what can't be imported.

    Raises:
        UsageError: *value* is not a mapping.
    """

    def __init__(self, value: Value, place: str, say: Say) -> None:
        if not isinstance(value, dict):
            raise UsageError(f"{place or 'the document'} is not a mapping")
        self._value = value
        self._place = place
        self._say = say
        self._left = dict.fromkeys(value)

    def __contains__(self, key: str) -> bool:
        return self._value.get(key) is not None

    def place(self, key: str) -> str:
        """The place of a member."""
        return member(self._place, key)

    def value(self, key: str) -> Value:
        """Any value; None if there is none."""
        self._left.pop(key, None)
        return self._value.get(key)

    def text(self, key: str) -> str | None:
        """A text, as it is written; None if there is none."""
        value = self.value(key)
        if value is None or isinstance(value, str):
            return None if value is None else str(value)
        raise self._wrong(key, "text")

    def texts(self, key: str) -> list[str]:
        """Texts, of which there may be one without a list; None among them is left out."""
        value = self.value(key)
        if value is None or isinstance(value, str):
            return [] if value is None else [str(value)]
        if isinstance(value, list) and all(isinstance(text, str) for text in value):
            return [str(text) for text in value]
        raise self._wrong(key, "a list of texts")

    def flag(self, key: str) -> bool | None:
        """Yes or no; None if there is neither."""
        value = self.value(key)
        if value is None:
            return None
        if isinstance(value, str) and value.lower() in ("true", "yes", "on", "false", "no", "off"):
            return value.lower() in ("true", "yes", "on")
        raise self._wrong(key, "true or false")

    def number(self, key: str) -> int | None:
        """A number from 1 on; None if there is none, or 0."""
        value = self.value(key)
        if value is None:
            return None
        if isinstance(value, RawScalar) and value.isdecimal() and len(value) < 10:
            return int(value) or None
        raise self._wrong(key, "a number")

    def mapping(self, key: str) -> ConfigReader | None:
        """A mapping; None if there is none."""
        value = self.value(key)
        if value is None or isinstance(value, dict):
            return None if value is None else ConfigReader(value, self.place(key), self._say)
        raise self._wrong(key, "a mapping")

    def names(self) -> list[str]:
        """The keys of its members that were not taken yet."""
        return list(self._left)

    def members(self) -> Iterator[tuple[str, Value]]:
        """All of its members that were not taken yet."""
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
        """Members that mean nothing in a migration that runs once."""
        for key in keys:
            self._left.pop(key, None)

    def finish(self) -> None:
        """Say what was not taken."""
        for key in self._left:
            self._say(f"{self.place(key)} can't be imported")

    def refuse(self) -> None:
        """See that all was taken, where what is not understood could mean fewer tags.

        Raises:
            UsageError: something was not.
        """
        for key in self._left:
            raise UsageError(f"{self.place(key)} is not understood")

    def _wrong(self, key: str, wanted: str) -> UsageError:
        return UsageError(f"{self.place(key)} is not {wanted}")
