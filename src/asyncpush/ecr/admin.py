"""A registry as a whole: its account and settings, the repositories that exist, and the creation of new ones."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import botocore.session
from anyio import CapacityLimiter, from_thread, to_thread
from botocore.config import Config
from botocore.credentials import ReadOnlyCredentials
from botocore.parsers import ResponseParserError

from asyncpush.ecr.auth_token import EcrLogin
from asyncpush.ecr.client import NOT_ALLOWED, EcrClient, TrackedCall, map_batches
from asyncpush.ecr.configuration import configure_session, session_variables, translate_configuration_errors
from asyncpush.ecr.credentials import credentials_of
from asyncpush.ecr.errors import UNEXPECTED_ANSWER, translate_errors
from asyncpush.ecr.regions import is_aws
from asyncpush.ecr.session import account_of
from asyncpush.ecr.settings_reader import (
    LIFECYCLE_POLICY,
    PAGE_SIZE,
    REPOSITORY_POLICY,
    UNAVAILABLE,
    PolicyKind,
    read_archived,
    read_settings,
    read_stored,
)
from asyncpush.errors import AsyncpushError, RepositoryNotFoundError, ServiceError
from asyncpush.model import ArchivedImage, RepositoryInfo
from asyncpush.settings import AwsConfiguration, RepositorySettings
from asyncpush.single_flight import CachedResult

#: Requests of DescribeRepositories that are sent at once where the caller may not list the registry.
_MAX_DESCRIBE_REQUESTS = 16

#: The repository in the message of RepositoryNotFoundException.
_MISSING_NAME = re.compile(r"name '([^']+)'")

_ROOT = "ROOT"


class EcrAdmin:
    """The repositories and settings of one registry (a ``RegistryAdmin``).

    The account and its settings are cached for the connection; repositories are not.

    Args:
        api: sends requests to ECR's API.
        login: the credentials for ``/v2/``, with which ECR returns the URL of the caller's registry.
        identity: asks STS for the caller's account, where ECR does not tell it.
    """

    def __init__(self, api: EcrClient, login: EcrLogin, identity: CallerIdentity) -> None:
        self._api = api
        self._login = login
        self._identity = identity
        self._is_public = api.service == "ecr-public"
        self._known_account: str | None = None
        self._caller_account = CachedResult(self._find_caller_account)
        self._template_prefixes = CachedResult(self._list_template_prefixes)
        self._blob_mounting = CachedResult(self._get_blob_mounting)

    async def account(self) -> str | None:
        """The registry's account, or its alias at ECR Public: the one that the user named, otherwise the caller's.

        The caller's account comes from the first of these that the caller may use: DescribeRegistry (ECR Public:
        DescribeRegistries), the URL in the answer to GetAuthorizationToken (policies for pushing allow it), any
        repository, STS. None if the caller may use none of them.
        """
        return self._api.registry_id or self._known_account or await self._caller_account.get()

    async def repositories(self, names: Collection[str]) -> Mapping[str, RepositoryInfo]:
        """Those of *names* that exist (DescribeRepositories).

        The registry is listed, 1,000 repositories a page, until all names are found. If the caller may not list it, the
        names are requested, 100 a call, with another call for each missing one. A single name is always requested.

        Raises:
            ServiceError: the caller may do neither, or ECR refuses for another reason.
        """
        unique = set(names)
        if len(unique) > 1:
            try:
                return await self._list_repositories(unique)
            except ServiceError as error:
                if error.code not in NOT_ALLOWED:
                    raise
        describe = partial(self._describe_repositories, CapacityLimiter(_MAX_DESCRIBE_REQUESTS))
        return {info.name: info for batch in await map_batches(describe, sorted(unique)) for info in batch}

    async def all_repositories(self) -> tuple[RepositoryInfo, ...]:
        """All repositories of the registry (DescribeRepositories, 1,000 a page).

        Raises:
            ServiceError: the caller may not list them, or ECR refuses for another reason.
        """
        found = []
        async for repository in self._pages("DescribeRepositories", "repositories"):
            with self._api.parsing("DescribeRepositories"):
                found.append(self._parse_repository(repository))
        return tuple(found)

    async def settings_of(self, repository: RepositoryInfo, given: RepositorySettings) -> RepositorySettings:
        """The settings of a repository, with those that are *given* in their place; see ``settings_reader``."""
        return await read_settings(self._api, repository, given)

    async def stored_settings(
        self, repository: RepositoryInfo, members: Collection[str]
    ) -> tuple[RepositorySettings, Mapping[str, AsyncpushError]]:
        """The settings of a repository, and why those of *members* that could not be read were not."""
        return await read_stored(self._api, repository, members)

    async def archived_images(self, name: str) -> tuple[ArchivedImage, ...] | None:
        """The images of a repository that are archived or being restored (DescribeImages with ``imageStatus``).

        None if the caller may not ask.
        """
        return () if self._is_public else await read_archived(self._api, name)

    async def _list_repositories(self, names: set[str]) -> dict[str, RepositoryInfo]:
        found: dict[str, RepositoryInfo] = {}
        async for repository in self._pages("DescribeRepositories", "repositories"):
            with self._api.parsing("DescribeRepositories"):
                info = self._parse_repository(repository)
                if info.name in names:
                    found[info.name] = info
            if len(found) == len(names):
                break
        return found

    async def _describe_repositories(self, limiter: CapacityLimiter, names: list[str]) -> list[RepositoryInfo]:
        """Request *names* in one call, without a missing one each time; one by one if ECR does not name that one."""
        remaining = list(names)
        while remaining:
            try:
                async with limiter:
                    answer = await self._api.call("DescribeRepositories", repositoryNames=remaining)
            except RepositoryNotFoundError as error:
                if len(remaining) == 1:
                    return []
                missing = _MISSING_NAME.search(error.message)
                if missing is None or missing[1] not in remaining:
                    break
                remaining.remove(missing[1])
                continue
            with self._api.parsing("DescribeRepositories"):
                return [self._parse_repository(repository) for repository in answer["repositories"]]
        describe = partial(self._describe_repositories, limiter)
        return [info for batch in await map_batches(describe, remaining, size=1) for info in batch]

    def _parse_repository(self, repository: dict[str, Any]) -> RepositoryInfo:
        registry_id = str(repository.get("registryId") or "")
        self._known_account = self._known_account or registry_id or None
        encryption = repository.get("encryptionConfiguration") or {}
        return RepositoryInfo(
            str(repository.get("repositoryName") or ""),
            registry_id,
            str(repository.get("imageTagMutability") or "MUTABLE"),
            tuple(rule["filter"] for rule in repository.get("imageTagMutabilityExclusionFilters") or ()),
            str(repository.get("repositoryArn") or ""),
            (repository.get("imageScanningConfiguration") or {}).get("scanOnPush"),
            encryption.get("encryptionType"),
            encryption.get("kmsKey"),
        )

    async def create(self, name: str, settings: RepositorySettings) -> bool:
        """Create a repository with *settings* (CreateRepository, then SetRepositoryPolicy and PutLifecyclePolicy).

        ECR Public supports resource tags and a policy, and no other setting.

        Returns:
            False if the repository exists already; it is not changed then.

        Raises:
            ServiceError: ECR refuses; the hint says so if the repository was created, but lacks a policy.
        """
        members = creation_members(settings, is_public=self._is_public)
        call = TrackedCall(self._api, "CreateRepository", {"repositoryName": name, **members})
        try:
            answer = await call.send()
        except ServiceError as error:
            if error.code != "RepositoryAlreadyExistsException":
                raise
            if not call.is_reply_lost:
                return False
            # Most likely an earlier try created the repository; if not, it keeps the policies that it has.
            await self._put_policies(name, settings, only_missing=True)
            return True
        with self._api.parsing("CreateRepository"):
            self._parse_repository(answer.get("repository", {}))
        await self._put_policies(name, settings, only_missing=False)
        return True

    async def finish(self, name: str, settings: RepositorySettings) -> bool:
        """Put those policies of *settings* that a repository lacks, as ``create`` does; policies that it has are kept.

        Returns:
            False if it lacks none.

        Raises:
            RepositoryNotFoundError: the repository does not exist.
            ServiceError: ECR refuses; the hint says that the repository lacks a policy.
        """
        return await self._put_policies(name, settings, only_missing=True)

    async def is_empty(self, name: str) -> bool | None:
        """Whether a repository holds no image (DescribeImages); None if the caller may not ask."""
        answer = await self._call_if_available("DescribeImages", repositoryName=name, maxResults=1)
        return None if answer is None else not answer.get("imageDetails")

    async def template_for(self, name: str) -> str | None:
        """The prefix of the creation template that would create *name* when it is pushed to (CREATE_ON_PUSH).

        It is the longest prefix that matches *name*, otherwise ROOT (DescribeRepositoryCreationTemplates). None if
        there is no such template or the caller may not ask, at ECR Public, and for the registry of another account,
        since the operation can't name one.
        """
        if self._is_public or not await self._is_own_registry():
            return None
        prefixes = await self._template_prefixes.get()
        matching = [
            prefix for prefix in prefixes if prefix != _ROOT and f"{name}/".startswith(f"{prefix.rstrip('/')}/")
        ]
        return max(matching, key=len, default=_ROOT if _ROOT in prefixes else None)

    async def mounts_blobs(self) -> bool | None:
        """Whether the account setting BLOB_MOUNTING is on (GetAccountSetting).

        None if the caller may not ask, if the registry lacks the setting, and for the registry of another account,
        since the operation can't name one. ECR Public does not mount blobs.
        """
        if self._is_public:
            return False
        return await self._blob_mounting.get() if await self._is_own_registry() else None

    async def _is_own_registry(self) -> bool:
        """Whether the registry is the caller's own; true if the caller's account is unknown, since it mostly is."""
        registry_id = self._api.registry_id
        return registry_id is None or await self._caller_account.get() in (None, registry_id)

    async def _put_policies(self, name: str, settings: RepositorySettings, *, only_missing: bool) -> bool:
        is_changed = False
        for kind, text in policies_of(settings, is_public=self._is_public):
            try:
                if only_missing and await kind.read(self._api, name) is not None:
                    continue
                await self._api.call(kind.put_operation, repositoryName=name, **{kind.member: text})
                is_changed = True
            except RepositoryNotFoundError:
                raise
            except ServiceError as error:
                error.hint = (
                    f"{name} was created, but lacks it: correct this policy or the caller's permissions, then run the "
                    "same command again"
                )
                raise
        return is_changed

    async def _find_caller_account(self) -> str | None:
        operation = "DescribeRegistries" if self._is_public else "DescribeRegistry"
        answer = await self._call_if_available(operation)
        if answer is not None:
            with self._api.parsing(operation):
                registry = answer["registries"][0] if self._is_public else answer
                return str(registry["registryId"])
        return await self._account_of_login() or await self._account_of_any() or await self._identity.account()

    async def _account_of_any(self) -> str | None:
        """The account of any repository; None for another registry, whose repositories are not the caller's."""
        if self._api.registry_id:
            return None
        answer = await self._call_if_available("DescribeRepositories", maxResults=1)
        if answer is None:
            return None
        with self._api.parsing("DescribeRepositories"):
            return next((self._parse_repository(item).registry_id for item in answer["repositories"]), None)

    async def _account_of_login(self) -> str | None:
        """The account in the URL that ECR returns with its credentials; ECR Public returns none."""
        if self._is_public:
            return None
        try:
            return account_of(await self._login.endpoint())
        except ServiceError as error:
            if error.code not in UNAVAILABLE | {UNEXPECTED_ANSWER}:
                raise
            return None

    async def _list_template_prefixes(self) -> frozenset[str]:
        prefixes: set[str] = set()
        operation = "DescribeRepositoryCreationTemplates"
        try:
            async for template in self._pages(operation, "repositoryCreationTemplates"):
                with self._api.parsing(operation):
                    if "CREATE_ON_PUSH" in template.get("appliedFor", ()):
                        prefixes.add(template["prefix"])
        except ServiceError as error:
            if error.code not in UNAVAILABLE:
                raise
        return frozenset(prefixes)

    async def _get_blob_mounting(self) -> bool | None:
        answer = await self._call_if_available("GetAccountSetting", name="BLOB_MOUNTING")
        return None if answer is None else answer.get("value") == "ENABLED"

    async def _call_if_available(self, operation: str, **members: Any) -> dict[str, Any] | None:
        """Call *operation*; None if the caller may not use it, or the registry lacks it."""
        try:
            return await self._api.call(operation, **members)
        except ServiceError as error:
            if error.code not in UNAVAILABLE:
                raise
            return None

    async def _pages(self, operation: str, member: str) -> AsyncIterator[dict[str, Any]]:
        token: dict[str, str] = {}
        while True:
            answer = await self._api.call(operation, maxResults=PAGE_SIZE, **token)
            with self._api.parsing(operation):
                items = list(answer[member])
            for item in items:
                yield item
            if not answer.get("nextToken"):
                return
            token = {"nextToken": answer["nextToken"]}


