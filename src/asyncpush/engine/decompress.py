"""Compressed bytes decompressed, within bounds of memory; and the hash of what a compressed layer is uncompressed."""

from __future__ import annotations

import bz2
import hashlib
import lzma
import sys
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Literal, Protocol

from anyio import from_thread

from asyncpush.engine.compress import Codec
from asyncpush.model import Digest
from asyncpush.settings import MiB

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

try:
    from isal import igzip_lib
except ImportError:  # isal has no wheels for rarer machines
    igzip_lib = None  # type: ignore[assignment]

Packing = Literal["gzip", "xz", "zstd", "bzip2"]

#: How far back compressed data may refer, as a power of 2: twice what ``xz -9`` writes, all that ``zstd --ultra`` does.
WINDOW_LOG = 27

#: The same of streams that may be decompressed side by side: all that zstd's usual levels write.
SMALL_WINDOW_LOG = 23

#: What liblzma and libzstd say of data that refers further back than it may.
TOO_FAR_BACK = ("Memory usage limit exceeded", "requires too much memory")

#: What the decompressors raise of damaged data.
CORRUPT: tuple[type[Exception], ...] = (zlib.error, lzma.LZMAError, zstd.ZstdError, OSError, OverflowError)
if igzip_lib is not None:
    CORRUPT = (*CORRUPT, igzip_lib.IsalError)  # type: ignore[arg-type]  # its stub takes the class for an instance

#: Bytes that a decompressor is given at a time: it copies what lies behind a member's end, and eStargz has thousands.
_SLICE = 64 * 1024

#: Bytes that it gives out at a time, however far its input expands.
_ROOM = 256 * 1024


#: A gzip member's header: its magic and method, how much every header has, and what its flags announce.
_GZIP = b"\x1f\x8b\x08"
_FIXED = 10
_HEADER_CRC, _EXTRA, _NAME, _COMMENT = 2, 4, 8, 16


class Decompressor(Protocol):
    """What the standard library's decompressors have in common: each takes one stream (member, frame)."""

    @property
    def eof(self) -> bool:
        """Whether the stream has ended."""
        ...

    @property
    def needs_input(self) -> bool:
        """Whether it has given out all that it was given."""
        ...

    @property
    def unused_data(self) -> bytes:
        """What was given to it from behind the stream's end."""
        ...

    def decompress(self, data: memoryview | bytes, max_length: int, /) -> bytes:
        """Take *data*, and give out up to *max_length* bytes."""
        ...


class _ZlibDecompressor:
    """zlib's in the form of the others, which keep themselves what they could not use yet."""

    def __init__(self) -> None:
        self._inner = zlib.decompressobj(16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._inner.eof

    @property
    def needs_input(self) -> bool:
        return not self._inner.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._inner.unused_data

    def decompress(self, data: memoryview | bytes, max_length: int, /) -> bytes:
        return self._inner.decompress(self._inner.unconsumed_tail + data, max_length)


class _IgzipDecompressor:
    """igzip's, for headers of any length: it takes a header only whole, and what it says is nobody's business here."""

    def __init__(self) -> None:
        self._inner = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        self._header: Generator[None, bytes, bytes] | None = _gzip_header()
        next(self._header)

    @property
    def eof(self) -> bool:
        return bool(self._inner.eof)

    @property
    def needs_input(self) -> bool:
        return self._header is not None or bool(self._inner.needs_input)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._inner.unused_data)

    def decompress(self, data: memoryview | bytes, max_length: int, /) -> bytes:
        if self._header is not None:
            try:
                self._header.send(bytes(data))
            except StopIteration as end:
                self._header, data = None, end.value
            else:
                return b""
        return bytes(self._inner.decompress(data, max_length))


def _gzip_header() -> Generator[None, bytes, bytes]:
    """Take a member's header piece by piece; in the end, the shortest one, and what came behind it (RFC 1952)."""
    data = b""
    while len(data) < _FIXED:
        data += yield
    if not data.startswith(_GZIP) or not (flags := data[3]):
        return data
    data = data[_FIXED:]
    if flags & _EXTRA:
        while len(data) < 2:
            data += yield
        data = yield from _without(data[2:], int.from_bytes(data[:2], "little"))
    for flag in (_NAME, _COMMENT):
        if flags & flag:
            while (end := data.find(b"\0")) < 0:
                data = yield
            data = data[end + 1 :]
    if flags & _HEADER_CRC:
        data = yield from _without(data, 2)
    return _GZIP + bytes(_FIXED - len(_GZIP)) + data


