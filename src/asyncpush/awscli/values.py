"""The values of options: text, numbers, lists, structures and blobs, and files that contain them."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from asyncpush import open_files
from asyncpush.awscli.errors import CommandError, ParameterError
from asyncpush.awscli.operations import Json, Members, Option
from asyncpush.files import read_small

_TEXT_FILE, _BYTES_FILE = "file://", "fileb://"
_SHOWN = 100

#: Bytes of the longest file: the largest part of a layer is 20 MiB, and a document contains it in base64.
_LONGEST = 64 * 1024 * 1024
#: Seconds after which reading a pipe fails.
PIPE_TIMEOUT = 600.0


def read_value(option: Option, words: str | list[str]) -> Json:
    """The value of *option*, given as *words*; blocks while files are read.

    Raises:
        ParameterError: it is invalid, or a file can't be read.
    """
    try:
        if option.shape.type_name == "list":
            return _list(option, [words] if isinstance(words, str) else words)
        assert isinstance(words, str), "only lists take several words"  # noqa: S101
        text = read_file(option.name, words)
        return _one(option.name, option.shape, words if text is None else text)
    except ShorthandError as error:
        raise ParameterError(option.name, str(error)) from error


def read_file(option: str, word: str) -> str | bytes | None:
    """The content of the file that *word* names: text for ``file://``, bytes for ``fileb://``; None if it names none.

    Unlike in the aws CLI, text keeps its line endings, since the digest of a manifest depends on them.

    Raises:
        ParameterError: it can't be read.
    """
    prefix = next((known for known in (_TEXT_FILE, _BYTES_FILE) if word.startswith(known)), None)
    if prefix is None:
        return None
    path = Path(os.path.expandvars(os.path.expanduser(word.removeprefix(prefix))))  # noqa: PTH111 - before $VARS
    try:
        raw = read_small(path, _LONGEST, seconds=PIPE_TIMEOUT)
        return raw if prefix == _BYTES_FILE else raw.decode()
    except UnicodeDecodeError as error:
        reason = (
            f"Unable to load paramfile ({path}), text contents could not be decoded.  "
            "If this is a binary file, please use the fileb:// prefix instead of the file:// prefix."
        )
        raise ParameterError(option, reason) from error
    except (OSError, ValueError) as error:
        raise ParameterError(
            option, f"Unable to load paramfile {word}: {open_files.shortage(error) or error}"
        ) from error


def read_document(option: str, word: str) -> str:
    """The text of a document: *word* itself, the file that it names, or standard input for ``-``.

    Raises:
        ParameterError: it can't be read.
    """
    try:
        found = sys.stdin.buffer.read(_LONGEST + 1) if word == "-" else read_file(option, word)
        if word == "-" and found and len(found) > _LONGEST:
            raise ParameterError(option, f"Unable to read standard input: it has more than {_LONGEST} bytes")
        text = word if found is None else found
        return text.decode() if isinstance(text, bytes) else text
    except (OSError, UnicodeDecodeError) as error:
        raise ParameterError(option, f"Unable to read standard input: {error}") from error


def decode_blobs(value: Json, shape: Any, binary_format: str, *, files: bool = False) -> Json:
    """*value* with blobs as bytes; unless they came from ``fileb://``, they are base64 or raw text.

    Args:
        value: the value.
        shape: its shape.
        binary_format: ``base64`` or ``raw-in-base64-out``.
        files: whether a blob can be ``fileb://PATH``; this blocks then.

    Raises:
        CommandError: one is not base64, or its file can't be read.
    """
    if shape.type_name == "structure" and isinstance(value, dict):
        known = shape.members
        return {
            key: decode_blobs(inner, known[key], binary_format, files=files) if key in known else inner
            for key, inner in value.items()
        }
    if shape.type_name == "list" and isinstance(value, list):
        return [decode_blobs(inner, shape.member, binary_format, files=files) for inner in value]
    if shape.type_name == "blob" and isinstance(value, str):
        if files and value.startswith(_BYTES_FILE):
            return read_file("--batch", value)
        if binary_format != "base64":
            return value.encode()
        try:
            return base64.b64decode(value)
        except (binascii.Error, ValueError) as error:
            raise CommandError(f'Invalid base64: "{value[:_SHOWN]}"') from error
    return value


def _list(option: Option, words: list[str]) -> Json:
    """A list: a JSON array, or one word for each element; a file can contain the array, or one element on each line.

    The aws CLI splits such lines into characters, and uses the names of files among other words literally.
    """
    texts = [read_file(option.name, word) for word in words]
    decoded = [text.decode(errors="replace") if isinstance(text, bytes) else text for text in texts]
    if len(words) == 1 and (only := words[0] if decoded[0] is None else decoded[0]).lstrip().startswith("["):
        return _json(option.name, only)
    elements: list[str] = []
    for word, text in zip(words, decoded, strict=True):
        elements += [word] if text is None else [line.strip() for line in text.splitlines() if line.strip()]
    return [_one(option.name, option.shape.member, element) for element in elements]


def _one(option: str, shape: Any, value: str | bytes) -> Json:
    kind = shape.type_name
    if isinstance(value, bytes):
        # fileb:// is for blobs; botocore refuses it for other types.
        return value
    if kind in ("structure", "list"):
        if value.lstrip()[:1] in ("{", "["):
            return _json(option, value)
        return fit(parse_shorthand(value, partial(_shorthand_file, option)), shape)
    if kind in ("integer", "long"):
        try:
            return int(value)
        except ValueError as error:
            raise ParameterError(option, str(error)) from error
    return value


def _shorthand_file(option: str, word: str) -> Json:
    text = read_file(option, word)
    return word if text is None else text


def _json(option: str, text: str) -> Json:
    try:
        value: Json = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ParameterError(option, f"Invalid JSON: {error}\nJSON received: {text[:1000]}") from error
    return value


_KEY = re.compile(r"[A-Za-z0-9_.#/:-]*")
_SPACES = re.compile(r"\s*")
_QUOTED = {"'": re.compile(r"'(?:\\'|[^'])*'"), '"': re.compile(r'"(?:\\"|[^"])*"')}
_NAMES = {"'": "singled quoted", '"': "double quoted"}
_START = r"(?:\\,|[^\s\"',=\[{])"
#: A value can contain ``=``, but not after a comma, where it could be the next key.
_FIRST = re.compile(_START + r"(?:\\,|[^\"',\]}])*")
_SECOND = re.compile(_START + r"(?:\\,|[^\"',=])*")


class ShorthandError(ValueError):
    """Raised when text is not valid shorthand; the message shows the position."""


def parse_shorthand(text: str, read_file: Callable[[str], Json]) -> Members:
    """Parse one structure.

    Args:
        text: such as ``imageTag=latest``.
        read_file: reads the file that a value after ``@=`` names.

    Raises:
        ShorthandError: *text* is invalid.
    """
    return _ShorthandParser(text, read_file).structure()


def fit(value: Json, shape: Any) -> Json:
    """Convert *value*, which is all text, to the types of *shape*: numbers, booleans, and lists of one element."""
    kind = shape.type_name
    if kind == "structure" and isinstance(value, dict):
        known = shape.members
        return {key: fit(inner, known[key]) if key in known else inner for key, inner in value.items()}
    if kind == "list":
        return [fit(inner, shape.member) for inner in (value if isinstance(value, list) else [value])]
    if kind in ("integer", "long") and isinstance(value, str):
        return int(value)
    if kind == "boolean" and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    return value


class _ShorthandParser:
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
        """One value or several; stops before what turns out to be the next key."""
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
            # After a key, the value can be empty; after a comma, it can't.
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
