"""One image or index on its way into ECR: what is missing goes, all at once; manifests follow, the tag is last."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import anyio

from asyncpush.engine.context import PushContext, PutManifest
from asyncpush.engine.diff import ImageDiff, KnownLayers, by_identity, diff_image, nodes, referrer_nodes
from asyncpush.engine.layer import push_layer
from asyncpush.engine.upload import layer_key
from asyncpush.errors import (
    CREDENTIALS_LOST,
    AsyncpushError,
    JournalError,
    LayersNotFoundError,
    RepositoryNotFoundError,
    only_cause,
)
from asyncpush.events import ImageDone, ImagePlanned, ImageStarted
from asyncpush.manifest import Manifest
from asyncpush.model import Descriptor, Digest, LeftOut, PushedLayer
from asyncpush.protocols import Blob, Image, ImageNode, IndexNode, LayerSender, Repository
from asyncpush.results import Result
from asyncpush.single_flight import SingleFlight

#: The last of ``RetryPolicy.lag_waits``, after which layers are looked for, and sent again: before, it is most
#: likely the lag.
_DOUBTFUL_WAITS = 2


@dataclass(frozen=True, slots=True)
class ReferrerResult:
    """What became of something that refers to an image: a signature, an attestation, an SBOM.

    Attributes:
        subject: the digest of the manifest that it is about.
        source: where it came from.
        destination: where it went; None if it could not be read.
        outcome: as of an image; ``refused`` if ECR takes no such referrer, ``failed`` if it stays behind otherwise,
            or if the source does not tell what there is.
        digest: its manifest's digest.
        layers_sent: blobs that were sent, or would be.
        bytes_sent: their bytes.
        error: why it stays behind.
    """

    subject: Digest
    source: str
    destination: str | None
    outcome: Literal["pushed", "present", "planned", "refused", "failed"]
    digest: Digest | None = None
    layers_sent: int = 0
    bytes_sent: int = 0
    error: AsyncpushError | None = None


@dataclass(frozen=True, slots=True)
class ImageResult(Result):
    """What became of one image.

    Attributes:
        source: where it came from.
        destination: where it went, with its tag.
        digest: its manifest's or index's digest; None in a dry run of an image whose layers are yet to be compressed.
        media_type: its manifest's media type; None likewise.
        outcome: ``pushed``; ``present`` if it was there already; ``planned`` in a dry context.
        layers_sent: blobs (layers and configs) that were sent, or would be.
        bytes_sent: bytes of layers that went over the wire (before base64); in a dry context, bytes to read.
        layers_present: blobs that the repository had already, or that go with another image of the context.
        bytes_present: their bytes.
        seconds: how long it took.
        layers_mounted: blobs that were taken over from another repository of the registry.
        bytes_mounted: their bytes.
        referrers: what refers to it, and was carried along or stays behind.
        left_out: what the image's index names and the source does not hold.
    """

    source: str
    destination: str
    digest: Digest | None
    media_type: str | None
    outcome: Literal["pushed", "present", "planned"]
    layers_sent: int = 0
    bytes_sent: int = 0
    layers_present: int = 0
    bytes_present: int = 0
    seconds: float = 0.0
    layers_mounted: int = 0
    bytes_mounted: int = 0
    referrers: tuple[ReferrerResult, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    @property
    def failures(self) -> tuple[tuple[str, AsyncpushError], ...]:
        """What refers to the image and has failed; what ECR does not take has not."""
        return tuple((each.source, each.error) for each in self.referrers if each.outcome == "failed" and each.error)


def dry_run(image: Image, destination: str, plan: ImageDiff) -> ImageResult:
    """What a push by *plan* would do."""
    manifest = plan.stored.manifest if plan.stored and plan.stored.manifest else image.root.manifest
    return ImageResult(
        image.source,
        destination,
        manifest.digest if manifest else None,
        manifest.media_type if manifest else None,
        "present" if plan.stored else "planned",
        len(plan.to_send),
        sum(blob.source_size for blob in plan.to_send),
        len(plan.present),
        sum(blob.source_size for blob in plan.present),
        left_out=image.left_out,
    )


async def push_image(
    image: Image, repository: Repository, tag: str | None, destination: str, context: PushContext
) -> ImageResult:
    """Put *image* into *repository*, under *tag* if given.

    All its layers go at once, as far as the run's slots allow. Manifests follow their blobs, indexes their manifests;
    only the root gets the tag, and last of all, so that no tag ever names an image that is not complete.

    Args:
        image: what to push.
        repository: where to; created first if it is missing and the settings say so.
        tag: the tag, or None to put it by digest only.
        destination: how to call the destination in events and in the result.
        context: what it shares with other images.

    Raises:
        SourceError: the source can't be read, or is damaged.
        RegistryError: ECR refused, or could not be reached in spite of all retries.
    """
    started = time.monotonic()
    context.emit(ImageStarted(image.source, destination))
    memory = KnownLayers.of(context.journal, repository)
    try:
        plan = await diff_image(image, repository, tag, memory)
    except RepositoryNotFoundError:
        if not context.settings.create_repository:
            raise
        await context.created.do(repository.address, repository.create)
        plan = await diff_image(image, repository, tag, memory)
    result = await push_diff(image, plan, repository, tag, destination, context)
    return replace(result, seconds=time.monotonic() - started)


async def push_diff(
    image: Image, plan: ImageDiff, repository: Repository, tag: str | None, destination: str, context: PushContext
) -> ImageResult:
    """Put *image* into *repository* by a *plan* that was made of it (``push_image``)."""
    started = time.monotonic()
    emit = context.emit
    fresh = [blob for blob in plan.to_send if context.layers.claim((repository.address, blob.identity))]
    size = sum(blob.source_size for blob in fresh)
    ours = {blob.identity for blob in fresh}
    present = [*plan.present, *(blob for blob in plan.to_send if blob.identity not in ours)]
    present_size = sum(blob.source_size for blob in present)
    keys = tuple(layer_key(repository, blob) for blob in fresh)
    emit(ImagePlanned(destination, len(fresh), size, len(present), present_size, keys))
    push = _ImagePush(repository, plan, context)
    if plan.stored:
        digest, media_type = plan.stored.digest, plan.stored.manifest.media_type if plan.stored.manifest else None
        outcome: Literal["pushed", "present"] = "present"
        if plan.stored.manifest:
            push.sender.referenced(repository, plan.stored.manifest)
    else:
        try:
            with only_cause():
                manifest, outcome = await push.node(image.root, tag)
        except AsyncpushError:
            for blob in fresh:  # whoever sends it after all, counts it
                context.layers.release((repository.address, blob.identity))
            raise
        digest, media_type = manifest.digest, manifest.media_type
    emit(ImageDone(destination, digest, outcome))
    sent = [layer for layer in push.layers.sent if layer.outcome != "mounted"]
    mounted = [layer for layer in push.layers.sent if layer.outcome == "mounted"]
    return ImageResult(
        image.source,
        destination,
        digest,
        media_type,
        outcome,
        len(sent),
        sum(layer.sent for layer in sent),
        len(present),
        present_size,
        time.monotonic() - started,
        len(mounted),
        sum(layer.descriptor.size for layer in mounted),
        left_out=image.left_out,
    )


class _ImagePush:
    """One image's nodes, bottom up."""

    def __init__(self, repository: Repository, plan: ImageDiff, context: PushContext) -> None:
        self.sender = context.sender or DirectSender(context)
        self.layers = ImageLayers(repository, context.layers, self.sender)
        self._repository = repository
        self._plan = plan
        self._context = context

    async def node(self, node: ImageNode | IndexNode, tag: str | None) -> tuple[Manifest, Literal["pushed", "present"]]:
        """Put *node*, after all that it names; by digest where *tag* is None."""
        there = node.manifest is not None and node.manifest.digest in self._plan.manifests
        if isinstance(node, ImageNode):
            await self._each(node.companions)
            if tag is None and there and node.manifest:
                return node.manifest, "present"
            return await self._leaf(node, tag, there=there)
        # ECR has an index only with all that it names.
        await self._each(referrer_nodes(node) if there else node.children)
        if tag is None and there:
            return node.manifest, "present"
        return node.manifest, await self._put(node.manifest, tag, partial(self._put_again, node))

    async def _each(self, nodes: Iterable[ImageNode | IndexNode]) -> None:
        async with anyio.create_task_group() as tg:
            for node in nodes:
                tg.start_soon(self.node, node, None)

    async def _leaf(
        self, node: ImageNode, tag: str | None, *, there: bool
    ) -> tuple[Manifest, Literal["pushed", "present"]]:
        blobs = tuple(by_identity((node.config, *node.layers)).values())
        descriptors = {} if there else await self.layers.send(blobs, self._plan.known)
        by_digest = {known.digest: blob for blob in blobs if (known := descriptors.get(blob.identity, blob.descriptor))}
        manifest = node.manifest
        if manifest is None:
            assert node.build is not None, "an image without a manifest says how to build it"  # noqa: S101
            config = _typed(node.config, descriptors)
            manifest = node.build(config, [_typed(layer, descriptors) for layer in node.layers])
        return manifest, await self._put(manifest, tag, partial(self._send_again, by_digest))

    async def _put(
        self, manifest: Manifest, tag: str | None, again: Callable[[bool], Awaitable[None]]
    ) -> Literal["pushed", "present"]:
        """Put a manifest; one without a tag once, for all images of the run that have it.

        Args:
            manifest: the manifest.
            tag: its tag, if it gets one.
            again: brings what ECR misses of that which the manifest names, and is told whether ECR is to be asked for
                it. In the end PutImage is believed, whatever BatchCheckLayerAvailability says.
        """
        if tag is not None:
            return await self._put_whole(manifest, tag, again)

        async def put() -> PutManifest:
            return PutManifest(await self._put_whole(manifest, None, again), time.monotonic())

        key = (self._repository.address, manifest.digest)
        done, ours = await self._context.manifests.do(key, put)
        if not ours and done.at < self._plan.asked:  # the plan would know of it, had nobody deleted it since
            self._context.manifests.forget(key)
            done, ours = await self._context.manifests.do(key, put)
        return done.outcome if ours else "present"

    async def _put_whole(
        self, manifest: Manifest, tag: str | None, again: Callable[[bool], Awaitable[None]]
    ) -> Literal["pushed", "present"]:
        waits = self._context.settings.retry.lag_waits
        for number, wait in enumerate(waits, 1):
            try:
                return await self._put_once(manifest, tag)
            except LayersNotFoundError:
                await anyio.sleep(wait)
                left = len(waits) - number
                if left < _DOUBTFUL_WAITS:
                    await again(left > 0)
        return await self._put_once(manifest, tag)

    async def _put_once(self, manifest: Manifest, tag: str | None) -> Literal["pushed", "present"]:
        outcome = await self._repository.put_image(manifest, tag)
        if journal := self._context.journal:
            await journal.image_put(self._repository.address, manifest, tag)
        self.sender.referenced(self._repository, manifest)
        return outcome

    async def _put_again(self, index: IndexNode, ask: bool) -> None:
        """Put what *index* names once more, at last: somebody may have deleted it since it was put or seen."""
        if ask:
            return
        self._plan = replace(self._plan, manifests=frozenset())
        for node in nodes(index):
            if node.manifest:
                self._context.manifests.forget((self._repository.address, node.manifest.digest))
        await self._each(index.children)

    async def _send_again(self, blobs: Mapping[Digest, Blob], ask: bool) -> None:
        """Send what the repository has lost: a layer that no image names may be swept at any time."""
        available = await self._repository.available(blobs.keys()) if blobs and ask else frozenset[Digest]()
        lost = {digest: blob for digest, blob in blobs.items() if digest not in available}
        for blob in lost.values():
            self._context.layers.forget((self._repository.address, blob.identity))
        if journal := self._context.journal:
            await journal.layers_lost(self._repository.address, lost.keys())
        await self.layers.send(lost.values(), {})


