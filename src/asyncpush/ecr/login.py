"""Passwords for ECR's ``/v2/``: asked for once, kept, and renewed well before they end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

import anyio
import pybase64

from asyncpush.ecr.calls import Calls
from asyncpush.errors import RegistryError
from asyncpush.settings import Credentials

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

    def __init__(self, calls: Calls, *, clock: Clock = time.time) -> None:
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
