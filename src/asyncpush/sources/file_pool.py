"""Files that are read in place: an archive is opened when it is read, and closed again when others need the room."""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from threading import Lock
from typing import Protocol

from asyncpush import open_files
from asyncpush.errors import SourceError

#: Archives that stay open at the most, however many this process could open.
_KEPT = 1024


class ReadFile(Protocol):
    """A file that many threads read at once, each where it likes; all of it blocks."""

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    def read(self, start: int, size: int) -> bytes:
        """Up to *size* bytes from *start* on; fewer at the end of the file only."""
        ...

    def read_into(self, buffer: memoryview, start: int) -> int:
        """Read into *buffer* from *start* on and return how many bytes there were; 0 at the end."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class KeptFile:
    """A file that stays open: it has no name by which it could be opened again."""

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


@dataclass(slots=True)
class _Opened:
    descriptor: int
    users: int = 0


class _Pool:
    """The archives that are open now. Those that were read last stay open, as far as there is room."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._opened: OrderedDict[NamedFile, _Opened] = OrderedDict()

    @contextmanager
    def descriptor(self, file: NamedFile) -> Iterator[int]:
        """The descriptor of *file*, which stays open for the block."""
        opened = self._used(file) or self.add(file, self._open(file), used=True)
        try:
            yield opened.descriptor
        finally:
            with self._lock:
                opened.users -= 1

    def add(self, file: NamedFile, descriptor: int, *, used: bool = False) -> _Opened:
        """Take over a descriptor of *file*."""
        with self._lock:
            opened = self._opened.setdefault(file, _Opened(descriptor))
            opened.users += used
            unneeded = [] if opened.descriptor == descriptor else [descriptor]
            unneeded += self._idle(len(self._opened) - open_files.share(_KEPT))
        _close(unneeded)
        return opened

    def remove(self, file: NamedFile) -> None:
        """Close *file*, which nobody reads any more."""
        with self._lock:
            opened = self._opened.pop(file, None)
        _close([opened.descriptor] if opened else [])

    def _used(self, file: NamedFile) -> _Opened | None:
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

    def _idle(self, most: int) -> list[int]:
        """Take out up to *most* files that nobody reads at this moment, those first that were not read for longest."""
        idle: list[NamedFile] = []
        for file, opened in self._opened.items():
            if len(idle) >= most:
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
        path: of the file.
        label: how to call it in errors.
        descriptor: of the file, open for reading; it is taken over.
    """

    def __init__(self, path: str, label: str, descriptor: int) -> None:
        self._path = path
        self._label = label
        try:
            self._is = _identity(descriptor)
        except OSError:
            os.close(descriptor)
            raise
        _POOL.add(self, descriptor)

    def close(self) -> None:
        """Give its descriptor back."""
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

    def reopened(self) -> int:
        """Another descriptor of the same file.

        Raises:
            SourceError: there is another one by its name now.
            OSError: it can't be opened.
        """
        descriptor = os.open(self._path, open_flags())
        if _identity(descriptor) != self._is:
            os.close(descriptor)
            raise SourceError(
                f"{self._label} was replaced by another file while it was read",
                hint="run the same command again, and let nothing change it meanwhile",
            )
        return descriptor


def open_flags() -> int:
    """How a file is opened: a named pipe without a writer would block for ever; regular files ignore that flag."""
    return os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino
