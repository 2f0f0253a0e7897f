"""Which tags of a repository to migrate: by name, by pattern, by version, the newest.

A regular expression that may backtrack for a very long time runs in a process of its own: Python's ``re`` holds the
interpreter while it matches, so that no other thread runs, no time limit counts and Ctrl-C does nothing.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import translate
from functools import lru_cache, partial
from typing import TypeAlias

import anyio
from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar

from asyncpush import open_files
from asyncpush.errors import AsyncpushError, UsageError, only_cause
from asyncpush.migrate.plan.versions import Version, VersionRange, version_order
from asyncpush.reference import is_tag, subject_of

#: Characters of a regular expression or glob, since each is matched against many tags.
MAX_PATTERN = 1000

#: Patterns of one kind that a message lists.
_SHOWN = 5


#: Whether a regular expression matches a tag.
MatchesRegex: TypeAlias = Callable[[str, str], bool]


@dataclass(frozen=True, slots=True)
class Patterns:
    """Patterns of tags, by kind.

    Attributes:
        glob: shell wildcards: ``*``, ``?``, ``[...]``.
        regex: Python's regular expressions; each must match the whole tag.
        semver: ranges of versions.
    """

    glob: tuple[str, ...] = ()
    regex: tuple[str, ...] = ()
    semver: tuple[VersionRange, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.glob or self.regex or self.semver)


@dataclass(frozen=True, slots=True)
class Alternative:
    """One set of patterns that can select a tag.

    Attributes:
        patterns: one pattern of each kind must match.
        exclude: none of these may match.
        exclude_names: the tag may not have one of these names.
    """

    patterns: Patterns = field(default_factory=Patterns)
    exclude: Patterns = field(default_factory=Patterns)
    exclude_names: tuple[str, ...] = ()

    def refuses(self, tag: str, regex: MatchesRegex | None = None) -> str | None:
        """Why *tag* is not selected; None if it is. *regex* tells whether a regular expression matches."""
        for kind, matches in _matches(self.patterns, tag, regex):
            if not any(matches):
                version = Version.parse(tag) if kind == "semver" else None
                return f"matches no {kind}" + (" (a pre-release)" if version and version.is_prerelease else "")
        excluded = tag in self.exclude_names or any(any(matches) for _, matches in _matches(self.exclude, tag, regex))
        return "excluded" if excluded else None


@dataclass(frozen=True, slots=True)
class TagRules:
    """Which tags to migrate; without any rule, all of them.

    Attributes:
        names: tags that are selected by name, whatever the other rules say.
        patterns: of the other tags, those that match one pattern of each kind,
        alternatives: and, if there are any, one of these,
        exclude: and that none of these patterns matches,
        exclude_names: and that do not have one of these names.
        newest: of these, only so many, the highest versions; None for all.
    """

    names: tuple[str, ...] = ()
    patterns: Patterns = field(default_factory=Patterns)
    alternatives: tuple[Alternative, ...] = ()
    exclude: Patterns = field(default_factory=Patterns)
    exclude_names: tuple[str, ...] = ()
    newest: int | None = None

    @property
    def has_patterns(self) -> bool:
        """Whether there are rules other than exclude and newest."""
        return bool(self.patterns or self.alternatives)

    @property
    def needs_listing(self) -> bool:
        """Whether the source's list of tags is needed; if not, ``names`` are all the tags."""
        return not self.names or self.has_patterns

    def refuses(self, tag: str, regex: MatchesRegex | None = None) -> str | None:
        """Why no pattern selects *tag*; None if one does. *regex* tells whether a regular expression matches."""
        reason = Alternative(self.patterns, self.exclude, self.exclude_names).refuses(tag, regex)
        if (
            reason is None
            and self.alternatives
            and all(alternative.refuses(tag, regex) for alternative in self.alternatives)
        ):
            return "matches no alternative of any"
        return reason

    def __str__(self) -> str:
        """The rules in one line, for people."""
        words = [*_words("names", self.names), *_described(self.patterns)]
        if self.alternatives:
            words.append("any: " + " or ".join(map(_alternative_text, self.alternatives)))
        words += [f"exclude {text}" for text in (*_words("names", self.exclude_names), *_described(self.exclude))]
        if self.newest is not None:
            words.append(f"newest: {self.newest}")
        return "; ".join(words) or "all tags"


@dataclass(frozen=True, slots=True)
class SkippedTag:
    """A tag that is not selected, and why."""

    tag: str
    reason: str


