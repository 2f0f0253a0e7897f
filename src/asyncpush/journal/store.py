"""The open journal: a record of what ECR has acknowledged, kept across runs that can be killed at any instant."""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import ExitStack, asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import MappingProxyType

import anyio
from anyio import CancelScope, to_thread

from asyncpush.errors import UsageError
from asyncpush.journal import sql
from asyncpush.journal.database import open_database, opening
from asyncpush.journal.earlier import EarlierRun, continue_run, find_earlier, forget_failures
from asyncpush.journal.group_commit import GroupCommit
from asyncpush.journal.sql import BegunRun, FinishedImage, KnownImage, LeftUpload, RunState, destination_of
from asyncpush.manifest import Manifest
from asyncpush.model import Descriptor, Digest, OpenUpload, Upload
from asyncpush.redaction import shown

#: Seconds for which an upload can be resumed after ECR last acknowledged a part. ECR documents no lifetime of uploads;
#: an expired one costs one refused request.
UPLOAD_LIFETIME = 24 * 60 * 60

_NONE: Mapping[str, KnownImage] = MappingProxyType({})


class SqliteJournal:
    """An open journal (``protocols.Journal``); ``open_journal`` makes it. It belongs to one event loop.

    Repositories are identified by ``Repository.address``, registries by the beginning of these addresses. When a
    coroutine returns, its data is in the file; if it is cancelled, it does not wait for that, but the data is written.
    Methods that are not coroutines use cached data.

    Raises:
        JournalError: (any coroutine) the file is damaged or can't be written; its data is not recorded.
    """

    def __init__(self, commits: GroupCommit, memory: sql.CachedRows, clock: Callable[[], float]) -> None:
        self._commits = commits
        self._memory = memory
        self._now = clock
        self._run: int | None = None
        self._finished: dict[str, FinishedImage] = {}

    # Runs, and their images

    async def begin_run(self, plan_fingerprint: str, *, fresh: bool, within: float = math.inf) -> RunState:
        """Resume the last run of a plan if it was interrupted; otherwise begin a new one.

        Args:
            plan_fingerprint: a text that is equal for plans with the same effect.
            fresh: begin a new one in any case.
            within: resume a run only if it started within this many seconds.
        """
        now = self._now()
        work = partial(sql.begin_run, plan=plan_fingerprint, fresh=fresh, since=now - within, now=now)
        return self._has_begun(await self._commits.do(work))

    async def earlier_run(self, plan_fingerprint: str) -> EarlierRun | None:
        """The last run of a plan, or if there is none of it, of any; None if the journal has no runs.

        Of a plan that was divided into shards, it is their last runs together.
        """
        return await self._commits.do(partial(find_earlier, plan=plan_fingerprint))

    async def continue_run(self, plan_fingerprint: str, earlier: EarlierRun) -> RunState:
        """Begin a run that has what an earlier one finished, or go on with that one if it is of the same plan."""
        work = partial(continue_run, plan=plan_fingerprint, earlier=earlier, now=self._now())
        return self._has_begun(await self._commits.do(work))

    def _has_begun(self, begun: BegunRun) -> RunState:
        self._run, self._finished = begun.id, begun.finished
        outdated = None if begun.outdated is None else datetime.fromtimestamp(begun.outdated, UTC)
        started = datetime.fromtimestamp(begun.started, UTC)
        return RunState(begun.id, begun.resumed, started, len(begun.finished), outdated)

    async def end_run(self, failed: int) -> None:
        """Record that the run has ended.

        Args:
            failed: images that failed.

        Raises:
            UsageError: no run has begun.
        """
        run = self._begun()
        await self._commits.do(partial(sql.end_run, run=run, failed=failed, now=self._now()))
        self._run = None

    async def report_run(self, begun: float, seconds: float, sent: int, document: bytes) -> None:
        """Keep a report of what this process did for the run.

        Args:
            begun: when it began, in seconds since 1970.
            seconds: how long it took.
            sent: bytes of layers that it sent.
            document: the report; the journal does not read it.

        Raises:
            UsageError: no run has begun.
        """
        await self._commits.do(
            partial(sql.save_report, run=self._begun(), begun=begun, seconds=seconds, sent=sent, document=document)
        )

    @property
    def finished(self) -> Mapping[str, FinishedImage]:
        """The images that the run has finished so far, by ``copy``."""
        return MappingProxyType(self._finished)

    async def image_finished(
        self, copy: str, *, source_digest: Digest | None, digest: Digest, outcome: str, choice: str = ""
    ) -> None:
        """Record that an image of the run is finished, and what its tag names now.

        Args:
            copy: what went where: ``SOURCE -> ADDRESS:TAG``, where ADDRESS is the repository's.
            source_digest: its digest at the source; None if it has none.
            digest: its digest at the destination.
            outcome: how it ended, such as ``pushed``.
            choice: the platforms that were selected from the source's index; empty for all.

        Raises:
            UsageError: no run has begun.
        """
        run, image = self._begun(), FinishedImage(source_digest, digest, outcome)

        def then() -> None:
            self._finished[copy] = image
            if destination := destination_of(copy):
                repository, tag = destination
                self._memory.known.setdefault(repository, {})[tag] = KnownImage(source_digest, digest, choice)

        work = partial(sql.save_finished, run=run, copy=copy, image=image, choice=choice, now=self._now())
        await self._commits.do(work, then)

    async def image_failed(self, copy: str, reason: str, outcome: str = "failed") -> None:
        """Record that an image of the run failed, with a *reason* in one line; secrets in it are blanked.

        Args:
            copy: as of ``image_finished``.
            reason: why it failed.
            outcome: how it ended: it failed, or was ``left`` for the limit of its source.

        Raises:
            UsageError: no run has begun.
        """
        work = partial(
            sql.save_failed, run=self._begun(), copy=copy, outcome=outcome, reason=shown(reason), now=self._now()
        )
        await self._commits.do(work, lambda: self._finished.pop(copy, None))

    async def failures_settled(self, copies: Collection[str]) -> None:
        """Delete the records of images that failed before the run continued, and do not any more.

        Raises:
            UsageError: no run has begun.
        """
        await self._commits.do(partial(forget_failures, run=self._begun(), copies=tuple(copies)))

    # Known across runs

    def known_images(self, repository: str) -> Mapping[str, KnownImage]:
        """What each tag of a repository named when a run last pushed or found an image there."""
        return MappingProxyType(self._memory.known.get(repository, {})) if repository in self._memory.known else _NONE

    def referrers_copied(self, repository: str, digest: Digest) -> bool:
        """Whether the referrers of a manifest were copied (``note_referrers_copied``)."""
        return (repository, digest) in self._memory.referrers_copied

    async def note_referrers_copied(self, repository: str, digest: Digest) -> None:
        """Record that the referrers of a manifest were copied."""
        work = partial(sql.save_referrers_copied, repository=repository, digest=digest, now=self._now())
        await self._commits.do(work, lambda: self._memory.referrers_copied.add((repository, digest)))

    def is_half_made(self, repository: str) -> bool:
        """Whether a repository was being created, and may lack its policies (``repository_begun``)."""
        return repository in self._memory.making

    async def repository_begun(self, repository: str) -> None:
        """Record that a repository is about to be created: it counts as half made from now on."""
        work = partial(sql.begin_repository, repository=repository, now=self._now())
        await self._commits.do(work, lambda: self._memory.making.add(repository))

    async def repository_made(self, repository: str) -> None:
        """Record that a repository has its policies, or was not created after all."""
        work = partial(sql.end_repository, repository=repository)
        await self._commits.do(work, lambda: self._memory.making.discard(repository))

    async def images_proved(self, repository: str, images: Mapping[str, Digest], *, deep: bool) -> None:
        """Record that images are whole: what each tag or digest of a repository names.

        Args:
            repository: the repository's address.
            images: the digest that each tag (or digest, as text) names.
            deep: whether all their bytes were read; such a proof of a digest outlives one without.
        """
        await self._commits.do(
            partial(sql.save_proofs, repository=repository, images=dict(images), deep=deep, now=self._now())
        )

    async def proof_lost(self, repository: str, reference: str, digest: Digest | None) -> None:
        """Delete what was proved of an image that turned out not to be whole."""
        await self._commits.do(partial(sql.remove_proofs, repository=repository, reference=reference, digest=digest))

    async def deep_proofs(self, repository: str, within: float) -> Mapping[Digest, datetime]:
        """The images of a repository whose bytes were read in the last *within* seconds, and when."""
        work = partial(sql.deep_proofs, repository=repository, since=self._now() - within)
        found = await self._commits.do(work)
        return {digest: datetime.fromtimestamp(at, UTC) for digest, at in found.items()}

    @property
    def compressed(self) -> Mapping[str, Descriptor]:
        """The descriptors of blobs whose digest was unknown before they were read, by identity."""
        return MappingProxyType(self._memory.compressed)

    async def completed(self, repository: str, digests: Collection[Digest] | None = None) -> frozenset[Digest]:
        """Which of *digests* a repository is known to have; without *digests*, all that it has."""
        return await self._commits.do(partial(sql.completed, repository=repository, digests=digests))

    async def mount_sources(self, registry: str, digests: Collection[Digest]) -> dict[Digest, str]:
        """For each of *digests* that can be mounted in *registry*, the address of a repository to mount it from."""
        return await self._commits.do(partial(sql.mount_sources, registry=registry, digests=digests))

    # Uploads, layers and manifests that ECR has acknowledged

    async def open_upload(self, repository: str, identity: str) -> OpenUpload | None:
        """The open upload of a blob; None if ECR acknowledged nothing of it for a day."""
        since = self._now() - UPLOAD_LIFETIME
        work = partial(sql.find_upload, repository=repository, identity=identity, since=since)
        return await self._commits.do(work)

    async def left_uploads(self) -> tuple[LeftUpload, ...]:
        """What was sent for images that were not put: open uploads, and completed layers.

        Uploads that ECR acknowledged nothing of for a day are left out, since ECR has lost them.
        """
        return await self._commits.do(partial(sql.left_uploads, since=self._now() - UPLOAD_LIFETIME))

    async def upload_begun(self, repository: str, identity: str, upload: Upload, part_size: int) -> None:
        """Record that an upload was started; it replaces an earlier one of the same blob."""
        await self._commits.do(
            partial(
                sql.begin_upload,
                repository=repository,
                identity=identity,
                upload=upload,
                part_size=part_size,
                now=self._now(),
            )
        )

    async def part_acknowledged(self, repository: str, identity: str, upload: Upload, received: int) -> None:
        """Record that ECR has the first *received* bytes, if *upload* is the latest of the blob."""
        await self._commits.do(
            partial(
                sql.save_received,
                repository=repository,
                identity=identity,
                upload=upload,
                received=received,
                now=self._now(),
            )
        )

    async def upload_lost(self, repository: str, identity: str) -> None:
        """Delete an upload that ECR does not know any more, or that has wrong bytes."""
        await self._commits.do(partial(sql.remove_upload, repository=repository, identity=identity))

    async def layer_completed(self, repository: str, identity: str, descriptor: Descriptor) -> None:
        """Record that the repository has a layer, and the descriptor of its blob; this ends its upload."""

        def then() -> None:
            if identity != str(descriptor.digest):
                known = Descriptor(descriptor.media_type, descriptor.digest, descriptor.size)
                self._memory.compressed[identity] = known

        work = partial(sql.save_layer, repository=repository, identity=identity, descriptor=descriptor)
        await self._commits.do(work, then)

    async def layers_lost(self, repository: str, digests: Collection[Digest]) -> None:
        """Delete layers that the repository turned out not to have any more."""
        await self._commits.do(partial(sql.remove_layers, repository=repository, digests=tuple(digests)))

    async def image_put(self, repository: str, manifest: Manifest, tag: str | None) -> None:
        """Record that an image was put or found: its layers are referenced, so that they can be mounted."""

        def then() -> None:
            known = self._memory.known.get(repository, {})
            if tag in known and known[tag].digest != manifest.digest:
                del known[tag]

        work = partial(sql.save_image, repository=repository, manifest=manifest, tag=tag)
        await self._commits.do(work, then)

    def _begun(self) -> int:
        if self._run is None:
            raise UsageError("no run has begun in the journal", hint="begin_run begins one")
        return self._run


