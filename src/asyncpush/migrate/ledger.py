"""What all parts of a migration share: its options, its connections, and the result of each copy."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import anyio
from anyio import CancelScope

from asyncpush.api import open_logins, open_objects
from asyncpush.engine.context import PushContext
from asyncpush.errors import (
    CREDENTIALS_LOST,
    AsyncpushError,
    JournalError,
    RegistryError,
    RepositoryNotFoundError,
    SourceLimitedError,
    TooManyFailuresError,
    UsageError,
    cause_of,
)
from asyncpush.events import Emit, ImageDone, ImageFailed, ImagePlanned, ImageStarted, Notice
from asyncpush.journal import SqliteJournal, plan_of
from asyncpush.manifest import Manifest
from asyncpush.migrate.ecr_sources import EcrSources
from asyncpush.migrate.failed import Undone
from asyncpush.migrate.layer_distribution import LayerDistributor
from asyncpush.migrate.plan.model import Plan, PlanEntry, PlanTarget
from asyncpush.migrate.report import (
    UNDONE,
    Copy,
    CopyResult,
    LeftOutTag,
    NothingTaken,
    journal_reason,
    outcome_of,
    retry_may_succeed,
    waiting_may_help,
)
from asyncpush.migrate.shard import Shard
from asyncpush.migrate.targets import OpenTarget, create_by_push, open_targets
from asyncpush.model import Digest
from asyncpush.protocols import ObjectStore, Repository
from asyncpush.settings import AwsConfiguration, RetryPolicy, Settings
from asyncpush.single_flight import SingleFlight
from asyncpush.sources.registry import RegistryPool, open_pool

#: Seconds for which the findings of an interrupted run count as current.
RESUME_WITHIN = 6 * 60 * 60

#: Seconds by which two answers about one limit of a source may differ.
_SAME_LIMIT = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a migration runs.

    Attributes:
        dry: find out what would be sent, but send nothing.
        recheck: check images again that an interrupted run finished, and referrers that were copied.
        fail_fast: stop at the first failure.
        max_failures: begin no image after so many have failed, and do not try those again; None is no limit.
        retries: how often failed copies are tried again at the end.
        resume_within: an interrupted run is resumed if it started within this many seconds.
        rest: seconds to wait before failed copies are tried again, if waiting can help; doubled each time.
        shard: the part of the plan to migrate; None for all of it.
        wait: stay for images that were left, until the limits of their sources are renewed.
        failed: migrate only what the last run in the journal did not finish.
    """

    dry: bool = False
    recheck: bool = False
    fail_fast: bool = False
    max_failures: int | None = None
    retries: int = 2
    resume_within: float = RESUME_WITHIN
    rest: float = 5.0
    shard: Shard | None = None
    wait: bool = False
    failed: bool = False

    def __post_init__(self) -> None:
        if self.max_failures is not None and self.max_failures < 1:
            raise UsageError(f"--max-failures is {self.max_failures}", hint="give 1 or more")


