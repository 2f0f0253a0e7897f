"""An archive as ``docker save`` writes it: the images that its manifest.json lists, their layers mostly uncompressed.

The format has no specification but Docker's image spec 1.2 (combined image JSON and filesystem changesets).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import msgspec

from asyncpush.errors import ChoiceError, DigestMismatchError, ManifestError, SourceError
from asyncpush.manifest import Manifest, build_manifest, image_types, require_layers
from asyncpush.model import Descriptor, Digest, Platform
from asyncpush.protocols import Blob, ImageNode
from asyncpush.settings import Compression, Settings
from asyncpush.sources.config import ImageConfig, parse_config
from asyncpush.sources.content import (
    BytesContent,
    Content,
    ContentBlob,
    Store,
    decode_document,
    hash_content,
    read_content,
)
from asyncpush.sources.names import ImageName
from asyncpush.sources.source import Entry, Loaded
from asyncpush.sources.spool import HEAD_SIZE, sniff
from asyncpush.stream.compress import CompressedBlob

MANIFEST = "manifest.json"

_NAMED_BY_DIGEST = re.compile(r"(?:blobs/sha256/)?([a-f0-9]{64})(?:\.json)?")

_OCI_LAYERS: dict[Compression, str] = {
    "none": "application/vnd.oci.image.layer.v1.tar",
    "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "zstd": image_types("zstd").layer,
}


class _Item(msgspec.Struct, rename={"config": "Config", "layers": "Layers", "repo_tags": "RepoTags"}):
    config: str
    layers: list[str] | None = None
    repo_tags: list[str] | None = None


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer as it lies there: compressed in the archive (``packed``), or to become ``compression`` on the way."""

    path: str
    content: Content
    diff_id: Digest
    compression: Compression
    packed: bool


def read_docker_archive(store: Store, settings: Settings) -> tuple[Entry, ...]:
    """List every tag of every image of a docker-archive, in a worker thread; an image without tags counts, too.

    Raises:
        SourceError: manifest.json is missing or malformed.
    """
    archive = _Archive(store, settings)
    return tuple(entry for at, item in enumerate(_items(store)) for entry in archive.entries(at, item))


@dataclass(frozen=True, slots=True)
class SavedImage:
    """What manifest.json says of an image.

    Attributes:
        position: its place in the list.
        config: the digest of its config; None if that is neither there nor named by its digest.
        names: its names.
    """

    position: int
    config: Digest | None
    names: tuple[ImageName, ...]


def saved_images(store: Store) -> tuple[SavedImage, ...]:
    """What manifest.json lists; nothing but configs is read.

    Raises:
        SourceError: manifest.json is missing or malformed.
    """
    return tuple(SavedImage(at, _config_digest(store, item), _names(item)) for at, item in enumerate(_items(store)))


def is_uncompressed(store: Store) -> bool:
    """Whether no layer is compressed that manifest.json lists and that is there.

    Raises:
        SourceError: manifest.json is missing or malformed.
    """
    contents = {path: store.find(path) for item in _items(store) for path in item.layers or ()}
    return all(content is None or _packing(content) is None for content in contents.values())


def _config_digest(store: Store, item: _Item) -> Digest | None:
    claim = _NAMED_BY_DIGEST.fullmatch(item.config)
    if claim and item.config.startswith("blobs/"):
        return Digest(claim[1])
    try:
        content = store.find(item.config)
        return Digest.of(read_content(content)) if content else None
    except SourceError:
        return None


def _names(item: _Item) -> tuple[ImageName, ...]:
    tags = (tag for tag in item.repo_tags or () if tag.isprintable() and not tag.startswith("<none>"))
    return tuple(map(ImageName.parse, tags))


def _items(store: Store) -> list[_Item]:
    content = store.find(MANIFEST)
    if content is None:
        raise SourceError(f"{store.label} is not a docker-archive: it has no {MANIFEST}")
    return decode_document(read_content(content), list[_Item], f"{MANIFEST} in {store.label}")


def _packing(content: Content) -> Compression | None:
    head = bytearray(HEAD_SIZE)
    with content.open() as reader:
        packing = sniff(bytes(head[: reader.readinto(memoryview(head))]))
    if packing == "xz" or packing == "bzip2":
        raise SourceError(f"{content.label} is compressed with {packing}", hint="layers are uncompressed, gzip or zstd")
    return packing


