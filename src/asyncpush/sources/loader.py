"""From a descriptor to an image: manifests read, platforms chosen, blobs named; the same for every kind of store.

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

#: The platform that BuildKit gives what is none.
UNKNOWN = Platform("unknown", "unknown")

#: How an image refers to its SOCI index of version 2, and that to its image (awslabs/soci-snapshotter).
_SOCI_INDEX = "com.amazon.soci.index-digest"

_SOCI_IMAGE = "com.amazon.soci.image-manifest-digest"

#: BuildKit marks its attestation manifests so, and names the image that they are about.
ATTESTATION = "vnd.docker.reference.type"

ATTESTED = "vnd.docker.reference.digest"

_EMPTY_HINT = (
    "ECR cannot hold an empty layer; build the image without it (an artifact's empty blob is the two bytes {})"
)

#: What ends the reading of an image at once; other problems are gathered, so that one run shows them all.
_AT_ONCE = (ManifestError, SourceDeniedError, SourceUnavailableError)


class ImageStore(Protocol):
    """What keeps manifests and blobs by their digests: a layout, an archive, a repository of a registry."""

    @property
    def label(self) -> str:
        """How to call it in errors."""
        ...

    async def manifest(self, reference: Descriptor | Digest) -> Manifest:
        """Read a manifest or index; of a descriptor, one that fits it.

        Raises:
            SourceNotFoundError: it is not there.
            ManifestError: it is malformed, too large, or of a type that ECR does not take.
            DigestMismatchError: its bytes are not those that the descriptor names.
            SourceError: it can't be read.
        """
        ...

    async def config(self, descriptor: Descriptor) -> bytes:
        """Read an image's config, of at most ``MAX_DOCUMENT_SIZE``; whether its digest is right is not checked.

        Raises:
            SourceNotFoundError: it is not there.
            SourceError: it can't be read.
        """
        ...

    async def blobs(self, named: Sequence[tuple[str, Descriptor]]) -> Sequence[Blob | SourceError]:
        """The blobs of one image, each by its kind (``layer``, ``config``) and descriptor; or what is wrong with it."""
        ...


@dataclass(slots=True)
class ImageLoader:
    """Reads one image of a store.

    Attributes:
        store: where manifests and blobs lie.
        push_foreign_layers: take non-distributable layers, too.
    """

    store: ImageStore
    push_foreign_layers: bool = False
    _read: int = 0

    async def load(self, root: Descriptor, platforms: Collection[Platform] = ()) -> ImageNode | IndexNode:
        """Read the image or index at *root*, with all that it names.

        Args:
            root: of its manifest.
            platforms: none takes all; one takes the image for it; several make a new index of the images for them and
                their attestations, and where all of an index is wanted, the index itself.

        Raises:
            ChoiceError: nothing below *root* is for any of *platforms*.
            ManifestError: a manifest is malformed, or there are too many, or they are nested too deeply.
            DigestMismatchError: a manifest's bytes, or a blob's size, are not what their descriptor says.
            SourceError: a manifest or blob is missing, empty or can't be read; the first problem is named, the others
                are counted.
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

    # All that a manifest names

    async def _node(self, descriptor: Descriptor, depth: int, beside: Collection[Digest] = ()) -> _Outcome:
        return await self._complete(await self._manifest(descriptor, depth), depth, beside)

    async def _complete(self, manifest: Manifest, depth: int, beside: Collection[Digest] = ()) -> _Outcome:
        """The node of *manifest*; what is *beside* it comes along with the index that names it."""
        if manifest.config is None:
            return await self._index(manifest, depth)
        require_layers(manifest, f"image {manifest.digest.short} in {self.store.label}")
        layers = [layer for layer in manifest.layers if self.push_foreign_layers or not is_foreign(layer)]
        found = await self.store.blobs([("config", manifest.config), *(("layer", layer) for layer in layers)])
        if problems := [blob for blob in found if isinstance(blob, SourceError)]:
            return _Problems(problems)
        config, *others = (blob for blob in found if not isinstance(blob, SourceError))
        companion = await self._soci_index(manifest, beside)
        if isinstance(companion, _Problems):
            return companion
        return ImageNode(config, tuple(others), manifest, companions=(companion,) if companion else ())

    async def _soci_index(self, image: Manifest, beside: Collection[Digest]) -> ImageNode | _Problems | None:
        """The SOCI index that *image* refers to, if the store has it and it does not come along anyway."""
        digest = named_soci_index(image)
        if digest is None or digest in beside:
            return None
        try:
            manifest = await self.store.manifest(digest)
        except SourceNotFoundError:
            return None  # the image was copied without it, and runs nonetheless
        node = await self._complete(manifest, 0, (image.digest, digest)) if manifest.config else None
        return None if isinstance(node, IndexNode) else node

    async def _index(self, index: Manifest, depth: int) -> IndexNode | _Problems:
        outcomes: dict[int, _Outcome] = {}
        beside = {child.digest for child in index.children}

        async def one(position: int, child: Descriptor) -> None:
            try:
                outcomes[position] = await self._node(child, depth + 1, beside)
            except _AT_ONCE:
                raise
            except SourceError as error:
                outcomes[position] = _Problems([error])

        async with anyio.create_task_group() as tg:
            for position, child in enumerate(index.children):
                tg.start_soon(one, position, child)
        in_order = [outcomes[position] for position in range(len(index.children))]
        problems = [error for each in in_order if isinstance(each, _Problems) for error in each.errors]
        if problems:
            return _Problems(problems)
        return IndexNode(index, tuple(node for node in in_order if not isinstance(node, _Problems)))

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

    # Choosing

    async def _pick(self, root: Descriptor, wanted: Collection[Platform]) -> Descriptor:
        """The image for a platform; one that is exactly for it goes before one that will also do."""
        fitting = await self._fitting(await self._images(root, 0), wanted)
        return min(fitting, key=lambda image: image.distance(wanted)).descriptor

    async def _reduced(self, root: Descriptor, wanted: Collection[Platform]) -> Manifest:
        """An index of the images for *wanted*, with their attestations; a nested index is kept or left as a whole."""
        index = await self._manifest(root, 0)
        images = await self._fitting(await self._members(index, 0), wanted)
        kept = {image.descriptor.digest for image in images}
        names = {str(digest) for digest in kept}
        kept |= {child.digest for child in index.children if _about(child) in names}
        for image in images:
            manifest = await self._if_there(image.descriptor)
            kept |= {digest} if manifest and (digest := named_soci_index(manifest)) else set()
        return await to_thread.run_sync(with_children, index, kept)

    async def _fitting(self, members: Sequence[_Member], wanted: Collection[Platform]) -> Sequence[_Member]:
        """Those of *members* that are for *wanted*; what stands beside images is none of them.

        Where there are no images at all, it is what was asked for: a program for several platforms, say.
        """
        fitting = [member for member in members if member.fits(wanted)]
        images = [member for member in fitting if not await self._is_artifact(member.descriptor)]
        if not images and fitting and all([await self._is_artifact(member.descriptor) for member in members]):
            images = fitting
        if not images:
            raise self._no_choice(members, wanted)
        return images

    async def _is_artifact(self, member: Descriptor) -> bool:
        if member.artifact_type is not None:
            return True
        manifest = await self._if_there(member)
        return manifest is not None and manifest.is_artifact

    async def _if_there(self, image: Descriptor) -> Manifest | None:
        """The manifest of an image; None of an index, and of what a sparse index names and need not be there."""
        if image.media_type in INDEX_TYPES:
            return None
        try:
            return await self.store.manifest(image)
        except SourceNotFoundError:
            return None

    async def _members(self, index: Manifest, depth: int) -> Sequence[_Member]:
        """The images and indexes that *index* names, each with the platforms in it."""
        members: dict[int, _Member] = {}

        async def one(position: int, child: Descriptor) -> None:
            images = await self._images(child, depth + 1)
            members[position] = _Member(child, tuple(platform for image in images for platform in image.platforms))

        async with anyio.create_task_group() as tg:
            for position, child in enumerate(index.children):
                if _is_image(child):
                    tg.start_soon(one, position, child)
        return [members[position] for position in sorted(members)]

    async def _images(self, descriptor: Descriptor, depth: int) -> Sequence[_Member]:
        """The images at or below *descriptor*, with their platforms; those without a platform are left out."""
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
            return None  # a sparse index: what is not picked need not be there
        if Digest.of(raw) != config.digest:
            [blob] = await self.store.blobs([("config", config)])
            raise blob if isinstance(blob, SourceError) else blob.mismatch(config.digest, Digest.of(raw))
        return parse_config(raw, label).platform

    def _no_choice(self, found: Sequence[_Member], wanted: Collection[Platform]) -> ChoiceError:
        there = dict.fromkeys(str(platform) for member in found for platform in member.platforms)
        names = " or ".join(str(platform) for platform in wanted)
        return ChoiceError(f"{self.store.label} holds no image for {names}", tuple(there))


