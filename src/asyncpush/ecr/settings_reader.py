"""Reads a repository as it is: its settings, policies and resource tags, and which of its images are archived."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import anyio

from asyncpush.ecr.client import NOT_ALLOWED, EcrClient
from asyncpush.errors import AsyncpushError, RepositoryNotFoundError, ServiceError, only_cause
from asyncpush.model import ArchivedImage, RepositoryInfo
from asyncpush.settings import Encryption, Mutability, RepositorySettings

#: Entries a page: the maximum of ECR's model.
PAGE_SIZE = 1000

#: The error codes of an operation or setting that the caller may not use, or that this region or endpoint lacks.
UNAVAILABLE = NOT_ALLOWED | {"InvalidParameterException", "ValidationException", "UnknownOperationException"}

#: Images of these statuses can't be pulled.
_ARCHIVED = ("ARCHIVED", "ACTIVATING")

#: Resource tags that AWS sets itself, and nobody else can.
_OWN_TAGS = "aws:"


@dataclass(frozen=True, slots=True)
class PolicyKind:
    """A kind of policy that a repository can have.

    Attributes:
        setting: its name in ``RepositorySettings``.
        put_operation: the operation that puts it.
        get_operation: the operation that returns it.
        member: the member of both that holds its text.
        missing_code: the error code of *get_operation* if the repository has none.
    """

    setting: str
    put_operation: str
    get_operation: str
    member: str
    missing_code: str

    async def read(self, api: EcrClient, name: str) -> str | None:
        """The text of a repository's policy; None if it has none.

        Raises:
            ServiceError: ECR refuses.
        """
        try:
            answer = await api.call(self.get_operation, repositoryName=name)
        except ServiceError as error:
            if error.code != self.missing_code:
                raise
            return None
        with api.parsing(self.get_operation):
            return str(answer[self.member])


REPOSITORY_POLICY = PolicyKind(
    "policy", "SetRepositoryPolicy", "GetRepositoryPolicy", "policyText", "RepositoryPolicyNotFoundException"
)
LIFECYCLE_POLICY = PolicyKind(
    "lifecycle_policy",
    "PutLifecyclePolicy",
    "GetLifecyclePolicy",
    "lifecyclePolicyText",
    "LifecyclePolicyNotFoundException",
)


async def read_settings(api: EcrClient, repository: RepositoryInfo, given: RepositorySettings) -> RepositorySettings:
    """The settings of *repository*, with those that are *given* in their place; what is given is not read.

    Raises:
        ServiceError: ECR refuses; the hint names the member of a plan that makes the operation unnecessary.
    """
    found = replace(
        given,
        mutability=given.mutability or cast("Mutability", repository.mutability),
        exclusions=given.exclusions if given.mutability else repository.exclusions,
        scan_on_push=repository.scan_on_push if given.scan_on_push is None else given.scan_on_push,
    )
    if given.encryption is None:
        has_key = repository.encryption in ("KMS", "KMS_DSSE")
        found = replace(
            found,
            encryption=cast("Encryption | None", repository.encryption),
            kms_key=(given.kms_key or repository.kms_key) if has_key else None,
        )
    read: dict[str, Any] = {}

    async def read_policy(kind: PolicyKind) -> None:
        with _advising(kind.get_operation, kind.setting):
            read[kind.setting] = await kind.read(api, repository.name)

    async def read_tags() -> None:
        with _advising("ListTagsForResource", "tags"):
            read["resource_tags"] = await _resource_tags(api, repository.arn)

    with only_cause():
        async with anyio.create_task_group() as tg:
            for kind in (REPOSITORY_POLICY, LIFECYCLE_POLICY):
                if getattr(given, kind.setting) is None:
                    tg.start_soon(read_policy, kind)
            if not given.resource_tags:
                tg.start_soon(read_tags)
    return replace(found, **read)


async def read_stored(
    api: EcrClient, repository: RepositoryInfo, members: Collection[str]
) -> tuple[RepositorySettings, Mapping[str, AsyncpushError]]:
    """The settings of *repository*; its policies and resource tags only if they are among *members*.

    Returns:
        The settings, and why members could not be read.
    """
    read: dict[str, Any] = {}
    unread: dict[str, AsyncpushError] = {}

    async def read_member(name: str, kind: PolicyKind | None) -> None:
        try:
            read[name] = await (kind.read(api, repository.name) if kind else _resource_tags(api, repository.arn))
        except AsyncpushError as error:
            unread[name] = error

    kinds: dict[str, PolicyKind | None] = {kind.setting: kind for kind in (REPOSITORY_POLICY, LIFECYCLE_POLICY)}
    async with anyio.create_task_group() as tg:
        for name, kind in {**kinds, "resource_tags": None}.items():
            if name in members:
                tg.start_soon(read_member, name, kind)
    described = RepositorySettings(
        mutability=cast("Mutability", repository.mutability),
        exclusions=repository.exclusions,
        scan_on_push=repository.scan_on_push,
        encryption=cast("Encryption | None", repository.encryption),
        kms_key=repository.kms_key,
    )
    return replace(described, **read), unread


@contextmanager
def _advising(operation: str, member: str) -> Iterator[None]:
    """Add to a refusal of *operation* what makes it unnecessary: the *member* of a plan's repository settings."""
    try:
        yield
    except ServiceError as error:
        if error.code in NOT_ALLOWED:
            error.hint = f"like: source needs ecr:{operation} at the source, or the plan's own {member}"
        raise


async def _resource_tags(api: EcrClient, arn: str) -> tuple[tuple[str, str], ...]:
    """The resource tags of a repository, without those that only AWS can set."""
    operation = "ListTagsForResource"
    answer = await api.call(operation, resourceArn=arn)
    with api.parsing(operation):
        pairs = [(str(tag["Key"]), str(tag["Value"])) for tag in answer["tags"]]
    return tuple((key, value) for key, value in pairs if not key.lower().startswith(_OWN_TAGS))


async def read_archived(api: EcrClient, name: str) -> tuple[ArchivedImage, ...] | None:
    """The images of a repository that are archived or being restored; None if the caller may not ask.

    Regions and endpoints without an archive have none.

    Raises:
        RegistryError: ECR can't be reached.
    """
    found: list[ArchivedImage] = []
    is_denied = False

    async def read(status: str) -> None:
        nonlocal is_denied
        try:
            async for detail in _images_of(api, name, status):
                with api.parsing("DescribeImages"):
                    tags = tuple(map(str, detail.get("imageTags") or ()))
                    found.append(ArchivedImage(str(detail["imageDigest"]), tags, status))
        except ServiceError as error:
            if error.code not in UNAVAILABLE and not isinstance(error, RepositoryNotFoundError):
                raise
            is_denied = is_denied or error.code in NOT_ALLOWED

    with only_cause():
        async with anyio.create_task_group() as tg:
            for status in _ARCHIVED:
                tg.start_soon(read, status)
    return None if is_denied else tuple(found)


async def _images_of(api: EcrClient, name: str, status: str) -> AsyncIterator[dict[str, Any]]:
    page: dict[str, str] = {}
    while True:
        answer = await api.call(
            "DescribeImages", repositoryName=name, filter={"imageStatus": status}, maxResults=PAGE_SIZE, **page
        )
        with api.parsing("DescribeImages"):
            details = list(answer["imageDetails"])
        for detail in details:
            # An endpoint that does not know the filter returns all images.
            if detail.get("imageStatus") == status:
                yield detail
        if not answer.get("nextToken"):
            return
        page = {"nextToken": answer["nextToken"]}
