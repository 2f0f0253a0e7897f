"""Finds out what a repository lacks of images, with few requests for many images, before anything is sent."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from asyncpush.errors import TagImmutableError
from asyncpush.model import Descriptor, Digest
from asyncpush.protocols import Blob, Image, ImageNode, IndexNode, Journal, Repository, StoredImage


@dataclass(frozen=True, slots=True)
class ImageDiff:
    """What a repository has and lacks of one image.

    Attributes:
        stored: the repository's image, if its tag names this image already.
        manifests: the image's manifests that the repository has.
        known: the descriptors of the image's blobs that the repository has, by the blobs' identity.
        to_send: the blobs to send, each once, largest first.
        present: the blobs that need not be sent.
        asked: when the repository was asked for all manifests, by the monotonic clock; 0 if it was not.
    """

    stored: StoredImage | None
    manifests: frozenset[Digest]
    known: Mapping[str, Descriptor]
    to_send: tuple[Blob, ...]
    present: tuple[Blob, ...]
    asked: float = 0.0


@dataclass(frozen=True, slots=True)
class TaggedImage:
    """An image, and the tag to put it under; None to put it by digest."""

    image: Image
    tag: str | None


@dataclass(frozen=True, slots=True)
class KnownLayers:
    """The layers that earlier runs have put into a repository, from the journal.

    Attributes:
        journal: the journal; None without one, and then no layer is known.
        repository: the repository's address.
    """

    journal: Journal | None = None
    repository: str = ""

    @classmethod
    def of(cls, journal: Journal | None, repository: Repository) -> KnownLayers:
        """The layers of *repository* that *journal* knows."""
        return cls(journal, repository.address)

    @property
    def compressed(self) -> Mapping[str, Descriptor]:
        """The descriptors of blobs that were compressed on the way, by identity; for all repositories."""
        return self.journal.compressed if self.journal else {}

    async def completed(self, digests: Collection[Digest]) -> Collection[Digest]:
        """Return those of *digests* that were put into the repository."""
        return await self.journal.completed(self.repository, digests) if self.journal and digests else frozenset()


async def diff_image(
    image: Image, repository: Repository, tag: str | None, known: KnownLayers | None = None
) -> ImageDiff:
    """Ask what *repository* has of *image*: one BatchGetImage, then one BatchCheckLayerAvailability per 100 blobs.

    Raises:
        RepositoryNotFoundError: the repository does not exist.
        TagImmutableError: *tag* is immutable and names another image.
    """
    [diff] = await diff_images([TaggedImage(image, tag)], repository, known)
    if isinstance(diff, TagImmutableError):
        raise diff
    return diff


async def diff_images(
    images: Sequence[TaggedImage],
    repository: Repository,
    known: KnownLayers | None = None,
    *,
    stored: Sequence[StoredImage] | None = None,
) -> list[ImageDiff | TagImmutableError]:
    """Ask what *repository* has of many images: one BatchGetImage per 100 tags and manifests, then their blobs.

    Args:
        images: the images and their tags.
        repository: the repository.
        known: the layers that earlier runs have put into it.
        stored: what it has under the images' tags, if the caller has asked already. Then it is asked only for indexes
            all of whose blobs it has: to put such an index takes a request for each manifest that it names.

    Returns:
        For each of *images* its diff, or the error that its tag is immutable and names another image.

    Raises:
        RepositoryNotFoundError: the repository does not exist.
    """
    known = known or KnownLayers()
    asked = 0.0
    if stored is None:
        asked = time.monotonic()
        tags = {image.tag for image in images if image.tag}
        digests = {node.manifest.digest for image in images for node in nodes(image.image.root) if node.manifest}
        stored = await repository.find_images(tags=tags, digests=digests)
    tagged = {found.tag: found for found in stored if found.tag}
    manifests = frozenset(found.digest for found in stored)
    refusals = [await _refusal(repository, image, tagged) for image in images]
    incomplete = [
        image.image
        for image, refusal in zip(images, refusals, strict=True)
        if not (refusal or _is_complete(image, tagged, manifests))
    ]
    blobs = by_identity(blob for image in incomplete for blob in _missing_blobs(image, manifests))
    present = await _present_blobs(blobs, repository, known)
    if not asked:
        indexes = {digest for image in incomplete for digest in _index_of_present_blobs(image, present)} - manifests
        if indexes:
            manifests |= {found.digest for found in await repository.find_images(tags=(), digests=indexes)}
    return [
        refusal or replace(_diff(image, tagged, manifests, present), asked=asked)
        for image, refusal in zip(images, refusals, strict=True)
    ]


def assume_missing(image: Image) -> ImageDiff:
    """Return the diff of *image* and an empty repository."""
    return _diff(TaggedImage(image, None), {}, frozenset(), {})


def _diff(
    tagged_image: TaggedImage,
    tagged: Mapping[str, StoredImage],
    manifests: frozenset[Digest],
    present: Mapping[str, Descriptor],
) -> ImageDiff:
    image = tagged_image.image
    image_manifests = frozenset(node.manifest.digest for node in nodes(image.root) if node.manifest)
    blobs = by_identity(_blobs(image))
    if tagged_image.tag and _is_complete(tagged_image, tagged, manifests):
        return ImageDiff(tagged[tagged_image.tag], image_manifests, {}, (), tuple(blobs.values()))
    present_manifests = image_manifests & manifests
    missing = by_identity(_missing_blobs(image, manifests)) if present_manifests else blobs
    to_send = {identity: blob for identity, blob in missing.items() if identity not in present}
    return ImageDiff(
        None,
        present_manifests,
        {identity: present[identity] for identity in blobs if identity in present},
        tuple(sorted(to_send.values(), key=lambda blob: -blob.source_size)),
        tuple(blob for identity, blob in blobs.items() if identity not in to_send),
    )


async def _present_blobs(
    blobs: Mapping[str, Blob], repository: Repository, known: KnownLayers
) -> dict[str, Descriptor]:
    """The descriptors of those of *blobs* that the repository has, by identity.

    The journal is believed: if ECR has deleted one of its layers since, PutImage names the layer as missing.
    """
    descriptors = {
        identity: descriptor
        for identity, blob in blobs.items()
        if (descriptor := blob.descriptor or known.compressed.get(identity))
    }
    digests = {descriptor.digest for descriptor in descriptors.values()}
    present = set(await known.completed(digests))
    if unknown := digests - present:
        present |= await repository.available(unknown)
    return {identity: descriptor for identity, descriptor in descriptors.items() if descriptor.digest in present}


async def _refusal(
    repository: Repository, tagged_image: TaggedImage, tagged: Mapping[str, StoredImage]
) -> TagImmutableError | None:
    """The error, if the tag is immutable and names another image."""
    tag, image = tagged_image.tag, tagged_image.image
    if not tag or tag not in tagged or _is_stored(tagged_image, tagged):
        return None
    if not (await repository.tag_mutability()).is_immutable(tag):
        return None
    present = tagged[tag].digest
    if image.root.manifest:
        return TagImmutableError(repository.name, tag, image.root.manifest.digest, present)
    config = image.root.config.descriptor if isinstance(image.root, ImageNode) else None
    description = f"the image with config {config.digest}" if config else "this image"
    return TagImmutableError(repository.name, tag, description, present)


def _is_stored(tagged_image: TaggedImage, tagged: Mapping[str, StoredImage]) -> bool:
    stored = tagged.get(tagged_image.tag) if tagged_image.tag else None
    return stored is not None and _is_same(stored, tagged_image.image.root)


def _is_complete(tagged_image: TaggedImage, tagged: Mapping[str, StoredImage], manifests: Collection[Digest]) -> bool:
    """Whether the tag names the image already, and the repository has the image's companions, too."""
    return _is_stored(tagged_image, tagged) and all(
        node.manifest is not None and node.manifest.digest in manifests
        for node in referrer_nodes(tagged_image.image.root)
    )


