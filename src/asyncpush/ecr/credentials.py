"""AWS credentials that sign requests: found before anything is sent, shared by clients, and renewed in time."""

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

from asyncpush.ecr.credential_providers import CredentialFinder, FoundCredentials, expired_message
from asyncpush.errors import CredentialsError, CredentialsExpiredError
from asyncpush.redaction import hide
from asyncpush.settings import AwsConfiguration

#: Seconds before their expiry that credentials are renewed; those that last less than twice as long, at half-life.
_RENEWAL_MARGIN = 900.0
#: Seconds after which a failed renewal is tried again.
_RENEWAL_PAUSE = 60.0
#: The fewest seconds between two renewals: some processes return credentials that expire at once.
_SHORTEST_INTERVAL = 1.0
#: Seconds for which a failure is final for all requests of a run, so that each need not try on its own.
FAILURE_LIFETIME = 5.0


class SharedCredentials(AioCredentials):  # type: ignore[misc] # aiobotocore is untyped
    """Credentials for all clients of one configuration: found once, and renewed before they expire.

    If an early renewal fails, the current credentials remain in use until they expire.
    """

    method = "asyncpush"

    def __init__(self, finder: CredentialFinder) -> None:
        self._finder = finder
        self._found: FoundCredentials | None = None
        self._renew_at = 0.0
        self._lock = anyio.Lock()
        self._failure: CredentialsError | None = None
        self._failed_at = self._replaced_at = -math.inf

    @property
    def keys(self) -> ReadOnlyCredentials:
        """The current keys; they exist once the credentials have been opened."""
        return self.found.keys

    @property
    def found(self) -> FoundCredentials:
        """The current keys with their provider and expiry; they exist once the credentials have been opened."""
        assert self._found is not None, "credentials are found before anything is sent"  # noqa: S101
        return self._found

    async def get_frozen_credentials(self) -> ReadOnlyCredentials:
        """The keys to sign a request with, renewed if that is due.

        Raises:
            CredentialsError: there are none; nothing was sent.
            CredentialsExpiredError: they have expired, and can't be renewed.
        """
        # One request renews them; meanwhile, the others use the current ones while these are valid.
        if self._is_due() and not (self._lock.locked() and self._is_valid()):
            async with self._lock:
                if self._is_due():
                    await self._renew()
        return self.keys

    def get_account_id(self) -> None:
        """Return no account: ECR's endpoints do not depend on it."""

    async def replace(self, refused: ReadOnlyCredentials) -> bool:
        """Ask the provider for new keys in place of *refused*, at most once in a few seconds; whether there are any."""
        async with self._lock:
            now = time.time()
            if self.keys == refused and now >= self._replaced_at + FAILURE_LIFETIME:
                self._replaced_at = now
                with suppress(CredentialsError):
                    self._use(await to_thread.run_sync(self._finder.find, False))
        return bool(self.keys != refused)

    def _is_valid(self) -> bool:
        return self._found is not None and (self._found.expires_at is None or time.time() < self._found.expires_at)

    def _is_due(self) -> bool:
        return not self._is_valid() or time.time() >= self._renew_at

    def _use(self, found: FoundCredentials) -> None:
        now = time.time()
        self._found, self._renew_at = found, math.inf
        hide(found.keys.secret_key, found.keys.token)
        if found.expires_at is not None:
            self._renew_at = max(
                found.expires_at - min(_RENEWAL_MARGIN, (found.expires_at - now) / 2), now + _SHORTEST_INTERVAL
            )

    async def _renew(self) -> None:
        before = self._found
        try:
            if self._failure is not None and time.time() < self._failed_at + FAILURE_LIFETIME and not self._is_valid():
                raise self._failure
            self._use(await to_thread.run_sync(self._finder.find, before is None))
        except CredentialsError as error:
            self._failure, self._failed_at = error, time.time()
            if before is None:
                raise
            if not self._is_valid():
                raise _expired_error(before, error) from error
            self._renew_at = time.time() + _RENEWAL_PAUSE


def _expired_error(found: FoundCredentials, error: CredentialsError) -> CredentialsExpiredError:
    message = f"the AWS credentials from {found.provider} have expired, and there are no others: {error.message}"
    if found.expires_at is not None and error.message == expired_message(found.provider, found.expires_at):
        message = error.message
    return CredentialsExpiredError(message, hint=f"{error.hint or found.hint}, then run the same command again")


@dataclass(slots=True)
class _Shared:
    credentials: SharedCredentials
    users: int = 0


#: The credentials of all open clients of an event loop, by configuration.
_open: RunVar[dict[object, _Shared]] = RunVar("aws_credentials")


@asynccontextmanager
async def open_credentials(aws: AwsConfiguration, region: str | None) -> AsyncIterator[SharedCredentials]:
    """Find the credentials that *aws* and the environment configure.

    Clients that are open at once and have the same configuration share them, so that a credential_process runs once,
    and the user is prompted for an MFA code once.

    Args:
        aws: the configuration.
        region: the region of STS.

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
    shared = opened.setdefault(key, _Shared(SharedCredentials(CredentialFinder(aws, region))))
    shared.users += 1
    try:
        await shared.credentials.get_frozen_credentials()
        yield shared.credentials
    finally:
        shared.users -= 1
        if not shared.users:
            del opened[key]


def credentials_of(client: Any) -> SharedCredentials:
    """The credentials of a client that ``open_client`` has opened."""
    credentials = client._request_signer._credentials  # noqa: SLF001 - there is no public access to them
    assert isinstance(credentials, SharedCredentials)  # noqa: S101
    return credentials
