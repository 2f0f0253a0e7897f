"""Versions in tags: their order, and ranges of them as Masterminds/semver reads them (skopeo, regsync, helm).

A version is ``[v]MAJOR[.MINOR[.PATCH[.MORE]...]][-PRERELEASE][+BUILD]``; missing numbers count as 0, and semver.org
2.0.0, section 11, defines the order. A tag can't contain a plus sign, for which Helm writes ``_``. Other tags are below
all versions, ordered with digits by their value; but a tag that begins with two numbers, as 3.13.0rc2, is among the
versions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import total_ordering
from typing import Literal, TypeAlias

#: Characters of a range; the longest in use have a few dozen.
MAX_RANGE = 500

_WORDS = r"[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*"
_PRERELEASE = rf"(?:-(?P<pre>{_WORDS}))?(?:\+{_WORDS})?"
_VERSION = re.compile(
    r"v?(?P<major>[0-9]+)(?:\.(?P<minor>[0-9]+)(?:\.(?P<patch>[0-9]+)(?P<more>(?:\.[0-9]+)*))?)?"
    rf"(?:-(?P<pre>{_WORDS}))?(?:[+_](?P<build>[0-9A-Za-z_-]+(?:\.[0-9A-Za-z_-]+)*))?"
)

# 3.13.0rc2, 5.6.15.Final: a version to people, though not to semver. With a dot, so that no commit's digest is one.
_NEARLY = re.compile(r"v?(?P<numbers>[0-9]+(?:\.[0-9]+)+)[._-]?(?P<rest>.*)", re.DOTALL)
_BEFORE_RELEASE = re.compile(
    r"(?:a|alpha|b|beta|c|cr|dev|ea|m|milestone|pre|preview|rc|snapshot)(?![A-Za-z])", re.IGNORECASE
)

# A number of a range may be x, X or *, or be left out.
_PARTIAL = rf"v?(?P<major>[0-9]+|[xX*])(?:\.(?P<minor>[0-9]+|[xX*]))?(?:\.(?P<patch>[0-9]+|[xX*]))?{_PRERELEASE}"
_OPERATOR = r"(?P<operator>>=|=>|<=|=<|!=|~>|[=><~^])?"
_COMPARATOR = re.compile(rf"\s*{_OPERATOR}\s*{_PARTIAL}(?=[\s,]|$)\s*,?")
_HYPHEN = re.compile(r"(?<=[^\s,])\s+-\s+(?=[^\s,])")

_Identifier: TypeAlias = tuple[int, int, str]
_SPELLINGS = {"=>": ">=", "=<": "<=", "~>": "~", "": "="}

Operator = Literal["=", "!=", ">", ">=", "<", "<=", "~", "^"]


@total_ordering
@dataclass(frozen=True, slots=True)
class Version:
    """A version, without its build metadata, which does not matter for its order.

    Attributes:
        major: the first number.
        minor: the second.
        patch: the third.
        prerelease: the identifiers of a pre-release.
        more: the numbers after the third, without trailing zeros.
    """

    major: int
    minor: int = 0
    patch: int = 0
    prerelease: tuple[_Identifier, ...] = ()
    more: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Version | None:
        """Parse a version; None if *text* is not a version."""
        match = _VERSION.fullmatch(text)
        if match is None:
            return None
        major, minor, patch = (int(match[name] or 0) for name in ("major", "minor", "patch"))
        return cls(major, minor, patch, _identifiers(match["pre"]), _more(match["more"]))

    @property
    def is_prerelease(self) -> bool:
        """Whether it precedes its release."""
        return bool(self.prerelease)

    def __lt__(self, other: Version) -> bool:
        return self._order < other._order

    @property
    def _order(self) -> tuple[int, int, int, tuple[int, ...], bool, tuple[_Identifier, ...]]:
        return self.major, self.minor, self.patch, self.more, not self.prerelease, self.prerelease


def _more(text: str | None) -> tuple[int, ...]:
    """The numbers of ``.4.0.0``, without trailing zeros."""
    numbers = [int(number) for number in text.split(".")[1:]] if text else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def _identifiers(text: str | None) -> tuple[_Identifier, ...]:
    """Numbers come before words, and by their value."""
    words = text.split(".") if text else []
    return tuple((0, int(word), "") if word.isdigit() else (1, 0, word) for word in words)


_Natural: TypeAlias = tuple[tuple[int, int, str], ...]
VersionOrder: TypeAlias = tuple[int, tuple[Version, ...], int, _Natural, _Natural, str]


def version_order(tag: str) -> VersionOrder:
    """A sort key for tags, lowest first; it is unique for each tag.

    Versions come above all other tags, by semver's precedence; versions of equal precedence by their build metadata,
    where none comes first. Other tags are in natural order, with digits by their value.
    """
    match = _VERSION.fullmatch(tag)
    version = Version.parse(tag)
    if match and version:
        return 1, (version,), 0, _natural(match["build"] or ""), _natural(tag), tag
    nearly = _NEARLY.fullmatch(tag)
    if nearly:
        release = Version.parse(nearly["numbers"])
        # Right below the release, but above what semver takes for a pre-release; or above the release and its builds.
        place = -1 if _BEFORE_RELEASE.match(nearly["rest"]) else 1
        if release:
            return 1, (release,), place, _natural(nearly["rest"]), _natural(tag), tag
    return 0, (), 0, (), _natural(tag), tag


def _natural(text: str) -> _Natural:
    pieces = re.findall(r"[0-9]+|[^0-9]+", text)
    return tuple((0, int(piece), "") if piece[0] in "0123456789" else (1, 0, piece) for piece in pieces)


@dataclass(frozen=True, slots=True)
class Comparator:
    """One comparison of a range; a number that is None matches any."""

    operator: Operator
    major: int | None
    minor: int | None
    patch: int | None
    prerelease: tuple[_Identifier, ...]

    def matches(self, version: Version) -> bool:
        """Whether *version* matches; the range decides whether pre-releases can match."""
        if self.major is None:
            # It matches any version; no version is above, below or different from it.
            return self.operator not in ("!=", ">", "<")
        return self._compares(version, Version(self.major, self.minor or 0, self.patch or 0, self.prerelease))

    def _compares(self, version: Version, bound: Version) -> bool:
        match self.operator:
            case "=":
                return version == bound if self.is_exact else version >= bound and self._shares(version)
            case "!=":
                return version != bound if self.is_exact else not self._shares(version)
            case ">":
                return version > bound if self.is_exact else version > bound and not self._shares(version)
            case ">=":
                return version >= bound
            case "<":
                return version < bound
            case "<=":
                return version <= bound if self.is_exact else version < bound or self._shares(version)
            case "~":
                return version >= bound and self._shares(version)
            case "^":
                return version >= bound and self._is_compatible(version)

    def around(self) -> Iterator[Version]:
        """The least version of all, the bound, and those that follow it next."""
        yield Version(0)
        yield Version(0, prerelease=_identifiers("0"))
        major, minor, patch = self.major or 0, self.minor or 0, self.patch or 0
        for pre in ((), self.prerelease, (*self.prerelease, *_identifiers("0"))):
            yield Version(major, minor, patch, pre)
            yield Version(major, minor, patch + 1, pre)
            yield Version(major, minor + 1, 0, pre)
            yield Version(major + 1, 0, 0, pre)
        yield Version(major, minor, patch, more=(1,))

    @property
    def is_exact(self) -> bool:
        """Whether it names one version, and not all that begin like it."""
        return self.patch is not None

    def _shares(self, version: Version) -> bool:
        """Whether *version* has the same major number, and the same minor one if there is one here."""
        return version.major == self.major and self.minor in (None, version.minor)

    def _is_compatible(self, version: Version) -> bool:
        """Whether *version* has the same numbers up to the first that is not 0."""
        if version.major != self.major:
            return False
        if self.major or self.minor is None:
            return True
        if version.minor != self.minor:
            return False
        return bool(self.minor) or self.patch is None or version.patch == self.patch


@dataclass(frozen=True, slots=True)
class VersionRange:
    """A range such as ``>=2.40 <3 || 4.x``: all comparators of any alternative must match."""

    text: str
    alternatives: tuple[tuple[Comparator, ...], ...]

    @classmethod
    def parse(cls, text: str) -> VersionRange:
        """Parse a range.

        ``||`` means or, a comma or space means and; ``= != > >= < <= ~ ^``, ``1.2 - 1.4``, ``1.x``; 1.2 is 1.2.x.

        Raises:
            ValueError: *text* is not a range.
        """
        if len(text) > MAX_RANGE:
            raise ValueError(f"has {len(text)} characters; a range has up to {MAX_RANGE}")
        return cls(text, tuple(_alternative(part, text) for part in text.split("||")))

    @property
    def is_empty(self) -> bool:
        """Whether it contains no version; otherwise it contains one at or next to a bound."""
        return not any(
            self.matches(version)
            for alternative in self.alternatives
            for comparator in alternative
            for version in comparator.around()
        )

    def matches(self, version: Version) -> bool:
        """Whether *version* is in it; a pre-release only in an alternative that names one."""
        return any(
            (not version.is_prerelease or any(comparator.prerelease for comparator in alternative))
            and all(comparator.matches(version) for comparator in alternative)
            for alternative in self.alternatives
        )


def _alternative(part: str, whole: str) -> tuple[Comparator, ...]:
    text = _without_hyphens(part.strip())
    comparators: list[Comparator] = []
    at = 0
    while at < len(text):
        match = _COMPARATOR.match(text, at)
        if match is None:
            raise ValueError(
                f"{whole!r} is not a version range; write for example '>=1.2 <2', '~1.4 || 2.x' or '^1.2.3'"
            )
        comparators.append(_comparator(match))
        at = match.end()
    if not comparators:
        raise ValueError(f"{whole!r} has an empty alternative; write for example '>=1.2 <2', or '*' for all versions")
    return tuple(comparators)


def _without_hyphens(text: str) -> str:
    """``A - B`` as ``>=A <=B``."""
    words = re.split(r"\s+", _HYPHEN.sub("\0", text)) if "-" in text else [text]
    return " ".join(">={} <={}".format(*word.split("\0", 1)) if "\0" in word else word for word in words)


def _comparator(match: re.Match[str]) -> Comparator:
    operator: Operator = _SPELLINGS.get(match["operator"] or "", match["operator"])  # type: ignore[assignment] # by the pattern
    major, minor, patch = (_number(match[name]) for name in ("major", "minor", "patch"))
    if major is None:
        minor = None
    return Comparator(operator, major, minor, patch if minor is not None else None, _identifiers(match["pre"]))


def _number(text: str | None) -> int | None:
    return int(text) if text and text.isdigit() else None
