"""Decompresses within a bounded memory, and computes the diff id of a compressed layer."""

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
except ImportError:  # isal has no wheels for less common machines
    igzip_lib = None  # type: ignore[assignment]

Packing = Literal["gzip", "xz", "zstd", "bzip2"]

#: The largest window of compressed data, as a power of 2: twice that of ``xz -9``, and that of ``zstd --ultra``.
WINDOW_LOG = 27

#: The same for streams that are decompressed at the same time: that of the usual levels of zstd.
SMALL_WINDOW_LOG = 23

#: The errors of liblzma and libzstd for data whose window is too large.
WINDOW_ERRORS = ("Memory usage limit exceeded", "requires too much memory")

#: The errors that the decompressors raise for damaged data.
CORRUPT: tuple[type[Exception], ...] = (zlib.error, lzma.LZMAError, zstd.ZstdError, OSError, OverflowError)
if igzip_lib is not None:
    CORRUPT = (*CORRUPT, igzip_lib.IsalError)  # type: ignore[arg-type]  # its stub declares the class as an instance

#: Bytes that a decompressor gets at a time: it copies what follows the end of a member, and eStargz has thousands.
_SLICE = 64 * 1024

#: Bytes that it returns at a time, however far its input expands.
_MAX_OUTPUT = 256 * 1024


#: The header of a gzip member: magic number and method, its fixed length, and its flags.
_GZIP = b"\x1f\x8b\x08"
_FIXED = 10
_HEADER_CRC, _EXTRA, _NAME, _COMMENT = 2, 4, 8, 16


class Decompressor(Protocol):
    """The interface that the decompressors of the standard library share; each takes one stream (member, frame)."""

    @property
    def eof(self) -> bool:
        """Whether the stream has ended."""
        ...

    @property
    def needs_input(self) -> bool:
        """Whether it can return nothing more without more input."""
        ...

    @property
    def unused_data(self) -> bytes:
        """The input after the end of the stream."""
        ...

    def decompress(self, data: memoryview | bytes, max_length: int, /) -> bytes:
        """Decompress *data*, and return up to *max_length* bytes."""
        ...


class _ZlibDecompressor:
    """zlib's decompressor with the interface of the others: it keeps the input that it could not use yet."""

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
    """igzip's decompressor for headers of any length: igzip needs a whole header, so it gets a minimal one."""

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
    """Read the header of a member piece by piece; return a minimal header and what followed the header (RFC 1952)."""
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
    """Make a decompressor of one stream, within a bounded memory; it raises the errors of ``CORRUPT``."""
    return _DECOMPRESSORS[packing](window_log)


#: Formats with windows of up to 128 MiB; those of the others have at most 4 MiB.
LARGE: frozenset[Packing] = frozenset({"xz", "zstd"})

#: Seconds after which a wait for the turn checks whether it is cancelled.
_CHECK_INTERVAL = 0.1

_turn = Lock()


@contextmanager
def turn_of(packing: Packing) -> Iterator[None]:
    """Decompress in the block, in a worker thread of anyio: only one stream with a large window at a time.

    Such a stream may take 128 MiB, however small it is, and a migration opens dozens of archives at once.
    """
    if packing not in LARGE:
        yield
        return
    while not _turn.acquire(timeout=_CHECK_INTERVAL):
        from_thread.check_cancelled()
    try:
        yield
    finally:
        _turn.release()


class CorruptError(Exception):
    """Raised when compressed bytes are damaged or cut short; the caller adds which bytes they are."""


class LargeWindowError(CorruptError):
    """Raised when compressed bytes need a larger window than is allowed."""


class UnpackedHash:
    """Hashes the uncompressed bytes of a compressed layer, in a worker thread of anyio: cancellation stops it.

    A layer may consist of several gzip members or zstd frames (eStargz, pigz, zstd:chunked), and zeros may pad a gzip
    file, as ``gzip -d`` accepts.

    Args:
        codec: how the bytes are compressed.
        window_log: the largest window, as a power of 2.
    """

    def __init__(self, codec: Codec, window_log: int = WINDOW_LOG) -> None:
        self._codec = codec
        self._window_log = window_log
        self._sha256 = hashlib.sha256()
        self._member: Decompressor | None = None
        self._members = 0

    def update(self, data: memoryview) -> None:
        """Add the next compressed bytes.

        Raises:
            LargeWindowError: they need a larger window than is allowed.
            CorruptError: they are damaged.
        """
        for start in range(0, len(data), _SLICE):
            try:
                self._decompress(data[start : start + _SLICE])
            except CORRUPT as error:
                kind = LargeWindowError if any(words in str(error) for words in WINDOW_ERRORS) else CorruptError
                raise kind(f"its {self._codec} data can't be decompressed: {error}") from error

    def finish(self) -> Digest:
        """Return the digest of the uncompressed bytes.

        Raises:
            CorruptError: the compressed bytes ended too early.
        """
        if self._member is not None or not self._members:
            raise CorruptError(f"its {self._codec} data has no end")
        return Digest(self._sha256.hexdigest())

    def close(self) -> None:
        """Free the memory, even if an error that is kept refers to this object."""
        self._member = None

    def _decompress(self, data: memoryview | bytes) -> None:
        while True:
            if self._member is None:
                if self._members and self._codec == "gzip" and data[:1] == b"\0":
                    data = bytes(data).lstrip(b"\0")
                if not data:
                    return
                self._member = new_decompressor(self._codec, self._window_log)
                self._members += 1
            out = self._member.decompress(data, _MAX_OUTPUT)
            self._sha256.update(out)
            from_thread.check_cancelled()
            data = b""
            if self._member.eof:
                data = self._member.unused_data
                self._member = None
            elif self._member.needs_input and len(out) < _MAX_OUTPUT:
                return