@dataclass(frozen=True, slots=True)
class Selection:
    """The tags that rules select from a list.

    Attributes:
        taken: the selected tags: first those by name in the order of the rules, then the others in that of the list.
        left_out: all others.
        missing: names that are not in the list.
    """

    taken: tuple[str, ...]
    left_out: tuple[SkippedTag, ...]
    missing: tuple[str, ...]


def select(
    rules: TagRules, tags: Sequence[str], *, any_name: bool = False, regex: MatchesRegex | None = None
) -> Selection:
    """Select among all tags of a repository.

    Tags of signatures and referrers are selected by name only: they go with the image that they refer to. An empty text
    stands for an untagged image in an archive; it is selected if there are neither names nor patterns. This belongs in
    a worker thread, since thousands of tags take long.

    Args:
        rules: the rules.
        tags: the tags of the source.
        any_name: also select names that are not valid tags: layouts and archives may have any.
        regex: tells whether a regular expression matches a tag, if that was found out before (``choose``).
    """
    listed = dict.fromkeys(tags)
    names = dict.fromkeys(rules.names)
    reasons: dict[str, str] = {}
    matching: list[str] = []
    for tag in listed:
        if tag in names:
            continue
        reason = _refused(rules, tag, regex) if is_tag(tag) or not tag or any_name else "not a valid tag in ECR"
        if reason is None:
            matching.append(tag)
        else:
            reasons[tag] = reason
    if rules.newest is not None and len(matching) > rules.newest:
        newest = set(sorted(matching, key=version_order)[len(matching) - rules.newest :])
        reasons |= {tag: f"not among the newest {rules.newest}" for tag in matching if tag not in newest}
        matching = [tag for tag in matching if tag in newest]
    return Selection(
        taken=(*(name for name in names if name in listed), *matching),
        left_out=tuple(SkippedTag(tag, reasons[tag]) for tag in listed if tag in reasons),
        missing=tuple(name for name in names if name not in listed),
    )


def check_regex(pattern: str) -> None:
    """Check that *pattern* is a regular expression.

    Raises:
        ValueError: it is not, or is too long.
    """
    _check_length(pattern)
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{pattern[:100]!r} is not a regular expression: {error}") from error


def check_glob(pattern: str) -> None:
    """Check that *pattern* can match a tag.

    Raises:
        ValueError: it is empty or too long.
    """
    _check_length(pattern)


def _check_length(pattern: str) -> None:
    if not 0 < len(pattern) <= MAX_PATTERN:
        raise ValueError(f"has {len(pattern)} characters; a pattern has 1 to {MAX_PATTERN}")


def _refused(rules: TagRules, tag: str, regex: MatchesRegex | None) -> str | None:
    """Why *tag* is not selected by pattern; None if it is."""
    if not tag:
        return "has no tag" if rules.names or rules.has_patterns else None
    if (digest := subject_of(tag)) is not None:
        return f"a signature or referrer of {digest}"
    if rules.names and not rules.has_patterns:
        return "not among the names"
    return rules.refuses(tag, regex)


def matches_regex(pattern: str, tag: str) -> bool:
    """Whether a regular expression matches all of a tag."""
    return _compiled(str, pattern)(tag)


def _matches(patterns: Patterns, tag: str, regex: MatchesRegex | None) -> Iterator[tuple[str, Iterator[bool]]]:
    """For each kind of pattern, which of them match."""
    if patterns.glob:
        yield "glob", (_compiled(translate, pattern)(tag) for pattern in patterns.glob)
    if patterns.regex:
        yield "regex", ((regex or matches_regex)(pattern, tag) for pattern in patterns.regex)
    if patterns.semver:
        version = Version.parse(tag)
        yield "semver", (version is not None and pattern.matches(version) for pattern in patterns.semver)


def _described(patterns: Patterns) -> Iterator[str]:
    yield from _words("glob", patterns.glob)
    yield from _words("regex", patterns.regex)
    yield from _words("semver", [pattern.text for pattern in patterns.semver])


def _words(kind: str, texts: Sequence[str]) -> Iterator[str]:
    if texts:
        shown = [*texts[:_SHOWN], *(["..."] if len(texts) > _SHOWN else [])]
        yield f"{kind}: {', '.join(shown)}"


def _alternative_text(alternative: Alternative) -> str:
    excluded = (*_words("names", alternative.exclude_names), *_described(alternative.exclude))
    return "(" + "; ".join([*_described(alternative.patterns), *(f"exclude {text}" for text in excluded)]) + ")"


@lru_cache(maxsize=100_000)  # fewer than a plan's patterns would compile each of them for each tag
def _compiled(translated: Callable[[str], str], pattern: str) -> Callable[[str], bool]:
    compiled = re.compile(translated(pattern))
    return lambda tag: compiled.fullmatch(tag) is not None


