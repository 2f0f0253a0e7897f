"""Requests' bodies, received without a copy more than needed, a bounded number of long ones at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import cast

import anyio
from aiohttp import StreamReader, web

from asyncpush.emulator.errors import AwsError

MiB = 1024 * 1024

#: Bytes of the longest body: a 20 MiB part in base64 has 26.7 MiB.
MAX_BODY = 32 * MiB

#: Bodies of more bytes than this are counted.
_LONG = 1 * MiB

#: Long bodies that are in memory at a time. What other clients send stays in their sockets until there is room.
_AT_A_TIME = 24

#: Buffers that wait for another body: memory that is touched for the first time can cost more than what fills it.
_KEPT = 4

#: Seconds without a byte of a long body after which its client counts as gone, so that others have its room.
_PATIENCE = 60


def _key(name: str) -> str:
    """Where a request keeps something: aiohttp warns of keys that are not of its kind, and had none before 3.14."""
    return cast("str", web.RequestKey(name, object)) if hasattr(web, "RequestKey") else f"asyncpush.{name}"


_RECEIVED = _key("received")
_ROOM = _key("room")

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class _Received:
    """What came of a body: its bytes, or the error that all who ask are told; and whether it takes up room."""

    body: bytearray
    error: Exception | None = None
    counted: bool = False


class Bodies:
    """Room for the long bodies of one server's requests."""

    def __init__(self) -> None:
        self._room = anyio.Semaphore(_AT_A_TIME)
        self._idle: list[bytearray] = []

    @web.middleware
    async def middleware(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Take a request's buffer back once it is answered; the outermost one, since all others may read the body."""
        request[_ROOM] = self
        try:
            response = await handler(request)
        except BaseException:
            # Cut short, the request may be carried out all the same, and its buffer be in use for a while.
            self._take_back(request.get(_RECEIVED), reuse=False)
            raise
        self._take_back(request.get(_RECEIVED), reuse=True)
        return response

    async def receive(self, request: web.Request, *, bounded: bool) -> _Received:
        """Receive a body, whole; its request is asked for it once."""
        announced = request.content_length
        if announced is not None and announced > MAX_BODY:
            return _Received(bytearray(), _too_large())
        counted = bounded and (announced is None or announced > _LONG)
        if counted:
            await self._room.acquire()
        try:
            buffer = self._buffer(announced) if counted and announced else bytearray(announced or 0)
            await _fill(buffer, request.content)
        except (AwsError, ConnectionError) as error:
            self._leave(counted=counted)
            return _Received(bytearray(), error)
        except BaseException:
            self._leave(counted=counted)
            raise
        return _Received(buffer, counted=counted)

    def _buffer(self, size: int) -> bytearray:
        """A buffer of *size* bytes, whatever they are."""
        while self._idle:
            buffer = self._idle.pop()
            try:
                buffer.extend(bytes(max(0, size - len(buffer))))
                del buffer[size:]
            except BufferError:  # an error's traceback may hold a view of it
                continue
            return buffer
        return bytearray(size)

    def _take_back(self, received: _Received | None, *, reuse: bool) -> None:
        if received and received.counted:
            self._leave(counted=True)
            if reuse and len(self._idle) < _KEPT:
                self._idle.append(received.body)

    def _leave(self, *, counted: bool) -> None:
        if counted:
            self._room.release()


async def read_body(request: web.Request, *, bounded: bool = True) -> bytearray:
    """Receive a body; whoever asks again is given the same buffer, or the same error, until the request is answered.

    Args:
        request: a request that has come through ``Bodies.middleware``.
        bounded: wait until there is room for a long one. A connection that is slow on purpose must not wait: it would
            have others wait for as long as it takes.

    Raises:
        AwsError: RequestEntityTooLargeException; RequestTimeoutException if the client has stopped sending.
        ConnectionError: the client left.
    """
    received: _Received | None = request.get(_RECEIVED)
    if received is None:
        room: Bodies = request[_ROOM]
        request[_RECEIVED] = received = await room.receive(request, bounded=bounded)
    if received.error:
        raise received.error
    return received.body


async def _fill(body: bytearray, stream: StreamReader) -> None:
    """Receive into a buffer of the announced length, or of none where none was announced, and let it grow."""
    received, clock = 0, asyncio.get_running_loop().time
    try:
        async with asyncio.timeout(_PATIENCE) as patience:
            async for block in stream.iter_any():
                if received + len(block) > MAX_BODY:
                    raise _too_large()
                body[received : received + len(block)] = block
                received += len(block)
                patience.reschedule(clock() + _PATIENCE)
    except TimeoutError as error:
        # Its client may well be there, on a slow line: it should send this again.
        message = f"Nothing came of the request's body for {_PATIENCE} seconds"
        raise AwsError("RequestTimeoutException", message, status=408) from error


def _too_large() -> AwsError:
    return AwsError("RequestEntityTooLargeException", f"A request can have up to {MAX_BODY} bytes", status=413)
