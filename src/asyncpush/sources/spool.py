"""An archive as one file to read in place: itself, or a nameless copy of what is a pipe or compressed."""

from __future__ import annotations

import io
import os
import select
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
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
    TOO_FAR_BACK,
    WINDOW_LOG,
    Decompressor,
    Packing,
    new_decompressor,
    turn_of,
)
from asyncpush.errors import SourceError
from asyncpush.settings import MiB
from asyncpush.sources.blobs import Content, Region, readable
from asyncpush.sources.detection import HEAD_SIZE, check_head, sniff
from asyncpush.sources.file_pool import KeptFile, NamedFile, ReadFile, open_flags

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: Milliseconds after which a wait for a pipe looks whether it is still wanted.
_MOMENT = 100

#: Moments without a byte after which others need not wait for a pipe any longer.
_SILENCE = 10


def open_archive(path: str, label: str, stdin: BinaryIO | None, held: ExitStack, allowance: Allowance) -> ReadFile:
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
    if path != "-":
        return _open_named(path, label, held, allowance)
    stream = stdin or (sys.stdin.buffer if sys.stdin else None)
    if stream is None:
        raise SourceError(f"{label} is closed")
    try:
        descriptor = stream.fileno()
    except io.UnsupportedOperation:
        return _spool(_Unpolled(stream), label, held, allowance)
    with readable(label):
        file = held.enter_context(FileIO(os.dup(descriptor)))
    return KeptFile(file) if _can_stay(file, label) else _spool(_Pipe(file), label, held, allowance)


def _open_named(path: str, label: str, held: ExitStack, allowance: Allowance) -> ReadFile:
    with ExitStack() as opening:
        with readable(label):
            file = opening.enter_context(FileIO(os.open(path, open_flags())))
        if not _can_stay(file, label):
            return _spool(_Pipe(file), label, held, allowance)
        with readable(label):
            named = NamedFile(path, label, os.dup(file.fileno()))
        held.callback(named.close)
        return named


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


class Scratch:
    """Decompressed copies of contents, in temporary files without a name.

    A layer in flight that was decompressed as it is read would hold its decompressor's window, up to 128 MiB.

    Args:
        held: takes what must stay open while the copies are read.
        allowance: bounds the copies.
    """

    def __init__(self, held: ExitStack, allowance: Allowance) -> None:
        self._held = held
        self._allowance = allowance
        self._lock = Lock()
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
        buffer = memoryview(bytearray(MiB))
        with packed.open() as reader:
            compressed = Unpacker(lambda: bytes(buffer[: reader.readinto(buffer)]), packed.label)
            with closing(compressed) as unpacker:
                copy = _copied(b"", partial(unpacker.decompress, MiB), packed.label, self._held, self._allowance)
        return Region(copy, 0, copy.size, packed.label)


class _Stream(io.RawIOBase):
    """A stream that gives full buffers until its end, and stops when the caller of its worker thread is cancelled."""

    def __init__(self) -> None:
        #: Bytes that it has given.
        self.count = 0
        #: Called when nothing has come for a while.
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
    """A pipe; cancellation ends the waiting for it within a moment.

    The event loop is not asked to wait: a cancellation that comes just before it would begin is never told to it.
    """

    def __init__(self, file: FileIO) -> None:
        super().__init__()
        self._file = file
        self._poll = select.poll()
        self._poll.register(file, select.POLLIN)

    def _read_some(self, buffer: memoryview) -> int:
        while True:
            silent = 0
            while not self._poll.poll(_MOMENT):
                from_thread.check_cancelled()
                silent += 1
                if silent == _SILENCE and self.on_silence is not None:
                    self.on_silence()
            count = self._file.readinto(buffer)
            if count is not None:
                return count


