"""The open journal: what ECR has acknowledged, remembered across runs that may be killed at any instant."""

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
from asyncpush.journal.group_commit import GroupCommit
from asyncpush.journal.records import (
    FinishedImage,
    HeldLayer,
    KnownImage,
    LeftUpload,
    RunState,
    destination_of,
)
from asyncpush.manifest import Manifest
from asyncpush.model import Descriptor, Digest, OpenUpload, Upload
from asyncpush.redaction import shown

#: Seconds for which an upload is worth going on with after ECR was last heard of it. ECR documents no lifetime of an
#: upload; one that has expired costs one refused request.
UPLOAD_LIFETIME = 24 * 60 * 60

_NONE: Mapping[str, KnownImage] = MappingProxyType({})


class SqliteJournal:
    """An open journal (``protocols.Journal``); ``open_journal`` makes it. It belongs to one event loop.

    Repositories are named by ``Repository.address``, registries by what stands before the first repository's name in
    it. What a method has been told is in the file when it returns; a cancelled one has not waited for that, but it
    will be. Methods that are no coroutines answer from memory.

    Raises:
        JournalError: (any coroutine) the file is damaged or can't be written; nothing of what it was told is kept.
    """

    def __init__(self, commits: GroupCommit, memory: sql.CachedRows, clock: Callable[[], float]) -> None:
        self._commits = commits
        self._memory = memory
        self._now = clock
        self._run: int | None = None
        self._finished: dict[str, FinishedImage] = {}

    # Runs, and their images

    async def begin_run(self, plan_fingerprint: str, *, fresh: bool, within: float = math.inf) -> RunState:
        """Go on with the last run of a plan if it was interrupted; else begin a new one.

        Args:
            plan_fingerprint: equal for plans that ask for the same.
            fresh: begin a new one in any case.
            within: seconds since a run has begun for which it is gone on with.
        """
        now = self._now()
        work = partial(sql.begin_run, plan=plan_fingerprint, fresh=fresh, since=now - within, now=now)
        begun = await self._commits.do(work)
        self._run, self._finished = begun.id, begun.finished
        outdated = None if begun.outdated is None else datetime.fromtimestamp(begun.outdated, UTC)
        started = datetime.fromtimestamp(begun.started, UTC)
        return RunState(begun.id, begun.resumed, started, len(begun.finished), outdated)

    async def end_run(self, failed: int) -> None:
        """Note that the run has ended.

        Args:
            failed: images that failed.

        Raises:
            UsageError: no run has begun.
        """
        run = self._begun()
        await self._commits.do(partial(sql.end_run, run=run, failed=failed, now=self._now()))
        self._run = None

    @property
    def finished(self) -> Mapping[str, FinishedImage]:
        """The images that the run has finished, by ``copy``; it grows with them."""
        return MappingProxyType(self._finished)

    async def image_finished(
        self, copy: str, *, source_digest: Digest | None, digest: Digest, outcome: str, choice: str = ""
    ) -> None:
        """Note that an image of the run is done, and what its tag names now.

        Args:
            copy: what went where: ``SOURCE -> ADDRESS:TAG``, where ADDRESS is the repository's.
            source_digest: the digest that the source has for it; None where it has none.
            digest: its digest at the destination.
            outcome: a word for how it ended, such as ``pushed``.
            choice: which platforms were taken of the source's index; empty for all.

        Raises:
            UsageError: no run has begun.
        """
        run, image = self._begun(), FinishedImage(source_digest, digest, outcome)

        def then() -> None:
            self._finished[copy] = image
            if there := destination_of(copy):
                repository, tag = there
                self._memory.known.setdefault(repository, {})[tag] = KnownImage(source_digest, digest, choice)

        work = partial(sql.save_finished, run=run, copy=copy, image=image, choice=choice, now=self._now())
        await self._commits.do(work, then)

    async def image_failed(self, copy: str, reason: str) -> None:
        """Note that an image of the run failed, for a *reason* in one line; its secrets are left out.

        Raises:
            UsageError: no run has begun.
        """
        work = partial(sql.save_failed, run=self._begun(), copy=copy, reason=shown(reason), now=self._now())
        await self._commits.do(work, lambda: self._finished.pop(copy, None))

    # Known across runs

    def known_images(self, repository: str) -> Mapping[str, KnownImage]:
        """What each tag of a repository named when a run last finished an image there, or found it there."""
        return MappingProxyType(self._memory.known.get(repository, {})) if repository in self._memory.known else _NONE

    def referrers_carried(self, repository: str, digest: Digest) -> bool:
        """Whether the referrers of a manifest have been brought along (``note_referrers``)."""
        return (repository, digest) in self._memory.carried

    async def note_referrers(self, repository: str, digest: Digest) -> None:
        """Note that the referrers of a manifest have been brought along."""
        work = partial(sql.save_carried, repository=repository, digest=digest, now=self._now())
        await self._commits.do(work, lambda: self._memory.carried.add((repository, digest)))

    def is_half_made(self, repository: str) -> bool:
        """Whether the creation of a repository has begun, and is not known to be whole (``repository_begun``)."""
        return repository in self._memory.making

    async def repository_begun(self, repository: str) -> None:
        """Note that a repository is about to be created: from then on it counts as half made."""
        work = partial(sql.begin_repository, repository=repository, now=self._now())
        await self._commits.do(work, lambda: self._memory.making.add(repository))

    async def repository_made(self, repository: str) -> None:
        """Note that a repository has its policies, or was not created after all."""
        work = partial(sql.end_repository, repository=repository)
        await self._commits.do(work, lambda: self._memory.making.discard(repository))

    @property
    def compressed(self) -> Mapping[str, Descriptor]:
        """What the blobs became whose digest was unknown before they were read, by identity."""
        return MappingProxyType(self._memory.compressed)

    async def completed(self, repository: str, digests: Collection[Digest] | None = None) -> frozenset[Digest]:
        """Which of *digests* a repository is known to hold; all that it holds, if there are none given."""
        return await self._commits.do(partial(sql.completed, repository=repository, digests=digests))

    async def mount_sources(self, registry: str, digests: Collection[Digest]) -> dict[Digest, str]:
        """For each of *digests* that can be mounted in *registry*, the address of one repository to take it from."""
        return await self._commits.do(partial(sql.mount_sources, registry=registry, digests=digests))

    async def holders(self, registry: str, digests: Collection[Digest]) -> tuple[HeldLayer, ...]:
        """Which repositories of *registry* hold which of *digests*, by digest and address."""
        return await self._commits.do(partial(sql.holders, registry=registry, digests=digests))

    # Uploads, layers and manifests, as the engine has them acknowledged

    async def open_upload(self, repository: str, identity: str) -> OpenUpload | None:
        """The upload of a blob that was begun and not completed; None if ECR was not heard of it for a day."""
        since = self._now() - UPLOAD_LIFETIME
        work = partial(sql.find_upload, repository=repository, identity=identity, since=since)
        return await self._commits.do(work)

    async def left_uploads(self) -> tuple[LeftUpload, ...]:
        """All that was sent for images that were not put: uploads that were not completed, and layers that were.

        Uploads that ECR was not heard of for a day are lost there, and are not among them.
        """
        return await self._commits.do(partial(sql.left_uploads, since=self._now() - UPLOAD_LIFETIME))

    async def upload_begun(self, repository: str, identity: str, upload: Upload, part_size: int) -> None:
        """Note that an upload was opened; it takes the place of an earlier one of the same blob."""
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
        """Note that ECR has the first *received* bytes; of another upload than the last one, it is of no use."""
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
        """Forget an upload that ECR does not know any more, or that holds wrong bytes."""
        await self._commits.do(partial(sql.remove_upload, repository=repository, identity=identity))

    async def layer_completed(self, repository: str, identity: str, descriptor: Descriptor) -> None:
        """Note that the repository holds a layer, and which bytes the blob turned out to be; ends its upload."""

        def then() -> None:
            if identity != str(descriptor.digest):
                known = Descriptor(descriptor.media_type, descriptor.digest, descriptor.size)
                self._memory.compressed[identity] = known

        work = partial(sql.save_layer, repository=repository, identity=identity, descriptor=descriptor)
        await self._commits.do(work, then)

    async def layers_lost(self, repository: str, digests: Collection[Digest]) -> None:
        """Forget layers that the repository turned out not to hold any more."""
        await self._commits.do(partial(sql.remove_layers, repository=repository, digests=tuple(digests)))

    async def image_put(self, repository: str, manifest: Manifest, tag: str | None) -> None:
        """Note that an image was put or found: its layers are there and referenced, so that they can be mounted."""

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
    """Open a journal until the block is left; where there is no file, or an empty one, make a new one.

    One process at a time has it. The file is SQLite's, and nobody else may read it (mode 0600). An exception of the
    block comes out as it is, in no exception group.

    Args:
        path: the file, on a local disk; SQLite has others beside it (``-wal``, ``-shm``), and there is ``FILE-lock``.
        clock: seconds since 1970.

    Raises:
        UsageError: the file is something else, a newer asyncpush's, in use, or can't be read and written.
        JournalError: it is damaged.
    """
    held = ExitStack()
    failure: BaseException | None = None
    try:
        connection, memory = await to_thread.run_sync(_open, path, held)
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
            await to_thread.run_sync(held.close)
    if failure is not None:
        raise failure


def _open(path: Path, held: ExitStack) -> tuple[sqlite3.Connection, sql.CachedRows]:
    connection = held.enter_context(open_database(path))
    with opening(path):
        return connection, sql.load(connection)
