"""Bytes at rest: a file, a region of an archive, bytes in memory; opened any number of times, read in threads.

Documents (manifests, configs, lists of images) are read whole, and ``DocumentMemory`` bounds what those of all open
sources take: a small archive can hold gigabytes of them.
"""

from __future__ import annotations

import hashlib
import stat
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from io import FileIO
from operator import attrgetter
from pathlib import Path
from threading import Lock
from typing import Protocol, TypeVar

import msgspec
from anyio import from_thread, to_thread

from asyncpush import open_files
from asyncpush.errors import DigestMismatchError, EmptyLayerError, ManifestError, SourceError
from asyncpush.manifest import count_values, refuse_many_values
from asyncpush.model import Descriptor, Digest
from asyncpush.protocols import Blob, BlobReader
from asyncpush.settings import MiB
from asyncpush.sources.file_pool import KeptFile, ReadFile

Document = TypeVar("Document")

#: Bytes of the longest JSON document that is read: an image's config, a layout's index, an archive's manifest.json.
MAX_DOCUMENT_SIZE = 8 * MiB

#: Bytes for all open sources, beside the allowance of each for its own size.
MAX_MEMORY = 32 * MiB

#: Bytes of memory for each byte of a source: uncompressed documents take no more, unless crafted to.
_ALLOWANCE_FACTOR = 4

#: A document is held as its bytes and as the strings in it.
_COPIES = 2

#: Bytes that a decoded JSON value takes.
_VALUE_SIZE = 64


class Content(Protocol):
    """Stored bytes: their number, and a way to read them. All methods block."""

    @property
    def label(self) -> str:
        """Their name in errors."""
        ...

    @property
    def size(self) -> int:
        """The number of bytes."""
        ...

    def open(self) -> AbstractContextManager[BlobReader]:
        """Open them for reading from the first byte."""
        ...


class BlobStore(Protocol):
    """Contents by name: a directory or an archive."""

    @property
    def label(self) -> str:
        """Its name in errors."""
        ...

    def find(self, name: str) -> Content | None:
        """The content called *name*, a relative path with slashes; None if there is none.

        Raises:
            SourceError: it is not a file, or can't be accessed.
        """
        ...


@dataclass(frozen=True, slots=True)
class FileContent:
    """A file that is open only while it is read, so that ten thousand of them need no file descriptors."""

    path: Path
    size: int
    label: str
    memory: DocumentMemory | None = None

    @contextmanager
    def open(self) -> Iterator[BlobReader]:
        """Open the file."""
        with readable(self.label):
            file = FileIO(self.path)
        with file:
            yield _RegionReader(KeptFile(file), 0, self.size, self.label)


@dataclass(frozen=True, slots=True)
class Region:
    """A part of an open file that stays open as long as the source does."""

    file: ReadFile
    start: int
    size: int
    label: str
    memory: DocumentMemory | None = None

    @contextmanager
    def open(self) -> Iterator[BlobReader]:
        """Read it with a position of its own."""
        yield _RegionReader(self.file, self.start, self.size, self.label)


@dataclass(frozen=True, slots=True)
class Extent:
    """A stored part of a sparse region.

    Attributes:
        start: its position in the region.
        size: its bytes.
        stored: its position in the file.
    """

    start: int
    size: int
    stored: int

    @property
    def end(self) -> int:
        """The position behind it in the region."""
        return self.start + self.size


@dataclass(frozen=True, slots=True)
class SparseRegion:
    """A part of an open file that was stored without its holes, which read as zeros.

    Attributes:
        extents: the stored parts, in order and without overlaps.
    """

    file: ReadFile
    extents: tuple[Extent, ...]
    size: int
    label: str
    memory: DocumentMemory | None = None

    @contextmanager
    def open(self) -> Iterator[BlobReader]:
        """Read it with a position of its own."""
        yield _SparseReader(self)


@dataclass(frozen=True, slots=True)
class BytesContent:
    """Bytes in memory."""

    data: bytes
    label: str

    @property
    def size(self) -> int:
        """The number of bytes."""
        return len(self.data)

    @contextmanager
    def open(self) -> Iterator[BlobReader]:
        """Open them for reading."""
        yield _BytesReader(self.data)


