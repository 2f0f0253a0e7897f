"""Regular expressions of a plan against tags of others: what may backtrack for ever runs where it can be ended.

Python's ``re`` holds the interpreter while it matches: no other thread runs, no time limit counts, and no Ctrl-C.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import anyio
from anyio import CapacityLimiter, to_thread
from anyio.lowlevel import RunVar

from asyncpush.errors import UsageError
from asyncpush.migrate.plan.tags import Alternative, Selection, TagRules, matches_regex, select

#: Seconds for all patterns of an entry and all tags of its source.
MATCH_TIMEOUT = 20

#: Processes at once.
_AT_ONCE = 2

#: Escapes and sets, which have no operators in them.
_LITERAL = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_REPEATED_GROUP = re.compile(r"\)[*+{]")
_QUANTIFIER = re.compile(r"[*+?{]")
_REFERENCE = re.compile(r"\\[1-9]|\(\?P=")
#: So many quantifiers of single characters cost some million steps for the longest tag.
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
    """``select``, without holding up anybody else, and not for ever.

    Args:
        rules: what is wanted.
        tags: what is there.
        source: whose tags they are, for errors.
        any_name: see ``select``.

    Raises:
        UsageError: a regular expression takes too long.
    """
    doubtful = [pattern for pattern in dict.fromkeys(_regexes(rules)) if may_backtrack(pattern)]
    regex: Callable[[str, str], bool] = matches_regex
    if doubtful and tags and sys.executable:
        found = await _found(doubtful, tags, source)

        def regex(pattern: str, tag: str) -> bool:
            return tag in found[pattern] if pattern in found else matches_regex(pattern, tag)

    # Patterns are the user's, and tags may be many.
    return await to_thread.run_sync(partial(select, rules, tags, any_name=any_name, regex=regex))


def may_backtrack(pattern: str) -> bool:
    """Whether there may be a text that *pattern* takes very long for."""
    bare = _LITERAL.sub("", pattern)
    return (
        _REPEATED_GROUP.search(bare) is not None
        or _REFERENCE.search(pattern) is not None
        or len(_QUANTIFIER.findall(bare)) > _HARMLESS
    )


def _regexes(rules: TagRules) -> Iterator[str]:
    for each in (Alternative(rules.patterns, rules.exclude), *rules.alternatives):
        yield from each.patterns.regex
        yield from each.exclude.regex


async def _found(patterns: Sequence[str], tags: Sequence[str], source: str) -> dict[str, frozenset[str]]:
    """Which of *tags* each pattern matches, found in a process that ends by itself if nobody ends it."""
    try:
        limiter = _processes.get()
    except LookupError:
        limiter = CapacityLimiter(_AT_ONCE)
        _processes.set(limiter)
    command = [sys.executable, "-I", "-S", "-c", _PROGRAM, str(MATCH_TIMEOUT)]
    asked = json.dumps([patterns, tags]).encode()
    async with limiter:
        # In a session of its own, Ctrl-C does not reach it: it is ended with the task that waits for it.
        done = await anyio.run_process(
            command, input=asked, stderr=subprocess.DEVNULL, check=False, start_new_session=True
        )
    if done.returncode == -signal.SIGALRM:
        raise UsageError(
            f"a regular expression takes more than {MATCH_TIMEOUT} seconds for the tags of {source}: "
            f"{', '.join(repr(pattern[:100]) for pattern in patterns[:3])}",
            hint="write it without repetitions in repetitions, or as a glob",
        )
    if done.returncode != 0:
        return {}  # no process can be had, or it has no memory: then here, as good as it goes
    found: list[list[int]] = json.loads(done.stdout)
    return {pattern: frozenset(tags[at] for at in matched) for pattern, matched in zip(patterns, found, strict=True)}
