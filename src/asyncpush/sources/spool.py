"""An archive as one file to read in place: itself, or a nameless copy of what is a pipe or compressed."""

from __future__ import annotations

import io
import os
import select
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from io import FileIO
from threading import Lock
from typing import TYPE_CHECKING, BinaryIO

from anyio import from_thread

from asyncpush.errors import SourceError
from asyncpush.settings import MiB
from asyncpush.sources.content import Content, Region, readable
from asyncpush.sources.recognition import check_head
from asyncpush.sources.unpack import HEAD_SIZE, Unpacker, sniff

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Allowance:
    """How many bytes the copies of one source may take in the temporary directory, all together."""

    def __init__(self, limit: int) -> None:
        self._limit = self._left = limit

    def take(self, count: int, label: str) -> None:
        """Take *count* bytes of it.

        Raises:
            SourceError: there are not so many left.
        """
        self._left -= count
        if self._left < 0:
            raise SourceError(
                f"{label} takes more than {self._limit} bytes in the temporary directory",
                hint="if it is as large as that, allow more with --max-unpacked",
            )


#: Milliseconds after which a wait for a pipe looks whether it is still wanted.
_MOMENT = 100


def open_archive(path: str, label: str, stdin: BinaryIO | None, held: ExitStack, allowance: Allowance) -> FileIO:
    """Open an archive as a regular file, whole from its first byte; in a worker thread of anyio.

    What can't be read at any position (a pipe, a compressed file) is copied once, decompressed, into a temporary
    file without a name. Waiting for a pipe ends promptly when the caller is cancelled.

    Args:
        path: of the file or pipe; ``-`` is *stdin*.
        label: how to call it in errors.
        stdin: what ``-`` reads; None is the process's own standard input.
        held: takes what must stay open while the archive is read.
        allowance: bounds the copy.

    Raises:
        SourceError: it can't be read, is empty or plainly no archive, its compression is damaged, or the temporary
            directory is full, or the copy too large.
    """
    if path == "-":
        stream = stdin or (sys.stdin.buffer if sys.stdin else None)
        if stream is None:
            raise SourceError(f"{label} is closed")
        try:
            descriptor = stream.fileno()
        except io.UnsupportedOperation:
            return _spool(_Unpolled(stream), label, held, allowance)
        with readable(label):
            file = held.enter_context(FileIO(os.dup(descriptor)))
    else:
        with readable(label):
            # A named pipe without a writer would block here for ever; regular files ignore the flag.
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            file = held.enter_context(FileIO(descriptor))
    if _can_stay(file, label):
        return file
    return _spool(_Pipe(file), label, held, allowance)


def _can_stay(file: FileIO, label: str) -> bool:
    with readable(label):
        status = os.fstat(file.fileno())
        if stat.S_ISBLK(status.st_mode) or file.isatty():
            raise SourceError(f"{label} is a {'terminal' if file.isatty() else 'device'}", hint="give a file or a pipe")
        if not stat.S_ISREG(status.st_mode) or file.tell() != 0:
            return False
        if not status.st_size:
            raise SourceError(f"{label} is empty")
        head = os.pread(file.fileno(), HEAD_SIZE, 0)
    if sniff(head):
        return False
    check_head(head, label)
    return True


class _Stream(io.RawIOBase):
    """A stream that gives full buffers until its end, and stops when the caller of its worker thread is cancelled."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer)
        filled = 0
        while filled < len(view):
            from_thread.check_cancelled()
            count = self._read_some(view[filled:])
            if not count:
                break
            filled += count
        return filled

    def _read_some(self, buffer: memoryview) -> int:
        raise NotImplementedError


class _Pipe(_Stream):
    """A pipe; cancellation ends the waiting for it within a moment.

    The event loop is not asked to wait: a cancellation that comes just before it would begin is never told to it.
    """

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self._poll = select.poll()
        self._poll.register(file, select.POLLIN)

    def _read_some(self, buffer: memoryview) -> int:
        while True:
            while not self._poll.poll(_MOMENT):
                from_thread.check_cancelled()
            count = self._file.readinto(buffer)
            if count is not None:
                return count


class _Unpolled(_Stream):
    """Any object with ``read``; a read that blocks can't be cancelled."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def _read_some(self, buffer: memoryview) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _spool(raw: _Stream, label: str, held: ExitStack, allowance: Allowance) -> FileIO:
    with readable(label):
        stream = io.BufferedReader(raw, MiB)
        read = partial(stream.read, MiB)
        if packing := sniff(stream.peek(HEAD_SIZE)):
            read = partial(Unpacker(read, label).decompress, MiB)
            label = f"{label}, decompressed ({packing}),"
        data = read()
        while len(data) < HEAD_SIZE and (more := read()):
            data += more
        if not data:
            raise SourceError(f"{label} is empty")
        check_head(data[:HEAD_SIZE], label)
        with _room(label):
            spool = held.enter_context(_temporary_file())
        while data:
            from_thread.check_cancelled()
            allowance.take(len(data), label)
            _write(spool, data, label)
            data = read()
    return spool


class Scratch:
    """Decompressed copies of contents, one behind the other in a temporary file without a name.

    A layer in flight that was decompressed as it is read would hold its decompressor's window, up to 128 MiB.

    Args:
        held: takes the file, which must stay open while the copies are read.
        allowance: bounds the copies.
    """

    def __init__(self, held: ExitStack, allowance: Allowance) -> None:
        self._held = held
        self._allowance = allowance
        self._lock = Lock()
        self._file: FileIO | None = None
        self._copies: dict[Content, Region] = {}

    def unpack(self, packed: Content) -> Region:
        """Decompress *packed*, in a worker thread of anyio, unless that was done before.

        Raises:
            SourceError: it is damaged, or the temporary directory is full.
        """
        with self._lock:
            if packed not in self._copies:
                self._copies[packed] = self._copy(packed)
            return self._copies[packed]

    def _copy(self, packed: Content) -> Region:
        label = packed.label
        if self._file is None:
            with _room(label):
                self._file = self._held.enter_context(_temporary_file())
        start = self._file.seek(0, os.SEEK_END)
        buffer = memoryview(bytearray(MiB))
        with packed.open() as reader:
            unpacker = Unpacker(lambda: bytes(buffer[: reader.readinto(buffer)]), label)
            while data := unpacker.decompress(MiB):
                from_thread.check_cancelled()
                self._allowance.take(len(data), label)
                _write(self._file, data, label)
        return Region(self._file, start, self._file.tell() - start, label)


def _temporary_file() -> FileIO:
    return tempfile.TemporaryFile(buffering=0, prefix="asyncpush-")


def _write(spool: FileIO, data: bytes, label: str) -> None:
    view = memoryview(data)
    while view:
        with _room(label):
            view = view[spool.write(view) :]


@contextmanager
def _room(label: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SourceError(
            f"no temporary file for {label}: {error.strerror or error}",
            hint="set TMPDIR to a directory with room for it, decompressed",
        ) from error
