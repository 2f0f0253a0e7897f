"""From a descriptor to an image: manifests read and checked, every blob seen to be there, nothing sent yet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from asyncpush.errors import ChoiceError, DigestMismatchError, ManifestError, SourceError
from asyncpush.manifest import INDEX_TYPES, Manifest, is_foreign, require_layers
from asyncpush.model import Descriptor, Platform
from asyncpush.protocols import ImageNode, IndexNode
from asyncpush.settings import MAX_INDEX_DEPTH, MAX_MANIFESTS
from asyncpush.sources.config import parse_config
from asyncpush.sources.content import BytesContent, Content, ContentBlob, Store, read_content
from asyncpush.sources.sparse import find_blob, read_manifest

_UNKNOWN = Platform("unknown", "unknown")

#: BuildKit marks its attestation manifests so.
_ATTESTATION = "vnd.docker.reference.type"

_EMPTY_HINT = (
    "ECR cannot hold an empty layer; build the image without it (an artifact's empty blob is the two bytes {})"
)


@dataclass(slots=True)
class ImageLoader:
    """Reads one image of a store that keeps blobs by digest, in a worker thread.

    Attributes:
        store: where blobs lie, under ``blobs/sha256/``.
        push_foreign_layers: take non-distributable layers, too.
    """

    store: Store
    push_foreign_layers: bool = False
    _read: int = 0
    _manifests: dict[Descriptor, Manifest] = field(default_factory=dict)
    _problems: list[SourceError] = field(default_factory=list)

    def load(self, root: Descriptor, platform: Platform | None) -> ImageNode | IndexNode:
        """Read the image or index at *root*; with *platform*, only the image for it.

        Raises:
            ChoiceError: nothing below *root* is for *platform*.
            ManifestError: a manifest is malformed, or there are too many, or they are nested too deeply.
            DigestMismatchError: a manifest's bytes, or a blob's size, are not what their descriptor says.
            SourceError: a blob is missing or empty; the first is named, the others are counted.
        """
        if platform is not None:
            root = self._pick(root, platform)
        node = self._node(root, 0)
        if self._problems:
            first, *others = self._problems
            if others:
                first.message += f" (and {len(others)} more problem{'s' if len(others) > 1 else ''} like this)"
            raise first
        return node

    def _node(self, descriptor: Descriptor, depth: int) -> ImageNode | IndexNode:
        manifest = self._manifest(descriptor, depth)
        if manifest.config is None:
            return IndexNode(manifest, tuple(self._children(manifest, depth)))
        require_layers(manifest, f"image {manifest.digest.short} in {self.store.label}")
        config = self._blob(manifest.config, "config")
        wanted = [layer for layer in manifest.layers if self.push_foreign_layers or not is_foreign(layer)]
        layers = tuple(self._blob(layer, "layer") for layer in wanted)
        return ImageNode(config, layers, manifest)

    def _children(self, index: Manifest, depth: int) -> Iterator[ImageNode | IndexNode]:
        for child in index.children:
            try:
                yield self._node(child, depth + 1)
            except ManifestError:
                raise
            except SourceError as error:
                self._problems.append(error)

    def _manifest(self, descriptor: Descriptor, depth: int) -> Manifest:
        what = f"manifest {descriptor.digest.short} in {self.store.label}"
        self._read += 1
        if self._read > MAX_MANIFESTS:
            raise ManifestError(f"{self.store.label} names more than {MAX_MANIFESTS} manifests for one image")
        if depth > MAX_INDEX_DEPTH:
            raise ManifestError(
                f"{what} is an index in an index, {depth} times over", hint=f"{MAX_INDEX_DEPTH} are read"
            )
        if descriptor not in self._manifests:
            content = self._present(descriptor, "manifest")
            self._manifests[descriptor] = read_manifest(self.store, descriptor, content)
        return self._manifests[descriptor]

    def _blob(self, descriptor: Descriptor, what: str) -> ContentBlob:
        name = f"{what} {descriptor.digest.short}"
        try:
            return ContentBlob(name, descriptor, self._present(descriptor, what))
        except SourceError as error:
            self._problems.append(error)
            return ContentBlob(name, descriptor, BytesContent(b"", name))  # goes nowhere: load raises

    def _present(self, descriptor: Descriptor, what: str) -> Content:
        content = self._find(descriptor)
        if content is None:
            raise SourceError(
                f"{self.store.label} lacks {what} {descriptor.digest}",
                hint="copy the image with all its platforms and blobs, or choose one with --platform",
            )
        if content.size != descriptor.size:
            raise DigestMismatchError(
                f"{what} {descriptor.digest.short} in {self.store.label}", descriptor.size, content.size
            )
        if not content.size:
            raise SourceError(f"{what} {descriptor.digest.short} in {self.store.label} has 0 bytes", hint=_EMPTY_HINT)
        return content

    def _pick(self, root: Descriptor, wanted: Platform) -> Descriptor:
        found = list(self._platforms(root, 0))
        fitting = [(platform, child) for platform, child in found if platform.satisfies(wanted)]
        fitting.sort(key=lambda pair: pair[0] != wanted)
        if not fitting:
            there = dict.fromkeys(str(platform) for platform, _ in found)
            raise ChoiceError(f"{self.store.label} holds no image for {wanted}", tuple(there))
        return fitting[0][1]

    def _platforms(self, descriptor: Descriptor, depth: int) -> Iterator[tuple[Platform, Descriptor]]:
        if descriptor.media_type in INDEX_TYPES:
            for child in self._manifest(descriptor, depth).children:
                if child.platform != _UNKNOWN and child.annotation(_ATTESTATION) is None:
                    yield from self._platforms(child, depth + 1)
        elif platform := descriptor.platform or self._config_platform(descriptor, depth):
            yield platform, descriptor

    def _config_platform(self, descriptor: Descriptor, depth: int) -> Platform | None:
        if self._find(descriptor) is None:
            return None  # a sparse index: what is not picked need not be there
        config = self._manifest(descriptor, depth).config
        if config is None or self._find(config) is None:
            return None
        return parse_config(read_content(self._present(config, "config")), f"config {config.digest.short}").platform

    def _find(self, descriptor: Descriptor) -> Content | None:
        return find_blob(self.store, descriptor)