def _is_same(stored: StoredImage, root: ImageNode | IndexNode) -> bool:
    """Whether *stored* is *root*.

    An image without a manifest is compared by its config, which names the diff id of every layer: images with the same
    config are the same if their layers are compressed the same way.
    """
    if isinstance(root, IndexNode) or root.manifest is not None:
        return root.manifest is not None and stored.digest == root.manifest.digest
    manifest = stored.manifest
    if manifest is None or manifest.config is None or root.config.descriptor is None:
        return False
    stored_types = [layer.media_type for layer in manifest.layers]
    return manifest.config.digest == root.config.descriptor.digest and stored_types == [
        layer.media_type for layer in root.layers
    ]


def nodes(node: ImageNode | IndexNode) -> Iterator[ImageNode | IndexNode]:
    """Yield *node* and all nodes below it, with their companions."""
    yield node
    for child in node.children if isinstance(node, IndexNode) else node.companions:
        yield from nodes(child)


def referrer_nodes(node: ImageNode | IndexNode) -> Iterator[ImageNode]:
    """Yield the companions of the images of *node*; they are put by digest."""
    return (companion for image in nodes(node) if isinstance(image, ImageNode) for companion in image.companions)


def leaves(node: ImageNode | IndexNode) -> Iterator[ImageNode]:
    """Yield the images of *node*: itself, or those that it names."""
    return (leaf for leaf in nodes(node) if isinstance(leaf, ImageNode))


def _blobs(image: Image) -> Iterator[Blob]:
    return (blob for leaf in leaves(image.root) for blob in (leaf.config, *leaf.layers))


def _index_of_present_blobs(image: Image, present: Mapping[str, Descriptor]) -> Iterator[Digest]:
    """Yield the digest of *image*, if it is an index whose blobs are all *present*."""
    if isinstance(image.root, IndexNode) and all(blob.identity in present for blob in _blobs(image)):
        yield image.root.manifest.digest


def _missing_blobs(image: Image, manifests: Collection[Digest]) -> Iterator[Blob]:
    """Yield the blobs of the images that the repository lacks."""
    for leaf in _missing_images(image.root, manifests):
        yield from (leaf.config, *leaf.layers)


def _missing_images(node: ImageNode | IndexNode, manifests: Collection[Digest]) -> Iterator[ImageNode]:
    """Yield the images of *node* that the repository lacks. If ECR has an index, it has all that the index names."""
    is_present = node.manifest is not None and node.manifest.digest in manifests
    if isinstance(node, ImageNode) and not is_present:
        yield node
    children = node.children if isinstance(node, IndexNode) and not is_present else tuple(referrer_nodes(node))
    for child in children:
        yield from _missing_images(child, manifests)


def by_identity(blobs: Iterable[Blob]) -> dict[str, Blob]:
    """Return *blobs* by identity; of blobs with the same bytes, the first."""
    unique: dict[str, Blob] = {}
    for blob in blobs:
        unique.setdefault(blob.identity, blob)
    return unique
