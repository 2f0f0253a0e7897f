"""Logins for registries that images are read from, and that AWS credentials open: ECR's own, and those said to be."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import anyio

from asyncpush.administration import Login
from asyncpush.ecr.calls import Calls
from asyncpush.ecr.login import EcrLogin
from asyncpush.ecr.pace import Pace
from asyncpush.ecr.retry import Retries
from asyncpush.ecr.session import open_client
from asyncpush.errors import ConfigurationError, InvalidReferenceError
from asyncpush.events import Emit, ignore
from asyncpush.reference import RegistryName, parse_registry
from asyncpush.retry import HostBackoff
from asyncpush.settings import AwsConfiguration, Credentials, Settings, SourceRegistry

Logins = Callable[[SourceRegistry], Login | None]

#: Seconds after which credentials that were not to be had are looked for again.
_PAUSE = 60.0

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
                try:
                    client = await self._stack.enter_async_context(open_client(self._registry, self._aws, 1))
                except ConfigurationError as error:
                    self._problem, self._tried_again_at = error, time.monotonic() + _PAUSE
                    raise
                pace = Pace(self._registry.service, client.meta.endpoint_url)
                host = HostBackoff(self._settings.max_outage)
                retries = Retries(self._settings.max_attempts, self._emit, pace, host)
                self._login = EcrLogin(Calls(client, None, retries))
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