def _without(data: bytes, count: int) -> Generator[None, bytes, bytes]:
    while len(data) < count:
        count -= len(data)
        data = yield
    return data[count:]


def _gzip() -> Decompressor:
    return _IgzipDecompressor() if igzip_lib else _ZlibDecompressor()


def _xz(window_log: int) -> Decompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=(1 << window_log) + MiB)


def _zstd(window_log: int) -> Decompressor:
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: window_log})


_DECOMPRESSORS: dict[Packing, Callable[[int], Decompressor]] = {
    "gzip": lambda _: _gzip(),
    "xz": _xz,
    "zstd": _zstd,
    "bzip2": lambda _: bz2.BZ2Decompressor(),
}


def new_decompressor(packing: Packing, window_log: int = WINDOW_LOG) -> Decompressor:
    """What decompresses one stream, within bounds of memory; it raises what ``CORRUPT`` lists."""
    return _DECOMPRESSORS[packing](window_log)


#: What holds a window of up to 128 MiB; the others hold 4 MiB at the most.
LARGE: frozenset[Packing] = frozenset({"xz", "zstd"})

#: Seconds after which a wait for its turn looks whether it is still wanted.
_MOMENT = 0.1

_turn = Lock()


@contextmanager
def turn_of(packing: Packing) -> Iterator[None]:
    """Decompress in the block, in a worker thread of anyio: streams with large windows one at a time in this process.

    Each may claim 128 MiB, however small it is, and a migration opens dozens of archives at once.
    """
    if packing not in LARGE:
        yield
        return
    while not _turn.acquire(timeout=_MOMENT):
        from_thread.check_cancelled()
    try:
        yield
    finally:
        _turn.release()


class CorruptError(Exception):
    """Raised when compressed bytes are damaged or cut short; says why, for whoever knows what the bytes are of."""


class LargeWindowError(CorruptError):
    """Raised when compressed bytes refer further back than they may."""


class UnpackedHash:
    """Hashes what compressed bytes become; in a worker thread of anyio, so that a cancelled caller stops it.

    A layer may be several gzip members or zstd frames behind one another (eStargz, pigz, zstd:chunked), and zeros may
    pad a gzip file, as ``gzip -d`` has it.

    Args:
        codec: how the bytes are compressed.
        window_log: how far back they may refer, as a power of 2.
    """

    def __init__(self, codec: Codec, window_log: int = WINDOW_LOG) -> None:
        self._codec = codec
        self._window_log = window_log
        self._sha256 = hashlib.sha256()
        self._member: Decompressor | None = None
        self._members = 0

    def update(self, data: memoryview) -> None:
        """Take the next bytes.

        Raises:
            LargeWindowError: they refer too far back.
            CorruptError: they are damaged.
        """
        for start in range(0, len(data), _SLICE):
            try:
                self._unpack(data[start : start + _SLICE])
            except CORRUPT as error:
                kind = LargeWindowError if any(words in str(error) for words in TOO_FAR_BACK) else CorruptError
                raise kind(f"its {self._codec} data can't be decompressed: {error}") from error

    def finish(self) -> Digest:
        """The digest of all that the bytes have become.

        Raises:
            CorruptError: they have ended too early.
        """
        if self._member is not None or not self._members:
            raise CorruptError(f"its {self._codec} data has no end")
        return Digest(self._sha256.hexdigest())

    def close(self) -> None:
        """Give the memory back, also where an error that is kept refers to this."""
        self._member = None

    def _unpack(self, data: memoryview | bytes) -> None:
        while True:
            if self._member is None:
                if self._members and self._codec == "gzip" and data[:1] == b"\0":
                    data = bytes(data).lstrip(b"\0")
                if not data:
                    return
                self._member = new_decompressor(self._codec, self._window_log)
                self._members += 1
            out = self._member.decompress(data, _ROOM)
            self._sha256.update(out)
            from_thread.check_cancelled()
            data = b""
            if self._member.eof:
                data = self._member.unused_data
                self._member = None
            elif self._member.needs_input and len(out) < _ROOM:
                return
