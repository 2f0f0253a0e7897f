"""Whether the layers of an image are those that its config names: their uncompressed bytes against the diff ids."""

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

#: Configs that have diff ids, if the layers are those of a file system. cosign and BuildKit use them for others, too.
_IMAGE_CONFIGS = frozenset({OCI_CONFIG, DOCKER_CONFIG})

_TAR_LAYER = re.compile(
    r"application/vnd\.(?:oci\.image\.layer\.(?:nondistributable\.)?v1\.tar(?:\+gzip|\+zstd)?"
    r"|docker\.image\.rootfs\.(?:foreign\.)?diff\.tar(?:\.gzip|\.zstd)?)"
)

#: What they have in common with those that asyncpush can't read: encrypted ones, and what is yet to come.
_FILE_SYSTEM = re.compile(r"application/vnd\.(?:oci\.image\.layer|docker\.image\.rootfs)\..+")


@dataclass(frozen=True, slots=True)
class Uncompressed:
    """What a layer is uncompressed: its digest, or else why there is none.

    Attributes:
        digest: of the uncompressed bytes.
        damage: what is wrong with the bytes.
        unknown: what keeps asyncpush from telling.
    """

    digest: Digest | None = None
    damage: str = ""
    unknown: str = ""


class LayerHash:
    """Takes a layer's bytes, and hashes what they are uncompressed; in worker threads of anyio.

    The first bytes tell how they are compressed, as whoever pulls the layer has it: media types are often wrong.

    Args:
        window_log: how far back they may refer, as a power of 2.

    Attributes:
        is_too_large: they refer further back; the outcome is worth nothing.
    """

    def __init__(self, window_log: int = WINDOW_LOG) -> None:
        self.is_too_large = False
        self._window_log = window_log
        self._head = bytearray()
        self._is_plain = False
        self._unpacked: UnpackedHash | None = None
        self._outcome: Uncompressed | None = None

    def update(self, block: bytes) -> None:
        """Take the next bytes; what is wrong with them is part of the outcome."""
        if self._outcome is not None or self._is_plain:
            return
        if self._unpacked is None:
            self._head += block
            if len(self._head) < HEAD_SIZE:
                return
            block = self._begin()
        self._add(block)

    def finish(self, own: Digest) -> Uncompressed:
        """What the bytes are uncompressed; *own* is the digest of the bytes themselves."""
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
    """Takes a config's bytes and keeps them, unless they are more than a config has."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._is_too_long = False

    def update(self, block: bytes) -> None:
        """Take the next bytes."""
        self._is_too_long = self._is_too_long or len(self._kept) + len(block) > MAX_DOCUMENT_SIZE
        self._kept = bytearray() if self._is_too_long else self._kept + block

    def finish(self) -> ImageConfig | None:
        """What the config says; None if it is not an image's config."""
        try:
            return None if self._is_too_long else parse_config(bytes(self._kept), "it")
        except ManifestError:
            return None


def has_diff_ids(manifest: Manifest) -> bool:
    """Whether *manifest* is an image's, whose config should name its layers' diff ids."""
    return (
        manifest.config is not None
        and manifest.config.media_type in _IMAGE_CONFIGS
        and any(_FILE_SYSTEM.fullmatch(layer.media_type) for layer in manifest.layers)
    )


def is_tar_layer(layer: Descriptor) -> bool:
    """Whether *layer* is one of an image's file system, which has a diff id."""
    return _TAR_LAYER.fullmatch(layer.media_type) is not None


def compare(
    config: Descriptor, said: ImageConfig | None, layers: Sequence[Descriptor], read: Mapping[Digest, Uncompressed]
) -> Iterator[Problem | str]:
    """Compare an image's layers with its config.

    Args:
        config: the config's descriptor.
        said: what the config says; None if it can't be read.
        layers: all layers of the image.
        read: what those are uncompressed that were read, and are what their digests say.

    Yields:
        What is wrong, and, in words, what could not be compared.
    """
    if said is None:
        yield f"config {config.digest} can't be read: no layer was compared with its diff id"
        return
    if not said.diff_ids:
        yield f"config {config.digest} names no diff ids: no layer was compared with its own"
        return
    if len(said.diff_ids) != len(layers):
        detail = f"is damaged: it has {len(said.diff_ids)} diff ids, and the manifest {len(layers)} layers"
        yield Problem("damaged", "config", config.digest, detail)
        return
    for layer, diff_id in zip(layers, said.diff_ids, strict=True):
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
        detail = f"is damaged: its uncompressed bytes have the digest {found.digest}, and the config says {diff_id}"
        yield Problem("damaged", "layer", layer.digest, detail)
