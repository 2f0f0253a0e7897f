"""From patterns of repositories to an entry for each: registries are listed, and mistakes of the plan found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import filterfalse

import anyio

from asyncpush.errors import CREDENTIALS_LOST, RegistryError, SourceDeniedError, foreseen, only_cause
from asyncpush.events import Notice
from asyncpush.migrate.ledger import MigrationContext
from asyncpush.migrate.plan.diagnostics import Problems, member
from asyncpush.migrate.plan.load import name_of
from asyncpush.migrate.plan.model import Goal, Plan, PlanEntry, PlanTarget
from asyncpush.migrate.plan.references import Destinations
from asyncpush.migrate.plan.wildcards import RepositoryPattern, fill_in
from asyncpush.migrate.report import LeftOutTag
from asyncpush.reference import SCHEME, check_repository
from asyncpush.units import count_text

#: Repositories that a message lists.
_SHOWN = 3


async def expand(plan: Plan, context: MigrationContext) -> Plan:
    """*plan*, with an entry for each repository that its patterns choose; registries are listed once.

    Repositories that ``exclude`` leaves out are noted in the context.

    Raises:
        PlanError: a pattern matches nothing, two of its repositories have one destination, or ECR does not accept the
            name of one.
        SourceError: a registry does not list its repositories.
        RegistryError: ECR can't be reached.
    """
    hosts = list(dict.fromkeys(entry.host for entry in plan.entries if entry.pattern))
    if not hosts:
        return plan
    # What failed in an earlier run is known without a list.
    known = context.undone.repositories(plan) if context.undone else {}
    listed: dict[str, Collection[str]] = dict(known)

    async def list_host(host: str) -> None:
        with foreseen():
            listed[host] = await _repositories(context, host)

    with only_cause():
        async with anyio.create_task_group() as tg:
            for host in filterfalse(known.__contains__, hosts):
                tg.start_soon(list_host, host)
    problems = Problems()
    expansion = _Expansion(context, problems, is_whole=not known)
    made = [
        [entry] if entry.pattern is None else expansion.entries(entry, entry.pattern, listed[entry.host])
        for entry in plan.entries
    ]
    _check_destinations(plan, made, problems, context)
    problems.raise_any(name_of(plan.path))
    return replace(plan, entries=tuple(entry for entries in made for entry in entries))


async def _repositories(context: MigrationContext, host: str) -> Collection[str]:
    if not context.ecr_sources.has(host):
        return await context.source_pool.at(host).repositories()
    try:
        return (await context.ecr_sources.repositories(host)).keys()
    except CREDENTIALS_LOST:
        raise
    except RegistryError as error:
        raise SourceDeniedError(
            f"{host} does not list its repositories: {error.message}",
            hint=f"{error.hint or 'try again'}, or write an entry for each repository in the plan",
        ) from error


class _Expansion:
    """Makes entries of patterns.

    Args:
        context: the migration.
        problems: takes mistakes of the plan.
        is_whole: whether all repositories of a registry are known, so that a pattern without any is a mistake.
    """

    def __init__(self, context: MigrationContext, problems: Problems, *, is_whole: bool) -> None:
        self._context = context
        self._problems = problems
        self._is_whole = is_whole

    def entries(self, entry: PlanEntry, pattern: RepositoryPattern, names: Collection[str]) -> Sequence[PlanEntry]:
        """The entries of the repositories among *names* that *pattern* chooses."""
        place, choice = member(entry.place, "from"), pattern.choose(names)
        for idle in choice.idle if self._is_whole else ():
            self._context.emit(Notice(f"{member(entry.place, 'exclude')}: {idle} leaves no repository out"))
        for name, glob in choice.excluded:
            self._context.left_out.append(LeftOutTag(f"{entry.host}/{name}", None, f"excluded ({glob})"))
        if not choice.taken and self._is_whole:
            found = count_text(len(names), "repository", "repositories") if names else "no repositories"
            if choice.excluded:
                self._problems.add(place, f"exclude leaves none of the {len(choice.excluded)} repositories that match")
            else:
                self._problems.add(
                    place,
                    f"{entry.source[:300]} matches no repository: {entry.host} has {found} that you can see",
                    hint="check the name",
                )
        made = [entry_of(entry, name) for name in choice.taken]
        self._check_distinct(made)
        return [each for each in made if self._is_valid(each)]

    def _is_valid(self, entry: PlanEntry) -> bool:
        """Whether ECR accepts the names of an entry's destinations."""
        before = len(self._problems.places)
        for goal in entry.goals:
            with self._problems.at(f"{member(entry.place, 'from')}: {entry.source}"):
                check_repository(goal.repository, goal.target.registry.service)
        return len(self._problems.places) == before

    def _check_distinct(self, entries: Sequence[PlanEntry]) -> None:
        """Check that no two repositories of one pattern have the same destination."""
        sources: defaultdict[tuple[PlanTarget, str], list[str]] = defaultdict(list)
        for entry in entries:
            for goal in entry.goals:
                sources[goal.target, goal.repository].append(entry.source)
        for (_, repository), names in sources.items():
            if len(names) > 1:
                shown = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
                self._problems.add(
                    member(entries[0].place, "to"),
                    f"{shown} all go to {repository}",
                    hint="write {name}, or exclude all of them but one",
                )


def _check_destinations(
    plan: Plan, made: Sequence[Sequence[PlanEntry]], problems: Problems, context: MigrationContext
) -> None:
    """Check that no known tag of a repository comes from two images; single entries were checked before."""
    destinations = Destinations(problems)
    for entry in plan.entries:
        if entry.pattern is None:
            destinations.note(entry)
    destinations.notices.clear()
    for entry, entries in zip(plan.entries, made, strict=True):
        if entry.pattern is not None:
            for each in entries:
                destinations.note(each)
    for notice in destinations.notices:
        context.emit(Notice(notice))


def entry_of(entry: PlanEntry, name: str) -> PlanEntry:
    """The entry of one repository that the pattern of *entry* chooses."""
    goals = [Goal(goal.target, fill_in(goal.repository, name), goal.tag) for goal in entry.goals]
    return replace(
        entry,
        source=f"{entry.host}/{name}",
        location=f"{SCHEME}{entry.host}/{name}",
        repository=name,
        pattern=None,
        goals=tuple(goals),
    )
