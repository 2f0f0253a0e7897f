"""How layers get to all the repositories of a migration: each is read once, and uploaded to each registry once.

Into a registry that mounts blobs, one image uploads a layer (``first_uploads``), and the others mount it from there.
Repositories that wait to upload the same layer at the same time get it from one reading.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import anyio

from asyncpush.digest_set import PackedNames
from asyncpush.engine.context import PushContext
from asyncpush.engine.layer import send_layer
from asyncpush.errors import AsyncpushError, RegistryError, SourceError
from asyncpush.journal import LeftUpload
from asyncpush.manifest import Manifest
from asyncpush.migrate.first_uploads import FirstUploads, PendingImage, UploadTotals
from asyncpush.migrate.report import Copy
from asyncpush.migrate.siblings import Siblings
from asyncpush.model import Descriptor, Digest, PushedLayer
from asyncpush.protocols import Blob, Repository
from asyncpush.single_flight import FirstFailure

#: Mounts that a registry may decline, without one that it grants, before no more are tried.
_MAX_DECLINED = 3


@dataclass(slots=True, eq=False)
class _Registry:
    """What is known of one registry.

    Attributes:
        first_uploads: layers that are being uploaded for the first time.
        mounts: whether it mounts blobs; None if that is unknown.
        asked: whether ECR was asked that.
        sources: for each layer that an image refers to, a repository that it can be mounted from.
        granted: mounts that it has granted.
        declined: mounts that it has declined.
    """

    first_uploads: FirstUploads
    mounts: bool | None = None
    asked: bool = False
    sources: PackedNames = field(default_factory=PackedNames)
    granted: int = 0
    declined: int = 0


@dataclass(slots=True, eq=False)
class _Recipient:
    """A repository that gets a blob, and the outcome; neither is set if the batch was cancelled before its turn.

    Attributes:
        repository: the repository.
        accepts: asked at the batch's turn whether the repository still wants the blob.
        declined: it does not.
        outcome: the layer, or why it failed.
    """

    repository: Repository
    accepts: Callable[[], bool]
    declined: bool = False
    outcome: PushedLayer | AsyncpushError | None = None


@dataclass(slots=True, eq=False)
class _Batch:
    """The repositories that get one blob from one reading; it is open until a slot is free."""

    blob: Blob
    recipients: list[_Recipient] = field(default_factory=list)
    ended: anyio.Event = field(default_factory=anyio.Event)

    def add(self, repository: Repository, accepts: Callable[[], bool]) -> _Recipient:
        """Add a repository."""
        self.recipients.append(_Recipient(repository, accepts))
        return self.recipients[-1]


class LayerDistributor:
    """Sends the layers of all images of a run.

    Args:
        push: what all layers share.
    """

    def __init__(self, push: PushContext) -> None:
        self._push = push
        self._totals = UploadTotals()
        self._unreadable = FirstFailure(SourceError)
        self._registries: dict[str, _Registry] = {}
        self._open_batches: dict[str, _Batch] = {}
        self._sending: dict[tuple[str, str], _Batch] = {}
        self._left: dict[str, dict[str, int]] = {}
        self._siblings: Siblings | None = None

    # What the run knows already

    def resume(self, uploads: Iterable[LeftUpload]) -> None:
        """Learn what an interrupted run uploaded for images that it did not put."""
        for upload in uploads:
            # ECR may have a first part that the journal did not hear of before the run was killed.
            self._left.setdefault(upload.identity, {})[upload.repository] = max(upload.received, 1)

    def bytes_lost(self, repository: Repository, blobs: Iterable[Blob]) -> int:
        """Acknowledged bytes that would be sent again if *blobs* were uploaded to *repository* now.

        Another repository of the registry has them; they can be mounted from there once an image refers to them.
        """
        registry, address = self._registry(repository), repository.registry
        lost = 0
        for blob in blobs if registry.mounts is not False and self._left else ():
            left = self._left.get(blob.identity, {})
            digest = blob.descriptor.digest if blob.descriptor else None
            if digest not in registry.sources and digest not in registry.first_uploads:
                most = max((size for other, size in left.items() if other.startswith(f"{address}/")), default=0)
                lost += most - left.get(repository.address, 0) if most else 0
        return lost

    async def mounts(self, registry: str, ask: Callable[[], Awaitable[bool | None]]) -> bool:
        """Whether *registry* mounts blobs, as far as is known; *ask* is called once, the first time.

        Args:
            registry: what its repositories' addresses begin with.
            ask: asks ECR.
        """
        state = self._at(registry)
        if not state.asked:
            mounts = await ask()
            if not state.asked:
                state.asked, state.mounts = True, mounts
        return state.mounts is not False

    def remember(self, registry: str, repository: str, digest: Digest) -> None:
        """Learn from an earlier run that an image of *repository*, an address, refers to a layer."""
        self._at(registry).sources.setdefault(digest, repository.removeprefix(f"{registry}/"))

    def look_beside(self, siblings: Siblings | None) -> None:
        """Also mount layers from repositories that other shards push to."""
        self._siblings = siblings

    async def ask_siblings(self, copy: Copy, digests: Iterable[Digest]) -> None:
        """Ask repositories of other shards for those of *digests* that can be mounted from nowhere else."""
        if self._siblings is not None:
            registry, target = self._registry(copy.repository), copy.goal.target
            unknown = [digest for digest in digests if digest not in registry.sources]
            await self._siblings.ask(target, copy.repository.name, copy.entry.location, unknown)

    def mark_referenced(self, repository: Repository, digests: Iterable[Digest]) -> None:
        """Learn that images of *repository* refer to these layers."""
        registry = self._registry(repository)
        for digest in digests:
            if registry.mounts is not False:
                registry.sources.setdefault(digest, repository.name)
            registry.first_uploads.settle(digest)

    # The layers of an image

    @contextmanager
    def sender(
        self, repository: Repository, blobs: Iterable[Blob], present: Iterable[Blob] = ()
    ) -> Iterator[ImageSender]:
        """What sends the layers of one image, and uploads those of *blobs* first that no other image does.

        Args:
            repository: where they go.
            blobs: what it lacks.
            present: what it has of the image already; others can mount that once the image is put.
        """
        registry = self._registry(repository)
        # Where nothing is mounted, no image waits for another one.
        mountable, available = (list(blobs), present) if registry.mounts is not False else ([], ())
        resumed = {blob.identity for blob in mountable if repository.address in self._left.get(blob.identity, ())}
        image = registry.first_uploads.add(repository.name, mountable, registry.sources, resumed, available)
        try:
            yield ImageSender(self, registry.first_uploads, image)
        finally:
            registry.first_uploads.remove(image)

    async def mount(self, repository: Repository, blob: Blob) -> PushedLayer | None:
        """Mount *blob* from another repository of the registry; None if that can't be done."""
        registry, descriptor = self._registry(repository), blob.descriptor
        source = registry.sources.get(descriptor.digest) if descriptor else None
        if descriptor is None or source is None or source == repository.name or registry.mounts is False:
            return None
        try:
            granted = await repository.mount(descriptor.digest, source)
        except RegistryError:
            granted = False  # an upload needs no /v2/, and tells what is wrong if it fails, too
        if not granted:
            registry.declined += 1
            if not registry.granted and registry.declined >= _MAX_DECLINED:
                registry.mounts = False
                registry.first_uploads.settle_all()
            return None
        registry.granted += 1
        return await self._mounted(repository, blob, descriptor)

    async def mount_beside(self, repository: Repository, blob: Blob) -> PushedLayer | None:
        """Mount *blob* from a repository of another shard; None if that can't be done."""
        registry, descriptor, address = self._registry(repository), blob.descriptor, repository.registry
        if self._siblings is None or descriptor is None or registry.mounts is False:
            return None
        holder = self._siblings.holder(address, descriptor.digest)
        if holder is None:
            return None
        try:
            granted = await repository.mount(descriptor.digest, holder)
        except RegistryError:
            granted = False
        self._siblings.note_mount(address, descriptor.digest, granted=granted)
        if not granted:
            return None
        registry.granted += 1
        registry.sources.setdefault(descriptor.digest, holder)
        registry.first_uploads.settle(descriptor.digest)
        return await self._mounted(repository, blob, descriptor)

    async def _mounted(self, repository: Repository, blob: Blob, descriptor: Descriptor) -> PushedLayer:
        if journal := self._push.journal:
            await journal.layer_completed(repository.address, blob.identity, descriptor)
        return PushedLayer(descriptor, 0, "mounted")

    # Uploads

    async def upload(
        self, repository: Repository, blob: Blob, accepts: Callable[[], bool] = lambda: True
    ) -> PushedLayer | None:
        """Upload *blob* in one of the run's slots, together with all repositories that wait for it by then.

        A source that can't be read is tried once (``retry_sources``).

        Args:
            repository: where it goes.
            blob: the blob.
            accepts: asked at its turn whether the repository still wants it.

        Returns:
            The layer; None if it was not wanted.

        Raises:
            SourceError: the blob can't be read, or is damaged.
            RegistryError: ECR refused, or could not be reached in spite of all retries.
        """
        return await self._unreadable.do(blob, lambda: self._upload(repository, blob, accepts))

    def retry_sources(self) -> None:
        """Try sources again that could not be read."""
        self._unreadable.forget()

    def is_awaited(self, repository: Repository, blob: Blob) -> bool:
        """Whether other repositories get *blob* from the reading that is under way for *repository*."""
        batch = self._sending.get((repository.address, blob.identity))
        return batch is not None and len(batch.recipients) > 1

    async def _upload(self, repository: Repository, blob: Blob, accepts: Callable[[], bool]) -> PushedLayer | None:
        while True:
            batch = self._open_batches.get(blob.identity)
            if batch is None:
                batch = _Batch(blob)
                recipient = batch.add(repository, accepts)
                await self._send(batch)
            else:
                recipient = batch.add(repository, accepts)
                await batch.ended.wait()
            if recipient.declined:
                return None
            outcome = recipient.outcome
            if outcome is None:
                continue  # the task that was sending the batch was cancelled
            if isinstance(outcome, SourceError) and batch.blob != blob:
                continue  # another source of the same bytes has failed, not this one
            if isinstance(outcome, AsyncpushError):
                raise outcome
            return outcome

    async def _send(self, batch: _Batch) -> None:
        blob, address = batch.blob, batch.recipients[0].repository.address
        self._open_batches[blob.identity] = self._sending[address, blob.identity] = batch
        try:
            async with self._push.limiter.hold(blob.source_size):
                self._close(batch)
                for recipient in batch.recipients:
                    recipient.declined = not recipient.accepts()
                accepting = [recipient for recipient in batch.recipients if not recipient.declined]
                if not accepting:
                    return
                started = time.monotonic()
                outcomes = await send_layer([recipient.repository for recipient in accepting], blob, self._push)
                for recipient, outcome in zip(accepting, outcomes, strict=True):
                    recipient.outcome = outcome
                    if isinstance(outcome, PushedLayer):
                        self._totals.add(outcome.sent, time.monotonic() - started)
        finally:
            self._sending.pop((address, blob.identity), None)
            self._close(batch)
            batch.ended.set()

    def _close(self, batch: _Batch) -> None:
        """Let no more repositories join *batch*."""
        if self._open_batches.get(batch.blob.identity) is batch:
            del self._open_batches[batch.blob.identity]

    def _registry(self, repository: Repository) -> _Registry:
        return self._at(repository.registry)

    def _at(self, address: str) -> _Registry:
        if address not in self._registries:
            first_uploads = FirstUploads(self._totals, lambda: self._push.limiter.is_idle)
            self._registries[address] = _Registry(first_uploads)
        return self._registries[address]