def creation_members(settings: RepositorySettings, *, is_public: bool) -> dict[str, Any]:
    """The members of CreateRepository; at ECR Public, it supports resource tags only."""
    members: dict[str, Any] = {}
    if settings.resource_tags:
        members["tags"] = [{"Key": key, "Value": value} for key, value in settings.resource_tags]
    if is_public:
        return members
    if settings.mutability:
        members["imageTagMutability"] = settings.mutability
    if settings.exclusions:
        filters = [{"filterType": "WILDCARD", "filter": wildcard} for wildcard in settings.exclusions]
        members["imageTagMutabilityExclusionFilters"] = filters
    if settings.scan_on_push is not None:
        members["imageScanningConfiguration"] = {"scanOnPush": settings.scan_on_push}
    if settings.encryption:
        key = {"kmsKey": settings.kms_key} if settings.kms_key else {}
        members["encryptionConfiguration"] = {"encryptionType": settings.encryption, **key}
    return members


def policies_of(settings: RepositorySettings, *, is_public: bool) -> list[tuple[PolicyKind, str]]:
    """The policies to put into a new repository, and their texts; ECR Public has no lifecycle policies."""
    policies = []
    if settings.policy is not None:
        policies.append((REPOSITORY_POLICY, settings.policy))
    if settings.lifecycle_policy is not None and not is_public:
        policies.append((LIFECYCLE_POLICY, settings.lifecycle_policy))
    return policies


