"""A profile's credential_process: run with nothing to read, for a while, and without showing what it prints."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import anyio
import botocore.exceptions as bce
import msgspec
from anyio import from_thread
from botocore.compat import compat_shell_split
from botocore.credentials import ProcessProvider, ProfileProviderBuilder, parse

from asyncpush.ecr.configuration import os_text, printable
from asyncpush.errors import CredentialsError
from asyncpush.processes import Ended, run_small


class ProfileProviders(ProfileProviderBuilder):  # type: ignore[misc] # botocore is untyped
    """Makes the providers of a profile as botocore does, but for its process.

    Args:
        session: botocore's, with the configuration.
        region: where STS is asked.
        timeout: seconds that the process may take.
    """

    def __init__(self, session: Any, region: str | None, timeout: float) -> None:
        super().__init__(session, cache={}, region_name=region)
        self._timeout = timeout

    def process(self, profile: str) -> ProcessProvider:
        """The provider that runs a profile's process."""
        return _Process(profile, lambda: self._session.full_config, self._timeout)

    # What botocore calls it.
    _create_process_provider = process


class _Answer(msgspec.Struct):
    """What a process prints ("Process credential provider" in the AWS SDKs and Tools Reference Guide)."""

    Version: int
    AccessKeyId: str
    SecretAccessKey: str
    SessionToken: str | None = None
    Expiration: str | None = None


class _Process(ProcessProvider):  # type: ignore[misc] # botocore is untyped
    """Runs a profile's credential_process, from a worker thread of the event loop's."""

    def __init__(self, profile: str, load_config: Callable[[], Any], timeout: float) -> None:
        super().__init__(profile, load_config)
        self._profile = profile
        self._timeout = timeout

    def _retrieve_credentials_using(self, credential_process: str) -> dict[str, Any]:
        try:
            words = compat_shell_split(credential_process)
        except ValueError as error:
            raise self._failed(f"its command can't be split into words: {error}") from error
        if not words:
            raise self._failed("its command is empty")
        try:
            done = from_thread.run(self._run, words)
        except concurrent.futures.CancelledError:
            from_thread.check_cancelled()  # as the caller's own cancellation
            raise
        if done.is_endless:
            raise self._failed("it printed far more than credentials have")
        if done.status != 0:
            ending = f"exit status {done.status}" if done.status > 0 else f"signal {-done.status}"
            said = printable(done.said.decode(errors="replace"))
            raise self._failed(f"it ended with {ending}{': ' if said else ''}{said}")
        return self._read(done.output)

    async def _run(self, words: list[str]) -> Ended:
        try:
            with anyio.fail_after(self._timeout):
                return await run_small(words)
        except TimeoutError as error:
            raise self._failed(f"it has not ended for {self._timeout:g} seconds") from error
        except (OSError, ValueError) as error:
            # Its name alone: the other words may be secrets.
            raise self._failed(f"{words[0]} can't be run: {os_text(error)}") from error

    def _read(self, output: bytes) -> dict[str, Any]:
        if not output.strip():
            raise self._failed("it printed nothing")
        try:
            answer = msgspec.json.decode(output, type=_Answer)
            end: datetime | None = parse(answer.Expiration) if answer.Expiration else None
        except msgspec.ValidationError as error:
            # It tells which members and types are wrong, and no values.
            raise self._failed(f"what it printed is not what AWS documents: {error}") from error
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise self._failed("what it printed is no JSON") from None
        except (OverflowError, ValueError) as error:
            raise self._failed("its Expiration is no time") from error
        if answer.Version != 1:
            raise self._failed(f"it printed Version {answer.Version}, where 1 is the only one")
        if end and end.tzinfo is None:
            end = end.replace(tzinfo=UTC)
        return {
            "access_key": answer.AccessKeyId,
            "secret_key": answer.SecretAccessKey,
            "token": answer.SessionToken,
            "expiry_time": end.isoformat() if end else None,
        }

    def _failed(self, reason: str) -> CredentialsError:
        error = CredentialsError(
            f"no AWS credentials from the credential_process of profile {self._profile!r}: {reason}",
            hint="run that command by hand",
        )
        # As botocore would have it, by which `aws` tells its exit statuses.
        error.__cause__ = bce.CredentialRetrievalError(provider=self.METHOD, error_msg=reason)
        return error
