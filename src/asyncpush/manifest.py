"""Manifests as bytes: read them, check them, build one for layers that had no manifest yet.

Sources: OCI image-spec 1.1 (manifest, image-index, descriptor), Docker image manifest v2 schema 2.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from sys import intern
from typing import Any

import msgspec

from asyncpush.errors import ManifestError
from asyncpush.model import Descriptor, Digest, Platform
from asyncpush.settings import MAX_MANIFEST_SIZE, Compression

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"

INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_LIST})

#: What tells an image from an artifact: the configs of what can be run, those of Docker's early days and WebAssembly's
#: modules among them.
IMAGE_CONFIGS = frozenset(
    {
        OCI_CONFIG,
        DOCKER_CONFIG,
        "application/octet-stream",
        "application/vnd.wasm.config.v0+json",
        "application/vnd.wasm.config.v1+json",
    }
)

#: Everything that PutImage takes and that has layers to push by digest (schema 1 has neither).
ACCEPTED_TYPES = (OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST)


class _Platform(msgspec.Struct):
    os: str | None = None
    architecture: str | None = None
    variant: str | None = None


class DescriptorDocument(msgspec.Struct, rename={"media_type": "mediaType", "artifact_type": "artifactType"}):
    """A descriptor as JSON has it (OCI image-spec, descriptor); ``parse_descriptor`` checks and types it.

    A null is what Go writes for a list, map or text that was never set.
    """

    media_type: str
    digest: str
    size: int
    urls: list[str] | None = None
    platform: _Platform | None = None
    annotations: dict[str, str | None] | None = None
    artifact_type: object = None


class _Manifest(
    msgspec.Struct,
    rename={"schema_version": "schemaVersion", "media_type": "mediaType", "artifact_type": "artifactType"},
):
    schema_version: int
    media_type: str | None = None
    config: DescriptorDocument | None = None
    layers: list[DescriptorDocument] | msgspec.UnsetType | None = msgspec.UNSET
    manifests: list[DescriptorDocument] | msgspec.UnsetType | None = msgspec.UNSET
    subject: DescriptorDocument | None = None
    artifact_type: object = None
    annotations: object = None


#: Bytes that a descriptor takes in memory, with its digest and its strings.
_DESCRIPTOR_FOOTPRINT = 600


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image manifest or an index: its bytes, which are what is put, and what they point at.

    Attributes:
        raw: the exact bytes; never serialised again.
        media_type: one of ``ACCEPTED_TYPES``.
        digest: of ``raw``.
        config: the config's descriptor; None in an index.
        layers: the layers' descriptors, in order; empty in an index.
        children: the manifests that an index names; empty in an image manifest.
        subject: the manifest that this one refers to (OCI 1.1 referrers), or None.
        artifact_type: what it is, if it says that it is something else than an image; else None.
        annotations: what it says of itself, as far as that is text.
    """

    raw: bytes
    media_type: str
    digest: Digest
    config: Descriptor | None
    layers: tuple[Descriptor, ...]
    children: tuple[Descriptor, ...]
    subject: Digest | None = None
    artifact_type: str | None = None
    annotations: tuple[tuple[str, str], ...] = ()

    @property
    def is_artifact(self) -> bool:
        """Whether it is something else than an image that can be run: it says so, or its config is not an image's."""
        return self.artifact_type is not None or (
            self.config is not None and self.config.media_type not in IMAGE_CONFIGS
        )

    def annotation(self, key: str) -> str | None:
        """The value of annotation *key*, or None."""
        return dict(self.annotations).get(key)

    @property
    def footprint(self) -> int:
        """Bytes that it takes in memory, about."""
        return len(self.raw) + _DESCRIPTOR_FOOTPRINT * (2 + len(self.layers) + len(self.children))

    @property
    def descriptor(self) -> Descriptor:
        """What points at this manifest."""
        return Descriptor(self.media_type, self.digest, len(self.raw))

    def blobs(self) -> Iterator[Descriptor]:
        """The config, then the layers; foreign layers too."""
        if self.config is not None:
            yield self.config
        yield from self.layers


