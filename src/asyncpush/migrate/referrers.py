"""Signatures, attestations and SBOMs, carried along with the images that they are about.

Found by the OCI 1.1 referrers API, by the referrers tag schema where a registry has no such API, and by cosign's tags
(``sha256-HEX.sig``, ``.att``, ``.sbom``). They are put after their subject: OCI allows either, ECR surely takes this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import anyio

from asyncpush.errors import (
    AsyncpushError,
    ServiceError,
    SourceDeniedError,
    SourceNotFoundError,
    TagImmutableError,
    only_cause,
)
from asyncpush.events import Notice
from asyncpush.image import ImageResult, Once, dry_run, push_planned
from asyncpush.migrate.context import Context
from asyncpush.migrate.copies import Copy, CopyResult, Outcome
from asyncpush.migrate.plan.model import Entry
from asyncpush.migrate.results import pushed_result
from asyncpush.model import Descriptor, Digest
from asyncpush.planning import Memory, Plan, Wanted, nodes, plan_anew, plan_images
from asyncpush.protocols import Image, ImageNode, IndexNode
from asyncpush.sources.registry import Remote

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


@dataclass(frozen=True, slots=True)
class Unread:
    """A referrer, or a list of them, that the source does not give.

    Attributes:
        tag: cosign's tag, if it has one.
        reference: what it is called at the source; empty for the list of them.
        error: why.
    """

    tag: str | None
    reference: str
    error: AsyncpushError


@dataclass(frozen=True, slots=True)
class Found:
    """What a source has that refers to a manifest.

    Attributes:
        referrers: what could be read.
        unread: what could not.
    """

    referrers: tuple[Referrer, ...]
    unread: tuple[Unread, ...]


class Referrers:
    """Carries the referrers of a run's images along, each to a repository once.

    Args:
        context: the migration.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._read: Once[Found] = Once()
        self._unlisted: set[tuple[str, str]] = set()
        self._noted: dict[tuple[str, Digest], list[str]] = {}
        self._said: set[str] = set()
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
        found = await self.of(copy, subject)
        whole = not found.unread
        for key in self._noted.pop((address, subject), ()):
            self._context.results.pop(key, None)
        for unread in found.unread:
            self._note_unread(copy, subject, unread)
        for referrer in found.referrers:
            whole = await self._put(copy, subject, referrer) and whole
            if depth < _DEPTH and referrer.root.manifest:
                whole = await self._carry(copy, referrer.root.manifest.digest, depth + 1) and whole
        if whole and journal and not self._context.options.dry:
            await journal.note_referrers(address, subject)
        return whole

    async def of(self, copy: Copy, subject: Digest) -> Found:
        """What refers to *subject* at the copy's source; asked for once, and again where it could not be read."""
        key = (copy.entry.host, copy.entry.repository, subject)
        found, _ = await self._read.do(key, lambda: self._ask(copy, subject))
        if found.unread:
            self._read.forget(key)
        return found

    async def _ask(self, copy: Copy, subject: Digest) -> Found:
        tags = await self._tags(copy)
        reading = _Reading(self._context, copy.entry, subject)
        tagged = f"sha256-{subject.hex}"
        if reading.remote.lists_referrers or tags is None or tagged in tags:
            await reading.listed()
        for tag in (f"{tagged}.{kind}" for kind in _COSIGN):
            if tags is None or tag in tags:
                await reading.one(tag, tag, guessed=tags is None)
        return Found(tuple(reading.found), tuple(reading.unread))

    async def _tags(self, copy: Copy) -> frozenset[str] | None:
        """The source's tags; cosign's are among them. None if it does not list them: then each is asked for."""
        key = (copy.entry.host, copy.entry.repository)
        if key in self._unlisted:
            return None
        try:
            return frozenset(await self._context.tags(*key))
        except AsyncpushError as error:
            if key not in self._unlisted:
                self._unlisted.add(key)
                text = (
                    f"the tags of {copy.entry.location} can't be listed, so cosign's are asked for one by one: {error}"
                )
                self._context.emit(Notice(text))
            return None

    async def _put(self, copy: Copy, subject: Digest, referrer: Referrer) -> bool:
        own = self._own(copy, referrer.tag, referrer.reference)
        image = Image(own.source, None, referrer.tag, referrer.root)
        try:
            fresh = self._context.results[copy.key].outcome == "pushed"
            result = await self._push(own, image, fresh=fresh)
        except AsyncpushError as error:
            refused = isinstance(error, ServiceError) and (
                error.code in _UNSUPPORTED or error.status == _METHOD_NOT_ALLOWED
            )
            text = f"{own.destination}, which refers to {subject.short}, is not carried along: {error}"
            self._note(own, subject, "refused" if refused else "failed", text, error, _digest(referrer))
            return refused
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

    def _own(self, copy: Copy, tag: str | None, reference: str) -> Copy:
        """A referrer as a copy of its own, beside that of its subject."""
        source = f"docker://{copy.entry.host}/{copy.entry.repository}{':' if tag else '@'}{reference}"
        target = self._context.targets[copy.goal.target]
        name = target.destination(copy.goal.repository, tag, alone=len(self._context.targets) == 1)
        destination = name if tag else f"{name}@{reference}"
        return replace(copy, source=source, reference=reference, tag=tag, destination=destination)

    def _note_unread(self, copy: Copy, subject: Digest, unread: Unread) -> None:
        """Note what the source does not give."""
        if unread.reference:
            own = self._own(copy, unread.tag, unread.reference)
            what = f"{own.source}, which refers to {subject.short},"
        else:
            source = f"referrers of {subject} in {copy.entry.location}"
            own = replace(copy, source=source, reference=str(subject), tag=None)
            what = f"what refers to {subject.short}"
        text = f"{what} can't be read at its source, and is not carried along: {unread.error}"
        self._noted.setdefault((copy.repository.address, subject), []).append(own.key)
        self._note(own, subject, "failed", text, unread.error, None)

    def _note(
        self, copy: Copy, subject: Digest, outcome: Outcome, text: str, error: AsyncpushError, digest: Digest | None
    ) -> None:
        if text not in self._said:  # what is tried again can fail again
            self._said.add(text)
            self._context.emit(Notice(text))
        self._context.ended(CopyResult(copy=copy, outcome=outcome, digest=digest, error=error, subject=subject))


