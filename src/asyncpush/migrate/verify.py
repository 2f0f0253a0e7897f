"""Whether ECR has what a plan asks for: each image, signature, attestation and SBOM, complete, as the source has it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import anyio

from asyncpush.engine.referrers import subjects_of
from asyncpush.errors import AsyncpushError, foreseen, only_cause
from asyncpush.events import Emit, Listener, Notice, ignore
from asyncpush.journal import SqliteJournal
from asyncpush.migrate.expansion import expand
from asyncpush.migrate.ledger import MigrationContext, Options, open_migration
from asyncpush.migrate.plan.model import Plan, PlanEntry, PlanTarget
from asyncpush.migrate.referrers import Referrers
from asyncpush.migrate.report import Copy
from asyncpush.migrate.settings_check import compare_settings
from asyncpush.migrate.source_listing import SourceListing
from asyncpush.migrate.targets import prepare
from asyncpush.model import Digest
from asyncpush.protocols import Image, ReferrerSource
from asyncpush.reference import Destination
from asyncpush.results import Results
from asyncpush.settings import Settings
from asyncpush.verify import (
    Proofs,
    SettingsVerification,
    Verification,
    VerificationFailure,
    VerificationTarget,
    VerificationWatcher,
    Verifier,
    expected_targets,
    reads_at_once,
)


async def verify_plan(
    plan: Plan,
    *,
    settings: Settings | None = None,
    emit: Emit = ignore,
    deep: bool = False,
    repository_settings: bool = True,
    journal: SqliteJournal | None = None,
    proved_within: float | None = None,
    watcher: VerificationWatcher | None = None,
) -> Results[Verification | VerificationFailure | SettingsVerification]:
    """Compare what *plan* asks for with what ECR has; nothing is changed.

    Args:
        plan: the plan that was migrated.
        settings: the limits.
        emit: takes events, such as retries.
        deep: read every blob and compare its digest, instead of asking whether it exists.
        repository_settings: compare the settings of repositories with those that the plan states, too.
        journal: keeps which images were whole.
        proved_within: do not read images again whose bytes were read in the last so many seconds, as *journal* has it.
        watcher: hears of each result as soon as it is known.

    Returns:
        A result for each image and each of its referrers; a failure where source or target could not be read; and a
        result for each repository of which the plan states settings.

    Raises:
        JournalError: the journal can't be written.
    """
    options, watcher = Options(dry=True), watcher or VerificationWatcher()
    settings = settings or Settings()
    reads = reads_at_once(settings) if deep else None
    proofs = Proofs(journal, proved_within) if journal else None
    async with open_migration(plan, options, settings, Listener(emit)) as context:
        plan = await expand(plan, context)
        await prepare(plan, context.targets, dry=True, reads_settings=False)
        verifiers = {
            target: Verifier(opened.registry, reads=reads, watcher=watcher, proofs=proofs)
            for target, opened in context.targets.items()
        }
        run = _Run(context, verifiers, watcher)
        with only_cause():
            async with anyio.create_task_group() as tg:
                tg.start_soon(run.verify, plan)
                if repository_settings:
                    tg.start_soon(run.compare_settings, plan)
        return Results([*run.unread, *run.verified, *run.compared])


class _Run:
    """The verification of a plan: sources are read, and each repository is verified once all that goes there is known.

    Attributes:
        unread: what is unknown, since its source could not be read.
        verified: the results of images.
        compared: the results of settings.
    """

    def __init__(
        self, context: MigrationContext, verifiers: dict[PlanTarget, Verifier], watcher: VerificationWatcher
    ) -> None:
        self.unread: list[VerificationFailure] = []
        self.verified: list[Verification | VerificationFailure] = []
        self.compared: list[SettingsVerification] = []
        self._context = context
        self._verifiers = verifiers
        self._watcher = watcher
        self._expectation = _Expectation(context, verifiers)

    async def verify(self, plan: Plan) -> None:
        """Verify the images of *plan*."""
        entries_of: defaultdict[tuple[PlanTarget, str], list[PlanEntry]] = defaultdict(list)
        for entry in plan.entries:
            for goal in entry.goals:
                entries_of[goal.target, goal.repository].append(entry)
        known = {entry: anyio.Event() for entry in plan.entries}
        found: dict[tuple[PlanTarget, str], list[Verification | VerificationFailure]] = {}

        async def read(entry: PlanEntry) -> None:
            await self._expectation.add(entry)
            known[entry].set()

        async def verify(target: PlanTarget, repository: str) -> None:
            for entry in entries_of[target, repository]:
                await known[entry].wait()
            if targets := self._expectation.targets[target, repository]:
                found[target, repository] = await self._verifiers[target].verify(repository, list(targets))

        async with anyio.create_task_group() as tg:
            for target, repository in entries_of:
                tg.start_soon(verify, target, repository)
            async with anyio.create_task_group() as reading:
                for entry in plan.entries:
                    reading.start_soon(read, entry)
            self._note_unread()
        self.verified = [result for key in entries_of for result in found.get(key, ())]

    async def compare_settings(self, plan: Plan) -> None:
        """Compare the settings of the repositories of *plan*."""
        self.compared = await compare_settings(plan, self._context.targets, self._watcher)

    def _note_unread(self) -> None:
        for nothing_taken in self._context.nothing_taken.values():
            self._context.emit(Notice(str(nothing_taken)))
        for result in self._context.results.values():
            if result.error is not None:
                self.unread.append(VerificationFailure(result.copy.destination, result.error))
                self._watcher.found(self.unread[-1])


class _Expectation:
    """What the targets should have of the plan's entries, as the sources have it now.

    Attributes:
        targets: each image and referrer, by the plan's target and the repository.
    """

    def __init__(self, context: MigrationContext, verifiers: dict[PlanTarget, Verifier]) -> None:
        self.targets: defaultdict[tuple[PlanTarget, str], dict[VerificationTarget, None]] = defaultdict(dict)
        self._context = context
        self._verifiers = verifiers
        self._listing = SourceListing(context)
        self._referrers = Referrers(context)

    async def add(self, entry: PlanEntry) -> None:
        """Add the images of *entry*; if its source can't be read, its copies have failed."""
        try:
            with foreseen():
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
        opened = self._context.targets[copy.goal.target]
        repository = copy.goal.repository
        known = self.targets[opened.target, repository]
        for target in expected_targets(image, Destination(opened.registry.name, repository, tag)):
            alone = len(self._context.targets) == 1
            name = opened.destination(repository, target.destination.tag, alone=alone)
            named = replace(target, name=name)
            if named not in known:
                known[named] = None
                self._verifiers[opened.target].expect(named)
