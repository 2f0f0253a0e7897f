"""``--output table``: an answer as boxes in boxes, as wide as what is in them, and turned upright where too wide."""

from __future__ import annotations

import shutil
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from asyncpush.awscli.faults import OTHER, CommandError
from asyncpush.awscli.operations import Json, Members

#: Spaces about a cell, and a box's two edges.
_PADDING, _EDGES = 4, 2
_DEFAULT_WIDTH = 80

_CELL = ("\x1b[1m\x1b[34m", "\x1b[0m")
_MARGIN = ("\x1b[2m\x1b[33m", "\x1b[0m")
_PLAIN = ("", "")


def render_table(title: str, answer: Json, *, colored: bool) -> str:
    """The table of *answer*; nothing if it is empty.

    Raises:
        CommandError: its rows differ in length.
    """
    boxes = list(_boxes(title, answer, 0))
    if not boxes:
        return ""
    width = max(box.width for box in boxes)
    if width > _screen_width():
        boxes = [box.upright() for box in boxes]
        width = max(box.width for box in boxes)
    lines = ["-" * width]
    for box in boxes:
        margin = f"{_MARGIN[0]}|{_MARGIN[1]}" * box.indent if colored else "|" * box.indent
        lines += [f"{margin}{line}{margin}" for line in box.lines(width - 2 * box.indent, _CELL if colored else _PLAIN)]
    return "".join(f"{line}\n" for line in lines)


@dataclass(slots=True)
class _Box:
    """A title, a row of headings, and rows; within *indent* others."""

    title: str
    indent: int
    headings: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)

    def add(self, row: Sequence[object]) -> None:
        columns = len(self.headings or self.rows[0]) if self.headings or self.rows else len(row)
        if len(row) != columns:
            raise CommandError(f"Row should have {columns} elements, instead it has {len(row)}", OTHER)
        self.rows.append([str(each) for each in row])

    def upright(self) -> _Box:
        """With a heading and its value on each line, if there is one row only."""
        if len(self.rows) != 1 or not self.headings:
            return self
        pairs = [[heading, value] for heading, value in zip(self.headings, self.rows[0], strict=True)]
        return _Box(self.title, self.indent, rows=pairs)

    @property
    def columns(self) -> list[int]:
        cells = [self.headings, *self.rows] if self.headings else self.rows
        return [max(map(_width, column)) for column in zip(*cells, strict=True)]

    @property
    def width(self) -> int:
        content = sum(width + _PADDING for width in self.columns)
        return max(_width(self.title), content) + _EDGES + 2 * self.indent

    def lines(self, width: int, style: tuple[str, str]) -> Iterator[str]:
        columns = _scaled([each + _PADDING for each in self.columns], width)
        if self.title:
            yield _centered(self.title, width, "|")
            if not self.headings and not self.rows:
                yield f"+{'-' * (width - 2)}+"
        rule = "".join(f"{'' if at else '+'}{'-' * (each - (1 if at else 2))}+" for at, each in enumerate(columns))
        if self.headings:
            yield rule
            yield "".join(
                _centered(text, each, "" if at else "|")
                for at, (text, each) in enumerate(zip(self.headings, columns, strict=True))
            )
        if columns and self.rows:
            yield rule
            for row in self.rows:
                yield "".join(
                    _left(text, each, "" if at else "|", style)
                    for at, (text, each) in enumerate(zip(row, columns, strict=True))
                )
            yield rule


def _boxes(title: str, value: Json, indent: int) -> Iterator[_Box]:
    if isinstance(value, dict) and value:
        yield from _dict_boxes(_Box(title, indent), value)
    elif isinstance(value, list) and value:
        if all(isinstance(each, dict) for each in value):
            yield from _list_boxes(title, [each for each in value if isinstance(each, dict)], indent)
        else:
            box = _Box(title, indent)
            for row in _rows(value):
                box.add(row)
            yield box
    elif value and not isinstance(value, (dict, list)):
        # A query that picks one value leaves its box empty.
        yield _Box(title, indent)


def _dict_boxes(box: _Box, members: Members) -> Iterator[_Box]:
    scalars, nested = _split(members)
    if len(scalars) == 1:
        box.add([scalars[0], members[scalars[0]]])
    elif scalars:
        box.headings = scalars
        box.add([members[name] for name in scalars])
    yield box
    for name in nested:
        yield from _boxes(name, members[name], box.indent + 1)


def _list_boxes(title: str, elements: list[Members], indent: int) -> Iterator[_Box]:
    splits = [_split(each) for each in elements]
    headings = sorted({name for scalars, _ in splits for name in scalars})
    nested = sorted({name for _, names in splits for name in names})
    if not nested:
        box = _Box(title, indent, headings)
        for members in elements:
            box.add([members.get(name, "") for name in headings])
        yield box
        return
    for members in elements:
        box = _Box(title, indent, headings)
        box.add([members.get(name, "") for name in headings])
        yield box
        for name in nested:
            yield from _boxes(name, members.get(name), indent + 1)


def _rows(values: list[Json]) -> Iterator[list[Json]]:
    """A row for each list of scalars, and for each scalar."""
    for each in values:
        if not isinstance(each, list):
            yield [each]
        elif any(isinstance(inner, (dict, list)) for inner in each):
            yield from _rows(each)
        else:
            yield each


def _split(members: Members) -> tuple[list[str], list[str]]:
    """The names of the scalars, and of what has members or elements of its own."""
    nested = {name for name, value in members.items() if isinstance(value, (dict, list))}
    return sorted(members.keys() - nested), sorted(nested)


def _scaled(widths: list[int], total: int) -> list[int]:
    """The columns stretched to *total*: what rounding adds is taken from the first, what it loses goes to the last."""
    if not widths:
        return widths
    factor = total / sum(widths)
    scaled = [round(factor * each) for each in widths]
    excess = sum(scaled) - total
    order = range(len(scaled)) if excess > 0 else range(len(scaled) - 1, -1, -1)
    while excess:
        for at in order:
            step = 1 if excess > 0 else -1
            scaled[at] -= step
            excess -= step
            if not excess:
                break
    return scaled


def _centered(text: str, width: int, edge: str) -> str:
    before = width // 2 - _width(text) // 2 - 1
    after = width - 1 - (len(edge) + before + _width(text))
    return f"{edge}{' ' * before}{text}{' ' * after}|"


def _left(text: str, width: int, edge: str, style: tuple[str, str]) -> str:
    room = width - _width(text) - len(edge) - 1
    before = 2 if room >= 2 else 0
    return f"{edge}{' ' * before}{style[0]}{text}{style[1]}{' ' * (room - before)}|"


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(char) in "WFA" else 1 for char in text)


def _screen_width() -> int:
    return shutil.get_terminal_size((_DEFAULT_WIDTH, 0)).columns if sys.stdout.isatty() else _DEFAULT_WIDTH
