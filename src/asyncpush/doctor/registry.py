"""The checks of one registry of ECR: credentials, region, endpoint, clock, account, repositories and permissions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any

import botocore.exceptions as bce
from anyio import CapacityLimiter, create_task_group, move_on_after, to_thread

from asyncpush.doctor.findings import Check, Finding, Section, Status, problem, run_check, run_checks
from asyncpush.doctor.machine import Host
from asyncpush.doctor.permissions import DENIED, PERMISSIONS, Feature, Permission, Task, judge, permissions_of
from asyncpush.doctor.quotas import check_quotas
from asyncpush.ecr.client import EcrClient
from asyncpush.ecr.credential_providers import FoundCredentials
from asyncpush.ecr.credentials import credentials_of, open_credentials
from asyncpush.ecr.errors import verdict
from asyncpush.ecr.http_session import EcrHttp, open_http
from asyncpush.ecr.regions import is_aws, sibling_regions, unknown_region_hint
from asyncpush.ecr.registry import EcrRegistry
from asyncpush.ecr.retry import RetryingSender
from asyncpush.ecr.session import Transport, open_client, registry_host
from asyncpush.ecr.v2 import V2Request
from asyncpush.errors import (
    AsyncpushError,
    ConfigurationError,
    ConnectionFailedError,
    CredentialsError,
    CredentialsExpiredError,
    CredentialsRefusedError,
    RepositoryNotFoundError,
    ServiceError,
    foreseen,
)
from asyncpush.events import ignore
from asyncpush.redaction import without_user
from asyncpush.reference import RegistryName
from asyncpush.settings import SIGNATURE_LIFETIME, AwsConfiguration, RetryPolicy, Settings, TransportChoice
from asyncpush.units import some_text, time_text

#: Connections of the checks of one registry.
_CONNECTIONS = 16
#: Regions that are asked at once whether they have a repository.
_REGIONS_AT_ONCE = 8
#: Names that one line lists.
_SHOWN_NAMES = 5

#: Seconds by which the clocks may differ without a note; the Date of an answer has whole seconds, and it took a while.
_CLOCK_TOLERANCE = 30.0
#: Seconds below which credentials are said to end soon: a large migration takes as long.
_SHORT_LIFETIME = 900.0

#: The share of a check's limit that one try of a request may take, and that the search in other regions may take.
_TRY_SHARE = 0.4
_SEARCH_SHARE = 0.9

#: botocore's names of the providers that ask STS for credentials.
_STS_PROVIDERS = frozenset({"assume-role", "assume-role-with-web-identity"})

#: What to do about a provider of credentials that does not answer.
_IF_SLOW = "run the profile's credential_process by hand, or check the network to STS, SSO or the metadata service"

#: The actions that other checks try.
_TRIED = frozenset({"GetAuthorizationToken", "DescribeRepositories", "GetAccountSetting"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrySubject:
    """A registry to check, and what for.

    Attributes:
        title: its name in the result.
        registry: the registry.
        aws: overrides of the AWS configuration.
        task: what is to be done there.
        repositories: the repositories that the task uses.
        creates: those that the task creates if they are missing.
        features: what a plan asks for.
        transport: how layers are sent.
    """

    title: str
    registry: RegistryName
    aws: AwsConfiguration
    task: Task
    repositories: tuple[str, ...] = ()
    creates: frozenset[str] = frozenset()
    features: frozenset[Feature] = frozenset()
    transport: TransportChoice = "api"


@dataclass(frozen=True, slots=True)
class RegistryReport:
    """The findings about a registry, and the hosts that its tasks need."""

    section: Section
    hosts: tuple[Host | None, ...] = ()


async def check_registry(subject: RegistrySubject, limit: float, credentials_limit: float) -> RegistryReport:
    """Check a registry; each check takes at most *limit* seconds.

    Args:
        subject: the registry.
        limit: seconds for each check.
        credentials_limit: seconds for the credentials, whose provider may ask for a code at the terminal.
    """
    clients: list[Any] = []
    async with AsyncExitStack() as stack:

        async def find_credentials() -> Sequence[Finding]:
            opened = await stack.enter_async_context(open_credentials(subject.aws, subject.registry.region))
            return [_describe_credentials(opened.found)]

        async def connect() -> Sequence[Finding]:
            client, findings = await _open_client(subject, stack, limit, signed=has_credentials)
            if client is not None:
                clients.append(client)
            return findings

        found = list(await run_check(Check("credentials", find_credentials, _IF_SLOW), credentials_limit))
        has_credentials = found[0].status != "problem"
        causes = {finding.text for finding in found}
        found += [each for each in await run_check(Check("region", connect), limit) if each.text not in causes]
        if not clients or not has_credentials:
            found.append(_untried(subject))
            hosts = tuple(Host.of(client.meta.endpoint_url, "ECR's API") for client in clients)
            return RegistryReport(Section(subject.title, tuple(found)), hosts)
        http = await stack.enter_async_context(open_http(clients[0], _CONNECTIONS, limit))
        connected = _Connected(subject, clients[0], http, limit)
        found += await connected.run()
        if any(finding.name == "credentials" for finding in found[1:]):
            del found[0]  # the endpoint refuses what the provider gave
        return RegistryReport(Section(subject.title, tuple(found)), connected.hosts())


async def _open_client(
    subject: RegistrySubject, stack: AsyncExitStack, limit: float, *, signed: bool
) -> tuple[Any, Sequence[Finding]]:
    """A client, and what that says about the region; None if there can be none."""
    transport = Transport(read_timeout=limit, signed=signed)
    try:
        client = await stack.enter_async_context(open_client(subject.registry, subject.aws, _CONNECTIONS, transport))
    except ConfigurationError as error:
        is_region = isinstance(error.__cause__, (bce.NoRegionError, bce.InvalidRegionError))
        return None, [problem("region" if is_region else "endpoint", error)]
    origin = "from --region or the plan" if subject.aws.region else "from the AWS configuration"
    origin = "which the registry's host names" if subject.registry.region else origin
    hint = await to_thread.run_sync(unknown_region_hint, client.meta.endpoint_url)
    # Newer regions than botocore's may exist.
    return client, [Finding("region", "note" if hint else "ok", f"{client.meta.region_name}, {origin}", hint)]


def _untried(subject: RegistrySubject) -> Finding:
    service = subject.registry.service
    names = [f"{service}:{each.operation}" for each in permissions_of(subject.task, service, subject.features)]
    return Finding("permissions", "unknown", f"not tried, because of the above: {', '.join(names)}")


def _describe_credentials(found: FoundCredentials) -> Finding:
    if found.expires_at is not None:
        left = found.expires_at - time.time()
        until = f"{datetime.fromtimestamp(found.expires_at, UTC):%Y-%m-%dT%H:%M:%SZ}"
        text = f"from {found.provider}; they last {time_text(left)}, until {until}"
        if left >= _SHORT_LIFETIME:
            return Finding("credentials", "ok", text)
        return Finding("credentials", "note", text, "renew them before a long run, unless their provider does")
    if found.keys.token:
        text = f"from {found.provider}; they are temporary, and do not say how long they last"
        return Finding("credentials", "note", text, "renew them before a long run")
    return Finding("credentials", "ok", f"from {found.provider}; they do not expire")


class _Connected:
    """The checks over an open client."""

    def __init__(self, subject: RegistrySubject, client: Any, http: EcrHttp, limit: float) -> None:
        self._subject = subject
        self._client = client
        self._http = http
        self._limit = limit
        self._service = subject.registry.service
        self._skew: float | None = None
        self._has_answered = False
        self._has_token = True
        self._caller: str | None = None
        self._present: list[str] = []
        self._missing: list[str] = []
        # Two tries fit into the limit.
        wait = limit * _TRY_SHARE
        retry = replace(
            RetryPolicy(), answer=wait, read=wait, note_after=limit, outage=wait, throttled=wait, longest_wait=wait / 4
        )
        self._settings = Settings(max_attempts=2, max_outage=wait, retry=retry)
        self._registry = self._connect(subject.registry)
        self._own = self._connect(replace(subject.registry, id=None, host=""))
        self._api = EcrClient(client, subject.registry.id, RetryingSender(2, ignore, self._registry.pace, retry))
        client.meta.events.register("after-call", self._note_answer)

    def _connect(self, name: RegistryName) -> EcrRegistry:
        return EcrRegistry(self._client, name, self._subject.aws, self._http, settings=self._settings, emit=ignore)

    def _note_answer(self, http_response: Any, **_: Any) -> None:
        """Compare the clocks: botocore calls this with each answer, an error's, too."""
        self._has_answered = True
        date = http_response.headers.get("Date")
        with suppress(ValueError):
            self._skew = time.time() - parsedate_to_datetime(date).timestamp() if date else self._skew

    async def run(self) -> list[Finding]:
        """All findings; what depends on a failed check is not tried."""
        subject, limit = self._subject, self._limit
        permissions = permissions_of(subject.task, self._service, subject.features)
        if subject.task == "verify" and self._service == "ecr-public":
            text = "images in ECR Public can't be verified: its API returns no manifests"
            return [Finding("task", "problem", text, "pull the image by its digest instead")]
        found = list(await run_check(Check("endpoint", partial(self._check_endpoint, permissions)), limit))
        found += self._check_clock()
        if any(each.status == "problem" and each.name in ("endpoint", "credentials", "clock") for each in found):
            return [*found, _untried(subject)]
        checks = [Check("account", self._check_account), Check("repositories", self._check_repositories)]
        if subject.task != "verify":
            checks.append(Check("quotas", partial(check_quotas, self._client, subject.aws)))
            if self._service == "ecr":
                checks.append(Check("/v2/", self._check_v2))
        if any(permission.operation == "GetAccountSetting" for permission in permissions):
            checks.append(Check("BLOB_MOUNTING", self._check_mounting))
        found += await run_checks(checks, limit)
        if self._service == "ecr" and self._unexpectedly_missing():
            found += await run_check(Check("other regions", self._check_other_regions), limit)
        return found + await self._try_permissions(permissions)

    def hosts(self) -> tuple[Host | None, ...]:
        """The hosts that the task needs."""
        url, subject = self._client.meta.endpoint_url, self._subject
        hosts = [Host.of(url, "ECR's API")]
        if not is_aws(url):
            return tuple(hosts)
        region, account = self._client.meta.region_name, subject.registry.id or self._caller
        if self._service == "ecr" and account and subject.task != "verify":
            name = subject.registry.host or registry_host(self._client, account)
            is_required = subject.transport == "v2"
            hosts.append(Host(name, 443, "/v2/, for transport v2 and mounted layers", is_required=is_required))
        domain = registry_host(self._client, "").partition(f".{region}.")[2]
        if self._service == "ecr" and subject.task == "verify":
            bucket = f"prod-{region}-starport-layer-bucket.s3.{region}.{domain}"
            hosts.append(Host(bucket, 443, "layers, for verify --deep", is_required=False))
        if credentials_of(self._client).found.method in _STS_PROVIDERS:
            hosts.append(Host(f"sts.{region}.{domain}", 443, "new credentials of the role", is_required=False))
        return tuple(hosts)

    async def _check_endpoint(self, permissions: Sequence[Permission]) -> Sequence[Finding]:
        """Send the first request: GetAuthorizationToken, which needs no repository."""
        url = without_user(self._client.meta.endpoint_url)
        permission = next((each for each in permissions if each.operation == "GetAuthorizationToken"), None)
        error: ServiceError | None = None
        started = time.monotonic()
        try:
            await self._api.call("GetAuthorizationToken")
        except (CredentialsRefusedError, CredentialsExpiredError, CredentialsError) as refusal:
            endpoint = [Finding("endpoint", "ok", f"{url} answers")] if self._has_answered else []
            return [*endpoint, problem("credentials", refusal)]
        except ConnectionFailedError as failure:
            return [problem("endpoint", failure)]
        except ServiceError as answer:
            if verdict(answer) == "transient" or answer.code.isdecimal():
                return [problem("endpoint", answer)]
            error = answer
        found = [Finding("endpoint", "ok", f"{url} answers after {1000 * (time.monotonic() - started):.0f} ms")]
        if error is not None and error.code not in DENIED and not self._is_clock_wrong:
            found = [Finding("endpoint", "note", f"{url} answers, but {error.message}", error.hint)]
        if permission is None or self._is_clock_wrong:
            return found
        judged = judge(permission, self._subject.task, self._service, "", error)
        self._has_token = judged.status == "ok"
        if judged.status == "note" and self._subject.transport == "v2":
            judged = replace(judged, status="problem")
        return [*found, judged]

    @property
    def _is_clock_wrong(self) -> bool:
        return self._skew is not None and abs(self._skew) >= SIGNATURE_LIFETIME

    def _check_clock(self) -> Sequence[Finding]:
        if not self._has_answered:
            return [Finding("clock", "unknown", "there is no answer to compare it with")]
        if self._skew is None:
            return [Finding("clock", "unknown", "the answer has no Date to compare it with")]
        if abs(self._skew) <= _CLOCK_TOLERANCE:
            return [Finding("clock", "ok", "this machine's clock agrees with the endpoint's")]
        direction = "ahead of" if self._skew > 0 else "behind"
        text = (
            f"this machine's clock is {time_text(abs(self._skew))} {direction} the endpoint's; AWS accepts "
            f"{SIGNATURE_LIFETIME / 60:g} minutes"
        )
        status: Status = "problem" if self._is_clock_wrong else "note"
        return [Finding("clock", status, text, "set the clock: turn NTP on (timedatectl set-ntp true)")]

    async def _check_account(self) -> Sequence[Finding]:
        owner = self._subject.registry.id
        try:
            caller = self._caller = await self._own.account()
        except ServiceError as error:
            return [Finding("account", "unknown", error.message, error.hint)]
        if caller is None:
            text = "neither ECR nor STS names the caller's account"
            advice = None if owner else "write the registry with its account: a journal needs that"
            return [Finding("account", "note", text, advice)]
        if owner and owner != caller and self._service == "ecr":
            text = f"the registry belongs to {owner}, and the caller to {caller}"
            return [Finding("account", "note", text, "the policies of the repositories must allow the caller, too")]
        return [Finding("account", "ok", f"the caller belongs to {caller}")]

    async def _check_repositories(self) -> Sequence[Finding]:
        """Which repositories exist, by DescribeRepositories; by a layer operation if the caller may not use that."""
        names = self._subject.repositories
        permission = next(each for each in PERMISSIONS if each.operation == "DescribeRepositories")
        is_used = self._subject.task in permission.without
        found: list[Finding] = []
        try:
            if names:
                self._present = sorted(await self._registry.admin.repositories(names))
            else:
                await self._api.call("DescribeRepositories", maxResults=1)
        except ServiceError as error:
            if error.code not in DENIED:
                return [Finding("repositories", "unknown", error.message, error.hint)]
            if not names:
                text = "the caller may not list the registry, but may perhaps describe single repositories"
                return [Finding(f"{self._service}:DescribeRepositories", "unknown", text)]
            if is_used:
                found.append(judge(permission, self._subject.task, self._service, ", ".join(names[:1]), error))
            return [*await self._find_layers(names), *found]
        self._missing = [name for name in names if name not in self._present]
        if is_used and (self._present or not names):
            found.append(Finding(f"{self._service}:DescribeRepositories", "ok", "allowed"))
        elif is_used:
            # Which check comes first where nothing exists is not documented.
            text = "nothing exists to describe, so ECR's answer does not tell"
            found.append(Finding(f"{self._service}:DescribeRepositories", "unknown", text))
        return [*self._describe_repositories(), *found]

    def _describe_repositories(self) -> Sequence[Finding]:
        names, region = self._subject.repositories, self._client.meta.region_name
        if not names:
            return []
        if not self._missing:
            text = f"{names[0]} exists" if len(names) == 1 else f"all {len(names)} exist"
            return [Finding("repositories", "ok", f"{text} in {region}")]
        unexpected = self._unexpectedly_missing()
        listed = some_text(unexpected or self._missing, _SHOWN_NAMES)
        if not unexpected:
            text = f"{len(self._missing)} of {len(names)} are missing in {region} and will be created: {listed}"
            return [Finding("repositories", "ok", text)]
        advice = f"create it in {region}, or let the run create it with --create-repository"
        missing = f"{listed} does not exist" if len(unexpected) == 1 else f"{len(unexpected)} do not exist: {listed}"
        return [Finding("repositories", "problem", f"{missing} (region {region})", advice)]

    async def _find_layers(self, names: Sequence[str]) -> Sequence[Finding]:
        """Whether the first repository exists, for a caller who may not describe it."""
        if not names:
            return []
        try:
            await self._api.call(
                "BatchCheckLayerAvailability", repositoryName=names[0], layerDigests=[f"sha256:{'0' * 64}"]
            )
        except RepositoryNotFoundError:
            self._missing = [names[0]]
            return self._describe_repositories()
        except ServiceError as error:
            if error.code not in DENIED:
                return [Finding("repositories", "unknown", error.message, error.hint)]
            return [Finding("repositories", "unknown", f"the caller may not ask whether {names[0]} exists")]
        self._present = [names[0]]
        others = "" if len(names) == 1 else f"; whether the {len(names) - 1} others do is unknown"
        return [Finding("repositories", "ok" if len(names) == 1 else "unknown", f"{names[0]} exists{others}")]

    def _unexpectedly_missing(self) -> list[str]:
        return [name for name in self._missing if name not in self._subject.creates]

    async def _check_other_regions(self) -> Sequence[Finding]:
        """In which other regions of the partition the first missing repository exists."""
        name = self._unexpectedly_missing()[0]
        regions = await to_thread.run_sync(sibling_regions, self._client.meta.region_name)
        answers: dict[str, bool] = {}
        limiter = CapacityLimiter(_REGIONS_AT_ONCE)

        async def ask(region: str) -> None:
            registry = RegistryName(id=self._subject.registry.id, region=region)
            async with limiter:
                with suppress(AsyncpushError), foreseen():
                    async with open_client(registry, self._subject.aws, 1, Transport(read_timeout=2.0)) as client:
                        sender = RetryingSender(1, ignore, self._registry.pace, self._settings.retry)
                        api = EcrClient(client, registry.id, sender)
                        try:
                            await api.send("DescribeRepositories", {"repositoryNames": [name]})
                            answers[region] = True
                        except RepositoryNotFoundError:
                            answers[region] = False

        with move_on_after(self._limit * _SEARCH_SHARE):
            async with create_task_group() as tg:
                for region in regions:
                    tg.start_soon(ask, region)
        elsewhere = sorted(region for region, exists in answers.items() if exists)
        if elsewhere:
            host, here = self._subject.registry.host, self._client.meta.region_name
            instead = f"write {host.replace(here, elsewhere[0])}" if host else f"give --region {elsewhere[0]}"
            text = f"{name} exists in {some_text(elsewhere, _SHOWN_NAMES)}"
            return [Finding("other regions", "note", text, f"if that is the one you mean, {instead}")]
        text = f"{name} exists in none of the {len(answers)} other regions that have answered"
        return [Finding("other regions", "ok" if len(answers) == len(regions) else "unknown", text)]

    async def _check_v2(self) -> Sequence[Finding]:
        """Whether the registry's ``/v2/`` accepts the caller's password."""
        is_required = self._subject.transport == "v2"
        if not self._has_token:
            text = f"not tried, since {self._service}:GetAuthorizationToken gives no password"
            return [Finding("/v2/", "unknown", text)]
        try:
            address = await self._registry.v2.address()
            if address is None:
                text = "its address is unknown, since the registry's account is"
                return [Finding("/v2/", "unknown", text, "write the registry with its account")]
            await self._registry.v2.send_once(address, V2Request("GET /v2/", "GET", "/v2/", frozenset({200})))
        except AsyncpushError as error:
            need = "--transport v2 needs it" if is_required else "only --transport v2 and mounted layers need it"
            advice = f"{error.hint}; {need}" if error.hint else need
            return [Finding("/v2/", "problem" if is_required else "note", error.message, advice)]
        return [Finding("/v2/", "ok", f"{without_user(address.base)}/v2/ accepts the caller")]

    async def _check_mounting(self) -> Sequence[Finding]:
        permission = next(each for each in PERMISSIONS if each.operation == "GetAccountSetting")
        owner = self._subject.registry.id
        try:
            if owner and await self._own.account() != owner:
                text = "the operation can't name another account's registry"
                return [Finding("BLOB_MOUNTING", "unknown", text, f"ask the owner, {owner}")]
            answer = await self._api.call("GetAccountSetting", name="BLOB_MOUNTING")
        except ServiceError as error:
            finding = judge(permission, self._subject.task, self._service, "", error)
            return [Finding("BLOB_MOUNTING", "unknown", "the account's setting can't be read"), finding]
        allowed = Finding(f"{self._service}:GetAccountSetting", "ok", "allowed")
        if answer.get("value") == "ENABLED":
            return [Finding("BLOB_MOUNTING", "ok", "on: a layer is sent once for all repositories"), allowed]
        advice = "turn it on: aws ecr put-account-setting --name BLOB_MOUNTING --value ENABLED"
        return [Finding("BLOB_MOUNTING", "note", "off: a layer is sent once for each repository", advice), allowed]

    async def _try_permissions(self, permissions: Sequence[Permission]) -> list[Finding]:
        """Try each action that no other check has tried, in a repository that exists.

        Where none is known to exist, nothing is tried that a creation template or a pull-through rule could answer by
        creating one.
        """
        left = [each for each in permissions if each.operation not in _TRIED]
        found: list[Finding] = []
        if not self._present:
            names = ", ".join(f"{self._service}:{each.operation}" for each in left if not each.is_global)
            left = [each for each in left if each.is_global]
            if self._subject.repositories:
                text = f"not tried since no repository is known to exist, and some calls might create one: {names}"
                found.append(Finding("permissions", "unknown", text))
            else:
                text, advice = f"not tried without a repository: {names}", "name one: asyncpush doctor REPOSITORY"
                found.append(Finding("permissions", "unknown", text, advice))
        return found + await run_checks([self._permission_check(each) for each in left], self._limit)

    def _permission_check(self, permission: Permission) -> Check:
        name = f"{self._service}:{permission.operation}"

        async def attempt() -> Sequence[Finding]:
            if permission.probe is None:
                return [Finding(name, "unknown", "no harmless call tells whether it is allowed")]
            repository = "" if permission.is_global else self._present[0]
            members = dict(permission.probe.members())
            if repository:
                members["repositoryName"] = repository
            error: AsyncpushError | None = None
            try:
                await self._api.call(permission.operation, **members)
            except AsyncpushError as failure:
                error = failure
            return [judge(permission, self._subject.task, self._service, repository, error)]

        return Check(name, attempt)
