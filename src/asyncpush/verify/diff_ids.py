"""The diff ids of an image's config, and the digests of its layers' uncompressed bytes, which must be the same."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from asyncpush.engine.decompress import WINDOW_LOG, CorruptError, LargeWindowError, UnpackedHash
from asyncpush.errors import ManifestError
from asyncpush.manifest import DOCKER_CONFIG, OCI_CONFIG, Manifest, is_foreign
from asyncpush.model import Descriptor, Digest
from asyncpush.sources.blobs import MAX_DOCUMENT_SIZE
from asyncpush.sources.detection import HEAD_SIZE, sniff
from asyncpush.sources.loader import ImageConfig, parse_config
from asyncpush.verify.results import Problem

#: Types of configs that have diff ids if the layers are those of a file system; cosign and BuildKit reuse the types.
_IMAGE_CONFIGS = frozenset({OCI_CONFIG, DOCKER_CONFIG})

_TAR_LAYER = re.compile(
    r"application/vnd\.(?:oci\.image\.layer\.(?:nondistributable\.)?v1\.tar(?:\+gzip|\+zstd)?"
    r"|docker\.image\.rootfs\.(?:foreign\.)?diff\.tar(?:\.gzip|\.zstd)?)"
)

#: Types of all layers of file systems, including those that asyncpush can't read: encrypted and future ones.
_FILE_SYSTEM = re.compile(r"application/vnd\.(?:oci\.image\.layer|docker\.image\.rootfs)\..+")


@dataclass(frozen=True, slots=True)
class Uncompressed:
    """The digest of an uncompressed layer, or why it is unknown.

    Attributes:
        digest: the digest of the uncompressed bytes.
        damage: the damage of the bytes, if there is any.
        unknown: why asyncpush can't uncompress them.
    """

    digest: Digest | None = None
    damage: str = ""
    unknown: str = ""


class LayerHash:
    """Uncompresses and hashes the bytes of a layer; call it in worker threads.

    The first bytes tell the compression, as for clients that pull the layer, since media types are often wrong.

    Args:
        window_log: the largest window, as a power of 2.

    Attributes:
        is_too_large: the window is larger; the result is invalid.
    """

    def __init__(self, window_log: int = WINDOW_LOG) -> None:
        self.is_too_large = False
        self._window_log = window_log
        self._head = bytearray()
        self._is_plain = False
        self._unpacked: UnpackedHash | None = None
        self._outcome: Uncompressed | None = None

    def update(self, block: bytes) -> None:
        """Take the next bytes; damage is part of the result."""
        if self._outcome is not None or self._is_plain:
            return
        if self._unpacked is None:
            self._head += block
            if len(self._head) < HEAD_SIZE:
                return
            block = self._begin()
        self._add(block)

    def finish(self, own: Digest) -> Uncompressed:
        """The result; *own* is the digest of the bytes as they are."""
        if self._outcome is None and not self._is_plain and self._unpacked is None:
            self._add(self._begin())
        if self._unpacked is not None and self._outcome is None:
            try:
                self._outcome = Uncompressed(self._unpacked.finish())
            except CorruptError as error:
                self._outcome = Uncompressed(damage=str(error))
        return self._outcome or Uncompressed(own)

    def _begin(self) -> bytes:
        head, self._head = bytes(self._head), bytearray()
        packing = sniff(head)
        if packing is None:
            self._is_plain = True
        elif packing == "gzip" or packing == "zstd":
            self._unpacked = UnpackedHash(packing, self._window_log)
        else:
            self._outcome = Uncompressed(unknown=f"is compressed with {packing}")
        return head

    def _add(self, block: bytes) -> None:
        if self._unpacked is None or self._outcome is not None:
            return
        try:
            self._unpacked.update(memoryview(block))
        except CorruptError as error:
            self._outcome = Uncompressed(damage=str(error))
            self.is_too_large = isinstance(error, LargeWindowError)
            self._unpacked.close()


class ConfigBytes:
    """Collects the bytes of a config, up to the largest size of a config."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._is_too_long = False

    def update(self, block: bytes) -> None:
        """Take the next bytes."""
        self._is_too_long = self._is_too_long or len(self._kept) + len(block) > MAX_DOCUMENT_SIZE
        self._kept = bytearray() if self._is_too_long else self._kept + block

    def finish(self) -> ImageConfig | None:
        """The config; None if it is not the config of an image."""
        try:
            return None if self._is_too_long else parse_config(bytes(self._kept), "it")
        except ManifestError:
            return None


def has_diff_ids(manifest: Manifest) -> bool:
    """Whether *manifest* is that of an image whose config should have a diff id for each layer."""
    return (
        manifest.config is not None
        and manifest.config.media_type in _IMAGE_CONFIGS
        and any(_FILE_SYSTEM.fullmatch(layer.media_type) for layer in manifest.layers)
    )


def is_tar_layer(layer: Descriptor) -> bool:
    """Whether *layer* is a layer of a file system, which has a diff id."""
    return _TAR_LAYER.fullmatch(layer.media_type) is not None


def compare(
    descriptor: Descriptor,
    config: ImageConfig | None,
    layers: Sequence[Descriptor],
    read: Mapping[Digest, Uncompressed],
) -> Iterator[Problem | str]:
    """Compare the layers of an image with its config.

    Args:
        descriptor: the config's descriptor.
        config: the config; None if it can't be read.
        layers: all layers of the image.
        read: the uncompressed digests of layers that were read and match their digests.

    Yields:
        Problems, and messages about what could not be compared.
    """
    if config is None:
        yield f"config {descriptor.digest} can't be read: no layer was compared with its diff id"
        return
    if not config.diff_ids:
        yield f"config {descriptor.digest} has no diff ids: no layer was compared with its diff id"
        return
    if len(config.diff_ids) != len(layers):
        detail = f"is damaged: it has {len(config.diff_ids)} diff ids, but the manifest has {len(layers)} layers"
        yield Problem("damaged", "config", descriptor.digest, detail)
        return
    for layer, diff_id in zip(layers, config.diff_ids, strict=True):
        if not is_tar_layer(layer):
            if not is_foreign(layer):
                yield f"layer {layer.digest} is of type {layer.media_type[:100]}: it was not compared with its diff id"
        elif layer.digest in read:
            yield from _compare(layer, diff_id, read[layer.digest])


def _compare(layer: Descriptor, diff_id: str, found: Uncompressed) -> Iterator[Problem | str]:
    if found.damage:
        yield Problem("damaged", "layer", layer.digest, f"is damaged: {found.damage}")
    elif found.digest is None:
        yield f"layer {layer.digest} {found.unknown}: it was not compared with its diff id"
    elif not diff_id.startswith("sha256:"):
        yield f"layer {layer.digest} has the diff id {diff_id[:100]!r}, which is not sha256: they were not compared"
    elif str(found.digest) != diff_id:
        detail = f"is damaged: its uncompressed bytes have the digest {found.digest}, but the config says {diff_id}"
        yield Problem("damaged", "layer", layer.digest, detail)
