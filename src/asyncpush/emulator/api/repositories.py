"""The repository operations: create, describe, delete; settings, policies and resource tags, which are only stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

import msgspec

from asyncpush.emulator.api import requests
from asyncpush.emulator.api.requests import Document, Filters, RepositoryRequest, ResourceTag, paginate
from asyncpush.emulator.errors import AwsError, invalid_parameter, limit_exceeded, policy_not_found
from asyncpush.emulator.limits import Limits
from asyncpush.emulator.registry import RequestTarget, repository_of_arn
from asyncpush.emulator.store.records import RepositoryRecord, ResourceTags
from asyncpush.emulator.store.repository import RepositoryState
from asyncpush.emulator.store.state import Store, now


class RepositoriesApi:
    """ECR's repository operations on a store; public repositories have fewer members."""

    def __init__(self, store: Store, limits: Limits) -> None:
        self._store = store
        self._limits = limits

    async def create(self, request: requests.CreateRepository, target: RequestTarget) -> Document:
        """CreateRepository."""
        allowed = self._limits.quotas(target.registry).repositories
        if len(self._store.repositories_of(target.registry)) >= allowed:
            raise limit_exceeded(f"The maximum number of repositories in a registry, {allowed}, has been reached")
        record = RepositoryRecord(
            name=request.repository_name,
            created_at=now(),
            mutability=request.image_tag_mutability,
            exclusion_filters=exclusions(
                request.image_tag_mutability, request.image_tag_mutability_exclusion_filters or ()
            ),
            scan_on_push=request.image_scanning_configuration.scan_on_push,
            encryption=request.encryption_configuration,
            tags=tagged({}, request.tags or ()),
            catalog_data=request.catalog_data,
        )
        created = {"repository": self._describe(await self._store.create_repository(record, target), target)}
        return {**created, "catalogData": request.catalog_data} if request.catalog_data else created

    async def describe(self, request: requests.DescribeRepositories, target: RequestTarget) -> Document:
        """DescribeRepositories: the named ones, or all page by page."""
        if request.repository_names is not None:
            if request.next_token or request.max_results:
                raise invalid_parameter("maxResults", "must not be given with repositoryNames")
            named = [self._store.repository(target, name) for name in request.repository_names]
            return {"repositories": [self._describe(repository, target) for repository in named]}
        everything = list(self._store.repositories_of(target.registry).values())
        page = paginate(everything, lambda repository: repository.name, request.next_token, request.max_results)
        return {"repositories": [self._describe(entry, target) for entry in page.entries], **page.members}

    async def delete(self, request: requests.DeleteRepository, target: RequestTarget) -> Document:
        """DeleteRepository; one with images needs force."""
        repository = await self._store.delete_repository(target, request.repository_name, force=request.force)
        return {"repository": self._describe(repository, target)}

    def _describe(self, repository: RepositoryState, target: RequestTarget) -> Document:
        record = repository.record
        common = {
            "repositoryArn": repository.registry.arn(record.name),
            "registryId": target.id,
            "repositoryName": record.name,
            "repositoryUri": f"{self._limits.authority}/{record.name}",
            "createdAt": record.created_at,
        }
        return common if target.registry.is_public else {**common, **_private_members(record)}


def _private_members(record: RepositoryRecord) -> Document:
    members: dict[str, object] = {
        "imageTagMutability": record.mutability,
        "imageScanningConfiguration": {"scanOnPush": record.scan_on_push},
        "encryptionConfiguration": record.encryption,
    }
    if record.exclusion_filters:
        members["imageTagMutabilityExclusionFilters"] = record.exclusion_filters
    return members


