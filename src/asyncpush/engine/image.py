"""One image or index pushed into a repository: its layers at once, manifests after their blobs, the tag last.

``push_image`` finds out what the repository lacks, ``push_diff`` sends it. ``_ImagePush`` walks the image from the
bottom up, and ``ImageLayers`` sends the layers of the images that it meets.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping, Sequence
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
from asyncpush.events import ImageDone, ImagePlanned, ImageStarted, working_on
from asyncpush.manifest import Manifest
from asyncpush.model import Descriptor, Digest, PushedLayer
from asyncpush.protocols import Blob, Image, ImageNode, IndexNode, LayerSender, Repository
from asyncpush.reference import pull_reference
from asyncpush.results import ImageResult
from asyncpush.single_flight import SingleFlight

#: The last of ``RetryPolicy.lag_waits`` after which missing layers are sent again. Before them, a layer that ECR does
#: not find is most likely one that it does not see yet.
_WAITS_BEFORE_RESEND = 2

#: Makes sure that ECR has what a manifest names. True: ask ECR first, and send only what it lacks. False: send
#: everything, because PutImage is believed in the end, whatever BatchCheckLayerAvailability says.
Resend = Callable[[bool], Awaitable[None]]


async def push_image(
    image: Image, repository: Repository, tag: str | None, destination: str, context: PushContext
) -> ImageResult:
    """Put *image* into *repository*, under *tag* if given.

    All layers are sent at once, as far as the run's slots allow. Manifests follow their blobs, indexes their manifests;
    only the root gets the tag, and gets it last, so that no tag ever names an incomplete image.

    Args:
        image: the image to push.
        repository: the destination; created if it is missing, or deleted meanwhile, and the settings allow it.
        tag: the tag, or None to put the image by digest only.
        destination: the destination's name in events and in the result.
        context: what the image shares with other images.

    Raises:
        SourceError: the source can't be read, or is damaged.
        RegistryError: ECR refused, or could not be reached in spite of all retries.
    """
    started = time.monotonic()
    context.emit(ImageStarted(image.source, destination))
    known = KnownLayers.of(context.journal, repository)
    diff: ImageDiff | None = None
    while True:
        since = time.monotonic()
        try:
            diff = await diff_image(image, repository, tag, known)
            result = await push_diff(image, diff, repository, tag, destination, context)
        except RepositoryNotFoundError as error:
            if not context.settings.create_repository:
                raise
            existed = diff is not None
            await context.created.create(repository, repository.create, error, since=since, existed=existed)
        else:
            return replace(result, seconds=time.monotonic() - started)


async def push_diff(
    image: Image, diff: ImageDiff, repository: Repository, tag: str | None, destination: str, context: PushContext
) -> ImageResult:
    """Put *image* into *repository*, which lacks what *diff* says (see ``push_image``)."""
    started = time.monotonic()
    groups = _BlobGroups.of(diff, repository, destination, context)
    context.emit(
        ImagePlanned(
            destination,
            len(groups.claimed),
            _size(groups.claimed),
            len(groups.present),
            _size(groups.present),
            tuple(layer_key(repository, blob) for blob in groups.claimed),
            len(groups.shared),
            _size(groups.shared),
        )
    )
    push = _ImagePush(repository, diff, context)
    outcome: Literal["pushed", "present"] = "present"
    if diff.stored:
        digest, manifest = diff.stored.digest, diff.stored.manifest
        if manifest:
            push.sender.note_manifest(repository, manifest)
    else:
        try:
            with only_cause(), working_on(image=destination):
                manifest, outcome = await push.put_node(image.root, tag)
        except AsyncpushError:
            if unfinished := groups.earlier | push.layers.sent:
                context.sent_before[destination] = unfinished
            for blob in groups.claimed:  # the image that sends it after all counts it
                context.layers.release((repository.address, blob.identity))
            raise
        digest = manifest.digest
    context.emit(ImageDone(destination, digest, outcome))
    # What the journal or another image was to have left in ECR, and this one had to send, counts once.
    groups = groups.without(push.layers.sent)
    layers = (groups.earlier | push.layers.sent).values()
    sent = [layer for layer in layers if layer.outcome != "mounted"]
    mounted = [layer for layer in layers if layer.outcome == "mounted"]
    return ImageResult(
        image.source,
        destination,
        digest,
        manifest.media_type if manifest else None,
        outcome,
        layers_sent=len(sent),
        bytes_sent=sum(layer.sent for layer in sent),
        layers_present=len(groups.present),
        bytes_present=_size(groups.present),
        seconds=time.monotonic() - started,
        layers_mounted=len(mounted),
        bytes_mounted=sum(layer.descriptor.size for layer in mounted),
        left_out=image.left_out,
        reference=pull_reference(repository.pull_name, tag, digest),
        layers_shared=len(groups.shared),
        bytes_shared=_size(groups.shared),
    )


@dataclass(frozen=True, slots=True)
class _BlobGroups:
    """The blobs of an image, by who sends them: of all images of a run, the first that needs a blob.

    Attributes:
        claimed: those that this image is the first to need.
        shared: those that another image of the run sends, or has sent.
        present: those that the repository had before the run.
        earlier: the layers that this image sent before it failed, by identity.
    """

    claimed: Sequence[Blob]
    shared: Sequence[Blob]
    present: Sequence[Blob]
    earlier: dict[str, PushedLayer]

    @classmethod
    def of(cls, diff: ImageDiff, repository: Repository, destination: str, context: PushContext) -> _BlobGroups:
        """Group the blobs of *diff*, and claim those that no other image has claimed."""
        claimed = [blob for blob in diff.to_send if context.layers.claim((repository.address, blob.identity))]
        earlier = dict(context.sent_before.pop(destination, {}))
        own = {blob.identity for blob in claimed} | earlier.keys()
        shared = [blob for blob in diff.to_send if blob.identity not in own]
        present: list[Blob] = []
        for blob in diff.present:  # ECR also has what this run has sent so far
            if blob.identity not in earlier:
                (shared if context.layers.is_known((repository.address, blob.identity)) else present).append(blob)
        return cls(claimed, shared, present, earlier)

    def without(self, sent: Container[str]) -> _BlobGroups:
        """The groups, without shared and present blobs that were *sent* after all, by identity."""
        shared, present = (
            [blob for blob in blobs if blob.identity not in sent] for blobs in (self.shared, self.present)
        )
        return replace(self, shared=shared, present=present)


def _size(blobs: Iterable[Blob]) -> int:
    return sum(blob.source_size for blob in blobs)


def dry_run(image: Image, destination: str, diff: ImageDiff) -> ImageResult:
    """Return what ``push_diff`` would do."""
    manifest = diff.stored.manifest if diff.stored and diff.stored.manifest else image.root.manifest
    return ImageResult(
        image.source,
        destination,
        manifest.digest if manifest else None,
        manifest.media_type if manifest else None,
        "present" if diff.stored else "planned",
        layers_sent=len(diff.to_send),
        bytes_sent=_size(diff.to_send),
        layers_present=len(diff.present),
        bytes_present=_size(diff.present),
        left_out=image.left_out,
    )


class _ImagePush:
    """Puts the nodes of one image, from the bottom up."""

    def __init__(self, repository: Repository, diff: ImageDiff, context: PushContext) -> None:
        self.sender = context.sender or DirectSender(context)
        self.layers = ImageLayers(repository, context.layers, self.sender)
        self._repository = repository
        self._diff = diff
        self._context = context

    async def put_node(
        self, node: ImageNode | IndexNode, tag: str | None
    ) -> tuple[Manifest, Literal["pushed", "present"]]:
        """Put *node* after everything that it names; by digest if *tag* is None."""
        is_present = node.manifest is not None and node.manifest.digest in self._diff.manifests
        if isinstance(node, ImageNode):
            await self._put_nodes(node.companions)
            if tag is None and is_present and node.manifest:
                return node.manifest, "present"
            return await self._put_image(node, tag, is_present=is_present)
        # If ECR has an index, it has all that the index names.
        await self._put_nodes(referrer_nodes(node) if is_present else node.children)
        if tag is None and is_present:
            return node.manifest, "present"
        return node.manifest, await self._put_manifest(node.manifest, tag, partial(self._resend_children, node))

    async def _put_nodes(self, nodes: Iterable[ImageNode | IndexNode]) -> None:
        async with anyio.create_task_group() as tg:
            for node in nodes:
                tg.start_soon(self.put_node, node, None)

    async def _put_image(
        self, node: ImageNode, tag: str | None, *, is_present: bool
    ) -> tuple[Manifest, Literal["pushed", "present"]]:
        blobs = tuple(by_identity((node.config, *node.layers)).values())
        sent = {} if is_present else await self.layers.send(blobs, self._diff.known)
        by_digest = {found.digest: blob for blob in blobs if (found := sent.get(blob.identity, blob.descriptor))}
        manifest = node.manifest
        if manifest is None:
            assert node.build is not None, "an image without a manifest says how to build it"  # noqa: S101
            config = _typed_descriptor(node.config, sent)
            manifest = node.build(config, [_typed_descriptor(layer, sent) for layer in node.layers])
        return manifest, await self._put_manifest(manifest, tag, partial(self._resend_blobs, by_digest))

    async def _put_manifest(self, manifest: Manifest, tag: str | None, resend: Resend) -> Literal["pushed", "present"]:
        """Put a manifest; without a tag, only once for all images of the run that share it."""
        if tag is not None:
            return await self._put_until_complete(manifest, tag, resend)

        async def put() -> PutManifest:
            return PutManifest(await self._put_until_complete(manifest, None, resend), time.monotonic())

        key = (self._repository.address, manifest.digest)
        put_manifest, is_leader = await self._context.manifests.do(key, put)
        if not is_leader and put_manifest.at < self._diff.asked:
            # It was put before the diff was made, and the diff lacks it: somebody has deleted it since.
            self._context.manifests.forget(key)
            put_manifest, is_leader = await self._context.manifests.do(key, put)
        return put_manifest.outcome if is_leader else "present"

    async def _put_until_complete(
        self, manifest: Manifest, tag: str | None, resend: Resend
    ) -> Literal["pushed", "present"]:
        """Put a manifest; while ECR does not find what it names, wait, and then resend that."""
        waits = self._context.settings.retry.lag_waits
        for number, wait in enumerate(waits, 1):
            try:
                return await self._put_once(manifest, tag)
            except LayersNotFoundError:
                await anyio.sleep(wait)
                remaining = len(waits) - number
                if remaining < _WAITS_BEFORE_RESEND:
                    await resend(remaining > 0)
        return await self._put_once(manifest, tag)

    async def _put_once(self, manifest: Manifest, tag: str | None) -> Literal["pushed", "present"]:
        outcome = await self._repository.put_image(manifest, tag)
        if journal := self._context.journal:
            await journal.image_put(self._repository.address, manifest, tag)
        self.sender.note_manifest(self._repository, manifest)
        return outcome

    async def _resend_blobs(self, blobs: Mapping[Digest, Blob], ask_first: bool) -> None:
        """Send the blobs that the repository has lost: ECR may delete a layer that no image names at any time."""
        available = await self._repository.available(blobs.keys()) if blobs and ask_first else frozenset[Digest]()
        lost = {digest: blob for digest, blob in blobs.items() if digest not in available}
        for blob in lost.values():
            self._context.layers.forget((self._repository.address, blob.identity))
        if journal := self._context.journal:
            await journal.layers_lost(self._repository.address, lost.keys())
        await self.layers.send(lost.values(), {})

    async def _resend_children(self, index: IndexNode, ask_first: bool) -> None:
        """Put again what *index* names: somebody may have deleted it since it was put or found.

        The calls that may ask ECR first do nothing: ECR most likely just does not see the newest children yet.
        """
        if ask_first:
            return
        self._diff = replace(self._diff, manifests=frozenset())
        for node in nodes(index):
            if node.manifest:
                self._context.manifests.forget((self._repository.address, node.manifest.digest))
        await self._put_nodes(index.children)


def _typed_descriptor(blob: Blob, sent: Mapping[str, Descriptor]) -> Descriptor:
    """The descriptor of a sent blob, with the media type of this image."""
    found = sent[blob.identity]
    return Descriptor(blob.media_type, found.digest, found.size)


class ImageLayers:
    """Sends the layers of one image, all at once, and each only once for all images of a context.

    When one fails, the others are cancelled, except those that other images wait for.

    Args:
        repository: the destination.
        layers: the layers that were sent already.
        sender: sends the others.

    Attributes:
        sent: the layers that this image has sent, by identity.
    """

    def __init__(self, repository: Repository, layers: SingleFlight[Descriptor | None], sender: LayerSender) -> None:
        self.sent: dict[str, PushedLayer] = {}
        self._repository = repository
        self._layers = layers
        self._sender = sender
        self._tasks: list[_LayerTask] = []
        self._failure: AsyncpushError | None = None
        self._task_ended = anyio.Event()

    async def send(self, blobs: Iterable[Blob], available: Mapping[str, Descriptor]) -> dict[str, Descriptor]:
        """Send those of *blobs* that are not *available*, the largest first.

        Returns:
            The descriptor of each blob, by identity.

        Raises:
            SourceError: a layer of the image can't be read, or is damaged.
            RegistryError: ECR refused, or could not be reached in spite of all retries.
        """
        descriptors: dict[str, Descriptor] = {}

        async def send_one(blob: Blob) -> None:
            if (known := available.get(blob.identity)) is not None:
                descriptors[blob.identity] = known
            elif self._failure is None and (sent := await self._send(blob)) is not None:
                descriptors[blob.identity] = sent

        async with anyio.create_task_group() as tg:
            for blob in sorted(blobs, key=lambda blob: -blob.source_size):
                tg.start_soon(send_one, blob)
        if self._failure is not None:
            while self._tasks:
                await self._task_ended.wait()
            raise self._failure
        return descriptors

    async def _send(self, blob: Blob) -> Descriptor | None:
        """Send a layer and return its descriptor; None if this layer or another one has failed."""
        task = _LayerTask(blob)

        async def send() -> Descriptor | None:
            task.is_leader = True
            pushed = await self._sender.send(self._repository, blob)
            self.sent[blob.identity] = pushed
            return None if blob.descriptor else pushed.descriptor

        self._tasks.append(task)
        try:
            with task.scope:
                descriptor, _ = await self._layers.do(self._key(blob), send)
                return descriptor or blob.descriptor
        except AsyncpushError as error:
            self._fail(error)
            if isinstance(error, (JournalError, *CREDENTIALS_LOST)):
                raise  # everything else would fail with it, too
        finally:
            self._tasks.remove(task)
            self._task_ended.set()
            self._task_ended = anyio.Event()
        return None

    def _fail(self, error: AsyncpushError) -> None:
        if self._failure is None:
            self._failure = error
            self._sender.note_failure()
        for task in self._tasks:
            if not (task.is_leader and self._is_awaited(task.blob)):
                task.scope.cancel()

    def _is_awaited(self, blob: Blob) -> bool:
        """Whether another image waits for a layer that this image sends."""
        own_waiters = sum(task.blob.identity == blob.identity for task in self._tasks) - 1
        return self._layers.waiting(self._key(blob)) > own_waiters or self._sender.is_awaited(self._repository, blob)

    def _key(self, blob: Blob) -> tuple[str, str]:
        return self._repository.address, blob.identity


@dataclass(slots=True, eq=False)
class _LayerTask:
    """A layer that is being sent.

    Attributes:
        blob: the layer.
        scope: cancels the task.
        is_leader: whether this image sends the layer; other images may wait for it.
    """

    blob: Blob
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    is_leader: bool = False


@dataclass(frozen=True, slots=True)
class DirectSender:
    """Sends each layer to one repository; a layer that can't be read is tried once per run."""

    context: PushContext

    async def send(self, repository: Repository, blob: Blob) -> PushedLayer:
        """Put *blob* into *repository* once the run's limiter grants a slot."""
        return await self.context.unreadable.do(blob, lambda: push_layer(repository, blob, self.context))

    def note_manifest(self, repository: Repository, manifest: Manifest) -> None:
        """Do nothing: no other repository waits to mount the layers."""

    def is_awaited(self, repository: Repository, blob: Blob) -> bool:  # noqa: ARG002 - the protocol has them
        """Return False: no other repository gets the layer along with this one."""
        return False

    def note_failure(self) -> None:
        """Do nothing: no other repository waits for this one."""
