"""Loads an image from any kind of store: reads its manifests, chooses platforms, finds its blobs.

Sources: OCI image-spec (config), for the parts of a config that a push reads.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import anyio
import msgspec
from anyio import to_thread

from asyncpush.errors import (
    ChoiceError,
    EmptyLayerError,
    ManifestError,
    SourceDeniedError,
    SourceError,
    SourceNotFoundError,
    SourceUnavailableError,
    only_cause,
)
from asyncpush.manifest import INDEX_TYPES, Manifest, is_foreign, require_layers, with_children
from asyncpush.model import Descriptor, Digest, Platform
from asyncpush.protocols import Blob, ImageNode, IndexNode
from asyncpush.settings import MAX_INDEX_DEPTH, MAX_MANIFESTS
from asyncpush.sources.blobs import MAX_DOCUMENT_SIZE, decode_document
from asyncpush.units import count_text

#: The platform that BuildKit gives to manifests that are not images.
UNKNOWN = Platform("unknown", "unknown")

#: The annotations by which an image and its SOCI index of version 2 refer to each other (awslabs/soci-snapshotter).
_SOCI_INDEX = "com.amazon.soci.index-digest"

_SOCI_IMAGE = "com.amazon.soci.image-manifest-digest"

#: The annotations by which BuildKit marks an attestation manifest, and names its image.
ATTESTATION = "vnd.docker.reference.type"

ATTESTED = "vnd.docker.reference.digest"

#: Errors that end the loading at once; others are collected, so that one run shows them all.
_FATAL = (ManifestError, SourceDeniedError, SourceUnavailableError)


class ImageStore(Protocol):
    """A store of manifests and blobs by digest: a layout, an archive, a repository of a registry."""

    @property
    def label(self) -> str:
        """Its name in errors."""
        ...

    async def manifest(self, reference: Descriptor | Digest) -> Manifest:
        """Read a manifest or index; one for a descriptor must match it.

        Raises:
            SourceNotFoundError: the store does not have it.
            ManifestError: it is malformed, too large, or of a type that ECR does not accept.
            DigestMismatchError: its bytes do not match the descriptor.
            SourceError: it can't be read.
        """
        ...

    async def config(self, descriptor: Descriptor) -> bytes:
        """Read an image's config of up to ``MAX_DOCUMENT_SIZE``, without a check of its digest.

        Raises:
            SourceNotFoundError: the store does not have it.
            SourceError: it can't be read.
        """
        ...

    async def blobs(self, named: Sequence[tuple[str, Descriptor]]) -> Sequence[Blob | SourceError]:
        """The blobs of one image, each by its kind (``layer``, ``config``) and descriptor; or the error with it."""
        ...


@dataclass(slots=True)
class ImageLoader:
    """Reads one image of a store.

    Attributes:
        store: the store that holds the image.
        push_foreign_layers: whether non-distributable layers are pushed, too.
    """

    store: ImageStore
    push_foreign_layers: bool = False
    _read: int = 0

    async def load(self, root: Descriptor, platforms: Collection[Platform] = ()) -> ImageNode | IndexNode:
        """Read the image or index at *root*, with all that it names.

        Args:
            root: its manifest's descriptor.
            platforms: none takes all; one takes its image; several make a new index of their images and attestations,
                or take the index itself if they are all that it has.

        Raises:
            ChoiceError: nothing below *root* is for any of *platforms*.
            ManifestError: a manifest is malformed, or there are too many, or they are nested too deeply.
            DigestMismatchError: a manifest's bytes, or a blob's size, are not what their descriptor says.
            SourceError: a manifest or blob is missing, empty or can't be read; the error names the first and counts
                the others.
        """
        with only_cause():
            if not platforms:
                node = await self._node(root, 0)
            elif len(platforms) == 1 or root.media_type not in INDEX_TYPES:
                picked = await self._pick(root, platforms)
                self._read = 0
                node = await self._node(picked, 0)
            else:
                reduced = await self._reduced(root, platforms)
                self._read = 0
                node = await self._complete(reduced, 0)
        if isinstance(node, _Problems):
            raise node.as_one()
        return node

    # Reading all that a manifest names

    async def _node(self, descriptor: Descriptor, depth: int, beside: Collection[Digest] = ()) -> _Outcome:
        return await self._complete(await self._manifest(descriptor, depth), depth, beside)

    async def _complete(self, manifest: Manifest, depth: int, beside: Collection[Digest] = ()) -> _Outcome:
        """The node of *manifest*; the manifests *beside* it are pushed with the index that names them all."""
        if manifest.config is None:
            return await self._index(manifest, depth)
        require_layers(manifest, f"image {manifest.digest.short} in {self.store.label}")
        layers = [layer for layer in manifest.layers if self.push_foreign_layers or not is_foreign(layer)]
        found = await self.store.blobs([("config", manifest.config), *(("layer", layer) for layer in layers)])
        if problems := [blob for blob in found if isinstance(blob, SourceError)]:
            return _Problems(problems)
        config, *others = (blob for blob in found if not isinstance(blob, SourceError))
        soci_index = await self._soci_index(manifest, beside)
        if isinstance(soci_index, _Problems):
            return soci_index
        return ImageNode(config, tuple(others), manifest, companions=(soci_index,) if soci_index else ())

    async def _soci_index(self, image: Manifest, beside: Collection[Digest]) -> ImageNode | _Problems | None:
        """The SOCI index that *image* refers to, if the store has it and it is not pushed anyway."""
        digest = named_soci_index(image)
        if digest is None or digest in beside:
            return None
        try:
            manifest = await self.store.manifest(digest)
        except SourceNotFoundError:
            return None  # the image was copied without it, and works nonetheless
        node = await self._complete(manifest, 0, (image.digest, digest)) if manifest.config else None
        return None if isinstance(node, IndexNode) else node

    async def _index(self, index: Manifest, depth: int) -> IndexNode | _Problems:
        outcomes: dict[int, _Outcome] = {}
        beside = {child.digest for child in index.children}

        async def read(position: int, child: Descriptor) -> None:
            try:
                outcomes[position] = await self._node(child, depth + 1, beside)
            except _FATAL:
                raise
            except SourceError as error:
                outcomes[position] = _Problems([error])

        async with anyio.create_task_group() as tg:
            for position, child in enumerate(index.children):
                tg.start_soon(read, position, child)
        ordered = [outcomes[position] for position in range(len(index.children))]
        problems = [error for outcome in ordered if isinstance(outcome, _Problems) for error in outcome.errors]
        if problems:
            return _Problems(problems)
        return IndexNode(index, tuple(node for node in ordered if not isinstance(node, _Problems)))

    async def _manifest(self, descriptor: Descriptor, depth: int) -> Manifest:
        self._read += 1
        if self._read > MAX_MANIFESTS:
            raise ManifestError(f"{self.store.label} names more than {MAX_MANIFESTS} manifests for one image")
        if depth > MAX_INDEX_DEPTH:
            raise ManifestError(
                f"manifest {descriptor.digest.short} in {self.store.label} is an index in an index, {depth} times over",
                hint=f"{MAX_INDEX_DEPTH} are read",
            )
        return await self.store.manifest(descriptor)

    # Choosing platforms

    async def _pick(self, root: Descriptor, platforms: Collection[Platform]) -> Descriptor:
        """The image for a platform; an exact match takes precedence over a compatible one."""
        suitable = await self._suitable(await self._images(root, 0), platforms)
        return min(suitable, key=lambda image: image.distance(platforms)).descriptor

    async def _reduced(self, root: Descriptor, platforms: Collection[Platform]) -> Manifest:
        """An index of the images for *platforms*, with their attestations; nested indexes are kept or left whole."""
        index = await self._manifest(root, 0)
        images = await self._suitable(await self._members(index, 0), platforms)
        kept = {image.descriptor.digest for image in images}
        names = {str(digest) for digest in kept}
        kept |= {child.digest for child in index.children if _subject_of(child) in names}
        for image in images:
            manifest = await self._manifest_if_present(image.descriptor)
            kept |= {digest} if manifest and (digest := named_soci_index(manifest)) else set()
        return await to_thread.run_sync(with_children, index, kept)

    async def _suitable(self, members: Sequence[_Member], platforms: Collection[Platform]) -> Sequence[_Member]:
        """Those of *members* that are images for *platforms*.

        In an index without any images, the artifacts for them count: a program for several platforms, say.
        """
        suitable = [member for member in members if member.matches(platforms)]
        images = [member for member in suitable if not await self._is_artifact(member.descriptor)]
        if not images and suitable and all([await self._is_artifact(member.descriptor) for member in members]):
            images = suitable
        if not images:
            raise self._no_choice(members, platforms)
        return images

    async def _is_artifact(self, member: Descriptor) -> bool:
        if member.artifact_type is not None:
            return True
        manifest = await self._manifest_if_present(member)
        return manifest is not None and manifest.is_artifact

    async def _manifest_if_present(self, image: Descriptor) -> Manifest | None:
        """The manifest of an image; None for an index, and for one that a sparse index names but the store lacks."""
        if image.media_type in INDEX_TYPES:
            return None
        try:
            return await self.store.manifest(image)
        except SourceNotFoundError:
            return None

    async def _members(self, index: Manifest, depth: int) -> Sequence[_Member]:
        """The images and indexes that *index* names, each with the platforms in it."""
        members: dict[int, _Member] = {}

        async def read(position: int, child: Descriptor) -> None:
            images = await self._images(child, depth + 1)
            members[position] = _Member(child, tuple(platform for image in images for platform in image.platforms))

        async with anyio.create_task_group() as tg:
            for position, child in enumerate(index.children):
                if _is_image(child):
                    tg.start_soon(read, position, child)
        return [members[position] for position in sorted(members)]

    async def _images(self, descriptor: Descriptor, depth: int) -> Sequence[_Member]:
        """The images at or below *descriptor* that have a platform."""
        if descriptor.media_type not in INDEX_TYPES:
            platform = descriptor.platform or await self._config_platform(descriptor, depth)
            return [_Member(descriptor, (platform,))] if platform else []
        index = await self._manifest(descriptor, depth)
        return [image for child in index.children if _is_image(child) for image in await self._images(child, depth + 1)]

    async def _config_platform(self, descriptor: Descriptor, depth: int) -> Platform | None:
        try:
            config = (await self._manifest(descriptor, depth)).config
            if config is None or not config.size:
                return None
            label = f"config {config.digest.short} in {self.store.label}"
            if config.size > MAX_DOCUMENT_SIZE:
                raise ManifestError(f"{label} has {config.size} bytes; at most {MAX_DOCUMENT_SIZE} are read")
            raw = await self.store.config(config)
        except SourceNotFoundError:
            if not depth:
                raise
            return None  # a sparse index need not hold all that it names
        if Digest.of(raw) != config.digest:
            [blob] = await self.store.blobs([("config", config)])
            raise blob if isinstance(blob, SourceError) else blob.mismatch(config.digest, Digest.of(raw))
        return parse_config(raw, label).platform

    def _no_choice(self, members: Sequence[_Member], platforms: Collection[Platform]) -> ChoiceError:
        available = dict.fromkeys(str(platform) for member in members for platform in member.platforms)
        names = " or ".join(str(platform) for platform in platforms)
        return ChoiceError(f"{self.store.label} holds no image for {names}", tuple(available))


@dataclass(frozen=True, slots=True)
class _Member:
    """A manifest or index, and the platforms of its images."""

    descriptor: Descriptor
    platforms: tuple[Platform, ...]

    def matches(self, platforms: Collection[Platform]) -> bool:
        return any(own.satisfies(platform) for own in self.platforms for platform in platforms)

    def distance(self, platforms: Collection[Platform]) -> int:
        return min(own.distance(platform) for own in self.platforms for platform in platforms)


@dataclass(frozen=True, slots=True)
class _Problems:
    """The errors with an image or index, in the order of its manifests."""

    errors: Sequence[SourceError]

    def as_one(self) -> SourceError:
        first, *others = self.errors
        if others:
            first.message += f" (and {count_text(len(others), 'more problem')} like this)"
        return first


_Outcome: TypeAlias = ImageNode | IndexNode | _Problems


def _is_image(child: Descriptor) -> bool:
    """Whether a member of an index is an image or an index of images, according to its descriptor."""
    return child.platform != UNKNOWN and child.annotation(ATTESTATION) is None


def _subject_of(child: Descriptor) -> str | None:
    """The digest of the image that a member of an index refers to, if it refers to one."""
    attested = child.annotation(ATTESTED) if child.annotation(ATTESTATION) is not None else None
    return attested or child.annotation(_SOCI_IMAGE)


def named_soci_index(image: Manifest) -> Digest | None:
    """The digest of the SOCI index that *image* refers to, if it refers to one."""
    try:
        return Digest.parse(image.annotation(_SOCI_INDEX) or "")
    except ValueError:
        return None


def empty_blob(kind: str, digest: Digest, label: str) -> EmptyLayerError:
    """The error for a blob of 0 bytes."""
    advice = "build the image without it (an artifact's empty blob is the two bytes {})"
    return EmptyLayerError(f"{kind} {digest.short} in {label}", advice)


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """The parts of a config that a push reads.

    Attributes:
        platform: its platform; None without one, as in an artifact's config.
        diff_ids: the digests of the uncompressed layers, in order, as written there.
    """

    platform: Platform | None
    diff_ids: tuple[str, ...]


class _RootFs(msgspec.Struct):
    diff_ids: list[str] | None = None


class _Config(msgspec.Struct):
    os: str | None = None
    architecture: str | None = None
    variant: str | None = None
    rootfs: _RootFs | None = None


def parse_config(raw: bytes, label: str) -> ImageConfig:
    """Parse a config.

    Raises:
        ManifestError: it is malformed.
    """
    parsed = decode_document(raw, _Config, label)
    platform = Platform(parsed.os, parsed.architecture, parsed.variant) if parsed.os and parsed.architecture else None
    return ImageConfig(platform, tuple((parsed.rootfs.diff_ids if parsed.rootfs else None) or ()))