def _typed(blob: Blob, descriptors: dict[str, Descriptor]) -> Descriptor:
    known = descriptors[blob.identity]
    return Descriptor(blob.media_type, known.digest, known.size)


@dataclass(frozen=True, slots=True)
class DirectSender:
    """Sends each layer by itself; one that can't be read is tried once."""

    context: PushContext

    async def send(self, repository: Repository, blob: Blob) -> PushedLayer:
        """Put *blob* into *repository* when the run's limiter lets it."""
        return await self.context.unreadable.do(blob, lambda: push_layer(repository, blob, self.context))

    def referenced(self, repository: Repository, manifest: Manifest) -> None:
        """Nobody waits for it."""

    def is_awaited(self, repository: Repository, blob: Blob) -> bool:  # noqa: ARG002 - each is sent by itself
        """None is."""
        return False

    def failed(self) -> None:
        """Nobody waits for it."""


@dataclass(slots=True, eq=False)
class _LayerTask:
    """A layer on its way.

    Attributes:
        blob: the layer.
        scope: stops it.
        is_ours: whether it is this image that sends it, while others may wait for it.
    """

    blob: Blob
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    is_ours: bool = False


class ImageLayers:
    """The layers of one image: all are sent at once, and each once for all images of a context.

    When one fails, the others stop, but for those that other images wait for.

    Args:
        repository: where they go.
        layers: what has been sent.
        sender: sends what has not.

    Attributes:
        sent: those that this image has sent.
    """

    def __init__(self, repository: Repository, layers: SingleFlight[Descriptor | None], sender: LayerSender) -> None:
        self.sent: list[PushedLayer] = []
        self._repository = repository
        self._layers = layers
        self._sender = sender
        self._sending: list[_LayerTask] = []
        self._failure: AsyncpushError | None = None
        self._ended = anyio.Event()

    async def send(self, blobs: Iterable[Blob], available: Mapping[str, Descriptor]) -> dict[str, Descriptor]:
        """Send those of *blobs* that are not *available*; what points at each, by identity.

        Raises:
            SourceError: one can't be read, or is damaged; this one, or another one of the image.
            RegistryError: ECR refused, or could not be reached in spite of all retries.
        """
        descriptors: dict[str, Descriptor] = {}

        async def one(blob: Blob) -> None:
            if (known := available.get(blob.identity)) is not None:
                descriptors[blob.identity] = known
            elif self._failure is None and (found := await self._send(blob)) is not None:
                descriptors[blob.identity] = found

        async with anyio.create_task_group() as tg:
            for blob in sorted(blobs, key=lambda blob: -blob.source_size):
                tg.start_soon(one, blob)
        if self._failure is not None:
            while self._sending:
                await self._ended.wait()
            raise self._failure
        return descriptors

    async def _send(self, blob: Blob) -> Descriptor | None:
        """Send a layer; what points at it, or None if it, or another one before it, has failed."""
        sending = _LayerTask(blob)

        async def send() -> Descriptor | None:
            sending.is_ours = True
            pushed = await self._sender.send(self._repository, blob)
            self.sent.append(pushed)
            return None if blob.descriptor else pushed.descriptor

        self._sending.append(sending)
        try:
            with sending.scope:
                found, _ = await self._layers.do(self._key(blob), send)
                return found or blob.descriptor
        except AsyncpushError as error:
            self._fail(error)
            if isinstance(error, (JournalError, *CREDENTIALS_LOST)):
                raise  # of that all will fail
        finally:
            self._sending.remove(sending)
            self._ended.set()
            self._ended = anyio.Event()
        return None

    def _fail(self, error: AsyncpushError) -> None:
        if self._failure is None:
            self._failure = error
            self._sender.failed()
        for each in self._sending:
            if not (each.is_ours and self._is_awaited(each.blob)):
                each.scope.cancel()

    def _is_awaited(self, blob: Blob) -> bool:
        """Whether another image waits for a layer that this one sends."""
        own = sum(each.blob.identity == blob.identity for each in self._sending) - 1
        return self._layers.waiting(self._key(blob)) > own or self._sender.is_awaited(self._repository, blob)

    def _key(self, blob: Blob) -> tuple[str, str]:
        return self._repository.address, blob.identity
