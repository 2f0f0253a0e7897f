"""The credential_process of a profile: run on the event loop, with a limit on its time and its output."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import anyio
import botocore.exceptions as bce
import msgspec
from botocore.compat import compat_shell_split
from botocore.credentials import ProcessProvider, ProfileProviderBuilder, parse

from asyncpush.ecr.configuration import describe_os_error, printable
from asyncpush.ecr.credential_http import run_on_event_loop
from asyncpush.errors import CredentialsError
from asyncpush.processes import CompletedProgram, run_small


class ProfileProviders(ProfileProviderBuilder):  # type: ignore[misc] # botocore is untyped
    """Creates the providers of a profile as botocore does, except the one for its credential_process.

    Args:
        session: botocore's session, with the configuration.
        region: the region of STS.
        timeout: seconds that the process may take.
    """

    def __init__(self, session: Any, region: str | None, timeout: float) -> None:
        super().__init__(session, cache={}, region_name=region)
        self._timeout = timeout

    def process(self, profile: str) -> ProcessProvider:
        """The provider that runs a profile's credential_process."""
        return _Process(profile, lambda: self._session.full_config, self._timeout)

    # The method that botocore calls.
    _create_process_provider = process


class _ProcessOutput(msgspec.Struct):
    """The output of a credential_process ("Process credential provider" in the AWS SDKs and Tools Reference Guide)."""

    Version: int
    AccessKeyId: str
    SecretAccessKey: str
    SessionToken: str | None = None
    Expiration: str | None = None


class _Process(ProcessProvider):  # type: ignore[misc] # botocore is untyped
    """Runs a profile's credential_process on the event loop; called in a worker thread."""

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
        done = run_on_event_loop(self._run, words)
        if done.is_too_long:
            raise self._failed("its output is too large for credentials")
        if done.status != 0:
            ending = f"exit status {done.status}" if done.status > 0 else f"signal {-done.status}"
            said = printable(done.errors.decode(errors="replace"))
            raise self._failed(f"it ended with {ending}{': ' if said else ''}{said}")
        return self._read(done.output)

    async def _run(self, words: list[str]) -> CompletedProgram:
        try:
            with anyio.fail_after(self._timeout):
                return await run_small(words)
        except TimeoutError as error:
            raise self._failed(f"it did not end within {self._timeout:g} seconds") from error
        except (OSError, ValueError) as error:
            # Only the program's name: its arguments may be secrets.
            raise self._failed(f"{words[0]} can't be run: {describe_os_error(error)}") from error

    def _read(self, output: bytes) -> dict[str, Any]:
        if not output.strip():
            raise self._failed("it printed nothing")
        try:
            credentials = msgspec.json.decode(output, type=_ProcessOutput)
            expiry: datetime | None = parse(credentials.Expiration) if credentials.Expiration else None
        except msgspec.ValidationError as error:
            # The message names members and types, but contains no values.
            raise self._failed(f"its output is not in the format that AWS documents: {error}") from error
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise self._failed("its output is not JSON") from None
        except (OverflowError, ValueError) as error:
            raise self._failed("its Expiration is not a valid time") from error
        if credentials.Version != 1:
            raise self._failed(f"it printed Version {credentials.Version}, but only Version 1 exists")
        if expiry and expiry.tzinfo is None:
            expiry = expiry.replace(tzinfo=UTC)
        return {
            "access_key": credentials.AccessKeyId,
            "secret_key": credentials.SecretAccessKey,
            "token": credentials.SessionToken,
            "expiry_time": expiry.isoformat() if expiry else None,
        }

    def _failed(self, reason: str) -> CredentialsError:
        error = CredentialsError(
            f"no AWS credentials from the credential_process of profile {self._profile!r}: {reason}",
            hint="run that command by hand",
        )
        # The AWS CLI derives its exit status from botocore's error.
        error.__cause__ = bce.CredentialRetrievalError(provider=self.METHOD, error_msg=reason)
        return error
