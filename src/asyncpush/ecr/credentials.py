"""What signs requests: AWS credentials, found before anything is read or sent, shared by clients, renewed in time."""

from __future__ import annotations

import math
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import anyio
from aiobotocore.credentials import AioCredentials
from anyio import to_thread
from anyio.lowlevel import RunVar
from botocore.credentials import ReadOnlyCredentials

from asyncpush.ecr.credential_providers import Finder, Found, expired_text
from asyncpush.errors import CredentialsError, CredentialsExpiredError
from asyncpush.redaction import hide
from asyncpush.settings import AwsConfiguration

#: Seconds before their end that credentials are renewed; of those that last less than twice as long, half their life.
_MARGIN = 900.0
#: Seconds after which a renewal that failed is tried again.
_PAUSE = 60.0
#: Seconds between two renewals, at least: some processes give what ends in a moment.
_SHORTEST = 1.0
#: Seconds for which a failure counts for all: a run has many requests, which need not try on their own.
FAILURE_LIFETIME = 5.0


class SharedCredentials(AioCredentials):  # type: ignore[misc] # aiobotocore is untyped
    """What signs a client's requests: found once for all clients of one configuration, and renewed before it ends.

    While an early renewal fails, what is there is used to its end.
    """

    method = "asyncpush"

    def __init__(self, finder: Finder) -> None:
        self._finder = finder
        self._found: Found | None = None
        self._renew_at = 0.0
        self._renewing = anyio.Lock()
        self._failure: CredentialsError | None = None
        self._failed = self._looked = -math.inf

    @property
    def keys(self) -> ReadOnlyCredentials:
        """The keys that there are now; there are some once they were asked for."""
        assert self._found is not None, "they are found before anything is sent"  # noqa: S101
        return self._found.keys

    async def get_frozen_credentials(self) -> ReadOnlyCredentials:
        """The keys that sign a request now.

        Raises:
            CredentialsError: there are none; nothing was sent.
            CredentialsExpiredError: they have ended, and there are no others.
        """
        # One renews; the others go on for as long as they can.
        if self._is_due() and not (self._renewing.locked() and self._is_good()):
            async with self._renewing:
                if self._is_due():
                    await self._renew()
        return self.keys

    def get_account_id(self) -> None:
        """No account: endpoints do not depend on it."""

    async def others(self, refused: ReadOnlyCredentials) -> bool:
        """Whether there are other keys than *refused* by now; they are looked for, but not for each request."""
        async with self._renewing:
            now = time.time()
            if self.keys == refused and now >= self._looked + FAILURE_LIFETIME:
                self._looked = now
                with suppress(CredentialsError):
                    self._take(await to_thread.run_sync(self._finder.find, False))
        return bool(self.keys != refused)

    def _is_good(self) -> bool:
        return self._found is not None and (self._found.end is None or time.time() < self._found.end)

    def _is_due(self) -> bool:
        return not self._is_good() or time.time() >= self._renew_at

    def _take(self, found: Found) -> None:
        now = time.time()
        self._found, self._renew_at = found, math.inf
        hide(found.keys.secret_key, found.keys.token)
        if found.end is not None:
            self._renew_at = max(found.end - min(_MARGIN, (found.end - now) / 2), now + _SHORTEST)

    async def _renew(self) -> None:
        before = self._found
        try:
            if self._failure is not None and time.time() < self._failed + FAILURE_LIFETIME and not self._is_good():
                raise self._failure
            self._take(await to_thread.run_sync(self._finder.find, before is None))
        except CredentialsError as error:
            self._failure, self._failed = error, time.time()
            if before is None:
                raise
            if not self._is_good():
                raise _expired(before, error) from error
            self._renew_at = time.time() + _PAUSE


def _expired(found: Found, error: CredentialsError) -> CredentialsExpiredError:
    message = f"the AWS credentials from {found.provider} have expired, and there are no others: {error.message}"
    if found.end is not None and error.message == expired_text(found.provider, found.end):
        message = error.message
    return CredentialsExpiredError(message, hint=f"{error.hint or found.hint}, then run the same command again")


@dataclass(slots=True)
class _Shared:
    credentials: SharedCredentials
    users: int = 0


#: What signs for the clients that are open in an event loop.
_open: RunVar[dict[object, _Shared]] = RunVar("aws_credentials")


@asynccontextmanager
async def open_credentials(aws: AwsConfiguration, region: str | None) -> AsyncIterator[SharedCredentials]:
    """Find the credentials that *aws* and the environment name, ready to sign.

    Clients that are open at once and have the same configuration share them: a process is run, and an MFA code is
    asked for, once.

    Args:
        aws: the configuration.
        region: the region in which STS is asked.

    Raises:
        CredentialsError: there are none, or their provider fails.
        ConfigurationError: the configuration can't be read.
    """
    try:
        opened = _open.get()
    except LookupError:
        opened = {}
        _open.set(opened)
    environment = tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_") or item[0] == "HOME"))
    key = (aws.profile, aws.access_key_id, aws.secret_access_key, environment)
    shared = opened.setdefault(key, _Shared(SharedCredentials(Finder(aws, region))))
    shared.users += 1
    try:
        await shared.credentials.get_frozen_credentials()
        yield shared.credentials
    finally:
        shared.users -= 1
        if not shared.users:
            del opened[key]


def signing(client: Any) -> SharedCredentials:
    """The credentials of a client that ``open_client`` has opened."""
    found = client._request_signer._credentials  # noqa: SLF001 - there is no public way to them
    assert isinstance(found, SharedCredentials)  # noqa: S101
    return found
