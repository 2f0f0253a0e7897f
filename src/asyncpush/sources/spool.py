"""An archive as one file to read in place: itself, or an unnamed temporary copy of a pipe or a compressed file."""

from __future__ import annotations

import asyncio
import concurrent.futures
import io
import os
import select
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from io import FileIO
from threading import Lock
from typing import TYPE_CHECKING, BinaryIO

from anyio import from_thread

from asyncpush import open_files
from asyncpush.engine.decompress import (
    CORRUPT,
    LARGE,
    WINDOW_ERRORS,
    WINDOW_LOG,
    Decompressor,
    Packing,
    new_decompressor,
    turn_of,
)
from asyncpush.errors import SourceError
from asyncpush.protocols import BlobStream
from asyncpush.settings import MiB
from asyncpush.sources.blobs import Content, Region, readable
from asyncpush.sources.detection import HEAD_SIZE, check_head, sniff
from asyncpush.sources.file_pool import KeptFile, NamedFile, ReadFile, open_flags

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: Milliseconds between two checks whether the wait for a pipe was cancelled.
_POLL_INTERVAL = 100

#: Polls without a byte after which others may decompress.
_SILENT_POLLS = 10


def open_archive(path: str, label: str, stdin: BinaryIO | None, stack: ExitStack, limit: SpoolLimit) -> ReadFile:
    """Open an archive as a regular file, from its first byte; in a worker thread of anyio.

    A pipe or a compressed file is copied once, decompressed, into an unnamed temporary file. Waiting for a pipe ends
    promptly when the caller is cancelled.

    Args:
        path: the path of the file or pipe; ``-`` is *stdin*.
        label: its name in errors.
        stdin: the stream for ``-``; None is the process's own standard input.
        stack: closes whatever must stay open while the archive is read.
        limit: bounds the copy.

    Raises:
        SourceError: it can't be read, is empty, not an archive or damaged, or the copy is too large or does not fit
            into the temporary directory.
    """
    if path != "-":
        return _open_named(path, label, stack, limit)
    stream = stdin or (sys.stdin.buffer if sys.stdin else None)
    if stream is None:
        raise SourceError(f"{label} is closed")
    try:
        descriptor = stream.fileno()
    except io.UnsupportedOperation:
        return _spool(_Unpolled(stream), label, stack, limit)
    with readable(label):
        file = stack.enter_context(FileIO(os.dup(descriptor)))
    return KeptFile(file) if _is_readable_in_place(file, label) else _spool(_Pipe(file), label, stack, limit)


def _open_named(path: str, label: str, stack: ExitStack, limit: SpoolLimit) -> ReadFile:
    with ExitStack() as opening:
        with readable(label):
            file = opening.enter_context(FileIO(os.open(path, open_flags())))
        if not _is_readable_in_place(file, label):
            return _spool(_Pipe(file), label, stack, limit)
        with readable(label):
            named = NamedFile(path, label, os.dup(file.fileno()))
        stack.callback(named.close)
        return named


def _is_readable_in_place(file: FileIO, label: str) -> bool:
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


class SpoolLimit:
    """Bounds the bytes that all copies of one source take in the temporary directory."""

    def __init__(self, limit: int) -> None:
        self._limit = self._remaining = limit

    def take(self, count: int, label: str) -> None:
        """Count *count* more bytes.

        Raises:
            SourceError: the limit is exceeded.
        """
        self._remaining -= count
        if self._remaining < 0:
            raise SourceError(
                f"{label} takes more than {self._limit} bytes in the temporary directory",
                hint="if it is really so large, allow more with --max-unpacked",
            )


class Scratch:
    """Decompressed copies of contents, in unnamed temporary files.

    Decompressing a layer while it is pushed would hold the decompressor's window, up to 128 MiB.

    Args:
        stack: closes whatever must stay open while the copies are read.
        limit: bounds the copies.
    """

    def __init__(self, stack: ExitStack, limit: SpoolLimit) -> None:
        self._stack = stack
        self._limit = limit
        self._lock = Lock()
        self._copies: dict[Content, Region] = {}

    def unpack(self, packed: Content) -> Region:
        """Decompress *packed* once, in a worker thread of anyio.

        Raises:
            SourceError: it is damaged, or the temporary directory is full.
        """
        with self._lock:
            if packed not in self._copies:
                self._copies[packed] = self._copy(packed)
            return self._copies[packed]

    def _copy(self, packed: Content) -> Region:
        buffer = memoryview(bytearray(MiB))
        with packed.open() as reader:
            compressed = Unpacker(lambda: bytes(buffer[: reader.readinto(buffer)]), packed.label)
            with closing(compressed) as unpacker:
                copy = _copy_all(b"", partial(unpacker.decompress, MiB), packed.label, self._stack, self._limit)
        return Region(copy, 0, copy.size, packed.label)


