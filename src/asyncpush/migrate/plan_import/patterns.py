"""Converts the patterns of other tools to a plan's: regular expressions of Go, and version ranges."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable

from asyncpush.errors import UsageError
from asyncpush.migrate.plan.tags import MAX_PATTERN, check_regex
from asyncpush.migrate.plan.versions import VersionRange
from asyncpush.migrate.plan.yaml_loader import escape
from asyncpush.migrate.plan_import.builder import Piece

# Regular expressions of Go. What Python reads differently is rewritten to keep Go's meaning for tags, which are ASCII
# and one line long (https://github.com/google/re2/wiki/Syntax, and what Go's package regexp/syntax leaves out of it).
# What can't be rewritten, or is not an expression to Go, is refused.


def whole_match(pattern: str, *, anchored: bool) -> str:
    """Convert a regular expression of Go to one that matches the whole tag.

    Args:
        pattern: the expression.
        anchored: whether it is used between ^ and $, without a group; otherwise it can match anywhere in the tag.

    Raises:
        ValueError: Go does not accept it, or it can't be imported.
    """
    if anchored:
        # ^a|b$ matches what begins with a or ends in b.
        is_plain = "|" not in pattern and r"\Q" not in pattern
        whole = python_regex(pattern) if is_plain else f".*(?:{python_regex(f'^{pattern}$')}).*"
    elif "|" not in pattern and re.fullmatch(r"\^.*(?<!\\)\$", pattern, re.DOTALL):
        whole = python_regex(pattern[1:-1])
    else:
        whole = f".*(?:{python_regex(pattern)}).*"
    check_regex(whole)
    return whole


def other_than(whole: str) -> str:
    """A regular expression for all tags that *whole* does not match."""
    return f"(?!(?:{whole})$).*"


def regexes(patterns: list[str], place: str, *, anchored: bool) -> list[Piece]:
    """Convert regular expressions of Go; *anchored* as for ``whole_match``.

    Raises:
        UsageError: one is invalid, or can't be imported.
    """
    try:
        return [escape(whole_match(pattern, anchored=anchored)) for pattern in patterns]
    except ValueError as error:
        raise UsageError(f"{place}: {error}") from error


_ASCII = [chr(code) for code in range(128)]

_POSIX = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "ascii": r"\x00-\x7f",
    "blank": r"\t ",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\t\n\v\f\r ",
    "upper": "A-Z",
    "word": "0-9A-Za-z_",
    "xdigit": "0-9A-Fa-f",
}

# A class that matches nothing, and one that matches any character.
_NOTHING, _ANYTHING = r"[^\x00-\U0010ffff]", r"[\x00-\U0010ffff]"

_FLAGS = re.compile(r"\(\?(?P<on>[imsU]*)(?P<off>-[imsU]+)?(?P<end>[:)])")
_NAME = re.compile(r"\(\?P?<[A-Za-z0-9_]+>")
_REPEAT = re.compile(r"[*+?]|\{[0-9]+(?:,[0-9]*)?\}")
_ESCAPED = re.compile(
    r"\\(?:x\{(?P<long>[0-9A-Fa-f]+)\}|x(?P<hex>[0-9A-Fa-f]{2})|(?P<octal>0[0-7]{0,2}|[1-7][0-7]{1,2}))"
)
_PROPERTY = re.compile(r"\\(?P<sort>[pP])(?:\{(?P<not>\^?)(?P<name>[A-Za-z_]+)\}|(?P<letter>[A-Z]))")
_POSIX_CLASS = re.compile(r"\[:(?P<not>\^?)(?P<name>[a-z]+):\]")


def python_regex(pattern: str) -> str:
    """Convert *pattern* to Python's ``re``.

    Raises:
        ValueError: Go does not accept it, or it can't be imported.
    """
    if len(pattern) > MAX_PATTERN:
        raise ValueError(f"has {len(pattern)} characters; a pattern has 1 to {MAX_PATTERN}")
    return _Translator(pattern).whole()


class _Translator:
    """Translates a pattern in one pass.

    In Go, flags inside a group apply until its end, across ``|``. Python needs a group for them, which is closed and
    opened again at each ``|``.
    """

    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._at = 0
        self._out: list[str] = []
        # For each open group, the groups that flags have opened in it.
        self._scopes: list[list[str]] = [[]]

    def whole(self) -> str:
        while self._at < len(self._text):
            self._piece()
        if len(self._scopes) > 1:
            raise self._error("has a group without an end")
        self._out.append(")" * len(self._scopes[0]))
        found = "".join(self._out)
        if found:
            check_regex(found)
        return found

    def _piece(self) -> None:
        char = self._text[self._at]
        match char:
            case "\\":
                self._escape()
            case "[":
                self._class()
            case "(":
                self._group()
            case ")":
                if len(self._scopes) == 1:
                    raise self._error("has a group without a beginning")
                self._put(")" * (len(self._scopes.pop()) + 1), 1)
            case "|":
                scope = self._scopes[-1]
                self._put(")" * len(scope) + "|" + "".join(scope), 1)
            case "*" | "+" | "?" | "{":
                self._repeat()
            case _:
                self._put(char, 1)

    def _put(self, text: str, length: int) -> None:
        self._out.append(text)
        self._at += length

    def _repeat(self) -> None:
        match = _REPEAT.match(self._text, self._at)
        if match is None:
            self._put(r"\{", 1)
            return
        if any(int(number) > 1000 for number in re.findall("[0-9]+", match[0])):
            raise self._error("repeats more than 1000 times")
        self._put(match[0], len(match[0]))
        if self._text[self._at : self._at + 1] == "?":
            self._put("?", 1)
        if _REPEAT.match(self._text, self._at):
            raise self._error("repeats a repetition")

    def _group(self) -> None:
        text, at = self._text, self._at
        if not text.startswith("(?", at):
            self._scopes.append([])
            self._put("(", 1)
        elif match := _NAME.match(text, at):
            # No reference to it is possible.
            self._scopes.append([])
            self._put("(?:", len(match[0]))
        elif match := _FLAGS.match(text, at):
            flags = _flags(match["on"], match["off"] or "")
            if match["end"] == ")" and _REPEAT.match(text, match.end()):
                raise self._error(f"repeats {match[0]}")
            if match["end"] == ":":
                self._scopes.append([])
                self._put(flags, len(match[0]))
            elif flags == "(?:":
                self._put("", len(match[0]))
            else:
                self._scopes[-1].append(flags)
                self._put(flags, len(match[0]))
        else:
            raise self._error(f"has {text[at : at + 3]!r}, which Go does not know")

    def _escape(self) -> None:
        text, at = self._text, self._at
        following = text[at + 1 : at + 2]
        if following == "Q":
            literal, _, rest = text[at + 2 :].partition(r"\E")
            # A repetition after \E applies to the last character only, as after an escaped one.
            self._put(re.escape(literal), len(text) - at - len(rest))
        elif following == "z":
            self._put(r"\Z", 2)
        elif following in ("A", "b", "B", "d", "D", "w", "W", "s", "S"):
            self._put(text[at : at + 2], 2)
        elif following in ("p", "P"):
            inside = self._property()
            self._put(f"[{inside}]" if inside else _NOTHING, 0)
        else:
            self._put(re.escape(self._char()), 0)

    def _char(self) -> str:
        """The next character, escaped or not."""
        text, at = self._text, self._at
        if text[at] != "\\":
            self._at += 1
            return text[at]
        if match := _ESCAPED.match(text, at):
            code = int(match["long"] or match["hex"], 16) if match["octal"] is None else int(match["octal"], 8)
            if code > 0x10FFFF:
                raise self._error(f"has {match[0]}, which is not a character")
            self._at = match.end()
            return chr(code)
        following = text[at + 1 : at + 2]
        self._at += 2
        if following and not following.isalnum() and following.isascii():
            return following
        if following and following in "aftnrv":
            return {"a": "\a", "f": "\f", "t": "\t", "n": "\n", "r": "\r", "v": "\v"}[following]
        raise self._error(f"has \\{following}, which Go does not know" if following else "ends in a backslash")

    def _class(self) -> None:
        self._at += 1
        negated = self._text.startswith("^", self._at)
        self._at += negated
        members: list[str] = []
        is_first = True
        while is_first or not self._text.startswith("]", self._at):
            if self._at >= len(self._text):
                raise self._error("has a class without an end")
            is_first = False
            members.append(self._member())
        self._at += 1
        inside = "".join(members)
        if inside:
            self._out.append(f"[{'^' * negated}{inside}]")
        else:
            self._out.append(_ANYTHING if negated else _NOTHING)

    def _member(self) -> str:
        """The next member of a class, in Python's notation."""
        text, at = self._text, self._at
        if text.startswith("[:", at) and (match := _POSIX_CLASS.match(text, at)):
            if match["name"] not in _POSIX:
                raise self._error(f"has {match[0]}, which Go does not know")
            self._at = match.end()
            inside = _POSIX[match["name"]]
            if not match["not"]:
                return inside
            self._check_case(match[0], is_other_case=match["name"] in ("lower", "upper"))
            return _members(char for char in _ASCII if not re.fullmatch(f"[{inside}]", char))
        if text[at] == "\\" and text[at + 1 : at + 2] in ("d", "D", "w", "W", "s", "S"):
            self._at += 2
            return text[at : at + 2]
        if text[at] == "\\" and text[at + 1 : at + 2] in ("p", "P"):
            return self._property()
        low = self._char()
        if text[self._at : self._at + 1] != "-" or text[self._at + 1 : self._at + 2] in ("]", ""):
            return re.escape(low)
        self._at += 1
        high = self._char()
        if high < low:
            raise self._error(f"has the range {low}-{high}, which has no member")
        return f"{re.escape(low)}-{re.escape(high)}"

    def _property(self) -> str:
        """The ASCII characters of a Unicode property, as members of a class."""
        match = _PROPERTY.match(self._text, self._at)
        if match is None:
            raise self._error("has a property that Go does not know")
        name = match["name"] or match["letter"]
        wanted = (match["sort"] == "p") != bool(match["not"])
        if name == "Any":
            members = set(_ASCII)
        elif name == "Latin":
            members = {char for char in _ASCII if char.isalpha()}
        elif re.fullmatch(r"[CLMNPSZ][a-z]?", name):
            members = {char for char in _ASCII if unicodedata.category(char).startswith(name)}
        else:
            raise self._error(f"has {match[0]}, which can't be imported")
        self._check_case(match[0], is_other_case=not wanted and name in ("Lu", "Ll"))
        self._at = match.end()
        return _members(char for char in _ASCII if (char in members) == wanted)

    def _check_case(self, text: str, *, is_other_case: bool) -> None:
        """Refuse a negated case with case-insensitive matching: Go and Python disagree on it."""
        if is_other_case and re.search(r"\(\?[a-zA-Z-]*i", self._text):
            raise self._error(f"has {text} beside (?i), which can't be imported")

    def _error(self, words: str) -> ValueError:
        return ValueError(f"{self._text[:100]!r} {words}")


