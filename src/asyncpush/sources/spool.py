"""An archive as one file to read in place: itself, or a nameless copy of what is a pipe or compressed."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import select
import stat
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import FileIO
from typing import TYPE_CHECKING, BinaryIO, Literal

from anyio import from_thread

from asyncpush.errors import SourceError
from asyncpush.settings import MiB
from asyncpush.sources.content import readable

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

try:
    from isal import igzip, igzip_lib
except ImportError:  # isal has no wheels for rarer machines
    igzip = igzip_lib = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from typing_extensions import Buffer

Packing = Literal["gzip", "xz", "zstd", "bzip2"]

#: Milliseconds after which a wait for a pipe looks whether it is still wanted.
_MOMENT = 100

#: Enough of a file's beginning for ``sniff``: the magic number of a tar header ends here.
HEAD_SIZE = 262

_MAGIC: tuple[tuple[bytes, Packing], ...] = (
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
)

_CORRUPT: tuple[type[Exception], ...] = (zlib.error, lzma.LZMAError, zstd.ZstdError)
if igzip is not None:
    _CORRUPT = (*_CORRUPT, igzip_lib.IsalError)  # type: ignore[arg-type]  # its stub takes the class for an instance


def sniff(head: bytes) -> Packing | None:
    """How the file that begins with *head* is compressed, by its magic number; None if it isn't."""
    if head[257:262] == b"ustar":
        return None
    if head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5:
        return "zstd"  # a skippable frame, as pzstd begins its files with
    return next((packing for magic, packing in _MAGIC if head.startswith(magic)), None)


def open_archive(path: str, label: str, stdin: BinaryIO | None, held: ExitStack) -> FileIO:
    """Open an archive as a regular file, whole from its first byte; in a worker thread of anyio.

    What can't be read at any position (a pipe, a compressed file) is copied once, decompressed, into a temporary
    file without a name. Waiting for a pipe ends promptly when the caller is cancelled.

    Args:
        path: of the file or pipe; ``-`` is *stdin*.
        label: how to call it in errors.
        stdin: what ``-`` reads; None is the process's own standard input.
        held: takes what must stay open while the archive is read.

    Raises:
        SourceError: it can't be read, is empty, its compression is damaged, or the temporary directory is full.
    """
    if path == "-":
        stream = stdin or (sys.stdin.buffer if sys.stdin else None)
        if stream is None:
            raise SourceError(f"{label} is closed")
        try:
            descriptor = stream.fileno()
        except io.UnsupportedOperation:
            return _spool(_Unpolled(stream), label, held)
        with readable(label):
            file = held.enter_context(FileIO(os.dup(descriptor)))
    else:
        with readable(label):
            # A named pipe without a writer would block here for ever; regular files ignore the flag.
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            file = held.enter_context(FileIO(descriptor))
    if _can_stay(file, label):
        return file
    return _spool(_Pipe(file), label, held)


def _can_stay(file: FileIO, label: str) -> bool:
    with readable(label):
        status = os.fstat(file.fileno())
        if stat.S_ISBLK(status.st_mode) or file.isatty():
            raise SourceError(f"{label} is a {'terminal' if file.isatty() else 'device'}", hint="give a file or a pipe")
        if not stat.S_ISREG(status.st_mode) or file.tell() != 0:
            return False
        if not status.st_size:
            raise SourceError(f"{label} is empty")
        return sniff(os.pread(file.fileno(), HEAD_SIZE, 0)) is None


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


def _spool(raw: _Stream, label: str, held: ExitStack) -> FileIO:
    with _intact(label):
        stream = io.BufferedReader(raw, MiB)
        head = stream.peek(HEAD_SIZE)
        if not head:
            raise SourceError(f"{label} is empty")
        with _room(label):
            spool = held.enter_context(_temporary_file())
        with _unpacked(stream, sniff(head), label) as unpacked:
            _copy(unpacked, spool, label)
    return spool


def _temporary_file() -> FileIO:
    return tempfile.TemporaryFile(buffering=0, prefix="asyncpush-")


def _copy(stream: io.BufferedIOBase, spool: FileIO, label: str) -> None:
    buffer = memoryview(bytearray(MiB))
    while count := stream.readinto(buffer):
        from_thread.check_cancelled()
        written = 0
        while written < count:
            with _room(label):
                written += spool.write(buffer[written:count])


def _unpacked(stream: io.BufferedReader[_Stream], packing: Packing | None, label: str) -> io.BufferedIOBase:
    match packing:
        case None:
            return stream
        case "gzip":
            return (igzip.IGzipFile if igzip else gzip.GzipFile)(fileobj=stream, mode="rb")
        case "xz":
            return lzma.LZMAFile(stream)
        case "zstd":
            return zstd.ZstdFile(stream)
        case _:
            raise SourceError(
                f"{label} is compressed with {packing}", hint="decompress it first; gzip, xz and zstd are read"
            )


@contextmanager
def _intact(label: str) -> Iterator[None]:
    try:
        with readable(label):
            yield
    except EOFError as error:
        raise SourceError(
            f"{label} is cut short: its compressed data has no end", hint="fetch or save it again"
        ) from error
    except _CORRUPT as error:
        raise SourceError(f"{label} is damaged: {error}", hint="fetch or save it again") from error


@contextmanager
def _room(label: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SourceError(
            f"no temporary file for {label}: {error.strerror or error}",
            hint="set TMPDIR to a directory with room for it, decompressed",
        ) from error
