"""The registry operations: descriptions, account settings, repository creation templates, and tokens."""

from __future__ import annotations

import msgspec

from asyncpush.emulator.api import requests
from asyncpush.emulator.api.repositories import exclusions, listed, tagged
from asyncpush.emulator.api.requests import Document, GetAuthorizationToken, OperationInput, paginate
from asyncpush.emulator.auth.tokens import Tokens
from asyncpush.emulator.errors import AwsError, template_exists, template_not_found
from asyncpush.emulator.limits import Limits
from asyncpush.emulator.registry import RequestTarget
from asyncpush.emulator.store.records import TemplateRecord
from asyncpush.emulator.store.state import ROOT, Store, now

#: The account settings with their values; the first one is the default.
_SETTINGS = {
    "BASIC_SCAN_TYPE_VERSION": ("AWS_NATIVE", "CLAIR"),
    "BLOB_MOUNTING": ("DISABLED", "ENABLED"),
    "REGISTRY_POLICY_SCOPE": ("V2", "V1"),
}

_DISPLAY_NAME = "displayName"


class RegistriesApi:
    """ECR's registry operations on a store."""

    def __init__(self, store: Store, limits: Limits) -> None:
        self._store = store
        self._limits = limits

    async def describe(self, request: OperationInput, target: RequestTarget) -> Document:  # noqa: ARG002 - it has no members
        """DescribeRegistry; nothing is ever replicated."""
        return {"registryId": target.id, "replicationConfiguration": {"rules": []}}

    async def describe_all(
        self,
        request: requests.DescribeRegistries,  # noqa: ARG002 - there is one, on one page
        target: RequestTarget,
    ) -> Document:
        """DescribeRegistries (public): the caller's own, without an alias."""
        account = target.registry.account
        registry = {
            "registryId": account,
            "registryArn": f"arn:aws:ecr-public::{account}:registry/{account}",
            "registryUri": self._limits.authority,
            "verified": False,
            "aliases": [],
        }
        return {"registries": [registry]}

    async def catalog_data(self, request: OperationInput, target: RequestTarget) -> Document:  # noqa: ARG002 - it has no members
        """GetRegistryCatalogData (public)."""
        name = self._store.accounts.setting(target.registry, _DISPLAY_NAME)
        return {"registryCatalogData": {_DISPLAY_NAME: name} if name else {}}

    async def put_catalog_data(self, request: requests.PutRegistryCatalogData, target: RequestTarget) -> Document:
        """PutRegistryCatalogData (public)."""
        await self._set(target, _DISPLAY_NAME, request.display_name)
        return {"registryCatalogData": {_DISPLAY_NAME: request.display_name}}

    async def setting(self, request: requests.GetAccountSetting, target: RequestTarget) -> Document:
        """GetAccountSetting."""
        default, *_ = _values(request.name)
        return {"name": request.name, "value": self._store.accounts.setting(target.registry, request.name) or default}

    async def put_setting(self, request: requests.PutAccountSetting, target: RequestTarget) -> Document:
        """PutAccountSetting."""
        if request.value not in _values(request.name):
            raise _invalid(f"{request.name} is one of {', '.join(_values(request.name))}, not '{request.value}'")
        await self._set(target, request.name, request.value)
        return {"name": request.name, "value": request.value}

    async def create_template(
        self, request: requests.CreateRepositoryCreationTemplate, target: RequestTarget
    ) -> Document:
        """CreateRepositoryCreationTemplate."""
        prefix, moment = _prefix(request.prefix), now()
        record = TemplateRecord(
            prefix=prefix,
            created_at=moment,
            updated_at=moment,
            applied_for=request.applied_for,
            description=request.description,
            mutability=request.image_tag_mutability,
            exclusion_filters=exclusions(request.image_tag_mutability, request.image_tag_mutability_exclusion_filters),
            encryption=request.encryption_configuration,
            tags=tagged({}, request.resource_tags),
            policy=request.repository_policy,
            lifecycle_policy=request.lifecycle_policy,
            custom_role_arn=request.custom_role_arn,
        )
        async with self._store.accounts.lock:
            if prefix in self._store.accounts.templates(target.registry):
                raise template_exists(prefix, target.id)
            await self._store.in_thread(self._store.accounts.put_template, target.registry, record)
        return _answer(record, target)

    async def update_template(
        self, request: requests.UpdateRepositoryCreationTemplate, target: RequestTarget
    ) -> Document:
        """UpdateRepositoryCreationTemplate: given members replace the stored ones."""
        given = {
            "applied_for": request.applied_for,
            "description": request.description,
            "mutability": request.image_tag_mutability,
            "exclusion_filters": request.image_tag_mutability_exclusion_filters,
            "encryption": request.encryption_configuration,
            "tags": None if request.resource_tags is None else tagged({}, request.resource_tags),
            "policy": request.repository_policy,
            "lifecycle_policy": request.lifecycle_policy,
            "custom_role_arn": request.custom_role_arn,
        }
        changes = {name: value for name, value in given.items() if value is not None}
        async with self._store.accounts.lock:
            record = msgspec.structs.replace(self._template(request.prefix, target), updated_at=now(), **changes)
            await self._store.in_thread(self._store.accounts.put_template, target.registry, record)
        return _answer(record, target)

    async def describe_templates(
        self, request: requests.DescribeRepositoryCreationTemplates, target: RequestTarget
    ) -> Document:
        """DescribeRepositoryCreationTemplates: the named ones that exist, or all page by page."""
        prefixes = None if request.prefixes is None else {_prefix(prefix) for prefix in request.prefixes}
        stored = self._store.accounts.templates(target.registry).values()
        found = [record for record in stored if prefixes is None or record.prefix in prefixes]
        page = paginate(found, lambda record: record.prefix, request.next_token, request.max_results)
        templates = [_template(record) for record in page.entries]
        return {"registryId": target.id, "repositoryCreationTemplates": templates, **page.members}

    async def delete_template(
        self, request: requests.DeleteRepositoryCreationTemplate, target: RequestTarget
    ) -> Document:
        """DeleteRepositoryCreationTemplate."""
        async with self._store.accounts.lock:
            record = self._template(request.prefix, target)
            await self._store.in_thread(self._store.accounts.remove_template, target.registry, record.prefix)
        return _answer(record, target)

    async def _set(self, target: RequestTarget, name: str, value: str) -> None:
        async with self._store.accounts.lock:
            await self._store.in_thread(self._store.accounts.set, target.registry, name, value)

    def _template(self, prefix: str, target: RequestTarget) -> TemplateRecord:
        found = self._store.accounts.templates(target.registry).get(_prefix(prefix))
        if found is None:
            raise template_not_found(_prefix(prefix), target.id)
        return found


