"""One image or index on its way into ECR: what is missing goes, all at once; manifests follow, the tag is last."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

import anyio

from asyncpush.errors import LayersNotFoundError, RepositoryNotFoundError, TagImmutableError, only_cause
from asyncpush.events import ImageDone, ImagePlanned, ImageStarted
from asyncpush.layer import PushedLayer, Resources, push_layer
from asyncpush.manifest import Manifest
from asyncpush.model import Descriptor, Digest
from asyncpush.protocols import Blob, Image, ImageNode, IndexNode, Repository, StoredImage

T = TypeVar("T")

#: Waits in seconds before a manifest is put again whose blobs ECR does not see yet: its check of manifests can lag
#: behind a completed layer by hundreds of milliseconds.
_LAG_WAITS = (0.1, 0.4, 1.0, 2.5)

#: The last of these waits, after which layers are looked for, and sent again: before, it is most likely the lag.
_DOUBTFUL_WAITS = 2


@dataclass(frozen=True, slots=True)
class ImageResult:
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


class Once(Generic[T]):
    """Does each thing once, however many ask for it; a failure is forgotten, so that somebody else may try."""

    def __init__(self) -> None:
        self._done: dict[Hashable, T] = {}
        self._running: dict[Hashable, anyio.Event] = {}
        self._announced: set[Hashable] = set()

    async def do(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> tuple[T, bool]:
        """The result of *work* for *key*, and whether it was this call that did it."""
        while key not in self._done:
            if (running := self._running.get(key)) is not None:
                await running.wait()
                continue
            finished = self._running[key] = anyio.Event()
            try:
                self._done[key] = await work()
            finally:
                del self._running[key]
                finished.set()
            return self._done[key], True
        return self._done[key], False

    def announce(self, key: Hashable) -> bool:
        """Whether nobody has announced *key* before, so that work is counted once."""
        if key in self._announced:
            return False
        self._announced.add(key)
        return True

    def forget(self, key: Hashable) -> None:
        """Let *key* be done again."""
        self._done.pop(key, None)


@dataclass(frozen=True, slots=True)
class Run:
    """What the images of one run share: resources, and who sends which layer and creates which repository."""

    resources: Resources
    layers: Once[PushedLayer] = field(default_factory=Once)
    created: Once[bool] = field(default_factory=Once)


@dataclass(frozen=True, slots=True)
class Plan:
    """What one image needs.

    Attributes:
        stored: the repository's image, if the destination is there already.
        manifests: those of its manifests that the repository has.
        blobs: those of its blobs that the repository has, by digest.
        to_send: the others, each once, largest first.
        present: blobs that are not to be sent.
    """

    stored: StoredImage | None
    manifests: frozenset[Digest]
    blobs: frozenset[Digest]
    to_send: tuple[Blob, ...]
    present: tuple[Blob, ...]


async def plan_image(image: Image, repository: Repository, tag: str | None) -> Plan:
    """Learn what *repository* has of *image*: one BatchGetImage, then one BatchCheckLayerAvailability per 100 blobs.

    Raises:
        RepositoryNotFoundError: the repository does not exist.
        TagImmutableError: *tag* is immutable and names another image.
    """
    digests = [node.manifest.digest for node in _nodes(image.root) if node.manifest]
    found = await repository.find_images(tag=tag, digests=digests)
    stored = next((there for there in found if there.tag == tag and _is_same(there, image.root)), None)
    every = tuple(_each_once(blob for leaf in _leaves(image.root) for blob in (leaf.config, *leaf.layers)))
    if stored:
        return Plan(stored, frozenset(digests), frozenset(), (), every)
    if tag and (other := next((there for there in found if there.tag == tag), None)):
        await _refuse_to_move(repository, tag, image, other)
    manifests = frozenset(there.digest for there in found)
    missing = [leaf for leaf in _leaves(image.root) if leaf.manifest is None or leaf.manifest.digest not in manifests]
    wanted = list(_each_once(blob for leaf in missing for blob in (leaf.config, *leaf.layers)))
    asked = {blob.descriptor.digest for blob in wanted if blob.descriptor}
    blobs = await repository.available(asked) if asked else frozenset[Digest]()
    to_send = [blob for blob in wanted if not (blob.descriptor and blob.descriptor.digest in blobs)]
    sending = {blob.identity for blob in to_send}
    return Plan(
        None,
        manifests,
        blobs,
        tuple(sorted(to_send, key=lambda blob: -blob.source_size)),
        tuple(blob for blob in every if blob.identity not in sending),
    )


def plan_anew(image: Image) -> Plan:
    """What a repository needs of *image* that has nothing yet."""
    blobs = _each_once(blob for leaf in _leaves(image.root) for blob in (leaf.config, *leaf.layers))
    return Plan(None, frozenset(), frozenset(), tuple(sorted(blobs, key=lambda blob: -blob.source_size)), ())


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
    emit = run.resources.emit
    emit(ImageStarted(image.source, destination))
    try:
        plan = await plan_image(image, repository, tag)
    except RepositoryNotFoundError:
        if not run.resources.settings.create_repository:
            raise
        await run.created.do(repository.name, repository.create)
        plan = await plan_image(image, repository, tag)
    fresh = [blob for blob in plan.to_send if run.layers.announce((repository.name, blob.identity))]
    size = sum(blob.source_size for blob in fresh)
    ours = {blob.identity for blob in fresh}
    present = [*plan.present, *(blob for blob in plan.to_send if blob.identity not in ours)]
    present_size = sum(blob.source_size for blob in present)
    emit(ImagePlanned(destination, len(fresh), size, len(present), present_size))
    push = _ImagePush(repository, plan, run)
    if plan.stored:
        digest, media_type = plan.stored.digest, plan.stored.manifest.media_type if plan.stored.manifest else None
        outcome: Literal["pushed", "present"] = "present"
    else:
        with only_cause():
            manifest, outcome = await push.node(image.root, tag)
        digest, media_type = manifest.digest, manifest.media_type
    emit(ImageDone(destination, digest, outcome))
    sent = push.sent
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
    )


class _ImagePush:
    """One image's nodes, bottom up."""

    def __init__(self, repository: Repository, plan: Plan, run: Run) -> None:
        self.sent: list[PushedLayer] = []
        self._repository = repository
        self._plan = plan
        self._run = run

    async def node(self, node: ImageNode | IndexNode, tag: str | None) -> tuple[Manifest, Literal["pushed", "present"]]:
        """Put *node*, after all that it names; by digest where *tag* is None."""
        if tag is None and node.manifest and node.manifest.digest in self._plan.manifests:
            return node.manifest, "present"
        if isinstance(node, IndexNode):
            async with anyio.create_task_group() as tg:
                for child in node.children:
                    tg.start_soon(self.node, child, None)
            return node.manifest, await self._put(node.manifest, tag, {})
        return await self._leaf(node, tag)

    async def _leaf(self, node: ImageNode, tag: str | None) -> tuple[Manifest, Literal["pushed", "present"]]:
        blobs = tuple(_each_once((node.config, *node.layers)))
        there = node.manifest is not None and node.manifest.digest in self._plan.manifests
        descriptors = {} if there else await self._send(blobs, self._plan.blobs)
        by_digest = {known.digest: blob for blob in blobs if (known := descriptors.get(blob.identity, blob.descriptor))}
        manifest = node.manifest
        if manifest is None:
            assert node.build is not None, "an image without a manifest says how to build it"  # noqa: S101
            config = _typed(node.config, descriptors)
            manifest = node.build(config, [_typed(layer, descriptors) for layer in node.layers])
        return manifest, await self._put(manifest, tag, by_digest)

    async def _send(self, blobs: Iterable[Blob], available: frozenset[Digest]) -> dict[str, Descriptor]:
        """Send those of *blobs* that are not *available*; what points at each, by identity."""
        descriptors: dict[str, Descriptor] = {}

        async def send(blob: Blob) -> None:
            if blob.descriptor and blob.descriptor.digest in available:
                descriptors[blob.identity] = blob.descriptor
                return
            key = (self._repository.name, blob.identity)
            resources = self._run.resources
            pushed, ours = await self._run.layers.do(key, lambda: push_layer(self._repository, blob, resources))
            descriptors[blob.identity] = pushed.descriptor
            if ours:
                self.sent.append(pushed)

        async with anyio.create_task_group() as tg:
            for blob in sorted(blobs, key=lambda blob: -blob.source_size):
                tg.start_soon(send, blob)
        return descriptors

    async def _put(
        self, manifest: Manifest, tag: str | None, blobs: Mapping[Digest, Blob]
    ) -> Literal["pushed", "present"]:
        """Put a manifest; where ECR misses some of its *blobs*, send those that are really gone, and try again."""
        for number, wait in enumerate(_LAG_WAITS, 1):
            try:
                return await self._repository.put_image(manifest, tag)
            except LayersNotFoundError:
                await anyio.sleep(wait)
                left = len(_LAG_WAITS) - number
                if left < _DOUBTFUL_WAITS:
                    # In the end PutImage is believed, whatever BatchCheckLayerAvailability says.
                    await self._send_again(blobs, ask=left > 0)
        return await self._repository.put_image(manifest, tag)

    async def _send_again(self, blobs: Mapping[Digest, Blob], *, ask: bool) -> None:
        """Send what the repository has lost: a layer that no image names may be swept at any time."""
        available = await self._repository.available(blobs.keys()) if blobs and ask else frozenset[Digest]()
        lost = [blob for digest, blob in blobs.items() if digest not in available]
        for blob in lost:
            self._run.layers.forget((self._repository.name, blob.identity))
        await self._send(lost, available)


