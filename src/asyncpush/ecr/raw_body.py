"""The request body of a chunk at ``/v2/``: the bytes of a part as they are, copied as seldom as possible.

A file goes to a plain connection by sendfile, without passing through this process. Over TLS it is read and encrypted
in the event loop, which costs less than handing each block to a thread: only bytes that are already in the page cache
are read there, so that no disk blocks it.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
from aiohttp import ClientConnectionResetError
from aiohttp.abc import AbstractStreamWriter
from anyio import to_thread
from anyio.lowlevel import checkpoint

from asyncpush.ecr.part_body import OutgoingBody, OutgoingPart
from asyncpush.errors import SourceError
from asyncpush.protocols import FileRange, HeldRange, Part, RandomAccess

#: Bytes that are read and written at once.
_BLOCK_SIZE = 256 * 1024

#: Bytes after which other tasks have their turn, however fast the peer accepts them.
_TURN = 1024 * 1024

#: The errors of sendfile that are not the connection's: the disk fails, or the file system has no such call.
_OF_THE_FILE = frozenset({errno.EIO, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP})

#: Reads only what is in the page cache (Linux, preadv2(2)); 0 where that is not known.
_CACHED_ONLY = getattr(os, "RWF_NOWAIT", 0)


class RawPartEncoder:
    """Collects the bytes of one part for ``/v2/`` (a ``PartEncoder``).

    With *content*, the bytes are read from it when the part is sent; without, they stay in memory.
    """

    def __init__(self, first: int, content: RandomAccess | None = None) -> None:
        self._first = first
        self._content = content
        self._size = 0
        self._blocks: list[bytes] = []

    def add(self, block: memoryview) -> None:
        """Append the next bytes of the part."""
        self._size += len(block)
        if self._content is None:
            self._blocks.append(bytes(block))

    def finish(self) -> Part:
        """Complete the part."""
        return Part.raw(self._first, self._size, self._content, tuple(self._blocks))


class RawPartBody(OutgoingBody):
    """The bytes of a part from byte *first* of the layer on; those before it have arrived.

    Args:
        outgoing: the part.
        first: the first byte.
    """

    def __init__(self, outgoing: OutgoingPart, first: int) -> None:
        super().__init__(outgoing, outgoing.part.last + 1 - first, "application/octet-stream")
        self._first = first

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The body's description; aiohttp only asks for it when it debugs."""
        return f"bytes {self._first} to {self._part.last}".encode().decode(encoding, errors)

    async def write_blocks(self, writer: AbstractStreamWriter) -> None:
        """Write the whole body to the connection."""
        content = self._part.content
        if content is None:
            await self._write_held(writer)
        elif isinstance(content, HeldRange):
            for start in range(self._first, self._part.last + 1, _BLOCK_SIZE):
                await self.write_block(writer, content.view(start, min(_BLOCK_SIZE, self._part.last + 1 - start)))
        elif isinstance(content, FileRange):
            async with _opened(content, self._first, len(self)) as (descriptor, position):
                send = self._encrypt_cached if _is_encrypted(writer) else self._send_file
                done = 0
                while done < len(self):
                    done += await send(writer, descriptor, position + done, len(self) - done)
                    done += await self._write_read(writer, content, done, _BLOCK_SIZE)
        else:
            await self._write_read(writer, content, 0, len(self))

    async def _write_held(self, writer: AbstractStreamWriter) -> None:
        skipped = self._first - self._part.first
        for block in self._part.body:
            if skipped < len(block):
                await self.write_block(writer, memoryview(block)[skipped:])
            skipped = max(0, skipped - len(block))

    async def _write_read(self, writer: AbstractStreamWriter, content: RandomAccess, done: int, size: int) -> int:
        """Write *size* bytes, or all that are left, after the first *done*: worker threads read them, and may fail."""
        start, end = done, min(done + size, len(self))
        while done < end:
            # A new buffer each time: the connection may still hold the last one.
            buffer = memoryview(bytearray(min(_TURN, end - done)))
            block = await to_thread.run_sync(content.read_at, self._first + done, buffer)
            if not block:
                raise SourceError(f"the blob ends before byte {self._first + done}", hint="do not change it meanwhile")
            await self.write_block(writer, block)
            done += len(block)
        return done - start

    async def _encrypt_cached(self, writer: Any, descriptor: int, position: int, size: int) -> int:
        """Send bytes of a file over TLS, as far as the page cache has them; return how many.

        TLS encrypts a block as it is written: one buffer serves all blocks, and stays in the processor's cache.
        """
        writer.send_headers()
        buffer, done, turn = memoryview(bytearray(_BLOCK_SIZE)), 0, _TURN
        while done < size:
            allowed = await self.allowed(min(_BLOCK_SIZE, size - done))
            if writer.transport is not None and writer.transport.get_write_buffer_size():
                # It may hold the last block as it is: nothing can be encrypted while the peer negotiates TLS again.
                buffer = memoryview(bytearray(_BLOCK_SIZE))
            count = _read_cached(descriptor, buffer[:allowed], position + done)
            self.give_back(allowed - count)
            if not count:
                break
            # As aiohttp's own writer does, whose work on each block takes as long as a third of the encryption.
            transport = writer.transport
            if transport is None or transport.is_closing():
                raise ClientConnectionResetError("the connection was closed")
            transport.write(buffer[:count])
            writer.output_size += count
            done += count
            await writer.drain()
            if done >= turn:
                turn = done + _TURN
                await checkpoint()
        return done

    async def _send_file(self, writer: Any, descriptor: int, position: int, size: int) -> int:
        """Send bytes of a file to a plain connection without reading them here; return how many.

        It sends fewer than *size* if the file can't be sent this way: it may have ended, or be damaged.
        """
        writer.send_headers()
        transport = writer.transport
        if transport is None or transport.get_write_buffer_size():
            return 0
        # asyncio owns the connection's socket; a duplicate can be waited for, and outlives an abort of the connection.
        with socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as connection:
            done, has_ended = 0, False
            while done < size and not has_ended:
                allowed = await self.allowed(size - done)
                # In a thread, since it may wait for the disk; it does not wait for the connection.
                filling = partial(_fill, connection.fileno(), descriptor, position + done, allowed)
                count, has_ended = await to_thread.run_sync(filling)
                self.give_back(allowed - count)
                done += count
                writer.output_size += count
                if count < allowed and not has_ended:
                    await anyio.wait_writable(connection)
        return done


