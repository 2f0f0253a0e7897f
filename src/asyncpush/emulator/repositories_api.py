"""The operations on repositories as a whole."""

from __future__ import annotations

from asyncpush.emulator import settings_requests as requests
from asyncpush.emulator.documents import Document, paginate
from asyncpush.emulator.errors import limit_exceeded
from asyncpush.emulator.records import RepositoryRecord
from asyncpush.emulator.registry import Target
from asyncpush.emulator.repository import Repository
from asyncpush.emulator.resource_tags import tagged
from asyncpush.emulator.rules import Rules
from asyncpush.emulator.store import Store, now


class RepositoriesApi:
    """ECR's repository operations on a store; public repositories have fewer members."""

    def __init__(self, store: Store, rules: Rules) -> None:
        self._store = store
        self._rules = rules

    async def create(self, request: requests.CreateRepository, target: Target) -> Document:
        """CreateRepository."""
        allowed = self._rules.quotas(target.registry).repositories
        if len(self._store.held(target.registry)) >= allowed:
            raise limit_exceeded(f"The maximum number of repositories in a registry, {allowed}, has been reached")
        record = RepositoryRecord(
            name=request.repository_name,
            created_at=now(),
            mutability=request.image_tag_mutability,
            exclusion_filters=request.image_tag_mutability_exclusion_filters or (),
            scan_on_push=request.image_scanning_configuration.scan_on_push,
            encryption=request.encryption_configuration,
            tags=tagged({}, request.tags or ()),
            catalog_data=request.catalog_data,
        )
        created = {"repository": self._describe(await self._store.create_repository(record, target), target)}
        return {**created, "catalogData": request.catalog_data} if request.catalog_data else created

    async def describe(self, request: requests.DescribeRepositories, target: Target) -> Document:
        """DescribeRepositories: those named, or all, page by page."""
        if request.repository_names is not None:
            named = [self._store.repository(target, name) for name in request.repository_names]
            return {"repositories": [self._describe(repository, target) for repository in named]}
        everything = list(self._store.held(target.registry).values())
        page = paginate(everything, lambda repository: repository.name, request.next_token, request.max_results)
        return {"repositories": [self._describe(entry, target) for entry in page.entries], **page.members}

    async def delete(self, request: requests.DeleteRepository, target: Target) -> Document:
        """DeleteRepository; with images in it, only by force."""
        repository = await self._store.delete_repository(target, request.repository_name, force=request.force)
        return {"repository": self._describe(repository, target)}

    def _describe(self, repository: Repository, target: Target) -> Document:
        record = repository.record
        common = {
            "repositoryArn": repository.registry.arn(record.name),
            "registryId": target.id,
            "repositoryName": record.name,
            "repositoryUri": f"{self._rules.authority}/{record.name}",
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
