"""The problems of a plan: all of them, each with its place."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import islice
from types import TracebackType
from typing import TypeAlias

from asyncpush.errors import AsyncpushError, PlanError, Position

#: Problems that an error lists; a plan with thousands of entries can have one in each.
_SHOWN = 100

#: The shortest value of a variable that messages hide; a shorter one could occur anywhere.
_SHORTEST = 4


def member(place: str, name: str) -> str:
    """The place of a member."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", name):
        return f"{place}[{name[:100]}]"
    return f"{place}.{name}" if place else name


#: Finds the positions of places in the file of a plan, as far as it can.
FindPositions: TypeAlias = Callable[[Collection[str]], Mapping[str, Position]]


def _located(label: str, position: Position | None, line: str) -> str:
    """The *line* of a problem after its position; in a list, its place says no more."""
    return f"{label}: {line}" if position is None else f"{position}: {line.removeprefix(f'line {position.line}: ')}"


def is_below(place: str, other: str) -> bool:
    """Whether *place* is *other*, or a part of it."""
    return place == other or place.startswith((f"{other}.", f"{other}["))


class _At:
    """Ends a block at its first problem, and continues after it."""

    def __init__(self, problems: Problems, place: str) -> None:
        self._problems = problems
        self._place = place

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        if isinstance(error, AsyncpushError):
            self._problems.add(self._place, error.message, hint=error.hint)
        elif isinstance(error, ValueError):
            self._problems.add(self._place, str(error))
        return isinstance(error, (AsyncpushError, ValueError))


class Problems:
    """Collects the problems of a plan.

    Args:
        allows_unset: whether a variable that is not set is no problem; what depends on it is not checked.

    Attributes:
        places: where problems are, and variables that are not set.
        unset: where these variables are, and what to say of them, if they are no problem.
    """

    def __init__(self, *, allows_unset: bool = False) -> None:
        self._lines: dict[str, str] = {}
        self._allows_unset = allows_unset
        self.unset: list[tuple[str, str]] = []
        self._unset_places: list[str] = []
        self.places: list[str] = []
        self._written: dict[str, str] = {}

    def came_from(self, value: str, written: str) -> None:
        """Show *written* in messages instead of *value*, which came from a variable and may be a secret."""
        if len(value) >= _SHORTEST:
            self._written[value] = written

    def __bool__(self) -> bool:
        return bool(self._lines)

    def add(self, place: str, text: str, *, hint: str | None = None) -> None:
        """Note a problem at *place*; the same problem is noted once.

        One that may be due to a variable that is not set, and need not be, is not noted.
        """
        if place and any(is_below(unset, place) for unset in self._unset_places):
            return
        for value, written in self._written.items():
            text = text.replace(value, written)
        line = f"{place}: {text}" if place else text
        self._lines.setdefault(f"{line}; {hint}" if hint else line, place)
        self.places.append(place)

    def add_unset(self, place: str, name: str) -> None:
        """Note that the variable *name*, which is referred to at *place*, is not set."""
        text = f"the environment variable {name} is not set"
        if self._allows_unset:
            self.unset.append((place, f"{place}: {text}, and what depends on it is not checked"))
            self._unset_places.append(place)
            self.places.append(place)
        else:
            self.add(place, text, hint=f"set it, or write ${{{name}:-DEFAULT}}")

    def has_below(self, place: str) -> bool:
        """Whether there is a problem at *place* or below it."""
        return any(is_below(other, place) for other in self.places)

    def at(self, place: str) -> _At:
        """Note the error of the block (an AsyncpushError or ValueError) as a problem at *place*."""
        return _At(self, place)

    def lines(self) -> Iterator[tuple[str, str]]:
        """Each problem's place and text."""
        for line, place in self._lines.items():
            yield place, " ".join(line.split())

    def raise_any(self, label: str, find: FindPositions = lambda _: {}) -> None:
        """Raise all problems, if there are any.

        Args:
            label: the plan's name.
            find: finds the positions of places, as far as it can.

        Raises:
            PlanError: there are.
        """
        if not self._lines:
            return
        told = list(islice(self.lines(), _SHOWN))
        positions = find({place for place, _ in told})
        if positions:
            told.sort(key=lambda each: (found.line, found.column or 0) if (found := positions.get(each[0])) else (0, 0))
        lines = [_located(label, positions.get(place), line) for place, line in told]
        if len(self._lines) > _SHOWN:
            lines.append(f"{label}: ... and {len(self._lines) - _SHOWN} more problems")
        raise PlanError(lines, [positions.get(place) for place, _ in told])