#: Seconds for matching all patterns of an entry with all tags of its source.
MATCH_TIMEOUT = 20

#: Matching processes at once.
_AT_ONCE = 2

#: Escapes and sets, which contain no operators.
_LITERAL = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_REPEATED_GROUP = re.compile(r"\)[*+{]")
_QUANTIFIER = re.compile(r"[*+?{]")
_REFERENCE = re.compile(r"\\[1-9]|\(\?P=")
#: This many quantifiers of single characters cost at most some million steps for the longest tag.
_HARMLESS = 3

_PROGRAM = """
import json, re, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGALRM, signal.SIG_DFL)
signal.alarm(int(sys.argv[1]))
patterns, tags = json.load(sys.stdin)
found = []
for pattern in patterns:
    matches = re.compile(pattern).fullmatch
    found.append([at for at, tag in enumerate(tags) if matches(tag)])
json.dump(found, sys.stdout)
"""

_processes: RunVar[CapacityLimiter] = RunVar("matching_processes")


async def choose(rules: TagRules, tags: Sequence[str], source: str, *, any_name: bool = False) -> Selection:
    """``select``, without blocking other tasks, and with a time limit.

    Args:
        rules: the rules.
        tags: the tags of the source.
        source: the name of the source, for errors.
        any_name: see ``select``.

    Raises:
        UsageError: a regular expression takes too long.
        AsyncpushError: one that may take too long can't be matched in a process of its own.
    """
    doubtful = [pattern for pattern in dict.fromkeys(_regexes(rules)) if may_backtrack(pattern)]
    regex: Callable[[str, str], bool] = matches_regex
    if doubtful and tags:
        found = await _found(doubtful, tags, source)

        def regex(pattern: str, tag: str) -> bool:
            return tag in found[pattern] if pattern in found else matches_regex(pattern, tag)

    # There may be many patterns and tags.
    return await to_thread.run_sync(partial(select, rules, tags, any_name=any_name, regex=regex))


def may_backtrack(pattern: str) -> bool:
    """Whether *pattern* may take very long for some text."""
    bare = _LITERAL.sub("", pattern)
    return (
        _REPEATED_GROUP.search(bare) is not None
        or _REFERENCE.search(pattern) is not None
        or len(_QUANTIFIER.findall(bare)) > _HARMLESS
    )


def _regexes(rules: TagRules) -> Iterator[str]:
    for alternative in (Alternative(rules.patterns, rules.exclude), *rules.alternatives):
        yield from alternative.patterns.regex
        yield from alternative.exclude.regex


async def _found(patterns: Sequence[str], tags: Sequence[str], source: str) -> dict[str, frozenset[str]]:
    """Which of *tags* each pattern matches, found in a process that ends by itself if it takes too long."""
    try:
        limiter = _processes.get()
    except LookupError:
        limiter = CapacityLimiter(_AT_ONCE)
        _processes.set(limiter)
    command = [sys.executable, "-I", "-S", "-c", _PROGRAM, str(MATCH_TIMEOUT)]
    asked = json.dumps([patterns, tags]).encode()
    shown = ", ".join(repr(pattern[:100]) for pattern in patterns[:3])
    try:
        with only_cause():
            async with limiter:
                # In its own session, Ctrl-C does not reach it; it ends with the task that waits for it.
                done = await anyio.run_process(
                    command, input=asked, stderr=subprocess.DEVNULL, check=False, start_new_session=True
                )
    except OSError as error:
        raise _unmatched(shown, source, open_files.reason(error)) from error
    except anyio.BrokenResourceError as error:
        raise _unmatched(shown, source, "it ended before it had read them") from error
    if done.returncode == -signal.SIGALRM:
        raise UsageError(
            f"a regular expression takes more than {MATCH_TIMEOUT} seconds for the tags of {source}: {shown}",
            hint="avoid nested repetitions, or use a glob",
        )
    if done.returncode != 0:
        # To match in this process instead could hold it up for ever.
        raise _unmatched(shown, source, f"it ended with status {done.returncode}")
    found: list[list[int]] = json.loads(done.stdout)
    return {pattern: frozenset(tags[at] for at in matched) for pattern, matched in zip(patterns, found, strict=True)}


def _unmatched(patterns: str, source: str, reason: str) -> AsyncpushError:
    return AsyncpushError(
        f"Python can't be run to match the tags of {source} with a regular expression that may take very long: "
        f"{patterns}: {reason}",
        hint="avoid nested repetitions, or use a glob",
    )
