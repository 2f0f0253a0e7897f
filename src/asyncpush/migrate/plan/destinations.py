"""Where entries go, and that no two images go to one tag."""

from __future__ import annotations

from dataclasses import dataclass, field

from asyncpush.errors import InvalidReferenceError
from asyncpush.migrate.plan.diagnostics import Problems
from asyncpush.migrate.plan.model import Goal, PlanEntry, PlanTarget
from asyncpush.reference import check_repository, destination, is_tag, parse_registry


def read_to(text: str) -> tuple[str, str | None]:
    """Read ``REPOSITORY[:TAG]``.

    Raises:
        InvalidReferenceError: it is not well formed, or names a registry.
    """
    first, slash, _ = text.partition("/")
    if slash and _is_registry(first):
        raise InvalidReferenceError(f"{text[:300]!r} names a registry", hint="give it as a target")
    if "@" in text:
        raise InvalidReferenceError(f"{text[:300]!r} names a digest", hint="write REPOSITORY[:TAG]")
    name, _, tag = text.rpartition(":") if ":" in text else (text, "", None)
    if not name:
        raise InvalidReferenceError(
            f"{text[:300]!r} names no repository", hint="write REPOSITORY[:TAG]; a variable in it may be empty"
        )
    if tag is None:
        return name, None
    if not is_tag(tag):
        raise InvalidReferenceError(f"{tag[:140]!r} is not a tag", hint="write REPOSITORY[:TAG]")
    return name, tag


def _is_registry(text: str) -> bool:
    try:
        parse_registry(text)
    except InvalidReferenceError:
        return False
    return True


@dataclass(slots=True)
class Destinations:
    """Makes goals, and remembers which tags have a source already.

    Attributes:
        problems: takes what is wrong.
        notices: entries that say the same.
    """

    problems: Problems
    notices: list[str] = field(default_factory=list)
    _taken: dict[tuple[object, ...], PlanEntry] = field(default_factory=dict)

    def make(self, name: str, tag: str | None, targets: list[PlanTarget], place: str) -> tuple[Goal, ...]:
        """The goals of an entry, one for each of *targets*; wrong names are noted at *place*."""
        goals = []
        for target in targets:
            repository = f"{target.prefix}/{name}" if target.prefix else name
            with self.problems.at(place):
                check_repository(repository, target.registry.service)
                goals.append(Goal(target, repository, tag))
        return tuple(goals)

    def note(self, entry: PlanEntry) -> None:
        """See that none of *entry*'s tags, as far as they are known yet, comes from another entry's image."""
        for goal in entry.goals:
            tags = entry.tags.names if entry.reference is None else ()
            for tag in (goal.tag,) if goal.tag else tags:
                self._note(entry, goal, tag)

    def _note(self, entry: PlanEntry, goal: Goal, tag: str) -> None:
        registry, aws = goal.target.registry, goal.target.aws
        # Two targets can be one registry.
        account = (registry.id, registry.region or aws.region, aws.endpoint_url, None if registry.id else aws.profile)
        key = (registry.service, *account, goal.repository, tag)
        other = self._taken.setdefault(key, entry)
        if other is entry:
            return
        where = str(destination(registry, goal.repository, tag))
        if _image(other, tag) != _image(entry, tag):
            self.problems.add(
                entry.place,
                f"{where} comes from {entry.source[:300]}, and in {other.place} from {other.source[:300]}",
                hint="change one of the tags or repositories",
            )
        else:
            self.notices.append(f"{entry.place}: {where} is in {other.place} already")


def _image(entry: PlanEntry, tag: str) -> tuple[object, ...]:
    """What tells an entry's image from others; under one tag at the goal, it has one at the source."""
    if entry.kind == "local":
        return entry.kind, entry.location, frozenset(entry.platforms)
    return entry.host, entry.repository, entry.reference or tag, frozenset(entry.platforms)
