"""Which entries of a plan are looked into together: lines of a list that bring images of one source to one place."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

import anyio

from asyncpush.migrate.plan.model import Entry, Target

#: Lines of a list that are looked into together: as many tags as one BatchGetImage takes.
_LINES_TOGETHER = 100


@dataclass(slots=True, eq=False)
class Group:
    """Entries that are looked into together: one, or lines of a list that bring images of one source to one place.

    Attributes:
        entries: the entries, in the plan's order.
        before: the groups that go to some of its places first: of two images for one place the plan's first has it.
        claimed: set when its places are claimed.
    """

    entries: list[Entry]
    before: Collection[Group]
    claimed: anyio.Event = field(default_factory=anyio.Event)

    def takes(self, entry: Entry) -> bool:
        """Whether *entry* can be looked into with these: a line is one image, and a request asks for many."""
        first = self.entries[0]
        return len(self.entries) < _LINES_TOGETHER and _source_of(first) == _source_of(entry) is not None


def _source_of(entry: Entry) -> tuple[object, ...] | None:
    """What entries have in common that are looked into together; None for those that are looked into alone."""
    if entry.kind == "local" or entry.reference is None:
        return None
    return entry.host, entry.repository, entry.platforms, [(goal.target, goal.repository) for goal in entry.goals]


def grouped(entries: Iterable[Entry]) -> list[Group]:
    """*entries* in groups, so that each place is claimed in the plan's order."""
    groups: list[Group] = []
    latest: dict[tuple[Target, str], Group] = {}
    for entry in entries:
        places = [(goal.target, goal.repository) for goal in entry.goals]
        before = list(dict.fromkeys(latest[place] for place in places if place in latest))
        if len(before) == 1 and before[0].takes(entry):
            before[0].entries.append(entry)
            continue
        groups.append(Group([entry], before))
        latest.update(dict.fromkeys(places, groups[-1]))
    return groups
