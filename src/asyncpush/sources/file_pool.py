"""Archives that are read in place: opened when they are read, and closed when others need their descriptors."""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from io import FileIO
from threading import Lock
from typing import Protocol

from asyncpush import open_files
from asyncpush.errors import SourceError

#: The most archives that stay open, however many descriptors this process may have.
_KEPT = 1024


class ReadFile(Protocol):
    """A file that threads read concurrently, each at its own positions. All methods block."""

    @property
    def size(self) -> int:
        """The number of bytes."""
        ...

    def read(self, start: int, size: int) -> bytes:
        """Up to *size* bytes from *start* on; fewer only at the end of the file."""
        ...

    def read_into(self, buffer: memoryview, start: int) -> int:
        """Read into *buffer* from *start* on, and return the number of bytes; 0 at the end."""
        ...

    def file_at(self, start: int) -> AbstractContextManager[tuple[int, int]]:
        """Keep it open for the block; yield its descriptor, and the position there of byte *start*."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class KeptFile:
    """A file that stays open, since it has no name by which it could be reopened."""

    file: FileIO

    @property
    def size(self) -> int:
        """See ``ReadFile``."""
        return os.fstat(self.file.fileno()).st_size

    def read(self, start: int, size: int) -> bytes:
        """See ``ReadFile``."""
        return os.pread(self.file.fileno(), size, start)

    def read_into(self, buffer: memoryview, start: int) -> int:
        """See ``ReadFile``."""
        return os.preadv(self.file.fileno(), [buffer], start)

    def file_at(self, start: int) -> AbstractContextManager[tuple[int, int]]:
        """See ``ReadFile``."""
        return nullcontext((self.file.fileno(), start))


@dataclass(slots=True)
class _Opened:
    descriptor: int
    users: int = 0


class _Pool:
    """The open archives; the least recently read are closed when descriptors run out."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._opened: OrderedDict[NamedFile, _Opened] = OrderedDict()

    @contextmanager
    def descriptor(self, file: NamedFile) -> Iterator[int]:
        """The descriptor of *file*, open within the block."""
        opened = self._acquire(file) or self.add(file, self._open(file), in_use=True)
        try:
            yield opened.descriptor
        finally:
            with self._lock:
                opened.users -= 1

    def add(self, file: NamedFile, descriptor: int, *, in_use: bool = False) -> _Opened:
        """Take ownership of a descriptor of *file*."""
        with self._lock:
            opened = self._opened.setdefault(file, _Opened(descriptor))
            opened.users += in_use
            to_close = [] if opened.descriptor == descriptor else [descriptor]
            to_close += self._idle(len(self._opened) - open_files.share(_KEPT))
        _close(to_close)
        return opened

    def remove(self, file: NamedFile) -> None:
        """Close *file*, which is no longer read."""
        with self._lock:
            opened = self._opened.pop(file, None)
        _close([opened.descriptor] if opened else [])

    def _acquire(self, file: NamedFile) -> _Opened | None:
        with self._lock:
            if (opened := self._opened.get(file)) is not None:
                opened.users += 1
                self._opened.move_to_end(file)
            return opened

    def _open(self, file: NamedFile) -> int:
        try:
            return file.reopened()
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            with self._lock:
                idle = self._idle(len(self._opened))
            if not idle:
                raise
            _close(idle)
            return file.reopened()

    def _idle(self, limit: int) -> list[int]:
        """Remove up to *limit* files that are not being read, least recently read first."""
        idle: list[NamedFile] = []
        for file, opened in self._opened.items():
            if len(idle) >= limit:
                break
            if not opened.users:
                idle.append(file)
        return [self._opened.pop(file).descriptor for file in idle]


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


_POOL = _Pool()


class NamedFile:
    """A regular file that is opened when it is read (``ReadFile``).

    Args:
        path: the file's path.
        label: its name in errors.
        descriptor: its descriptor, open for reading; ownership is taken.
    """

    def __init__(self, path: str, label: str, descriptor: int) -> None:
        self._path = path
        self._label = label
        try:
            self._file_id = _file_identity(descriptor)
        except OSError:
            os.close(descriptor)
            raise
        _POOL.add(self, descriptor)

    def close(self) -> None:
        """Close the descriptor."""
        _POOL.remove(self)

    @property
    def size(self) -> int:
        """See ``ReadFile``."""
        with _POOL.descriptor(self) as descriptor:
            return os.fstat(descriptor).st_size

    def read(self, start: int, size: int) -> bytes:
        """See ``ReadFile``."""
        with _POOL.descriptor(self) as descriptor:
            return os.pread(descriptor, size, start)

    def read_into(self, buffer: memoryview, start: int) -> int:
        """See ``ReadFile``."""
        with _POOL.descriptor(self) as descriptor:
            return os.preadv(descriptor, [buffer], start)

    @contextmanager
    def file_at(self, start: int) -> Iterator[tuple[int, int]]:
        """See ``ReadFile``."""
        with _POOL.descriptor(self) as descriptor:
            yield descriptor, start

    def reopened(self) -> int:
        """Open the file again and return the descriptor.

        Raises:
            SourceError: its path names another file now.
            OSError: it can't be opened.
        """
        descriptor = os.open(self._path, open_flags())
        if _file_identity(descriptor) != self._file_id:
            os.close(descriptor)
            raise SourceError(
                f"{self._label} was replaced by another file while it was read",
                hint="run the same command again, and do not change the file meanwhile",
            )
        return descriptor


def open_flags() -> int:
    """The flags to open a file: without O_NONBLOCK, a named pipe without a writer would block for ever."""
    return os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


def _file_identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino
