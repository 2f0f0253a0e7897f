"""The documents of the operations: their inputs, decoded into structs, and the pages of their answers.

``validation.py`` holds the rules that members must satisfy; the structs give the members that are valid their types.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import msgspec
import pybase64

from asyncpush.emulator.errors import AwsError, invalid_parameter
from asyncpush.emulator.store.records import CatalogData, Encryption, ExclusionFilter, Mutability


class OperationInput(msgspec.Struct, rename="camel", frozen=True):
    """The members of every input."""

    registry_id: str | None = None


class RepositoryRequest(OperationInput, frozen=True, kw_only=True):
    """The members of every input about one repository."""

    repository_name: str


T = TypeVar("T", bound=OperationInput)

#: Checks an operation's members by the rules of its input; raises AwsError.
Check = Callable[[object], None]


def decode(body: bytes | bytearray, kind: type[T], check: Check) -> T:
    """Parse and check a request's body.

    Raises:
        AwsError: SerializationException if it is not JSON; what *check* raises.
    """
    document = parse(body)
    check(document)
    return typed(document, kind)


def parse(body: bytes | bytearray) -> object:
    """Parse JSON; null members are left out, as AWS does.

    Raises:
        AwsError: SerializationException if it is not JSON.
    """
    try:
        return _without_nulls(msgspec.json.decode(body or b"{}"))
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise AwsError("SerializationException", f"The request's body is not JSON: {error}") from error
    except RecursionError as error:
        raise AwsError("SerializationException", "The request's body is nested too deeply") from error


def typed(document: object, kind: type[T]) -> T:
    """Convert checked members to their types.

    Raises:
        AwsError: InvalidParameterException for what the model accepts and the emulator does not know, such as a new
            value of an enumeration.
    """
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise AwsError("InvalidParameterException", f"This emulator does not know that: {error}") from error


def _without_nulls(value: object) -> object:
    if isinstance(value, dict):
        return {name: _without_nulls(member) for name, member in value.items() if member is not None}
    if isinstance(value, list):
        return [_without_nulls(entry) for entry in value]
    return value


#: The form of a digest of any algorithm, as ECR checks it.
DIGEST_FORM = re.compile(r"[a-zA-Z0-9-_+.]+:[a-fA-F0-9]+")

#: An operation's answer, before it is encoded as JSON.
Document = Mapping[str, object]

#: Entries of a page where a request gives no maximum (DescribeImages, ListImages, DescribeRepositories).
DEFAULT_PAGE = 100

E = TypeVar("E")


@dataclass(frozen=True, slots=True)
class Page(Generic[E]):
    """Some entries of a list, and the token of the next page, if there is one."""

    entries: Sequence[E]
    next_token: str | None

    @property
    def members(self) -> Document:
        """``nextToken``, or nothing."""
        return {"nextToken": self.next_token} if self.next_token else {}


def paginate(entries: Sequence[E], key: Callable[[E], str], token: str | None, size: int | None) -> Page[E]:
    """Cut one page out of a list that *key* sorts. A token is a key, so that changes between pages skip nothing else.

    Raises:
        AwsError: InvalidParameterException for a token that is not from an earlier page.
    """
    after = _key_of(token) if token else ""
    rest = sorted((entry for entry in entries if key(entry) > after), key=key)
    page = rest[: size or DEFAULT_PAGE]
    more = len(rest) > len(page)
    return Page(page, pybase64.b64encode(key(page[-1]).encode()).decode() if more else None)


def _key_of(token: str) -> str:
    try:
        return pybase64.b64decode(token, validate=True).decode()
    except (binascii.Error, ValueError) as error:
        raise invalid_parameter("nextToken", "must be a token of an earlier answer") from error


class BatchCheckLayerAvailability(RepositoryRequest, frozen=True, kw_only=True):
    """Input of BatchCheckLayerAvailability."""

    layer_digests: list[str]


class InitiateLayerUpload(RepositoryRequest, frozen=True, kw_only=True):
    """Input of InitiateLayerUpload."""


class UploadLayerPart(RepositoryRequest, frozen=True, kw_only=True):
    """Input of UploadLayerPart; the blob's base64 is decoded apart from it and its member left empty."""

    upload_id: str
    part_first_byte: int
    part_last_byte: int
    layer_part_blob: str


