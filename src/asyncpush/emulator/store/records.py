"""The nouns of the store: repositories, images, uploads and templates as the catalog keeps them; parsed manifests."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec

from asyncpush.emulator.errors import AwsError, invalid_parameter
from asyncpush.emulator.limits import MAX_MANIFEST
from asyncpush.model import Digest

Mutability = Literal["MUTABLE", "IMMUTABLE", "IMMUTABLE_WITH_EXCLUSION", "MUTABLE_WITH_EXCLUSION"]

#: Resource tags: key -> value.
ResourceTags = dict[str, str]


class ExclusionFilter(msgspec.Struct, rename="camel", frozen=True):
    """Tags that are excluded from a repository's mutability."""

    filter_type: Literal["WILDCARD"]
    filter: str


class Encryption(msgspec.Struct, rename="camel", frozen=True, omit_defaults=True):
    """How ECR would encrypt a repository; only stored."""

    encryption_type: Literal["AES256", "KMS", "KMS_DSSE"]
    kms_key: str | None = None


class CatalogData(msgspec.Struct, rename="camel", frozen=True, omit_defaults=True):
    """What ECR Public's gallery would show of a repository; logos are accepted and dropped."""

    description: str | None = None
    architectures: tuple[str, ...] = ()
    operating_systems: tuple[str, ...] = ()
    about_text: str | None = None
    usage_text: str | None = None


class RepositoryRecord(msgspec.Struct, frozen=True):
    """A repository's name and settings; times in seconds since 1970.

    Attributes:
        archived: the digests of its archived images, and since when they are.
    """

    name: str
    created_at: float
    mutability: Mutability = "MUTABLE"
    exclusion_filters: tuple[ExclusionFilter, ...] = ()
    scan_on_push: bool = False
    encryption: Encryption = Encryption("AES256")
    tags: ResourceTags = {}
    policy: str | None = None
    lifecycle_policy: str | None = None
    catalog_data: CatalogData | None = None
    archived: dict[str, float] = {}


@dataclass(frozen=True, slots=True)
class UploadRecord:
    """The state of an upload, without its bytes.

    Attributes:
        id: the upload id.
        repository: the repository's key in the catalog.
        created_at: seconds since 1970.
        parts: acknowledged parts.
        received: acknowledged bytes.
        last_part: bytes of the last part; below 0 while it is a chunk of ``/v2/`` whose end has not come.
        short_part: whether a part before the last one was shorter than ECR's minimum.
        digest: hex of the sha256 of the acknowledged bytes; empty where it is unknown.
    """

    id: str
    repository: int
    created_at: float
    parts: int = 0
    received: int = 0
    last_part: int = 0
    short_part: bool = False
    digest: str = ""


class TemplateRecord(msgspec.Struct, frozen=True):
    """A repository creation template; times in seconds since 1970."""

    prefix: str
    created_at: float
    updated_at: float
    applied_for: tuple[str, ...]
    description: str | None = None
    mutability: Mutability = "MUTABLE"
    exclusion_filters: tuple[ExclusionFilter, ...] = ()
    encryption: Encryption = Encryption("AES256")
    tags: ResourceTags = {}
    policy: str | None = None
    lifecycle_policy: str | None = None
    custom_role_arn: str | None = None


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """A manifest of a repository, and when it was pushed, in seconds since 1970."""

    manifest: ParsedManifest
    pushed_at: float


@dataclass(frozen=True, slots=True)
class ParsedManifest:
    """A manifest or index as PutImage accepted it.

    Attributes:
        digest: of its exact bytes.
        media_type: its own, else the one it was pushed with.
        size: its bytes.
        blobs: config and layers that must be in the repository; foreign layers are left out.
        children: the manifests of an index.
        layer_count: its layers, foreign ones too.
        artifact_type: its own, else the config's media type; None for an index without.
        subject: the digest of the manifest that it refers to (OCI 1.1), of any algorithm.
        annotations: its own.
        foreign: layers that need not be in the repository; those that are in it can be downloaded.
    """

    digest: Digest
    media_type: str
    size: int
    blobs: tuple[Reference, ...]
    children: tuple[Reference, ...]
    layer_count: int
    artifact_type: str | None
    subject: str | None
    annotations: dict[str, str]
    foreign: tuple[Reference, ...] = ()

    @property
    def named(self) -> dict[Digest, str]:
        """The media type of each blob that it names by a sha256 digest."""
        return {blob.sha256: blob.media_type for blob in (*self.blobs, *self.foreign) if blob.sha256}


