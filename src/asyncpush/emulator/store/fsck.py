"""A check of a data directory, byte by byte: what the catalog says against what the disk holds. Nothing is changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import anyio
from anyio import from_thread

from asyncpush.emulator.store.disk import KEPT, is_shell
from asyncpush.emulator.store.recovery import Finding, survey
from asyncpush.emulator.store.repository import RepositoryState
from asyncpush.emulator.store.state import Store

_BLOCK = 4 * 1024 * 1024


@dataclass(slots=True)
class FsckResult:
    """What a check went through.

    Attributes:
        repositories: how many.
        images: how many.
        uploads: unfinished ones.
        blobs: files that were read and hashed.
        size: their bytes.
        damaged: findings of the grade ``damage``.
        stray: findings of the grade ``stray``.
        leftover: findings of the grade ``leftover``; they are what a kill leaves, and no fault.
    """

    repositories: int = 0
    images: int = 0
    uploads: int = 0
    blobs: int = 0
    size: int = 0
    damaged: int = 0
    stray: int = 0
    leftover: int = 0

    @property
    def is_clean(self) -> bool:
        """Whether everything that was acknowledged is there, and nothing else."""
        return not self.damaged and not self.stray


@dataclass(frozen=True, slots=True)
class _File:
    """A file to hash: its first *size* bytes must have this digest (hex)."""

    path: Path
    size: int
    digest: str


@dataclass(slots=True)
class _Check:
    report: Callable[[Finding], None]
    checked: FsckResult = field(default_factory=FsckResult)
    known: set[Path] = field(default_factory=set)

    def note(self, finding: Finding) -> None:
        self.known.add(finding.path)
        if finding.grade == "damage":
            self.checked.damaged += 1
        elif finding.grade == "stray":
            self.checked.stray += 1
        else:
            self.checked.leftover += 1
        self.report(finding)


async def check(data: Path, report: Callable[[Finding], None]) -> FsckResult:
    """Check a directory that no emulator uses: SQLite's own checks, references, names and sizes, and every hash.

    Args:
        data: the data directory.
        report: hears of each finding, in the event loop's thread.

    Raises:
        UsageError: the directory is none of an emulator's, or one uses it.
        DamagedDataError: its catalog can't be read at all.
        OSError: it can't be read.
    """
    run = _Check(report)
    async with _opened(data) as store:
        for finding in await store.in_thread(lambda: [*_of_catalog(store), *survey(store)]):
            run.note(finding)
        checked, held = run.checked, [each for inner in store.repositories.values() for each in inner.values()]
        checked.repositories, checked.uploads = len(held), len(store.uploads)
        checked.images = sum(len(repository.images) for repository in held)
        files = (file for file in _files(store, held) if file.path not in run.known)
        async with anyio.create_task_group() as group:
            for _ in range(os.cpu_count() or 1):
                group.start_soon(_hash_all, store, files, run)
    return run.checked


@asynccontextmanager
async def _opened(data: Path) -> AsyncIterator[Store]:
    store = Store(data, fsync=False)
    await store.in_thread(partial(store.open, make=False))
    try:
        yield store
    finally:
        with anyio.CancelScope(shield=True):
            await store.in_thread(store.close)


async def _hash_all(store: Store, files: Iterator[_File], run: _Check) -> None:
    for file in files:
        digest = await store.in_thread(_digest, file, store.disk.discard)
        if digest is None:  # an upload that was being completed (the survey has told), or discarded
            continue
        run.checked.blobs += 1
        run.checked.size += file.size
        if digest != file.digest:
            run.note(Finding("damage", file.path, f"has the digest sha256:{digest}, not sha256:{file.digest}"))


def _digest(file: _File, discards: bool) -> str | None:
    """The digest of a file, hex; None if it is not there, or a shell where it may be one."""
    if not file.path.exists() or (discards and is_shell(file.path)):
        return None
    hasher, rest = hashlib.sha256(), file.size
    with file.path.open("rb", buffering=0) as opened:
        while rest and (block := opened.read(min(rest, _BLOCK))):
            from_thread.check_cancelled()
            hasher.update(block)
            rest -= len(block)
    return hasher.hexdigest()


def _of_catalog(store: Store) -> Iterator[Finding]:
    for problem in store.catalog.problems():
        yield Finding("damage", store.directory.catalog, problem)
    for held in store.repositories.values():
        for repository in held.values():
            yield from _references(repository)


def _references(repository: RepositoryState) -> Iterator[Finding]:
    for digest, image in repository.images.items():
        lost = [blob.digest for blob in image.manifest.blobs if blob.sha256 not in repository.layers]
        lost += [child.digest for child in image.manifest.children if child.sha256 not in repository.images]
        for missing in lost:
            yield Finding("damage", repository.blob_path(digest), f"needs {missing}, which its repository lacks")
    for tag, digest in repository.tags.items():
        if digest not in repository.images:
            yield Finding("damage", repository.layout.path, f"tag {tag} names {digest}, which is not an image of it")


def _files(store: Store, held: list[RepositoryState]) -> Iterator[_File]:
    for repository in held:
        sizes = repository.layers | {digest: image.manifest.size for digest, image in repository.images.items()}
        for digest, size in sizes.items():
            yield _File(repository.blob_path(digest), size, digest.hex)
    for upload in store.uploads.values():
        discarded = store.disk.discard and upload.record.received > KEPT
        if upload.record.received and upload.record.digest and not discarded:
            yield _File(upload.path, upload.record.received, upload.record.digest)
