"""Parses and checks manifests and indexes, and builds manifests for images without one.

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

#: The config types of images, as opposed to artifacts: of everything that can be run, including the first images of
#: Docker, and WebAssembly modules.
IMAGE_CONFIGS = frozenset(
    {
        OCI_CONFIG,
        DOCKER_CONFIG,
        "application/octet-stream",
        "application/vnd.wasm.config.v0+json",
        "application/vnd.wasm.config.v1+json",
    }
)

#: The types that PutImage accepts and whose layers are pushed by digest (unlike schema 1).
ACCEPTED_TYPES = (OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST)


class _Platform(msgspec.Struct):
    os: str | None = None
    architecture: str | None = None
    variant: str | None = None


class DescriptorDocument(msgspec.Struct, rename={"media_type": "mediaType", "artifact_type": "artifactType"}):
    """A descriptor in JSON (OCI image-spec, descriptor); ``parse_descriptor`` checks it.

    Go writes null for a list, map or text that was never set.
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


#: Bytes of memory of a descriptor with its digest and its strings.
_DESCRIPTOR_FOOTPRINT = 600


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image manifest or an index: its exact bytes, and what they refer to.

    Attributes:
        raw: the exact bytes, which are put unchanged.
        media_type: one of ``ACCEPTED_TYPES``.
        digest: the digest of ``raw``.
        config: the config's descriptor; None in an index.
        layers: the layers' descriptors, in order; empty in an index.
        children: the manifests that an index names; empty in an image manifest.
        subject: the manifest that this one refers to (OCI 1.1 referrers), or None.
        artifact_type: the type of an artifact, if the manifest names one; None for an image.
        annotations: its annotations, as far as they are text.
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
        """Whether it is not an image that can be run: it has an artifact type, or its config is not an image's."""
        return self.artifact_type is not None or (
            self.config is not None and self.config.media_type not in IMAGE_CONFIGS
        )

    def annotation(self, key: str) -> str | None:
        """The value of annotation *key*, or None."""
        return dict(self.annotations).get(key)

    @property
    def footprint(self) -> int:
        """The approximate bytes of memory that it takes."""
        return len(self.raw) + _DESCRIPTOR_FOOTPRINT * (2 + len(self.layers) + len(self.children))

    @property
    def descriptor(self) -> Descriptor:
        """The descriptor of this manifest."""
        return Descriptor(self.media_type, self.digest, len(self.raw))

    def blobs(self) -> Iterator[Descriptor]:
        """Yield the config, then the layers, including foreign ones."""
        if self.config is not None:
            yield self.config
        yield from self.layers


def is_foreign(layer: Descriptor) -> bool:
    """Whether *layer* is non-distributable: its type says so, and it has URLs to fetch it from."""
    return bool(layer.urls) and (".foreign." in layer.media_type or ".nondistributable." in layer.media_type)


def parse_manifest(
    raw: bytes, *, media_type: str | None = None, name: str = "the manifest", typed_by: str = "its descriptor"
) -> Manifest:
    """Parse a manifest or index from its exact bytes.

    Args:
        raw: the bytes, as stored.
        media_type: the type that its descriptor or a header gives; the manifest must not name another one.
        name: the manifest's name in errors.
        typed_by: what gives *media_type*, in errors.

    Raises:
        ManifestError: it is too large, malformed, or of a type that ECR does not accept.
    """
    parsed = _decode(raw, name)
    own = parsed.media_type
    if own and media_type and own != media_type:
        raise ManifestError(f"{name} says it is {own}, but {typed_by} says {media_type}")
    kind = own or media_type or (OCI_INDEX if _is_given(parsed.manifests) else OCI_MANIFEST)
    if kind not in ACCEPTED_TYPES:
        raise ManifestError(
            f"{name} is of type {kind[:200]!r}", hint="ECR takes OCI and Docker v2 manifests and indexes"
        )
    digest, subject = Digest.of(raw), _subject(parsed, name)
    details = _text(parsed.artifact_type), _texts(parsed.annotations)
    if kind in INDEX_TYPES:
        return Manifest(raw, kind, digest, None, (), _children(parsed, name), subject, *details)
    if parsed.config is None or parsed.layers is msgspec.UNSET or _is_given(parsed.manifests):
        raise ManifestError(f"{name} is an image manifest, but lacks its config or layers")
    layers = tuple(parse_descriptor(layer, name) for layer in parsed.layers or ())
    return Manifest(raw, kind, digest, parse_descriptor(parsed.config, name), layers, (), subject, *details)


