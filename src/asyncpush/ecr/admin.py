"""A registry as a whole: which repositories there are, new ones with their settings, and what the account allows."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar

import anyio
import botocore.session
from anyio import CapacityLimiter, from_thread, to_thread
from botocore.config import Config
from botocore.parsers import ResponseParserError

from asyncpush.ecr.auth_token import EcrLogin
from asyncpush.ecr.client import NOT_ALLOWED, EcrClient, batches
from asyncpush.ecr.configuration import configured, readable_configuration, variables
from asyncpush.ecr.credentials import signing
from asyncpush.ecr.errors import UNEXPECTED_ANSWER, translated, verdict
from asyncpush.ecr.rate_limit import is_aws
from asyncpush.ecr.session import account_of
from asyncpush.errors import AsyncpushError, RegistryError, RepositoryNotFoundError, ServiceError, only_cause
from asyncpush.protocols import RepositoryInfo
from asyncpush.settings import AwsConfiguration, RepositorySettings

T = TypeVar("T")

#: Repositories or templates of a page, at the most (their models' maximum).
PAGE_SIZE = 1000

#: Names that are asked for at once, where a registry does not let itself be listed.
_ASKED_AT_ONCE = 16

#: How RepositoryNotFoundException's message names the repository.
_MISSING = re.compile(r"name '([^']+)'")

_ROOT = "ROOT"

#: What GetAccountSetting answers of a setting that this region, or this endpoint, does not know.
_UNKNOWN = NOT_ALLOWED | {"InvalidParameterException", "ValidationException", "UnknownOperationException"}


class Identity(Protocol):
    """Knows the caller's account, if need be from another service."""

    async def account(self) -> str | None:
        """The account; None if that can't be learnt."""
        ...


class _Cached(Generic[T]):
    """An answer that is asked for once, however many want it; a failure is forgotten."""

    def __init__(self, ask: Callable[[], Awaitable[T]]) -> None:
        self._ask = ask
        self._asking = anyio.Lock()
        self._answers: list[T] = []

    async def get(self) -> T:
        async with self._asking:
            if not self._answers:
                self._answers.append(await self._ask())
        return self._answers[0]