class _Stream(io.RawIOBase):
    """A stream that fills whole buffers until its end, and stops when the caller of its worker thread is cancelled."""

    def __init__(self) -> None:
        #: Bytes that were read.
        self.count = 0
        #: Called when no byte has arrived for a while.
        self.on_silence: Callable[[], None] | None = None

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
        self.count += filled
        return filled

    def _read_some(self, buffer: memoryview) -> int:
        raise NotImplementedError


class _Pipe(_Stream):
    """A pipe; cancellation ends a wait for it promptly.

    It polls instead of waiting in the event loop, which would miss a cancellation just before the wait begins.
    """

    def __init__(self, file: FileIO) -> None:
        super().__init__()
        self._file = file
        self._poll = select.poll()
        self._poll.register(file, select.POLLIN)

    def _read_some(self, buffer: memoryview) -> int:
        while True:
            silent = 0
            while not self._poll.poll(_POLL_INTERVAL):
                from_thread.check_cancelled()
                silent += 1
                if silent == _SILENT_POLLS and self.on_silence is not None:
                    self.on_silence()
            count = self._file.readinto(buffer)
            if count is not None:
                return count


class _Unpolled(_Stream):
    """Any object with ``read``; a blocking read can't be cancelled."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream = stream

    def _read_some(self, buffer: memoryview) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _Arriving(_Stream):
    """A stream that arrives in the event loop; the caller's cancellation ends a wait for it promptly."""

    def __init__(self, stream: BlobStream) -> None:
        super().__init__()
        self._stream = stream

    def _read_some(self, buffer: memoryview) -> int:
        try:
            return from_thread.run(self._receive, buffer)
        except concurrent.futures.CancelledError:
            from_thread.check_cancelled()  # raises the error that anyio expects
            raise

    async def _receive(self, buffer: memoryview) -> int:
        silence = _SILENT_POLLS * _POLL_INTERVAL / 1000
        timer = asyncio.get_running_loop().call_later(silence, self.on_silence or (lambda: None))
        try:
            return await self._stream.readinto(buffer)
        finally:
            timer.cancel()


def open_stream(stream: BlobStream, label: str, stack: ExitStack, limit: SpoolLimit) -> ReadFile:
    """Copy an archive that arrives in the event loop into an unnamed temporary file, as ``open_archive`` does a pipe.

    Raises:
        SourceError: as ``open_archive``, or *stream* fails.
    """
    return _spool(_Arriving(stream), label, stack, limit)


def _spool(raw: _Stream, label: str, stack: ExitStack, limit: SpoolLimit) -> ReadFile:
    with readable(label), ExitStack() as unpacking:
        stream = io.BufferedReader(raw, MiB)
        read = partial(stream.read, MiB)
        if packing := sniff(stream.peek(HEAD_SIZE)):
            unpacker = unpacking.enter_context(closing(Unpacker(read, label)))
            raw.on_silence = unpacker.release_turn
            read = partial(unpacker.decompress, MiB)
            label = f"{label}, decompressed ({packing}),"
        data = read()
        while len(data) < HEAD_SIZE and (more := read()):
            data += more
        if not data:
            raise SourceError(f"{label} is empty")
        check_head(data[:HEAD_SIZE], label)
        copy = _copy_all(data, read, label, stack, limit)
        copy.source_size = raw.count
        return copy


class Unpacker:
    """Decompresses concatenated streams, with or without zero padding between and behind them.

    Args:
        read: returns the next compressed bytes, none only at the end; blocks.
        label: their name in errors.
    """

    def __init__(self, read: Callable[[], bytes], label: str) -> None:
        self._read = read
        self._label = label
        self._pending = b""
        self._begun = False
        self._stream: Decompressor | None = None
        self._packing: Packing = "gzip"
        self._turn = ExitStack()
        self._has_turn = False

    def close(self) -> None:
        """End, and let others decompress."""
        self._stream = None
        self.release_turn()

    def release_turn(self) -> None:
        """Let others decompress while no bytes arrive: a wait for a pipe keeps the window, but not the turn."""
        self._has_turn = False
        self._turn.close()

    def _take_turn(self) -> None:
        if not self._has_turn and self._packing in LARGE:
            self._turn.enter_context(turn_of(self._packing))
            self._has_turn = True

    def decompress(self, size: int) -> bytes:
        """Up to *size* more bytes; none only at the end, when all checksums were correct.

        Raises:
            SourceError: they are damaged or cut short, need too much memory, or are followed by other data.
        """
        # No local variable refers to the stream: an error's traceback would keep its window alive.
        while self._stream or self._next_stream():
            data = self._decompress(size)
            if data:
                return data
        return b""

    def _decompress(self, size: int) -> bytes:
        assert self._stream is not None, "a stream has begun"  # noqa: S101
        packed = self._input() if self._stream.needs_input else b""
        self._take_turn()
        with self._naming_damage():
            data = self._stream.decompress(packed, size)
        if self._stream.eof:
            self._pending = self._stream.unused_data
            self._stream = None
        return data

    def _input(self) -> bytes:
        data, self._pending = self._pending or self._read(), b""
        if not data:
            raise SourceError(
                f"{self._label} is cut short: its compressed data is incomplete", hint="fetch or save it again"
            )
        return data

    def _next_stream(self) -> Decompressor | None:
        """Begin the next stream; None if only padding is left."""
        padding = b"\0" if self._begun else b""
        self._pending = self._pending.lstrip(padding)
        while len(self._pending) < HEAD_SIZE and (more := self._read()):
            self._pending = (self._pending + more).lstrip(padding)
        if not self._pending:
            return None
        packing = sniff(self._pending)
        if packing is None:
            raise SourceError(
                f"{self._label} holds other data behind its compressed data",
                hint="it may be damaged, or several files in one; give each file alone",
            )
        self._begun, self._packing = True, packing
        self._take_turn()
        self._stream = new_decompressor(packing)
        return self._stream

    @contextmanager
    def _naming_damage(self) -> Iterator[None]:
        try:
            yield
        except CORRUPT as error:
            if any(words in str(error) for words in WINDOW_ERRORS):
                raise SourceError(
                    f"{self._label} needs more than {(1 << WINDOW_LOG) // MiB} MiB of memory to be decompressed",
                    hint="decompress it first",
                ) from error
            raise SourceError(f"{self._label} is damaged: {error}", hint="fetch or save it again") from error


