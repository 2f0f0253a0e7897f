"""Whether ECR has what a plan asks for: each image, signature, attestation and SBOM, complete, as the source has it."""

from __future__ import annotations

from collections import defaultdict

import anyio

from asyncpush.engine.referrers import subjects_of
from asyncpush.errors import AsyncpushError, only_cause
from asyncpush.events import Emit, Listener, Notice, ignore
from asyncpush.migrate.expansion import expand
from asyncpush.migrate.ledger import MigrationContext, Options, open_migration
from asyncpush.migrate.plan.model import Plan, PlanEntry, PlanTarget
from asyncpush.migrate.referrers import Referrers
from asyncpush.migrate.report import Copy
from asyncpush.migrate.source_listing import SourceListing
from asyncpush.migrate.targets import prepare
from asyncpush.model import Digest
from asyncpush.protocols import Image, ReferrerSource
from asyncpush.reference import Destination
from asyncpush.results import Results
from asyncpush.settings import Settings
from asyncpush.verify import Verification, VerificationFailure, VerificationTarget, expected_targets, verify_all


async def verify_plan(
    plan: Plan, *, settings: Settings | None = None, emit: Emit = ignore, deep: bool = False
) -> Results[Verification | VerificationFailure]:
    """Compare what *plan* asks for with what ECR has; nothing is changed.

    Args:
        plan: the plan that was migrated.
        settings: the limits.
        emit: takes events, such as retries.
        deep: read every blob and compare its digest, instead of asking whether it exists.

    Returns:
        A result for each image and each of its referrers; a failure where source or target could not be read.
    """
    options = Options(dry=True)
    async with open_migration(plan, options, settings or Settings(), Listener(emit)) as context:
        plan = await expand(plan, context)
        await prepare(plan, context.targets, dry=True, reads_settings=False)
        expectation = _Expectation(context)
        with only_cause():
            async with anyio.create_task_group() as tg:
                for entry in plan.entries:
                    tg.start_soon(expectation.add, entry)
        for nothing_taken in context.nothing_taken.values():
            context.emit(Notice(str(nothing_taken)))
        unread = [
            VerificationFailure(result.copy.destination, result.error)
            for result in context.results.values()
            if result.error is not None
        ]
        verified: list[Verification | VerificationFailure] = []
        for opened in context.targets.values():
            if targets := list(dict.fromkeys(expectation.targets[opened.target])):
                verified += await verify_all(opened.registry, targets, deep=deep)
        return Results(unread + verified)


class _Expectation:
    """What the targets should have of the plan's entries, as the sources have it now.

    Attributes:
        targets: each image and referrer, by the plan's target.
    """

    def __init__(self, context: MigrationContext) -> None:
        self.targets: defaultdict[PlanTarget, list[VerificationTarget]] = defaultdict(list)
        self._context = context
        self._listing = SourceListing(context)
        self._referrers = Referrers(context)

    async def add(self, entry: PlanEntry) -> None:
        """Add the images of *entry*; if its source can't be read, its copies have failed."""
        try:
            copies = await self._listing.copies(entry)
            if entry.kind == "local":
                loaded = await self._listing.load_archive(entry, copies)
            else:
                descriptors = await self._listing.resolve(entry, copies)
                found = [copy for copy in copies if copy.reference in descriptors]
                loaded = await self._listing.load(entry, found, descriptors)
        except AsyncpushError as error:
            for goal in entry.goals:
                self._context.fail(self._listing.copy(entry, goal, ""), error)
            return
        async with anyio.create_task_group() as tg:
            for copy, image in loaded:
                self._add_image(copy, image, copy.tag)
                if entry.referrers and (entry.kind == "registry" or image.referrers):
                    for subject in subjects_of(image.root):
                        tg.start_soon(self._add_referrers, copy, subject, image.referrers, 1)

    async def _add_referrers(self, copy: Copy, subject: Digest, source: ReferrerSource | None, depth: int) -> None:
        found = await self._referrers.find(copy, subject, source, depth)
        for unread in found.unread:
            self._context.fail(copy, unread.error)
        for referrer in found.referrers:
            if referrer.root.manifest:
                self._add_image(copy, referrer, referrer.tag)
                await self._add_referrers(copy, referrer.root.manifest.digest, source, depth + 1)

    def _add_image(self, copy: Copy, image: Image, tag: str | None) -> None:
        target = copy.goal.target
        destination = Destination(self._context.targets[target].registry.name, copy.goal.repository, tag)
        self.targets[target] += expected_targets(image, destination)