def require_layers(manifest: Manifest, name: str) -> None:
    """Check that an image has layers, before any of it is sent; ECR decides about artifacts.

    Args:
        manifest: an image manifest.
        name: the manifest's name in errors.

    Raises:
        ManifestError: it is an image without layers.
    """
    if not manifest.layers and manifest.config is not None and manifest.config.media_type in IMAGE_CONFIGS:
        raise ManifestError(f"{name} has no layers", hint="ECR refuses images without layers; add one to the image")


#: The most JSON values of one document: an object takes at least 64 bytes of memory, however short its text is.
MAX_VALUES = 300_000


def count_values(raw: bytes | bytearray) -> int:
    """Return an upper limit of the number of JSON values of a document."""
    return sum(map(raw.count, (b",", b"[", b"{")))


def refuse_many_values(raw: bytes, name: str) -> None:
    """Check before parsing that a document does not take much more memory than its size suggests.

    Raises:
        ManifestError: it has too many values.
    """
    if (count := count_values(raw)) > MAX_VALUES:
        raise ManifestError(f"{name} has {count} JSON values; at most {MAX_VALUES} are read")


def with_children(index: Manifest, kept: Collection[Digest]) -> Manifest:
    """Return *index* with only the children *kept*; *index* itself if these are all.

    The same choice from the same bytes results in the same bytes: members and children keep their order.

    Raises:
        ManifestError: the document can be parsed, but not serialized again.
    """
    if all(child.digest in kept for child in index.children):
        return index
    try:
        document = json.loads(index.raw)
        pairs = zip(document["manifests"], index.children, strict=True)
        document["manifests"] = [member for member, child in pairs if child.digest in kept]
        raw = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    except (ValueError, RecursionError) as error:
        # For example numbers of thousands of digits, which msgspec skips and json refuses.
        raise ManifestError(
            f"index {index.digest.short} can't be rewritten for some of its images: {error}",
            hint="take all of its platforms",
        ) from error
    return parse_manifest(raw, media_type=index.media_type)


def build_manifest(config: Descriptor, layers: Sequence[Descriptor], compression: Compression) -> Manifest:
    """Build the manifest of an image without one (from a docker-archive); the same blobs result in the same bytes.

    The manifest is of Docker schema 2 like the image; that has no zstd, so zstd layers get an OCI manifest.
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
    """Return the media types of an image whose layers have this compression."""
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
            hint="ECR accepts no other; push the image to its registry again with a newer tool",
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


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _texts(value: object) -> tuple[tuple[str, str], ...]:
    """The members with text of an object; authors may put anything into it, and the rest is ignored."""
    pairs = value.items() if isinstance(value, dict) else ()
    return tuple((key, value) for key, value in pairs if isinstance(key, str) and isinstance(value, str))


def _subject(parsed: _Manifest, name: str) -> Digest | None:
    return parse_descriptor(parsed.subject, name).digest if parsed.subject else None


def parse_descriptor(parsed: DescriptorDocument, name: str) -> Descriptor:
    """Check a descriptor.

    Args:
        parsed: the descriptor from JSON.
        name: the name in errors of the document that contains it.

    Raises:
        ManifestError: its digest is not sha256, or its size is negative.
    """
    try:
        digest = Digest.parse(parsed.digest)
    except ValueError as error:
        raise ManifestError(f"{name}: {error}") from error
    if parsed.size < 0:
        raise ManifestError(f"{name}: {digest} has size {parsed.size}")
    own = parsed.platform
    platform = Platform(own.os, own.architecture or "", own.variant) if own and own.os else None
    return Descriptor(
        intern(parsed.media_type),
        digest,
        parsed.size,
        tuple(parsed.urls or ()),
        platform,
        tuple((key, value) for key, value in (parsed.annotations or {}).items() if value is not None),
        _text(parsed.artifact_type),
    )
