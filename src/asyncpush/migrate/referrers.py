"""Signatures, attestations and SBOMs, carried along with the images that they are about.

Found by the OCI 1.1 referrers API, by the referrers tag schema where a registry has no such API, and by cosign's tags
(``sha256-HEX.sig``, ``.att``, ``.sbom``). They are put after their subject: OCI allows either, ECR surely takes this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import anyio

from asyncpush.errors import (
    AsyncpushError,
    ManifestError,
    ServiceError,
    SourceDeniedError,
    SourceNotFoundError,
    TagImmutableError,
    only_cause,
)
from asyncpush.events import Notice
from asyncpush.image import ImageResult, Once, dry_run, push_planned
from asyncpush.migrate.context import Context
from asyncpush.migrate.copies import Copy, CopyResult
from asyncpush.migrate.results import pushed_result
from asyncpush.model import Digest
from asyncpush.planning import Memory, Plan, Wanted, nodes, plan_anew, plan_images
from asyncpush.protocols import Image, ImageNode, IndexNode

#: What refers to a referrer: a signature of an SBOM, say. Nobody signs signatures of signatures.
_DEPTH = 3

_COSIGN = ("sig", "att", "sbom")

#: How ECR refuses referrers that it does not take, such as those of an index (HTTP 405).
_UNSUPPORTED = frozenset({"UnsupportedCommandException", "InvalidParameterException", "405"})
_METHOD_NOT_ALLOWED = 405


@dataclass(frozen=True, slots=True)
class Referrer:
    """A manifest that is about another one.

    Attributes:
        root: it, and what it names.
        tag: cosign's tag; None if it is found by its subject.
        reference: what it is called at the source.
    """

    root: ImageNode | IndexNode
    tag: str | None
    reference: str


class Referrers:
    """Carries the referrers of a run's images along, each to a repository once.

    Args:
        context: the migration.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._read: Once[tuple[Referrer, ...]] = Once()
        self._carried: Once[bool] = Once()

    async def carry(self, copy: Copy, subjects: Sequence[Digest]) -> bool:
        """Bring what refers to *subjects* to the repository of *copy*, where they are.

        Returns:
            Whether all of it is there, or is nothing that ECR takes. What failed is noted as a result of its own.
        """
        if not copy.entry.referrers or copy.entry.kind != "registry":
            return True
        outcomes: list[bool] = []

        async def one(subject: Digest) -> None:
            key = (copy.repository.address, subject)
            carried, _ = await self._carried.do(key, lambda: self._carry(copy, subject, 1))
            if not carried:
                self._carried.forget(key)
            outcomes.append(carried)

        with only_cause():
            async with anyio.create_task_group() as tg:
                for subject in subjects:
                    tg.start_soon(one, subject)
        return all(outcomes)

    async def _carry(self, copy: Copy, subject: Digest, depth: int) -> bool:
        journal, address = self._context.journal, copy.repository.address
        known = journal is not None and journal.referrers_carried(address, subject)
        # An image that has just been put was not there, and what referred to it may be gone with it.
        put = self._context.results[copy.key].outcome == "pushed"
        if known and not put and not self._context.options.recheck:
            return True
        listed = replace(copy, source=f"referrers of {subject} in {copy.entry.location}", tag=None)
        try:
            found = await self.of(copy, subject)
        except AsyncpushError as error:
            self._note(listed, subject, "what", None, error)
            return False
        self._context.results.pop(listed.key, None)
        whole = True
        for referrer in found:
            whole = await self._put(copy, subject, referrer) and whole
            if depth < _DEPTH and referrer.root.manifest:
                whole = await self._carry(copy, referrer.root.manifest.digest, depth + 1) and whole
        if whole and journal and not self._context.options.dry:
            await journal.note_referrers(address, subject)
        return whole

    async def of(self, copy: Copy, subject: Digest) -> tuple[Referrer, ...]:
        """What refers to *subject* at the copy's source; asked for once.

        Raises:
            SourceError: the registry refuses, or can't be reached.
        """
        key = (copy.entry.host, copy.entry.repository, subject)
        found, _ = await self._read.do(key, lambda: self._ask(copy, subject))
        return found

    async def _ask(self, copy: Copy, subject: Digest) -> tuple[Referrer, ...]:
        entry = copy.entry
        remote, repository = self._context.remotes.at(entry.host), entry.repository
        found: list[Referrer] = []
        tags = await self._tags(copy)
        if remote.lists_referrers or f"sha256-{subject.hex}" in tags:
            for descriptor in await remote.referrers(repository, subject):
                root = await remote.load(repository, descriptor)
                found.append(Referrer(root, None, str(descriptor.digest)))
        for tag in (f"sha256-{subject.hex}.{kind}" for kind in _COSIGN):
            if tag in tags:
                try:
                    descriptor = await remote.resolve(repository, tag)
                except SourceNotFoundError:
                    continue  # it was deleted meanwhile
                found.append(Referrer(await remote.load(repository, descriptor), tag, tag))
        return tuple(found)

    async def _tags(self, copy: Copy) -> frozenset[str]:
        """The source's tags; cosign's are among them."""
        try:
            return frozenset(await self._context.tags(copy.entry.host, copy.entry.repository))
        except SourceDeniedError as error:
            text = f"the tags of {copy.entry.location} can't be listed, so that cosign's are not carried along: {error}"
            self._context.emit(Notice(text))
            return frozenset()

    async def _put(self, copy: Copy, subject: Digest, referrer: Referrer) -> bool:
        joint = ":" if referrer.tag else "@"
        source = f"docker://{copy.entry.host}/{copy.entry.repository}{joint}{referrer.reference}"
        target = self._context.targets[copy.goal.target]
        alone = len(self._context.targets) == 1
        name = target.destination(copy.goal.repository, referrer.tag, alone=alone)
        destination = name if referrer.tag else f"{name}@{referrer.reference}"
        own = replace(copy, source=source, reference=referrer.reference, tag=referrer.tag, destination=destination)
        image = Image(source, None, referrer.tag, referrer.root)
        try:
            fresh = self._context.results[copy.key].outcome == "pushed"
            result = await self._push(own, image, fresh=fresh)
        except AsyncpushError as error:
            return self._note(own, subject, f"{destination}, which", _digest(referrer), error)
        ended = replace(pushed_result(own, result), subject=subject)
        self._context.ended(replace(ended, outcome="planned") if result.outcome == "planned" else ended)
        return True

    async def _push(self, copy: Copy, image: Image, *, fresh: bool) -> ImageResult:
        """Push a referrer; of a *fresh* subject, one that this run has put, none is looked for: PutImage tells."""
        repository = copy.repository
        plan = await self._plan(copy, image, fresh=fresh)
        if copy.tag is None and image.root.manifest and image.root.manifest.digest in plan.manifests:
            return ImageResult(copy.source, copy.destination, image.root.manifest.digest, None, "present")
        if self._context.options.dry:
            return dry_run(image, copy.destination, plan)
        with self._context.exchange.sender(repository, plan.to_send) as sender:
            run = replace(self._context.run, sender=sender)
            return await push_planned(image, plan, repository, copy.tag, copy.destination, run)

    async def _plan(self, copy: Copy, image: Image, *, fresh: bool) -> Plan:
        state = self._context.targets[copy.goal.target].states.get(copy.goal.repository)
        if self._context.options.dry and state == "missing":
            return plan_anew(image)
        memory = await Memory.of(self._context.journal, copy.repository)
        wanted = [Wanted(image, copy.tag)]
        [plan] = await plan_images(wanted, copy.repository, memory, found=() if fresh else None)
        if isinstance(plan, TagImmutableError):
            raise plan
        return plan

    def _note(self, copy: Copy, subject: Digest, what: str, digest: Digest | None, error: AsyncpushError) -> bool:
        """Note that a referrer has failed; or that ECR takes none such, which is no failure."""
        refused = isinstance(error, ManifestError) or (
            isinstance(error, ServiceError) and (error.code in _UNSUPPORTED or error.status == _METHOD_NOT_ALLOWED)
        )
        if not self._context.stops(error):
            self._context.emit(Notice(f"{what} refers to {subject.short} is not carried along: {error}"))
        outcome = CopyResult(
            copy=replace(copy, reference=copy.reference or str(subject)),
            outcome="refused" if refused else "failed",
            digest=digest,
            error=error,
            subject=subject,
        )
        self._context.ended(outcome)
        return refused


def subjects_of(root: ImageNode | IndexNode) -> tuple[Digest, ...]:
    """The digests of all manifests of an image."""
    return tuple(dict.fromkeys(node.manifest.digest for node in nodes(root) if node.manifest))


def _digest(referrer: Referrer) -> Digest | None:
    return referrer.root.manifest.digest if referrer.root.manifest else None