@dataclass(slots=True, kw_only=True, eq=False)
class MigrationContext:
    """A running migration.

    Attributes:
        options: how it runs.
        push: what all images share.
        distributor: sends layers to all repositories.
        targets: the registries that images go to, connected.
        source_pool: the registries that images come from.
        ecr_sources: those of them that are ECR's, with its API.
        objects: reads archives in S3.
        archives: keeps layouts and archives open for as long as their images may go.
        journal: the journal; None without one.
        results: the result of each copy so far, by its key.
        left_out: tags that the plan does not select.
        nothing_taken: entries that select no tag, by their place and source.
        attempts: how often each copy was tried, by its key.
        source_digests: the digest of each copy at its source, by its key; None where it has none.
        retries_left: how often a copy that fails now will be tried again.
        unlisted: entries whose images are not known, since their source could not be listed.
        scope: cancelled when the run must stop.
        journal_error: why the journal failed; the run stops then.
        stopped: why the run stops before its end, and can be resumed: credentials were lost, or too many images failed.
        undone: with ``Options.failed``, what the last run did not finish.
    """

    options: Options
    push: PushContext
    distributor: LayerDistributor
    targets: Mapping[PlanTarget, OpenTarget]
    source_pool: RegistryPool
    ecr_sources: EcrSources
    objects: ObjectStore
    archives: AsyncExitStack
    journal: SqliteJournal | None
    results: dict[str, CopyResult] = field(default_factory=dict)
    left_out: list[LeftOutTag] = field(default_factory=list)
    nothing_taken: dict[str, NothingTaken] = field(default_factory=dict)
    attempts: Counter[str] = field(default_factory=Counter)
    source_digests: dict[str, Digest | None] = field(default_factory=dict)
    retries_left: int = 0
    unlisted: set[PlanEntry] = field(default_factory=set)
    scope: CancelScope = field(default_factory=CancelScope)
    journal_error: JournalError | None = None
    stopped: AsyncpushError | None = None
    undone: Undone | None = None
    _tags: SingleFlight[tuple[str, ...]] = field(default_factory=SingleFlight)
    _claims: dict[str, Copy] = field(default_factory=dict)
    _next_pause: float = 0.0
    _failed: set[str] = field(default_factory=set)
    _put_into: set[str] = field(default_factory=set)
    _limited: set[tuple[str, float]] = field(default_factory=set)
    _delayed: dict[str, set[str]] = field(default_factory=dict)

    @property
    def is_ending(self) -> bool:
        """Whether no other image may be begun."""
        return self.stopped is not None

    @property
    def emit(self) -> Emit:
        """Takes the events of the run."""
        return self.push.emit

    async def tags(self, host: str, repository: str) -> tuple[str, ...]:
        """The tags of a source repository; they are listed once."""
        tags, _ = await self._tags.do((host, repository), lambda: self.source_pool.at(host).tags(repository))
        return tags

    def takes(self, copy: Copy) -> bool:
        """Whether the run migrates *copy*."""
        return self.undone is None or self.undone.takes(copy)

    def claim(self, copy: Copy) -> bool:
        """Reserve the destination of *copy*; False if another copy has it (if of another image, *copy* has failed).

        False, too, if the run does not migrate *copy*.
        """
        if not self.takes(copy):
            return False
        destination = f"{copy.repository.address}:{copy.tag}" if copy.tag else copy.key
        other = self._claims.setdefault(destination, copy)
        if other is not copy and (other.source, other.choice) != (copy.source, copy.choice):
            self.fail(
                copy,
                UsageError(
                    f"{other.source} ({other.entry.place}) has the same destination",
                    hint="change one of the destinations",
                ),
            )
        return other is copy

    @property
    def claimed(self) -> Collection[Copy]:
        """All copies that have a destination so far."""
        return self._claims.values()

    async def wait_before_retry(self) -> None:
        """Wait before failed copies are tried again, if that can help one of them."""
        if any(waiting_may_help(result.error) for result in self.results.values()):
            await anyio.sleep(self._next_pause or self.options.rest)
            self._next_pause = 2 * (self._next_pause or self.options.rest)
        for target in self.targets.values():
            target.registry.wait_again()
        self.source_pool.wait_again()

    async def create_repository(self, copy: Copy, error: RepositoryNotFoundError, since: float) -> None:
        """Create the repository of *copy*, if the plan allows it; images that are lost with it are tried again.

        Args:
            copy: an image that goes there.
            error: says that ECR does not find the repository.
            since: when the work that has met *error* began, by the monotonic clock.

        Raises:
            RepositoryNotFoundError: the plan does not allow it, or somebody deletes it again and again.
            RegistryError: ECR refuses.
        """
        repository, target = copy.repository, self.targets[copy.goal.target]
        is_known = repository.name in target.described or target.states.get(repository.name) == "new"
        existed = is_known or bool(self._done_in(repository))
        create = partial(create_by_push, target, copy.entry, repository, error)
        if not await self.push.created.create(repository, create, error, since=since, existed=existed):
            return
        target.states[repository.name] = "present" if existed else "new"
        reason = RegistryError(
            f"repository {repository.name} was deleted after the image was put", hint="run the same command again"
        )
        for other in self._done_in(repository):
            self.fail(other, reason)
            if self.journal is not None:
                await self.journal.image_failed(other.key, journal_reason(reason))

    def _done_in(self, repository: Repository) -> list[Copy]:
        if repository.address not in self._put_into:
            return []
        done = [result.copy for result in self.results.values() if result.outcome not in UNDONE and not result.subject]
        return [copy for copy in done if copy.repository.address == repository.address]

    def start(self, copy: Copy) -> None:
        """Note that a copy is being tried."""
        self.attempts[copy.key] += 1
        self.emit(ImageStarted(copy.source, copy.destination))

    def record_present(self, copy: Copy, manifest: Manifest) -> None:
        """Note that the destination has a copy already; of an index, its images' blobs are not known."""
        blobs = {blob.digest: blob for blob in manifest.blobs()}.values()
        layers, size = len(blobs), sum(blob.size for blob in blobs)
        self.emit(ImagePlanned(copy.destination, 0, 0, layers, size))
        self.emit(ImageDone(copy.destination, manifest.digest, "present"))
        self.record(
            CopyResult(copy=copy, outcome="present", digest=manifest.digest, layers_present=layers, bytes_present=size)
        )

    def fail(self, copy: Copy, error: AsyncpushError) -> None:
        """Note that a copy has failed; it may be tried again."""
        if isinstance(error, JournalError):
            self.journal_error = error
            self.scope.cancel()  # all else would fail for the same reason, which the run tells at its end
        elif isinstance(error, SourceLimitedError):
            self.note_limited(error)
        elif not self.stop_on(error) and self.retries_left and retry_may_succeed(error):
            self._note_delay(copy, error)
        else:
            self.emit(ImageFailed(copy.destination, str(error)))
        self.record(CopyResult(copy=copy, outcome=outcome_of(error), error=error))

    def note_limited(self, error: AsyncpushError) -> None:
        """Tell once that what a source's limit holds up is left, and that all else goes on."""
        if isinstance(error, SourceLimitedError) and all(
            host != error.host or error.until > until + _SAME_LIMIT for host, until in self._limited
        ):
            self._limited.add((error.host, error.until))
            self.emit(Notice(f"{error.message}; images that need more are left, all else goes on"))

    def _note_delay(self, copy: Copy, error: AsyncpushError) -> None:
        """Tell of the first two copies that fail alike: of the others, the totals and the end tell."""
        cause = cause_of(str(error), copy.destination)
        told = self._delayed.setdefault(cause, set())
        # A copy that fails again in the next round is no other one.
        if len(told) == 2 or copy.destination in told:
            return
        told.add(copy.destination)
        if len(told) == 1:
            self.emit(Notice(f"{copy.destination} will be tried again at the end: {error}"))
        else:
            self.emit(Notice(f"{copy.destination} and others fail alike, and will be tried again, too"))

    def stop_on(self, error: AsyncpushError) -> bool:
        """Stop the run if *error* shows that credentials are lost, so that all else would fail; whether it does."""
        lost = isinstance(error, CREDENTIALS_LOST)
        if lost:
            self.stopped = self.stopped or error
            self.scope.cancel()
        return lost

    def record(self, result: CopyResult) -> None:
        """Note the result of a copy."""
        before = self.results.get(result.copy.key)
        if before and (before.outcome, before.digest, result.outcome) == ("pushed", result.digest, "present"):
            result = before  # this run pushed it, and tries its referrers again
        self.results[result.copy.key] = replace(result, attempts=self.attempts[result.copy.key])
        if result.outcome not in UNDONE:
            self._put_into.add(result.copy.repository.address)
        if result.outcome != "failed":
            self._failed.discard(result.copy.key)
            return
        if self.options.fail_fast:
            self.scope.cancel()
        if result.subject is None:
            self._failed.add(result.copy.key)
        if self.options.max_failures is not None and len(self._failed) >= self.options.max_failures:
            self.retries_left = 0
            many = "1 image has" if len(self._failed) == 1 else f"{len(self._failed)} images have"
            self.stopped = self.stopped or TooManyFailuresError(
                f"{many} failed, as many as --max-failures allows; no others were begun",
                hint="fix the cause, and run the same command again to resume",
            )