def _flags(on: str, off: str) -> str:
    """The group that flags open; a tag is one line, so that only case matters."""
    if "i" in off:
        return "(?-i:"
    return "(?i:" if "i" in on else "(?:"


def _members(chars: Iterable[str]) -> str:
    """Characters as members of a class, with ranges for neighbours."""
    ranges: list[list[str]] = []
    for char in chars:
        if ranges and ord(char) == ord(ranges[-1][-1]) + 1:
            ranges[-1][1:] = [char]
        else:
            ranges.append([char])
    return "".join("-".join(map(_in_class, members)) for members in ranges)


def _in_class(char: str) -> str:
    return char if char.isalnum() else f"\\x{ord(char):02x}"


# Ranges of versions. A plan's range takes pre-releases only where it names one; to these tools a pre-release is a
# version like any other. So a range that names none gets >=0.0.0-0, which every version is in.

_ALL = ">=0.0.0-0"

_COMPARATOR = re.compile(r"\s*(?P<operator>[<>=!~^]*)\s*(?P<version>[^\s<>=!~^,|]+)")
_PRERELEASE = r"(?:-(?P<pre>[0-9A-Za-z.-]+))?"
_FULL = re.compile(rf"(?P<numbers>[0-9]+\.[0-9]+\.[0-9]+){_PRERELEASE}(?:\+[0-9A-Za-z.-]+)?")
_WILD = re.compile(r"(?P<major>[0-9]+)\.(?:x(?:\.x)?|(?P<minor>[0-9]+)\.x)")
_SHORT = re.compile(rf"v?(?P<numbers>[0-9]+(?:\.[0-9]+){{0,2}}){_PRERELEASE}(?:\+[0-9A-Za-z.-]+)?")
_NUMBERS = re.compile(r"v?(?P<numbers>[0-9]+(?:\.[0-9]+){0,2})")