@dataclass(frozen=True, slots=True)
class Reference:
    """A blob or manifest that a manifest names; the digest may be of any algorithm."""

    media_type: str
    digest: str
    size: int

    @property
    def sha256(self) -> Digest | None:
        """The digest, if its algorithm is sha256."""
        return sha256_digest(self.digest)


def sha256_digest(text: str) -> Digest | None:
    """Parse a sha256 digest; None for other algorithms and malformed text, which nothing is stored under."""
    try:
        return Digest.parse(text)
    except ValueError:
        return None


_INDEX_TYPES = frozenset(
    {"application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"}
)

_IMAGE_TYPES = frozenset(
    {"application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"}
)

_FOREIGN = re.compile(r"\.(foreign|nondistributable)\.")


class _Descriptor(msgspec.Struct, rename="camel"):
    media_type: str
    digest: str
    size: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    urls: list[str] | None = None


class _Document(msgspec.Struct, rename="camel"):
    schema_version: int
    media_type: str | None = None
    config: _Descriptor | None = None
    layers: list[_Descriptor] | None = None
    manifests: list[_Descriptor] | None = None
    artifact_type: str | None = None
    subject: _Descriptor | None = None
    annotations: dict[str, str] | None = None


def read_manifest(raw: bytes, media_type: str | None) -> ParsedManifest:
    """Read a manifest as PutImage does; blocks for a few milliseconds where it is large.

    Args:
        raw: its exact bytes.
        media_type: PutImage's imageManifestMediaType.

    Raises:
        AwsError: InvalidParameterException; most refusals are worded 'Invalid JSON syntax', as ECR words them.
    """
    if len(raw) > MAX_MANIFEST:
        raise invalid_parameter("imageManifest", f"must have length less than or equal to {MAX_MANIFEST}")
    try:
        document = msgspec.json.decode(raw, type=_Document)
    except (msgspec.DecodeError, RecursionError) as error:
        raise _syntax() from error
    own = document.media_type or media_type
    if own is None or (media_type and own != media_type) or document.schema_version != 2:
        raise _syntax()
    digest = Digest.of(raw)
    if own in _INDEX_TYPES:
        return _manifest(document, digest, own, len(raw), children=_children(document))
    if own not in _IMAGE_TYPES or document.config is None or document.layers is None or document.manifests is not None:
        raise _syntax()
    blobs = (document.config, *(layer for layer in document.layers if not _is_foreign(layer)))
    foreign = tuple(_reference(layer) for layer in document.layers if _is_foreign(layer))
    return _manifest(document, digest, own, len(raw), blobs=tuple(map(_reference, blobs)), foreign=foreign)


def _manifest(
    document: _Document,
    digest: Digest,
    media_type: str,
    size: int,
    *,
    blobs: tuple[Reference, ...] = (),
    foreign: tuple[Reference, ...] = (),
    children: tuple[Reference, ...] = (),
) -> ParsedManifest:
    return ParsedManifest(
        digest=digest,
        media_type=media_type,
        size=size,
        blobs=blobs,
        children=children,
        layer_count=len(document.layers or ()),
        artifact_type=document.artifact_type or (document.config.media_type if document.config else None),
        subject=document.subject.digest if document.subject else None,
        annotations=document.annotations or {},
        foreign=foreign,
    )


def _children(document: _Document) -> tuple[Reference, ...]:
    if document.manifests is None or document.layers is not None or document.config is not None:
        raise _syntax()
    if not all(child.media_type in _INDEX_TYPES | _IMAGE_TYPES for child in document.manifests):
        raise _syntax()
    return tuple(map(_reference, document.manifests))


def _is_foreign(layer: _Descriptor) -> bool:
    return bool(layer.urls) and _FOREIGN.search(layer.media_type) is not None


def _reference(descriptor: _Descriptor) -> Reference:
    return Reference(descriptor.media_type, descriptor.digest, descriptor.size)


def _syntax() -> AwsError:
    return invalid_parameter("ImageManifest", "Invalid JSON syntax")