@asynccontextmanager
async def open_migration(
    plan: Plan,
    options: Options,
    settings: Settings,
    emit: Emit,
    *,
    journal: SqliteJournal | None = None,
    retry: RetryPolicy | None = None,
) -> AsyncIterator[MigrationContext]:
    """Connect to the registries that *plan* names, and keep its sources open, until the block is left.

    Args:
        plan: the plan.
        options: how the migration runs.
        settings: the limits of all pushes together.
        emit: takes all events.
        journal: remembers what was done; a dry run only reads it.
        retry: how long source registries are waited for, and how often they are asked again.

    Raises:
        ConfigurationError: there is no region, no such profile, or no credentials.
        RegistryError: a registry refuses, or can't be reached.
    """
    push = PushContext.of(settings, emit, journal)
    async with AsyncExitStack() as stack:
        ecr_sources = EcrSources(plan.source_registries, push, stack)
        opening = open_targets(plan, push, ecr_sources, None if options.dry else journal)
        targets = await stack.enter_async_context(opening)
        logins = await stack.enter_async_context(open_logins(settings, emit))
        retry = retry or RetryPolicy.of(settings)
        pool = open_pool(plan.source_registries, logins=logins, emit=emit, retry=retry)
        from_s3 = AwsConfiguration(region=next((target.registry.region for target in targets.values()), None))
        yield MigrationContext(
            options=options,
            push=push,
            distributor=LayerDistributor(push),
            targets=targets,
            source_pool=await stack.enter_async_context(pool),
            ecr_sources=ecr_sources,
            objects=await stack.enter_async_context(open_objects(from_s3, retry, emit)),
            archives=stack,
            journal=journal,
            retries_left=0 if options.dry or options.fail_fast else options.retries,
        )


