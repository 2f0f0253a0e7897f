"""Request bodies with a write timeout: if the peer accepts no bytes for too long, the connection counts as broken.

aiohttp's read timeout begins once a request has left, and nothing bounds how long that takes: a peer that stops
reading, or a network that drops packets, would block a body for ever.
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

#: Checks of whether bytes leave, per timeout.
_CHECKS = 8


class TimedBody(aiohttp.payload.Payload):
    """A request body that must keep leaving.

    Attributes:
        timeout: seconds without a byte accepted by the peer after which the connection counts as broken; None waits
            for ever.
    """

    timeout: float | None = None

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write the whole body, and wait until the connection has room again.

        Raises:
            aiohttp.ServerTimeoutError: the peer accepts no more of it.
        """
        if self.timeout is None:
            await self.write_blocks(writer)
            return
        with _watched(writer, self.timeout):
            await self.write_blocks(writer)
            # This replaces aiohttp's own last wait for the peer, which has no timeout.
            await writer.drain()

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:  # noqa: ARG002 - the whole body
        """Write the whole body: *content_length* is its own."""
        await self.write(writer)

    @abstractmethod
    async def write_blocks(self, writer: AbstractStreamWriter) -> None:
        """Hand the whole body to the connection."""


class BytesBody(TimedBody):
    """A body of bytes."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._size = len(data)
        self._data = data

    def seek(self, _: int) -> None:
        """Do nothing: each write begins at the start."""

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The body as text."""
        return self._data.decode(encoding, errors)

    async def write_blocks(self, writer: AbstractStreamWriter) -> None:
        """Hand the whole body to the connection."""
        await writer.write(self._data)


@contextmanager
def _watched(writer: Any, timeout: float) -> Iterator[None]:
    """Break the connection if bytes are pending and the peer accepts none for *timeout* seconds."""
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
        self._timer = self._loop.call_later(timeout / _CHECKS, self._check)

    @property
    def error(self) -> aiohttp.ServerTimeoutError:
        return aiohttp.ServerTimeoutError(f"the peer has accepted none of the request for {self._timeout:g} seconds")

    def stop(self) -> None:
        self._timer.cancel()

    def _check(self) -> None:
        transport = self._writer.transport  # aiohttp's writer has it, its interface does not
        if transport is None:
            return
        now = self._loop.time()
        pending = unsent(transport)
        seen = (self._writer.output_size, pending)
        if seen != self._seen or not pending:
            self._seen, self._moved = seen, now
        elif now - self._moved >= self._timeout:
            self.has_broken = True
            # Before the abort; otherwise the waiting request learns only that the connection has ended.
            self._writer.protocol.set_exception(self.error)
            transport.abort()
            return
        self._timer = self._loop.call_later(self._timeout / _CHECKS, self._check)


def unsent(transport: Any) -> int:
    """Bytes written to a connection that its peer has not accepted: in our buffers and in the kernel's."""
    size = int(transport.get_write_buffer_size())
    # asyncio's TLS has a buffer of its own on top of the connection's.
    below = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
    if below is not None:
        size += below.get_write_buffer_size()
    socket = transport.get_extra_info("socket")
    with suppress(OSError, AttributeError, ValueError):
        size += struct.unpack("i", fcntl.ioctl(socket.fileno(), termios.TIOCOUTQ, b"\0" * 4))[0]
    return size
