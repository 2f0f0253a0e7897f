"""A journal that is kept as an object in S3: fetched at the start, put back every minute and at the end.

The object is always a whole, consistent copy, since a PUT replaces it at once. Two attempts that use the same object at
the same time overwrite each other's copies: either is true, only older than it could be, and ECR knows the rest.
"""

from __future__ import annotations

import base64
import hashlib
import shutil
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import anyio
from anyio import CancelScope, to_thread

from asyncpush import open_files
from asyncpush.ecr.errors import translate_errors
from asyncpush.ecr.s3 import MISSING_KEY, advice
from asyncpush.ecr.session import open_s3
from asyncpush.errors import AsyncpushError, JournalError, RegistryError, ServiceError, UsageError, only_cause
from asyncpush.events import Emit, Notice
from asyncpush.journal.database import journal_error
from asyncpush.journal.store import SqliteJournal, open_journal
from asyncpush.reference import S3Location
from asyncpush.settings import AwsConfiguration, MiB

#: Seconds between two copies.
INTERVAL = 60.0

#: Seconds for the last copy: an engine that stops a job kills it 30 seconds after SIGTERM.
_LAST_COPY = 25.0

_BLOCK = MiB
_CONNECTIONS = 4


class _Client(Protocol):
    """What is used of aiobotocore's client of S3."""

    async def get_object(self, **members: str) -> dict[str, Any]: ...

    async def put_object(self, **members: str | bytes) -> dict[str, Any]: ...

    async def list_objects_v2(self, **members: str) -> dict[str, Any]: ...


@dataclass(slots=True, eq=False)
class RemoteJournal:
    """An open journal whose copy is in S3.

    Attributes:
        journal: the journal.
        failure: after it was closed, why its last copy was not put; None if it was.
    """

    journal: SqliteJournal
    failure: JournalError | None = None


@asynccontextmanager
async def open_remote_journal(
    location: S3Location,
    aws: AwsConfiguration,
    emit: Emit,
    *,
    writes: bool = True,
    is_needed: bool = False,
    interval: float = INTERVAL,
) -> AsyncIterator[RemoteJournal]:
    """Fetch a journal and open it until the block is left; if there is no object, create one.

    It is put back at once, so that a missing permission shows, regularly, and at the end, also if the block is
    cancelled.

    Args:
        location: the object.
        aws: the profile and region; the endpoint is that of the environment (``AWS_ENDPOINT_URL_S3``).
        emit: takes a notice if a copy could not be put.
        writes: whether to put it back at all; a dry run only reads it.
        is_needed: whether there must be an object.
        interval: seconds between two copies.

    Raises:
        UsageError: the object is not a journal, is needed and does not exist, or *location* names none.
        JournalError: it is damaged, or can't be fetched or put.
        ConfigurationError: there is no region, no such profile, or no credentials.
    """
    if location.is_prefix:
        raise UsageError(f"{location} names no object", hint="write s3://BUCKET/KEY")
    async with _temporary_folder() as folder, open_s3(aws, _CONNECTIONS) as client:
        copy = _Copy(client, location, folder / "journal", emit)
        if not await copy.fetch() and is_needed:
            raise missing(location)
        opened: RemoteJournal | None = None
        is_over = False
        try:
            with _named(copy):
                async with open_journal(copy.path) as journal:
                    if writes:
                        await copy.put()
                    opened = RemoteJournal(journal)
                    with only_cause():
                        async with anyio.create_task_group() as tasks:
                            if writes:
                                tasks.start_soon(copy.put_regularly, interval)
                            yield opened
                            is_over = True
                            tasks.cancel_scope.cancel()
        finally:
            if opened is not None and writes:
                opened.failure = await copy.put_last()
                if opened.failure is not None and not is_over:
                    emit(Notice(str(opened.failure)))  # nobody asks for it after a signal


@asynccontextmanager
async def fetched(location: S3Location, aws: AwsConfiguration) -> AsyncIterator[list[tuple[str, Path]]]:
    """Fetch an object, or all objects below a prefix, into files that exist until the block is left.

    Yields:
        The name of each object, and its file.

    Raises:
        UsageError: there is none.
        JournalError: one can't be fetched.
    """
    async with _temporary_folder() as folder, open_s3(aws, _CONNECTIONS) as client:
        keys = await _list(client, location) if location.is_prefix else [location.key]
        found: list[tuple[str, Path]] = []
        for number, key in enumerate(keys):
            copy = _Copy(client, S3Location(location.bucket, key), folder / str(number), _silent)
            if not await copy.fetch():
                raise missing(copy.location)
            found.append((str(copy.location), copy.path))
        if not found:
            raise UsageError(f"there is no journal below {location}")
        yield found


@asynccontextmanager
async def at_hand(place: str, aws: AwsConfiguration) -> AsyncIterator[Path]:
    """The file of a journal, or of a result, until the block is left; one in S3 is fetched.

    Args:
        place: a path, or ``s3://BUCKET/KEY``.
        aws: the profile and region for S3.

    Raises:
        UsageError: it names no object, or one that does not exist.
        JournalError: it can't be fetched.
    """
    location = S3Location.parse(place)
    if location is None:
        yield Path(place)
        return
    if location.is_prefix:
        raise UsageError(f"{location} names no object", hint="write s3://BUCKET/KEY")
    async with fetched(location, aws) as [(_, path)]:
        yield path