class PositionalReader(ABC):
    """Reads bytes in order by reading them at positions (``protocols.SeekableReader``)."""

    consumed = 0

    def readinto(self, buffer: memoryview) -> int:
        """Read the next bytes into *buffer*; fewer than it has room for only at the end."""
        count = len(self.read_at(self.consumed, buffer))
        self.consumed += count
        return count

    @abstractmethod
    def read_at(self, start: int, buffer: memoryview) -> memoryview:
        """Read the bytes from *start* on into *buffer*; the part of it that they fill."""


class _RegionReader(PositionalReader):
    def __init__(self, file: ReadFile, start: int, size: int, label: str) -> None:
        self._file = file
        self._start = start
        self._size = size
        self._label = label

    def read_at(self, start: int, buffer: memoryview) -> memoryview:
        target = buffer[: max(0, self._size - start)]
        filled = 0
        while filled < len(target):
            with readable(self._label):
                count = self._file.read_into(target[filled:], self._start + start + filled)
            if not count:
                missing = self._size - start - filled
                raise SourceError(f"{self._label} ends {missing} bytes early", hint="it was cut while it was read")
            filled += count
        return target

    @contextmanager
    def file_at(self, start: int) -> Iterator[tuple[int, int]]:
        with readable(self._label), self._file.file_at(self._start + start) as place:
            yield place


class _SparseReader(PositionalReader):
    def __init__(self, region: SparseRegion) -> None:
        self._region = region

    def read_at(self, start: int, buffer: memoryview) -> memoryview:
        region = self._region
        target = buffer[: max(0, region.size - start)]
        end = start + len(target)
        target[:] = bytes(len(target))
        at = bisect_right(region.extents, start, key=attrgetter("end"))
        for extent in region.extents[at : bisect_left(region.extents, end, key=attrgetter("start"))]:
            first, last = max(start, extent.start), min(end, extent.end)
            stored = _RegionReader(region.file, extent.stored, extent.size, region.label)
            stored.read_at(first - extent.start, target[first - start : last - start])
        return target


class _BytesReader:
    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self.consumed = 0

    def readinto(self, buffer: memoryview) -> int:
        found = self._data[self.consumed : self.consumed + len(buffer)]
        buffer[: len(found)] = found
        self.consumed += len(found)
        return len(found)

    def read_at(self, start: int, buffer: memoryview) -> memoryview:
        return self._data[start : start + len(buffer)]


@dataclass(frozen=True, slots=True)
class DescribedBlob:
    """A blob with a known or claimed digest, whose bytes are pushed as they are (``protocols.Blob``).

    The engine verifies the digest against the bytes that it sends.

    Attributes:
        name: its name on screens.
        descriptor: its digest and size, as its source claims them.
    """

    name: str
    descriptor: Descriptor

    @property
    def media_type(self) -> str:
        """The descriptor's media type."""
        return self.descriptor.media_type

    @property
    def source_size(self) -> int:
        """The descriptor's size in bytes."""
        return self.descriptor.size

    @property
    def identity(self) -> str:
        """The digest."""
        return str(self.descriptor.digest)


@dataclass(frozen=True, slots=True)
class ContentBlob(DescribedBlob):
    """A blob whose bytes are stored on this machine (``protocols.LocalBlob``)."""

    content: Content

    def open(self) -> AbstractContextManager[BlobReader]:
        """Open the bytes for reading."""
        return self.content.open()

    def mismatch(self, expected: Digest | int, actual: Digest | int) -> DigestMismatchError:
        """The error for bytes that are not what was claimed."""
        return DigestMismatchError(self.content.label, expected, actual)


async def file_blob(path: Path, media_type: str) -> Blob:
    """Create a blob of a file, to push it as a layer; a worker thread reads it once to find its digest.

    Raises:
        SourceError: the file is missing, empty, not a regular file, or can't be read.
    """
    return await to_thread.run_sync(_file_blob, path, media_type)


def _file_blob(path: Path, media_type: str) -> Blob:
    content = find_file(path, str(path))
    if content is None:
        raise SourceError(f"{path} does not exist", hint="check the path")
    if not content.size:
        raise EmptyLayerError(str(path), "leave it out")
    return ContentBlob(path.name, Descriptor(media_type, hash_content(content), content.size), content)


def find_file(path: Path, label: str, memory: DocumentMemory | None = None) -> FileContent | None:
    """Find a file; None if it does not exist, or none can have its name.

    Raises:
        SourceError: it is a directory, a device or the like, or can't be accessed.
    """
    try:
        with readable(label):
            status = path.stat()
    except SourceError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            return None
        raise
    except ValueError:  # a null character
        return None
    if not stat.S_ISREG(status.st_mode):
        raise SourceError(f"{label} is not a regular file")
    return FileContent(path, status.st_size, label, memory)