def ranges(texts: list[str], place: str) -> list[Piece]:
    """Check version ranges.

    Raises:
        UsageError: one is invalid.
    """
    try:
        return [escape(VersionRange.parse(text).text) for text in texts]
    except ValueError as error:
        raise UsageError(f"{place}: {error}") from error


def dregsy_range(text: str, place: str) -> Piece:
    """Convert a range of blang/semver v4: full versions or ``1.2.x``, a space for and, ``||`` for or.

    Raises:
        UsageError: it is invalid.
    """
    return _range([_comparators(part, _blang, place) for part in text.split("||")], place)


def regsync_range(text: str, place: str) -> Piece:
    """Convert a range of regclient: versions of one to three numbers, padded to three; a space for and.

    Raises:
        UsageError: it is invalid, or can't be imported.
    """
    if "|" in text or "," in text:
        raise _wrong(text, place)
    return _range([_comparators(text, _regclient, place)], place)


def ocync_range(text: str, place: str) -> Piece:
    """Convert a range of ocync, which compares only the numbers of versions; a comma for and.

    Raises:
        UsageError: it is invalid, or can't be imported.
    """
    return _range([[comparator for part in text.split(",") for comparator in _comparators(part, _ocync, place)]], place)


def _range(alternatives: list[list[str]], place: str) -> Piece:
    """A range of these comparators, with pre-releases in each alternative."""
    whole = [
        comparators if any("-" in words for words in comparators) else [*comparators, _ALL]
        for comparators in alternatives
    ]
    [found] = ranges([" || ".join(map(" ".join, whole))], place)
    return found


def _wrong(text: str, place: str) -> UsageError:
    return UsageError(f"{place}: {text[:100]!r} is not a version range that can be imported")


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