async def _refuse_to_move(repository: Repository, tag: str, image: Image, other: StoredImage) -> None:
    """Fail before anything is sent if *tag* may not leave *other*."""
    if not await repository.is_immutable(tag):
        return
    if image.root.manifest:
        raise TagImmutableError(repository.name, tag, image.root.manifest.digest, other.digest)
    config = image.root.config.descriptor if isinstance(image.root, ImageNode) else None
    wanted = f"the image with config {config.digest}" if config else "this image"
    raise TagImmutableError(repository.name, tag, wanted, other.digest)


def _is_same(stored: StoredImage, root: ImageNode | IndexNode) -> bool:
    """Whether *stored* is *root*.

    An image whose manifest is yet to be built is told by its config: it names every layer's diff id, so that the same
    config means the same image, provided that its layers were compressed the same way.
    """
    if isinstance(root, IndexNode) or root.manifest is not None:
        return root.manifest is not None and stored.digest == root.manifest.digest
    there = stored.manifest
    if there is None or there.config is None or root.config.descriptor is None:
        return False
    return there.config.digest == root.config.descriptor.digest and [layer.media_type for layer in there.layers] == [
        layer.media_type for layer in root.layers
    ]


def _typed(blob: Blob, descriptors: dict[str, Descriptor]) -> Descriptor:
    known = descriptors[blob.identity]
    return Descriptor(blob.media_type, known.digest, known.size)


def _nodes(node: ImageNode | IndexNode) -> Iterator[ImageNode | IndexNode]:
    yield node
    if isinstance(node, IndexNode):
        for child in node.children:
            yield from _nodes(child)


def _leaves(node: ImageNode | IndexNode) -> Iterator[ImageNode]:
    return (each for each in _nodes(node) if isinstance(each, ImageNode))


def _each_once(blobs: Iterable[Blob]) -> Iterator[Blob]:
    seen: set[str] = set()
    for blob in blobs:
        if blob.identity not in seen:
            seen.add(blob.identity)
            yield blob
