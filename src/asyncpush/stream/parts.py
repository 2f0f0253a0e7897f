"""Parts of a blob: its bytes in, encoded parts and the layer's digest out, one worker-thread call a part."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from asyncpush.errors import DigestMismatchError
from asyncpush.model import Digest, LayerBytes
from asyncpush.protocols import Blob, BlobReader, Part, PartEncoder, SeekableReader

#: Bytes that are read, hashed, encoded and hashed again in one go, while they are in the processor's cache.
#: A multiple of 3, so that base64 needs no padding inside a part.
BLOCK_SIZE = 384 * 1024


class PartCutter:
    """Cuts a blob into parts while it hashes it, and sees that it is what its descriptor says.

    Blocking: its methods run in a worker thread, one at a time.

    Args:
        blob: what is read; its descriptor, if it has one, is checked at the end.
        reader: the opened blob.
        part_size: bytes of each part but the last.
        encoder: makes the encoder of the part that begins at a byte, and whose bytes can be read again, or not.
    """

    def __init__(
        self,
        blob: Blob,
        reader: BlobReader,
        part_size: int,
        encoder: Callable[[int, SeekableReader | None], PartEncoder],
    ) -> None:
        self._blob = blob
        self._reader = reader
        self._part_size = part_size
        self._encoder = encoder
        self._sha256 = hashlib.sha256()
        self._size = 0
        self._ended = False
        self._block = memoryview(bytearray(BLOCK_SIZE))

    @property
    def consumed(self) -> int:
        """Bytes of the source that were read so far."""
        return self._reader.consumed

    def next_part(self, *, again: SeekableReader | None) -> Part | None:
        """Make the next part; None when there is no more.

        Args:
            again: where the part's bytes are read again when it is sent; None to hold it, encoded.

        Raises:
            DigestMismatchError: the blob has ended, and its size or digest is not the descriptor's.
            SourceError: the source can't be read.
        """
        if self._ended:
            return None
        first = self._size
        encoder = self._encoder(first, again)
        while (room := self._part_size - (self._size - first)) and not self._ended:
            wanted = self._block[: min(room, BLOCK_SIZE)]
            count = self._reader.readinto(wanted)
            self._ended = count < len(wanted)
            self._size += count
            self._sha256.update(wanted[:count])
            encoder.add(wanted[:count])
        self._check()
        return encoder.finish() if self._size > first else None

    def result(self) -> LayerBytes:
        """What was read: the layer's digest and size. Final once ``next_part`` has answered None."""
        return LayerBytes(Digest(self._sha256.hexdigest()), self._size)

    def _check(self) -> None:
        claimed = self._blob.descriptor
        if claimed is None:
            return
        if self._size > claimed.size or (self._ended and self._size < claimed.size):
            raise DigestMismatchError(self._blob.name, claimed.size, self._size)
        if self._ended and self.result().digest != claimed.digest:
            raise DigestMismatchError(self._blob.name, claimed.digest, self.result().digest)
