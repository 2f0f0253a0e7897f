"""Input judged by a service's model: an operation's members in, the first rule that they break out.

Constraints are those of the model's shapes: presence, type, length, range, pattern, enumeration. Members that the model
does not have are passed over, as AWS does.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import pybase64

from asyncpush.emulator.errors import AwsError, invalid_parameter
from asyncpush.emulator.service_model import Model, load_model

#: The ranges of the whole numbers, in bits (Smithy's simple types).
_BITS = {"byte": 8, "short": 16, "integer": 32, "long": 64}


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that is broken: where, such as ``imageIds[0].imageTag``, and which."""

    path: str
    constraint: str


class Rule(Protocol):
    """What a shape demands of a value."""

    def violations(self, value: object, path: str) -> Iterator[Violation]:
        """What *value*, found at *path*, breaks, in the model's order; lazily, so the first is found soon."""
        ...


class InputRules:
    """The rules of one service's operations.

    Args:
        model: the service's model.
    """

    def __init__(self, model: Model) -> None:
        self._operations: Model = model["operations"]
        self._shapes: Model = model["shapes"]
        self._rules: dict[str, Rule] = {}

    @property
    def operations(self) -> frozenset[str]:
        """The names of all operations that the service has."""
        return frozenset(self._operations)

    def check(self, operation: str, document: object) -> None:
        """Judge an operation's input.

        Args:
            operation: its name in the model, such as ``PutImage``.
            document: the request's body, parsed; blobs as base64 text, or as bytes where they are decoded already.

        Raises:
            AwsError: InvalidParameterException that names the first member that breaks a rule;
                SerializationException if it is no object.
        """
        if not isinstance(document, dict):
            raise AwsError("SerializationException", "The request's body must be a JSON object")
        shape = self._operations[operation].get("input")
        rule = self._rule(shape["shape"]) if shape else _Structure({}, frozenset())
        for violation in rule.violations(document, ""):
            raise invalid_parameter(violation.path, violation.constraint)

    def _rule(self, name: str) -> Rule:
        """The rule of a shape; made when it is first needed."""
        if name not in self._rules:
            self._rules[name] = self._make(self._shapes[name])
        return self._rules[name]

    def _make(self, shape: Model) -> Rule:
        kind: str = shape["type"]
        length = _Length(shape.get("min"), shape.get("max"))
        match kind:
            case "structure":
                shapes = {member: reference["shape"] for member, reference in shape["members"].items()}
                members = {member: self._rule(name) for member, name in shapes.items()}
                return _Structure(members, frozenset(shape.get("required", ())))
            case "list":
                return _List(self._rule(shape["member"]["shape"]), length)
            case "map":
                return _Map(self._rule(shape["key"]["shape"]), self._rule(shape["value"]["shape"]), length)
            case "string":
                pattern, values = shape.get("pattern"), tuple(shape.get("enum", ()))
                return _String(length, re.compile(pattern, re.ASCII) if pattern else None, values)
            case "blob":
                return _Blob(length)
            case "byte" | "short" | "integer" | "long":
                half = 1 << _BITS[kind] - 1
                return _Number((int,), "an integer", shape.get("min", -half), shape.get("max", half - 1))
            case "boolean":
                return _Boolean()
        # float, double and timestamp: seconds since 1970.
        return _Number((int, float), "a number", shape.get("min"), shape.get("max"))


@cache
def load_input_rules(service: str) -> InputRules:
    """The rules of ``ecr`` or ``ecr-public``; blocks for some milliseconds, once."""
    return InputRules(load_model(service))


@dataclass(frozen=True, slots=True)
class _Length:
    least: int | None
    most: int | None

    def violations(self, length: int, path: str) -> Iterator[Violation]:
        if self.least is not None and length < self.least:
            yield Violation(path, f"must have length greater than or equal to {self.least}")
        if self.most is not None and length > self.most:
            yield Violation(path, f"must have length less than or equal to {self.most}")


@dataclass(frozen=True, slots=True)
class _Structure:
    members: Mapping[str, Rule]
    required: frozenset[str]

    def violations(self, value: object, path: str) -> Iterator[Violation]:
        if not isinstance(value, dict):
            yield Violation(path, "must be an object")
            return
        for name, rule in self.members.items():
            member, place = value.get(name), f"{path}.{name}" if path else name
            if member is not None:
                yield from rule.violations(member, place)
            elif name in self.required:
                yield Violation(place, "must not be null")


@dataclass(frozen=True, slots=True)
class _List:
    member: Rule
    length: _Length

    def violations(self, value: object, path: str) -> Iterator[Violation]:
        if not isinstance(value, list):
            yield Violation(path, "must be a list")
            return
        yield from self.length.violations(len(value), path)
        for index, entry in enumerate(value):
            yield from _entry(self.member, entry, f"{path}[{index}]")


@dataclass(frozen=True, slots=True)
class _Map:
    key: Rule
    value: Rule
    length: _Length

    def violations(self, value: object, path: str) -> Iterator[Violation]:
        if not isinstance(value, dict):
            yield Violation(path, "must be an object")
            return
        yield from self.length.violations(len(value), path)
        for name, entry in value.items():
            yield from self.key.violations(name, path)
            yield from _entry(self.value, entry, f"{path}.{name}")


@dataclass(frozen=True, slots=True)
class _String:
    length: _Length
    pattern: re.Pattern[str] | None
    values: tuple[str, ...]

    def violations(self, value: object, path: str) -> Iterator[Violation]:
        if not isinstance(value, str):
            yield Violation(path, "must be a string")
            return
        # The length first: it bounds what the pattern has to look at.
        yield from self.length.violations(len(value), path)
        if self.pattern and not self.pattern.fullmatch(value):
            yield Violation(path, f"must satisfy regular expression '{self.pattern.pattern}'")
        if self.values and value not in self.values:
            yield Violation(path, f"must satisfy enum value set: [{', '.join(self.values)}]")


@dataclass(frozen=True, slots=True)
class _Blob:
    length: _Length

    def violations(self, value: object, path: str) -> Iterator[Violation]:
        if isinstance(value, str):
            try:
                value = pybase64.b64decode(value, validate=True)
            except (binascii.Error, ValueError) as error:
                yield Violation(path, f"must be base64: {error}")
                return
        if not isinstance(value, bytes | memoryview):
            yield Violation(path, "must be base64")
            return
        yield from self.length.violations(len(value), path)


@dataclass(frozen=True, slots=True)
class _Number:
    kinds: tuple[type[int | float], ...]
    name: str
    least: float | None
    most: float | None

    def violations(self, value: object, path: str) -> Iterator[Violation]:
        if not isinstance(value, self.kinds) or isinstance(value, bool):
            yield Violation(path, f"must be {self.name}")
        elif self.least is not None and value < self.least:
            yield Violation(path, f"must have value greater than or equal to {self.least}")
        elif self.most is not None and value > self.most:
            yield Violation(path, f"must have value less than or equal to {self.most}")


class _Boolean:
    __slots__ = ()

    def violations(self, value: object, path: str) -> Iterator[Violation]:
        if not isinstance(value, bool):
            yield Violation(path, "must be true or false")


def _entry(rule: Rule, value: object, path: str) -> Iterator[Violation]:
    if value is None:
        yield Violation(path, "must not be null")
    else:
        yield from rule.violations(value, path)
