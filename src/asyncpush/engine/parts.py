"""Parts of a blob: its bytes in, encoded parts and the layer's digest out, in worker threads."""

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
from asyncpush.protocols import Blob, BlobReader, BlobStream, LocalBlob, RandomAccess

#: Bytes that are read, hashed, encoded and hashed again in one go, while they are in the processor's cache.
#: A multiple of 3, so that base64 needs no padding inside a part.
BLOCK_SIZE = 384 * 1024
_BLOCK = ThreadBuffer(BLOCK_SIZE)

#: Bytes of a remote blob that are gathered before a worker thread is given them: enough to be worth its turn.
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
    """Makes parts of a blob's bytes while it hashes them, and sees that they are what its descriptor says.

    Blocking: its methods run in a worker thread, one at a time.

    Args:
        blob: what the bytes are of; its descriptor, if it has one, is checked at the end.
        part_size: bytes of each part but the last.
        encoder: makes the encoder of the part that begins at a byte, and whose bytes can be read again, or not.
        start: the first byte that is given.
        hashes: whether the blob's digest is computed; else it is the descriptor's, and left to ECR to check.
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
        """Bytes that the part still takes."""
        return 0 if self.ended else self._first + self._part_size - self._size

    def begin(self, again: RandomAccess | None) -> None:
        """Begin a part; *again* is where its bytes are read again when it is sent, None to hold it, encoded."""
        self._first = self._size
        self._encoder = self._new_encoder(self._first, again)

    def add(self, data: memoryview, *, ended: bool) -> None:
        """Take the part's next bytes, and whether they are the blob's last.

        Raises:
            DigestMismatchError: the blob has ended, and its size or digest is not the descriptor's.
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
        """The part; None if there were no more bytes."""
        encoder, self._encoder = self._encoder, None  # or it would hold the part until the next one is made
        assert encoder is not None, "a part was begun"  # noqa: S101
        return encoder.finish() if self._size > self._first else None

    def result(self) -> LayerBytes:
        """What was read: the layer's digest and size. Final once there are no more parts."""
        if self._sha256 is not None:
            return LayerBytes(Digest(self._sha256.hexdigest()), self._size)
        assert self._blob.descriptor is not None, "an unknown digest is computed"  # noqa: S101
        return LayerBytes(self._blob.descriptor.digest, self._size)

    def _pass(self, data: memoryview) -> None:
        """Take bytes that need not be sent."""
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
    """Cuts a blob on this machine into parts, one worker-thread call a part; whoever is cancelled stops it in a block.

    A digest that the blob's descriptor claims is not computed here: ECR compares it when the upload is completed, and
    ``find_damage`` looks for the cause where ECR refuses.

    Args:
        blob: what is read; its size, if it has a descriptor, is checked at the end.
        reader: the opened blob.
        part_size: bytes of each part but the last.
        encoder: makes the encoder of the part that begins at a byte, and whose bytes can be read again, or not.
    """

    def __init__(
        self,
        blob: Blob,
        reader: BlobReader,
        part_size: int,
        encoder: Callable[[int, RandomAccess | None], Encoder[P]],
    ) -> None:
        super().__init__(blob, part_size, encoder, hashes=blob.descriptor is None)
        self._reader = reader

    @property
    def consumed(self) -> int:
        """Bytes of the source that were read so far."""
        return self._reader.consumed

    def skip(self, size: int) -> None:
        """Read the first *size* bytes, which an earlier run has sent, and hash them where the digest is unknown.

        Raises:
            SourceError: the source can't be read.
        """
        while self._size < size:
            from_thread.check_cancelled()
            wanted = _BLOCK.view[: min(size - self._size, BLOCK_SIZE)]
            count = self._reader.readinto(wanted)
            self._pass(wanted[:count])
            if count < len(wanted):
                self.ended = True
                self._check()
                return

    def next_part(self, *, again: RandomAccess | None) -> P | None:
        """Make the next part; None when there is no more.

        Args:
            again: where the part's bytes are read again when it is sent; None to hold it, encoded.

        Raises:
            DigestMismatchError: the blob has ended, and its size or digest is not the descriptor's.
            SourceError: the source can't be read.
        """
        if self.ended:
            return None
        self.begin(again)
        while room := self.room:
            from_thread.check_cancelled()
            wanted = _BLOCK.view[: min(room, BLOCK_SIZE)]
            count = self._reader.readinto(wanted)
            self.add(wanted[:count], ended=count < len(wanted))
        return self.finish()


@asynccontextmanager
async def opened(blob: LocalBlob, threads: CapacityLimiter | None = None) -> AsyncIterator[BlobReader]:
    """Open *blob* in a worker thread, and close it in one."""
    manager = blob.open()
    reader = await to_thread.run_sync(manager.__enter__, limiter=threads)
    try:
        yield reader
    finally:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(manager.__exit__, None, None, None, limiter=threads)


def find_damage(blob: LocalBlob) -> DigestMismatchError | None:
    """Read and hash a blob whose digest ECR has refused: the error for other bytes than its descriptor names.

    Returns:
        None if the blob is as its descriptor says; then the upload was damaged.

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


class HeldBytes:
    """The bytes of one part, held as they came, for several uploads to encode (``protocols.RandomAccess``).

    Args:
        first: the part's first byte in the blob.
        size: the part's bytes, at the most.
    """

    def __init__(self, first: int, size: int) -> None:
        self.buffer = memoryview(bytearray(size))
        self._first = first

    def read_at(self, start: int, buffer: memoryview) -> memoryview:
        """The bytes from *start* on; nothing is copied."""
        return self.buffer[start - self._first :][: len(buffer)]


async def receive_part(
    maker: PartMaker[P], stream: BlobStream, held: HeldBytes | None, window: memoryview, threads: CapacityLimiter
) -> P | None:
    """Make the next part of a remote blob: the event loop waits for its bytes, worker threads do all else.

    Args:
        maker: makes the parts.
        stream: gives the bytes.
        held: where they stay for the time that the part is sent; None to hold it encoded.
        window: where they go otherwise, ``WINDOW_SIZE`` bytes at a time.
        threads: the worker threads.

    Returns:
        The part, or None when there is no more.

    Raises:
        DigestMismatchError: the blob has ended, and its size or digest is not the descriptor's.
        SourceError: the source can't be read.
    """
    if maker.ended:
        return None
    maker.begin(held)
    filled = 0
    while room := maker.room:
        place = held.buffer[filled:] if held is not None else window
        wanted = place[: min(room, WINDOW_SIZE)]
        count = await stream.readinto(wanted)
        filled += count
        await to_thread.run_sync(partial(maker.add, wanted[:count], ended=count < len(wanted)), limiter=threads)
    return maker.finish()


def worker_threads() -> CapacityLimiter:
    """As many as there are cores, and one that waits for a disk; must be called in an event loop."""
    return CapacityLimiter((os.cpu_count() or 1) + 1)
