"""An archive of ``docker save``: the images that its manifest.json lists, mostly with uncompressed layers.

The format has no specification but Docker's image spec 1.2 (combined image JSON and filesystem changesets).
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import msgspec
from anyio import to_thread

from asyncpush.engine.compress import CompressedBlob
from asyncpush.engine.decompress import CorruptError, Packing, UnpackedHash, turn_of
from asyncpush.errors import ChoiceError, DigestMismatchError, EmptyLayerError, ManifestError, SourceError
from asyncpush.manifest import Manifest, build_manifest, image_types
from asyncpush.model import Descriptor, Digest, Platform
from asyncpush.protocols import Blob, ImageNode
from asyncpush.settings import Compression, Settings
from asyncpush.sources.blobs import (
    BlobStore,
    BytesContent,
    Content,
    ContentBlob,
    decode_document,
    hash_content,
    read_content,
)
from asyncpush.sources.detection import HEAD_SIZE, sniff
from asyncpush.sources.loader import ImageConfig, parse_config
from asyncpush.sources.source import MANIFEST, ImageName, Loaded, SourceEntry, refuse_many_images
from asyncpush.sources.spool import Scratch

#: A file in skopeo's ``dir:``, beside a manifest.json of its own.
_DIR_VERSION = "version"

#: The path of a blob in an OCI layout, whose name is its digest by definition.
_BLOB = re.compile(r"blobs/sha256/([a-f0-9]{64})")

#: A name that may be the digest of its bytes, as crane, kaniko, ko and jib write it: ``HEX.tar.gz``,
#: ``sha256:HEX.tar.gz``. The bytes must confirm it: Podman's ``HEX.tar`` is the diff ID, docker's ``HEX/layer.tar`` a
#: layer's ID.
_MAYBE_DIGEST = re.compile(r"(?:.*/)?(?:sha256:)?([a-f0-9]{64})(?:\.[a-z.]+)?")

#: How a stored layer that is to be compressed may be packed: no media type covers xz and bzip2.
_UNPACKED = (None, "xz", "bzip2")

_OCI_LAYERS: dict[Compression, str] = {
    "none": "application/vnd.oci.image.layer.v1.tar",
    "gzip": "application/vnd.oci.image.layer.v1.tar+gzip",
    "zstd": image_types("zstd").layer,
}


class SkopeoDirError(ManifestError):
    """Raised for a manifest.json of skopeo's ``dir:``."""


class _Item(msgspec.Struct, rename={"repo_tags": "repotags"}):
    """An image in manifest.json, with keys in lower case."""

    config: str
    layers: list[str] | None = None
    repo_tags: list[str | None] | None = None


@dataclass(frozen=True, slots=True)
class _Layer:
    """A stored layer: compressed in the archive (``is_packed``), or to be compressed as ``compression``."""

    path: str
    content: Content
    diff_id: Digest
    compression: Compression
    is_packed: bool


def read_docker_archive(store: BlobStore, settings: Settings, scratch: Scratch) -> tuple[SourceEntry, ...]:
    """List every tag of every image of a docker-archive, in a worker thread; an image without tags counts once.

    Args:
        store: holds the archive.
        settings: how uncompressed layers are compressed.
        scratch: holds decompressed copies of layers in xz or bzip2.

    Raises:
        SourceError: manifest.json is missing or malformed.
    """
    archive = _Archive(store, settings, scratch)
    return tuple(entry for position, item in enumerate(_items(store)) for entry in archive.entries(position, item))


@dataclass(frozen=True, slots=True)
class SavedImage:
    """An image according to manifest.json.

    Attributes:
        position: its position in the list.
        config: the digest of its config; None if that is missing and not named by its digest.
        names: its names.
    """

    position: int
    config: Digest | None
    names: tuple[ImageName, ...]


def saved_images(store: BlobStore) -> tuple[SavedImage, ...]:
    """The images that manifest.json lists; only configs are read.

    Raises:
        SourceError: manifest.json is missing or malformed.
    """
    return tuple(
        SavedImage(position, _config_digest(store, item), _names(item)) for position, item in enumerate(_items(store))
    )


def is_uncompressed(store: BlobStore) -> bool:
    """Whether all layers that manifest.json lists are uncompressed; missing ones are ignored.

    Raises:
        SourceError: manifest.json is missing or malformed.
    """
    contents = {path: store.find(path) for item in _items(store) for path in item.layers or ()}
    return all(content is None or _packing(content) in _UNPACKED for content in contents.values())


def _config_digest(store: BlobStore, item: _Item) -> Digest | None:
    if claim := _BLOB.fullmatch(_normalized(item.config)):
        return Digest(claim[1])
    try:
        content = store.find(item.config)
        return Digest.of(read_content(content)) if content else None
    except SourceError:
        return None


def _normalized(path: str) -> str:
    return posixpath.normpath(f"/{path}").lstrip("/")


def _names(item: _Item) -> tuple[ImageName, ...]:
    tags = (tag for tag in item.repo_tags or () if tag and tag.isprintable() and not tag.startswith("<none>"))
    return tuple(map(ImageName.parse, tags))


