"""The inputs of a batch, read as they arrive: JSON lines, a JSON array, or a YAML array."""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from asyncpush.awscli.errors import CommandError
from asyncpush.awscli.operations import Json, Members

_BLOCK = 256 * 1024
#: The longest element of an array: a part of 20 MiB in base64, with some room.
_LONGEST = 64 * 1024 * 1024
_SPACES = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True, slots=True)
class Item:
    """One input.

    Attributes:
        number: its position, from 1.
        members: its members, or the error if it can't be read.
    """

    number: int
    members: Members | CommandError


class BatchInput:
    """Reads inputs from a file descriptor; it blocks, so call it in a worker thread.

    Args:
        descriptor: an open file, or a pipe.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._form: _Form | None = None
        self._begin = b""
        self._number = 0
        self._ended = False

    def more(self) -> list[Item]:
        """The inputs that are available, at least one; empty at the end.

        Raises:
            OSError: they can't be read.
        """
        while not self._ended:
            block = os.read(self._descriptor, _BLOCK)
            self._ended = not block
            items = [self._item(value) for value in self._values(block)]
            if items:
                return items
        return []

    def _values(self, block: bytes) -> Iterator[Json | CommandError]:
        try:
            if self._form is None:
                self._begin = (self._begin + block).removeprefix(codecs.BOM_UTF8).lstrip()
                if not self._begin:
                    return
                block, self._form = self._begin, _form_of(self._begin)
            yield from self._form.feed(block)
            if self._ended:
                yield from self._form.close()
        except (ValueError, RecursionError, CommandError) as error:
            # It is unknown where the next input begins.
            self._ended = True
            yield CommandError(f"The batch can't be read any further: {error}")

    def _item(self, value: Json | CommandError) -> Item:
        self._number += 1
        if not isinstance(value, (dict, CommandError)):
            value = CommandError(f"Invalid type: expecting map, received {type(value)}")
        return Item(self._number, value)


class _Form(Protocol):
    """A format for many inputs."""

    def feed(self, block: bytes) -> Iterator[Json | CommandError]:
        """The inputs that *block* completes."""
        ...

    def close(self) -> Iterator[Json | CommandError]:
        """The inputs that the end of the file completes."""
        ...


def _form_of(begin: bytes) -> _Form:
    return _Lines() if begin.startswith(b"{") else _Array() if begin.startswith(b"[") else _Yaml()


class _Lines:
    """JSON lines; the next line is read even if one is invalid."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, block: bytes) -> Iterator[Json | CommandError]:
        *lines, self._rest = (self._rest + block).split(b"\n")
        for line in lines:
            yield from self._line(line)

    def close(self) -> Iterator[Json | CommandError]:
        yield from self._line(self._rest)

    def _line(self, line: bytes) -> Iterator[Json | CommandError]:
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                yield CommandError(f"Invalid JSON received: {error}")


class _Array:
    """A JSON array, parsed element by element."""

    def __init__(self) -> None:
        self._decoder = json.JSONDecoder()
        self._to_text = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._wanted: Literal["begin", "first", "element", "next", "nothing"] = "begin"
        self._enough = 0

    def feed(self, block: bytes) -> Iterator[Json | CommandError]:
        self._text += self._to_text.decode(block)
        # An incomplete element is parsed again only when there is twice as much text.
        if len(self._text) >= self._enough:
            yield from self._elements()
            if len(self._text) > _LONGEST:
                raise ValueError("an element is too long, or is not JSON")

    def close(self) -> Iterator[Json | CommandError]:
        self._to_text.decode(b"", final=True)
        yield from self._elements()
        if self._wanted != "nothing":
            raise ValueError("the array does not end, or something in it is not JSON")

    def _elements(self) -> Iterator[Json | CommandError]:
        at = 0
        while (at := _skip(self._text, at)) < len(self._text):
            if self._takes_sign(self._text[at]):
                at += 1
                continue
            try:
                value, at = self._decoder.raw_decode(self._text, at)
            except json.JSONDecodeError:
                break
            self._wanted = "next"
            yield value
        self._text = self._text[at:]
        self._enough = 2 * len(self._text)

    def _takes_sign(self, sign: str) -> bool:
        """Whether *sign* belongs to the array itself, not to an element."""
        match self._wanted, sign:
            case "begin", "[":
                self._wanted = "first"
            case "next", ",":
                self._wanted = "element"
            case (("next" | "first"), "]"):
                self._wanted = "nothing"
            case (("next" | "nothing"), _):
                raise ValueError(f"{sign!r} is where a comma or the end should be")
            case _:
                return False
        return True


class _Yaml:
    """A YAML array; all of its text is read before the first element is available."""

    def __init__(self) -> None:
        self._blocks: list[bytes] = []

    def feed(self, block: bytes) -> Iterator[Json | CommandError]:
        self._blocks.append(block)
        yield from ()

    def close(self) -> Iterator[Json | CommandError]:
        import yaml

        try:
            loader = yaml.SafeLoader(b"".join(self._blocks))
            while loader.check_event(yaml.StreamStartEvent, yaml.DocumentStartEvent):
                loader.get_event()
            if not loader.check_event(yaml.SequenceStartEvent):
                raise ValueError("it is neither JSON lines nor an array")
            loader.get_event()
            while not loader.check_event(yaml.SequenceEndEvent):
                yield loader.construct_document(loader.compose_node(None, 0))
        except yaml.YAMLError as error:
            raise ValueError(" ".join(str(error).split())) from error


def _skip(text: str, at: int) -> int:
    found = _SPACES.match(text, at)
    return found.end() if found else at
