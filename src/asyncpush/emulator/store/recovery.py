"""What the data directory holds against what the catalog says: damage, what a kill left, what is another's."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from asyncpush.emulator.store.disk import KEPT, TEMPORARY
from asyncpush.emulator.store.layout import LAYOUT, is_blob_name
from asyncpush.emulator.store.repository import RepositoryState
from asyncpush.emulator.store.state import DamagedDataError, Store
from asyncpush.emulator.store.uploads import StagedUpload
from asyncpush.model import Digest

#: ``damage``: something acknowledged is not there; ``leftover``: a killed emulator was at work, and the next start
#: makes it right; ``stray``: a file that no emulator put there, and none touches.
Grade = Literal["damage", "leftover", "stray"]

_UPLOAD_NAME = 36


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as the catalog says.

    Attributes:
        grade: how bad it is.
        path: the file or directory.
        problem: what is wrong with it.
        repair: makes a leftover right.
    """

    grade: Grade
    path: Path
    problem: str
    repair: Callable[[], object] | None = None

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


def open_recovered(store: Store) -> None:
    """Open a store, make right what a killed emulator left in it, and refuse what is damaged; blocks.

    Raises:
        UsageError: the directory can't be used, or a blob that was acknowledged is gone or has another size.
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
    """Compare names and sizes, not contents; blocks. Nothing is changed."""
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
    """An upload whose digest was in the memory of an emulator that is gone, and can't be read from anywhere."""

    def forget() -> None:
        del store.uploads[upload.id]
        upload.remove()

    return Finding("leftover", upload.path, "has discarded bytes, and can't go on", forget)


def _upload(upload: StagedUpload) -> Finding | None:
    size, received = _size(upload.path), upload.record.received
    if (size or 0) >= received:
        return None
    # Without an fsync for each part, a power cut may have taken bytes that were acknowledged: the client is told so.
    return Finding(
        "leftover",
        upload.path,
        f"has {size or 0} bytes of {received}: a power cut took the rest",
        partial(upload.shorten, size or 0),
    )


def _moved_to(store: Store, upload: StagedUpload) -> Path | None:
    """Where the bytes of an upload are that was being completed: moved, and not yet entered as a layer."""
    if upload.path.exists() or not upload.record.digest:
        return None
    digest = Digest(upload.record.digest)
    repository = _of(store, upload)
    if repository is None or digest in repository.layers or digest in repository.images:
        return None
    blob = repository.blob_path(digest)
    return blob if _size(blob) == upload.record.received else None


def _of(store: Store, upload: StagedUpload) -> RepositoryState | None:
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
