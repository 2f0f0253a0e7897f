"""Where a list goes on: the Link headers of an answer (RFC 8288), as registries write them.

They leave out the brackets (Quay, once), the ``rel`` or its quotes, use single quotes, put flags before it, or spread
links over several headers. No link is lost for that: a list that ends early loses images without a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_SEPARATORS = re.compile(r"[\s,;]*")
#: A target in brackets, or without them: up to a blank, comma or semicolon.
_TARGET = re.compile(r"<([^>]*)>?|([^\s,;<]+)")
_PARAMETER = re.compile(
    r"""[\s;]+([A-Za-z0-9!#$%&'*+.^_`|~-]+)(?:\s*=\s*(?:"((?:[^"\\]|\\.)*)"?|'([^']*)'?|([^\s,;]*)))?"""
)
_ESCAPED = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Link:
    """A link.

    Attributes:
        target: what it leads to, as it is written.
        relations: what that is to the answer, in lower case; empty if the link does not say.
    """

    target: str
    relations: frozenset[str]


def parse_links(values: Iterable[str]) -> tuple[Link, ...]:
    """Read all links of an answer, from each of its Link headers."""
    return tuple(link for value in values for link in _parse(value))


def _parse(text: str) -> Iterator[Link]:
    at = 0
    while True:
        at = _end(_SEPARATORS, text, at)
        target = _TARGET.match(text, at)
        if target is None:
            return
        at = target.end()
        relations: str | None = None
        while parameter := _PARAMETER.match(text, at):
            at = parameter.end()
            quoted, single, word = parameter.group(2, 3, 4)
            if parameter[1].lower() == "rel" and relations is None:
                relations = _ESCAPED.sub(r"\1", quoted) if quoted is not None else single or word
        yield Link((target[1] if target[1] is not None else target[2]).strip(), _words(relations))


def _words(relations: str | None) -> frozenset[str]:
    return frozenset((relations or "").lower().split())


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at
