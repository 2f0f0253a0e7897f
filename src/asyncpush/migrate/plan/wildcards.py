"""Repositories by pattern: which ones an entry takes, and the names that they get at a target."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache

from asyncpush.errors import InvalidReferenceError

#: What ``to`` can contain: the source's whole name in its registry, and the last part of that.
PLACEHOLDERS = ("{name}", "{basename}")

_PLACEHOLDER = re.compile(r"\{[^{}]*\}")
#: What becomes a wildcard in an ARN: placeholders, sets of characters, and wildcards, one or several.
_WILDCARD = re.compile(r"(?:\{[^{}]*\}|\[[^]]*\]|\*)+")


@dataclass(frozen=True, slots=True)
class RepositoryPattern:
    """Repositories of a registry, by name.

    Attributes:
        glob: shell wildcards, of which ``*`` also matches slashes.
        exclude: patterns of the same kind for repositories to leave out.
    """

    glob: str
    exclude: tuple[str, ...] = ()

    def choose(self, names: Iterable[str]) -> RepositoryChoice:
        """Choose among all *names* of a registry."""
        matching = sorted(name for name in set(names) if _matches(self.glob, name))
        taken: list[str] = []
        excluded: dict[str, str] = {}
        for name in matching:
            pattern = next((pattern for pattern in self.exclude if _matches(pattern, name)), None)
            if pattern is None:
                taken.append(name)
            else:
                excluded[name] = pattern
        idle = [pattern for pattern in self.exclude if not any(_matches(pattern, name) for name in matching)]
        return RepositoryChoice(tuple(taken), tuple(excluded.items()), tuple(idle))


@dataclass(frozen=True, slots=True)
class RepositoryChoice:
    """The repositories that a pattern chooses.

    Attributes:
        taken: their names, sorted.
        excluded: names that match the pattern and are left out, with what leaves them out.
        idle: patterns that leave nothing out.
    """

    taken: tuple[str, ...]
    excluded: Sequence[tuple[str, str]]
    idle: Sequence[str]


@lru_cache(maxsize=1000)
def _compiled(glob: str) -> re.Pattern[str]:
    return re.compile(translate(glob))


def _matches(glob: str, name: str) -> bool:
    return _compiled(glob).fullmatch(name) is not None


def has_placeholder(text: str) -> bool:
    """Whether *text* contains a placeholder."""
    return _PLACEHOLDER.search(text) is not None


def as_arn_pattern(name: str) -> str:
    """The name or pattern of a repository in an ARN, where only ``*`` and ``?`` are wildcards."""
    return _WILDCARD.sub("*", name)


def check_placeholders(text: str) -> None:
    """Check that all placeholders of *text* are known.

    Raises:
        InvalidReferenceError: one is not.
    """
    unknown = next((found for found in _PLACEHOLDER.findall(text) if found not in PLACEHOLDERS), None)
    if unknown is not None:
        raise InvalidReferenceError(f"{unknown[:100]} is not known", hint=f"use {' or '.join(PLACEHOLDERS)}")


def fill_in(text: str, name: str) -> str:
    """*text* with its placeholders replaced by those of the repository *name*."""
    return text.replace("{name}", name).replace("{basename}", name.rpartition("/")[2])