async def begin_run(
    journal: SqliteJournal, plan: str, options: Options, emit: Emit, undone: Undone | None = None
) -> bool:
    """Begin a run of the plan with this fingerprint, or resume an interrupted one; whether it resumed one.

    With *undone*, the run that this was left of goes on, however old it is.
    """
    if undone is not None:
        return (await journal.continue_run(plan, undone.run)).resumed
    state = await journal.begin_run(plan, fresh=options.recheck, within=options.resume_within)
    if state.outdated is not None:
        emit(
            Notice(
                f"the run that started {state.outdated:%Y-%m-%d %H:%M} UTC was interrupted, and is too old to resume "
                "(--resume-within): every image is checked again"
            )
        )
    return state.resumed


def fingerprint(plan: Plan, settings: Settings, registries: Sequence[str], shard: Shard | None = None) -> str:
    """A text that is equal for plans and settings with the same effect; it contains no secret.

    Args:
        plan: the plan.
        settings: some of them change the images that are pushed.
        registries: the addresses of the plan's targets, with the account that the run found.
        shard: the part of the plan that is migrated.
    """
    making = (
        settings.compression,
        settings.compression_level,
        settings.push_foreign_layers,
        settings.available_platforms,
    )
    parts = (plan.targets, plan.entries, making, list(registries))
    return plan_of(Digest.of(repr(parts).encode()).hex, shard)
