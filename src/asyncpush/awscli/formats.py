"""An answer as the aws CLI prints it: times as ISO 8601, the query applied, in one of five forms."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from types import ModuleType
from typing import Any

import jmespath
import jmespath.exceptions

from asyncpush.awscli.faults import OTHER, CommandError
from asyncpush.awscli.global_options import Output
from asyncpush.awscli.operations import Json, Members
from asyncpush.awscli.table import render_table
from asyncpush.awscli.text import render_text

# What YAML 1.2 takes for something else than text; PyYAML reads 1.1, in which `on` and `1:20` are no text, either.
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
class Answer:
    """What an operation answered.

    Attributes:
        whole: all of it, pages merged.
        pages: what each page adds, and at last the token to go on with; ``whole`` alone where there are no pages.
    """

    whole: Members
    pages: tuple[Members, ...]


class Query:
    """A JMESPath query, or none.

    Args:
        expression: its text.

    Raises:
        CommandError: it is written wrong.
    """

    def __init__(self, expression: str | None) -> None:
        try:
            self._compiled = None if expression is None else jmespath.compile(expression)
        except jmespath.exceptions.JMESPathError as error:
            raise CommandError(f"Bad value for --query {expression}: {error}") from error

    def apply(self, value: Json) -> Json:
        """What it picks from *value*.

        Raises:
            CommandError: it can't be applied to it.
        """
        try:
            return value if self._compiled is None else self._compiled.search(value)
        except jmespath.exceptions.JMESPathError as error:
            raise CommandError(str(error), OTHER) from error


def render(answer: Answer, output: Output, query: Query, title: str, *, colored: bool = False) -> str:
    """The text for standard output.

    Raises:
        CommandError: the query or the form does not fit.
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
    """*value* with its times as ISO 8601, or as numbers (*wire*)."""
    if isinstance(value, dict):
        return {str(key): printable(each, wire=wire) for key, each in value.items()}
    if isinstance(value, list):
        return [printable(each, wire=wire) for each in value]
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
    """A writer that quotes as the aws CLI's does: what YAML 1.2 would not take for text, and how."""

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