def _answer(record: TemplateRecord, target: RequestTarget) -> Document:
    return {"registryId": target.id, "repositoryCreationTemplate": _template(record)}


def _prefix(text: str) -> str:
    """A prefix as it is stored: a namespace, or ROOT."""
    return text if text == ROOT else text.rstrip("/")


def _template(record: TemplateRecord) -> Document:
    members: dict[str, object] = {
        "prefix": record.prefix,
        "encryptionConfiguration": record.encryption,
        "resourceTags": listed(record.tags),
        "imageTagMutability": record.mutability,
        "appliedFor": record.applied_for,
        "createdAt": record.created_at,
        "updatedAt": record.updated_at,
    }
    optional: dict[str, object | None] = {
        "description": record.description,
        "imageTagMutabilityExclusionFilters": record.exclusion_filters or None,
        "repositoryPolicy": record.policy,
        "lifecyclePolicy": record.lifecycle_policy,
        "customRoleArn": record.custom_role_arn,
    }
    return members | {name: value for name, value in optional.items() if value is not None}


def _values(name: str) -> tuple[str, ...]:
    if name not in _SETTINGS:
        raise _invalid(f"there is no account setting '{name}'; there are {', '.join(_SETTINGS)}")
    return _SETTINGS[name]


def _invalid(message: str) -> AwsError:
    return AwsError("ValidationException", message)


class TokenApi:
    """ECR's operation on tokens.

    Args:
        tokens: makes them.
        limits: has the address that they are for.
    """

    def __init__(self, tokens: Tokens, limits: Limits) -> None:
        self._tokens = tokens
        self._limits = limits

    async def authorize(self, request: GetAuthorizationToken, target: RequestTarget) -> Document:
        """GetAuthorizationToken: an entry for each requested registry; ECR Public has one, without an address."""
        own = target.registry.account
        if target.registry.is_public:
            return {"authorizationData": self._grant(own)}
        address = {"proxyEndpoint": self._limits.endpoint_url}
        return {"authorizationData": [{**self._grant(each), **address} for each in request.registry_ids or [own]]}

    def _grant(self, account: str) -> Document:
        token = self._tokens.grant(account)
        return {"authorizationToken": token.text, "expiresAt": token.expires}
