"""The aws CLI's shorthand: ``key=value,key=[a,b],key={inner=value}`` in place of JSON."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from asyncpush.awscli.operations import Json, Members

_KEY = re.compile(r"[A-Za-z0-9_.#/:-]*")
_SPACES = re.compile(r"\s*")
_QUOTED = {"'": re.compile(r"'(?:\\'|[^'])*'"), '"': re.compile(r'"(?:\\"|[^"])*"')}
_NAMES = {"'": "singled quoted", '"': "double quoted"}
_START = r"(?:\\,|[^\s\"',=\[{])"
#: A value may hold ``=``; not where it follows a comma, as it could be the next key.
_FIRST = re.compile(_START + r"(?:\\,|[^\"',\]}])*")
_SECOND = re.compile(_START + r"(?:\\,|[^\"',=])*")


class ShorthandError(ValueError):
    """Raised when text is no shorthand; the message shows where."""


def parse_shorthand(text: str, read_file: Callable[[str], Json]) -> Members:
    """Read one structure.

    Args:
        text: such as ``imageTag=latest``.
        read_file: what a value after ``@=`` stands for.

    Raises:
        ShorthandError: it is none.
    """
    return _Reader(text, read_file).structure()


def fit(value: Json, shape: Any) -> Json:
    """Give *value*, all text, the types of *shape*: numbers, booleans, and a list where one element was written."""
    kind = shape.type_name
    if kind == "structure" and isinstance(value, dict):
        known = shape.members
        return {key: fit(inner, known[key]) if key in known else inner for key, inner in value.items()}
    if kind == "list":
        return [fit(each, shape.member) for each in (value if isinstance(value, list) else [value])]
    if kind in ("integer", "long") and isinstance(value, str):
        return int(value)
    if kind == "boolean" and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    return value


class _Reader:
    def __init__(self, text: str, read_file: Callable[[str], Json]) -> None:
        self._text = text
        self._at = 0
        self._read_file = read_file
        self._from_file = False

    def structure(self) -> Members:
        members: Members = {}
        while True:
            begin = self._at
            key = self._key()
            if key in members:
                raise ShorthandError(
                    f'Second instance of key "{key}" encountered for input:\n{self._show(begin)}\n'
                    'This is often because there is a preceding "," instead of a space.'
                )
            members[key] = self._values()
            if self._at >= len(self._text):
                return members
            self._expect(",", spaces=True)

    def _key(self) -> str:
        key = self._match(_KEY)
        self._skip()
        self._from_file = self._current == "@"
        self._at += self._from_file
        self._expect("=", spaces=True)
        return key

    def _values(self) -> Json:
        return self._nested() if self._current in ("[", "{") else self._comma_separated()

    def _nested(self) -> Json:
        if self._current == "[":
            return self._list()
        return self._braces() if self._current == "{" else self._value(_FIRST)

    def _list(self) -> list[Json]:
        self._expect("[", spaces=True)
        values: list[Json] = []
        while self._current != "]":
            values.append(self._nested())
            self._separate("]")
        self._at += 1
        return values

    def _braces(self) -> Members:
        self._expect("{", spaces=True)
        members: Members = {}
        while self._current != "}":
            key = self._key()
            members[key] = self._nested()
            self._separate("}")
        self._at += 1
        return members

    def _separate(self, end: str) -> None:
        self._skip()
        if self._current != end:
            self._expect(",")
            self._skip()

    def _comma_separated(self) -> Json:
        """One value, or several; what turns out to be the next key is given back."""
        values = [self._value(_FIRST)]
        self._skip()
        while self._current == ",":
            comma = self._at
            self._expect(",", spaces=True)
            try:
                value = self._value(_SECOND)
                self._skip()
                if self._current not in (",", ""):
                    self._expect(",")
            except ShorthandError:
                if self._at >= len(self._text):
                    raise
                self._at = comma
                break
            values.append(value)
        return values[0] if len(values) == 1 else values

    def _value(self, pattern: re.Pattern[str]) -> Json:
        quote = self._current
        if quote in _QUOTED:
            quoted = self._match(_QUOTED[quote], _NAMES[quote])[1:-1]
            text = quoted.replace(f"\\{quote}", quote).replace("\\\\", "\\")
        else:
            # An empty value is one where a key has just been read; behind a comma there must be something.
            text = self._match(pattern, None if pattern is _FIRST else "second").replace("\\,", ",").rstrip()
        return self._read_file(text) if self._from_file else text

    @property
    def _current(self) -> str:
        return self._text[self._at : self._at + 1]

    def _skip(self) -> None:
        self._match(_SPACES)

    def _match(self, pattern: re.Pattern[str], wanted: str | None = None) -> str:
        found = pattern.match(self._text, self._at)
        if found is None:
            if wanted is None:
                return ""
            raise self._unexpected(f"<{wanted}>", "<none>")
        self._at = found.end()
        return found[0]

    def _expect(self, char: str, *, spaces: bool = False) -> None:
        if spaces:
            self._skip()
        if self._current != char:
            raise self._unexpected(char, self._current or "EOF")
        self._at += 1
        if spaces:
            self._skip()

    def _unexpected(self, wanted: str, found: str) -> ShorthandError:
        return ShorthandError(f"Expected: '{wanted}', received: '{found}' for input:\n{self._show(self._at)}")

    def _show(self, at: int) -> str:
        line_begin = self._text.rfind("\n", 0, at) + 1
        line_end = self._text.find("\n", at)
        if line_end < 0:
            line_end = len(self._text)
        return f"{self._text[:line_end]}\n{' ' * (at - line_begin)}^{self._text[line_end:]}"