@dataclass(frozen=True, slots=True)
class ImageSender:
    """Sends the layers of one image into one repository (a ``protocols.LayerSender``).

    Attributes:
        distributor: sends the layers of all images.
        first_uploads: the first uploads into the registry.
        image: the image among them.
    """

    distributor: LayerDistributor
    first_uploads: FirstUploads
    image: PendingImage

    async def send(self, repository: Repository, blob: Blob) -> PushedLayer:
        """Put *blob* into *repository*: mount it where that is possible, else upload it."""
        first_upload = self.image.first_upload(blob)
        layer: PushedLayer | None = None
        while layer is None:
            if first_upload is not None:
                await self.first_uploads.wait(self.image, first_upload)
            layer = (
                await self.distributor.mount(repository, blob)
                or await self.distributor.mount_beside(repository, blob)
                or await self.distributor.upload(repository, blob, lambda: self.first_uploads.start(self.image, blob))
            )
        self.first_uploads.complete(self.image, blob)
        return layer

    def note_manifest(self, repository: Repository, manifest: Manifest) -> None:
        """Note that an image of *repository* refers to the blobs of *manifest* now."""
        self.distributor.mark_referenced(repository, (blob.digest for blob in manifest.blobs()))

    def is_awaited(self, repository: Repository, blob: Blob) -> bool:
        """Whether other repositories are being sent *blob* along with *repository*."""
        return self.distributor.is_awaited(repository, blob)

    def note_failure(self) -> None:
        """Note that the image will not be put: other images upload its layers then."""
        self.first_uploads.remove(self.image)


def score(blobs: Iterable[Blob], images_lacking: Callable[[str], int]) -> float:
    """How much an image helps others: the bytes that they wait for, for each byte that it sends itself.

    Args:
        blobs: what the image lacks.
        images_lacking: how many images lack a blob, by its identity.
    """
    own = shared = 1
    for blob in blobs:
        own += blob.source_size
        shared += blob.source_size * (images_lacking(blob.identity) - 1)
    return shared / own