def is_foreign(layer: Descriptor) -> bool:
    """Whether *layer* is non-distributable: marked so, and with URLs to fetch it from instead."""
    return bool(layer.urls) and (".foreign." in layer.media_type or ".nondistributable." in layer.media_type)


def parse_manifest(raw: bytes, *, media_type: str | None = None, name: str = "the manifest") -> Manifest:
    """Read a manifest or index from its exact bytes.

    Args:
        raw: the bytes, as stored.
        media_type: what the descriptor that led here says; must not contradict the manifest's own.
        name: how to call it in errors.

    Raises:
        ManifestError: it is too large, malformed, or of a type that ECR does not take.
    """
    parsed = _decode(raw, name)
    own = parsed.media_type
    if own and media_type and own != media_type:
        raise ManifestError(f"{name} says it is {own}, and what points at it says {media_type}")
    kind = own or media_type or (OCI_INDEX if _is_given(parsed.manifests) else OCI_MANIFEST)
    if kind not in ACCEPTED_TYPES:
        raise ManifestError(
            f"{name} is of type {kind[:200]!r}", hint="ECR takes OCI and Docker v2 manifests and indexes"
        )
    digest, subject = Digest.of(raw), _subject(parsed, name)
    said = _text(parsed.artifact_type), _texts(parsed.annotations)
    if kind in INDEX_TYPES:
        return Manifest(raw, kind, digest, None, (), _children(parsed, name), subject, *said)
    if parsed.config is None or parsed.layers is msgspec.UNSET or _is_given(parsed.manifests):
        raise ManifestError(f"{name} is an image manifest, but lacks its config or layers")
    layers = tuple(parse_descriptor(layer, name) for layer in parsed.layers or ())
    return Manifest(raw, kind, digest, parse_descriptor(parsed.config, name), layers, (), subject, *said)


def require_layers(manifest: Manifest, name: str) -> None:
    """See that an image has layers, before anything of it is sent; artifacts are left to ECR to judge.

    Args:
        manifest: an image manifest.
        name: how to call it in errors.

    Raises:
        ManifestError: it is an image, and has none.
    """
    if not manifest.layers and manifest.config is not None and manifest.config.media_type in IMAGE_CONFIGS:
        raise ManifestError(f"{name} has no layers", hint="ECR refuses images without layers; add one to the image")


#: JSON values of one document: an object takes 64 bytes and more, however short it is written.
MAX_VALUES = 300_000


def count_values(raw: bytes | bytearray) -> int:
    """How many JSON values a document has at the most."""
    return sum(map(raw.count, (b",", b"[", b"{")))


def refuse_many_values(raw: bytes, name: str) -> None:
    """See that a document takes no more memory than its size lets expect, before it is read.

    Raises:
        ManifestError: it has too many values.
    """
    if (count := count_values(raw)) > MAX_VALUES:
        raise ManifestError(f"{name} has {count} JSON values; at most {MAX_VALUES} are read")


def with_children(index: Manifest, kept: Collection[Digest]) -> Manifest:
    """*index* with some of its children: itself if they are all; else the same document without the others.

    The same choice from the same bytes gives the same bytes: members and children keep their order.

    Raises:
        ManifestError: the document can be read, but not written again.
    """
    if all(child.digest in kept for child in index.children):
        return index
    try:
        document = json.loads(index.raw)
        pairs = zip(document["manifests"], index.children, strict=True)
        document["manifests"] = [member for member, child in pairs if child.digest in kept]
        raw = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    except (ValueError, RecursionError) as error:
        # Numbers of thousands of digits, say: what skips them took them.
        raise ManifestError(
            f"index {index.digest.short} can't be rewritten for some of its images: {error}",
            hint="take all of its platforms",
        ) from error
    return parse_manifest(raw, media_type=index.media_type)


def build_manifest(config: Descriptor, layers: Sequence[Descriptor], compression: Compression) -> Manifest:
    """Build the manifest of an image that came without one (a docker-archive); the same bytes for the same blobs.

    Docker schema 2, as the image's own kind is; zstd has no place there, so zstd layers make an OCI manifest.
    The media types of *config* and *layers* are those of ``image_types(compression)``.
    """
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": image_types(compression).manifest,
        "config": _document(config),
        "layers": [_document(layer) for layer in layers],
    }
    return parse_manifest(json.dumps(document, separators=(",", ":")).encode())


