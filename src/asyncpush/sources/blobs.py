"""Bytes at rest: a file, a region of an archive, bytes in memory; opened any number of times, read in threads.

Documents (manifests, configs, lists of images) are read whole, and ``DocumentMemory`` bounds what those of all open
sources take: a small archive can hold gigabytes of them.
"""

from __future__ import annotations

import hashlib
import stat
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
from asyncpush.errors import DigestMismatchError, ManifestError, SourceError
from asyncpush.manifest import count_values, refuse_many_values
from asyncpush.model import Descriptor, Digest
from asyncpush.protocols import Blob, BlobReader
from asyncpush.settings import MiB
from asyncpush.sources.file_pool import KeptFile, ReadFile

Document = TypeVar("Document")

#: The longest JSON document that is read into memory: an image's config, a layout's index, an archive's manifest.json.
MAX_DOCUMENT_SIZE = 8 * MiB

#: For all sources that are open, beside what each has for its own size.
MAX_MEMORY = 32 * MiB

#: Bytes of memory for each byte of a source: documents that lie uncompressed take no more, unless they are made for it.
_OWN = 4

#: A document is kept as its bytes, and as the texts in it.
_COPIES = 2

#: Bytes that a JSON value takes, once it is read.
_VALUE = 64


class Content(Protocol):
    """Bytes that lie somewhere: how many, and a way to read them. All of it blocks."""

    @property
    def label(self) -> str:
        """How to call them in errors."""
        ...

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    def open(self) -> AbstractContextManager[BlobReader]:
        """Open them for reading, from the first byte."""
        ...


class BlobStore(Protocol):
    """Contents by name, as a directory or an archive holds them."""

    @property
    def label(self) -> str:
        """How to call it in errors."""
        ...

    def find(self, name: str) -> Content | None:
        """The content called *name*, a relative path with slashes; None if there is none.

        Raises:
            SourceError: it is there, but isn't a file, or can't be looked at.
        """
        ...


@dataclass(frozen=True, slots=True)
class FileContent:
    """A file that is opened only while it is read, so that ten thousand of them take no file descriptors."""

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
    """Bytes of a sparse region that are stored.

    Attributes:
        start: where they belong in the region.
        size: how many they are.
        stored: where they lie in the file.
    """

    start: int
    size: int
    stored: int

    @property
    def end(self) -> int:
        """Where the next byte belongs."""
        return self.start + self.size