@dataclass(frozen=True, slots=True)
class _Archive:
    store: Store
    settings: Settings
    hashed: dict[Content, Digest] = field(default_factory=dict)

    def entries(self, position: int, item: _Item) -> Iterator[Entry]:
        load = partial(self.load, position, item)
        names = _names(item)
        for name in names:
            yield Entry(position, load, str(name), frozenset({str(name)}), name.repository, name.tag or "latest")
        if not names:
            yield Entry(position, load)

    def load(self, position: int, item: _Item, platform: Platform | None) -> Loaded:
        label = f"the config of image @{position} in {self.store.label}"
        raw = read_content(self._find(item.config))
        self._check_config(item.config, raw, label)
        config = parse_config(raw, label)
        if platform and not (config.platform and config.platform.satisfies(platform)):
            raise ChoiceError(
                f"{self.store.label} holds no image for {platform}", [str(config.platform)] if config.platform else []
            )
        layers = list(self._layers(item, config, label))
        oci = any(layer.compression == "zstd" for layer in layers)
        node = self._node(raw, [self._blob(layer, oci=oci) for layer in layers], oci=oci)
        if node.manifest is not None:
            require_layers(node.manifest, f"image @{position} in {self.store.label}")
        return Loaded(node)

    def _find(self, path: str) -> Content:
        content = self.store.find(path)
        if content is None:
            raise SourceError(f"{self.store.label} lacks {path[:200]!r}, which its {MANIFEST} names")
        return content

    def _check_config(self, path: str, raw: bytes, label: str) -> None:
        claim = _NAMED_BY_DIGEST.fullmatch(path)
        if claim and Digest.of(raw).hex != claim[1]:
            raise DigestMismatchError(label, Digest(claim[1]), Digest.of(raw))

    def _layers(self, item: _Item, config: ImageConfig, label: str) -> Iterator[_Layer]:
        paths = item.layers or []
        if len(paths) != len(config.diff_ids):
            raise ManifestError(f"{label} has {len(config.diff_ids)} diff ids for {len(paths)} layers")
        for path, diff_id in zip(paths, config.diff_ids, strict=True):
            content = self._find(path)
            packing = _packing(content)
            yield _Layer(path, content, diff_id, packing or self.settings.compression, packing is not None)

    def _blob(self, layer: _Layer, *, oci: bool) -> Blob:
        media_type = _OCI_LAYERS[layer.compression] if oci else image_types(layer.compression).layer
        digest = self._digest(layer) if layer.packed else layer.diff_id
        blob = ContentBlob(f"layer {digest.short}", Descriptor(media_type, digest, layer.content.size), layer.content)
        if layer.packed or layer.compression == "none":
            if not layer.content.size:
                raise SourceError(
                    f"{layer.content.label} has 0 bytes",
                    hint="ECR cannot hold an empty layer; leave out --compression none",
                )
            return blob
        return CompressedBlob(blob, media_type, layer.compression, self.settings.compression_level)

    def _digest(self, layer: _Layer) -> Digest:
        """What the layer's name claims, for the engine to verify; hashed here where the name says nothing."""
        claim = _NAMED_BY_DIGEST.fullmatch(layer.path)
        if claim and layer.path.startswith("blobs/"):
            return Digest(claim[1])
        if layer.content not in self.hashed:
            self.hashed[layer.content] = hash_content(layer.content)
        return self.hashed[layer.content]

    def _node(self, raw: bytes, layers: list[Blob], *, oci: bool) -> ImageNode:
        compression: Compression = "zstd" if oci else "gzip"
        descriptor = Descriptor(image_types(compression).config, Digest.of(raw), len(raw))
        name = f"config {descriptor.digest.short}"
        config = ContentBlob(name, descriptor, BytesContent(raw, name))

        def build(config: Descriptor, layers: Sequence[Descriptor]) -> Manifest:
            return build_manifest(config, layers, compression)

        known = [layer.descriptor for layer in layers if layer.descriptor]
        manifest = build(descriptor, known) if len(known) == len(layers) else None
        return ImageNode(config, tuple(layers), manifest, None if manifest else build)
