"""From a descriptor to an image in a registry: manifests read and checked, platforms chosen; no blob is asked for."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import anyio
from anyio import to_thread

from asyncpush.errors import (
    ChoiceError,
    DigestMismatchError,
    ManifestError,
    SourceError,
    SourceNotFoundError,
    only_cause,
)
from asyncpush.manifest import INDEX_TYPES, Manifest, is_foreign, require_layers, with_children
from asyncpush.model import Descriptor, Digest, Platform
from asyncpush.protocols import ImageNode, IndexNode
from asyncpush.settings import MAX_INDEX_DEPTH, MAX_MANIFESTS
from asyncpush.sources.config import parse_config
from asyncpush.sources.content import MAX_DOCUMENT_SIZE
from asyncpush.sources.registry.blob import RegistryBlob
from asyncpush.sources.registry.reference import SCHEME

_UNKNOWN = Platform("unknown", "unknown")

#: BuildKit marks its attestation manifests so, and names the image that they are about.
_ATTESTATION = "vnd.docker.reference.type"
_ATTESTED = "vnd.docker.reference.digest"

_EMPTY_HINT = (
    "ECR cannot hold an empty layer; build the image without it (an artifact's empty blob is the two bytes {})"
)


class Manifests(Protocol):
    """Where manifests and blobs are read: a ``Remote``."""

    @property
    def host(self) -> str:
        """The registry."""
        ...

    async def manifest(self, repository: str, reference: Descriptor | Digest | str) -> Manifest:
        """Read a manifest."""
        ...

    def blob(self, repository: str, descriptor: Descriptor, kind: str = "layer") -> RegistryBlob:
        """A blob, to be read."""
        ...


@dataclass(frozen=True, slots=True)
class _Child:
    """A member of an index, and the platforms of the images in it; an attestation has none."""

    descriptor: Descriptor
    platforms: tuple[Platform, ...] = ()

    def fits(self, wanted: Collection[Platform]) -> bool:
        return any(platform.satisfies(each) for platform in self.platforms for each in wanted)


@dataclass(slots=True)
class RemoteImages:
    """Reads one image of a repository.

    Attributes:
        remote: the registry.
        repository: where the image is.
        push_foreign_layers: take non-distributable layers, too.
    """

    remote: Manifests
    repository: str
    push_foreign_layers: bool = False
    _read: int = 0

    async def load(self, root: Descriptor, platforms: Collection[Platform]) -> ImageNode | IndexNode:
        """See ``Remote.load``."""
        with only_cause():
            if not platforms:
                return await self._node(root, 0)
            if len(platforms) == 1 or root.media_type not in INDEX_TYPES:
                picked = await self._pick(root, platforms)
                self._read = 0
                return await self._node(picked, 0)
            return await self._reduced(root, platforms)

    async def _node(self, descriptor: Descriptor, depth: int) -> ImageNode | IndexNode:
        return await self._complete(await self._manifest(descriptor, depth), depth)

    async def _complete(self, manifest: Manifest, depth: int) -> ImageNode | IndexNode:
        """The node of *manifest*, with all that it names."""
        if manifest.config is not None:
            require_layers(manifest, f"image {manifest.digest.short} in {self._label}")
            wanted = [layer for layer in manifest.layers if self.push_foreign_layers or not is_foreign(layer)]
            layers = tuple(self._blob(layer, "layer") for layer in wanted)
            return ImageNode(self._blob(manifest.config, "config"), layers, manifest)
        nodes: dict[int, ImageNode | IndexNode] = {}

        async def one(position: int, child: Descriptor) -> None:
            nodes[position] = await self._node(child, depth + 1)

        async with anyio.create_task_group() as tg:
            for position, child in enumerate(manifest.children):
                tg.start_soon(one, position, child)
        return IndexNode(manifest, tuple(nodes[position] for position in range(len(manifest.children))))

    async def _manifest(self, descriptor: Descriptor, depth: int) -> Manifest:
        self._read += 1
        if self._read > MAX_MANIFESTS:
            raise ManifestError(f"{self._label} names more than {MAX_MANIFESTS} manifests for one image")
        if depth > MAX_INDEX_DEPTH:
            raise ManifestError(
                f"manifest {descriptor.digest.short} in {self._label} is an index in an index, {depth} times over",
                hint=f"{MAX_INDEX_DEPTH} are read",
            )
        return await self.remote.manifest(self.repository, descriptor)

    def _blob(self, descriptor: Descriptor, kind: str) -> RegistryBlob:
        if not descriptor.size:
            raise SourceError(f"{kind} {descriptor.digest.short} in {self._label} has 0 bytes", hint=_EMPTY_HINT)
        return self.remote.blob(self.repository, descriptor, kind)

    async def _pick(self, root: Descriptor, wanted: Collection[Platform]) -> Descriptor:
        """The image for a platform; one that is exactly for it goes before one that will also do."""
        found = await self._images(root, 0)
        fitting = [child for child in found if child.fits(wanted)]
        if not fitting:
            raise self._no_choice(found, wanted)
        fitting.sort(key=lambda child: not set(child.platforms) & set(wanted))
        return fitting[0].descriptor

    async def _reduced(self, root: Descriptor, wanted: Collection[Platform]) -> IndexNode | ImageNode:
        """An index of the images for *wanted*, with their attestations; a nested index is kept or left as a whole."""
        index = await self._manifest(root, 0)
        members = await self._members(index, 0)
        kept = {child.descriptor.digest for child in members if child.fits(wanted)}
        if not kept:
            raise self._no_choice(members, wanted)
        kept |= {child.digest for child in index.children if _attested(child) in {str(digest) for digest in kept}}
        self._read = 0
        return await self._complete(await to_thread.run_sync(with_children, index, kept), 0)

    async def _members(self, index: Manifest, depth: int) -> Sequence[_Child]:
        """The images and indexes that *index* names, each with the platforms in it."""
        members: dict[int, _Child] = {}

        async def one(position: int, child: Descriptor) -> None:
            images = await self._images(child, depth + 1)
            members[position] = _Child(child, tuple(platform for image in images for platform in image.platforms))

        async with anyio.create_task_group() as tg:
            for position, child in enumerate(index.children):
                if child.platform != _UNKNOWN and child.annotation(_ATTESTATION) is None:
                    tg.start_soon(one, position, child)
        return [members[position] for position in sorted(members)]

    async def _images(self, descriptor: Descriptor, depth: int) -> Sequence[_Child]:
        """The images at or below *descriptor*, with their platforms; those without a platform are left out."""
        if descriptor.media_type not in INDEX_TYPES:
            platform = descriptor.platform or await self._config_platform(descriptor, depth)
            return [_Child(descriptor, (platform,))] if platform else []
        index = await self._manifest(descriptor, depth)
        found: list[_Child] = []
        for child in index.children:
            if child.platform != _UNKNOWN and child.annotation(_ATTESTATION) is None:
                found += await self._images(child, depth + 1)
        return found

    async def _config_platform(self, descriptor: Descriptor, depth: int) -> Platform | None:
        try:
            config = (await self._manifest(descriptor, depth)).config
        except SourceNotFoundError:
            if not depth:
                raise
            return None  # a sparse index: what is not picked need not be there
        if config is None or not config.size:
            return None
        label = f"config {config.digest.short} in {self._label}"
        if config.size > MAX_DOCUMENT_SIZE:
            raise ManifestError(f"{label} has {config.size} bytes; at most {MAX_DOCUMENT_SIZE} are read")
        data = bytearray(config.size)
        async with self.remote.blob(self.repository, config, "config").stream() as stream:
            await stream.readinto(memoryview(data))
        raw = bytes(data)
        if Digest.of(raw) != config.digest:
            raise DigestMismatchError(label, config.digest, Digest.of(raw))
        return parse_config(raw, label).platform

    def _no_choice(self, found: Sequence[_Child], wanted: Collection[Platform]) -> ChoiceError:
        there = dict.fromkeys(str(platform) for child in found for platform in child.platforms)
        names = " or ".join(str(platform) for platform in wanted)
        return ChoiceError(f"{self._label} holds no image for {names}", tuple(there))

    @property
    def _label(self) -> str:
        return f"{SCHEME}{self.remote.host}/{self.repository}"


def _attested(child: Descriptor) -> str | None:
    return child.annotation(_ATTESTED) if child.annotation(_ATTESTATION) is not None else None
