"""Layers that are on no disk: random bytes that cost next to nothing to read, and are in no repository yet."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import anyio
from anyio import CapacityLimiter, to_thread

from asyncpush.errors import only_cause
from asyncpush.model import Descriptor, Digest
from asyncpush.protocols import BlobReader
from asyncpush.sources.content import ContentBlob

_MEDIA_TYPE = "application/vnd.oci.image.layer.v1.tar"

#: Random bytes that make a layer different from every other one; the rest is the same block over and over.
_HEAD_SIZE = 32

#: Small enough for a processor's second-level cache, larger than the window of gzip: it does not compress.
_BLOCK_SIZE = 256 * 1024

#: Bytes that are made and hashed in one go.
_HASH_SIZE = 384 * 1024


class _Reader:
    def __init__(self, head: bytes, block: memoryview, size: int) -> None:
        self._head = head
        self._block = block
        self._size = size
        self.consumed = 0

    def readinto(self, buffer: memoryview) -> int:
        count = len(self.read_at(self.consumed, buffer))
        self.consumed += count
        return count

    def read_at(self, start: int, buffer: memoryview) -> memoryview:
        wanted = buffer[: max(0, self._size - start)]
        head = self._head[start : start + len(wanted)]
        filled = len(head)
        wanted[:filled] = head
        while filled < len(wanted):
            place = (start + filled) % len(self._block)
            piece = self._block[place : place + len(wanted) - filled]
            wanted[filled : filled + len(piece)] = piece
            filled += len(piece)
        return wanted


@dataclass(frozen=True, slots=True)
class _RandomContent:
    """Random bytes (a ``sources.content.Content``), read at the speed of memory, from any place.

    Attributes:
        label: how to call them.
        size: bytes.
        head: what they begin with; no others do.
        block: what they consist of after that, over and over.
    """

    label: str
    size: int
    head: bytes
    block: memoryview

    @contextmanager
    def open(self) -> Iterator[BlobReader]:
        """Read them from the first byte; the reader is a ``SeekableReader``."""
        yield _Reader(self.head, self.block, self.size)


class LayerMaker:
    """Makes layers, each different from all that were ever made, with their digests."""

    def __init__(self) -> None:
        self._block = memoryview(secrets.token_bytes(_BLOCK_SIZE))
        self._threads = CapacityLimiter(os.cpu_count() or 1)

    async def make(self, count: int, size: int) -> list[ContentBlob]:
        """Make *count* layers of *size* bytes, which must be at least 32; hashing takes all cores meanwhile."""
        made: list[ContentBlob] = []

        async def one(number: int) -> None:
            made.append(await to_thread.run_sync(self._make, f"layer {number} of {count}", size, limiter=self._threads))

        with only_cause():
            async with anyio.create_task_group() as tg:
                for number in range(1, count + 1):
                    tg.start_soon(one, number)
        return made

    def _make(self, name: str, size: int) -> ContentBlob:
        content = _RandomContent(name, size, secrets.token_bytes(_HEAD_SIZE), self._block)
        sha256 = hashlib.sha256()
        buffer = memoryview(bytearray(min(size, _HASH_SIZE)))
        with content.open() as reader:
            while count := reader.readinto(buffer):
                sha256.update(buffer[:count])
        return ContentBlob(name, Descriptor(_MEDIA_TYPE, Digest(sha256.hexdigest()), size), content)