def hash_content(content: Content, also: Callable[[memoryview], None] | None = None) -> Digest:
    """Read all of *content* and hash it, in a worker thread of anyio; the caller's cancellation stops it.

    Args:
        content: the content.
        also: receives the bytes, too, block by block.
    """
    sha256 = hashlib.sha256()
    buffer = memoryview(bytearray(min(MiB, max(content.size, 1))))
    with content.open() as reader:
        while count := reader.readinto(buffer):
            from_thread.check_cancelled()
            sha256.update(buffer[:count])
            if also is not None:
                also(buffer[:count])
    return Digest(sha256.hexdigest())


def read_content(content: Content, limit: int = MAX_DOCUMENT_SIZE) -> bytes:
    """Read a whole content of limited size.

    Raises:
        ManifestError: it has more than *limit* bytes, or the documents of all sources take too much memory.
        SourceError: it can't be read.
    """
    if content.size > limit:
        raise ManifestError(f"{content.label} has {content.size} bytes; at most {limit} are read")
    memory: DocumentMemory | None = getattr(content, "memory", None)
    if memory is not None:
        memory.charge(content, content.size, content.label)
    data = bytearray(content.size)
    with content.open() as reader:
        reader.readinto(memoryview(data))
    if memory is not None and (count := count_values(data)):
        raw, data = bytes(data), bytearray()
        try:
            refuse_many_values(raw, content.label)
            memory.charge_values(content, count, content.label)
        except ManifestError:
            del raw  # otherwise the error's traceback keeps it alive
            raise
        return raw
    return bytes(data)


def decode_document(raw: bytes, kind: type[Document], label: str) -> Document:
    """Decode a JSON document into *kind*.

    Raises:
        ManifestError: it is malformed, or lacks a required member.
    """
    refuse_many_values(raw, label)
    try:
        raw.decode("utf-8")
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(f"{label} is malformed: {error}") from error


@contextmanager
def readable(label: str) -> Iterator[None]:
    """Raise a SourceError that names *label* for an OSError."""
    try:
        yield
    except OSError as error:
        text = f"{label} can't be read: {open_files.reason(error)}"
        raise SourceError(text, hint=open_files.advice(error)) from error


class DocumentPool:
    """Memory that the documents of all open sources share, beside the allowance of each."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.left = MAX_MEMORY

    def take(self, size: int) -> bool:
        """Take *size* bytes; False if fewer are left."""
        with self._lock:
            if size > self.left:
                return False
            self.left -= size
            return True


POOL = DocumentPool()


class DocumentMemory:
    """The memory for the documents of one source, while it is open.

    Args:
        size: bytes of the source on disk; None if each document is a file of its own.
    """

    def __init__(self, size: int | None) -> None:
        self._allowance = _ALLOWANCE_FACTOR * (size or 0)
        self._is_plain = size is None
        self._taken = 0
        self._charged: set[object] = set()
        self._lock = Lock()

    def charge(self, content: object, size: int, label: str) -> None:
        """Charge for a document, once, before it is read.

        Raises:
            ManifestError: it would take too much memory.
        """
        with self._lock:
            if content not in self._charged:
                self._allowance += _ALLOWANCE_FACTOR * size * self._is_plain
                self._take(_COPIES * size, label)
                self._charged.add(content)

    def charge_values(self, content: object, count: int, label: str) -> None:
        """Charge for the *count* values of a decoded document, once.

        Raises:
            ManifestError: it would take too much memory.
        """
        with self._lock:
            if (content, count) not in self._charged:
                self._take(_VALUE_SIZE * count, label)
                self._charged.add((content, count))

    def _take(self, size: int, label: str) -> None:
        covered = min(self._allowance, size)
        if not POOL.take(size - covered):
            raise ManifestError(
                f"{label} exceeds the limit: the manifests and configs of the open sources take more than"
                f" {MAX_MEMORY // MiB} MiB of memory",
                hint="push fewer images at once",
            )
        self._allowance -= covered
        self._taken += size - covered

    def close(self) -> None:
        """Return the shared memory that was taken."""
        with self._lock:
            POOL.take(-self._taken)
            self._taken = 0