@dataclass(frozen=True, slots=True)
class ImageTypes:
    """The media types of an image's manifest, config and layers."""

    manifest: str
    config: str
    layer: str


def image_types(compression: Compression) -> ImageTypes:
    """The media types of an image whose layers were compressed so."""
    docker_layer = "application/vnd.docker.image.rootfs.diff.tar"
    match compression:
        case "gzip":
            return ImageTypes(DOCKER_MANIFEST, DOCKER_CONFIG, f"{docker_layer}.gzip")
        case "none":
            return ImageTypes(DOCKER_MANIFEST, DOCKER_CONFIG, docker_layer)
        case "zstd":
            return ImageTypes(OCI_MANIFEST, OCI_CONFIG, "application/vnd.oci.image.layer.v1.tar+zstd")


def _decode(raw: bytes, name: str) -> _Manifest:
    if len(raw) > MAX_MANIFEST_SIZE:
        raise ManifestError(f"{name} has {len(raw)} bytes", hint=f"ECR takes manifests of up to {MAX_MANIFEST_SIZE}")
    refuse_many_values(raw, name)
    try:
        raw.decode("utf-8")
        parsed = msgspec.json.decode(raw, type=_Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(f"{name} is malformed: {error}") from error
    if parsed.schema_version != 2:
        raise ManifestError(
            f"{name} has schema version {parsed.schema_version}; only 2 can be pushed",
            hint="ECR takes no other; push the image to its registry again with a newer tool",
        )
    return parsed


def _children(parsed: _Manifest, name: str) -> tuple[Descriptor, ...]:
    if parsed.manifests is msgspec.UNSET or _is_given(parsed.layers):
        raise ManifestError(f"{name} is an index, but has {'layers' if _is_given(parsed.layers) else 'no manifests'}")
    children = tuple(parse_descriptor(child, name) for child in parsed.manifests or ())
    for child in children:
        if child.media_type not in ACCEPTED_TYPES:
            raise ManifestError(
                f"{name} names {child.digest} of type {child.media_type[:200]!r}, which is not a manifest",
                hint="ECR refuses such an index; export build caches with image-manifest=true",
            )
    return children


def _is_given(members: list[DescriptorDocument] | msgspec.UnsetType | None) -> bool:
    return members is not None and members is not msgspec.UNSET


def _document(descriptor: Descriptor) -> dict[str, str | int]:
    return {"mediaType": descriptor.media_type, "size": descriptor.size, "digest": str(descriptor.digest)}


def _text(said: object) -> str | None:
    return said if isinstance(said, str) and said else None


def _texts(said: object) -> tuple[tuple[str, str], ...]:
    """What is text of an object whose shape is nobody's business but its author's."""
    pairs = said.items() if isinstance(said, dict) else ()
    return tuple((key, value) for key, value in pairs if isinstance(key, str) and isinstance(value, str))


def _subject(parsed: _Manifest, name: str) -> Digest | None:
    return parse_descriptor(parsed.subject, name).digest if parsed.subject else None


def parse_descriptor(parsed: DescriptorDocument, name: str) -> Descriptor:
    """Check a descriptor.

    Args:
        parsed: the descriptor as it was read.
        name: how to call what it stands in, in errors.

    Raises:
        ManifestError: its digest is not sha256, or its size is negative.
    """
    try:
        digest = Digest.parse(parsed.digest)
    except ValueError as error:
        raise ManifestError(f"{name}: {error}") from error
    if parsed.size < 0:
        raise ManifestError(f"{name}: {digest} has size {parsed.size}")
    there = parsed.platform
    platform = Platform(there.os, there.architecture or "", there.variant) if there and there.os else None
    return Descriptor(
        intern(parsed.media_type),
        digest,
        parsed.size,
        tuple(parsed.urls or ()),
        platform,
        tuple((key, value) for key, value in (parsed.annotations or {}).items() if value is not None),
        _text(parsed.artifact_type),
    )
