"""The inputs of a batch, as they come: JSON lines, a JSON array, or a YAML array; no more of them than is at hand."""

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
#: The longest element of an array: a part of 20 MiB as base64, and room.
_LONGEST = 64 * 1024 * 1024
_SPACES = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True, slots=True)
class Item:
    """One input.

    Attributes:
        number: its place, from 1.
        members: what is in it; an error where it can't be read.
    """

    number: int
    members: Members | CommandError


class BatchInput:
    """Reads inputs from a file descriptor; its method blocks, so it runs in a worker thread.

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
        """The inputs that are at hand, at least one; none at the end.

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
        except (ValueError, CommandError) as error:
            # Nothing tells where the next one begins.
            self._ended = True
            yield CommandError(f"The batch can't be read any further: {error}")

    def _item(self, value: Json | CommandError) -> Item:
        self._number += 1
        if not isinstance(value, (dict, CommandError)):
            value = CommandError(f"Invalid type: expecting map, received {type(value)}")
        return Item(self._number, value)


class _Form(Protocol):
    """A way to write many inputs."""

    def feed(self, block: bytes) -> Iterator[Json | CommandError]:
        """Those that *block* completes."""
        ...

    def close(self) -> Iterator[Json | CommandError]:
        """Those that the end completes."""
        ...


def _form_of(begin: bytes) -> _Form:
    return _Lines() if begin.startswith(b"{") else _Array() if begin.startswith(b"[") else _Yaml()


class _Lines:
    """JSON lines: one that can't be read does not hide the next."""

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
            except ValueError as error:
                yield CommandError(f"Invalid JSON received: {error}")


class _Array:
    """A JSON array, taken element by element."""

    def __init__(self) -> None:
        self._decoder = json.JSONDecoder()
        self._to_text = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._wanted: Literal["begin", "first", "element", "next", "nothing"] = "begin"
        self._enough = 0

    def feed(self, block: bytes) -> Iterator[Json | CommandError]:
        self._text += self._to_text.decode(block)
        # What is not whole is tried again only once there is twice as much of it.
        if len(self._text) >= self._enough:
            yield from self._elements()
            if len(self._text) > _LONGEST:
                raise ValueError("an element is too long, or no JSON")

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
        """Whether *sign* is the array's own, not the beginning of an element."""
        match self._wanted, sign:
            case "begin", "[":
                self._wanted = "first"
            case "next", ",":
                self._wanted = "element"
            case (("next" | "first"), "]"):
                self._wanted = "nothing"
            case (("next" | "nothing"), _):
                raise ValueError(f"{sign!r} is where there should be a comma or an end")
            case _:
                return False
        return True


class _Yaml:
    """A YAML array; all of its text is read before the first element is there."""

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
