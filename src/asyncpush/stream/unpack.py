"""What a compressed layer is uncompressed, hashed while its bytes are read: nothing is kept, and memory is bounded."""

from __future__ import annotations

import hashlib
import sys
import zlib
from typing import Protocol

from anyio import from_thread

from asyncpush.model import Digest
from asyncpush.stream.compress import Codec

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

try:
    from isal import igzip_lib
except ImportError:  # isal has no wheels for rarer machines
    igzip_lib = None  # type: ignore[assignment]

#: Bytes that a decompressor is given at a time: it copies what lies behind a member's end, and eStargz has thousands.
_SLICE = 64 * 1024

#: Bytes that it gives out at a time, however far its input expands.
_ROOM = 256 * 1024

_CORRUPT: tuple[type[Exception], ...] = (zlib.error, zstd.ZstdError)
if igzip_lib is not None:
    _CORRUPT = (*_CORRUPT, igzip_lib.IsalError)  # type: ignore[arg-type]  # its stub takes the class for an instance


class CorruptError(Exception):
    """Raised when compressed bytes are damaged or cut short; says why, for whoever knows what the bytes are of."""


class UnpackedHash:
    """Hashes what compressed bytes become; in a worker thread of anyio, so that a cancelled caller stops it.

    A layer may be several gzip members or zstd frames behind one another (eStargz, pigz, zstd:chunked), and zeros may
    pad a gzip file, as ``gzip -d`` has it.

    Args:
        codec: how the bytes are compressed.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._sha256 = hashlib.sha256()
        self._member: _Decompressor | None = None
        self._members = 0

    def update(self, data: memoryview) -> None:
        """Take the next bytes.

        Raises:
            CorruptError: they are damaged.
        """
        for start in range(0, len(data), _SLICE):
            try:
                self._unpack(data[start : start + _SLICE])
            except _CORRUPT as error:
                raise CorruptError(f"its {self._codec} data can't be decompressed: {error}") from error

    def finish(self) -> Digest:
        """The digest of all that the bytes have become.

        Raises:
            CorruptError: they have ended too early.
        """
        if self._member is not None or not self._members:
            raise CorruptError(f"its {self._codec} data has no end")
        return Digest(self._sha256.hexdigest())

    def _unpack(self, data: memoryview | bytes) -> None:
        while True:
            if self._member is None:
                if self._members and self._codec == "gzip" and data[:1] == b"\0":
                    data = bytes(data).lstrip(b"\0")
                if not data:
                    return
                self._member = _new_decompressor(self._codec)
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


class _Decompressor(Protocol):
    """What the decompressors have in common: one member or frame each."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: memoryview | bytes, max_length: int, /) -> bytes: ...


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


def _new_decompressor(codec: Codec) -> _Decompressor:
    if codec == "zstd":
        return zstd.ZstdDecompressor()
    return igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP) if igzip_lib else _ZlibDecompressor()
