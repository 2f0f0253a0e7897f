"""Converts the values of a document to its classes; whatever does not fit is a problem, and left out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from asyncpush.migrate.plan.diagnostics import Problems, member
from asyncpush.migrate.plan.document import HOMES
from asyncpush.migrate.plan.yaml_loader import Expanded, RawScalar, UnknownVariable

S = TypeVar("S", bound=msgspec.Struct)

_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class _Bad:
    """Stands for a value that did not fit; its problem is noted."""


_BAD = _Bad()


#: What to do about a required member that is left out.
_LACKING = {"version": "write version: 1"}


def convert(value: Expanded, kind: type[S], place: str, problems: Problems) -> S | None:
    """*value* as a *kind*, without members that do not fit; None if a required one is missing."""
    fitting = _fit(value, _type_info(kind), place, problems)
    return None if fitting is _BAD else msgspec.convert(fitting, kind)


@lru_cache
def _type_info(kind: type) -> inspect.Type:
    return inspect.type_info(kind)


def _fit(value: Expanded, kind: inspect.Type, place: str, problems: Problems) -> Any:  # noqa: ANN401 - any shape
    if isinstance(value, UnknownVariable):
        return _BAD
    if value is None and not isinstance(kind, inspect.AnyType):
        problems.add(place, "is empty", hint="give a value, or leave it out")
        return _BAD
    for option in kind.types if isinstance(kind, inspect.UnionType) else (kind,):
        if _may_be(value, option):
            return _fit_one(value, option, place, problems)
    problems.add(place, f"is {_described(value)}, but must be {_wanted(kind)}")
    return _BAD


def _may_be(value: Expanded, kind: inspect.Type) -> bool:
    """Whether *value* has the right type; what it contains may still not fit."""
    match kind:
        case inspect.StructType() | inspect.DictType():
            return isinstance(value, dict)
        case inspect.ListType():
            return isinstance(value, list)
        case inspect.StrType() | inspect.LiteralType():
            return isinstance(value, str)
        case inspect.IntType():
            return isinstance(value, RawScalar) and re.fullmatch(r"-?[0-9]{1,15}", value) is not None
        case inspect.BoolType():
            return isinstance(value, RawScalar) and value.lower() in _TRUTH
        case _:
            return True


def _fit_one(value: Any, kind: inspect.Type, place: str, problems: Problems) -> Any:  # noqa: ANN401 - any shape
    match kind:
        case inspect.StructType():
            return _fit_members(value, kind, place, problems)
        case inspect.DictType():
            fitting = {
                name: _fit(inner, kind.value_type, member(place, name), problems) for name, inner in value.items()
            }
            return {name: inner for name, inner in fitting.items() if inner is not _BAD}
        case inspect.ListType():
            items = [_fit(item, kind.item_type, f"{place}[{at}]", problems) for at, item in enumerate(value)]
            return [item for item in items if item is not _BAD]
        case inspect.LiteralType():
            chosen = next((choice for choice in kind.values if str(choice) == value), _BAD)
            if chosen is _BAD:
                problems.add(place, f"is not {_listed(kind.values)}")
            return chosen
        case inspect.IntType():
            number = int(value)
            if kind.ge is not None and number < kind.ge:
                problems.add(place, f"is {number}, but must be at least {kind.ge}")
                return _BAD
            return number
        case inspect.BoolType():
            return _TRUTH[value.lower()]
        case inspect.StrType():
            return str(value)
        case _:
            return native(value)


def _fit_members(value: dict[str, Expanded], kind: inspect.StructType, place: str, problems: Problems) -> Any:  # noqa: ANN401
    fields = {field.encode_name: field for field in kind.fields}
    fitting: dict[str, Any] = {}
    for name, inner in value.items():
        if name in fields:
            fitting[name] = _fit(inner, fields[name].type, member(place, name), problems)
        else:
            close = get_close_matches(name, fields, 1)
            hint = f"did you mean {close[0]}?" if close else f"use one of {', '.join(fields)}"
            if name in HOMES and HOMES[name] != place.rpartition(".")[2]:
                hint = f"it belongs to {HOMES[name]}"
            problems.add(member(place, name), "is unknown", hint=hint)
    missing = [name for name, field in fields.items() if field.required and name not in value]
    for name in missing:
        problems.add(place, f"has no {name}", hint=_LACKING.get(name))
    if missing or any(field.required and fitting[name] is _BAD for name, field in fields.items() if name in fitting):
        return _BAD
    return {name: inner for name, inner in fitting.items() if inner is not _BAD}


def native(value: Expanded) -> object:
    """*value* with numbers and booleans where they were not quoted, as in JSON."""
    if isinstance(value, dict):
        return {name: native(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [native(inner) for inner in value]
    return value.native if isinstance(value, RawScalar) else value


def _described(value: Expanded) -> str:
    """The type of a value; never the value, since it may be a secret."""
    if isinstance(value, dict):
        return "a mapping"
    return "a list" if isinstance(value, list) else "text"


def _wanted(kind: inspect.Type) -> str:
    match kind:
        case inspect.UnionType():
            return _listed([_wanted(option) for option in kind.types])
        case inspect.StructType():
            return f"a mapping with {_listed([field.encode_name for field in kind.fields])}"
        case inspect.DictType():
            return "a mapping"
        case inspect.ListType():
            return "a list"
        case inspect.LiteralType():
            return _listed(kind.values)
        case inspect.IntType():
            return "a number"
        case inspect.BoolType():
            return "true or false"
        case _:
            return "text"


def _listed(words: Sequence[object]) -> str:
    texts = list(dict.fromkeys(map(str, words)))
    return " or ".join(filter(None, (", ".join(texts[:-1]), texts[-1])))
