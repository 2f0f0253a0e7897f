"""Signatures, attestations and SBOMs, carried along with the images that they are about, after them.

OCI lets a referrer come before its subject or after; ECR surely takes the latter.
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

#: What refers to a referrer: a signature of an SBOM, say. Nobody signs signatures of signatures.
MAX_DEPTH = 3

#: How ECR refuses referrers that it does not take, such as those of an index (HTTP 405).
_UNSUPPORTED = frozenset({"UnsupportedCommandException", "InvalidParameterException", "405"})
_METHOD_NOT_ALLOWED = 405


def subjects_of(root: ImageNode | IndexNode) -> tuple[Digest, ...]:
    """The digests of all manifests of an image."""
    return tuple(dict.fromkeys(node.manifest.digest for node in nodes(root) if node.manifest))


def is_refused(error: AsyncpushError) -> bool:
    """Whether ECR takes no such referrer: then nothing has failed."""
    return isinstance(error, ServiceError) and (error.code in _UNSUPPORTED or error.status == _METHOD_NOT_ALLOWED)


def too_deep(found: FoundReferrers) -> FoundReferrers:
    """What is *found* beyond ``MAX_DEPTH``: none of it is carried along, and each is named."""
    error = SourceError(
        f"referrers are followed over {MAX_DEPTH} steps, and it is further from its image", hint="push it by its digest"
    )
    left = (
        UnreadReferrer(each.source, str(each.root.manifest.digest) if each.root.manifest else "", each.tag, error)
        for each in found.referrers
    )
    return FoundReferrers((), (*found.unread, *left))


async def push_referrer(
    image: Image, plan: ImageDiff, repository: Repository, destination: str, context: PushContext, *, dry: bool
) -> ImageResult:
    """Push a referrer by its *plan*, under the image's tag or by digest; or say what would be sent."""
    manifest = image.root.manifest
    if image.tag is None and manifest and manifest.digest in plan.manifests:
        return ImageResult(image.source, destination, manifest.digest, manifest.media_type, "present")
    if dry:
        return dry_run(image, destination, plan)
    return await push_diff(image, plan, repository, image.tag, destination, context)


@dataclass(slots=True)
class _Carrying:
    """What refers to one image, on its way."""

    source: ReferrerSource
    repository: Repository
    to: Destination
    context: PushContext
    dry: bool
    seen: set[Digest] = field(default_factory=set)
    results: list[ReferrerResult] = field(default_factory=list)
    unlisted: bool = False

    async def all_of(self, subject: Digest, depth: int) -> None:
        if subject in self.seen:
            return
        self.seen.add(subject)
        found = await self.source.of(subject)
        if depth > MAX_DEPTH:
            found = too_deep(found)
        for unread in found.unread:
            # One list that can't be read stands for those of the image's other manifests: they fail of the same.
            if unread.reference or not self.unlisted:
                self._failed(subject, unread.source, None, unread.error)
            self.unlisted = self.unlisted or not unread.reference
        async with anyio.create_task_group() as tg:
            for referrer in found.referrers:
                tg.start_soon(self._bring, subject, referrer, depth)

    async def _bring(self, subject: Digest, referrer: Image, depth: int) -> None:
        await self._put(subject, referrer)
        if referrer.root.manifest:
            await self.all_of(referrer.root.manifest.digest, depth + 1)

    async def _put(self, subject: Digest, referrer: Image) -> None:
        digest = referrer.root.manifest.digest if referrer.root.manifest else None
        name = str(replace(self.to, tag=referrer.tag))
        destination = name if referrer.tag else f"{name}@{digest}"
        try:
            plan = await self._plan(referrer)
            result = await push_referrer(referrer, plan, self.repository, destination, self.context, dry=self.dry)
        except CREDENTIALS_LOST:
            raise  # of that all the others would fail, too
        except AsyncpushError as error:
            self._failed(subject, referrer.source, destination, error)
            return
        self.results.append(
            ReferrerResult(
                subject, referrer.source, destination, result.outcome, digest, result.layers_sent, result.bytes_sent
            )
        )

    async def _plan(self, image: Image) -> ImageDiff:
        memory = KnownLayers.of(self.context.journal, self.repository)
        try:
            return await diff_image(image, self.repository, image.tag, memory)
        except RepositoryNotFoundError:
            if not self.dry:
                raise
            return assume_missing(image)

    def _failed(self, subject: Digest, source: str, destination: str | None, error: AsyncpushError) -> None:
        outcome: Literal["refused", "failed"] = "refused" if is_refused(error) else "failed"
        self._note(f"{source}, which refers to {subject.short}, is not carried along: {error}")
        self.results.append(ReferrerResult(subject, source, destination, outcome, error=error))

    def _note(self, text: str) -> None:
        self.context.emit(Notice(text))


async def carry_referrers(
    image: Image, repository: Repository, to: Destination, context: PushContext, *, dry: bool = False
) -> tuple[ReferrerResult, ...]:
    """Bring what refers to *image*, and to what it names, to the repository where it is.

    Args:
        image: the image.
        repository: where it is.
        to: likewise.
        context: what this shares with other pushes.
        dry: only find out what would be sent.

    Returns:
        What became of each; what can't be read, and what ECR refuses, is named, too.
    """
    if image.referrers is None:
        return ()
    carrying = _Carrying(image.referrers, repository, to, context, dry)
    with only_cause():
        async with anyio.create_task_group() as tg:
            for subject in subjects_of(image.root):
                tg.start_soon(carrying.all_of, subject, 1)
    return tuple(sorted(carrying.results, key=lambda result: (result.destination or "", result.source)))
