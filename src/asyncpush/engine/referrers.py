"""Pushes the referrers of an image (signatures, attestations, SBOMs), after the image.

OCI allows a referrer to be pushed before its subject; ECR certainly accepts it after its subject.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import anyio

from asyncpush.engine.context import PushContext
from asyncpush.engine.diff import ImageDiff, KnownLayers, assume_missing, diff_image, nodes
from asyncpush.engine.image import dry_run, push_diff
from asyncpush.errors import (
    CREDENTIALS_LOST,
    AsyncpushError,
    RepositoryNotFoundError,
    ServiceError,
    SourceError,
    only_cause,
)
from asyncpush.events import Notice
from asyncpush.model import Digest
from asyncpush.protocols import FoundReferrers, Image, ImageNode, IndexNode, ReferrerSource, Repository, UnreadReferrer
from asyncpush.reference import Destination
from asyncpush.results import ImageResult, ReferrerResult

#: Steps from an image to a referrer, at most: an SBOM, its signature. Nobody signs signatures of signatures.
MAX_DEPTH = 3

#: The errors with which ECR refuses referrers that it does not support, such as those of an index (HTTP 405).
_UNSUPPORTED = frozenset({"UnsupportedCommandException", "InvalidParameterException", "405"})
_METHOD_NOT_ALLOWED = 405


async def carry_referrers(
    image: Image, repository: Repository, to: Destination, context: PushContext, *, dry: bool = False
) -> tuple[ReferrerResult, ...]:
    """Push the referrers of *image*, and of the manifests that it names, to the repository that has the image.

    Args:
        image: the image.
        repository: the repository that has it.
        to: the image's destination, for the names in the results.
        context: what this shares with other pushes.
        dry: only find out what would be sent.

    Returns:
        The result of each referrer, also of those that can't be read or that ECR refuses.
    """
    if image.referrers is None:
        return ()
    push = _ReferrerPush(image.referrers, repository, to, context, dry)
    with only_cause():
        async with anyio.create_task_group() as tg:
            for subject in subjects_of(image.root):
                tg.start_soon(push.push_all, subject, 1)
    return tuple(sorted(push.results, key=lambda result: (result.destination or "", result.source)))


@dataclass(slots=True)
class _ReferrerPush:
    """Pushes the referrers of one image, and their own referrers."""

    source: ReferrerSource
    repository: Repository
    to: Destination
    context: PushContext
    dry: bool
    seen: set[Digest] = field(default_factory=set)
    results: list[ReferrerResult] = field(default_factory=list)
    list_failed: bool = False

    async def push_all(self, subject: Digest, depth: int) -> None:
        if subject in self.seen:
            return
        self.seen.add(subject)
        found = await self.source.of(subject)
        if depth > MAX_DEPTH:
            found = too_deep(found)
        for unread in found.unread:
            # A list that can't be read is reported once per image: those of its other manifests fail likewise.
            if unread.reference or not self.list_failed:
                self._report_failure(subject, unread.source, None, unread.error)
            self.list_failed = self.list_failed or not unread.reference
        async with anyio.create_task_group() as tg:
            for referrer in found.referrers:
                tg.start_soon(self._push_with_referrers, subject, referrer, depth)

    async def _push_with_referrers(self, subject: Digest, referrer: Image, depth: int) -> None:
        await self._push(subject, referrer)
        if referrer.root.manifest:
            await self.push_all(referrer.root.manifest.digest, depth + 1)

    async def _push(self, subject: Digest, referrer: Image) -> None:
        digest = referrer.root.manifest.digest if referrer.root.manifest else None
        name = str(replace(self.to, tag=referrer.tag))
        destination = name if referrer.tag else f"{name}@{digest}"
        try:
            diff = await self._diff(referrer)
            result = await push_referrer(referrer, diff, self.repository, destination, self.context, dry=self.dry)
        except CREDENTIALS_LOST:
            raise  # all other referrers would fail, too
        except AsyncpushError as error:
            self._report_failure(subject, referrer.source, destination, error)
            return
        self.results.append(
            ReferrerResult(
                subject, referrer.source, destination, result.outcome, digest, result.layers_sent, result.bytes_sent
            )
        )

    async def _diff(self, image: Image) -> ImageDiff:
        known = KnownLayers.of(self.context.journal, self.repository)
        try:
            return await diff_image(image, self.repository, image.tag, known)
        except RepositoryNotFoundError:
            if not self.dry:
                raise
            return assume_missing(image)

    def _report_failure(self, subject: Digest, source: str, destination: str | None, error: AsyncpushError) -> None:
        outcome: Literal["refused", "failed"] = "refused" if is_refused(error) else "failed"
        self.context.emit(Notice(f"{source}, which refers to {subject.short}, is not carried along: {error}"))
        self.results.append(ReferrerResult(subject, source, destination, outcome, error=error))


def subjects_of(root: ImageNode | IndexNode) -> tuple[Digest, ...]:
    """Return the digests of all manifests of an image."""
    return tuple(dict.fromkeys(node.manifest.digest for node in nodes(root) if node.manifest))


def is_refused(error: AsyncpushError) -> bool:
    """Whether ECR does not support such a referrer, which is not a failure."""
    return isinstance(error, ServiceError) and (error.code in _UNSUPPORTED or error.status == _METHOD_NOT_ALLOWED)


def too_deep(found: FoundReferrers) -> FoundReferrers:
    """Return the referrers *found* beyond ``MAX_DEPTH`` as unread ones, so that each is reported and none is pushed."""
    error = SourceError(
        f"it is more than {MAX_DEPTH} steps from its image, and no referrer is followed further",
        hint="push it by its digest",
    )
    unread = (
        UnreadReferrer(image.source, str(image.root.manifest.digest) if image.root.manifest else "", image.tag, error)
        for image in found.referrers
    )
    return FoundReferrers((), (*found.unread, *unread))


async def push_referrer(
    image: Image, diff: ImageDiff, repository: Repository, destination: str, context: PushContext, *, dry: bool
) -> ImageResult:
    """Push a referrer, under its own tag or by digest; in a *dry* run, return what would be sent."""
    manifest = image.root.manifest
    if image.tag is None and manifest and manifest.digest in diff.manifests:
        return ImageResult(image.source, destination, manifest.digest, manifest.media_type, "present")
    if dry:
        return dry_run(image, destination, diff)
    return await push_diff(image, diff, repository, image.tag, destination, context)