class PoliciesApi:
    """A repository's settings, policies and tags on a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def put_mutability(self, request: requests.PutImageTagMutability, target: RequestTarget) -> Document:
        """PutImageTagMutability."""
        mutability = request.image_tag_mutability
        filters = exclusions(mutability, request.image_tag_mutability_exclusion_filters or ())
        await self._change(request, target, mutability=mutability, exclusion_filters=filters)
        answer = {**_named(request, target), "imageTagMutability": mutability}
        return {**answer, "imageTagMutabilityExclusionFilters": filters} if filters else answer

    async def put_scanning(self, request: requests.PutImageScanningConfiguration, target: RequestTarget) -> Document:
        """PutImageScanningConfiguration."""
        configuration = request.image_scanning_configuration
        await self._change(request, target, scan_on_push=configuration.scan_on_push)
        return {**_named(request, target), "imageScanningConfiguration": configuration}

    async def put_lifecycle_policy(self, request: requests.PutLifecyclePolicy, target: RequestTarget) -> Document:
        """PutLifecyclePolicy; nothing ever expires."""
        text = request.lifecycle_policy_text
        if not _is_object(text):
            raise invalid_parameter("LifecyclePolicyText", "Lifecycle policy validation failure: must be JSON")
        await self._change(request, target, lifecycle_policy=text)
        return {**_named(request, target), "lifecyclePolicyText": text}

    async def get_lifecycle_policy(self, request: RepositoryRequest, target: RequestTarget) -> Document:
        """GetLifecyclePolicy."""
        return _lifecycle_policy(self._store.repository(target, request.repository_name), target)

    async def delete_lifecycle_policy(self, request: RepositoryRequest, target: RequestTarget) -> Document:
        """DeleteLifecyclePolicy."""
        async with self._store.changing(target, request.repository_name) as repository:
            answer = _lifecycle_policy(repository, target)
            await self._save(repository, lifecycle_policy=None)
        return answer

    async def set_policy(self, request: requests.SetRepositoryPolicy, target: RequestTarget) -> Document:
        """SetRepositoryPolicy; the policy is stored, and allows or denies nothing."""
        if not _is_object(request.policy_text):
            raise invalid_parameter("PolicyText", "Invalid repository policy provided")
        await self._change(request, target, policy=request.policy_text)
        return {**_named(request, target), "policyText": request.policy_text}

    async def get_policy(self, request: RepositoryRequest, target: RequestTarget) -> Document:
        """GetRepositoryPolicy."""
        return _policy(self._store.repository(target, request.repository_name), target)

    async def delete_policy(self, request: RepositoryRequest, target: RequestTarget) -> Document:
        """DeleteRepositoryPolicy."""
        async with self._store.changing(target, request.repository_name) as repository:
            answer = _policy(repository, target)
            await self._save(repository, policy=None)
        return answer

    async def list_tags(self, request: requests.ListTagsForResource, target: RequestTarget) -> Document:
        """ListTagsForResource."""
        registry, name = _resource(request, target)
        return {"tags": listed(self._store.repository(registry, name).record.tags)}

    async def tag(self, request: requests.TagResource, target: RequestTarget) -> Document:
        """TagResource."""
        return await self._retag(request, target, lambda tags: tagged(tags, request.tags))

    async def untag(self, request: requests.UntagResource, target: RequestTarget) -> Document:
        """UntagResource."""
        removed = set(request.tag_keys)
        return await self._retag(
            request, target, lambda tags: {key: value for key, value in tags.items() if key not in removed}
        )

    async def put_catalog_data(self, request: requests.PutRepositoryCatalogData, target: RequestTarget) -> Document:
        """PutRepositoryCatalogData (public)."""
        await self._change(request, target, catalog_data=request.catalog_data)
        return {"catalogData": request.catalog_data}

    async def get_catalog_data(self, request: RepositoryRequest, target: RequestTarget) -> Document:
        """GetRepositoryCatalogData (public)."""
        data = self._store.repository(target, request.repository_name).record.catalog_data
        if data is None:
            raise AwsError(
                "RepositoryCatalogDataNotFoundException",
                f"The repository with name '{request.repository_name}' in the registry with id '{target.id}' has no "
                "catalog data",
            )
        return {"catalogData": data}

    async def _retag(
        self,
        request: requests.ListTagsForResource,
        target: RequestTarget,
        change: Callable[[dict[str, str]], dict[str, str]],
    ) -> Document:
        registry, name = _resource(request, target)
        async with self._store.changing(registry, name) as repository:
            await self._save(repository, tags=change(repository.record.tags))
        return {}

    async def _change(self, request: RepositoryRequest, target: RequestTarget, **settings: object) -> None:
        async with self._store.changing(target, request.repository_name) as repository:
            await self._save(repository, **settings)

    async def _save(self, repository: RepositoryState, **settings: object) -> None:
        record = msgspec.structs.replace(repository.record, **settings)
        await self._store.in_thread(repository.change, record)


def exclusions(mutability: str, filters: Filters) -> Filters:
    """The exclusion filters of a tag mutability, which has some exactly if it is one with exclusions.

    Raises:
        AwsError: InvalidParameterException.
    """
    if bool(filters) != mutability.endswith("_WITH_EXCLUSION"):
        verb = "must" if filters else "can't"
        raise invalid_parameter(
            "imageTagMutabilityExclusionFilters",
            f"ImageTagMutabilityExclusionFilters {verb} be null when imageTagMutability is set as {mutability}",
        )
    return filters


def _named(request: RepositoryRequest, target: RequestTarget) -> dict[str, object]:
    return {"registryId": target.id, "repositoryName": request.repository_name}


def _lifecycle_policy(repository: RepositoryState, target: RequestTarget) -> Document:
    if repository.record.lifecycle_policy is None:
        raise policy_not_found("Lifecycle", repository.name, target.id)
    return {
        "registryId": target.id,
        "repositoryName": repository.name,
        "lifecyclePolicyText": repository.record.lifecycle_policy,
    }


def _policy(repository: RepositoryState, target: RequestTarget) -> Document:
    if repository.record.policy is None:
        raise policy_not_found("Repository", repository.name, target.id)
    return {"registryId": target.id, "repositoryName": repository.name, "policyText": repository.record.policy}


def _resource(request: requests.ListTagsForResource, target: RequestTarget) -> tuple[RequestTarget, str]:
    found = repository_of_arn(request.resource_arn, target.registry.service)
    if found is None:
        raise invalid_parameter("resourceArn", "must be the ARN of a repository")
    registry, name = found
    return RequestTarget(registry, registry.account), name


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


#: ECR's quota of resource tags.
_MAX_TAGS = 50

_MAX_KEY, _MAX_VALUE = 128, 256


def tagged(held: Mapping[str, str], added: Sequence[ResourceTag]) -> ResourceTags:
    """The tags of a resource after *added* are put on it.

    Raises:
        AwsError: InvalidTagParameterException, TooManyTagsException.
    """
    for tag in added:
        if not 0 < len(tag.key) <= _MAX_KEY or len(tag.value) > _MAX_VALUE:
            raise AwsError(
                "InvalidTagParameterException",
                f"A tag's key has 1 to {_MAX_KEY} characters and its value up to {_MAX_VALUE}: '{tag.key[:_MAX_KEY]}'",
            )
        if tag.key.lower().startswith("aws:"):
            raise AwsError("InvalidTagParameterException", f"Tag keys can not begin with aws: '{tag.key}'")
    merged = {**held, **{tag.key: tag.value for tag in added}}
    if max(len(merged), len(added)) > _MAX_TAGS:
        raise AwsError("TooManyTagsException", f"A repository can have up to {_MAX_TAGS} tags")
    return merged


def listed(tags: Mapping[str, str]) -> list[ResourceTag]:
    """Tags in the form of answers."""
    return [ResourceTag(key, value) for key, value in tags.items()]