class EcrAdmin:
    """The repositories and settings of one registry (a ``RegistryAdmin``).

    What an account has set is asked for once a connection; repositories are asked for each time.

    Args:
        calls: sends its requests.
        login: the password of its ``/v2/``, which comes with the address of the caller's registry.
        identity: who the caller is, where ECR does not tell.
    """

    def __init__(self, calls: EcrClient, login: EcrLogin, identity: Identity) -> None:
        self._calls = calls
        self._login = login
        self._identity = identity
        self._is_public = calls.service == "ecr-public"
        self._seen: str | None = None
        self._caller = _Cached(self._ask_caller)
        self._templates = _Cached(self._ask_templates)
        self._mounting = _Cached(self._ask_mounting)

    async def account(self) -> str | None:
        """Whose registry it is: as it was asked for, an alias of ECR Public's maybe, or else the caller's account.

        That is learnt from DescribeRegistry (ECR Public: DescribeRegistries), else from the address that comes with
        GetAuthorizationToken, which a policy for pushing allows, else from any repository, else from STS; None if none
        of them tells.
        """
        return self._calls.registry_id or self._seen or await self._caller.get()

    async def repositories(self, names: Collection[str]) -> Mapping[str, RepositoryInfo]:
        """Those of *names* that exist (DescribeRepositories).

        The registry is listed, 1,000 a page, until all are found; where that is not allowed, the names are asked for,
        100 a request, and once more for each that is missing. A single name is always asked for.

        Raises:
            ServiceError: neither is allowed, or ECR refuses otherwise.
        """
        wanted = set(names)
        if len(wanted) > 1:
            try:
                return await self._listed(wanted)
            except ServiceError as error:
                if error.code not in NOT_ALLOWED:
                    raise
        found: dict[str, RepositoryInfo] = {}
        at_once = CapacityLimiter(_ASKED_AT_ONCE)
        with only_cause():
            async with anyio.create_task_group() as tg:
                for batch in batches(sorted(wanted)):
                    tg.start_soon(self._ask_for, batch, found, at_once)
        return found

    async def create(self, name: str, settings: RepositorySettings) -> bool:
        """Create a repository with *settings* (CreateRepository, then SetRepositoryPolicy and PutLifecyclePolicy).

        ECR Public takes resource tags and a policy, and knows no other setting.

        Returns:
            False if it was there already: then it is left as it is.

        Raises:
            ServiceError: ECR refuses; the hint says so if the repository is there now, but lacks a policy.
        """
        members = creation_members(settings, is_public=self._is_public)
        reply_lost = False

        async def send() -> dict[str, Any]:
            nonlocal reply_lost
            try:
                return await self._calls.send("CreateRepository", {"repositoryName": name, **members})
            except RegistryError as error:
                reply_lost = reply_lost or verdict(error) == "transient"
                raise

        try:
            answer = await self._calls.retries.call("CreateRepository", send)
        except ServiceError as error:
            if error.code != "RepositoryAlreadyExistsException":
                raise
            if not reply_lost:
                return False
            # Most likely it is ours; if not, it keeps the policies that it has.
            await self._put_policies(name, settings, only_missing=True)
            return True
        with self._calls.understood("CreateRepository"):
            self._remember(answer.get("repository", {}))
        await self._put_policies(name, settings, only_missing=False)
        return True

    async def finish(self, name: str, settings: RepositorySettings) -> bool:
        """Give a repository those policies of *settings* that it lacks, as ``create`` would have; others are kept.

        Returns:
            False if it lacks none.

        Raises:
            RepositoryNotFoundError: it is not there.
            ServiceError: ECR refuses; the hint says what the repository lacks.
        """
        return await self._put_policies(name, settings, only_missing=True)

    async def is_empty(self, name: str) -> bool | None:
        """Whether no image is in a repository (DescribeImages); None if the caller may not ask."""
        try:
            answer = await self._calls.call("DescribeImages", repositoryName=name, maxResults=1)
        except ServiceError as error:
            if error.code not in _UNKNOWN:
                raise
            return None
        return not answer.get("imageDetails")

    async def template_for(self, name: str) -> str | None:
        """The prefix of the creation template that would create *name* when it is pushed to (CREATE_ON_PUSH).

        The longest namespace that *name* is in, else ROOT (DescribeRepositoryCreationTemplates). None if there is none,
        if the caller may not ask, at ECR Public, and for another account's registry, which can't be asked about.
        """
        if self._is_public or not await self._is_callers():
            return None
        prefixes = await self._templates.get()
        fitting = [each for each in prefixes if each != _ROOT and f"{name}/".startswith(f"{each.rstrip('/')}/")]
        return max(fitting, key=len, default=_ROOT if _ROOT in prefixes else None)

    async def mounts_blobs(self) -> bool | None:
        """Whether the account setting BLOB_MOUNTING is on (GetAccountSetting).

        None if the caller may not ask, if the registry does not know the setting, and for another account's registry,
        which can't be asked about. ECR Public mounts nothing.
        """
        if self._is_public:
            return False
        return await self._mounting.get() if await self._is_callers() else None

    async def _is_callers(self) -> bool:
        """Whether the registry is the caller's own; true if that can't be learnt, since it mostly is."""
        asked = self._calls.registry_id
        return asked is None or await self._caller.get() in (None, asked)

    async def _listed(self, wanted: set[str]) -> dict[str, RepositoryInfo]:
        found: dict[str, RepositoryInfo] = {}
        async for repository in self._pages("DescribeRepositories", "repositories"):
            with self._calls.understood("DescribeRepositories"):
                info = self._remember(repository)
                if info.name in wanted:
                    found[info.name] = info
            if len(found) == len(wanted):
                break
        return found

    async def _ask_for(self, names: list[str], found: dict[str, RepositoryInfo], at_once: CapacityLimiter) -> None:
        """Ask for *names* together, less one that is missing each time; one by one where ECR does not say which is."""
        left = list(names)
        while left:
            try:
                async with at_once:
                    answer = await self._calls.call("DescribeRepositories", repositoryNames=left)
            except RepositoryNotFoundError as error:
                if len(left) == 1:
                    return
                missing = _MISSING.search(error.message)
                if missing is None or missing[1] not in left:
                    break
                left.remove(missing[1])
                continue
            with self._calls.understood("DescribeRepositories"):
                found |= {info.name: info for info in map(self._remember, answer["repositories"])}
            return
        async with anyio.create_task_group() as tg:
            for name in left:
                tg.start_soon(self._ask_for, [name], found, at_once)

    def _remember(self, repository: dict[str, Any]) -> RepositoryInfo:
        registry_id = str(repository.get("registryId") or "")
        self._seen = self._seen or registry_id or None
        return RepositoryInfo(
            str(repository.get("repositoryName") or ""),
            registry_id,
            str(repository.get("imageTagMutability") or "MUTABLE"),
            tuple(each["filter"] for each in repository.get("imageTagMutabilityExclusionFilters") or ()),
        )

    async def _put_policies(self, name: str, settings: RepositorySettings, *, only_missing: bool) -> bool:
        is_put = False
        for put in policies_of(settings, is_public=self._is_public):
            try:
                if only_missing and await self._has(name, put):
                    continue
                await self._calls.call(put.operation, repositoryName=name, **{put.member: put.text})
                is_put = True
            except RepositoryNotFoundError:
                raise
            except ServiceError as error:
                error.hint = f"{name} was created, but lacks it: correct the policy, or the caller's, and run it again"
                raise
        return is_put

    async def _has(self, name: str, put: PolicyPut) -> bool:
        try:
            await self._calls.call(put.look, repositoryName=name)
        except ServiceError as error:
            if error.code != put.missing:
                raise
            return False
        return True

    async def _ask_caller(self) -> str | None:
        operation: Literal["DescribeRegistry", "DescribeRegistries"]
        operation = "DescribeRegistries" if self._is_public else "DescribeRegistry"
        try:
            answer = await self._calls.call(operation)
        except ServiceError as error:
            if error.code not in _UNKNOWN:
                raise
        else:
            with self._calls.understood(operation):
                registry = answer["registries"][0] if self._is_public else answer
                return str(registry["registryId"])
        return await self._account_of_login() or await self._account_of_any() or await self._identity.account()

    async def _account_of_any(self) -> str | None:
        """The account of any repository; another registry's are not the caller's."""
        if self._calls.registry_id:
            return None
        try:
            answer = await self._calls.call("DescribeRepositories", maxResults=1)
        except ServiceError as error:
            if error.code not in _UNKNOWN:
                raise
            return None
        with self._calls.understood("DescribeRepositories"):
            return next((self._remember(each).registry_id for each in answer["repositories"]), None)

    async def _account_of_login(self) -> str | None:
        """The account in the address that ECR gives out with a password; ECR Public gives none."""
        if self._is_public:
            return None
        try:
            return account_of(await self._login.endpoint())
        except ServiceError as error:
            if error.code not in _UNKNOWN | {UNEXPECTED_ANSWER}:
                raise
            return None

    async def _ask_templates(self) -> frozenset[str]:
        prefixes: set[str] = set()
        operation = "DescribeRepositoryCreationTemplates"
        try:
            async for template in self._pages(operation, "repositoryCreationTemplates"):
                with self._calls.understood(operation):
                    if "CREATE_ON_PUSH" in template.get("appliedFor", ()):
                        prefixes.add(template["prefix"])
        except ServiceError as error:
            if error.code not in _UNKNOWN:
                raise
        return frozenset(prefixes)

    async def _ask_mounting(self) -> bool | None:
        try:
            answer = await self._calls.call("GetAccountSetting", name="BLOB_MOUNTING")
        except ServiceError as error:
            if error.code not in _UNKNOWN:
                raise
            return None
        return answer.get("value") == "ENABLED"

    async def _pages(self, operation: str, member: str) -> AsyncIterator[dict[str, Any]]:
        token: dict[str, str] = {}
        while True:
            answer = await self._calls.call(operation, maxResults=PAGE_SIZE, **token)
            with self._calls.understood(operation):
                entries = list(answer[member])
            for entry in entries:
                yield entry
            if not answer.get("nextToken"):
                return
            token = {"nextToken": answer["nextToken"]}