def _is_encrypted(writer: Any) -> bool:
    transport = writer.transport
    return transport is not None and transport.get_extra_info("sslcontext") is not None


@asynccontextmanager
async def _opened(content: FileRange, first: int, size: int) -> AsyncIterator[tuple[int, int]]:
    """Keep the file open for the block, and have its bytes read ahead; yield its descriptor and their position."""
    file = content.file_at(first)

    def enter() -> tuple[int, int]:
        descriptor, position = file.__enter__()
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, position, size, os.POSIX_FADV_WILLNEED)
        return descriptor, position

    opened = await to_thread.run_sync(enter)
    try:
        yield opened
    finally:
        file.__exit__(None, None, None)


def _read_cached(descriptor: int, buffer: memoryview, position: int) -> int:
    """Read what is in the page cache at *position*; return how many bytes, 0 if that is not known."""
    if not _CACHED_ONLY:
        return 0
    try:
        return os.preadv(descriptor, [buffer], position, _CACHED_ONLY)
    except OSError:
        return 0


def _fill(connection: int, descriptor: int, position: int, size: int) -> tuple[int, bool]:
    """Send bytes of a file until the connection has no more room; return how many, and whether no more can be sent."""
    done = 0
    try:
        while done < size:
            count = os.sendfile(connection, descriptor, position + done, size - done)
            if not count:
                return done, True
            done += count
    except BlockingIOError:
        return done, False
    except OSError as error:
        if error.errno not in _OF_THE_FILE:
            raise
        return done, True
    return done, False
