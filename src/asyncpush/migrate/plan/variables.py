"""``${NAME}`` and ``${NAME:-default}`` in a document's text: variables of the environment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeAlias

from asyncpush.migrate.plan.problems import Problems, member
from asyncpush.migrate.plan.reading import Plain, Value

_REFERENCE = re.compile(r"\$\$|\$\{(?P<body>[^{}]*)\}|\$\{")
_BODY = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>.*))?", re.DOTALL)


class Unknown:
    """Stands for a text with a variable that does not exist, so that nothing else is said about it."""

    __slots__ = ()


UNKNOWN = Unknown()

Expanded: TypeAlias = "str | list[Expanded] | dict[str, Expanded] | Unknown | None"


def expand(value: Value, environ: Mapping[str, str], place: str, problems: Problems) -> Expanded:
    """*value* with the variables of all its text replaced; ``$$`` is a dollar sign, keys stay as they are.

    What came out of a variable is ``Plain``: it may be a number where one is wanted.
    """
    if isinstance(value, dict):
        return {name: expand(each, environ, member(place, name), problems) for name, each in value.items()}
    if isinstance(value, list):
        return [expand(each, environ, f"{place}[{at}]", problems) for at, each in enumerate(value)]
    if value is None or "$" not in value:
        return value
    before = len(problems.places)
    text = _REFERENCE.sub(lambda match: _replacement(match, environ, place, problems), value)
    if len(problems.places) > before:
        return UNKNOWN
    return text if text == value else Plain(text)


def escape(text: str) -> str:
    """*text* such that ``expand`` leaves it as it is."""
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
        problems.add(
            place,
            f"the environment variable {reference['name']} is not set",
            hint=f"set it, or write ${{{reference['name']}:-DEFAULT}}",
        )
    else:
        problems.came_from(found, match[0])
    return found or ""
