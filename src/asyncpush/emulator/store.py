"""The data directory: repositories and uploads, taken up where the last emulator left them."""

from __future__ import annotations

import fcntl
import os
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar, TypeVarTuple, Unpack

import anyio
import anyio.to_thread
import msgspec

from asyncpush.emulator.disk import Disk, remove_tree
from asyncpush.emulator.errors import (
    AwsError,
    repository_exists,
    repository_not_empty,
    repository_not_found,
    upload_not_found,
)
from asyncpush.emulator.repository import RECORD, Repository, RepositoryRecord
from asyncpush.emulator.uploads import Upload
from asyncpush.errors import UsageError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

#: Threads of the emulator's own, so that it never starves a client in its process, nor is starved by it.
_THREADS = 16

#: The names of uploads. What else lies beside them is not the emulator's, and never removed.
_UPLOAD = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class Store:
    """All that the emulator holds, indexed in memory; changes are on disk before they are seen.

    Args:
        data: the data directory; made if it is not there.
        fsync: whether layers and images must outlive a power cut.
    """

    def __init__(self, data: Path, *, fsync: bool) -> None:
        self.disk = Disk(fsync)
        self.repositories: dict[str, Repository] = {}
        self.uploads: dict[str, Upload] = {}
        self._data = data
        self._threads = anyio.CapacityLimiter(_THREADS)

    @property
    def _uploads_path(self) -> Path:
        return self._data / "uploads"

    @property
    def _repositories_path(self) -> Path:
        return self._data / "repositories"

    async def in_thread(self, work: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
        """Run blocking work in one of the emulator's threads."""
        return await anyio.to_thread.run_sync(work, *args, limiter=self._threads)

    def open(self) -> None:
        """Own the directory and read what is in it; blocks.

        Raises:
            UsageError: it can't be used, is damaged, or another emulator uses it.
        """
        self._lock = self._own()
        try:
            self._load()
        except (OSError, ValueError, AwsError) as error:
            self.close()
            raise UsageError(
                f"{self._data} can't be read as an emulator's data: {error}",
                hint="repair or remove what it names, or use another directory",
            ) from error

    def close(self) -> None:
        """Leave the directory to others."""
        os.close(self._lock)

    def repository(self, name: str, registry_id: str) -> Repository:
        """Find a repository.

        Raises:
            AwsError: RepositoryNotFoundException.
        """
        found = self.repositories.get(name)
        if found is None:
            raise repository_not_found(name, registry_id)
        return found

    @asynccontextmanager
    async def changing(self, name: str, registry_id: str) -> AsyncIterator[Repository]:
        """Find a repository and keep all other changes away from it.

        Raises:
            AwsError: RepositoryNotFoundException, also if it was deleted meanwhile.
        """
        found = self.repository(name, registry_id)
        async with found.lock:
            if self.repositories.get(name) is not found:
                raise repository_not_found(name, registry_id)
            yield found

    @asynccontextmanager
    async def uploading(self, upload_id: str, name: str, registry_id: str) -> AsyncIterator[Upload]:
        """Find a repository's upload and keep all other changes away from it.

        Raises:
            AwsError: RepositoryNotFoundException, UploadNotFoundException; also if it was finished meanwhile.
        """
        self.repository(name, registry_id)
        found = self.uploads.get(upload_id.lower())
        if found is None or found.record.repository != name:
            raise upload_not_found(upload_id, name, registry_id)
        async with found.lock:
            if self.uploads.get(found.id) is not found:
                raise upload_not_found(upload_id, name, registry_id)
            yield found

    async def create_repository(self, record: RepositoryRecord, registry_id: str) -> Repository:
        """Make a repository.

        Raises:
            AwsError: RepositoryAlreadyExistsException.
        """
        if record.name in self.repositories:
            raise repository_exists(record.name, registry_id)
        created = Repository(self._repositories_path / record.name, record, self.disk)
        # Taken and locked before the first await: of two calls at once, the second is told that it exists.
        created.lock.acquire_nowait()
        self.repositories[record.name] = created
        try:
            await self.in_thread(created.create)
        except OSError:
            del self.repositories[record.name]
            raise
        finally:
            created.lock.release()
        return created

    async def delete_repository(self, name: str, registry_id: str, *, force: bool) -> Repository:
        """Remove a repository and the uploads into it.

        Raises:
            AwsError: RepositoryNotFoundException; RepositoryNotEmptyException if there are images and no *force*.
        """
        async with self.changing(name, registry_id) as repository:
            if repository.images and not force:
                raise repository_not_empty(name, registry_id)
            await self.in_thread(repository.delete)
            del self.repositories[name]
            orphans = [upload for upload in self.uploads.values() if upload.record.repository == name]
            for upload in orphans:
                del self.uploads[upload.id]
        # Outside of the repository's lock: CompleteLayerUpload takes an upload's first and the repository's second.
        for upload in orphans:
            async with upload.lock:
                await self.in_thread(upload.remove)
        return repository

    async def create_upload(self, repository: str) -> Upload:
        """Open an upload into a repository that exists."""
        upload = await self.in_thread(Upload.create, self._uploads_path / str(uuid.uuid4()), repository, self.disk)
        self.uploads[upload.id] = upload
        return upload

    async def remove_upload(self, upload: Upload) -> None:
        """Forget an upload, under its lock."""
        self.uploads.pop(upload.id, None)
        await self.in_thread(upload.remove)

    def _own(self) -> int:
        try:
            self._uploads_path.mkdir(parents=True, exist_ok=True)
            self._repositories_path.mkdir(exist_ok=True)
            descriptor = os.open(self._data / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UsageError(
                f"{self._data} can't hold the emulator's data: {error.strerror}",
                hint="name a directory that can be written",
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise UsageError(
                f"another emulator uses {self._data}", hint="stop it, or name another directory"
            ) from error
        return descriptor

    def _load(self) -> None:
        for directory, inner, files in os.walk(self._repositories_path, onerror=_raise):
            inner[:] = [name for name in inner if not name.startswith("_")]
            if RECORD in files:
                repository = self._load_repository(Path(directory))
                self.repositories[repository.name] = repository
        for path in self._uploads_path.iterdir():
            if not _UPLOAD.fullmatch(path.name):
                continue
            upload = self._load_upload(path)
            if upload is None:
                remove_tree(path)
            else:
                self.uploads[upload.id] = upload

    def _load_repository(self, directory: Path) -> Repository:
        try:
            record = msgspec.json.decode((directory / RECORD).read_bytes(), type=RepositoryRecord)
            repository = Repository(directory, record, self.disk)
            repository.load()
        except (OSError, ValueError, AwsError) as error:
            raise ValueError(f"{directory}: {error}") from error
        return repository

    def _load_upload(self, directory: Path) -> Upload | None:
        """An upload of an earlier run; None if it was being made or removed when that ended."""
        try:
            upload = Upload.load(directory, self.disk)
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        return upload if upload.record.repository in self.repositories else None


def now() -> float:
    """Seconds since 1970, as ECR's timestamps are."""
    return time.time()


def _raise(error: OSError) -> None:
    raise error
