"""What the operations on repositories and accounts take, typed; the rules are the service model's."""

from __future__ import annotations

import msgspec

from asyncpush.emulator.records import CatalogData, Encryption, ExclusionFilter, Mutability
from asyncpush.emulator.requests import RepositoryRequest, Request

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


class DescribeRepositories(Request, frozen=True, kw_only=True):
    """Input of DescribeRepositories."""

    repository_names: list[str] | None = None
    next_token: str | None = None
    max_results: int | None = None


class DeleteRepository(RepositoryRequest, frozen=True, kw_only=True):
    """Input of DeleteRepository."""

    force: bool = False


class GetAuthorizationToken(Request, frozen=True, kw_only=True):
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
    max_results: int | None = None


class PutRegistryCatalogData(Request, frozen=True, kw_only=True):
    """Input of PutRegistryCatalogData (public)."""

    display_name: str = ""


class GetAccountSetting(Request, frozen=True, kw_only=True):
    """Input of GetAccountSetting."""

    name: str


class PutAccountSetting(GetAccountSetting, frozen=True, kw_only=True):
    """Input of PutAccountSetting."""

    value: str


class CreateRepositoryCreationTemplate(Request, frozen=True, kw_only=True):
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


class UpdateRepositoryCreationTemplate(Request, frozen=True, kw_only=True):
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


class DescribeRepositoryCreationTemplates(Request, frozen=True, kw_only=True):
    """Input of DescribeRepositoryCreationTemplates."""

    prefixes: list[str] | None = None
    next_token: str | None = None
    max_results: int | None = None


class DeleteRepositoryCreationTemplate(Request, frozen=True, kw_only=True):
    """Input of DeleteRepositoryCreationTemplate."""

    prefix: str
