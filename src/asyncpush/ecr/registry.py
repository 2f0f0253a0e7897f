"""One registry over one connection: its repositories, settings and login, and the rate limits that they share."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from asyncpush.ecr.admin import CallerIdentity, EcrAdmin
from asyncpush.ecr.auth_token import EcrLogin
from asyncpush.ecr.client import EcrClient
from asyncpush.ecr.http_session import EcrHttp
from asyncpush.ecr.rate_limit import Pace
from asyncpush.ecr.reader import EcrReader
from asyncpush.ecr.regions import is_aws
from asyncpush.ecr.repository import EcrRepository
from asyncpush.ecr.retry import RetryingSender
from asyncpush.ecr.session import registry_address, registry_host
from asyncpush.ecr.v2 import V2Endpoint
from asyncpush.ecr.v2_blobs import V2Blobs
from asyncpush.events import Emit
from asyncpush.http.retry import HostBackoff
from asyncpush.http.token_bucket import TokenBucket
from asyncpush.reference import RegistryName
from asyncpush.settings import AwsConfiguration, RetryPolicy, Settings


class EcrRegistry:
    """A registry of ECR or ECR Public.

    Args:
        client: an aiobotocore client that ``open_client`` has opened.
        name: the registry, as the user named it.
        aws: overrides the AWS configuration of the environment.
        http: sends the requests that botocore does not sign.
        settings: how often, and for how long, requests are retried.
        emit: receives requests and retries.
        brake: limits the bandwidth of all uploads together; None does not.

    Attributes:
        name: the registry, as the user named it.
        pace: the rate limiter of each operation.
        admin: the registry's repositories and settings.
        login: the credentials for its ``/v2/``.
        v2: its ``/v2/``.
        address: the address of the registry, with which its repositories' addresses begin.
    """

    def __init__(
        self,
        client: Any,
        name: RegistryName,
        aws: AwsConfiguration,
        http: EcrHttp,
        *,
        settings: Settings,
        emit: Emit,
        brake: TokenBucket | None = None,
    ) -> None:
        self.name = name
        self.pace = Pace(
            name.service,
            client.meta.endpoint_url,
            quotas=dict(settings.quotas),
            emit=emit,
            slowest_rate=settings.retry.slowest_rate,
            share=settings.quota_share,
            assumed=settings.assumes_quotas,
        )
        self._client = client
        self._http = http
        self._hosts: list[HostBackoff] = []

        def new_sender() -> RetryingSender:
            sender = RetryingSender(settings.max_attempts, emit, self.pace, RetryPolicy.of(settings))
            self._hosts.append(sender.host)
            return sender

        self._api = EcrClient(client, name.id, new_sender(), settings.signature_lifetime, brake)
        # Downloads and /v2/ have other hosts than the API's, each of which may be unreachable on its own.
        self._download_sender = new_sender()
        self.login = EcrLogin(self._api)
        self.admin = EcrAdmin(self._api, self.login, CallerIdentity(client, aws))
        self.v2 = V2Endpoint(
            self._api,
            name,
            login=self.login,
            http=http,
            sender=new_sender(),
            account=self.admin.account,
        )
        self._blobs = V2Blobs(self.v2, self._api.uplink, settings.transport, emit)
        self.address = registry_address(client, name, name.id)
        self._account = name.id

    async def account(self) -> str | None:
        """Find out the registry's account, which addresses of repositories contain from now on; None if it is unknown.

        Raises:
            RegistryError: ECR can't be reached.
        """
        self._account = await self.admin.account()
        self.address = registry_address(self._client, self.name, self._account)
        return self._account

    @property
    def host_with_account(self) -> str:
        """A pattern of the registry's host that includes the account, for messages."""
        return "public.ecr.aws/ALIAS" if self.name.service == "ecr-public" else registry_host(self._client, "ACCOUNT")

    @property
    def pull_host(self) -> str | None:
        """The host that images are pulled from, with the alias at ECR Public; at another endpoint than AWS's, its own.

        It is the one that the user named; otherwise it is known once an answer has named the account. None until then,
        and at an endpoint with a path, where no tool looks for ``/v2/``.
        """
        if self.name.host:
            return f"{self.name.host}/{self.name.id}" if self.name.service == "ecr-public" else self.name.host
        endpoint = urlsplit(self._api.endpoint_url)
        if not is_aws(self._api.endpoint_url):
            return None if endpoint.path.strip("/") else endpoint.netloc.rpartition("@")[2]
        account = self._account or self._api.account
        return registry_host(self._client, account) if account else None

    def wait_again(self) -> None:
        """Wait again for hosts that were given up because they did not answer."""
        for host in self._hosts:
            host.renew()

    def repository(self, name: str) -> EcrRepository:
        """The repository *name*; sends no request."""
        return EcrRepository(self._api, name, registry=self.address, pull_host=lambda: self.pull_host, v2=self._blobs)

    def reader(self, name: str) -> EcrReader:
        """A reader of repository *name*; sends no request."""
        return EcrReader(self._api, name, http=self._http, sender=self._download_sender)
