"""What clients may take of the server: connections, and memory for requests' bodies.

Connections without a proven request are limited in number and time. Bodies take only as much memory as has arrived, and
their sum is bounded.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, cast

import anyio
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from asyncpush.emulator.errors import AwsError

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

MiB = 1024 * 1024

#: Connections without an authenticated request, at a time. Another one is accepted only if one of them is closed.
MAX_STRANGERS = 512

#: Seconds that such a connection may stay without a request.
STRANGER_TIMEOUT = 30.0

#: Bytes of the longest body: a 20 MiB part in base64 has 26.7 MiB.
MAX_BODY = 32 * MiB

#: Bytes of a body that is always received; longer ones wait here until there is memory for them.
_SHORT = 64 * 1024

#: Bytes that long bodies may take together: 12 of 20 MiB parts. What other clients send stays in their sockets
#: meanwhile.
_ROOM_BYTES = 324 * MiB

#: Buffers that are kept for another body: touching fresh memory can cost more than filling it.
_KEPT = 4

#: Bytes of a body, or its end, that must arrive in _BODY_TIMEOUT seconds; in HURRIED_TIMEOUT while other bodies wait.
_STEP = 8 * 1024

_BODY_TIMEOUT = 60.0

HURRIED_TIMEOUT = 3.0

#: Seconds that a body may take while others wait: its signature expires then, too.
_LONGEST = 300.0


class Connections:
    """The connections of one server; a stranger is one without an authenticated request so far.

    Args:
        hurry: is called when there are too many strangers, and all of them have a request under way.
    """

    def __init__(self, hurry: Callable[[], None]) -> None:
        self._hurry = hurry
        # In order of arrival: the timer that closes it; None while a request is under way.
        self._strangers: dict[web.RequestHandler, asyncio.TimerHandle | None] = {}

    def factory(self, server: web.Server, **options: object) -> Callable[[], asyncio.Protocol]:
        """Make the protocols of a listener."""
        loop = asyncio.get_running_loop()
        return lambda: _Connection(self, server, loop, options)

    @web.middleware
    async def middleware(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Note that a request is under way."""
        self._wait(request.protocol, for_request=False)
        try:
            return await handler(request)
        finally:
            self._wait(request.protocol, for_request=True)

    def prove(self, request: web.BaseRequest) -> None:
        """Take a connection out of the strangers: it has carried an authenticated request."""
        self.lost(request.protocol)

    def made(self, connection: web.RequestHandler) -> None:
        """Count a new connection, and close an idle stranger if there are too many."""
        if len(self._strangers) >= MAX_STRANGERS:
            silent = next((each for each, timer in self._strangers.items() if timer), None)
            if silent is None:
                self._hurry()
            else:
                self._close(silent)
        self._strangers[connection] = None
        self._wait(connection, for_request=True)

    def lost(self, connection: web.RequestHandler) -> None:
        """Stop counting a connection."""
        if timer := self._strangers.pop(connection, None):
            timer.cancel()

    def _wait(self, connection: web.RequestHandler, *, for_request: bool) -> None:
        if connection not in self._strangers:
            return
        if timer := self._strangers[connection]:
            timer.cancel()
        loop = asyncio.get_running_loop()
        self._strangers[connection] = (
            loop.call_later(STRANGER_TIMEOUT, self._close, connection) if for_request else None
        )

    def _close(self, connection: web.RequestHandler) -> None:
        self.lost(connection)
        connection.force_close()


