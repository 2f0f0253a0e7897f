"""A migration, from its plan to its report: discovery and pushes overlap, over all repositories."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import anyio

from asyncpush.errors import (
    CREDENTIALS_LOST,
    AsyncpushError,
    InterruptedRunError,
    UnforeseenError,
    leaf_errors,
    only_cause,
)
from asyncpush.events import Emit, Event, Listener, Notice, ignore
from asyncpush.journal import LeftUpload, SqliteJournal
from asyncpush.migrate.backfill import note_backfill
from asyncpush.migrate.estimate import make_forecast
from asyncpush.migrate.expansion import expand
from asyncpush.migrate.failed import find_undone
from asyncpush.migrate.ledger import MigrationContext, Options, begin_run, fingerprint, open_migration
from asyncpush.migrate.pipeline import Pipeline
from asyncpush.migrate.plan.model import Goal, Plan
from asyncpush.migrate.report import (
    UNDONE,
    Copy,
    CopyName,
    CopyResult,
    Report,
    journal_reason,
)
from asyncpush.migrate.run_document import keep, kept_if_interrupted
from asyncpush.migrate.shard import Shard, repositories_of
from asyncpush.migrate.siblings import Siblings
from asyncpush.migrate.source_listing import SourceListing
from asyncpush.migrate.targets import prepare
from asyncpush.settings import RetryPolicy, Settings
from asyncpush.timeline import TimelineRecorder
from asyncpush.traffic import TrafficCounter


async def migrate_plan(
    plan: Plan,
    *,
    settings: Settings | None = None,
    journal: SqliteJournal | None = None,
    emit: Emit = ignore,
    options: Options | None = None,
    retry: RetryPolicy | None = None,
    on_early_end: Callable[[Report], None] | None = None,
) -> Report:
    """Copy all images of *plan* to their destinations; one that fails does not stop the others.

    With a journal, an interrupted migration resumes if it started recently (``Options.resume_within``): for images that
    it finished, only the digest at the source is requested, and no acknowledged part is sent again. A migration that
    ended starts again, and checks all images.

    If credentials are lost on the way (they expire and can't be renewed), the migration stops: the report says so
    (``Report.stopped``), and the migration counts as interrupted.

    With ``Options.failed``, only what the last run in the journal did not finish is migrated, whether that was
    interrupted or ended; what the plan does not ask for any more is reported (``Report.gone``).

    Args:
        plan: the plan (``read_plan``).
        settings: the limits of all pushes together.
        journal: records what is done (``open_journal``).
        emit: takes all events; it must not block. If it raises, it is not called again.
        options: how the migration runs.
        retry: how long source registries are waited for, and how often requests to them are repeated.
        on_early_end: gets the report of a run that a cancellation or an error ends: it says what was done, and
            everything else has failed in it. It is not called before the plan's patterns are resolved.

    Raises:
        UsageError: a registry can't be connected to as the plan says, or its account is unknown to the journal; or what
            failed is asked for, and the journal has no run.
        RegistryError: a target registry refuses all requests, or can't be reached.
        JournalError: the journal can't be written.
    """
    options, settings = options or Options(), settings or Settings()
    migration = _Migration(plan, settings, options, journal, Listener(emit))
    async with (
        open_migration(plan, options, settings, migration.count, journal=journal, retry=retry) as context,
        migration.told_early(context, on_early_end),
    ):
        return await migration.run(context)


class _Migration:
    """One run of a plan.

    Args:
        plan: the plan.
        settings: the limits of all pushes together.
        options: how it runs.
        journal: records what is done.
        emit: takes all events.
    """

    def __init__(
        self, plan: Plan, settings: Settings, options: Options, journal: SqliteJournal | None, emit: Emit
    ) -> None:
        self._started = time.monotonic()
        self._plan = plan
        self._settings = settings
        self._options = options
        self._journal = journal
        self._emit = emit
        self._recorder = TimelineRecorder()
        self._counter = TrafficCounter()
        self._resumed = False
        self._incomplete: Sequence[Copy] = ()
        self._gone: Sequence[str] = ()
        # The journal knows a plan by its patterns: a repository that was added meanwhile makes no other plan of it.
        self._part = replace(plan, entries=())
        self._run: SqliteJournal | None = None  # the journal, once the run has begun in it

    def count(self, event: Event) -> None:
        """Note an event of the run, and pass it on."""
        self._counter(event)
        self._recorder(event)
        self._emit(event)

    async def run(self, context: MigrationContext) -> Report:
        """Run it, from the expansion of the plan to the record of its end."""
        if self._options.failed:
            for target in context.targets.values():
                await target.registry.account()  # names the account in addresses
            context.undone = await find_undone(self._journal, self._name(context), partial(_address, context))
            if context.undone.is_nothing:
                began = context.undone.run.begun
                context.emit(Notice(f"nothing failed in the last run, which began {began:%Y-%m-%d %H:%M} UTC"))
                return self._report(context)
        try:
            await self._migrate(context)
        except CREDENTIALS_LOST as error:
            context.stop_on(error)
        if context.journal_error is not None:
            raise context.journal_error
        if context.stopped is not None:
            SourceListing(context).fail_rest(self._part.entries, context.stopped)
        elif not _is_cut_short(context):
            self._gone = _gone(context, self._part)
        report = self._report(context)
        if self._run is not None:
            await keep(self._run, self._part, report)
            if context.stopped is None:
                await _end_run(self._run, context, self._incomplete, self._gone)
        return report

    @asynccontextmanager
    async def told_early(self, context: MigrationContext, tell: Callable[[Report], None] | None) -> AsyncIterator[None]:
        """Tell the report if an exception ends the run within the block; what is not done then has failed."""
        try:
            yield
        except BaseException as error:
            if tell is not None and self._part.entries:
                cause = next(leaf_errors(error))
                if not isinstance(cause, AsyncpushError):
                    cause = UnforeseenError(cause) if isinstance(cause, Exception) else InterruptedRunError()
                context.stopped = context.stopped or cause
                SourceListing(context).fail_rest(self._part.entries, cause)
                tell(self._report(context))
            raise

    def _name(self, context: MigrationContext) -> str:
        """The plan's name in the journal, once the accounts of its targets are known."""
        addresses = [target.registry.address for target in context.targets.values()]
        return fingerprint(self._plan, self._settings, addresses, self._options.shard)

    async def _migrate(self, context: MigrationContext) -> None:
        """Push all images of the plan."""
        expanded = await expand(self._plan, context)
        self._part = _own_part(expanded, self._options.shard, context.emit)
        if context.undone is not None:
            self._part = context.undone.part_of(self._part)
        await prepare(self._part, context.targets, dry=self._options.dry)
        await note_backfill(self._part.entries, context)
        left: Collection[LeftUpload] = ()
        if self._journal is not None and not self._options.dry:
            name = self._name(context)
            self._resumed = await begin_run(self._journal, name, self._options, context.emit, context.undone)
            self._run = self._journal
            left = await self._journal.left_uploads()
        context.distributor.resume(left)
        context.distributor.look_beside(_siblings(expanded, context))
        async with kept_if_interrupted(self._run, self._part, partial(self._report, context)):
            pipeline = Pipeline(context, {upload.repository for upload in left})
            with only_cause(), context.scope:
                await pipeline.go(self._part.entries)
            self._incomplete = pipeline.incomplete

    def _report(self, context: MigrationContext) -> Report:
        requests = Counter[str](context.source_pool.requests)
        pace: dict[str, float] = {}
        for registry in (*(target.registry for target in context.targets.values()), *context.ecr_sources.opened):
            for operation in registry.statistics():
                requests[operation.operation] += operation.sent
                if operation.rate is not None:  # each registry has its own quota
                    pace[operation.operation] = pace.get(operation.operation, 0.0) + operation.rate
        seconds = time.monotonic() - self._started
        return Report(
            results=tuple(context.results.values()),
            left_out=tuple(context.left_out),
            nothing_taken=tuple(context.nothing_taken.values()),
            traffic=self._counter.traffic(requests, pace),
            sent=self._counter.sent,
            seconds=seconds,
            resumed=self._resumed,
            stopped=context.stopped,
            timeline=self._recorder.timeline(),
            forecast=make_forecast(context, seconds) if self._options.dry else None,
            gone=tuple((name.source, name.destination) for name in map(CopyName.parse, self._gone)),
        )


def _address(context: MigrationContext, goal: Goal) -> str:
    return context.targets[goal.target].repository(goal.repository).address


def _own_part(plan: Plan, shard: Shard | None, emit: Emit) -> Plan:
    """What this machine migrates of *plan*."""
    if shard is None:
        return plan
    part = shard.part_of(plan)
    taken, total = len(repositories_of(part)), len(repositories_of(plan))
    emit(Notice(f"shard {shard} has {taken} of the plan's {total} repositories"))
    return part


def _siblings(plan: Plan, context: MigrationContext) -> Siblings | None:
    """The repositories of *plan* that other machines migrate."""
    shard = context.options.shard
    if shard is None or context.options.dry:
        return None
    return Siblings(plan, shard, lambda target, name: context.targets[target].repository(name))


def _is_cut_short(context: MigrationContext) -> bool:
    """Whether the first failure has ended the run, so that there are images that were not tried."""
    return context.options.fail_fast and any(result.outcome == "failed" for result in context.results.values())


def _gone(context: MigrationContext, plan: Plan) -> Sequence[str]:
    """What the earlier run failed, and *plan* does not ask for any more."""
    if context.undone is None:
        return ()
    seen = [*context.claimed, *(result.copy for result in context.results.values())]
    return context.undone.gone(seen, plan, context.unlisted, context.options.shard)


async def _end_run(
    journal: SqliteJournal, context: MigrationContext, incomplete: Iterable[Copy], gone: Collection[str]
) -> None:
    """Write a run's failures into the journal; and unless images were not tried, that it has ended.

    Args:
        journal: the journal.
        context: the run.
        incomplete: images that are there without some of what refers to them.
        gone: what failed earlier, and can't be tried again.
    """
    undone = [result for result in context.results.values() if result.outcome in UNDONE]
    failures = [result for result in undone if result.subject is None]
    failures += [_incomplete(context, copy, undone) for copy in dict.fromkeys(incomplete)]
    with only_cause():
        async with anyio.create_task_group() as tg:  # one commit for many
            for result in failures:
                tg.start_soon(journal.image_failed, result.copy.key, journal_reason(result.error), result.outcome)
    if _is_cut_short(context):
        return
    if context.undone is not None:
        still = {result.copy.key for result in failures}
        await journal.failures_settled(context.undone.run.failed - still - set(gone))
    await journal.end_run(len(undone) + len(gone))


def _incomplete(context: MigrationContext, copy: Copy, undone: Iterable[CopyResult]) -> CopyResult:
    """The record of an image some of whose referrers are missing: the first of them says why."""
    own = [result for result in undone if result.subject and result.copy.repository is copy.repository]
    error = own[0].error if own else None
    return replace(context.results[copy.key], outcome=own[0].outcome if own else "failed", error=error)