class _Unpolled(_Stream):
    """Any object with ``read``; a read that blocks can't be cancelled."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream = stream

    def _read_some(self, buffer: memoryview) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _spool(raw: _Stream, label: str, held: ExitStack, allowance: Allowance) -> ReadFile:
    with readable(label), ExitStack() as unpacking:
        stream = io.BufferedReader(raw, MiB)
        read = partial(stream.read, MiB)
        if packing := sniff(stream.peek(HEAD_SIZE)):
            unpacker = unpacking.enter_context(closing(Unpacker(read, label)))
            raw.on_silence = unpacker.let_others
            read = partial(unpacker.decompress, MiB)
            label = f"{label}, decompressed ({packing}),"
        data = read()
        while len(data) < HEAD_SIZE and (more := read()):
            data += more
        if not data:
            raise SourceError(f"{label} is empty")
        check_head(data[:HEAD_SIZE], label)
        copy = _copied(data, read, label, held, allowance)
        copy.source_size = raw.count
        return copy


class Unpacker:
    """Decompresses compressed streams that lie one behind the other, with or without zeros between and behind them.

    Args:
        read: gives the next compressed bytes, none only at the end; blocks.
        label: how to call them in errors.
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
        """Let others decompress."""
        self._stream = None
        self.let_others()

    def let_others(self) -> None:
        """Let others decompress while nothing comes: who waits for a pipe keeps its window, but not its turn."""
        self._has_turn = False
        self._turn.close()

    def _take_turn(self) -> None:
        if not self._has_turn and self._packing in LARGE:
            self._turn.enter_context(turn_of(self._packing))
            self._has_turn = True

    def decompress(self, size: int) -> bytes:
        """The next bytes, *size* at the most; none only at the end, all checksums having been right.

        Raises:
            SourceError: they are damaged or cut short, need too much memory, or something else lies behind them.
        """
        # No variable has the stream: what is raised would keep its window for as long as the error is kept.
        while self._stream or self._next_stream():
            data = self._some(size)
            if data:
                return data
        return b""

    def _some(self, size: int) -> bytes:
        assert self._stream is not None, "a stream has begun"  # noqa: S101
        packed = self._input() if self._stream.needs_input else b""
        self._take_turn()
        with self._intact():
            data = self._stream.decompress(packed, size)
        if self._stream.eof:
            self._pending = self._stream.unused_data
            self._stream = None
        return data

    def _input(self) -> bytes:
        data, self._pending = self._pending or self._read(), b""
        if not data:
            raise SourceError(
                f"{self._label} is cut short: its compressed data has no end", hint="fetch or save it again"
            )
        return data

    def _next_stream(self) -> Decompressor | None:
        """Begin the next stream; None if there is nothing but zeros any more."""
        padding = b"\0" if self._begun else b""
        self._pending = self._pending.lstrip(padding)
        while len(self._pending) < HEAD_SIZE and (more := self._read()):
            self._pending = (self._pending + more).lstrip(padding)
        if not self._pending:
            return None
        packing = sniff(self._pending)
        if packing is None:
            raise SourceError(
                f"{self._label} holds something else behind its compressed data",
                hint="it may be damaged, or several files in one; give each file alone",
            )
        self._begun, self._packing = True, packing
        self._take_turn()
        self._stream = new_decompressor(packing)
        return self._stream

    @contextmanager
    def _intact(self) -> Iterator[None]:
        try:
            yield
        except CORRUPT as error:
            if any(words in str(error) for words in TOO_FAR_BACK):
                raise SourceError(
                    f"{self._label} needs more than {(1 << WINDOW_LOG) // MiB} MiB of memory to be decompressed",
                    hint="decompress it first",
                ) from error
            raise SourceError(f"{self._label} is damaged: {error}", hint="fetch or save it again") from error


def _copied(data: bytes, read: Callable[[], bytes], label: str, held: ExitStack, allowance: Allowance) -> _Copy:
    """A copy of *data* and of all that *read* gives, for as long as *held* is open."""
    with _SPOOLS.writing(label) as copy:
        data = data or read()
        while data:
            from_thread.check_cancelled()
            allowance.take(len(data), label)
            with _room(label):
                copy.write(data)
            data = read()
    held.callback(_SPOOLS.drop, copy)
    return copy


@dataclass(slots=True, eq=False)
class _Spool:
    """A temporary file without a name, and the copies in it, one behind the other."""

    file: FileIO
    copies: set[_Copy] = field(default_factory=set)

    @property
    def end(self) -> int:
        """Where the next copy begins."""
        return max((copy.start + copy.size for copy in self.copies), default=0)


class _Copy:
    """Bytes in a spool (``ReadFile``)."""

    def __init__(self, spool: _Spool) -> None:
        self.spool = spool
        self.start = spool.end
        self.size = 0
        #: Bytes of what it is a copy of, as they came.
        self.source_size = 0

    def write(self, data: bytes) -> None:
        """Write more; nobody else writes into the spool meanwhile."""
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
        wanted = buffer[: max(0, self.size - start)]
        return os.preadv(self.spool.file.fileno(), [wanted], self.start + start) if wanted else 0


class _Spools:
    """As many temporary files as are written at once: a thousand compressed archives share a few descriptors."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._free: list[_Spool] = []

    @contextmanager
    def writing(self, label: str) -> Iterator[_Copy]:
        """A new copy, which the block writes; it is dropped again where that fails."""
        with self._lock:
            spool = self._free.pop() if self._free else None
        if spool is None:
            with _room(label):
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
        """Forget a copy; what room it took is given back as soon as nothing lies behind it."""
        with self._lock:
            copy.spool.copies.discard(copy)
            is_free = copy.spool in self._free
            if is_free:
                self._free.remove(copy.spool)
        if is_free:  # else who writes into it does the rest
            self._give_back(copy.spool)

    def _give_back(self, spool: _Spool) -> None:
        with self._lock:
            end = spool.end
        # Outside the lock: to free a large file takes a while.
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
def _room(label: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SourceError(
            f"no temporary file for {label}: {open_files.reason(error)}",
            hint=open_files.advice(error, "set TMPDIR to a directory with room for it, decompressed"),
        ) from error