@asynccontextmanager
async def open_journal(path: Path, *, clock: Callable[[], float] = time.time) -> AsyncIterator[SqliteJournal]:
    """Open a journal until the block is left; if there is no file, or an empty one, create it.

    Only one process can have it open. It is a SQLite file that only its owner can read (mode 0600). An exception of the
    block is raised as it is, not in an exception group.

    Args:
        path: the file, on a local disk; beside it are SQLite's ``-wal`` and ``-shm``, and ``FILE-lock``.
        clock: seconds since 1970.

    Raises:
        UsageError: the file is not a journal, is from a newer asyncpush, is in use, or can't be read and written.
        JournalError: it is damaged.
    """
    stack = ExitStack()
    failure: BaseException | None = None
    try:
        connection, memory = await to_thread.run_sync(_open, path, stack)
        commits = GroupCommit(connection, path)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(commits.run)
            try:
                yield SqliteJournal(commits, memory, clock)
            except (Exception, KeyboardInterrupt, SystemExit) as error:  # noqa: BLE001 - raised below, in no group
                failure = error
            finally:
                commits.close()
    finally:
        with CancelScope(shield=True):
            await to_thread.run_sync(stack.close)
    if failure is not None:
        raise failure


def _open(path: Path, stack: ExitStack) -> tuple[sqlite3.Connection, sql.CachedRows]:
    connection = stack.enter_context(open_database(path))
    with opening(path):
        return connection, sql.load(connection)