@dataclass(slots=True)
class _Reading:
    """Reads what refers to one manifest at its source; what can't be read costs itself only."""

    context: Context
    entry: Entry
    subject: Digest
    found: list[Referrer] = field(default_factory=list)
    unread: list[Unread] = field(default_factory=list)

    @property
    def remote(self) -> Remote:
        """The source."""
        return self.context.remotes.at(self.entry.host)

    async def listed(self) -> None:
        """Read what the source lists."""
        try:
            listed = await self.remote.referrers(self.entry.repository, self.subject)
        except AsyncpushError as error:
            self.unread.append(Unread(None, "", error))
            return
        if listed.problems:
            self.unread.append(Unread(None, "", listed.problems[0]))
        for descriptor in listed.descriptors:
            await self.one(descriptor, None)

    async def one(self, reference: Descriptor | str, tag: str | None, *, guessed: bool = False) -> None:
        """Read one; if it is *guessed*, nothing says that it is there."""
        repository = self.entry.repository
        name = reference if isinstance(reference, str) else str(reference.digest)
        try:
            manifest = await self.remote.manifest(repository, reference)
        except (SourceNotFoundError, SourceDeniedError) as error:
            if guessed:
                return  # some refuse what is not there
            if isinstance(error, SourceDeniedError):
                self.unread.append(Unread(tag, name, error))
                return
            text = f"{name}, which refers to {self.subject.short}, is gone at its source: {error.message}"
            self.context.emit(Notice(text))
            return
        except AsyncpushError as error:
            self.unread.append(Unread(tag, name, error))
            return
        try:
            root = await self.remote.load(repository, manifest.descriptor)
        except AsyncpushError as error:
            self.unread.append(Unread(tag, name, error))
        else:
            self.found.append(Referrer(root, tag, name))


def subjects_of(root: ImageNode | IndexNode) -> tuple[Digest, ...]:
    """The digests of all manifests of an image."""
    return tuple(dict.fromkeys(node.manifest.digest for node in nodes(root) if node.manifest))


def _digest(referrer: Referrer) -> Digest | None:
    return referrer.root.manifest.digest if referrer.root.manifest else None