@dataclass(frozen=True, slots=True)
class PolicyPut:
    """A policy that a new repository gets.

    Attributes:
        operation: puts it.
        member: has its text.
        look: finds it.
        missing: the code of *look* where there is none.
        text: its JSON.
    """

    operation: str
    member: str
    look: str
    missing: str
    text: str


def creation_members(settings: RepositorySettings, *, is_public: bool) -> dict[str, Any]:
    """The members of CreateRepository; ECR Public's model has resource tags alone."""
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


def policies_of(settings: RepositorySettings, *, is_public: bool) -> list[PolicyPut]:
    """The policies to put once it is created; ECR Public has no lifecycle policies."""
    puts = []
    if settings.policy is not None:
        names = ("SetRepositoryPolicy", "policyText", "GetRepositoryPolicy", "RepositoryPolicyNotFoundException")
        puts.append(PolicyPut(*names, settings.policy))
    if settings.lifecycle_policy is not None and not is_public:
        names = ("PutLifecyclePolicy", "lifecyclePolicyText", "GetLifecyclePolicy", "LifecyclePolicyNotFoundException")
        puts.append(PolicyPut(*names, settings.lifecycle_policy))
    return puts


#: A network without STS must not hold up a run for long: it is asked last, and once.
_ASKING = Config(connect_timeout=5, read_timeout=10, retries={"mode": "standard", "total_max_attempts": 2})


