"""Images on their way: discovered and pushed at the same time, over all repositories, and tried again at the end."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from asyncpush.digest_set import PackedSet
from asyncpush.engine.diff import ImageDiff, assume_missing, nodes
from asyncpush.engine.image import dry_run, push_diff
from asyncpush.engine.memory import MemoryBudget
from asyncpush.engine.referrers import subjects_of
from asyncpush.errors import (
    AsyncpushError,
    RepositoryNotFoundError,
    SourceLimitedError,
    UnforeseenError,
    foreseen,
)
from asyncpush.migrate.discovery import Backlog, Discovered, Discovery, Present, Ready
from asyncpush.migrate.layer_distribution import score
from asyncpush.migrate.ledger import MigrationContext
from asyncpush.migrate.limited_sources import limited_sources, wait_for_source
from asyncpush.migrate.plan.model import PlanEntry
from asyncpush.migrate.referrers import Referrers
from asyncpush.migrate.report import (
    UNDONE,
    Copy,
    CopyResult,
    pushed_result,
    retry_may_succeed,
)
from asyncpush.migrate.targets import complete_repository
from asyncpush.model import Digest
from asyncpush.protocols import ReferrerSource
from asyncpush.results import ImageResult
from asyncpush.settings import DEFAULT_PART_SIZE

#: Images that are pushed at once. Their layers share the slots; this bounds the images that wait for a slot, or for a
#: layer that another image uploads.
_IMAGES_AT_ONCE = 128

#: Manifests and blobs of these images: each that waits for a slot is a task.
_BLOBS_AT_ONCE = 4096

#: Images that are compared to find the one that helps the others most.
_COMPARED = 100

#: The same after an interrupted run, whose open uploads are worth a longer search.
_COMPARED_RESUMED = 1000

#: Times in a row that a source may be waited for in vain.
_FRUITLESS = 2


def _may_succeed_now(error: AsyncpushError | None) -> bool:
    if isinstance(error, SourceLimitedError):
        return time.time() >= error.until
    return retry_may_succeed(error)


class Pipeline:
    """Pushes the images of a migration while they are being discovered.

    Args:
        context: the migration.
        resumed: addresses of repositories to which an interrupted run sent layers of images that it did not put.
    """

    def __init__(self, context: MigrationContext, resumed: Collection[str]) -> None:
        self._context = context
        self._resumed = resumed
        self._may_push = anyio.Event()
        self._referrers = Referrers(context)
        self._ready: list[Ready] = []
        self._lacking: Counter[str] = Counter()
        # Uploads that resume go first; but if they fill the backlog, others begin before all are found.
        self._backlog = Backlog(self._may_push.set)
        self._at_once = anyio.CapacityLimiter(_IMAGES_AT_ONCE)
        self._blobs = MemoryBudget(_BLOBS_AT_ONCE, window=0)
        self._planned = PackedSet()
        self._unfinished: list[Copy] = []

    @property
    def incomplete(self) -> Sequence[Copy]:
        """Images that are there without some of what refers to them."""
        return tuple(self._unfinished)

    async def go(self, entries: Iterable[PlanEntry]) -> None:
        """Push all images of *entries*; then try copies again that have failed and may succeed."""
        await self._discover_and_push(entries, None)
        while self._context.retries_left and not self._context.is_ending:
            self._context.retries_left -= 1
            again = self._to_try_again()
            if not again:
                break
            await self._context.wait_before_retry()
            await self._try_again(again)
        if self._context.options.wait and not self._context.options.dry:
            await self._wait_for_sources()

    async def _wait_for_sources(self) -> None:
        """Wait until sources whose limits are used up take requests again, and push what was left for them.

        Ends without having pushed all of it once a source gives nothing in two times that it has named itself.
        """
        fruitless = 0
        while fruitless < _FRUITLESS and not self._context.is_ending:
            limited = limited_sources(self._context.results.values())
            if not limited:
                return
            await wait_for_source(limited[0], self._context.emit)
            before = self._left()
            await self._try_again(self._to_try_again())
            fruitless = fruitless + 1 if before <= self._left() else 0

    def _left(self) -> set[str]:
        return {result.copy.key for result in self._context.results.values() if result.outcome == "left"}

    async def _try_again(self, copies: Iterable[Copy]) -> None:
        again: dict[PlanEntry, list[Copy]] = defaultdict(list)
        for copy in copies:
            again[copy.entry].append(copy)
        self._context.distributor.retry_sources()
        await self._discover_and_push(again, again)

    def _to_try_again(self) -> list[Copy]:
        """Copies that have failed, or whose referrers have, and that may succeed."""
        failed = [
            result.copy
            for result in self._context.results.values()
            if result.outcome in UNDONE and result.subject is None and _may_succeed_now(result.error)
        ]
        unfinished, self._unfinished = self._unfinished, []
        return failed + unfinished

    async def _discover_and_push(
        self, entries: Iterable[PlanEntry], copies: dict[PlanEntry, list[Copy]] | None
    ) -> None:
        """Discover *entries*, or some of their copies, and push what is found, as it is found."""
        ahead, found = anyio.create_memory_object_stream[Discovered](0)
        discovery = Discovery(self._context, ahead, self._backlog)
        async with anyio.create_task_group() as tg:
            tg.start_soon(self._discover, discovery, ahead, entries, copies)
            tg.start_soon(self._push_found, found)

    async def _discover(
        self,
        discovery: Discovery,
        ahead: MemoryObjectSendStream[Discovered],
        entries: Iterable[PlanEntry],
        copies: dict[PlanEntry, list[Copy]] | None,
    ) -> None:
        async with ahead:
            if copies is None:
                # Open uploads resume before another image can start to upload the same layers elsewhere.
                first, others = self._in_order(entries)
                discovery.expect([*first, *others])
                await discovery.discover(first)
                self._may_push.set()
                await discovery.discover(others)
                return
            unread = {entry for entry in copies if entry in self._context.unlisted}
            async with anyio.create_task_group() as tg:
                tg.start_soon(discovery.discover, unread)
                tg.start_soon(discovery.rediscover, {entry: copies[entry] for entry in copies if entry not in unread})

    def _in_order(self, entries: Iterable[PlanEntry]) -> tuple[list[PlanEntry], list[PlanEntry]]:
        """The entries that go to repositories with open uploads, and the others."""
        first: list[PlanEntry] = []
        others: list[PlanEntry] = []
        for entry in entries:
            addresses = {self._context.targets[goal.target].repository(goal.repository).address for goal in entry.goals}
            (others if addresses.isdisjoint(self._resumed) else first).append(entry)
        return first, others

    async def _push_found(self, found: MemoryObjectReceiveStream[Discovered]) -> None:
        """Start to push images as they are found; of those that wait, the one that helps the others most goes first."""
        async with found, anyio.create_task_group() as tg:
            async for discovered in found:
                if isinstance(discovered, Present):
                    tg.start_soon(self._present, discovered)
                    continue
                self._ready.append(discovered)
                self._lacking.update(discovered.identities)
                tg.start_soon(self._push_next)

    async def _push_next(self) -> None:
        await self._may_push.wait()
        async with self._at_once:
            compared = self._ready[: _COMPARED_RESUMED if self._resumed else _COMPARED]
            best = max(compared, key=self._score)
            self._ready.remove(best)
            async with self._blobs.account() as account:
                await account.take(best.weight)
                if not self._context.is_ending:
                    await self._push(best)
            self._forget(best)

    def _forget(self, ready: Ready) -> None:
        """Release what was kept for an image that was pushed."""
        for identity in ready.identities:
            self._lacking[identity] -= 1
            if not self._lacking[identity]:
                del self._lacking[identity]
        self._backlog.give_back(ready)

    def _score(self, ready: Ready) -> tuple[int, float]:
        lost = sum(self._context.distributor.bytes_lost(copy.repository, diff.to_send) for copy, diff in ready.copies)
        return -lost, max(score(diff.to_send, self._lacking.__getitem__) for _, diff in ready.copies)

    async def _present(self, present: Present) -> None:
        """Finish an image that exists already: its referrers may still be missing."""
        copy, manifest = present.copy, present.manifest
        digests = (manifest.digest, *(child.digest for child in manifest.children))
        self._context.record_present(copy, manifest)
        journal = self._context.journal
        if journal is not None and not self._context.options.dry:
            await journal.image_put(copy.repository.address, manifest, copy.tag)
        await self._finish([copy], digests)
        self._backlog.give_back(present)

    async def _push(self, ready: Ready) -> None:
        """Push an image to all its destinations at once, then copy its referrers."""
        pushed: list[Copy] = []

        async def push(copy: Copy, diff: ImageDiff) -> None:
            try:
                with foreseen():
                    result = await self._push_one(ready, copy, diff)
            except AsyncpushError as error:
                self._context.fail(copy, error)
                return
            self._context.record(result)
            pushed.append(copy)

        async with anyio.create_task_group() as tg:
            for copy, diff in ready.copies:
                tg.start_soon(push, copy, diff)
        await self._finish(pushed, subjects_of(ready.image.root), ready.image.referrers)

    async def _push_one(self, ready: Ready, copy: Copy, diff: ImageDiff) -> CopyResult:
        if self._context.options.dry:
            return await self._would_push(ready, copy, diff)
        target = self._context.targets[copy.goal.target]
        while True:
            since = time.monotonic()
            try:
                await complete_repository(target, copy.entry, copy.repository.name)
                return pushed_result(copy, await self._push_diff(ready, copy, diff))
            except RepositoryNotFoundError as error:
                await self._context.create_repository(copy, error, since)
                # What this run has put before was lost with the repository.
                diff = replace(assume_missing(ready.image), asked=time.monotonic())

    async def _push_diff(self, ready: Ready, copy: Copy, diff: ImageDiff) -> ImageResult:
        distributor, journal = self._context.distributor, self._context.journal
        if diff.to_send and await self._mounts(copy):
            digests = [blob.descriptor.digest for blob in diff.to_send if blob.descriptor]
            if journal is not None:
                # Layers that an earlier run pushed into this registry can be mounted from there.
                registry = copy.repository.registry
                for digest, address in (await journal.mount_sources(registry, digests)).items():
                    distributor.remember(registry, address, digest)
            await distributor.ask_siblings(copy, digests)
        with distributor.sender(copy.repository, diff.to_send, diff.present) as sender:
            context = replace(self._context.push, sender=sender)
            return await push_diff(ready.image, diff, copy.repository, copy.tag, copy.destination, context)

    async def _mounts(self, copy: Copy) -> bool:
        """Whether the copy's registry mounts blobs."""
        ask = self._context.targets[copy.goal.target].registry.admin.mounts_blobs
        return await self._context.distributor.mounts(copy.repository.registry, ask)

    async def _would_push(self, ready: Ready, copy: Copy, diff: ImageDiff) -> CopyResult:
        """What would be sent: each layer once into each registry, or without mounts, into each repository."""
        result = dry_run(ready.image, copy.destination, diff)
        mounts = await self._mounts(copy)
        sent = mounted = shared = parts = bytes_shared = 0
        sizes = [0, 0]
        part_size = self._context.push.settings.part_size or DEFAULT_PART_SIZE
        for blob in diff.to_send:
            in_repository = (copy.repository.address, blob.identity)
            in_registry = (copy.repository.registry, blob.identity)
            if in_repository in self._planned:
                shared, bytes_shared = shared + 1, bytes_shared + blob.source_size
                continue
            # A layer that is not compressed yet has no digest to mount it by.
            by_mount = mounts and blob.descriptor is not None and in_registry in self._planned
            self._planned.add(in_repository)
            self._planned.add(in_registry)
            sent, mounted = sent + (not by_mount), mounted + bool(by_mount)
            sizes[bool(by_mount)] += blob.source_size
            parts += 0 if by_mount else max(1, -(-blob.source_size // part_size))
        return replace(
            pushed_result(copy, result),
            outcome="present" if diff.stored else "planned",
            layers_sent=sent,
            bytes_sent=sizes[0],
            layers_mounted=mounted,
            bytes_mounted=sizes[1],
            layers_shared=shared,
            bytes_shared=bytes_shared,
            manifests=0 if diff.stored else self._manifests_to_put(ready, copy, diff),
            parts=parts,
        )

    def _manifests_to_put(self, ready: Ready, copy: Copy, diff: ImageDiff) -> int:
        """How many manifests an image's push would put: its root under the tag, and each other once a repository."""
        count = 0
        for node in nodes(ready.image.root):
            digest = node.manifest.digest if node.manifest else None
            in_repository = (copy.repository.address, str(digest))
            if node is not ready.image.root and digest and (digest in diff.manifests or in_repository in self._planned):
                continue
            if digest:
                self._planned.add(in_repository)
            count += 1
        return count

    async def _finish(
        self, copies: list[Copy], subjects: tuple[Digest, ...], referrers: ReferrerSource | None = None
    ) -> None:
        """Copy the referrers, and note in the journal which images are finished."""
        journal = self._context.journal
        for copy in copies:
            try:
                with foreseen():
                    complete = await self._referrers.copy_all(copy, subjects, referrers)
            except UnforeseenError as error:
                self._context.fail(copy, error)
                continue
            if not complete:
                self._unfinished.append(copy)
            result = self._context.results[copy.key]
            if journal is None or self._context.options.dry or not complete or result.digest is None:
                continue
            source = self._context.source_digests.get(copy.key)
            await journal.image_finished(
                copy.key,
                source_digest=source,
                digest=result.digest,
                outcome=result.outcome,
                choice=copy.choice,
            )
