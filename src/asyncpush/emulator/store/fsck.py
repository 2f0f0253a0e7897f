"""Checks of a data directory: what the catalog says against what the disk holds.

At start, ``open_recovered`` compares names and sizes and repairs what a killed emulator left behind. Offline, ``check``
also reads and hashes every byte, and changes nothing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import anyio
from anyio import from_thread

from asyncpush.emulator.store.disk import KEPT, LAYOUT, TEMPORARY, is_blob_name, is_shell
from asyncpush.emulator.store.repository import RepositoryState
from asyncpush.emulator.store.state import DamagedDataError, Store
from asyncpush.emulator.store.uploads import StagedUpload
from asyncpush.model import Digest

#: ``damage``: something acknowledged is missing; ``leftover``: a killed emulator was at work, and the next start
#: repairs it; ``stray``: a file that no emulator wrote, and none touches.
Grade = Literal["damage", "leftover", "stray"]

_UPLOAD_NAME = 36

_BLOCK = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Finding:
    """One difference between the disk and the catalog.

    Attributes:
        grade: how bad it is.
        path: the file or directory.
        problem: what is wrong with it.
        repair: repairs a leftover.
    """

    grade: Grade
    path: Path
    problem: str
    repair: Callable[[], object] | None = None

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


def open_recovered(store: Store) -> None:
    """Open a store, repair what a killed emulator left in it, and refuse a damaged one; blocks.

    Raises:
        UsageError: the directory can't be used, or an acknowledged blob is missing or has another size.
    """
    store.open()
    try:
        _recover(store)
    except OSError as error:
        store.close()
        raise DamagedDataError(store.directory.path, str(error)) from error
    except BaseException:
        store.close()
        raise


def _recover(store: Store) -> None:
    findings = list(survey(store))
    for finding in findings:
        if finding.grade == "damage":
            raise DamagedDataError(store.directory.path, str(finding))
    for finding in findings:
        if finding.repair:
            finding.repair()


def survey(store: Store) -> Iterator[Finding]:
    """Compare names and sizes, not contents, and change nothing; blocks."""
    moved = {}
    for upload in store.uploads.values():
        if store.disk.discard and upload.record.received > KEPT:
            yield _unfinished_shell(store, upload)
            continue
        finding = _upload(upload)
        if finding is None:
            continue
        if blob := _moved_to(store, upload):
            moved[blob] = upload
            yield Finding("leftover", blob, "was being completed", partial(os.rename, blob, upload.path))
        else:
            yield finding
    yield from _stray_uploads(store)
    for held in store.repositories.values():
        for repository in held.values():
            yield from _repository(repository, moved)
    yield from _stray_layouts(store)


def _unfinished_shell(store: Store, upload: StagedUpload) -> Finding:
    """An upload whose digest only the killed emulator knew: its bytes were discarded."""

    def forget() -> None:
        del store.uploads[upload.id]
        upload.remove()

    return Finding("leftover", upload.path, "has discarded bytes, and can't go on", forget)


def _upload(upload: StagedUpload) -> Finding | None:
    size, received = _size(upload.path), upload.record.received
    if (size or 0) >= received:
        return None
    # Parts are not synced: a power cut may have taken acknowledged bytes, which the client learns by the next answer.
    return Finding(
        "leftover",
        upload.path,
        f"has {size or 0} bytes of {received}: a power cut took the rest",
        partial(upload.shorten, size or 0),
    )


def _moved_to(store: Store, upload: StagedUpload) -> Path | None:
    """The blob of an upload that was being completed: moved already, and not yet a layer in the catalog."""
    if upload.path.exists() or not upload.record.digest:
        return None
    digest = Digest(upload.record.digest)
    repository = _repository_of(store, upload)
    if repository is None or digest in repository.layers or digest in repository.images:
        return None
    blob = repository.blob_path(digest)
    return blob if _size(blob) == upload.record.received else None


def _repository_of(store: Store, upload: StagedUpload) -> RepositoryState | None:
    for held in store.repositories.values():
        for repository in held.values():
            if repository.key == upload.record.repository:
                return repository
    return None


def _stray_uploads(store: Store) -> Iterator[Finding]:
    for path in store.directory.uploads.iterdir():
        if path.name in store.uploads:
            continue
        if len(path.name) == _UPLOAD_NAME and path.is_file():
            yield Finding("leftover", path, "belongs to no upload", path.unlink)
        else:
            yield Finding("stray", path, "is not an upload")


def _repository(repository: RepositoryState, moved: dict[Path, StagedUpload]) -> Iterator[Finding]:
    layout = repository.layout
    if not layout.blobs.is_dir():
        yield Finding("damage", layout.blobs, "is not there")
        return
    yield from _blobs(repository, moved)
    if not layout.is_marked():
        yield Finding("leftover", layout.mark_path, "does not say that this is a layout", layout.mark)
    index = repository.index
    if not layout.has_index(index):
        yield Finding("leftover", layout.index_path, "is out of date", partial(layout.show, index))
    known = {layout.mark_path, layout.index_path, layout.blobs.parent}
    for path in layout.path.iterdir():
        if path not in known:
            yield _unknown(path)


def _blobs(repository: RepositoryState, moved: dict[Path, StagedUpload]) -> Iterator[Finding]:
    expected = {digest.hex: size for digest, size in repository.layers.items()}
    expected |= {digest.hex: image.manifest.size for digest, image in repository.images.items()}
    with os.scandir(repository.layout.blobs) as entries:
        for entry in entries:
            path = Path(entry.path)
            size = expected.pop(entry.name, None)
            if size is None:
                if path not in moved:
                    yield _unknown(path)
            elif (actual := entry.stat().st_size) != size:
                yield Finding("damage", path, f"has {actual} bytes, not {size}")
    for name in expected:
        yield Finding("damage", repository.layout.blobs / name, "is not there")


def _unknown(path: Path) -> Finding:
    if path.name.startswith(TEMPORARY):
        return Finding("leftover", path, "was being written", path.unlink)
    if is_blob_name(path.name):
        return Finding("leftover", path, "belongs to no layer and no image", path.unlink)
    return Finding("stray", path, "is nothing that an emulator writes")


def _stray_layouts(store: Store) -> Iterator[Finding]:
    held = {repository.layout.path for held in store.repositories.values() for repository in held.values()}
    for directory, inner, files in os.walk(store.directory.repositories):
        here = Path(directory)
        if LAYOUT in inner:
            inner.remove(LAYOUT)
            if here / LAYOUT not in held:
                yield Finding(
                    "leftover", here / LAYOUT, "belongs to no repository", partial(shutil.rmtree, here / LAYOUT)
                )
        for name in files:
            yield Finding("stray", here / name, "is nothing that an emulator writes")


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None


@dataclass(slots=True)
class FsckResult:
    """What a check has covered and found.

    Attributes:
        repositories: how many.
        images: how many.
        uploads: unfinished ones.
        blobs: files that were read and hashed.
        size: their bytes.
        damaged: findings of the grade ``damage``.
        stray: findings of the grade ``stray``.
        leftover: findings of the grade ``leftover``; a kill leaves them, and they are no fault.
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
        """Whether everything acknowledged is present, and nothing else."""
        return not self.damaged and not self.stray