def missing(place: Path | S3Location) -> UsageError:
    """The error for a journal that must exist, and does not."""
    return UsageError(f"there is no journal {place}", hint="name another one, or run the migration first")


def _silent(_: object) -> None:
    """Take no event."""


async def _list(client: _Client, location: S3Location) -> list[str]:
    keys: list[str] = []
    page: dict[str, str] = {}
    with _explained(f"the objects below {location} can't be listed"), translate_errors("ListObjectsV2", "S3"):
        while True:
            answer = await client.list_objects_v2(Bucket=location.bucket, Prefix=location.key, **page)
            keys += [item["Key"] for item in answer.get("Contents", ()) if not item["Key"].endswith("/")]
            token = answer.get("NextContinuationToken")
            if not token:
                return keys
            page = {"ContinuationToken": token}


@asynccontextmanager
async def _temporary_folder() -> AsyncIterator[Path]:
    folder = Path(await to_thread.run_sync(tempfile.mkdtemp, None, "asyncpush-journal-"))
    try:
        yield folder
    finally:
        with CancelScope(shield=True):
            await to_thread.run_sync(shutil.rmtree, folder, True)


class _Copy:
    """The copy of a journal in S3.

    Args:
        client: a client of S3.
        location: the object.
        path: the journal's file.
        emit: takes a notice if it could not be put.
    """

    def __init__(self, client: _Client, location: S3Location, path: Path, emit: Emit) -> None:
        self.location = location
        self.path = path
        self._client = client
        self._emit = emit
        self._stored = b""

    async def fetch(self) -> bool:
        """Write the object to the file; whether there is one."""
        with _explained(f"the journal {self.location} can't be fetched"):
            try:
                with translate_errors("GetObject", "S3"):
                    answer = await self._client.get_object(Bucket=self.location.bucket, Key=self.location.key)
                    body = answer["Body"]
                    async with body:
                        await self._write(body.read)
            except ServiceError as error:
                if error.code not in MISSING_KEY:
                    raise
                return False
        return True

    async def _write(self, read: Callable[[int], Awaitable[bytes]]) -> None:
        hashed = hashlib.sha256()
        async with await anyio.open_file(self.path, "wb") as file:
            while block := await read(_BLOCK):
                hashed.update(block)
                await file.write(block)
        self._stored = hashed.digest()

    async def put_regularly(self, interval: float) -> None:
        """Put a copy every *interval* seconds; one that fails is not the last."""
        while True:
            await anyio.sleep(interval)
            try:
                await self.put()
            except AsyncpushError as error:
                self._emit(Notice(f"{error}; asyncpush tries again in {interval:g} seconds"))

    async def put_last(self) -> JournalError | None:
        """Put the last copy, even if this task is cancelled; why it failed, if it did."""
        with CancelScope(shield=True), anyio.move_on_after(_LAST_COPY):
            try:
                await self.put()
            except JournalError as error:
                return error
            except AsyncpushError as error:
                return JournalError(str(error))
            return None
        return JournalError(f"the journal could not be put to {self.location} within {_LAST_COPY:g} seconds")

    async def put(self) -> None:
        """Put a copy if the journal has changed since the last one."""
        data, digest = await to_thread.run_sync(_snapshot, self.path)
        if digest == self._stored:
            return
        # With a checksum, botocore does not hash the body over TLS, which would stop the event loop.
        checksum = base64.b64encode(digest).decode()
        with _explained(f"the journal can't be put to {self.location}"), translate_errors("PutObject", "S3"):
            await self._client.put_object(
                Bucket=self.location.bucket, Key=self.location.key, Body=data, ChecksumSHA256=checksum
            )
        self._stored = digest


def _snapshot(path: Path) -> tuple[bytes, bytes]:
    """A consistent copy of an open journal, and its hash; blocks."""
    snapshot = path.with_name(f"{path.name}-copy")
    try:
        with (
            closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(snapshot, isolation_level=None)) as target,
        ):
            source.backup(target)
            # A copy that says WAL could only be opened where its directory can be written to.
            target.execute("PRAGMA journal_mode = DELETE")
        data = snapshot.read_bytes()
        snapshot.unlink()
    except sqlite3.Error as error:
        raise journal_error(path, error) from error
    except OSError as error:
        raise JournalError(f"the journal can't be copied: {open_files.reason(error)}") from error
    return data, hashlib.sha256(data).digest()


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Say what S3 refused, and how it can be allowed."""
    try:
        yield
    except ServiceError as error:
        hint = advice(error, "allow s3:GetObject and s3:PutObject on it, and s3:ListBucket on its bucket")
        raise JournalError(f"{what}: {error}", hint=hint) from error
    except RegistryError as error:
        raise JournalError(f"{what}: {error}") from error
    except OSError as error:
        raise JournalError(f"{what}: {open_files.reason(error)}") from error


@contextmanager
def _named(copy: _Copy) -> Iterator[None]:
    """Name the object instead of the temporary file in errors of the journal."""
    try:
        yield
    except (UsageError, JournalError) as error:
        if str(copy.path) not in error.message:
            raise
        hint = "name another object, or delete this one" if isinstance(error, UsageError) else None
        raise type(error)(error.message.replace(str(copy.path), str(copy.location)), hint=hint) from error