def _items(store: BlobStore) -> list[_Item]:
    content = store.find(MANIFEST)
    if content is None:
        raise SourceError(f"{store.label} is not a docker-archive: it has no {MANIFEST}")
    label = f"{MANIFEST} in {store.label}"
    raw = read_content(content)
    if b'"schemaVersion"' in raw and store.find(_DIR_VERSION) is not None:
        raise SkopeoDirError(
            f"{store.label} is a `dir:` of skopeo, not a docker-archive",
            hint="copy it with `skopeo copy dir:DIR oci:OTHER_DIR`, and push that",
        )
    # Docker and Podman use Go's encoding/json, to which `config` and `Config` are the same key.
    entries = decode_document(raw, list[dict[str, object]], label)
    try:
        items = msgspec.convert(
            [{key.casefold(): value for key, value in item.items()} for item in entries], list[_Item]
        )
    except msgspec.ValidationError as error:
        raise ManifestError(f"{label} is malformed: {error}") from error
    refuse_many_images(sum(max(1, len(item.repo_tags or ())) for item in items), label)
    return items


def _packing(content: Content) -> Packing | None:
    head = bytearray(HEAD_SIZE)
    with content.open() as reader:
        return sniff(bytes(head[: reader.readinto(memoryview(head))]))


@dataclass(frozen=True, slots=True)
class _Archive:
    store: BlobStore
    settings: Settings
    scratch: Scratch
    digests: dict[tuple[Content, Digest], Digest] = field(default_factory=dict)

    def entries(self, position: int, item: _Item) -> Iterator[SourceEntry]:
        async def load(platforms: Collection[Platform]) -> Loaded:
            return Loaded(await to_thread.run_sync(self.load, position, item, platforms))

        names = _names(item)
        for name in names:
            yield SourceEntry(position, load, str(name), frozenset({str(name)}), name.repository, name.tag or "latest")
        if not names:
            yield SourceEntry(position, load)

    def load(self, position: int, item: _Item, platforms: Collection[Platform]) -> ImageNode:
        if not item.layers:
            raise ManifestError(
                f"image @{position} in {self.store.label} has no layers",
                hint="ECR refuses images without layers; add one to the image",
            )
        label = f"the config of image @{position} in {self.store.label}"
        raw = read_content(self._find(item.config))
        config = parse_config(raw, label)
        if platforms and not (config.platform and any(map(config.platform.satisfies, platforms))):
            names = " or ".join(map(str, platforms))
            raise ChoiceError(
                f"{self.store.label} holds no image for {names}", [str(config.platform)] if config.platform else []
            )
        layers = list(self._layers(item, config, label))
        oci = any(layer.compression == "zstd" for layer in layers)
        return self._node(raw, [self._blob(layer, oci=oci) for layer in layers], oci=oci)

    def _find(self, path: str) -> Content:
        content = self.store.find(path)
        if content is None:
            raise SourceError(f"{self.store.label} lacks {path[:200]!r}, which its {MANIFEST} names")
        return content

    def _layers(self, item: _Item, config: ImageConfig, label: str) -> Iterator[_Layer]:
        paths = item.layers or []
        if len(paths) != len(config.diff_ids):
            raise ManifestError(f"{label} has {len(config.diff_ids)} diff ids for {len(paths)} layers")
        for path, diff_id in zip(paths, _parse_diff_ids(config.diff_ids, label), strict=True):
            content = self._find(path)
            packing = _packing(content)
            if packing == "xz" or packing == "bzip2":
                # There is no media type for it, and other clients of ECR cannot read it: it is compressed again.
                packing, content = None, self.scratch.unpack(content)
            yield _Layer(path, content, diff_id, packing or self.settings.compression, packing is not None)

    def _blob(self, layer: _Layer, *, oci: bool) -> Blob:
        media_type = _OCI_LAYERS[layer.compression] if oci else image_types(layer.compression).layer
        digest = self._digest(layer) if layer.is_packed else layer.diff_id
        blob = ContentBlob(f"layer {digest.short}", Descriptor(media_type, digest, layer.content.size), layer.content)
        if layer.is_packed or layer.compression == "none":
            if not layer.content.size:
                raise EmptyLayerError(layer.content.label, "leave out --compression none")
            return blob
        return CompressedBlob(blob, media_type, layer.compression, self.settings.compression_level)

    def _digest(self, layer: _Layer) -> Digest:
        """The digest of a layer that is stored compressed.

        The engine compares the digest in the name of an OCI layout's blob with the bytes that it sends. Any other layer
        is read here, since its digest is needed to ask ECR for it, and verified in the same pass.
        """
        if claim := _BLOB.fullmatch(_normalized(layer.path)):
            return Digest(claim[1])
        key = layer.content, layer.diff_id
        if key not in self.digests:
            self.digests[key] = _verified_digest(layer)
        return self.digests[key]

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


def _verified_digest(layer: _Layer) -> Digest:
    """Hash a compressed layer, and verify it against the digest in its name or, decompressed, its diff ID.

    Raises:
        SourceError: it is damaged.
    """
    claim = _MAYBE_DIGEST.fullmatch(layer.path)
    if claim and (digest := hash_content(layer.content)).hex == claim[1]:
        return digest
    assert layer.compression != "none", "it is stored compressed"  # noqa: S101
    try:
        with turn_of(layer.compression), closing(UnpackedHash(layer.compression)) as unpacked:
            digest = hash_content(layer.content, unpacked.update)
            diff_id = unpacked.finish()
    except CorruptError as error:
        raise SourceError(
            f"{layer.content.label} is damaged: {error}", hint="fetch or save the archive again"
        ) from error
    if diff_id != layer.diff_id:
        raise DigestMismatchError(f"{layer.content.label}, decompressed,", layer.diff_id, diff_id)
    return digest


def _parse_diff_ids(diff_ids: Sequence[str], label: str) -> list[Digest]:
    try:
        return [Digest.parse(diff_id) for diff_id in diff_ids]
    except ValueError as error:
        raise ManifestError(
            f"{label} has a diff id that can't be checked: {error}", hint="save the image again, with sha256 diff ids"
        ) from error
