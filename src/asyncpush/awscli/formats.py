"""A response as the aws CLI prints it: times in ISO 8601, the query applied, in one of five formats."""

from __future__ import annotations

import json
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from types import ModuleType
from typing import Any

import jmespath
import jmespath.exceptions

from asyncpush.awscli.errors import OTHER, CommandError
from asyncpush.awscli.global_options import Output
from asyncpush.awscli.operations import Json, Members

# What is not text in YAML 1.2; in YAML 1.1, which PyYAML implements, `on` and `1:20` are not text either.
_YAML_1_2 = (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    (
        "float",
        (
            r"^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
            r"|[-+]?\.[0-9_]+(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
        ),
        "-+0123456789.",
    ),
    ("int", r"^(?:[-+]?0b[0-1_]+|[-+]?0o?[0-7_]+|[-+]?[0-9_]+|[-+]?0x[0-9a-fA-F_]+)$", "-+0123456789"),
)


@dataclass(frozen=True, slots=True)
class OperationOutput:
    """The response of an operation.

    Attributes:
        whole: the response, with pages merged.
        pages: what each page adds, and at the end the token for the rest; without pages, only ``whole``.
    """

    whole: Members
    pages: tuple[Members, ...]


class Query:
    """A JMESPath query, or none.

    Args:
        expression: its text.

    Raises:
        CommandError: it is invalid.
    """

    def __init__(self, expression: str | None) -> None:
        try:
            self._compiled = None if expression is None else jmespath.compile(expression)
        except jmespath.exceptions.JMESPathError as error:
            raise CommandError(f"Bad value for --query {expression}: {error}") from error

    def apply(self, value: Json) -> Json:
        """The result of the query for *value*.

        Raises:
            CommandError: it can't be applied.
        """
        try:
            return value if self._compiled is None else self._compiled.search(value)
        except jmespath.exceptions.JMESPathError as error:
            raise CommandError(str(error), OTHER) from error


def render(answer: OperationOutput, output: Output, query: Query, title: str, *, colored: bool = False) -> str:
    """The text for standard output.

    Raises:
        CommandError: the query or the format does not fit.
    """
    match output:
        case "text":
            return "".join(render_text(query.apply(page)) for page in answer.pages)
        case "table":
            return render_table(title, query.apply(answer.whole), colored=colored)
        case "yaml":
            return _yaml(query.apply(answer.whole))
        case "yaml-stream":
            return "".join(_yaml([query.apply(page)]) for page in answer.pages)
    value = query.apply(answer.whole)
    return "" if value == {} else json.dumps(value, indent=4, ensure_ascii=False) + "\n"


def printable(value: Any, *, wire: bool = False) -> Json:
    """*value* with times in ISO 8601, or as numbers (*wire*)."""
    if isinstance(value, dict):
        return {str(key): printable(inner, wire=wire) for key, inner in value.items()}
    if isinstance(value, list):
        return [printable(inner, wire=wire) for inner in value]
    if isinstance(value, datetime):
        return value.timestamp() if wire else value.isoformat()
    known: Json = value
    return known


def _yaml(value: Json) -> str:
    import yaml

    if value == {}:
        return ""
    if not isinstance(value, (dict, list)):
        # The aws CLI writes a lone scalar as JSON: YAML would end it with "...".
        return json.dumps(value, ensure_ascii=False) + "\n"
    text: str = yaml.dump(value, Dumper=_dumper(yaml), default_flow_style=False, allow_unicode=True)
    return text


def _dumper(yaml: ModuleType) -> type[Any]:
    """A YAML writer that quotes as the aws CLI does: text that would not be text in YAML 1.2."""

    class Dumper(yaml.SafeDumper):  # type: ignore[misc, name-defined] # known at run time only
        def ignore_aliases(self, _: object) -> bool:
            return True

        def choose_scalar_style(self) -> str:
            style: str = super().choose_scalar_style()
            text = self.event.value
            return '"' if style == "'" and ("'" in text or "\n" in text) else style

    replaced = {f"tag:yaml.org,2002:{name}" for name, _, _ in _YAML_1_2}
    Dumper.yaml_implicit_resolvers = {
        first: _without(resolvers, replaced) for first, resolvers in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }
    for name, pattern, first in _YAML_1_2:
        Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(pattern), list(first))
    return Dumper


