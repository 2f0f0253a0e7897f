"""Bandwidth limits: bytes pass between a socket and the server as soon as the rate allows, and no sooner."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from typing import Any, cast

from aiohttp import web

#: A socket buffers what arrives in this time while nobody reads it; then TCP's flow control stops the sender.
_WINDOW_SECONDS = 0.008
_SMALLEST_WINDOW = 64 * 1024
_LARGEST_WINDOW = 1024 * 1024

#: Shorter waits are added to the next one: timers are no finer.
_SHORT = 0.002

#: Seconds after which a change of the rate is noticed.
_LONGEST = 0.1

#: Seconds that a connection may catch up when it fell behind its rate because this process was busy.
_CATCH_UP = 0.02


class Bandwidth:
    """The rate of every connection.

    Attributes:
        rate: bytes a second in each direction; None is no limit. A change takes effect at once.
    """

    def __init__(self) -> None:
        self.rate: float | None = None

    def pace(self, request: web.Request) -> None:
        """Limit a request's connection, if it is not limited yet; bytes that have arrived already count."""
        transport = request.transport
        if self.rate is None or transport is None or isinstance(transport, _PacedTransport):
            return
        window = min(max(_SMALLEST_WINDOW, int(self.rate * _WINDOW_SECONDS)), _LARGEST_WINDOW)
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        handler = cast("asyncio.Protocol", request.protocol)
        connection = _PacedConnection(handler, transport, self)
        transport.set_protocol(connection)
        request.protocol.transport = cast("asyncio.Transport", _PacedTransport(connection))
        connection.begin(request.content.total_bytes)


def is_paced(request: web.Request) -> bool:
    """Whether a request's connection was limited, even if the limit has been lifted since."""
    return isinstance(request.transport, _PacedTransport)


class _Direction:
    """The bytes of one direction that are ahead of the rate, and when the next may pass."""

    def __init__(self, bandwidth: Bandwidth, loop: asyncio.AbstractEventLoop) -> None:
        self._bandwidth = bandwidth
        self._loop = loop
        self._ahead = 0.0
        self._counted = loop.time()

    def charge(self, count: int) -> float:
        """Count bytes; returns the seconds after which to ask again, 0 if the rate allows them now."""
        now, rate = self._loop.time(), self._bandwidth.rate
        elapsed, self._counted = now - self._counted, now
        if rate is None:
            self._ahead = 0.0
            return 0.0
        rest = self._ahead - elapsed * rate
        self._ahead = count + (rest if rest > -rate * _CATCH_UP else 0.0)
        wait = self._ahead / rate
        return min(wait, _LONGEST) if wait > _SHORT else 0.0


class _PacedConnection(asyncio.Protocol):
    """The protocol of the socket's transport: it forwards bytes to the server's protocol once they are due."""

    def __init__(self, server: asyncio.Protocol, transport: asyncio.Transport, bandwidth: Bandwidth) -> None:
        self.transport = transport
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._incoming = _Direction(bandwidth, self._loop)
        self._outgoing = _Direction(bandwidth, self._loop)
        self._held: list[bytes] = []
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        self._server_reads = transport.is_reading()
        self._socket_is_full = False

    def begin(self, count: int) -> None:
        """Count bytes that the server has already."""
        self._wait_to_read(self._incoming.charge(count))

    def data_received(self, data: bytes) -> None:
        self._held.append(data)
        wait = self._incoming.charge(len(data))
        if self._reading is None:
            if wait:
                self._wait_to_read(wait)
            else:
                self._deliver()

    def eof_received(self) -> bool | None:
        self._deliver()
        return self._server.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._reading, self._writing):
            if timer:
                timer.cancel()
        self._server.connection_lost(exc)

    def pause_writing(self) -> None:
        self._socket_is_full = True
        if self._writing is None:
            self._server.pause_writing()

    def resume_writing(self) -> None:
        self._socket_is_full = False
        if self._writing is None:
            self._server.resume_writing()

    def pause_reading(self) -> None:
        """Called by the server: it has enough for now."""
        self._server_reads = False
        self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Called by the server: it wants more, once that is due."""
        self._server_reads = True
        if self._reading is None:
            self.transport.resume_reading()

    def written(self, count: int) -> None:
        """Called after the server has written: it must wait until the bytes are through."""
        wait = self._outgoing.charge(count)
        if wait and self._writing is None:
            if not self._socket_is_full:
                self._server.pause_writing()
            self._writing = self._loop.call_later(wait, self._written)

    def _written(self) -> None:
        wait = self._outgoing.charge(0)
        self._writing = self._loop.call_later(wait, self._written) if wait else None
        if self._writing is None and not self._socket_is_full:
            self._server.resume_writing()

    def _wait_to_read(self, wait: float) -> None:
        if wait:
            self.transport.pause_reading()
            self._reading = self._loop.call_later(wait, self._read_on)

    def _read_on(self) -> None:
        wait = self._incoming.charge(0)
        self._reading = self._loop.call_later(wait, self._read_on) if wait else None
        if self._reading:
            return
        self._deliver()
        if self._server_reads:
            self.transport.resume_reading()

    def _deliver(self) -> None:
        data = b"".join(self._held)
        self._held.clear()
        if data:
            self._server.data_received(data)


class _PacedTransport:
    """The transport that the server sees: the socket's transport, at the limited rate."""

    def __init__(self, connection: _PacedConnection) -> None:
        self._transport = connection.transport
        self._connection = connection
        self.pause_reading = connection.pause_reading
        self.resume_reading = connection.resume_reading

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._transport.write(data)
        self._connection.written(len(data))

    def writelines(self, blocks: Iterable[bytes | bytearray | memoryview]) -> None:
        for block in blocks:
            self.write(block)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the rest is the socket's transport itself
        return getattr(self._transport, name)
