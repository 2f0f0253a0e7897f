"""What a plan comes to: every image with its destination, and every tag and repository that is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import anyio
from anyio import CapacityLimiter

from asyncpush.errors import AsyncpushError, RegistryError, foreseen, only_cause
from asyncpush.events import Emit, Listener, ignore
from asyncpush.migrate.expansion import expand
from asyncpush.migrate.ledger import MigrationContext, Options, open_migration
from asyncpush.migrate.plan.model import Plan, PlanEntry
from asyncpush.migrate.report import UNDONE, Copy, CopyResult, LeftOutTag, NothingTaken
from asyncpush.migrate.source_listing import SourceListing
from asyncpush.settings import Settings

#: Entries whose tags are listed at once.
_ENTRIES_AT_ONCE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """A plan with its patterns and tags looked up.

    Attributes:
        entries: the entries in the plan's order, with one for each repository that a pattern chooses; each with its
            copies, in the order of their tags.
        left_out: tags and repositories that the plan does not select.
        nothing_taken: entries that select no tag.
        failed: copies that can't be made: their tag is not there, or their source can't be listed.
    """

    entries: Sequence[tuple[PlanEntry, Sequence[Copy]]]
    left_out: Sequence[LeftOutTag]
    nothing_taken: Sequence[NothingTaken]
    failed: Sequence[CopyResult]


async def resolve_plan(plan: Plan, *, settings: Settings | None = None, emit: Emit = ignore) -> Resolution:
    """Find out which images *plan* asks for; targets are asked for nothing but their account.

    Args:
        plan: the plan.
        settings: the limits.
        emit: takes events, such as retries.

    Raises:
        PlanError: a pattern of the plan is a mistake.
        ConfigurationError: there is no region, no such profile, or no credentials for a target.
        SourceError: a registry does not list the repositories that a pattern needs.
    """
    async with open_migration(plan, Options(dry=True), settings or Settings(), Listener(emit)) as context:
        for opened in context.targets.values():
            try:
                # The addresses of its repositories name the account from now on.
                await opened.registry.account()
            except RegistryError:
                continue
        expanded = await expand(plan, context)
        copies = await _copies(expanded.entries, context)
        return Resolution(
            entries=[(entry, copies[entry]) for entry in dict.fromkeys(expanded.entries)],
            left_out=sorted(context.left_out, key=lambda tag: tag.source),
            nothing_taken=tuple(context.nothing_taken.values()),
            failed=tuple(result for result in context.results.values() if result.outcome in UNDONE),
        )


async def _copies(entries: Sequence[PlanEntry], context: MigrationContext) -> dict[PlanEntry, list[Copy]]:
    """The copies of each entry; as in a migration, the first of two for one destination gets it."""
    listing, at_once = SourceListing(context), CapacityLimiter(_ENTRIES_AT_ONCE)
    found: dict[PlanEntry, list[Copy]] = {entry: [] for entry in entries}

    async def add(entry: PlanEntry) -> None:
        async with at_once:
            try:
                with foreseen():
                    found[entry] = await listing.copies(entry)
            except AsyncpushError as error:
                for goal in entry.goals:
                    context.fail(listing.placeholder(entry, goal), error)

    with only_cause():
        async with anyio.create_task_group() as tg:
            for entry in found:
                tg.start_soon(add, entry)
    return {entry: [copy for copy in found[entry] if context.claim(copy)] for entry in found}
