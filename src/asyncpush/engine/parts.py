"""Makes encoded parts of the bytes of a blob, and hashes the layer on the way, in worker threads."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Generic, Protocol, TypeVar

import anyio
from anyio import CapacityLimiter, from_thread, to_thread

from asyncpush.engine.memory import ThreadBuffer
from asyncpush.errors import DigestMismatchError
from asyncpush.model import Digest, LayerBytes
from asyncpush.protocols import Blob, BlobReader, BlobStream, LocalBlob, RandomAccess, SeekableReader

#: Bytes that are read, hashed, encoded and hashed again while they are in the processor's cache.
#: A multiple of 3, so that base64 needs no padding inside a part.
BLOCK_SIZE = 384 * 1024
_BLOCK = ThreadBuffer(BLOCK_SIZE)

#: Bytes of a remote blob that are collected for one call of a worker thread: enough to be worth the switch.
WINDOW_SIZE = 2 * BLOCK_SIZE

P = TypeVar("P")
P_co = TypeVar("P_co", covariant=True)


class Encoder(Protocol[P_co]):
    """Makes one part, block by block (``protocols.PartEncoder`` for one upload)."""

    def add(self, block: memoryview) -> None:
        """Take the next bytes. All blocks but the last have a length that 3 divides."""
        ...

    def finish(self) -> P_co:
        """Close the part."""
        ...


class PartMaker(Generic[P]):
    """Makes parts of a blob's bytes, hashes them, and checks them against the blob's descriptor.

    Its methods block: they run in a worker thread, one at a time.

    Args:
        blob: the blob; its descriptor, if it has one, is checked at the end.
        part_size: bytes of each part but the last.
        encoder: returns the encoder of a part, given its first byte and where its bytes can be read again, or None.
        start: the first byte.
        hashes: whether to compute the blob's digest; if not, the descriptor's counts, and ECR checks it.
    """

    def __init__(
        self,
        blob: Blob,
        part_size: int,
        encoder: Callable[[int, RandomAccess | None], Encoder[P]],
        *,
        start: int = 0,
        hashes: bool,
    ) -> None:
        self.ended = False
        self._blob = blob
        self._part_size = part_size
        self._new_encoder = encoder
        self._sha256 = hashlib.sha256() if hashes else None
        self._first = self._size = start
        self._encoder: Encoder[P] | None = None

    @property
    def room(self) -> int:
        """Bytes that are missing from the part."""
        return 0 if self.ended else self._first + self._part_size - self._size

    def begin(self, content: RandomAccess | None) -> None:
        """Begin a part.

        Args:
            content: where the part's bytes are read again when it is sent; None to hold the part encoded.
        """
        self._first = self._size
        self._encoder = self._new_encoder(self._first, content)

    def add(self, data: memoryview, *, ended: bool) -> None:
        """Add the next bytes of the part; *ended* says that they are the last bytes of the blob.

        Raises:
            DigestMismatchError: the blob has ended, and its size or digest differs from its descriptor's.
        """
        assert self._encoder is not None, "a part was begun"  # noqa: S101
        for start in range(0, len(data), BLOCK_SIZE):
            block = data[start : start + BLOCK_SIZE]
            if self._sha256 is not None:
                self._sha256.update(block)
            self._encoder.add(block)
        self._size += len(data)
        self.ended = ended
        self._check()

    def finish(self) -> P | None:
        """Return the part; None if the blob had no more bytes."""
        encoder, self._encoder = self._encoder, None  # or it would hold the part until the next one is made
        assert encoder is not None, "a part was begun"  # noqa: S101
        return encoder.finish() if self._size > self._first else None

    def result(self) -> LayerBytes:
        """The digest and size of the bytes so far: of the layer, once there are no more parts."""
        if self._sha256 is not None:
            return LayerBytes(Digest(self._sha256.hexdigest()), self._size)
        assert self._blob.descriptor is not None, "an unknown digest is computed"  # noqa: S101
        return LayerBytes(self._blob.descriptor.digest, self._size)

    def _pass_over(self, data: memoryview) -> None:
        """Hash bytes that need not be sent, if the digest is computed."""
        if self._sha256 is not None:
            self._sha256.update(data)
        self._size += len(data)
        self._first = self._size

    def _check(self) -> None:
        claimed = self._blob.descriptor
        if claimed is None:
            return
        if self._size > claimed.size or (self.ended and self._size < claimed.size):
            raise self._blob.mismatch(claimed.size, self._size)
        if self.ended and self.result().digest != claimed.digest:
            raise self._blob.mismatch(claimed.digest, self.result().digest)


class PartCutter(PartMaker[P]):
    """Cuts a local blob into parts, with one worker-thread call for each; cancellation takes effect within a block.

    It does not compute a digest that the blob's descriptor has: ECR compares that with the bytes when the upload is
    completed. If ECR refuses, ``find_damage`` finds the cause.

    Args:
        blob: the blob; its size, if it has a descriptor, is checked at the end.
        reader: the opened blob.
        part_size: bytes of each part but the last.
        encoder: returns the encoder of a part, given its first byte and where its bytes can be read again, or None.
    """

    def __init__(
        self,
        blob: Blob,
        reader: BlobReader,
        part_size: int,
        encoder: Callable[[int, RandomAccess | None], Encoder[P]],
    ) -> None:
        super().__init__(blob, part_size, encoder, hashes=blob.descriptor is None)
        self._reader: BlobReader = reader

    @property
    def consumed(self) -> int:
        """Bytes of the source that have been read so far."""
        return self._reader.consumed

    def skip(self, size: int) -> None:
        """Pass over the first *size* bytes, which an earlier run has sent.

        They are read if they must be: to be hashed if the digest is unknown, or because the source has no positions.

        Raises:
            SourceError: the source can't be read.
        """
        if self._sha256 is None and isinstance(self._reader, SeekableReader):
            self._reader = _ReaderFrom(self._reader, size)
            self._first = self._size = size
            return
        while self._size < size:
            from_thread.check_cancelled()
            block = _BLOCK.view[: min(size - self._size, BLOCK_SIZE)]
            count = self._reader.readinto(block)
            self._pass_over(block[:count])
            if count < len(block):
                self.ended = True
                self._check()
                return

    def next_part(self, *, content: RandomAccess | None) -> P | None:
        """Make the next part; None at the end.

        Args:
            content: where the part's bytes are read again when it is sent; None to hold the part encoded.

        Raises:
            DigestMismatchError: the blob has ended, and its size or digest differs from its descriptor's.
            SourceError: the source can't be read.
        """
        if self.ended:
            return None
        self.begin(content)
        while room := self.room:
            from_thread.check_cancelled()
            block = _BLOCK.view[: min(room, BLOCK_SIZE)]
            count = self._reader.readinto(block)
            self.add(block[:count], ended=count < len(block))
        return self.finish()


class _ReaderFrom:
    """Reads bytes from a position on (``protocols.BlobReader``)."""

    def __init__(self, content: RandomAccess, start: int) -> None:
        self.consumed = start
        self._content = content

    def readinto(self, buffer: memoryview) -> int:
        found = self._content.read_at(self.consumed, buffer)
        if found.obj is not buffer.obj:
            buffer[: len(found)] = found
        self.consumed += len(found)
        return len(found)


@asynccontextmanager
async def opened(blob: LocalBlob, threads: CapacityLimiter | None = None) -> AsyncIterator[BlobReader]:
    """Open *blob* for the block; opening and closing run in a worker thread."""
    manager = blob.open()
    reader = await to_thread.run_sync(manager.__enter__, limiter=threads)
    try:
        yield reader
    finally:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(manager.__exit__, None, None, None, limiter=threads)


def find_damage(blob: LocalBlob) -> DigestMismatchError | None:
    """Read and hash a blob after ECR has refused its digest.

    Returns:
        The error that names the blob, or None if its bytes match the descriptor: then the upload was damaged.

    Raises:
        SourceError: the source can't be read.
    """
    claimed = blob.descriptor
    assert claimed is not None, "only a known digest is left to ECR"  # noqa: S101
    sha256, size = hashlib.sha256(), 0
    with blob.open() as reader:
        while count := reader.readinto(_BLOCK.view):
            from_thread.check_cancelled()
            sha256.update(_BLOCK.view[:count])
            size += count
    actual = Digest(sha256.hexdigest())
    if size != claimed.size:
        return blob.mismatch(claimed.size, size)
    return blob.mismatch(claimed.digest, actual) if actual != claimed.digest else None


def check_size(blob: LocalBlob, content: RandomAccess) -> None:
    """Check that *content* has as many bytes as the blob's descriptor says, without reading it all.

    Raises:
        DigestMismatchError: it has more or fewer.
        SourceError: the source can't be read, or is cut short.
    """
    claimed = blob.descriptor
    assert claimed is not None, "the size is known"  # noqa: S101
    byte = memoryview(bytearray(1))
    is_longer = bool(content.read_at(claimed.size, byte))
    is_shorter = claimed.size > 0 and not content.read_at(claimed.size - 1, byte)
    if (is_longer or is_shorter) and (damage := find_damage(blob)) is not None:
        raise damage


class HeldBytes:
    """The bytes of one part, held as they came: several uploads encode them, or ``/v2/`` takes them as they are.

    Args:
        first: the part's first byte in the blob.
        buffer: where the bytes are held.
    """

    def __init__(self, first: int, buffer: memoryview) -> None:
        self.buffer = buffer
        self._first = first

    def read_at(self, start: int, buffer: memoryview) -> memoryview:
        """Return the bytes from *start* on, without a copy."""
        return self.view(start, len(buffer))

    def view(self, start: int, size: int) -> memoryview:
        """Return *size* bytes from *start* on, without a copy."""
        return self.buffer[start - self._first :][:size]


async def receive_part(
    maker: PartMaker[P], stream: BlobStream, content: HeldBytes | None, window: memoryview, threads: CapacityLimiter
) -> P | None:
    """Make the next part of a remote blob: the event loop receives its bytes, worker threads hash and encode them.

    Args:
        maker: makes the parts.
        stream: the blob's bytes.
        content: holds the bytes until the part is sent; None to hold the part encoded.
        window: a buffer for the bytes otherwise, of at most ``WINDOW_SIZE`` bytes.
        threads: the worker threads.

    Returns:
        The part, or None at the end.

    Raises:
        DigestMismatchError: the blob has ended, and its size or digest is not the descriptor's.
        SourceError: the source can't be read.
    """
    if maker.ended:
        return None
    maker.begin(content)
    # Of a part that is held anyway, one call hashes all: each call competes with the event loop for the interpreter.
    buffer = window if content is None else content.buffer
    while room := maker.room:
        block = buffer[:room]
        count = await stream.readinto(block)
        await to_thread.run_sync(partial(maker.add, block[:count], ended=count < len(block)), limiter=threads)
    return maker.finish()


def worker_threads() -> CapacityLimiter:
    """One thread for each core, and one that may wait for a disk; call it in an event loop."""
    return CapacityLimiter((os.cpu_count() or 1) + 1)
