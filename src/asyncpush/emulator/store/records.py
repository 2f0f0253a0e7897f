"""What the catalog keeps of each thing, frozen: repositories, images, uploads, creation templates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import msgspec

from asyncpush.emulator.store.manifests import ParsedManifest

Mutability = Literal["MUTABLE", "IMMUTABLE", "IMMUTABLE_WITH_EXCLUSION", "MUTABLE_WITH_EXCLUSION"]

#: Resource tags: key -> value.
ResourceTags = dict[str, str]


class ExclusionFilter(msgspec.Struct, rename="camel", frozen=True):
    """Tags that a repository's mutability leaves out."""

    filter_type: Literal["WILDCARD"]
    filter: str


class Encryption(msgspec.Struct, rename="camel", frozen=True, omit_defaults=True):
    """How ECR would encrypt a repository; kept, never acted on."""

    encryption_type: Literal["AES256", "KMS", "KMS_DSSE"]
    kms_key: str | None = None


class CatalogData(msgspec.Struct, rename="camel", frozen=True, omit_defaults=True):
    """What ECR Public's gallery would show of a repository; the logo is taken and dropped."""

    description: str | None = None
    architectures: tuple[str, ...] = ()
    operating_systems: tuple[str, ...] = ()
    about_text: str | None = None
    usage_text: str | None = None


class RepositoryRecord(msgspec.Struct, frozen=True):
    """What a repository is beside its images; times in seconds since 1970."""

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


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """A manifest that a repository holds, and when it came, in seconds since 1970."""

    manifest: ParsedManifest
    pushed_at: float


@dataclass(frozen=True, slots=True)
class UploadRecord:
    """What is known of an upload beside its bytes.

    Attributes:
        id: the upload id.
        repository: the repository's key in the catalog.
        created_at: seconds since 1970.
        parts: parts that were acknowledged.
        received: bytes that were acknowledged.
        last_part: bytes of the last part; below 0 while it is a chunk of ``/v2/`` whose end has not come.
        short_part: whether a part before the last one was shorter than ECR's minimum.
        digest: hex of the sha256 of the bytes that were acknowledged; empty where it is not known.
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