@dataclass(frozen=True, slots=True)
class SparseRegion:
    """A part of an open file that was stored without its holes, and reads with zeros in their places.

    Attributes:
        extents: what is stored, in order; none overlaps another.
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
        """Bytes."""
        return len(self.data)

    @contextmanager
    def open(self) -> Iterator[BlobReader]:
        """Read them."""
        yield _BytesReader(self.data)


class _RegionReader:
    def __init__(self, file: ReadFile, start: int, size: int, label: str) -> None:
        self._file = file
        self._start = start
        self._size = size
        self._label = label
        self.consumed = 0

    def readinto(self, buffer: memoryview) -> int:
        count = len(self.read_at(self.consumed, buffer))
        self.consumed += count
        return count

    def read_at(self, start: int, buffer: memoryview) -> memoryview:
        wanted = buffer[: max(0, self._size - start)]
        filled = 0
        while filled < len(wanted):
            with readable(self._label):
                count = self._file.read_into(wanted[filled:], self._start + start + filled)
            if not count:
                missing = self._size - start - filled
                raise SourceError(f"{self._label} ends {missing} bytes early", hint="it was cut while it was read")
            filled += count
        return wanted


class _SparseReader:
    def __init__(self, region: SparseRegion) -> None:
        self._region = region
        self.consumed = 0

    def readinto(self, buffer: memoryview) -> int:
        count = len(self.read_at(self.consumed, buffer))
        self.consumed += count
        return count

    def read_at(self, start: int, buffer: memoryview) -> memoryview:
        region = self._region
        wanted = buffer[: max(0, region.size - start)]
        end = start + len(wanted)
        wanted[:] = bytes(len(wanted))
        at = bisect_right(region.extents, start, key=attrgetter("end"))
        for extent in region.extents[at : bisect_left(region.extents, end, key=attrgetter("start"))]:
            first, last = max(start, extent.start), min(end, extent.end)
            stored = _RegionReader(region.file, extent.stored, extent.size, region.label)
            stored.read_at(first - extent.start, wanted[first - start : last - start])
        return wanted


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
class ContentBlob:
    """A blob whose digest is known or claimed, and whose bytes are pushed as they are (``protocols.Blob``).

    Nothing is verified here: the engine compares the digest with the bytes that it sends.
    """

    name: str
    descriptor: Descriptor
    content: Content

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

    def open(self) -> AbstractContextManager[BlobReader]:
        """Open the bytes for reading."""
        return self.content.open()

    def mismatch(self, expected: Digest | int, actual: Digest | int) -> DigestMismatchError:
        """The error for bytes that are not what was claimed."""
        return DigestMismatchError(self.content.label, expected, actual)


async def file_blob(path: Path, media_type: str) -> Blob:
    """Make a blob of a file, for pushing it as a layer; its digest is found by reading it once, in a worker thread.

    Raises:
        SourceError: the file is missing, empty, not a regular file, or can't be read.
    """
    return await to_thread.run_sync(_file_blob, path, media_type)


def _file_blob(path: Path, media_type: str) -> Blob:
    content = find_file(path, str(path))
    if content is None:
        raise SourceError(f"{path} does not exist", hint="check the path")
    if not content.size:
        raise SourceError(f"{path} is empty", hint="ECR cannot hold an empty layer")
    return ContentBlob(path.name, Descriptor(media_type, hash_content(content), content.size), content)


def find_file(path: Path, label: str, memory: DocumentMemory | None = None) -> FileContent | None:
    """Look at a file; None if there is none.

    Raises:
        SourceError: it is a directory, a device or the like, or can't be looked at.
    """
    try:
        with readable(label):
            status = path.stat()
    except SourceError as error:
        if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
            return None
        raise
    if not stat.S_ISREG(status.st_mode):
        raise SourceError(f"{label} is not a regular file")
    return FileContent(path, status.st_size, label, memory)


def hash_content(content: Content, also: Callable[[memoryview], None] | None = None) -> Digest:
    """Read all of *content* and hash it, in a worker thread of anyio; a cancelled caller stops it.

    Args:
        content: what is read.
        also: is given the bytes, too, block by block.
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
    """Read all of a small content.

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
            del raw  # else it stays for as long as the error is kept
            raise
        return raw
    return bytes(data)


def decode_document(raw: bytes, kind: type[Document], label: str) -> Document:
    """Decode a JSON document into *kind*.

    Raises:
        ManifestError: it is malformed, or lacks something.
    """
    refuse_many_values(raw, label)
    try:
        raw.decode("utf-8")
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ManifestError(f"{label} is malformed: {error}") from error


@contextmanager
def readable(label: str) -> Iterator[None]:
    """Turn an OSError into a SourceError that names *label*."""
    try:
        yield
    except OSError as error:
        text = f"{label} can't be read: {open_files.reason(error)}"
        raise SourceError(text, hint=open_files.advice(error)) from error


class DocumentPool:
    """Bytes that the documents of all open sources may take beside what each has for its own size."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.left = MAX_MEMORY

    def take(self, size: int) -> bool:
        """Take *size* bytes; whether there were as many."""
        with self._lock:
            if size > self.left:
                return False
            self.left -= size
            return True


POOL = DocumentPool()


class DocumentMemory:
    """What the documents of one source take, as long as it is open.

    Args:
        size: bytes of the source as it lies on the disk; None where each document lies there as it is.
    """

    def __init__(self, size: int | None) -> None:
        self._own = _OWN * (size or 0)
        self._is_plain = size is None
        self._taken = 0
        self._known: set[object] = set()
        self._lock = Lock()

    def charge(self, content: object, size: int, label: str) -> None:
        """Count a document before it is read, once.

        Raises:
            ManifestError: there is no room for it.
        """
        with self._lock:
            if content not in self._known:
                self._own += _OWN * size * self._is_plain
                self._take(_COPIES * size, label)
                self._known.add(content)

    def charge_values(self, content: object, count: int, label: str) -> None:
        """Count what a document becomes when it is decoded, once; likewise."""
        with self._lock:
            if (content, count) not in self._known:
                self._take(_VALUE * count, label)
                self._known.add((content, count))

    def _take(self, size: int, label: str) -> None:
        own = min(self._own, size)
        if not POOL.take(size - own):
            raise ManifestError(
                f"{label} is one too many: the manifests and configs of the sources that are open take more than"
                f" {MAX_MEMORY // MiB} MiB of memory",
                hint="push fewer images at once",
            )
        self._own -= own
        self._taken += size - own

    def close(self) -> None:
        """Give back what was taken."""
        with self._lock:
            POOL.take(-self._taken)
            self._taken = 0
