"""The JSON documents that operations answer, and the pages of long lists."""

from __future__ import annotations

import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import pybase64

from asyncpush.emulator.errors import invalid_parameter

#: An operation's answer at the edge, where it becomes JSON.
Document = Mapping[str, object]

#: Entries of a page where a request names no number (DescribeImages, ListImages, DescribeRepositories).
DEFAULT_PAGE = 100

E = TypeVar("E")


@dataclass(frozen=True, slots=True)
class Page(Generic[E]):
    """Some entries of a list, and the token of the next ones, if there are more."""

    entries: Sequence[E]
    next_token: str | None

    @property
    def members(self) -> Document:
        """``nextToken``, or nothing."""
        return {"nextToken": self.next_token} if self.next_token else {}


def paginate(entries: Sequence[E], key: Callable[[E], str], token: str | None, size: int | None) -> Page[E]:
    """Cut one page out of a list that *key* sorts; a page goes on behind a key, so that changes skip nothing else.

    Raises:
        AwsError: InvalidParameterException for a token that no page gave out.
    """
    after = _key_of(token) if token else ""
    rest = sorted((entry for entry in entries if key(entry) > after), key=key)
    page = rest[: size or DEFAULT_PAGE]
    more = len(rest) > len(page)
    return Page(page, pybase64.b64encode(key(page[-1]).encode()).decode() if more else None)


def _key_of(token: str) -> str:
    try:
        return pybase64.b64decode(token, validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise invalid_parameter("nextToken", "must be a token of an earlier answer") from error
