"""Objects in S3: read from start to end, as one stream that resumes after a break; and what S3's errors mean."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, Protocol

import aiohttp
import anyio
from botocore.exceptions import IncompleteReadError

from asyncpush.ecr.errors import translate_errors, verdict
from asyncpush.ecr.session import open_s3
from asyncpush.errors import (
    AsyncpushError,
    ConnectionFailedError,
    RegistryError,
    ServiceError,
    SourceDeniedError,
    SourceError,
    SourceNotFoundError,
    SourceUnavailableError,
)
from asyncpush.events import Emit, ignore
from asyncpush.http.retry import Failure, Rest, RetryLoop, backoff
from asyncpush.reference import S3Location
from asyncpush.settings import AwsConfiguration, RetryPolicy

#: S3's codes for a key that no object has: of GetObject, and of answers without a body.
MISSING_KEY = frozenset({"NoSuchKey", "404"})

_DENIED = frozenset({"AccessDenied", "AllAccessDisabled", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403"})
_ELSEWHERE = frozenset({"PermanentRedirect", "AuthorizationHeaderMalformed", "301"})
_CHANGED = frozenset({"PreconditionFailed", "412"})

_OPERATION = "GetObject"
_CONNECTIONS = 8


def advice(error: ServiceError, permissions: str) -> str | None:
    """What to do about an error of S3; *permissions* is what to do if it denies access. None if nothing is known."""
    if error.code in _DENIED:
        return permissions
    if error.code in _ELSEWHERE:
        return "the bucket is in another region: set AWS_ENDPOINT_URL_S3=https://s3.REGION.amazonaws.com"
    return None


class _Client(Protocol):
    """What is used of aiobotocore's client of S3."""

    async def get_object(self, **members: str) -> dict[str, Any]: ...


class S3Objects:
    """Opens objects to read them (``protocols.ObjectStore``); its client is opened with the first of them.

    Args:
        aws: the profile and region; the endpoint is that of the environment (``AWS_ENDPOINT_URL_S3``).
        stack: closes the client.
        retry: when a broken download is resumed.
        emit: receives each retry.
    """

    def __init__(self, aws: AwsConfiguration, stack: AsyncExitStack, retry: RetryPolicy, emit: Emit) -> None:
        self._aws = aws
        self._stack = stack
        self._retry = retry
        self._emit = emit
        self._lock = anyio.Lock()
        self._client: _Client | None = None

    @asynccontextmanager
    async def open(self, location: S3Location) -> AsyncIterator[S3Stream]:
        """See ``protocols.ObjectStore``."""
        async with self._lock:
            if self._client is None:
                opened: _Client = await self._stack.enter_async_context(open_s3(self._aws, _CONNECTIONS))
                self._client = opened
            client = self._client
        stream = S3Stream(client, location, self._retry, self._emit)
        try:
            await stream.begin()
            yield stream
        finally:
            stream.close()


@asynccontextmanager
async def open_objects(
    aws: AwsConfiguration, retry: RetryPolicy | None = None, emit: Emit = ignore
) -> AsyncIterator[S3Objects]:
    """Open S3 to read objects from it; nothing is sent, and no credentials are looked for, before the first of them.

    Args:
        aws: the profile and region; the endpoint is that of the environment (``AWS_ENDPOINT_URL_S3``).
        retry: when a broken download is resumed.
        emit: receives each retry.
    """
    async with AsyncExitStack() as stack:
        yield S3Objects(aws, stack, retry or RetryPolicy(), emit)


