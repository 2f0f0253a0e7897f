"""Passwords for ECR's ``/v2/``: asked for once, kept, and renewed well before they end."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime

import anyio
import pybase64

from asyncpush.ecr.client import EcrClient
from asyncpush.ecr.rate_limit import Pace
from asyncpush.ecr.retry import RetryingSender
from asyncpush.ecr.session import Transport, open_client
from asyncpush.errors import ConfigurationError, InvalidReferenceError, RegistryError
from asyncpush.events import Emit, ignore
from asyncpush.protocols import Login
from asyncpush.reference import RegistryName, parse_registry
from asyncpush.settings import AwsConfiguration, Credentials, RetryPolicy, Settings, SourceRegistry

#: Seconds before its end that a password is renewed; of one that lasts less than twice as long, half of its life.
_MARGIN = 3600.0
#: Seconds after which a renewal that failed is tried again, while the old password still opens.
_PAUSE = 60.0

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class _Grant:
    """A password as ECR gave it out; times in seconds since 1970."""

    credentials: Credentials
    endpoint: str
    renew: float
    end: float


class EcrLogin:
    """Credentials for ``/v2/`` from GetAuthorizationToken (a ``Login``), of ECR or ECR Public.

    One password opens every registry that the caller may use, for 12 hours.

    Args:
        calls: asks for them.
        clock: tells the time in seconds since 1970.
    """

    def __init__(self, calls: EcrClient, *, clock: Clock = time.time) -> None:
        self._calls = calls
        self._clock = clock
        self._grant: _Grant | None = None
        self._renewing = anyio.Lock()

    async def __call__(self) -> Credentials:
        """Credentials that are good for a while yet; ECR is asked for new ones once, however many wait for them.

        Raises:
            RegistryError: ECR refuses, or can't be reached.
            ConfigurationError: there are no AWS credentials.
        """
        return (await self._current()).credentials

    async def renewed(self, refused: Credentials) -> Credentials:
        """Other credentials than *refused*, which a registry did not take.

        Raises:
            RegistryError: ECR refuses, or can't be reached.
        """
        async with self._renewing:
            if self._grant is not None and self._grant.credentials == refused:
                self._grant = None
        return await self()

    async def endpoint(self) -> str:
        """The URL of the caller's own registry (proxyEndpoint); empty at ECR Public, which does not tell it."""
        return (await self._current()).endpoint

    async def _current(self) -> _Grant:
        if (grant := self._good()) is not None:
            return grant
        async with self._renewing:
            if (grant := self._good()) is not None:
                return grant
            try:
                self._grant = await self._ask()
            except RegistryError:
                now = self._clock()
                if self._grant is None or now >= self._grant.end:
                    raise
                self._grant = replace(self._grant, renew=now + _PAUSE)
            return self._grant

    def _good(self) -> _Grant | None:
        return self._grant if self._grant is not None and self._clock() < self._grant.renew else None

    async def _ask(self) -> _Grant:
        answer = await self._calls.call("GetAuthorizationToken")
        with self._calls.understood("GetAuthorizationToken"):
            # ECR answers a list with one entry, ECR Public the entry itself.
            data = answer["authorizationData"]
            entry = data[0] if isinstance(data, list) else data
            user, _, password = pybase64.b64decode(entry["authorizationToken"], validate=True).decode().partition(":")
            expires: datetime = entry["expiresAt"]
            end, endpoint = expires.timestamp(), str(entry.get("proxyEndpoint") or "")
            if not user or not password:
                raise ValueError("a token is USER:PASSWORD")
        life = end - self._clock()
        return _Grant(Credentials(user, password), endpoint, end - min(_MARGIN, life / 2), end)


Logins = Callable[[SourceRegistry], Login | None]


#: ECR Public's host, and the region of its API.
_PUBLIC = RegistryName("ecr-public", region="us-east-1", host="public.ecr.aws")


class _LazyLogin:
    """A login whose client is opened when it is first asked (a ``Login``)."""

    def __init__(
        self, registry: RegistryName, aws: AwsConfiguration, stack: AsyncExitStack, settings: Settings, emit: Emit
    ) -> None:
        self._registry = registry
        self._aws = aws
        self._stack = stack
        self._settings = settings
        self._emit = emit
        self._opening = anyio.Lock()
        self._login: EcrLogin | None = None
        self._problem: ConfigurationError | None = None
        self._tried_again_at = 0.0

    async def __call__(self) -> Credentials:
        """Credentials that are good for a while yet.

        Raises:
            ConfigurationError: there are no AWS credentials.
            RegistryError: ECR refuses, or can't be reached.
        """
        async with self._opening:
            if self._problem is not None and time.monotonic() < self._tried_again_at:
                raise self._problem  # once for all images: a process may take its time to fail
            if self._login is None:
                transport = Transport(read_timeout=self._settings.retry.read)
                opening = open_client(self._registry, self._aws, 1, transport)
                try:
                    client = await self._stack.enter_async_context(opening)
                except ConfigurationError as error:
                    self._problem, self._tried_again_at = error, time.monotonic() + _PAUSE
                    raise
                pace = Pace(self._registry.service, client.meta.endpoint_url)
                settings = self._settings
                retries = RetryingSender(settings.max_attempts, self._emit, pace, RetryPolicy.of(settings))
                self._login = EcrLogin(EcrClient(client, None, retries))
        return await self._login()


@asynccontextmanager
async def open_logins(settings: Settings | None = None, emit: Emit = ignore) -> AsyncIterator[Logins]:
    """Open what answers with the login of a registry that images are read from.

    ``logins(source)`` is a ``Login`` where *source* is a private ECR registry or names an AWS configuration
    (``SourceRegistry.aws``), and None elsewhere; so for ECR Public, whose images need no login, unless it names one.
    The same registry and configuration have the same login. Its client is opened when it is first asked, and closed
    with the block.

    Args:
        settings: how hard to try.
        emit: hears of requests and retries.
    """
    found: dict[tuple[RegistryName, AwsConfiguration], Login] = {}
    async with AsyncExitStack() as stack:

        def logins(source: SourceRegistry) -> Login | None:
            registry = _registry_of(source)
            if registry is None:
                return None
            key = (registry, source.aws or AwsConfiguration())
            if key not in found:
                found[key] = _LazyLogin(*key, stack, settings or Settings(), emit)
            return found[key]

        yield logins


def _registry_of(source: SourceRegistry) -> RegistryName | None:
    if source.host == _PUBLIC.host:
        return _PUBLIC if source.aws else None
    try:
        return parse_registry(source.host)
    except InvalidReferenceError:
        return RegistryName() if source.aws else None