class _Connection(web.RequestHandler):
    """aiohttp's handler, which also reports when its connection begins and ends."""

    def __init__(
        self, connections: Connections, server: web.Server, loop: asyncio.AbstractEventLoop, options: dict[str, object]
    ) -> None:
        super().__init__(server, loop=loop, **cast("dict[str, Any]", options))
        self._connections = connections

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._connections.made(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._connections.lost(self)
        super().connection_lost(exc)

    def log_exception(self, *args: Any, **kw: Any) -> None:  # noqa: ANN401 - as logging takes them
        """Log a defect; neither a client's malformed request nor a client that stops reading is one."""
        error = kw.get("exc_info") or sys.exception()
        is_unread = isinstance(error, TimeoutError) and error.errno == errno.ETIMEDOUT
        if is_unread or isinstance(error, HttpProcessingError | web.RequestPayloadError):
            self.logger.debug(*args)
        else:
            super().log_exception(*args, **kw)


def request_key(name: str) -> str:
    """A key for what a request carries: aiohttp warns of keys of other types, and had no type before 3.14."""
    return cast("str", web.RequestKey(name, object)) if hasattr(web, "RequestKey") else f"asyncpush.{name}"


def header_text(request: web.BaseRequest, name: str) -> str:
    """A header's value, empty if there is none. An answer can repeat it: bytes that are not UTF-8 are replaced."""
    return request.headers.get(name, "").encode(errors="replace").decode()


_RECEIVED = request_key("received")

_ROOM = request_key("room")


class Bodies:
    """Receives the bodies of one server's requests, the long ones into a bounded sum of memory."""

    def __init__(self) -> None:
        self._free = _ROOM_BYTES
        self._waiting: deque[tuple[int, anyio.Event]] = deque()
        self._idle: list[bytearray] = []
        self._coming: set[_Body] = set()

    @web.middleware
    async def middleware(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Take a request's buffer back once it is answered; it must enclose all handlers that read the body."""
        request[_ROOM] = self
        try:
            response = await handler(request)
        except BaseException:
            # A request that is cancelled may still be carried out, and use its buffer for a while.
            self._take_back(request.get(_RECEIVED), reuse=False)
            raise
        self._take_back(request.get(_RECEIVED), reuse=True)
        return response

    def hurry(self) -> None:
        """Shorten the time limits of all bodies under way."""
        for body in self._coming:
            body.wait(HURRIED_TIMEOUT, hurry=True)

    async def receive(self, request: web.Request, *, bounded: bool) -> _Body:
        """Receive a whole body; called once for each request."""
        body = _Body(asyncio.get_running_loop().time())
        self._coming.add(body)
        try:
            await self._fill(body, request, bounded=bounded)
        except (AwsError, ConnectionError) as error:
            self._leave(body)
            body.buffer, body.error = bytearray(), error
        except BaseException:
            self._leave(body)
            raise
        finally:
            body.retry = None
            self._coming.discard(body)
        return body

    async def _fill(self, body: _Body, request: web.Request, *, bounded: bool) -> None:
        """Receive into a buffer that grows with what arrives: what is announced may never come."""
        check_announced(request)
        received, step, clock = 0, 0, asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(None) as body.retry:
                self._restart_timer(body, clock())
                async for block in request.content.iter_any():
                    if received + len(block) > MAX_BODY:
                        raise _too_large()
                    if bounded and not body.room and received + len(block) > _SHORT:
                        await self._enter(body, request)
                        step = _STEP
                    body.buffer[received : received + len(block)] = block
                    received, step = received + len(block), step + len(block)
                    if step >= _STEP:
                        self._restart_timer(body, clock())
                        step = 0
        except TimeoutError as error:
            raise AwsError(
                "RequestTimeoutException", "Too little of the body arrived for too long", status=408
            ) from error
        except RuntimeError as error:  # aiohttp's, of a stream whose connection is gone
            raise ConnectionResetError(str(error)) from error
        del body.buffer[received:]

    def _restart_timer(self, body: _Body, now: float) -> None:
        body.last_step = now
        body.wait(HURRIED_TIMEOUT if self._waiting else _BODY_TIMEOUT, hurry=bool(self._waiting))

    async def _enter(self, body: _Body, request: web.Request) -> None:
        """Wait for memory, in order of arrival; nothing is received meanwhile."""
        size = MAX_BODY if request.content_length is None else request.content_length
        if self._waiting or self._free < size:
            assert body.retry is not None, "it is being received"  # noqa: S101
            body.retry.reschedule(None)
            self._coming.discard(body)
            request.protocol.pause_reading()
            await self._line_up(size)
            request.protocol.resume_reading()
            self._coming.add(body)
        else:
            self._free -= size
        body.room = size
        body.buffer = self._buffer(body.buffer)

    def _buffer(self, came: bytearray) -> bytearray:
        """A buffer that begins with what has arrived."""
        while self._idle:
            buffer = self._idle.pop()
            try:
                buffer.append(0)
            except BufferError:  # an error's traceback may hold a view of it
                continue
            buffer[: len(came)] = came
            return buffer
        return came

    async def _line_up(self, size: int) -> None:
        granted = anyio.Event()
        self._waiting.append((size, granted))
        self.hurry()
        try:
            await granted.wait()
        except BaseException:
            if granted.is_set():
                self._free += size
            else:
                self._waiting.remove((size, granted))
            self._grant()
            raise

    def _grant(self) -> None:
        while self._waiting and self._free >= self._waiting[0][0]:
            size, granted = self._waiting.popleft()
            self._free -= size
            granted.set()

    def _take_back(self, body: _Body | None, *, reuse: bool) -> None:
        if body and body.room:
            if reuse and len(self._idle) < _KEPT:
                self._idle.append(body.buffer)
            body.buffer = bytearray()  # the request may live on, while others get the memory
            self._leave(body)

    def _leave(self, body: _Body) -> None:
        self._free += body.room
        body.room = 0
        self._grant()


@dataclass(slots=True, eq=False)
class _Body:
    """A body on its way.

    Attributes:
        began: when, by the event loop's clock.
        buffer: what has arrived.
        error: why it is incomplete; it is raised for everyone who reads the body.
        room: bytes that count for it in the sum.
        retry: ends the wait for its client.
        last_step: when the last step of it arrived.
    """

    began: float
    buffer: bytearray = field(default_factory=bytearray)
    error: Exception | None = None
    room: int = 0
    retry: asyncio.Timeout | None = None
    last_step: float = 0.0

    def wait(self, seconds: float, *, hurry: bool) -> None:
        """Set the time limit of the next step, counted from the last one."""
        if self.retry and not self.retry.expired():
            end = self.last_step + seconds
            self.retry.reschedule(min(end, self.began + _LONGEST) if hurry else end)


def check_announced(request: web.BaseRequest) -> None:
    """Check that a body's announced length is not above the limit.

    Raises:
        AwsError: RequestEntityTooLargeException.
    """
    if (request.content_length or 0) > MAX_BODY:
        raise _too_large()


async def read_body(request: web.Request, *, bounded: bool = True) -> bytearray:
    """Receive a body; another call gives the same buffer, or raises the same error, until the request is answered.

    Args:
        request: a request that has come through ``Bodies.middleware``.
        bounded: wait until there is memory for a long one. A connection that is slow on purpose must not wait: it would
            keep others waiting for as long as it takes.

    Raises:
        AwsError: RequestEntityTooLargeException; RequestTimeoutException if the client stopped sending.
        ConnectionError: the client disconnected.
    """
    received: _Body | None = request.get(_RECEIVED)
    if received is None:
        room: Bodies = request[_ROOM]
        request[_RECEIVED] = received = await room.receive(request, bounded=bounded)
    if received.error:
        raise received.error
    return received.buffer


def _too_large() -> AwsError:
    return AwsError("RequestEntityTooLargeException", f"A request can have up to {MAX_BODY} bytes", status=413)


async def stop_accepting(listener: socket.socket) -> None:
    """Accept no more connections on *listener*, before its server is closed.

    asyncio makes a connection a round of the loop after it has accepted it, and loses it, unclosed, if the server is
    closed in between (github.com/python/cpython/issues/109564).
    """
    asyncio.get_running_loop().remove_reader(listener)
    for _round in range(3):
        await asyncio.sleep(0)
