"""Rules and throttles from their text: ``OPERATION[,repository=GLOB][:CONDITION,...]:ACTION[=VALUE]``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from asyncpush.emulator.faults.rules import ACTIONS, CONDITIONS, Fault, Throttle
from asyncpush.errors import UsageError
from asyncpush.units import parse_duration

_FORM = "write OPERATION[,repository=GLOB][:CONDITION=VALUE,...]:ACTION, such as PutImage:first=2:throttle"
_OPERATION = re.compile(r"(?:v2:)?[^,:=]+")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?(?:e-?[0-9]+)?")
_AVAILABILITY = {"AVAILABLE": True, "UNAVAILABLE": False}
_WHOLE = ("nth", "every", "first", "after", "limit")

_THROTTLE = re.compile(r"(?P<operation>[^=]+)=(?P<rate>[^:]+)(?::(?P<burst>[0-9]{1,9}))?")


def parse_fault(text: str) -> Fault:
    """Read a rule.

    Raises:
        UsageError: it is none; the message quotes it.
    """
    with _naming("rule", text):
        operation = _OPERATION.match(text.strip())
        rest = text.strip()[operation.end() :] if operation else ""
        middle, colon, act = rest.rpartition(":")
        if operation is None or not colon or not act:
            raise UsageError("it has no action", hint=_FORM)
        selected = dict(_conditions(middle))
        return Fault(operation=operation[0], **_action(act), **selected)  # type: ignore[arg-type]


def parse_throttle(text: str) -> Throttle:
    """Read ``OPERATION=RATE[:BURST]``.

    Raises:
        UsageError: it is none; the message quotes it.
    """
    with _naming("throttle", text):
        match = _THROTTLE.fullmatch(text.strip())
        if match is None or not _NUMBER.fullmatch(match["rate"]):
            raise UsageError("it names no rate", hint="write OPERATION=RATE[:BURST], such as PutImage=10:20")
        burst = match["burst"]
        return Throttle(match["operation"], float(match["rate"]), None if burst is None else int(burst))


def _conditions(text: str) -> Iterator[tuple[str, str | float]]:
    found: set[str] = set()
    for word in re.split("[,:]", text)[1:]:
        name, _, value = word.partition("=")
        if name not in CONDITIONS and name != "repository":
            known = ", ".join(CONDITIONS)
            raise UsageError(f"there is no condition {name!r}", hint=f"the conditions are {known}, and repository")
        if name in found:
            raise UsageError(f"{name} is there twice", hint="leave one out")
        if not value:
            raise UsageError(f"{name} has no value", hint=f"write {name}=VALUE")
        found.add(name)
        yield name, _value(name, value)


def _value(name: str, text: str) -> str | float:
    if name == "repository":
        return text
    if name == "lag":
        return _seconds(text)
    if name in _WHOLE and re.fullmatch(r"[0-9]{1,9}", text):
        return int(text)
    if name == "probability" and _NUMBER.fullmatch(text):
        return float(text)
    kind = "a number from 0 to 1" if name == "probability" else "a whole number"
    raise UsageError(f"{name} is {text!r}", hint=f"give {kind}")


def _action(text: str) -> Mapping[str, object]:
    name, equals, value = text.partition("=")
    kind = next((kind for action, kind in ACTIONS.items() if action == name), None)
    if kind is None or not equals:
        return {"action": name}
    if kind.value == "seconds":
        return {"action": name, "seconds": _seconds(value)}
    if kind.value == "availability" and value in _AVAILABILITY:
        return {"action": name, "available": _AVAILABILITY[value]}
    if kind.value == "availability":
        return {"action": name}
    raise UsageError(f"{name} takes no value", hint=f"write {name}")


def _seconds(text: str) -> float:
    return float(text) if _NUMBER.fullmatch(text) else parse_duration(text)


@contextmanager
def _naming(what: str, text: str) -> Iterator[None]:
    """Quote *text* in the message of what is wrong with it."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"the {what} {text!r} can't be used: {error.message}", hint=error.hint) from error
