"""The files of the store: the data directory, an OCI image layout for each repository, and atomic writes.

All functions and methods block.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from asyncpush import open_files
from asyncpush.emulator.registry import RegistryId
from asyncpush.emulator.store.catalog import FILE
from asyncpush.emulator.store.records import ImageRecord
from asyncpush.errors import UsageError
from asyncpush.model import Digest

_LOG = logging.getLogger(__name__)

_LOCK = "lock"

_DISCARDS = "discards"

#: Bytes of the longest file name that common file systems allow.
_LONGEST = 255

_DIRECTORIES = ("repositories", "uploads")

#: The directory of a layout; components of repositories' names begin with a letter or digit, so none equals it.
LAYOUT = "_layout"

#: The prefix of files that are being written; after a kill, nothing refers to them.
TEMPORARY = ".new-"

#: Bytes up to which a blob is kept even where layers are discarded: most configs, and the layers of tests.
KEPT = 1024 * 1024


@dataclass(frozen=True, slots=True)
class DataDirectory:
    """The directory that an emulator keeps its data in.

    ::

        lock                              held by the one emulator that uses the directory
        catalog.sqlite                    all but the blobs
        token-secret                      the secret that authenticates passwords for /v2/
        discards                          if present, the bytes of layers are discarded
        uploads/<id>                      the bytes of an upload
        repositories/ecr/<account>/<region>/<name>/_layout      a private repository, an OCI image layout
        repositories/ecr-public/<account>/<name>/_layout        a public one

    Attributes:
        path: the directory.
    """

    path: Path

    @property
    def catalog(self) -> Path:
        """The catalog's file."""
        return self.path / FILE

    @property
    def discards(self) -> Path:
        """The file that marks a directory that discards layers."""
        return self.path / _DISCARDS

    @property
    def uploads(self) -> Path:
        """The directory of the bytes of uploads."""
        return self.path / "uploads"

    @property
    def repositories(self) -> Path:
        """The directory of the layouts."""
        return self.path / "repositories"

    def holds_files(self) -> bool:
        """Whether there are uploads or layouts, which a catalog names; blocks."""
        return any(any((self.path / name).iterdir()) for name in _DIRECTORIES)

    def layout(self, registry: RegistryId, name: str) -> Path:
        """Where a repository's layout lies."""
        return self.repositories.joinpath(registry.path, *_components(name), LAYOUT)

    def own(self, *, make: bool) -> int:
        """Lock the directory until the returned descriptor is closed; does not wait for another owner.

        Args:
            make: create it where it is missing or empty.

        Raises:
            UsageError: it can't be used, is in use, or holds something else.
        """
        try:
            self._look(make=make)
            descriptor = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UsageError(
                f"{self.path} can't hold the emulator's data: {open_files.reason(error)}",
                hint="name a directory that can be written",
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise UsageError(f"another emulator uses {self.path}", hint="stop it, or name another directory") from error
        return descriptor

    def settle(self, discard: bool | None) -> bool:
        """Find out whether the directory discards layers, and mark a new one that should; blocks.

        It stays as it was created: recovery relies on layers that are all of one kind.

        Args:
            discard: whether it should; None accepts either.

        Returns:
            Whether it discards.

        Raises:
            UsageError: it does the other.
        """
        if discard and not self.catalog.exists():
            self.discards.touch()
        marked = self.discards.exists()
        if marked and discard is False:
            raise UsageError(f"{self.path} discards layers", hint="add --discard, or name another directory")
        if discard and not marked:
            raise UsageError(f"{self.path} keeps layers", hint="leave out --discard, or name a new directory")
        return marked

    def _look(self, *, make: bool) -> None:
        """Refuse a directory with other data before anything is written into it."""
        if make:
            self.path.mkdir(parents=True, exist_ok=True)
        elif not self.catalog.exists():
            raise UsageError(f"{self.path} is not an emulator's data directory", hint="name one that `serve` has used")
        if not self.catalog.exists() and (found := [path for path in self.path.iterdir() if _is_foreign(path)]):
            raise UsageError(
                f"{self.path} holds other data, such as {min(found).name}, and no {FILE}",
                hint="use a new or an empty directory",
            )
        for name in _DIRECTORIES:
            (self.path / name).mkdir(exist_ok=True)


def _components(name: str) -> Iterator[str]:
    """A repository's name as directories. One component of ECR's 256 characters is too long for a file system.

    The rest begins with ``_``, as no component can.
    """
    for component in name.split("/"):
        yield component[:_LONGEST]
        if len(component) > _LONGEST:
            yield f"_{component[_LONGEST:]}"


def _is_foreign(path: Path) -> bool:
    """Whether this entry shows that a directory without a catalog holds other data."""
    if path.name in _DIRECTORIES:
        return not path.is_dir() or any(path.iterdir())
    return (
        path.name not in (_LOCK, _DISCARDS, "lost+found")
        and not path.name.startswith(".")
        and not path.name.startswith(FILE)
    )


_MARK = b'{"imageLayoutVersion":"1.0.0"}'

_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"

_REF_NAME = "org.opencontainers.image.ref.name"

_HEX = re.compile(r"[a-f0-9]{64}")


class Layout:
    """The files of one repository; its methods block and raise OSError.

    Args:
        path: the layout's directory.
        disk: how to write.
    """

    def __init__(self, path: Path, disk: Disk) -> None:
        self.path = path
        self.blobs = path / "blobs" / "sha256"
        self._disk = disk

    @property
    def mark_path(self) -> Path:
        """The file that marks a layout."""
        return self.path / "oci-layout"

    @property
    def index_path(self) -> Path:
        """``index.json``."""
        return self.path / "index.json"

    def blob_path(self, digest: Digest) -> Path:
        """Where a blob or manifest lies."""
        return self.blobs / digest.hex

    def create(self) -> None:
        """Create it, empty; what a killed emulator left of it is removed."""
        self.delete()
        self._disk.make_directory(self.blobs)
        self.mark()
        self._disk.replace(self.index_path, index_bytes({}, {}))

    def mark(self) -> None:
        """Write the file that marks a layout."""
        self._disk.replace(self.mark_path, _MARK)

    def is_marked(self) -> bool:
        """Whether that file exists with the right content."""
        return _content(self.mark_path) == _MARK

    def delete(self) -> None:
        """Remove all of it; what can't be removed now is removed at the next start."""
        shutil.rmtree(self.path, ignore_errors=True)

    def adopt(self, source: Path, digest: Digest) -> None:
        """Move a file into the layout that was written and synced elsewhere in the data directory."""
        self._disk.move(source, self.blob_path(digest))

    def link(self, source: Path, digest: Digest) -> bool:
        """Hard-link another layout's blob; returns False where the file system can't, or the blob is missing."""
        try:
            self._disk.link(source, self.blob_path(digest))
        except OSError:
            return False
        return True

    def give_back(self, digest: Digest, source: Path) -> None:
        """Undo ``adopt``."""
        self._disk.move(self.blob_path(digest), source)

    def is_shell(self, digest: Digest) -> bool:
        """Whether a blob has a length and no bytes, where layers are discarded."""
        return self._disk.discard and is_shell(self.blob_path(digest))

    def write(self, digest: Digest, raw: bytes) -> None:
        """Write a manifest."""
        self._disk.replace(self.blob_path(digest), raw)

    def remove(self, digest: Digest) -> None:
        """Remove a blob, if it exists."""
        self.blob_path(digest).unlink(missing_ok=True)

    def has_index(self, index: bytes) -> bool:
        """Whether index.json has this content."""
        return _content(self.index_path) == index

    def show(self, index: bytes) -> None:
        """Rewrite index.json; on a full disk it stays out of date until the next change or start."""
        try:
            Disk(fsync=False).replace(self.index_path, index)
        except OSError as error:
            _LOG.warning("%s is out of date: %s", self.index_path, error)


class _Entry(msgspec.Struct, rename="camel", omit_defaults=True):
    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = {}


class _Index(msgspec.Struct, rename="camel"):
    schema_version: int = 2
    media_type: str = _INDEX_TYPE
    manifests: list[_Entry] = []


def index_bytes(images: Mapping[Digest, ImageRecord], tags: Mapping[str, Digest]) -> bytes:
    """The index.json of a repository: an entry for each tag, and one for each untagged image."""
    return msgspec.json.encode(_Index(manifests=list(_entries(images, tags))))


def tags_by_image(tags: Mapping[str, Digest]) -> dict[Digest, list[str]]:
    """The sorted tags of each tagged image."""
    names: dict[Digest, list[str]] = {}
    for tag in sorted(tags):
        names.setdefault(tags[tag], []).append(tag)
    return names


def is_blob_name(name: str) -> bool:
    """Whether a file name in the directory of blobs is a blob's."""
    return _HEX.fullmatch(name) is not None


def _entries(images: Mapping[Digest, ImageRecord], tags: Mapping[str, Digest]) -> Iterator[_Entry]:
    names = tags_by_image(tags)
    for digest, image in images.items():
        manifest = image.manifest
        for labels in [{_REF_NAME: tag} for tag in names.get(digest, ())] or [{}]:
            yield _Entry(manifest.media_type, str(digest), manifest.size, labels)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


@dataclass(frozen=True, slots=True)
class Disk:
    """Writes files; all methods block and raise OSError.

    Attributes:
        fsync: whether what was written must survive a power cut, not only the end of the process.
        discard: whether layers are stored as shells: sparse files of the right length, without bytes.
    """

    fsync: bool = True
    discard: bool = False

    def replace(self, path: Path, data: bytes) -> None:
        """Put *data* at *path*, atomically."""
        beside = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
        try:
            with beside.open("wb") as file:
                file.write(data)
                file.flush()
                self.sync(file.fileno())
            beside.replace(path)
        except OSError:
            beside.unlink(missing_ok=True)
            raise
        self.sync_directory(path.parent)

    def make_directory(self, path: Path) -> None:
        """Create a directory and its missing parents."""
        missing = [path, *(parent for parent in path.parents if not parent.exists())]
        path.mkdir(parents=True)
        for directory in missing:
            self.sync_directory(directory.parent)

    def move(self, source: Path, target: Path) -> None:
        """Move a file that is written and synced to its place, atomically."""
        source.replace(target)
        self.sync_directory(target.parent)

    def link(self, source: Path, target: Path) -> None:
        """Hard-link a file that is written and synced, replacing the target."""
        target.unlink(missing_ok=True)
        target.hardlink_to(source)
        self.sync_directory(target.parent)

    def sync(self, descriptor: int) -> None:
        """Flush an open file to the disk, where ``fsync`` is set."""
        if self.fsync:
            os.fsync(descriptor)

    def write_out(self, descriptor: int) -> None:
        """Let the kernel begin to write an open file out, and drop what is written from memory.

        For long files that are not read again soon: the sync in the end finds little left to do,
        and the next file takes the same memory, which on a virtual machine costs a tenth of memory never touched.
        """
        if self.fsync and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def sync_directory(self, path: Path) -> None:
        """Flush the names in a directory to the disk, where ``fsync`` is set."""
        if self.fsync:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of *data* at *offset*; a short write, as on a filling disk, is continued until it fails."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written


def is_kept(size: int, first: bytes | memoryview) -> bool:
    """Whether a blob is kept where layers are discarded: it is short, or a JSON document such as a config.

    Args:
        size: its bytes so far.
        first: its first bytes.
    """
    return size <= KEPT or bytes(first[:1]) == b"{"


def is_shell(path: Path) -> bool:
    """Whether a file, in a directory that discards layers, is a shell; blocks."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    return status.st_size > KEPT and status.st_blocks * 512 < KEPT // 2
