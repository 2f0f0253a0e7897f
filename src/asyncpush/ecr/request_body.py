"""Request bodies on their way: a peer that takes none of one for too long has broken the connection.

aiohttp's read time-out begins once a request has left. Nothing bounds how long that takes, though a peer that stops
reading, or a network that has lost the way to it, keeps a body from leaving for ever.
"""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import aiohttp
import aiohttp.payload
from aiohttp.abc import AbstractStreamWriter

#: How often it is looked whether bytes leave, in shares of the time-out.
_LOOKS = 8


class TimedBody(aiohttp.payload.Payload):
    """A request body that must keep leaving.

    Attributes:
        timeout: seconds without a byte that the peer takes, after which the connection counts as broken; None waits
            for ever.
    """

    timeout: float | None = None

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write all of it, until the connection has room for more.

        Raises:
            aiohttp.ServerTimeoutError: the peer takes no more of it.
        """
        if self.timeout is None:
            await self.write_blocks(writer)
            return
        with _watched(writer, self.timeout):
            await self.write_blocks(writer)
            # aiohttp's own last wait for the peer is over by then: nothing is left for it to wait for.
            await writer.drain()

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:  # noqa: ARG002 - all of it
        """Write all of it: *content_length* is the body's own."""
        await self.write(writer)

    @abstractmethod
    async def write_blocks(self, writer: AbstractStreamWriter) -> None:
        """Hand all of it to the connection."""


class BytesBody(TimedBody):
    """A body of bytes."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._size = len(data)
        self._data = data

    def seek(self, _: int) -> None:
        """Begin again; each write does."""

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The body as text."""
        return self._data.decode(encoding, errors)

    async def write_blocks(self, writer: AbstractStreamWriter) -> None:
        """Hand all of it to the connection."""
        await writer.write(self._data)


@contextmanager
def _watched(writer: Any, timeout: float) -> Iterator[None]:
    """Break the connection once its peer has taken nothing for *timeout* seconds of what there was to take."""
    watch = _Watch(writer, timeout)
    try:
        yield
    except OSError as error:
        if watch.has_broken:
            raise watch.error from error
        raise
    finally:
        watch.stop()
    if watch.has_broken:
        raise watch.error


class _Watch:
    def __init__(self, writer: Any, timeout: float) -> None:
        self.has_broken = False
        self._writer = writer
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._seen: tuple[int, int] | None = None
        self._moved = self._loop.time()
        self._timer = self._loop.call_later(timeout / _LOOKS, self._look)

    @property
    def error(self) -> aiohttp.ServerTimeoutError:
        return aiohttp.ServerTimeoutError(f"it has taken none of the request for {self._timeout:g} seconds")

    def stop(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        transport = self._writer.transport  # of aiohttp's own writer; its interface lacks it
        if transport is None:
            return
        now = self._loop.time()
        left = unsent(transport)
        seen = (self._writer.output_size, left)
        if seen != self._seen or not left:
            self._seen, self._moved = seen, now
        elif now - self._moved >= self._timeout:
            self.has_broken = True
            # First, or whoever waits for the answer is told no more than that the connection has ended.
            self._writer.protocol.set_exception(self.error)
            transport.abort()
            return
        self._timer = self._loop.call_later(self._timeout / _LOOKS, self._look)


def unsent(transport: Any) -> int:
    """Bytes that were given to a connection and that its peer has not taken: in our buffers, and in the system's."""
    size = int(transport.get_write_buffer_size())
    # asyncio's TLS has a buffer of its own, before that of the connection.
    below = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
    if below is not None:
        size += below.get_write_buffer_size()
    socket = transport.get_extra_info("socket")
    with suppress(OSError, AttributeError, ValueError):
        size += struct.unpack("i", fcntl.ioctl(socket.fileno(), termios.TIOCOUTQ, b"\0" * 4))[0]
    return size
