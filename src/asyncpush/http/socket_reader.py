"""Reads the rest of a long body from the socket straight into the reader's buffers, at either end of a connection."""

from __future__ import annotations

import asyncio
from typing import cast

import aiohttp
from aiohttp.base_protocol import BaseProtocol
from aiohttp.client_proto import ResponseHandler

#: Bytes still to come that are worth a reader of their own.
LONG = 256 * 1024

#: What a server's parser gets instead of the bytes.
_ZEROS = bytes(128 * 1024)


class SocketReader(asyncio.BufferedProtocol):
    """The protocol of a connection while the rest of a body of known length arrives: the socket fills the buffers.

    On the way through aiohttp's parser and stream, each byte would be copied three times, and each read would resume
    a task. A client's stream learns when the body ends: the next request gets a parser of its own. A server's parser
    goes on with the next request, so that it gets as many zeros instead, and finds the end by itself.

    Args:
        protocol: aiohttp's protocol of the connection.
        transport: the connection.
        content: the body; what has arrived of it was read.
        rest: bytes that are still to come.

    Attributes:
        rest: likewise.
    """

    def __init__(
        self, protocol: BaseProtocol, transport: asyncio.Transport, content: aiohttp.StreamReader, rest: int
    ) -> None:
        self._aiohttp = cast("asyncio.Protocol", protocol)
        self._transport = transport
        self._content = content
        self.rest = rest
        self._room = memoryview(b"")
        self._done = asyncio.Event()
        self._timeout = asyncio.timeout(None)
        self._pause = 0.0
        self._failure: TimeoutError | None = None
        self._is_open = True
        self._is_client = isinstance(protocol, ResponseHandler)
        if isinstance(protocol, ResponseHandler):
            protocol.read_timeout = None  # each call has its own; between two calls, it is the reader who waits
        transport.pause_reading()
        transport.set_protocol(self)

    async def receive(self, room: memoryview, patience: float, pause: float | None = None) -> int:
        """Fill *room*, or as much of it as the body has left; fewer bytes if the peer pauses or is lost.

        Args:
            room: the buffer.
            patience: seconds to wait for the first byte.
            pause: seconds without a byte after which those that have come are returned; None to wait for *patience*,
                and to raise its error with the next call.

        Raises:
            TimeoutError: nothing arrived for *patience* seconds.
            Exception: whatever aiohttp raises for a connection that was lost.
        """
        if failure := self._failure or self._content.exception():
            raise failure
        self._room = room = room[: self.rest]
        self._pause = patience if pause is None else pause
        self._done.clear()
        self._transport.resume_reading()
        try:
            async with asyncio.timeout(patience) as self._timeout:
                await self._done.wait()
        except TimeoutError as error:
            if len(self._room) == len(room):
                raise
            if pause is None:
                self._failure = error
        finally:
            if self.rest:
                self._transport.pause_reading()
        return len(room) - len(self._room)

    def close(self) -> None:
        """Give the connection back to aiohttp; calling it again does no harm."""
        if self._is_open:
            self._restore()
            self._transport.resume_reading()

    def _restore(self) -> None:
        self._is_open = False
        self._transport.set_protocol(self._aiohttp)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the room is what it is
        """See ``asyncio.BufferedProtocol``."""
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        """See ``asyncio.BufferedProtocol``."""
        self._room = self._room[nbytes:]
        self.rest -= nbytes
        if not self.rest:
            self._restore()  # with the last byte, aiohttp may use the connection for another request
        if not self._is_client:
            self._feed_zeros(nbytes)
        elif not self.rest:
            self._content.feed_eof()
        if not self._room:
            if self.rest:
                self._transport.pause_reading()
            self._done.set()
        elif not self._timeout.expired():
            self._timeout.reschedule(asyncio.get_running_loop().time() + self._pause)

    def _feed_zeros(self, count: int) -> None:
        while count:
            zeros = _ZEROS[:count]
            self._aiohttp.data_received(zeros)
            if self._content.exception() is None:
                self._content.read_nowait()
            count -= len(zeros)

    def eof_received(self) -> bool | None:
        """See ``asyncio.BufferedProtocol``."""
        return self._aiohttp.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncio.BufferedProtocol``."""
        self._aiohttp.connection_lost(exc)
        self._done.set()

    def pause_writing(self) -> None:
        """See ``asyncio.BufferedProtocol``."""
        self._aiohttp.pause_writing()

    def resume_writing(self) -> None:
        """See ``asyncio.BufferedProtocol``."""
        self._aiohttp.resume_writing()