class S3Stream:
    """One object (``protocols.BlobStream``); after a break it resumes, if the object is still the same.

    Args:
        client: a client of S3, which repeats requests itself.
        location: the object.
        retry: how often, and after which waits, a broken download is resumed.
        emit: receives each retry.
    """

    def __init__(self, client: _Client, location: S3Location, retry: RetryPolicy, emit: Emit) -> None:
        self._client = client
        self._location = location
        self._policy = retry
        self._tries = RetryLoop(_OPERATION, retry, self, emit)
        self._body: Any = None
        self._etag = ""
        self._size = self._position = 0

    async def begin(self) -> None:
        """Ask for the object.

        Raises:
            SourceError: there is none, or S3 refuses it, or can't be reached.
        """
        with self._explained():
            answer = await self._get()
        self._body = answer["Body"]
        try:
            self._etag, self._size = answer["ETag"], answer["ContentLength"]
        except KeyError as error:
            raise SourceError(
                f"{self._location} can't be read: the answer has no {error.args[0]}", hint="check the endpoint"
            ) from error

    async def readinto(self, buffer: memoryview) -> int:
        """See ``BlobStream``.

        Raises:
            SourceError: the object was replaced meanwhile, or S3 can't be reached in spite of all retries.
        """
        filled = 0
        with self._explained():
            while filled < len(buffer) and self._position < self._size:
                try:
                    data = await self._read(len(buffer) - filled)
                except RegistryError as error:
                    self.close()
                    await self._tries.wait(error)
                    continue
                buffer[filled : filled + len(data)] = data
                filled += len(data)
                self._position += len(data)
                self._tries.restart()
        return filled

    def close(self) -> None:
        """Close the connection, unless it has delivered everything."""
        if self._body is not None:
            self._body.close()
            self._body = None

    async def _read(self, size: int) -> bytes:
        """The next bytes, up to *size*, after a new request if the last answer broke off."""
        if self._body is None:
            answer = await self._get(Range=f"bytes={self._position}-", IfMatch=self._etag)
            if not str(answer.get("ContentRange")).startswith(f"bytes {self._position}-"):
                answer["Body"].close()
                raise SourceError(
                    f"S3 sends another range of {self._location} than the rest", hint="check the endpoint"
                )
            self._body = answer["Body"]
        with translate_errors(_OPERATION, "S3"):
            try:
                data: bytes = await self._body.read(size)
            except (aiohttp.ClientPayloadError, IncompleteReadError) as error:
                raise ConnectionFailedError(f"{_OPERATION} broke off after {self._position} bytes") from error
        if not data:
            raise ConnectionFailedError(f"{_OPERATION} ended after {self._position} of {self._size} bytes")
        return data

    async def _get(self, **members: str) -> dict[str, Any]:
        with translate_errors(_OPERATION, "S3"):
            return await self._client.get_object(Bucket=self._location.bucket, Key=self._location.key, **members)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Raise errors of the source for those of S3."""
        try:
            yield
        except ServiceError as error:
            raise _source_error(self._location, error) from error
        except RegistryError as error:
            raise SourceUnavailableError(f"{self._location} can't be read: {error.message}", hint=error.hint) from error

    def explain(self, error: AsyncpushError) -> Failure:
        """See ``RetryRules``."""
        return Failure(verdict(error))

    def rest(self, failure: Failure, count: int) -> Rest:  # noqa: ARG002 - a throttled request waits as a broken one does
        """See ``RetryRules``."""
        return Rest(backoff(self._policy.first_wait, self._policy.longest_wait, count))

    def note_retry(self, failure: Failure, delay: float) -> None:
        """See ``RetryRules``."""


def _source_error(location: S3Location, error: ServiceError) -> SourceError:
    if error.code == "NoSuchBucket":
        return SourceNotFoundError(f"there is no bucket {location.bucket}", hint="check the name and the account")
    if error.code in MISSING_KEY:
        return SourceNotFoundError(
            f"the bucket {location.bucket} has no object {location.key}", hint="`aws s3 ls` shows what it has"
        )
    if error.code in _CHANGED:
        return SourceError(
            f"{location} was replaced while it was read", hint="run the same command again, and let nothing replace it"
        )
    if error.code == "InvalidObjectState":
        return SourceError(f"{location} is in Glacier", hint="restore it first: `aws s3api restore-object`")
    kind = SourceDeniedError if error.code in _DENIED else SourceError
    permissions = (
        "allow s3:GetObject on it (kms:Decrypt for its key, too), and s3:ListBucket on its bucket: without that, S3 "
        "does not say whether it exists"
    )
    return kind(f"{location} can't be read: {error.message}", hint=advice(error, permissions) or error.hint)
