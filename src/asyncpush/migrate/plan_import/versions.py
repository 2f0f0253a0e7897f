"""Ranges of versions of tools that read them in ways of their own, as a plan has them.

A plan's ranges take pre-releases only where they name one; to those tools a pre-release is a version like any other. So
``>=0.0.0-0``, which all versions are, stands in each range that is made here and names none.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from asyncpush.errors import UsageError
from asyncpush.migrate.plan_import.builder import Piece, ranges

_ALL = ">=0.0.0-0"

_COMPARATOR = re.compile(r"\s*(?P<operator>[<>=!~^]*)\s*(?P<version>[^\s<>=!~^,|]+)")
_PRERELEASE = r"(?:-(?P<pre>[0-9A-Za-z.-]+))?"
_FULL = re.compile(rf"(?P<numbers>[0-9]+\.[0-9]+\.[0-9]+){_PRERELEASE}(?:\+[0-9A-Za-z.-]+)?")
_WILD = re.compile(r"(?P<major>[0-9]+)\.(?:x(?:\.x)?|(?P<minor>[0-9]+)\.x)")
_SHORT = re.compile(rf"v?(?P<numbers>[0-9]+(?:\.[0-9]+){{0,2}}){_PRERELEASE}(?:\+[0-9A-Za-z.-]+)?")
_NUMBERS = re.compile(r"v?(?P<numbers>[0-9]+(?:\.[0-9]+){0,2})")


def dregsy_range(text: str, place: str) -> Piece:
    """A range of blang/semver v4: full versions or ``1.2.x``, a space for and, ``||`` for or.

    Raises:
        UsageError: it is none.
    """
    return _range([_comparators(part, _blang, place) for part in text.split("||")], place)


def regsync_range(text: str, place: str) -> Piece:
    """A range of regclient: versions of one to three numbers, all of which have three then; a space for and.

    Raises:
        UsageError: it is none, or can't be carried over.
    """
    if "|" in text or "," in text:
        raise _wrong(text, place)
    return _range([_comparators(text, _regclient, place)], place)


def ocync_range(text: str, place: str) -> Piece:
    """A range of ocync: of the numbers alone, whatever stands behind them; a comma for and.

    Raises:
        UsageError: it is none, or can't be carried over.
    """
    return _range([[each for part in text.split(",") for each in _comparators(part, _ocync, place)]], place)


def _range(alternatives: list[list[str]], place: str) -> Piece:
    """A range of these comparators, which takes pre-releases in each alternative."""
    whole = [each if any("-" in words for words in each) else [*each, _ALL] for each in alternatives]
    [found] = ranges([" || ".join(map(" ".join, whole))], place)
    return found


def _wrong(text: str, place: str) -> UsageError:
    return UsageError(f"{place}: {text[:100]!r} is not a version range that can be carried over")


def _comparators(part: str, read: Callable[[str, str], str | None], place: str) -> list[str]:
    found: list[str] = []
    at = 0
    while at < len(part.rstrip()):
        match = _COMPARATOR.match(part, at)
        words = read(match["operator"], match["version"]) if match else None
        if match is None or words is None:
            raise _wrong(part, place)
        found.append(words)
        at = match.end()
    if not found:
        raise _wrong(part, place)
    return found


def _blang(operator: str, version: str) -> str | None:
    spelling = {"": "=", "==": "=", "!": "!="}.get(operator, operator)
    if match := _FULL.fullmatch(version):
        pre = f"-{match['pre']}" if match["pre"] else ""
        return f"{spelling}{match['numbers']}{pre}" if spelling in ("=", "!=", "<", "<=", ">", ">=") else None
    wild = _WILD.fullmatch(version)
    if wild is None:
        return None
    major, minor = int(wild["major"]), int(wild["minor"] or 0)
    low = f"{major}.{minor}.0"
    high = f"{major}.{minor + 1}.0" if wild["minor"] else f"{major + 1}.0.0"
    # Of "!=1.2.x" it makes "<1.2.0 >=1.3.0", which is nothing.
    bounds = {"=": f">={low} <{high}", ">": f">={high}", ">=": f">={low}", "<": f"<{low}", "<=": f"<{high}"}
    return bounds.get(spelling)


def _regclient(operator: str, version: str) -> str | None:
    match = _SHORT.fullmatch(version)
    if match is None:
        return None
    major, minor, patch = _three(match["numbers"])
    full = f"{major}.{minor}.{patch}" + (f"-{match['pre']}" if match["pre"] else "")
    match operator:
        case "" | "=":
            return f"={full}"
        case "<" | "<=" | ">" | ">=":
            return f"{operator}{full}"
        case "~":
            return f">={full} <{major}.{minor + 1}.0"
        case "^" if major:
            return f">={full} <{major + 1}.0.0"
        case "^" if minor:
            return f">={full} <0.{minor + 1}.0"
        case "^":
            return f">={full} <0.0.{patch + 1}"
        case _:
            return None


def _ocync(operator: str, version: str) -> str | None:
    match = _NUMBERS.fullmatch(version)
    if match is None:
        return None
    full = ".".join(map(str, _three(match["numbers"])))
    match operator:
        case "" | "=":
            return f">={full}-0 <={full}"
        case ">" | "<=":
            return f"{operator}{full}"
        case ">=" | "<":
            # Pre-releases of a bound have its numbers.
            return f"{operator}{full}-0"
        case _:
            return None


def _three(numbers: str) -> tuple[int, int, int]:
    major, minor, patch = [*map(int, numbers.split(".")), 0, 0][:3]
    return major, minor, patch