@dataclass(frozen=True, slots=True)
class _Member:
    """A manifest or index, and the platforms of the images in it."""

    descriptor: Descriptor
    platforms: tuple[Platform, ...]

    def fits(self, wanted: Collection[Platform]) -> bool:
        return any(platform.satisfies(each) for platform in self.platforms for each in wanted)

    def distance(self, wanted: Collection[Platform]) -> int:
        return min(platform.distance(each) for platform in self.platforms for each in wanted)


@dataclass(frozen=True, slots=True)
class _Problems:
    """All that is wrong with an image or index, in the order of its manifests."""

    errors: Sequence[SourceError]

    def as_one(self) -> SourceError:
        first, *others = self.errors
        if others:
            first.message += f" (and {len(others)} more problem{'s' if len(others) > 1 else ''} like this)"
        return first


_Outcome: TypeAlias = ImageNode | IndexNode | _Problems


def _is_image(child: Descriptor) -> bool:
    """Whether a member of an index is an image or an index of images, as far as its descriptor tells."""
    return child.platform != UNKNOWN and child.annotation(ATTESTATION) is None


def _about(child: Descriptor) -> str | None:
    """The digest of the image that a member of an index is about, if it is about one."""
    attested = child.annotation(ATTESTED) if child.annotation(ATTESTATION) is not None else None
    return attested or child.annotation(_SOCI_IMAGE)


def named_soci_index(image: Manifest) -> Digest | None:
    """The digest of the SOCI index that *image* refers to, if it refers to one."""
    try:
        return Digest.parse(image.annotation(_SOCI_INDEX) or "")
    except ValueError:
        return None


def empty_blob(kind: str, digest: Digest, label: str) -> SourceError:
    """What is wrong with a blob of 0 bytes."""
    return SourceError(
        f"{kind} {digest.short} in {label} has 0 bytes",
        hint=_EMPTY_HINT,
    )


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """The parts of a config that a push looks at.

    Attributes:
        platform: None if it names none, as an artifact's config does.
        diff_ids: the uncompressed layers' digests, in order, as they are written there.
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
    """Read a config.

    Raises:
        ManifestError: it is malformed.
    """
    parsed = decode_document(raw, _Config, label)
    platform = Platform(parsed.os, parsed.architecture, parsed.variant) if parsed.os and parsed.architecture else None
    return ImageConfig(platform, tuple((parsed.rootfs.diff_ids if parsed.rootfs else None) or ()))
