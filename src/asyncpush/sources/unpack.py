"""Compressed bytes, whatever compressed them, as the bytes that they were: streams, padding, and their bounds."""

from __future__ import annotations

import bz2
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, Protocol

from asyncpush.errors import SourceError
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

#: Enough of a file's beginning to tell what it is: a tar archive's first header.
HEAD_SIZE = 512

#: How far back compressed data may refer, as a power of 2: twice what ``xz -9`` writes, all that ``zstd --ultra`` does.
WINDOW_LOG = 27

_MAGIC: tuple[tuple[bytes, Packing], ...] = (
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
)

_CORRUPT: tuple[type[Exception], ...] = (zlib.error, lzma.LZMAError, zstd.ZstdError, OSError)
if igzip_lib is not None:
    _CORRUPT = (*_CORRUPT, igzip_lib.IsalError)  # type: ignore[arg-type]  # its stub takes the class for an instance

#: What liblzma and libzstd say of data that refers further back than ``WINDOW_LOG`` allows.
_TOO_FAR_BACK = ("Memory usage limit exceeded", "requires too much memory")


def sniff(head: bytes) -> Packing | None:
    """How the file that begins with *head* is compressed, by its magic number; None if it isn't."""
    if head[257:262] == b"ustar":
        return None
    if head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5:
        return "zstd"  # a skippable frame, as pzstd begins its files with
    return next((packing for magic, packing in _MAGIC if head.startswith(magic)), None)


class _Decompressor(Protocol):
    """What the standard library's decompressors have in common: each takes one stream (member, frame)."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _ZlibDecompressor:
    """gzip by zlib, where there is no igzip, in the shape of the others."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)


def _gzip() -> _Decompressor:
    return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP) if igzip_lib else _ZlibDecompressor()


def _xz() -> _Decompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=(1 << WINDOW_LOG) + MiB)


def _zstd() -> _Decompressor:
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: WINDOW_LOG})


_DECOMPRESSORS: dict[Packing, Callable[[], _Decompressor]] = {
    "gzip": _gzip,
    "xz": _xz,
    "zstd": _zstd,
    "bzip2": bz2.BZ2Decompressor,
}


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
        self._stream: _Decompressor | None = None

    def decompress(self, size: int) -> bytes:
        """The next bytes, *size* at the most; none only at the end, all checksums having been right.

        Raises:
            SourceError: they are damaged or cut short, need too much memory, or something else lies behind them.
        """
        while stream := self._stream or self._next_stream():
            packed = self._input() if stream.needs_input else b""
            with self._intact():
                data = stream.decompress(packed, size)
            if stream.eof:
                self._pending = stream.unused_data
                self._stream = None
            if data:
                return data
        return b""

    def _input(self) -> bytes:
        data, self._pending = self._pending or self._read(), b""
        if not data:
            raise SourceError(
                f"{self._label} is cut short: its compressed data has no end", hint="fetch or save it again"
            )
        return data

    def _next_stream(self) -> _Decompressor | None:
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
        self._begun = True
        self._stream = _DECOMPRESSORS[packing]()
        return self._stream

    @contextmanager
    def _intact(self) -> Iterator[None]:
        try:
            yield
        except _CORRUPT as error:
            if any(words in str(error) for words in _TOO_FAR_BACK):
                raise SourceError(
                    f"{self._label} needs more than {(1 << WINDOW_LOG) // MiB} MiB of memory to be decompressed",
                    hint="decompress it first",
                ) from error
            raise SourceError(f"{self._label} is damaged: {error}", hint="fetch or save it again") from error
