"""Compresses an uncompressed layer as it is read, always to the same bytes, and checks its diff id."""

from __future__ import annotations

import hashlib
import sys
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from asyncpush.engine.memory import ThreadBuffer
from asyncpush.errors import DigestMismatchError
from asyncpush.model import Descriptor, Digest
from asyncpush.protocols import BlobReader
from asyncpush.settings import MiB

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

try:
    from isal import isal_zlib
except ImportError:  # isal has no wheels for less common machines
    isal_zlib = None  # type: ignore[assignment]

#: Bytes that a compressor gets at a time, always: the output of igzip depends on the sizes of its inputs.
BLOCK_SIZE = MiB
_BLOCK = ThreadBuffer(BLOCK_SIZE)

#: The levels to use if none is given: igzip's fastest useful one, and zstd's own default.
DEFAULT_LEVELS = {"gzip": 1, "zstd": 3}

Codec = Literal["gzip", "zstd"]


class RawLayer(Protocol):
    """An uncompressed layer, named by its diff id."""

    @property
    def name(self) -> str:
        """Its name in errors and on screens."""
        ...

    @property
    def descriptor(self) -> Descriptor:
        """Its diff id and its size in bytes."""
        ...

    def open(self) -> AbstractContextManager[BlobReader]:
        """Open it for reading, any number of times."""
        ...

    def mismatch(self, expected: Digest | int, actual: Digest | int) -> DigestMismatchError:
        """Return the error for bytes that do not match its descriptor."""
        ...


class Compressor(Protocol):
    """The interface that the compressor objects of all codecs share."""

    def compress(self, data: memoryview, /) -> bytes:
        """Compress the next bytes; return the output so far."""
        ...

    def flush(self) -> bytes:
        """Return the rest of the output, and end."""
        ...


@dataclass(frozen=True, slots=True)
class CompressedBlob:
    """An uncompressed layer that is compressed as it is read (``protocols.Blob``).

    Attributes:
        raw: the layer's uncompressed bytes; its descriptor's digest is the diff id.
        media_type: of the compressed layer.
        codec: ``gzip`` or ``zstd``.
        level: gzip 1 to 9, zstd 1 to 19; None is the codec's default (``DEFAULT_LEVELS``).
    """

    raw: RawLayer
    media_type: str
    codec: Codec = "gzip"
    level: int | None = None

    @property
    def name(self) -> str:
        """The layer's name."""
        return self.raw.name

    @property
    def descriptor(self) -> Descriptor | None:
        """None: the digest is known only after the bytes are read."""
        return None

    @property
    def source_size(self) -> int:
        """The uncompressed size in bytes."""
        return self.raw.descriptor.size

    @property
    def identity(self) -> str:
        """The diff id, codec and level, such as ``sha256:...+gzip-1``."""
        return f"{self.raw.descriptor.digest}+{self.codec}-{self._level}"

    def mismatch(self, expected: Digest | int, actual: Digest | int) -> DigestMismatchError:
        """Return the error for uncompressed bytes that do not match the diff id."""
        return self.raw.mismatch(expected, actual)

    @contextmanager
    def open(self) -> Iterator[BlobReader]:
        """Open it for reading; the reader compresses in the thread that calls it."""
        with self.raw.open() as reader:
            yield _CompressingReader(self, reader, new_compressor(self.codec, self._level))

    @property
    def _level(self) -> int:
        return self.level if self.level is not None else DEFAULT_LEVELS[self.codec]


def new_compressor(codec: Codec, level: int) -> Compressor:
    """Make a compressor whose output depends only on its input: no name, no time, one thread.

    igzip does levels 1 to 3 of gzip where it is installed; zlib does the others.
    """
    if codec == "zstd":
        return zstd.ZstdCompressor(level=level)
    if isal_zlib is not None and level <= isal_zlib.ISAL_BEST_COMPRESSION:
        fast: Compressor = isal_zlib.compressobj(level, isal_zlib.DEFLATED, 16 + isal_zlib.MAX_WBITS, 9)
        return fast
    return zlib.compressobj(level, zlib.DEFLATED, 16 + zlib.MAX_WBITS)


class _CompressingReader:
    def __init__(self, blob: CompressedBlob, raw: BlobReader, compressor: Compressor) -> None:
        self._blob = blob
        self._raw = raw
        self._compressor = compressor
        self._diff_id = hashlib.sha256()
        self._block_size = min(BLOCK_SIZE, max(blob.source_size, 1))
        self._pending = memoryview(b"")
        self._ended = False

    @property
    def consumed(self) -> int:
        return self._raw.consumed

    def readinto(self, buffer: memoryview) -> int:
        filled = 0
        while filled < len(buffer):
            if not self._pending:
                if self._ended:
                    break
                self._pending = memoryview(self._next())
            count = min(len(self._pending), len(buffer) - filled)
            buffer[filled : filled + count] = self._pending[:count]
            self._pending = self._pending[count:]
            filled += count
        return filled

    def _next(self) -> bytes:
        buffer = _BLOCK.view[: self._block_size]
        block = buffer[: self._raw.readinto(buffer)]
        self._diff_id.update(block)
        if len(block) == len(buffer):
            return self._compressor.compress(block)
        self._check_diff_id()
        self._ended = True
        return self._compressor.compress(block) + self._compressor.flush()

    def _check_diff_id(self) -> None:
        expected, actual = self._blob.raw.descriptor.digest, Digest(self._diff_id.hexdigest())
        if actual != expected:
            raise self._blob.mismatch(expected, actual)
