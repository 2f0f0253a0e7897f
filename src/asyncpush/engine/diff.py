"""What a repository lacks of images: asked of ECR once for many images, before anything is sent."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from asyncpush.errors import TagImmutableError
from asyncpush.model import Descriptor, Digest
from asyncpush.protocols import Blob, Image, ImageNode, IndexNode, Journal, Repository, StoredImage


@dataclass(frozen=True, slots=True)
class ImageDiff:
    """What one image needs.

    Attributes:
        stored: the repository's image, if the destination is there already.
        manifests: those of its manifests that the repository has.
        known: what points at those of its blobs that the repository has, by the blobs' identity.
        to_send: the others, each once, largest first.
        present: blobs that are not to be sent.
        asked: when the repository was asked for all its manifests, by the monotonic clock; 0 if it was not.
    """

    stored: StoredImage | None
    manifests: frozenset[Digest]
    known: Mapping[str, Descriptor]
    to_send: tuple[Blob, ...]
    present: tuple[Blob, ...]
    asked: float = 0.0


@dataclass(frozen=True, slots=True)
class WantedImage:
    """An image, and the tag that it is to have, if any."""

    image: Image
    tag: str | None


@dataclass(frozen=True, slots=True)
class KnownLayers:
    """What earlier runs tell of a repository.

    Attributes:
        journal: has it; None where nothing is remembered.
        repository: the repository's address.
    """

    journal: Journal | None = None
    repository: str = ""

    @classmethod
    def of(cls, journal: Journal | None, repository: Repository) -> KnownLayers:
        """What *journal* knows of *repository*."""
        return cls(journal, repository.address)

    @property
    def compressed(self) -> Mapping[str, Descriptor]:
        """What blobs became whose digests are unknown before they are read, by identity; of all repositories."""
        return self.journal.compressed if self.journal else {}

    async def completed(self, digests: Collection[Digest]) -> Collection[Digest]:
        """Which of *digests* the repository was given."""
        return await self.journal.completed(self.repository, digests) if self.journal and digests else frozenset()


async def diff_image(
    image: Image, repository: Repository, tag: str | None, memory: KnownLayers | None = None
) -> ImageDiff:
    """Learn what *repository* has of *image*: one BatchGetImage, then one BatchCheckLayerAvailability per 100 blobs.

    Raises:
        RepositoryNotFoundError: the repository does not exist.
        TagImmutableError: *tag* is immutable and names another image.
    """
    [plan] = await diff_images([WantedImage(image, tag)], repository, memory)
    if isinstance(plan, TagImmutableError):
        raise plan
    return plan


async def diff_images(
    wanted: Sequence[WantedImage],
    repository: Repository,
    memory: KnownLayers | None = None,
    *,
    found: Sequence[StoredImage] | None = None,
) -> list[ImageDiff | TagImmutableError]:
    """Learn what *repository* has of many images: a BatchGetImage per 100 tags and manifests, likewise their blobs.

    Args:
        wanted: the images.
        repository: the repository.
        memory: what earlier runs tell of it.
        found: what it holds under their tags, where that was asked before; then it is asked for those indexes alone
            all of whose blobs it has: each would take a put for every manifest that it names.

    Returns:
        For each of *wanted* its plan, or the error that its tag is immutable and names another image.

    Raises:
        RepositoryNotFoundError: the repository does not exist.
    """
    memory = memory or KnownLayers()
    asked = 0.0
    if found is None:
        asked = time.monotonic()
        digests = {node.manifest.digest for each in wanted for node in nodes(each.image.root) if node.manifest}
        found = await repository.find_images(tags={each.tag for each in wanted if each.tag}, digests=digests)
    tagged = {there.tag: there for there in found if there.tag}
    manifests = frozenset(there.digest for there in found)
    refused = [await _refusal(repository, each, tagged) for each in wanted]
    going = [
        each.image
        for each, refusal in zip(wanted, refused, strict=True)
        if not (refusal or _is_complete(each, tagged, manifests))
    ]
    blobs = by_identity(blob for image in going for blob in _missing(image, manifests))
    known = await _known(blobs, repository, memory)
    if not asked and (whole := {digest for image in going for digest in _whole(image, known)} - manifests):
        manifests |= {there.digest for there in await repository.find_images(tags=(), digests=whole)}
    return [
        refusal or replace(_plan(each, tagged, manifests, known), asked=asked)
        for each, refusal in zip(wanted, refused, strict=True)
    ]


def assume_missing(image: Image) -> ImageDiff:
    """What a repository needs of *image* that has nothing yet."""
    return _plan(WantedImage(image, None), {}, frozenset(), {})


def _plan(
    wanted: WantedImage,
    tagged: Mapping[str, StoredImage],
    manifests: frozenset[Digest],
    known: Mapping[str, Descriptor],
) -> ImageDiff:
    image = wanted.image
    own = frozenset(node.manifest.digest for node in nodes(image.root) if node.manifest)
    every = by_identity(_blobs(image))
    if wanted.tag and _is_complete(wanted, tagged, manifests):
        return ImageDiff(tagged[wanted.tag], own, {}, (), tuple(every.values()))
    there = own & manifests
    missing = by_identity(_missing(image, manifests)) if there else every
    to_send = {identity: blob for identity, blob in missing.items() if identity not in known}
    return ImageDiff(
        None,
        there,
        {identity: known[identity] for identity in every if identity in known},
        tuple(sorted(to_send.values(), key=lambda blob: -blob.source_size)),
        tuple(blob for identity, blob in every.items() if identity not in to_send),
    )


async def _known(blobs: Mapping[str, Blob], repository: Repository, memory: KnownLayers) -> dict[str, Descriptor]:
    """What points at those of *blobs* that the repository has, by identity.

    What the journal says is believed: should ECR have swept such a layer, PutImage will miss it.
    """
    named = {
        identity: descriptor
        for identity, blob in blobs.items()
        if (descriptor := blob.descriptor or memory.compressed.get(identity))
    }
    digests = {descriptor.digest for descriptor in named.values()}
    there = set(await memory.completed(digests))
    if asked := digests - there:
        there |= await repository.available(asked)
    return {identity: descriptor for identity, descriptor in named.items() if descriptor.digest in there}


async def _refusal(
    repository: Repository, wanted: WantedImage, tagged: Mapping[str, StoredImage]
) -> TagImmutableError | None:
    """The error, if the tag may not leave the image that it names."""
    tag, image = wanted.tag, wanted.image
    if not tag or tag not in tagged or _is_stored(wanted, tagged):
        return None
    if not (await repository.tag_mutability()).is_immutable(tag):
        return None
    there = tagged[tag].digest
    if image.root.manifest:
        return TagImmutableError(repository.name, tag, image.root.manifest.digest, there)
    config = image.root.config.descriptor if isinstance(image.root, ImageNode) else None
    words = f"the image with config {config.digest}" if config else "this image"
    return TagImmutableError(repository.name, tag, words, there)


def _is_stored(wanted: WantedImage, tagged: Mapping[str, StoredImage]) -> bool:
    there = tagged.get(wanted.tag) if wanted.tag else None
    return there is not None and _is_same(there, wanted.image.root)


def _is_complete(wanted: WantedImage, tagged: Mapping[str, StoredImage], manifests: Collection[Digest]) -> bool:
    """Whether the tag names the image already, and what the image refers to is there, too."""
    return _is_stored(wanted, tagged) and all(
        each.manifest is not None and each.manifest.digest in manifests for each in referrer_nodes(wanted.image.root)
    )


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


def nodes(node: ImageNode | IndexNode) -> Iterator[ImageNode | IndexNode]:
    """*node*, and all nodes below it, with their companions."""
    yield node
    for child in node.children if isinstance(node, IndexNode) else node.companions:
        yield from nodes(child)


def referrer_nodes(node: ImageNode | IndexNode) -> Iterator[ImageNode]:
    """What goes along with the images of *node* by its digest alone."""
    return (each for leaf in nodes(node) if isinstance(leaf, ImageNode) for each in leaf.companions)


def leaves(node: ImageNode | IndexNode) -> Iterator[ImageNode]:
    """The images of *node*: itself, or those that it names."""
    return (each for each in nodes(node) if isinstance(each, ImageNode))


def _blobs(image: Image) -> Iterator[Blob]:
    return (blob for leaf in leaves(image.root) for blob in (leaf.config, *leaf.layers))


def _whole(image: Image, known: Mapping[str, Descriptor]) -> Iterator[Digest]:
    """The index of *image*, if it is one whose blobs are all *known*."""
    if isinstance(image.root, IndexNode) and all(blob.identity in known for blob in _blobs(image)):
        yield image.root.manifest.digest


def _missing(image: Image, manifests: Collection[Digest]) -> Iterator[Blob]:
    """The blobs of those images that have to be put: whose manifests are not there, nor an index that names them."""
    for leaf in _to_put(image.root, manifests):
        yield from (leaf.config, *leaf.layers)


def _to_put(node: ImageNode | IndexNode, manifests: Collection[Digest]) -> Iterator[ImageNode]:
    """The images of *node* that have to be put. ECR takes an index after all that it names, and keeps that."""
    there = node.manifest is not None and node.manifest.digest in manifests
    if isinstance(node, ImageNode) and not there:
        yield node
    below = node.children if isinstance(node, IndexNode) and not there else tuple(referrer_nodes(node))
    for each in below:
        yield from _to_put(each, manifests)


def by_identity(blobs: Iterable[Blob]) -> dict[str, Blob]:
    """*blobs* by their identity, without those whose bytes came before."""
    found: dict[str, Blob] = {}
    for blob in blobs:
        found.setdefault(blob.identity, blob)
    return found
