"""Signatures, attestations and SBOMs, copied with the images that they refer to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import anyio

from asyncpush.engine.diff import ImageDiff, KnownLayers, TaggedImage, assume_missing, diff_images
from asyncpush.engine.referrers import MAX_DEPTH, is_refused, push_referrer, too_deep
from asyncpush.errors import (
    AsyncpushError,
    TagImmutableError,
    only_cause,
)
from asyncpush.events import Notice
from asyncpush.migrate.ledger import MigrationContext
from asyncpush.migrate.report import Copy, CopyResult, Outcome, outcome_of, pushed_result
from asyncpush.model import Digest
from asyncpush.protocols import FoundReferrers, Image, ReferrerSource, UnreadReferrer
from asyncpush.results import ImageResult
from asyncpush.single_flight import SingleFlight
from asyncpush.sources.registry.source_registry import RepositoryReferrers


class Referrers:
    """Copies the referrers of a run's images, each to a repository once.

    Args:
        context: the migration.
    """

    def __init__(self, context: MigrationContext) -> None:
        self._context = context
        self._read = SingleFlight(FoundReferrers())
        self._sources: dict[tuple[str, str], RepositoryReferrers] = {}
        self._noted: dict[tuple[str, Digest], list[str]] = {}
        self._reported: set[str] = set()
        self._copied = SingleFlight(usual=True)

    async def copy_all(self, copy: Copy, subjects: Sequence[Digest], source: ReferrerSource | None = None) -> bool:
        """Copy what refers to *subjects* to the repository of *copy*, where they are.

        Args:
            copy: the copy that pushed them.
            subjects: the digests of manifests.
            source: what lists the referrers, if not the registry that the image comes from.

        Returns:
            Whether all of them are there, or ECR does not accept them. Each failure is a result of its own.
        """
        if not copy.entry.referrers or (copy.entry.kind != "registry" and source is None):
            return True
        outcomes: list[bool] = []

        async def copy_of(subject: Digest) -> None:
            # Those of a repository that was deleted are lost with it.
            key = (copy.repository.address, self._context.push.created.times(copy.repository), subject)
            complete, _ = await self._copied.do(key, lambda: self._copy(copy, subject, source, 1))
            if not complete:
                self._copied.forget(key)
            outcomes.append(complete)

        with only_cause():
            async with anyio.create_task_group() as tg:
                for subject in subjects:
                    tg.start_soon(copy_of, subject)
        return all(outcomes)

    async def _copy(self, copy: Copy, subject: Digest, source: ReferrerSource | None, depth: int) -> bool:
        journal, address = self._context.journal, copy.repository.address
        known = journal is not None and journal.referrers_copied(address, subject)
        # The repository lacked an image that this run pushed, so that it may have lost the referrers with it.
        is_new = self._context.results[copy.key].outcome == "pushed"
        if known and not is_new and not self._context.options.recheck:
            return True
        found = await self.find(copy, subject, source, depth)
        for key in self._noted.pop((address, subject), ()):
            self._context.results.pop(key, None)
        for unread in found.unread:
            self._note_unread(copy, subject, unread)
        outcomes = [not found.unread]

        async def push(referrer: Image) -> None:
            outcomes.append(await self._put(copy, subject, referrer))
            if referrer.root.manifest:
                outcomes.append(await self._copy(copy, referrer.root.manifest.digest, source, depth + 1))

        with only_cause():
            async with anyio.create_task_group() as tg:
                for referrer in found.referrers:
                    tg.start_soon(push, referrer)
        complete = all(outcomes)
        if complete and journal and not self._context.options.dry:
            await journal.note_referrers_copied(address, subject)
        return complete

    async def find(self, copy: Copy, subject: Digest, source: ReferrerSource | None, depth: int) -> FoundReferrers:
        """What refers to *subject* at the copy's source; listed once, and again where it could not be read.

        Args:
            copy: the copy that *subject* belongs to.
            subject: the digest of a manifest.
            source: what lists the referrers, if not the registry that the image comes from.
            depth: 1 for an image, 2 for what refers to one, and so on; referrers that are too deep are unreadable.
        """
        found = await (source.of(subject) if source is not None else self._listed(copy, subject))
        return too_deep(found) if depth > MAX_DEPTH else found

    async def _listed(self, copy: Copy, subject: Digest) -> FoundReferrers:
        host, name = copy.entry.host, copy.entry.repository
        if (host, name) not in self._sources:
            tags, emit = partial(self._context.tags, host, name), self._context.emit
            self._sources[host, name] = RepositoryReferrers(self._context.source_pool.at(host), name, tags, emit)
        key, repository = (host, name, subject), self._sources[host, name]
        found, _ = await self._read.do(key, lambda: repository.of(subject))
        if found.unread:
            self._read.forget(key)
        return found

    async def _put(self, copy: Copy, subject: Digest, referrer: Image) -> bool:
        own = self._own(copy, referrer.tag, referrer.tag or str(_digest(referrer)), referrer.source)
        try:
            fresh = self._context.results[copy.key].outcome == "pushed"
            result = await self._push(own, referrer, fresh=fresh)
        except AsyncpushError as error:
            refused = is_refused(error)
            text = f"{own.destination}, which refers to {subject.short}, was not copied: {error}"
            self._note(own, subject, "refused" if refused else outcome_of(error), text, error, _digest(referrer))
            return refused
        ended = replace(pushed_result(own, result), subject=subject)
        if result.outcome == "planned":
            ended = replace(ended, outcome="planned", manifests=1, parts=result.layers_sent)
        self._context.record(ended)
        return True

    def _own(self, copy: Copy, tag: str | None, reference: str, source: str) -> Copy:
        """A referrer as a copy of its own, beside that of its subject."""
        target = self._context.targets[copy.goal.target]
        name = target.destination(copy.goal.repository, tag, alone=len(self._context.targets) == 1)
        destination = name if tag else f"{name}@{reference}"
        return replace(copy, source=source, reference=reference, tag=tag, destination=destination)

    async def _push(self, copy: Copy, image: Image, *, fresh: bool) -> ImageResult:
        """Push a referrer; if this run pushed its subject (*fresh*), do not look for it first."""
        repository = copy.repository
        plan = await self._plan(copy, image, fresh=fresh)
        with self._context.distributor.sender(repository, plan.to_send, plan.present) as sender:
            run = replace(self._context.push, sender=sender)
            return await push_referrer(image, plan, repository, copy.destination, run, dry=self._context.options.dry)

    async def _plan(self, copy: Copy, image: Image, *, fresh: bool) -> ImageDiff:
        state = self._context.targets[copy.goal.target].states.get(copy.goal.repository)
        if self._context.options.dry and state == "missing":
            return assume_missing(image)
        memory = KnownLayers.of(self._context.journal, copy.repository)
        wanted = [TaggedImage(image, copy.tag)]
        [plan] = await diff_images(wanted, copy.repository, memory, stored=() if fresh else None)
        if isinstance(plan, TagImmutableError):
            raise plan
        return plan

    def _note_unread(self, copy: Copy, subject: Digest, unread: UnreadReferrer) -> None:
        """Note a referrer that the source does not give."""
        if unread.reference:
            own = self._own(copy, unread.tag, unread.reference, unread.source)
        else:
            own = replace(copy, source=unread.source, reference=str(subject), tag=None)
        self._noted.setdefault((copy.repository.address, subject), []).append(own.key)
        what = f"{unread.source}, which refers" if unread.reference else "what refers"
        text = f"{what} to {subject.short} can't be read at its source, and was not copied: {unread.error}"
        self._note(own, subject, outcome_of(unread.error), text, unread.error, None)

    def _note(
        self, copy: Copy, subject: Digest, outcome: Outcome, text: str, error: AsyncpushError, digest: Digest | None
    ) -> None:
        if outcome == "left":
            self._context.note_limited(error)
        elif text not in self._reported and not self._context.stop_on(error):  # what is tried again can fail again
            self._reported.add(text)
            self._context.emit(Notice(text))
        self._context.record(CopyResult(copy=copy, outcome=outcome, digest=digest, error=error, subject=subject))


def _digest(referrer: Image) -> Digest | None:
    return referrer.root.manifest.digest if referrer.root.manifest else None