class CompleteLayerUpload(RepositoryRequest, frozen=True, kw_only=True):
    """Input of CompleteLayerUpload."""

    upload_id: str
    layer_digests: list[str]


class GetDownloadUrlForLayer(RepositoryRequest, frozen=True, kw_only=True):
    """Input of GetDownloadUrlForLayer."""

    layer_digest: str


class PutImage(RepositoryRequest, frozen=True, kw_only=True):
    """Input of PutImage."""

    image_manifest: str
    image_manifest_media_type: str | None = None
    image_tag: str | None = None
    image_digest: str | None = None


class ImageId(msgspec.Struct, rename="camel", frozen=True, omit_defaults=True):
    """An image by digest, by tag, or by both."""

    image_digest: str | None = None
    image_tag: str | None = None


class BatchGetImage(RepositoryRequest, frozen=True, kw_only=True):
    """Input of BatchGetImage."""

    image_ids: list[ImageId]
    accepted_media_types: list[str] | None = None


class BatchDeleteImage(RepositoryRequest, frozen=True, kw_only=True):
    """Input of BatchDeleteImage."""

    image_ids: list[ImageId]


class UpdateImageStorageClass(RepositoryRequest, frozen=True, kw_only=True):
    """Input of UpdateImageStorageClass."""

    image_id: ImageId
    target_storage_class: str


class ImageFilter(msgspec.Struct, rename="camel", frozen=True):
    """The filter of DescribeImages and ListImages."""

    tag_status: str = "ANY"
    image_status: str = "ACTIVE"


class ListImages(RepositoryRequest, frozen=True, kw_only=True):
    """Input of ListImages."""

    filter: ImageFilter = ImageFilter()
    next_token: str | None = None
    max_results: int | None = None


class DescribeImages(ListImages, frozen=True, kw_only=True):
    """Input of DescribeImages."""

    image_ids: list[ImageId] | None = None


class DescribeImageTags(RepositoryRequest, frozen=True, kw_only=True):
    """Input of DescribeImageTags (public)."""

    next_token: str | None = None
    max_results: int | None = None


class SubjectId(msgspec.Struct, rename="camel", frozen=True):
    """The image that others refer to."""

    image_digest: str


class ReferrersFilter(msgspec.Struct, rename="camel", frozen=True):
    """The filter of ListImageReferrers."""

    artifact_types: tuple[str, ...] = ()
    artifact_status: str = "ACTIVE"


class ListImageReferrers(RepositoryRequest, frozen=True, kw_only=True):
    """Input of ListImageReferrers."""

    subject_id: SubjectId
    filter: ReferrersFilter = ReferrersFilter()
    next_token: str | None = None
    max_results: int | None = None


#: The exclusion filters of a tag mutability.
Filters = tuple[ExclusionFilter, ...]


class ResourceTag(msgspec.Struct, rename="pascal", frozen=True):
    """An AWS resource tag."""

    key: str = ""
    value: str = ""


class ScanningConfiguration(msgspec.Struct, rename="camel", frozen=True):
    """Whether images are scanned when they are pushed; kept, never acted on."""

    scan_on_push: bool = False


class CreateRepository(RepositoryRequest, frozen=True, kw_only=True):
    """Input of CreateRepository."""

    tags: tuple[ResourceTag, ...] | None = None
    image_tag_mutability: Mutability = "MUTABLE"
    image_tag_mutability_exclusion_filters: Filters | None = None
    image_scanning_configuration: ScanningConfiguration = ScanningConfiguration()
    encryption_configuration: Encryption = Encryption("AES256")
    catalog_data: CatalogData | None = None


class DescribeRepositories(OperationInput, frozen=True, kw_only=True):
    """Input of DescribeRepositories."""

    repository_names: list[str] | None = None
    next_token: str | None = None
    max_results: int | None = None