async def check(data: Path, report: Callable[[Finding], None]) -> FsckResult:
    """Check a directory that no emulator uses: SQLite's own checks, references, names and sizes, and every hash.

    Args:
        data: the data directory.
        report: is called with each finding, in the event loop's thread.

    Raises:
        UsageError: the directory is not an emulator's, or is in use.
        DamagedDataError: its catalog can't be read at all.
        OSError: it can't be read.
    """
    run = _Check(report)
    async with _opened(data) as store:
        for finding in await store.in_thread(lambda: [*_catalog_findings(store), *survey(store)]):
            run.note(finding)
        checked, held = run.checked, [each for inner in store.repositories.values() for each in inner.values()]
        checked.repositories, checked.uploads = len(held), len(store.uploads)
        checked.images = sum(len(repository.images) for repository in held)
        files = (file for file in _files(store, held) if file.path not in run.known)
        async with anyio.create_task_group() as group:
            for _ in range(os.cpu_count() or 1):
                group.start_soon(_hash_all, store, files, run)
    return run.checked


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
        if digest is None:  # an upload that was being completed (already reported), or discarded
            continue
        run.checked.blobs += 1
        run.checked.size += file.size
        if digest != file.digest:
            run.note(Finding("damage", file.path, f"has the digest sha256:{digest}, not sha256:{file.digest}"))


def _digest(file: _File, discards: bool) -> str | None:
    """The digest of a file, hex; None if it is missing, or a shell where shells are allowed."""
    if not file.path.exists() or (discards and is_shell(file.path)):
        return None
    hasher, rest = hashlib.sha256(), file.size
    with file.path.open("rb", buffering=0) as opened:
        while rest and (block := opened.read(min(rest, _BLOCK))):
            from_thread.check_cancelled()
            hasher.update(block)
            rest -= len(block)
    return hasher.hexdigest()


def _catalog_findings(store: Store) -> Iterator[Finding]:
    for problem in store.catalog.problems():
        yield Finding("damage", store.directory.catalog, problem)
    for held in store.repositories.values():
        for repository in held.values():
            yield from _references(repository)


def _references(repository: RepositoryState) -> Iterator[Finding]:
    for digest, image in repository.images.items():
        missing_digests = [blob.digest for blob in image.manifest.blobs if blob.sha256 not in repository.layers]
        missing_digests += [child.digest for child in image.manifest.children if child.sha256 not in repository.images]
        for missing in missing_digests:
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
