"""One image or index on its way into ECR: what is missing goes, all at once; manifests follow, the tag is last."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import anyio

from asyncpush.errors import AsyncpushError, LayersNotFoundError, RepositoryNotFoundError, only_cause
from asyncpush.events import ImageDone, ImagePlanned, ImageStarted
from asyncpush.image_layers import DirectSender, ImageLayers, LayerSender
from asyncpush.layer import Resources
from asyncpush.manifest import Manifest
from asyncpush.model import Descriptor, Digest, LeftOut
from asyncpush.once import Once
from asyncpush.planning import Memory, Plan, by_identity, companions, nodes, plan_image
from asyncpush.protocols import Blob, Image, ImageNode, IndexNode, Repository
from asyncpush.results import Result
from asyncpush.upload import layer_key

#: Waits in seconds before a manifest is put again whose blobs ECR does not see yet: its check of manifests can lag
#: behind a completed layer by hundreds of milliseconds.
_LAG_WAITS = (0.1, 0.4, 1.0, 2.5)

#: The last of these waits, after which layers are looked for, and sent again: before, it is most likely the lag.
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
        outcome: ``pushed``; ``present`` if it was there already; ``planned`` in a dry run.
        layers_sent: blobs (layers and configs) that were sent, or would be.
        bytes_sent: bytes of layers that went over the wire (before base64); in a dry run, bytes to read.
        layers_present: blobs that the repository had already, or that go with another image of the run.
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


@dataclass(frozen=True, slots=True)
class _Put:
    """A manifest that was put, and when, by the monotonic clock."""

    outcome: Literal["pushed", "present"]
    at: float


@dataclass(frozen=True, slots=True)
class Run:
    """What the images of one run share: resources, and who sends which layer, puts which manifest, creates what.

    The result of a layer is what points at it, where nobody knew that before it was sent.
    """

    resources: Resources
    sender: LayerSender
    layers: Once[Descriptor | None] = field(default_factory=Once)
    manifests: Once[_Put] = field(default_factory=Once)
    created: Once[bool] = field(default_factory=Once)

    @classmethod
    def of(cls, resources: Resources, sender: LayerSender | None = None) -> Run:
        """A run; without a *sender* of its own, each layer is sent by itself."""
        return cls(resources, sender or DirectSender(resources))

    @property
    def anew(self) -> Run:
        """The same for other images, for which sources are tried again that could not be read."""
        return replace(self, sender=DirectSender(self.resources))


def dry_run(image: Image, destination: str, plan: Plan) -> ImageResult:
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


async def push_image(image: Image, repository: Repository, tag: str | None, destination: str, run: Run) -> ImageResult:
    """Put *image* into *repository*, under *tag* if given.

    All its layers go at once, as far as the run's slots allow. Manifests follow their blobs, indexes their manifests;
    only the root gets the tag, and last of all, so that no tag ever names an image that is not complete.

    Args:
        image: what to push.
        repository: where to; created first if it is missing and the settings say so.
        tag: the tag, or None to put it by digest only.
        destination: how to call the destination in events and in the result.
        run: what it shares with other images.

    Raises:
        SourceError: the source can't be read, or is damaged.
        RegistryError: ECR refused, or could not be reached in spite of all retries.
    """
    started = time.monotonic()
    run.resources.emit(ImageStarted(image.source, destination))
    memory = Memory.of(run.resources.journal, repository)
    try:
        plan = await plan_image(image, repository, tag, memory)
    except RepositoryNotFoundError:
        if not run.resources.settings.create_repository:
            raise
        await run.created.do(repository.address, repository.create)
        plan = await plan_image(image, repository, tag, memory)
    result = await push_planned(image, plan, repository, tag, destination, run)
    return replace(result, seconds=time.monotonic() - started)


async def push_planned(
    image: Image, plan: Plan, repository: Repository, tag: str | None, destination: str, run: Run
) -> ImageResult:
    """Put *image* into *repository* by a *plan* that was made of it (``push_image``)."""
    started = time.monotonic()
    emit = run.resources.emit
    fresh = [blob for blob in plan.to_send if run.layers.announce((repository.address, blob.identity))]
    size = sum(blob.source_size for blob in fresh)
    ours = {blob.identity for blob in fresh}
    present = [*plan.present, *(blob for blob in plan.to_send if blob.identity not in ours)]
    present_size = sum(blob.source_size for blob in present)
    keys = tuple(layer_key(repository, blob) for blob in fresh)
    emit(ImagePlanned(destination, len(fresh), size, len(present), present_size, keys))
    push = _ImagePush(repository, plan, run)
    if plan.stored:
        digest, media_type = plan.stored.digest, plan.stored.manifest.media_type if plan.stored.manifest else None
        outcome: Literal["pushed", "present"] = "present"
        if plan.stored.manifest:
            run.sender.referenced(repository, plan.stored.manifest)
    else:
        try:
            with only_cause():
                manifest, outcome = await push.node(image.root, tag)
        except AsyncpushError:
            for blob in fresh:  # whoever sends it after all, counts it
                run.layers.retract((repository.address, blob.identity))
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

    def __init__(self, repository: Repository, plan: Plan, run: Run) -> None:
        self.layers = ImageLayers(repository, run.layers, run.sender)
        self._repository = repository
        self._plan = plan
        self._run = run

    async def node(self, node: ImageNode | IndexNode, tag: str | None) -> tuple[Manifest, Literal["pushed", "present"]]:
        """Put *node*, after all that it names; by digest where *tag* is None."""
        there = node.manifest is not None and node.manifest.digest in self._plan.manifests
        if isinstance(node, ImageNode):
            await self._each(node.companions)
            if tag is None and there and node.manifest:
                return node.manifest, "present"
            return await self._leaf(node, tag, there=there)
        # ECR has an index only with all that it names.
        await self._each(companions(node) if there else node.children)
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

        async def put() -> _Put:
            return _Put(await self._put_whole(manifest, None, again), time.monotonic())

        key = (self._repository.address, manifest.digest)
        done, ours = await self._run.manifests.do(key, put)
        if not ours and done.at < self._plan.asked:  # the plan would know of it, had nobody deleted it since
            self._run.manifests.forget(key)
            done, ours = await self._run.manifests.do(key, put)
        return done.outcome if ours else "present"

    async def _put_whole(
        self, manifest: Manifest, tag: str | None, again: Callable[[bool], Awaitable[None]]
    ) -> Literal["pushed", "present"]:
        for number, wait in enumerate(_LAG_WAITS, 1):
            try:
                return await self._put_once(manifest, tag)
            except LayersNotFoundError:
                await anyio.sleep(wait)
                left = len(_LAG_WAITS) - number
                if left < _DOUBTFUL_WAITS:
                    await again(left > 0)
        return await self._put_once(manifest, tag)

    async def _put_once(self, manifest: Manifest, tag: str | None) -> Literal["pushed", "present"]:
        outcome = await self._repository.put_image(manifest, tag)
        if journal := self._run.resources.journal:
            await journal.image_put(self._repository.address, manifest, tag)
        self._run.sender.referenced(self._repository, manifest)
        return outcome

    async def _put_again(self, index: IndexNode, ask: bool) -> None:
        """Put what *index* names once more, at last: somebody may have deleted it since it was put or seen."""
        if ask:
            return
        self._plan = replace(self._plan, manifests=frozenset())
        for node in nodes(index):
            if node.manifest:
                self._run.manifests.forget((self._repository.address, node.manifest.digest))
        await self._each(index.children)

    async def _send_again(self, blobs: Mapping[Digest, Blob], ask: bool) -> None:
        """Send what the repository has lost: a layer that no image names may be swept at any time."""
        available = await self._repository.available(blobs.keys()) if blobs and ask else frozenset[Digest]()
        lost = {digest: blob for digest, blob in blobs.items() if digest not in available}
        for blob in lost.values():
            self._run.layers.forget((self._repository.address, blob.identity))
        if journal := self._run.resources.journal:
            await journal.layers_lost(self._repository.address, lost.keys())
        await self.layers.send(lost.values(), {})


def _typed(blob: Blob, descriptors: dict[str, Descriptor]) -> Descriptor:
    known = descriptors[blob.identity]
    return Descriptor(blob.media_type, known.digest, known.size)
