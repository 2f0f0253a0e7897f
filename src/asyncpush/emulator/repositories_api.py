"""The operations on repositories, and the token for pulls."""

from __future__ import annotations

import secrets

import pybase64

from asyncpush.emulator import requests
from asyncpush.emulator.documents import Document, paginate
from asyncpush.emulator.errors import AwsError
from asyncpush.emulator.registry import Registry
from asyncpush.emulator.repository import Repository, RepositoryRecord
from asyncpush.emulator.store import Store, now

#: ECR's quota of resource tags.
_MAX_TAGS = 50

#: A token's life, in seconds.
_TOKEN_LIFE = 12 * 3600


class RepositoriesApi:
    """ECR's repository operations on a store.

    Args:
        store: what is held.
        registry: who is served.
        public: whether to answer as ECR Public, whose repositories have fewer members.
    """

    def __init__(self, store: Store, registry: Registry, *, public: bool = False) -> None:
        self._store = store
        self._registry = registry
        self._public = public

    async def create(self, request: requests.CreateRepository) -> Document:
        """CreateRepository."""
        if len(request.tags or ()) > _MAX_TAGS:
            raise AwsError("TooManyTagsException", f"A repository can have up to {_MAX_TAGS} tags")
        registry_id = request.registry_id or self._registry.id
        record = RepositoryRecord(
            name=request.repository_name,
            created_at=now(),
            image_tag_mutability=request.image_tag_mutability,
            exclusion_filters=tuple(request.image_tag_mutability_exclusion_filters or ()),
            scan_on_push=request.image_scanning_configuration.scan_on_push,
        )
        created = await self._store.create_repository(record, registry_id)
        return {"repository": self._describe(created, registry_id)}

    async def describe(self, request: requests.DescribeRepositories) -> Document:
        """DescribeRepositories: those named, or all, page by page."""
        registry_id = request.registry_id or self._registry.id
        if request.repository_names is not None:
            named = [self._store.repository(name, registry_id) for name in request.repository_names]
            return {"repositories": [self._describe(repository, registry_id) for repository in named]}
        everything = list(self._store.repositories.values())
        page = paginate(everything, lambda repository: repository.name, request.next_token, request.max_results)
        return {"repositories": [self._describe(entry, registry_id) for entry in page.entries], **page.members}

    async def delete(self, request: requests.DeleteRepository) -> Document:
        """DeleteRepository; with images in it, only by force."""
        registry_id = request.registry_id or self._registry.id
        name = request.repository_name
        repository = await self._store.delete_repository(name, registry_id, force=request.force)
        return {"repository": self._describe(repository, registry_id)}

    async def authorize(self, request: requests.GetAuthorizationToken) -> Document:
        """GetAuthorizationToken; what it gives opens nothing yet, since pulls ask for none."""
        token = pybase64.b64encode(f"AWS:{secrets.token_urlsafe(32)}".encode()).decode()
        grant = {"authorizationToken": token, "expiresAt": now() + _TOKEN_LIFE}
        if self._public:
            return {"authorizationData": grant}
        grants = [{**grant, "proxyEndpoint": self._registry.endpoint_url} for _ in request.registry_ids or [""]]
        return {"authorizationData": grants}

    def _describe(self, repository: Repository, registry_id: str) -> Document:
        record, registry = repository.record, self._registry
        arn = f"ecr-public::{registry_id}" if self._public else f"ecr:{registry.region}:{registry_id}"
        common = {
            "repositoryArn": f"arn:aws:{arn}:repository/{record.name}",
            "registryId": registry_id,
            "repositoryName": record.name,
            "repositoryUri": f"{registry.authority}/{record.name}",
            "createdAt": record.created_at,
        }
        return common if self._public else {**common, **_private_members(record)}


def _private_members(record: RepositoryRecord) -> Document:
    members: dict[str, object] = {
        "imageTagMutability": record.image_tag_mutability,
        "imageScanningConfiguration": {"scanOnPush": record.scan_on_push},
        "encryptionConfiguration": {"encryptionType": "AES256"},
    }
    if record.exclusion_filters:
        members["imageTagMutabilityExclusionFilters"] = record.exclusion_filters
    return members
