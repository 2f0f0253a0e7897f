"""Parses YAML or JSON into plain values, with bounds on what a document can cost.

A scalar without quotes stays as it is written (``RawScalar``): the tag 1.20 is not a number, ``no`` is not false, and
2026-01-01 is not a date. A caller that needs a number converts it. Duplicate keys are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from asyncpush.errors import PlanError, Position, UsageError
from asyncpush.migrate.plan.diagnostics import Problems, is_below, member

if TYPE_CHECKING:
    from yaml import MappingNode, Node


MiB = 1024 * 1024

#: The name of a document that comes from there, in errors.
STANDARD_INPUT = "standard input"

#: A plan with 100,000 images has about 10 MiB.
MAX_DOCUMENT = 32 * MiB

#: Values of a document with its aliases expanded, and how deeply they can be nested.
MAX_VALUES = 2_000_000
MAX_DEPTH = 40

#: So many characters of text count as one more value, since an alias of it costs as much as the text.
_CHARACTERS = 64


class RawScalar(str):
    """Text without quotes, or a number or boolean of JSON, as it is written."""

    __slots__ = ()

    @property
    def native(self) -> str | int | float | bool:
        """Its value as JSON would have it."""
        if re.fullmatch(r"-?(?:0|[1-9][0-9]{0,300})", self):
            return int(self)
        if re.fullmatch(r"-?(?:0|[1-9][0-9]{0,300})(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,2})?", self):
            return float(self)
        return {"true": True, "false": False}.get(self.lower(), str(self))


Value: TypeAlias = "str | list[Value] | dict[str, Value] | None"


def parse_document(text: str, label: str, *, is_json: bool = False) -> Value:
    """Read a document in YAML, or in JSON.

    Args:
        text: the document.
        label: its name in errors.
        is_json: it must be JSON; otherwise it can be JSON, or else YAML.

    Raises:
        PlanError: it is not YAML; the error says where.
        UsageError: it is neither, or exceeds the bounds.
    """
    if is_json or text.lstrip()[:1] in ("{", "["):
        try:
            return _parse_json(text, label)
        except ValueError as error:
            if is_json:
                raise UsageError(f"{label} is not JSON: {error}") from error
    return _parse_yaml(text, label)


def _parse_json(text: str, label: str) -> Value:
    def members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for name, value in pairs:
            if name in seen:
                raise UsageError(f"{label}: {name[:100]!r} occurs twice in one object", hint="keep one of them")
            seen[name] = value
        return seen

    too_deep = UsageError(f"{label} is nested more than {MAX_DEPTH} levels deep")
    try:
        value = json.loads(
            text, object_pairs_hook=members, parse_int=RawScalar, parse_float=RawScalar, parse_constant=RawScalar
        )
    except RecursionError as error:
        raise too_deep from error
    return _words(value, 0, too_deep)


def _words(value: Any, depth: int, too_deep: UsageError) -> Value:  # noqa: ANN401 - JSON's own values
    if depth > MAX_DEPTH:
        raise too_deep
    if isinstance(value, dict):
        return {name: _words(inner, depth + 1, too_deep) for name, inner in value.items()}
    if isinstance(value, list):
        return [_words(inner, depth + 1, too_deep) for inner in value]
    return RawScalar(str(value).lower()) if isinstance(value, bool) else value


def _parse_yaml(text: str, label: str) -> Value:
    root = _compose(text, label)
    if root is None:
        return None
    builder = _Builder(label)
    builder.check_size(root)
    return builder.value(root, 0)


def _compose(text: str, label: str) -> Node | None:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        reader = loader(text)
        try:
            root: Node | None = reader.get_single_node()
        finally:
            reader.dispose()
    except UnicodeEncodeError as error:
        raise UsageError(f"{label} is not UTF-8 text (character {error.start})") from error
    except yaml.MarkedYAMLError as error:
        hint = _yaml_hint(text, error)
        problem = f"this is not YAML: {error.problem}" + (f"; {hint}" if hint else "")
        raise _problem(label, error.problem_mark, problem) from error
    except (yaml.YAMLError, RecursionError) as error:
        reason = getattr(error, "reason", None) or "it is nested too deeply"
        raise UsageError(f"{label} is not YAML: {reason}") from error
    return root


def _problem(label: str, mark: Any, text: str) -> PlanError:  # noqa: ANN401 - PyYAML has no types
    """The error of what stands at *mark*."""
    if mark is None:
        return PlanError([f"{label}: {text}"])
    position = Position(None if label == STANDARD_INPUT else Path(label), mark.line + 1, mark.column + 1)
    return PlanError([f"{position}: {text}"], [position])


def find_positions(text: str, file: Path | None, places: Collection[str]) -> dict[str, Position]:
    """Where *places* stand in a document that ``parse_document`` takes; of what is missing, where it is missing.

    Args:
        text: the document.
        file: its file; None for standard input.
        places: the places (``diagnostics.member``). Without a position are those of a document that only JSON's parser
            takes.
    """
    try:
        root = _compose(text, STANDARD_INPUT)
    except UsageError:
        root = None
    if root is None:
        return {}
    marks = {place: _mark_of(root, place) for place in places}
    return {place: Position(file, mark.line + 1, mark.column + 1) for place, mark in marks.items()}


def _mark_of(root: Node, place: str) -> Any:  # noqa: ANN401 - PyYAML has no types
    node, mark = root, root.start_mark
    while place and (step := _step(node, place)):
        mark, node, place = step
    return mark


def _step(node: Node, place: str) -> tuple[Any, Node, str] | None:
    """Where the first part of *place* stands in *node*, its node there, and the rest of the place."""
    if node.id == "sequence":
        index = re.match(r"\[([0-9]{1,9})\]", place)
        if index is None or int(index[1]) >= len(node.value):
            return None
        inner = node.value[int(index[1])]
        return inner.start_mark, inner, place[index.end() :].removeprefix(".")
    for key, value in node.value if node.id == "mapping" else ():
        if key.id == "scalar" and is_below(place, name := member("", key.value)):
            return key.start_mark, value, place[len(name) :].removeprefix(".")
    return None


def _yaml_hint(text: str, error: Any) -> str | None:  # noqa: ANN401 - PyYAML has no types
    mark = error.problem_mark
    lines = text.splitlines()
    line = lines[mark.line] if mark and mark.line < len(lines) else ""
    if re.search(r"[{,].*\$\{", line):
        return 'quote ${NAME} between braces: {password: "${NAME}"}'
    if re.search(r"(?:^|[\s:,\[-])\*", line):
        return "quote text that begins with *"
    return None


class _Builder:
    """Makes values from YAML nodes, with aliases expanded."""

    def __init__(self, label: str) -> None:
        self._label = label

    def check_size(self, root: Node) -> None:
        """Refuse a document that would have too many values, before they are made: each node is counted once."""
        sizes: dict[int, int] = {}

        def size(node: Node, depth: int) -> int:
            if (known := sizes.get(id(node))) is not None:
                return known
            if depth > MAX_DEPTH:
                raise self._error(node, f"it is nested more than {MAX_DEPTH} levels deep")
            if node.id == "scalar":
                total = 1 + len(node.value) // _CHARACTERS
            else:
                parts = node.value if node.id == "sequence" else [value for _, value in node.value]
                total = 1 + sum(size(part, depth + 1) for part in parts)
            if total > MAX_VALUES:
                raise self._error(node, f"there are more than {MAX_VALUES} values once aliases (*NAME) are followed")
            sizes[id(node)] = total
            return total

        size(root, 0)

    def value(self, node: Node, depth: int) -> Value:
        if depth > MAX_DEPTH:
            raise self._error(node, f"it is nested more than {MAX_DEPTH} levels deep")
        if node.id == "scalar":
            return self._scalar(node)
        if node.id == "sequence":
            return [self.value(inner, depth + 1) for inner in node.value]
        return self._mapping(node, depth)

    def _scalar(self, node: Node) -> Value:
        match node.tag.removeprefix("tag:yaml.org,2002:"):
            case "str":
                return str(node.value)
            case "null":
                return None
            case "int" | "float" | "bool" | "timestamp" | "value":
                return RawScalar(node.value)
            case _:
                raise self._error(node, f"the type {node.tag[:60]!r} is not supported")

    def _mapping(self, node: MappingNode, depth: int) -> dict[str, Value]:
        own: dict[str, Value] = {}
        merged: dict[str, Value] = {}
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                for mapping in self._merged(value, depth):
                    merged |= {name: content for name, content in mapping.items() if name not in merged}
                continue
            name = self._scalar(key) if key.id == "scalar" else None
            if not isinstance(name, str):
                raise self._error(key, "a key must be text")
            if name in own:
                raise self._error(key, f"{name[:100]!r} occurs twice in one mapping")
            own[name] = self.value(value, depth + 1)
        return {**merged, **own} if merged else own

    def _merged(self, node: Node, depth: int) -> Iterator[dict[str, Value]]:
        for inner in node.value if node.id == "sequence" else [node]:
            content = self.value(inner, depth + 1)
            if not isinstance(content, dict):
                raise self._error(node, "<< takes a mapping, or a list of mappings")
            yield content

    def _error(self, node: Node, text: str) -> UsageError:
        return _problem(self._label, node.start_mark, text)


_REFERENCE = re.compile(r"\$\$|\$\{(?P<body>[^{}]*)\}|\$\{")
_BODY = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>.*))?", re.DOTALL)


class UnknownVariable:
    """Stands for text with a variable that is not set; it causes no other problems."""

    __slots__ = ()


UNKNOWN = UnknownVariable()

Expanded: TypeAlias = "str | list[Expanded] | dict[str, Expanded] | UnknownVariable | None"


def expand(value: Value, environ: Mapping[str, str], place: str, problems: Problems) -> Expanded:
    """*value* with all variables in its text replaced; ``$$`` is a dollar sign. Keys are not changed.

    Text with variables becomes a ``RawScalar``: it can be a number where one is needed.
    """
    if isinstance(value, dict):
        return {name: expand(inner, environ, member(place, name), problems) for name, inner in value.items()}
    if isinstance(value, list):
        return [expand(inner, environ, f"{place}[{at}]", problems) for at, inner in enumerate(value)]
    if value is None or "$" not in value:
        return value
    before = len(problems.places)
    text = _REFERENCE.sub(lambda match: _replacement(match, environ, place, problems), value)
    if len(problems.places) > before:
        return UNKNOWN
    return text if text == value else RawScalar(text)


def escape(text: str) -> str:
    """*text*, escaped so that ``expand`` returns it unchanged."""
    return re.sub(r"\$(?=[${])", "$$", text)


def _replacement(match: re.Match[str], environ: Mapping[str, str], place: str, problems: Problems) -> str:
    if match[0] == "$$":
        return "$"
    reference = _BODY.fullmatch(match["body"] or "")
    if reference is None:
        problems.add(place, "has ${ without the name of a variable", hint="write ${NAME}, or $$ for a dollar sign")
        return ""
    found = environ.get(reference["name"])
    if reference["default"] is not None:
        if found:
            problems.came_from(found, match[0])
        return found or reference["default"]
    if found is None:
        problems.add_unset(place, reference["name"])
    else:
        problems.came_from(found, match[0])
    return found or ""