def _without(resolvers: Iterable[tuple[str, Any]], tags: set[str]) -> list[tuple[str, Any]]:
    return [(tag, pattern) for tag, pattern in resolvers if tag not in tags]


#: Spaces around a cell, and the two edges of a box.
_PADDING, _EDGES = 4, 2
_DEFAULT_WIDTH = 80

_CELL = ("\x1b[1m\x1b[34m", "\x1b[0m")
_MARGIN = ("\x1b[2m\x1b[33m", "\x1b[0m")
_PLAIN = ("", "")


def render_table(title: str, answer: Json, *, colored: bool) -> str:
    """The table of *answer*; empty if there is nothing in it.

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
    """A title, a row of headings, and rows, nested in *indent* other boxes."""

    title: str
    indent: int
    headings: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)

    def add(self, row: Sequence[object]) -> None:
        columns = len(self.headings or self.rows[0]) if self.headings or self.rows else len(row)
        if len(row) != columns:
            raise CommandError(f"Row should have {columns} elements, instead it has {len(row)}", OTHER)
        self.rows.append([str(cell) for cell in row])

    def upright(self) -> _Box:
        """The box with a heading and its value on each line, if it has only one row."""
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
        columns = _scaled([width + _PADDING for width in self.columns], width)
        if self.title:
            yield _centered(self.title, width, "|")
            if not self.headings and not self.rows:
                yield f"+{'-' * (width - 2)}+"
        rule = "".join(f"{'' if at else '+'}{'-' * (width - (1 if at else 2))}+" for at, width in enumerate(columns))
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
        if all(isinstance(element, dict) for element in value):
            yield from _list_boxes(title, [element for element in value if isinstance(element, dict)], indent)
        else:
            box = _Box(title, indent)
            for row in _rows(value):
                box.add(row)
            yield box
    elif value and not isinstance(value, (dict, list)):
        # The box of a single value stays empty.
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
    splits = [_split(element) for element in elements]
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
    for value in values:
        if not isinstance(value, list):
            yield [value]
        elif any(isinstance(inner, (dict, list)) for inner in value):
            yield from _rows(value)
        else:
            yield value


def _split(members: Members) -> tuple[list[str], list[str]]:
    """The names of the scalars, and of members with members or elements."""
    nested = {name for name, value in members.items() if isinstance(value, (dict, list))}
    return sorted(members.keys() - nested), sorted(nested)


def _scaled(widths: list[int], total: int) -> list[int]:
    """The columns scaled to *total*; rounding errors change the first or the last columns."""
    if not widths:
        return widths
    factor = total / sum(widths)
    scaled = [round(factor * width) for width in widths]
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


def render_text(value: Json) -> str:
    """The lines of *value*; nested ones begin with the name of their member in capitals."""
    return "".join(f"{line}\n" for line in _lines(value, None))


def _lines(value: Json, name: str | None) -> Iterator[str]:
    if isinstance(value, dict):
        yield from _map(value, name, None)
    elif isinstance(value, list):
        yield from _list(value, name)
    else:
        yield str(value)


def _list(values: list[Json], name: str | None) -> Iterator[str]:
    if any(isinstance(value, dict) for value in values):
        maps = [value for value in values if isinstance(value, dict)]
        columns = sorted({key for value in maps for key in value if not _is_nested(value[key])})
        for value in values:
            yield from _map(value, name, columns) if isinstance(value, dict) else _lines(value, name)
        return
    scalars = [str(value) for value in values if not _is_nested(value)]
    if scalars and name:
        yield from (f"{name.upper()}\t{value}" for value in scalars)
    elif scalars:
        yield "\t".join(scalars)
    for value in values:
        if _is_nested(value):
            yield from _lines(value, name)


def _map(members: Members, name: str | None, columns: list[str] | None) -> Iterator[str]:
    """A map; in a list of maps, all have the same *columns*."""
    if columns is None:
        columns = sorted(key for key, value in members.items() if not _is_nested(value))
    scalars = [str(members.get(key, "")) for key in columns]
    if scalars:
        yield "\t".join([name.upper(), *scalars] if name else scalars)
    for key in sorted(members.keys() - set(columns)):
        yield from _lines(members[key], key)


def _is_nested(value: Json) -> bool:
    return isinstance(value, (dict, list))
