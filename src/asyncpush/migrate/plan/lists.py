"""A plain list as a plan: a line each, ``SOURCE DESTINATION``, as ``asyncpush push`` takes them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from asyncpush.errors import InvalidReferenceError
from asyncpush.migrate.plan.goals import Goals
from asyncpush.migrate.plan.model import Entry, Plan, Target
from asyncpush.migrate.plan.origin import Origin, read_origin
from asyncpush.migrate.plan.problems import Problems
from asyncpush.migrate.plan.tags import TagRules
from asyncpush.reference import Destination, RegistryName, parse_destination

_KEY = re.compile(r"""["']?[A-Za-z0-9_./:*-]*["']?\s*:(?:\s|$)|["'{\[&!]|-\s|-$|---|%""")


def significant_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines that say something, with their numbers from 1."""
    for number, line in enumerate(text.splitlines(), 1):
        words = re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip()
        if words:
            yield number, words


def is_list(text: str) -> bool:
    """Whether *text* is a plain list, and no YAML or JSON, by its first line: neither ``KEY:`` nor an item."""
    first = next((line for _, line in significant_lines(text)), None)
    return first is not None and _KEY.match(first) is None


def words_of(line: str) -> list[str]:
    """The words of a line, which spaces or commas part."""
    return [word for word in re.split(r"[\s,]+", line) if word]


def read_list(text: str, base: Path, problems: Problems) -> Plan:
    """Read a list whole; blocks, since it looks for files. The plan is good only if there are no problems.

    A source in a registry without a tag is ``latest``; a destination without one gets the source's, and without a
    registry goes to the caller's own.

    Args:
        text: the list.
        base: the directory that paths are relative to.
        problems: takes what is wrong.
    """
    targets: dict[RegistryName, Target] = {}
    goals = Goals(problems)
    entries: list[Entry] = []
    for number, line in significant_lines(text):
        place = f"line {number}"
        words = words_of(line)
        if len(words) != 2:
            problems.add(place, f"{' '.join(words)[:300]!r} is not SOURCE DESTINATION")
            continue
        with problems.at(place):
            destination = parse_destination(words[1])
            origin = read_origin(words[0], base)
            target = targets.setdefault(destination.registry, _target(destination.registry))
            entry = _entry(place, words[0], origin, destination, target, goals)
            goals.note(entry)
            entries.append(entry)
    return Plan({}, tuple(targets.values()), tuple(entries), notices=tuple(goals.notices))


def _target(registry: RegistryName) -> Target:
    alias = f"/{registry.id}" if registry.service == "ecr-public" else ""
    return Target(f"{registry.host}{alias}" or "own", registry)


def _entry(place: str, source: str, origin: Origin, to: Destination, target: Target, goals: Goals) -> Entry:
    location, reference, tag = origin.location, origin.reference, origin.tag
    if origin.kind == "registry" and reference is None:
        reference = tag = "latest"
        location = f"{location}:latest"
    made = goals.make(to.repository, to.tag or tag, [target], place)
    if not made:
        raise InvalidReferenceError(f"{to} is no destination")
    return Entry(
        place=place,
        source=source,
        kind=origin.kind,
        location=location,
        host=origin.host,
        repository=origin.repository,
        reference=reference,
        tags=TagRules(names=(reference,) if reference else ()),
        goals=made,
    )