#: Short timeouts: a network without access to STS must not delay a run for long.
_STS_CONFIG = Config(connect_timeout=5, read_timeout=10, retries={"mode": "standard", "total_max_attempts": 2})


@dataclass(frozen=True, slots=True)
class CallerIdentity:
    """Asks STS for the caller's account (GetCallerIdentity), with the credentials of a client.

    Attributes:
        client: an aiobotocore client of ECR that ``open_client`` has opened.
        aws: overrides the AWS configuration of the environment.
    """

    client: Any = field(repr=False)
    aws: AwsConfiguration

    async def account(self) -> str | None:
        """The caller's account; None if STS refuses or can't be reached."""
        keys = await credentials_of(self.client).get_frozen_credentials()
        try:
            return await to_thread.run_sync(self._ask, keys)
        except (AsyncpushError, ResponseParserError):
            return None

    def _ask(self, keys: ReadOnlyCredentials) -> str | None:
        region, endpoint = self.client.meta.region_name, self.client.meta.endpoint_url
        session = configure_session(botocore.session.Session(session_vars=session_variables()), self.aws, region)
        session.register("before-send", lambda **_: from_thread.check_cancelled())

        def open_sts(endpoint_url: str | None) -> Any:
            with translate_configuration_errors():
                return session.create_client(
                    "sts",
                    region_name=region,
                    endpoint_url=endpoint_url,
                    aws_access_key_id=keys.access_key,
                    aws_secret_access_key=keys.secret_key,
                    aws_session_token=keys.token,
                    config=_STS_CONFIG,
                )

        sts = open_sts(None)
        if is_aws(sts.meta.endpoint_url) and not is_aws(endpoint):
            # The keys belong to an emulator or another service in place of ECR: AWS must not receive them.
            sts.close()
            sts = open_sts(endpoint)
        try:
            with translate_errors("GetCallerIdentity", sts.meta.endpoint_url):
                account = sts.get_caller_identity().get("Account")
        finally:
            sts.close()
        return account if isinstance(account, str) and account else None
