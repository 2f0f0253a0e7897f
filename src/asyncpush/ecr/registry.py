"""One registry over one connection: its repositories, its settings, its passwords, and the paces that all share."""

from __future__ import annotations

from typing import Any

from asyncpush.ecr.admin import CallerIdentity, EcrAdmin
from asyncpush.ecr.auth_token import EcrLogin
from asyncpush.ecr.client import EcrClient
from asyncpush.ecr.http_session import EcrHttp
from asyncpush.ecr.mount import Mounts
from asyncpush.ecr.rate_limit import Pace
from asyncpush.ecr.reader import EcrReader
from asyncpush.ecr.repository import EcrRepository
from asyncpush.ecr.retry import RetryingSender
from asyncpush.ecr.session import registry_address, registry_host
from asyncpush.events import Emit
from asyncpush.http.retry import HostBackoff
from asyncpush.reference import RegistryName
from asyncpush.settings import AwsConfiguration, RetryPolicy, Settings


class EcrRegistry:
    """A registry of ECR or ECR Public.

    Args:
        client: an aiobotocore client that ``wire.install`` has prepared.
        name: the registry, as it was asked for.
        aws: what is set over the AWS configuration of the environment.
        http: sends what goes past the API.
        settings: how often, and how long, a request is sent again.
        emit: hears of requests and retries.

    Attributes:
        name: the registry, as it was asked for.
        pace: how fast the requests of each operation may go.
        admin: its repositories and settings.
        login: the password of its ``/v2/``.
        address: what the addresses of its repositories begin with.
    """

    def __init__(
        self, client: Any, name: RegistryName, aws: AwsConfiguration, http: EcrHttp, *, settings: Settings, emit: Emit
    ) -> None:
        self.name = name
        self.pace = Pace(name.service, client.meta.endpoint_url, slowest_rate=settings.retry.slowest_rate)
        self._client = client
        self._http = http
        self._hosts: list[HostBackoff] = []

        def retries() -> RetryingSender:
            sender = RetryingSender(settings.max_attempts, emit, self.pace, RetryPolicy.of(settings))
            self._hosts.append(sender.host)
            return sender

        self._calls = EcrClient(client, name.id, retries(), settings.signature_lifetime)
        # Other hosts than the API's, and each may be out of reach, or be reached, on its own.
        self._downloads = retries()
        self.login = EcrLogin(self._calls)
        self.admin = EcrAdmin(self._calls, self.login, CallerIdentity(client, aws))
        self._mounts = Mounts(
            self._calls,
            name,
            login=self.login,
            http=http,
            retries=retries(),
            account=self.admin.account,
        )
        self.address = registry_address(client, name, name.id)

    async def account(self) -> str | None:
        """Whose registry it is; from now on the addresses of repositories say so.

        Raises:
            RegistryError: ECR can't be reached.
        """
        account = await self.admin.account()
        self.address = registry_address(self._client, self.name, account)
        return account

    @property
    def host_with_account(self) -> str:
        """How to write the registry so that it says whose it is."""
        return "public.ecr.aws/ALIAS" if self.name.service == "ecr-public" else registry_host(self._client, "ACCOUNT")

    def wait_again(self) -> None:
        """Wait for hosts once more that were silent for too long."""
        for host in self._hosts:
            host.renew()

    def repository(self, name: str) -> EcrRepository:
        """The repository called *name*; nothing is asked yet."""
        return EcrRepository(self._calls, name, registry=self.address, mounts=self._mounts)

    def reader(self, name: str) -> EcrReader:
        """What reads repository *name* back; nothing is asked yet."""
        return EcrReader(self._calls, name, http=self._http, retries=self._downloads)
