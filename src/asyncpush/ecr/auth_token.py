"""Credentials for ECR's ``/v2/`` (GetAuthorizationToken): requested once, cached, and renewed before they expire."""

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
from asyncpush.reference import ECR_PUBLIC, RegistryName, parse_registry
from asyncpush.settings import AwsConfiguration, Credentials, RetryPolicy, Settings, SourceRegistry

#: Seconds before its expiry that a token is renewed; one that lasts less than twice as long, at half-life.
_RENEWAL_MARGIN = 3600.0
#: Seconds after which a failed renewal is tried again, while the old token is valid.
_RENEWAL_PAUSE = 60.0

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class _Token:
    """A token as ECR returned it; times in seconds since 1970."""

    credentials: Credentials
    endpoint: str
    renew_at: float
    expires_at: float


class EcrLogin:
    """Credentials for ``/v2/`` from GetAuthorizationToken (a ``Login``), of ECR or ECR Public.

    One token is valid for every registry that the caller may use, for 12 hours.

    Args:
        api: sends requests to ECR's API.
        clock: returns the time in seconds since 1970.
    """

    def __init__(self, api: EcrClient, *, clock: Clock = time.time) -> None:
        self._api = api
        self._clock = clock
        self._token: _Token | None = None
        self._lock = anyio.Lock()

    async def __call__(self) -> Credentials:
        """Credentials that remain valid for some time; concurrent callers share one request for new ones.

        Raises:
            RegistryError: ECR refuses, or can't be reached.
            ConfigurationError: there are no AWS credentials.
        """
        return (await self._current()).credentials

    async def renewed(self, refused: Credentials) -> Credentials:
        """Credentials other than *refused*, which a registry did not accept.

        Raises:
            RegistryError: ECR refuses, or can't be reached.
        """
        async with self._lock:
            if self._token is not None and self._token.credentials == refused:
                self._token = None
        return await self()

    async def endpoint(self) -> str:
        """The URL of the caller's own registry (proxyEndpoint); empty at ECR Public, which returns none."""
        return (await self._current()).endpoint

    async def _current(self) -> _Token:
        if (token := self._fresh_token()) is not None:
            return token
        async with self._lock:
            if (token := self._fresh_token()) is not None:
                return token
            try:
                self._token = await self._request_token()
            except RegistryError:
                now = self._clock()
                if self._token is None or now >= self._token.expires_at:
                    raise
                self._token = replace(self._token, renew_at=now + _RENEWAL_PAUSE)
            return self._token

    def _fresh_token(self) -> _Token | None:
        return self._token if self._token is not None and self._clock() < self._token.renew_at else None

    async def _request_token(self) -> _Token:
        answer = await self._api.call("GetAuthorizationToken")
        with self._api.parsing("GetAuthorizationToken"):
            # ECR returns a list with one entry, ECR Public the entry itself.
            data = answer["authorizationData"]
            entry = data[0] if isinstance(data, list) else data
            user, _, password = pybase64.b64decode(entry["authorizationToken"], validate=True).decode().partition(":")
            expiry: datetime = entry["expiresAt"]
            expires_at, endpoint = expiry.timestamp(), str(entry.get("proxyEndpoint") or "")
            if not user or not password:
                raise ValueError("a token is USER:PASSWORD")
        lifetime = expires_at - self._clock()
        return _Token(
            Credentials(user, password), endpoint, expires_at - min(_RENEWAL_MARGIN, lifetime / 2), expires_at
        )


Logins = Callable[[SourceRegistry], Login | None]


#: ECR Public's host, and the region of its API.
_PUBLIC = RegistryName("ecr-public", region="us-east-1", host=ECR_PUBLIC)


class _LazyLogin:
    """A login whose client is opened at the first call (a ``Login``)."""

    def __init__(
        self, registry: RegistryName, aws: AwsConfiguration, stack: AsyncExitStack, settings: Settings, emit: Emit
    ) -> None:
        self._registry = registry
        self._aws = aws
        self._stack = stack
        self._settings = settings
        self._emit = emit
        self._lock = anyio.Lock()
        self._login: EcrLogin | None = None
        self._error: ConfigurationError | None = None
        self._retry_at = 0.0

    async def __call__(self) -> Credentials:
        """Credentials that remain valid for some time.

        Raises:
            ConfigurationError: there are no AWS credentials.
            RegistryError: ECR refuses, or can't be reached.
        """
        async with self._lock:
            if self._error is not None and time.monotonic() < self._retry_at:
                raise self._error  # not once an image: a credential_process may take long to fail
            if self._login is None:
                transport = Transport(read_timeout=self._settings.retry.read)
                opening = open_client(self._registry, self._aws, 1, transport)
                try:
                    client = await self._stack.enter_async_context(opening)
                except ConfigurationError as error:
                    self._error, self._retry_at = error, time.monotonic() + _RENEWAL_PAUSE
                    raise
                pace = Pace(self._registry.service, client.meta.endpoint_url)
                settings = self._settings
                sender = RetryingSender(settings.max_attempts, self._emit, pace, RetryPolicy.of(settings))
                self._login = EcrLogin(EcrClient(client, None, sender))
        return await self._login()


@asynccontextmanager
async def open_logins(settings: Settings | None = None, emit: Emit = ignore) -> AsyncIterator[Logins]:
    """Open a function that returns the login of a registry from which images are read.

    ``logins(source)`` is a ``Login`` if *source* is a private ECR registry or names an AWS configuration
    (``SourceRegistry.aws``), otherwise None. So it is None for ECR Public, whose images need no login, unless the
    source names a configuration. The same registry and configuration share one login, whose client is opened at its
    first call, and closed with the block.

    Args:
        settings: how often, and for how long, requests are retried.
        emit: receives requests and retries.
    """
    opened: dict[tuple[RegistryName, AwsConfiguration], Login] = {}
    async with AsyncExitStack() as stack:

        def logins(source: SourceRegistry) -> Login | None:
            registry = _registry_of(source)
            if registry is None:
                return None
            key = (registry, source.aws or AwsConfiguration())
            if key not in opened:
                opened[key] = _LazyLogin(*key, stack, settings or Settings(), emit)
            return opened[key]

        yield logins


def _registry_of(source: SourceRegistry) -> RegistryName | None:
    if source.host == _PUBLIC.host:
        return _PUBLIC if source.aws else None
    try:
        return parse_registry(source.host)
    except InvalidReferenceError:
        return RegistryName() if source.aws else None