class DeleteRepository(RepositoryRequest, frozen=True, kw_only=True):
    """Input of DeleteRepository."""

    force: bool = False


class GetAuthorizationToken(OperationInput, frozen=True, kw_only=True):
    """Input of GetAuthorizationToken."""

    registry_ids: list[str] | None = None


class PutImageTagMutability(RepositoryRequest, frozen=True, kw_only=True):
    """Input of PutImageTagMutability."""

    image_tag_mutability: Mutability
    image_tag_mutability_exclusion_filters: Filters | None = None


class PutImageScanningConfiguration(RepositoryRequest, frozen=True, kw_only=True):
    """Input of PutImageScanningConfiguration."""

    image_scanning_configuration: ScanningConfiguration


class PutLifecyclePolicy(RepositoryRequest, frozen=True, kw_only=True):
    """Input of PutLifecyclePolicy."""

    lifecycle_policy_text: str


class SetRepositoryPolicy(RepositoryRequest, frozen=True, kw_only=True):
    """Input of SetRepositoryPolicy."""

    policy_text: str
    force: bool = False


class PutRepositoryCatalogData(RepositoryRequest, frozen=True, kw_only=True):
    """Input of PutRepositoryCatalogData (public)."""

    catalog_data: CatalogData


class ListTagsForResource(OperationInput, frozen=True, kw_only=True):
    """Input of ListTagsForResource."""

    resource_arn: str


class TagResource(ListTagsForResource, frozen=True, kw_only=True):
    """Input of TagResource."""

    tags: tuple[ResourceTag, ...]


class UntagResource(ListTagsForResource, frozen=True, kw_only=True):
    """Input of UntagResource."""

    tag_keys: tuple[str, ...]


class DescribeRegistries(OperationInput, frozen=True, kw_only=True):
    """Input of DescribeRegistries (public)."""

    next_token: str | None = None
    max_results: int | None = None


class PutRegistryCatalogData(OperationInput, frozen=True, kw_only=True):
    """Input of PutRegistryCatalogData (public)."""

    display_name: str = ""


class GetAccountSetting(OperationInput, frozen=True, kw_only=True):
    """Input of GetAccountSetting."""

    name: str


class PutAccountSetting(GetAccountSetting, frozen=True, kw_only=True):
    """Input of PutAccountSetting."""

    value: str


class CreateRepositoryCreationTemplate(OperationInput, frozen=True, kw_only=True):
    """Input of CreateRepositoryCreationTemplate."""

    prefix: str
    applied_for: tuple[str, ...]
    description: str | None = None
    encryption_configuration: Encryption = Encryption("AES256")
    resource_tags: tuple[ResourceTag, ...] = ()
    image_tag_mutability: Mutability = "MUTABLE"
    image_tag_mutability_exclusion_filters: Filters = ()
    repository_policy: str | None = None
    lifecycle_policy: str | None = None
    custom_role_arn: str | None = None


class UpdateRepositoryCreationTemplate(OperationInput, frozen=True, kw_only=True):
    """Input of UpdateRepositoryCreationTemplate; a member that is not given stays as it is."""

    prefix: str
    applied_for: tuple[str, ...] | None = None
    description: str | None = None
    encryption_configuration: Encryption | None = None
    resource_tags: tuple[ResourceTag, ...] | None = None
    image_tag_mutability: Mutability | None = None
    image_tag_mutability_exclusion_filters: Filters | None = None
    repository_policy: str | None = None
    lifecycle_policy: str | None = None
    custom_role_arn: str | None = None


class DescribeRepositoryCreationTemplates(OperationInput, frozen=True, kw_only=True):
    """Input of DescribeRepositoryCreationTemplates."""

    prefixes: list[str] | None = None
    next_token: str | None = None
    max_results: int | None = None


class DeleteRepositoryCreationTemplate(OperationInput, frozen=True, kw_only=True):
    """Input of DeleteRepositoryCreationTemplate."""

    prefix: str
