"""What the operations on repositories and accounts take: members, types, lengths and patterns, as in ECR's model."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from asyncpush.emulator.records import CatalogData, Encryption, ExclusionFilter, Mutability
from asyncpush.emulator.requests import PageSize, RepositoryName, RepositoryRequest, Request

Filters = Annotated[tuple[ExclusionFilter, ...], Meta(min_length=1, max_length=5)]
Prefix = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=256,
        pattern=r"^((?:[a-z0-9]+(?:[._-][a-z0-9]+)*/)*[a-z0-9]+(?:[._-][a-z0-9]+)*/?|ROOT)\Z",
    ),
]


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


class DescribeRepositories(Request, frozen=True, kw_only=True):
    """Input of DescribeRepositories."""

    repository_names: Annotated[list[RepositoryName], Meta(min_length=1, max_length=100)] | None = None
    next_token: str | None = None
    max_results: PageSize | None = None


class DeleteRepository(RepositoryRequest, frozen=True, kw_only=True):
    """Input of DeleteRepository."""

    force: bool = False


class GetAuthorizationToken(Request, frozen=True, kw_only=True):
    """Input of GetAuthorizationToken."""

    registry_ids: (
        Annotated[list[Annotated[str, Meta(pattern=r"^[0-9]{12}\Z")]], Meta(min_length=1, max_length=10)] | None
    ) = None


class PutImageTagMutability(RepositoryRequest, frozen=True, kw_only=True):
    """Input of PutImageTagMutability."""

    image_tag_mutability: Mutability
    image_tag_mutability_exclusion_filters: Filters | None = None


class PutImageScanningConfiguration(RepositoryRequest, frozen=True, kw_only=True):
    """Input of PutImageScanningConfiguration."""

    image_scanning_configuration: ScanningConfiguration


class PutLifecyclePolicy(RepositoryRequest, frozen=True, kw_only=True):
    """Input of PutLifecyclePolicy."""

    lifecycle_policy_text: Annotated[str, Meta(min_length=100, max_length=30720)]


class SetRepositoryPolicy(RepositoryRequest, frozen=True, kw_only=True):
    """Input of SetRepositoryPolicy."""

    policy_text: Annotated[str, Meta(max_length=10240)]
    force: bool = False


class PutRepositoryCatalogData(RepositoryRequest, frozen=True, kw_only=True):
    """Input of PutRepositoryCatalogData (public)."""

    catalog_data: CatalogData


class ListTagsForResource(Request, frozen=True, kw_only=True):
    """Input of ListTagsForResource."""

    resource_arn: str


class TagResource(ListTagsForResource, frozen=True, kw_only=True):
    """Input of TagResource."""

    tags: tuple[ResourceTag, ...]


class UntagResource(ListTagsForResource, frozen=True, kw_only=True):
    """Input of UntagResource."""

    tag_keys: tuple[str, ...]


class DescribeRegistries(Request, frozen=True, kw_only=True):
    """Input of DescribeRegistries (public)."""

    next_token: str | None = None
    max_results: PageSize | None = None


class PutRegistryCatalogData(Request, frozen=True, kw_only=True):
    """Input of PutRegistryCatalogData (public)."""

    display_name: Annotated[str, Meta(max_length=100)] = ""


class GetAccountSetting(Request, frozen=True, kw_only=True):
    """Input of GetAccountSetting."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]


class PutAccountSetting(GetAccountSetting, frozen=True, kw_only=True):
    """Input of PutAccountSetting."""

    value: str


class CreateRepositoryCreationTemplate(Request, frozen=True, kw_only=True):
    """Input of CreateRepositoryCreationTemplate."""

    prefix: Prefix
    applied_for: tuple[Literal["REPLICATION", "PULL_THROUGH_CACHE", "CREATE_ON_PUSH"], ...]
    description: Annotated[str, Meta(max_length=256)] | None = None
    encryption_configuration: Encryption = Encryption("AES256")
    resource_tags: tuple[ResourceTag, ...] = ()
    image_tag_mutability: Mutability = "MUTABLE"
    image_tag_mutability_exclusion_filters: Filters = ()
    repository_policy: Annotated[str, Meta(max_length=10240)] | None = None
    lifecycle_policy: Annotated[str, Meta(max_length=30720)] | None = None
    custom_role_arn: Annotated[str, Meta(max_length=2048)] | None = None


class UpdateRepositoryCreationTemplate(Request, frozen=True, kw_only=True):
    """Input of UpdateRepositoryCreationTemplate; a member that is not given stays as it is."""

    prefix: Prefix
    applied_for: tuple[Literal["REPLICATION", "PULL_THROUGH_CACHE", "CREATE_ON_PUSH"], ...] | None = None
    description: Annotated[str, Meta(max_length=256)] | None = None
    encryption_configuration: Encryption | None = None
    resource_tags: tuple[ResourceTag, ...] | None = None
    image_tag_mutability: Mutability | None = None
    image_tag_mutability_exclusion_filters: Filters | None = None
    repository_policy: Annotated[str, Meta(max_length=10240)] | None = None
    lifecycle_policy: Annotated[str, Meta(max_length=30720)] | None = None
    custom_role_arn: Annotated[str, Meta(max_length=2048)] | None = None


class DescribeRepositoryCreationTemplates(Request, frozen=True, kw_only=True):
    """Input of DescribeRepositoryCreationTemplates."""

    prefixes: Annotated[list[Prefix], Meta(min_length=1, max_length=100)] | None = None
    next_token: str | None = None
    max_results: PageSize | None = None


class DeleteRepositoryCreationTemplate(Request, frozen=True, kw_only=True):
    """Input of DeleteRepositoryCreationTemplate."""

    prefix: Prefix
