"""What the emulator holds, in memory: repositories by registry, uploads, account settings.

Changes reach the disk before they are visible here, and are carried to their end (``BackgroundTasks``) even when the
client disconnects or the emulator closes.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Generic, TypeVar, TypeVarTuple, Unpack

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup

from asyncpush.emulator.errors import (
    repository_exists,
    repository_not_empty,
    repository_not_found,
    upload_not_found,
)
from asyncpush.emulator.registry import RegistryId, RequestTarget
from asyncpush.emulator.store.catalog import Catalog
from asyncpush.emulator.store.disk import DataDirectory, Disk, Layout
from asyncpush.emulator.store.records import RepositoryRecord, TemplateRecord, UploadRecord
from asyncpush.emulator.store.repository import RepositoryState
from asyncpush.emulator.store.uploads import StagedUpload
from asyncpush.errors import UsageError

T = TypeVar("T")

Ts = TypeVarTuple("Ts")

#: Threads of the emulator's own, so that it never starves a client in its process, nor is starved by it.
_THREADS = 16

#: A template's prefix for all repositories that no other template is for.
ROOT: Final = "ROOT"

CREATE_ON_PUSH: Final = "CREATE_ON_PUSH"


class DamagedDataError(UsageError):
    """Raised when a data directory is an emulator's, but none can go on with it.

    Args:
        data: the directory.
        problem: what is wrong in it.
    """

    def __init__(self, data: Path, problem: str) -> None:
        super().__init__(
            f"{data} can't be read as an emulator's data: {problem}",
            hint="run `asyncpush serve --check --data DIR` for details, or use another directory",
        )


class Store:
    """All that the emulator holds, indexed in memory; changes are on disk before they are seen.

    Args:
        data: the data directory.
        fsync: whether layers, images and settings must outlive a power cut.
        upload_lifetime: seconds after which an upload expires; 0 keeps it.
        discard: whether the bytes of layers are dropped; None does as the directory did so far.

    Attributes:
        disk: how files are written.
        repositories: by registry and name.
        uploads: by id.
        accounts: settings and creation templates, once it is open.
        catalog: where all of it is kept, once it is open.
    """

    accounts: AccountSettings
    catalog: Catalog

    def __init__(self, data: Path, *, fsync: bool, upload_lifetime: int = 0, discard: bool | None = None) -> None:
        self.directory = DataDirectory(data)
        self.disk = Disk(fsync)
        self.repositories: dict[RegistryId, dict[str, RepositoryState]] = {}
        self.uploads: dict[str, StagedUpload] = {}
        self._upload_lifetime = upload_lifetime
        self._discard = discard
        self._threads = anyio.CapacityLimiter(_THREADS)

    async def in_thread(self, work: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
        """Run blocking work in one of the emulator's threads."""
        return await anyio.to_thread.run_sync(work, *args, limiter=self._threads)

    def open(self, *, make: bool = True) -> None:
        """Own the directory and read its catalog; blocks.

        Args:
            make: make the directory where it is missing or empty.

        Raises:
            UsageError: it can't be used, is damaged, or another emulator uses it.
        """
        self._lock = self.directory.own(make=make)
        try:
            self.disk = Disk(self.disk.fsync, self.directory.settle(self._discard))
            self.catalog = Catalog.open(
                self.directory.catalog, fsync=self.disk.fsync, new=not self.directory.holds_files()
            )
            try:
                self._load()
            except BaseException:
                self.catalog.close()
                raise
        except (OSError, ValueError, LookupError) as error:
            os.close(self._lock)
            raise DamagedDataError(self.directory.path, str(error)) from error
        except BaseException:
            os.close(self._lock)
            raise

    def close(self) -> None:
        """Leave the directory to others; blocks."""
        self.catalog.close()
        os.close(self._lock)

    def repositories_of(self, registry: RegistryId) -> Mapping[str, RepositoryState]:
        """A registry's repositories by name."""
        return self.repositories.get(registry, {})

    def repository(self, target: RequestTarget, name: str) -> RepositoryState:
        """Find a repository.

        Raises:
            AwsError: RepositoryNotFoundException.
        """
        found = self.repositories_of(target.registry).get(name)
        if found is None:
            raise repository_not_found(name, target.id)
        return found

    def find(self, name: str, registry: RegistryId | None) -> RepositoryState | None:
        """A repository that ``/v2/`` is asked for: in a registry, or, at a bare address, in the first one that has it.

        The default account's in the default region comes first, then private ones before public ones, in order.
        """
        if registry is not None:
            return self.repositories_of(registry).get(name)
        registries = [each for each, repositories in self.repositories.items() if name in repositories]
        default = RegistryId()
        chosen = default if default in registries else min(registries, default=None)
        return self.repositories[chosen][name] if chosen else None

    @asynccontextmanager
    async def changing(self, target: RequestTarget, name: str) -> AsyncIterator[RepositoryState]:
        """Find a repository and lock it for a change.

        Raises:
            AwsError: RepositoryNotFoundException, also if it is deleted meanwhile.
        """
        found = self.repository(target, name)
        async with found.lock:
            if self.repositories_of(target.registry).get(name) is not found:
                raise repository_not_found(name, target.id)
            yield found

    @asynccontextmanager
    async def uploading(self, upload_id: str, target: RequestTarget, name: str) -> AsyncIterator[StagedUpload]:
        """Find a repository's upload and lock it for a change.

        Raises:
            AwsError: RepositoryNotFoundException, UploadNotFoundException; also if it is finished meanwhile.
        """
        repository = self.repository(target, name)
        found = self.uploads.get(upload_id.lower())
        if found is None or found.record.repository != repository.key:
            raise upload_not_found(upload_id, name, target.id)
        async with found.lock:
            if self._upload_lifetime and now() - found.record.created_at > self._upload_lifetime:
                await self.remove_upload(found)
            if self.uploads.get(found.id) is not found:
                raise upload_not_found(upload_id, name, target.id)
            yield found

    async def create_repository(self, record: RepositoryRecord, target: RequestTarget) -> RepositoryState:
        """Create a repository.

        Raises:
            AwsError: RepositoryAlreadyExistsException.
        """
        if record.name in self.repositories_of(target.registry):
            raise repository_exists(record.name, target.id)
        repositories = self.repositories.setdefault(target.registry, {})
        created = self._new(target.registry, record)
        # Added and locked before the first await: of two concurrent calls, the second one finds that it exists.
        created.lock.acquire_nowait()
        repositories[record.name] = created
        try:
            await self.in_thread(created.create)
        except OSError:
            del repositories[record.name]
            raise
        finally:
            created.lock.release()
        return created

    async def create_on_push(self, registry: RegistryId, name: str) -> RepositoryState | None:
        """Find a repository, or create it by the registry's creation templates; None if no template matches.

        Only templates that are applied for CREATE_ON_PUSH count: the longest prefix, else ROOT's. *name* becomes a
        path: the caller has checked that it is a repository's.
        """
        if found := self.repositories_of(registry).get(name):
            async with found.lock:  # another push may be creating it
                return self.repositories_of(registry).get(name)
        template = self.accounts.template_for(registry, name)
        if template is None or registry.is_public:
            return None
        return await self.create_repository(_from_template(template, name), RequestTarget(registry, registry.account))

    async def delete_repository(self, target: RequestTarget, name: str, *, force: bool) -> RepositoryState:
        """Remove a repository and the uploads into it.

        Raises:
            AwsError: RepositoryNotFoundException; RepositoryNotEmptyException if there are images and no *force*.
        """
        async with self.changing(target, name) as repository:
            if repository.images and not force:
                raise repository_not_empty(name, target.id)
            await self.in_thread(repository.delete)
            del self.repositories[target.registry][name]
            orphans = [upload for upload in self.uploads.values() if upload.record.repository == repository.key]
            for upload in orphans:
                del self.uploads[upload.id]
        # Outside of the repository's lock: CompleteLayerUpload locks an upload first and the repository second.
        for upload in orphans:
            async with upload.lock:
                await self.in_thread(upload.discard)
        return repository

    async def create_upload(self, repository: RepositoryState) -> StagedUpload:
        """Create an upload into an existing repository."""
        upload = self._upload(UploadRecord(str(uuid.uuid4()), repository.key, now()))
        await self.in_thread(upload.create)
        self.uploads[upload.id] = upload
        return upload

    async def remove_upload(self, upload: StagedUpload) -> None:
        """Remove an upload, under its lock."""
        self.uploads.pop(upload.id, None)
        await self.in_thread(upload.remove)

    async def expire_upload(self, upload_id: str) -> None:
        """Remove an upload if it exists, as ECR does with one that is not continued."""
        if upload := self.uploads.get(upload_id.lower()):
            async with upload.lock:
                await self.remove_upload(upload)

    def _load(self) -> None:
        by_key: dict[int, RepositoryState] = {}
        for key, registry, record in self.catalog.repositories():
            by_key[key] = self._new(registry, record, key=key)
            self.repositories.setdefault(registry, {})[record.name] = by_key[key]
        for key, image in self.catalog.images():
            by_key[key].restore(image)
        for key, tag, digest in self.catalog.tags():
            by_key[key].tags[tag] = digest
        for key, digest, size in self.catalog.layers():
            by_key[key].layers[digest] = size
        self.uploads = {record.id: self._upload(record) for record in self.catalog.uploads()}
        self.accounts = AccountSettings(self.catalog)

    def _new(self, registry: RegistryId, record: RepositoryRecord, *, key: int = 0) -> RepositoryState:
        layout = Layout(self.directory.layout(registry, record.name), self.disk)
        return RepositoryState(registry, record, layout, self.catalog, key=key)

    def _upload(self, record: UploadRecord) -> StagedUpload:
        return StagedUpload(self.directory.uploads / record.id, record, self.catalog)