def _copy_all(data: bytes, read: Callable[[], bytes], label: str, stack: ExitStack, limit: SpoolLimit) -> _Copy:
    """A copy of *data* and of all that *read* returns, until *stack* closes."""
    with _SPOOLS.writing(label) as copy:
        data = data or read()
        while data:
            from_thread.check_cancelled()
            limit.take(len(data), label)
            with _spooling(label):
                copy.write(data)
            data = read()
    stack.callback(_SPOOLS.drop, copy)
    return copy


@dataclass(slots=True, eq=False)
class _Spool:
    """An unnamed temporary file, and the copies in it, one behind the other."""

    file: FileIO
    copies: set[_Copy] = field(default_factory=set)

    @property
    def end(self) -> int:
        """The position of the next copy."""
        return max((copy.start + copy.size for copy in self.copies), default=0)


class _Copy:
    """Bytes in a spool (``ReadFile``)."""

    def __init__(self, spool: _Spool) -> None:
        self.spool = spool
        self.start = spool.end
        self.size = 0
        #: Bytes of the original, as they were read.
        self.source_size = 0

    def write(self, data: bytes) -> None:
        """Append bytes; no other copy is written into the spool meanwhile."""
        view = memoryview(data)
        while view:
            count = os.pwrite(self.spool.file.fileno(), view, self.start + self.size)
            self.size += count
            view = view[count:]

    def read(self, start: int, size: int) -> bytes:
        """See ``ReadFile``."""
        return os.pread(self.spool.file.fileno(), min(size, max(0, self.size - start)), self.start + start)

    def read_into(self, buffer: memoryview, start: int) -> int:
        """See ``ReadFile``."""
        target = buffer[: max(0, self.size - start)]
        return os.preadv(self.spool.file.fileno(), [target], self.start + start) if target else 0

    def file_at(self, start: int) -> AbstractContextManager[tuple[int, int]]:
        """See ``ReadFile``."""
        return nullcontext((self.spool.file.fileno(), self.start + start))


class _Spools:
    """Temporary files, as many as are written at once: a thousand compressed archives share a few descriptors."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._free: list[_Spool] = []

    @contextmanager
    def writing(self, label: str) -> Iterator[_Copy]:
        """A new copy for the block to write; it is dropped if that fails."""
        with self._lock:
            spool = self._free.pop() if self._free else None
        if spool is None:
            with _spooling(label):
                spool = _Spool(_temporary_file())
        copy = _Copy(spool)
        spool.copies.add(copy)
        try:
            yield copy
        except BaseException:
            spool.copies.discard(copy)
            raise
        finally:
            self._give_back(spool)

    def drop(self, copy: _Copy) -> None:
        """Drop a copy; its space is freed as soon as no copy lies behind it."""
        with self._lock:
            copy.spool.copies.discard(copy)
            is_free = copy.spool in self._free
            if is_free:
                self._free.remove(copy.spool)
        if is_free:  # otherwise its writer does the rest
            self._give_back(copy.spool)

    def _give_back(self, spool: _Spool) -> None:
        with self._lock:
            end = spool.end
        # Outside the lock: truncating a large file takes a while.
        with suppress(OSError):
            spool.file.truncate(end)
        with self._lock:
            if spool.copies:
                self._free.append(spool)
                return
        spool.file.close()


_SPOOLS = _Spools()


def _temporary_file() -> FileIO:
    return tempfile.TemporaryFile(buffering=0, prefix="asyncpush-")


@contextmanager
def _spooling(label: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SourceError(
            f"no temporary file for {label}: {open_files.reason(error)}",
            hint=open_files.advice(error, "set TMPDIR to a directory with room for it, decompressed"),
        ) from error