@dataclass(frozen=True, slots=True)
class CallerIdentity:
    """Asks STS, with the credentials of a client.

    Attributes:
        client: a client of ECR that ``open_client`` has opened.
        aws: what is set over the AWS configuration of the environment.
    """

    client: Any = field(repr=False)
    aws: AwsConfiguration

    async def account(self) -> str | None:
        """The caller's account; None if STS refuses, or can't be reached."""
        keys = await signing(self.client).get_frozen_credentials()
        try:
            return await to_thread.run_sync(self._ask, keys)
        except (AsyncpushError, ResponseParserError):
            return None

    def _ask(self, keys: Any) -> str | None:
        region, endpoint = self.client.meta.region_name, self.client.meta.endpoint_url
        session = configured(botocore.session.Session(session_vars=variables()), self.aws, region)
        session.register("before-send", lambda **_: from_thread.check_cancelled())

        def opened(endpoint_url: str | None) -> Any:
            with readable_configuration():
                return session.create_client(
                    "sts",
                    region_name=region,
                    endpoint_url=endpoint_url,
                    aws_access_key_id=keys.access_key,
                    aws_secret_access_key=keys.secret_key,
                    aws_session_token=keys.token,
                    config=_ASKING,
                )

        sts = opened(None)
        if is_aws(sts.meta.endpoint_url) and not is_aws(endpoint):
            # AWS does not know the keys of whoever stands in for ECR, and they are not meant for it.
            sts.close()
            sts = opened(endpoint)
        try:
            with translated("GetCallerIdentity", sts.meta.endpoint_url):
                account = sts.get_caller_identity().get("Account")
        finally:
            sts.close()
        return account if isinstance(account, str) and account else None