def now() -> float:
    """Seconds since 1970, as ECR's timestamps are."""
    return time.time()


def _from_template(template: TemplateRecord, name: str) -> RepositoryRecord:
    return RepositoryRecord(
        name=name,
        created_at=now(),
        mutability=template.mutability,
        exclusion_filters=template.exclusion_filters,
        encryption=template.encryption,
        tags=template.tags,
        policy=template.policy,
        lifecycle_policy=template.lifecycle_policy,
    )


class AccountSettings:
    """Settings and templates of all registries: in memory, and changed in the catalog first.

    Changes block; they are made one at a time, under ``lock``.
    """

    def __init__(self, catalog: Catalog) -> None:
        self.lock = anyio.Lock()
        self._catalog = catalog
        self._settings = {(registry, name): value for registry, name, value in catalog.settings()}
        self._templates: dict[RegistryId, dict[str, TemplateRecord]] = {}
        for registry, record in catalog.templates():
            self._templates.setdefault(registry, {})[record.prefix] = record

    def setting(self, registry: RegistryId, name: str) -> str | None:
        """An account setting; None if it was never set."""
        return self._settings.get((registry, name))

    def set(self, registry: RegistryId, name: str, value: str) -> None:
        """Set an account setting."""
        with self._catalog.writing() as writes:
            writes.set_setting(registry, name, value)
        self._settings[registry, name] = value

    def templates(self, registry: RegistryId) -> Mapping[str, TemplateRecord]:
        """A registry's templates by prefix."""
        return self._templates.get(registry, {})

    def put_template(self, registry: RegistryId, record: TemplateRecord) -> None:
        """Create or replace a template."""
        with self._catalog.writing() as writes:
            writes.set_template(registry, record)
        self._templates.setdefault(registry, {})[record.prefix] = record

    def remove_template(self, registry: RegistryId, prefix: str) -> None:
        """Remove a template."""
        with self._catalog.writing() as writes:
            writes.remove_template(registry, prefix)
        del self._templates[registry][prefix]

    def registry_for(self, name: str) -> RegistryId | None:
        """Where a push that names no registry creates a repository: the default one, else the first with a template."""
        creating = [registry for registry in self._templates if self.template_for(registry, name)]
        return RegistryId() if RegistryId() in creating else min(creating, default=None)

    def template_for(self, registry: RegistryId, name: str) -> TemplateRecord | None:
        """The template by which a push creates a repository: the longest namespace that *name* is in, else ROOT's."""
        pushing = [each for each in self.templates(registry).values() if CREATE_ON_PUSH in each.applied_for]
        prefixed = [each for each in pushing if f"{name}/".startswith(f"{each.prefix.rstrip('/')}/")]
        rooted = [each for each in pushing if each.prefix == ROOT]
        return max(prefixed, key=lambda each: len(each.prefix.rstrip("/")), default=rooted[0] if rooted else None)


class BackgroundTask(Generic[T]):
    """Work under way, whose result may be awaited."""

    def __init__(self) -> None:
        self._done = anyio.Event()
        self._values: list[T] = []
        self._error: Exception | None = None

    async def result(self) -> T:
        """Wait for its end; raises what the work raised."""
        await self._done.wait()
        if self._error:
            raise self._error
        return self._values[0]

    async def run(self, work: Callable[[], Awaitable[T]]) -> None:
        """Do the work, shielded from cancellation."""
        try:
            with anyio.CancelScope(shield=True):
                self._values.append(await work())
        except Exception as error:  # noqa: BLE001 - it is raised where the result is asked for
            self._error = error
        finally:
            self._done.set()


class BackgroundTasks:
    """Carries work to its end, whether or not the client that asked for it stays connected.

    Args:
        group: the emulator's task group, which ends after all work.
    """

    def __init__(self, group: TaskGroup) -> None:
        self._group = group

    def start(self, work: Callable[[], Awaitable[T]]) -> BackgroundTask[T]:
        """Start the work, and return at once."""
        started: BackgroundTask[T] = BackgroundTask()
        self._group.start_soon(started.run, work)
        return started

    async def finish(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do the work, and wait for its result."""
        return await self.start(work).result()
