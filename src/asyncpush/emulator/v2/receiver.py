"""Receives the bodies of uploads in blocks, the long ones from the socket straight into them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from aiohttp import ClientPayloadError, web
from aiohttp.http_exceptions import HttpProcessingError

from asyncpush.emulator.connections import request_key
from asyncpush.emulator.store.state import BackgroundTask, BackgroundTasks
from asyncpush.http.socket_reader import LONG, SocketReader

#: Bytes of a block: enough to pay for a hop to a thread and a write to the catalog.
_BLOCK = 4 * 1024 * 1024

#: Bytes of a body's first block: each one is twice as long as the last, so that work on short bodies begins soon.
_FIRST = 1024 * 1024

#: Blocks that are kept for other bodies: two for each upload that the threads can serve.
_KEPT = 16

#: Seconds without a byte after which a block is processed as it is: the upload's status tells what has arrived.
_PAUSE = 0.1

#: Seconds without a byte after which a client counts as disconnected.
_BODY_TIMEOUT = 60.0

#: Processes the bytes that follow those of the last call.
Keep = Callable[[memoryview], Awaitable[None]]


class BodyLostError(Exception):
    """Raised when a body ends early: the client disconnected or broke HTTP. What arrived before was kept."""


@dataclass(slots=True)
class BodyFault:
    """What a fault does to the body of an upload's request.

    Attributes:
        length: bytes after which nothing more is received; what arrived before is kept.
        refused: whether the body is refused as one of other bytes than the next ones.
        was_cut: whether the body was as long.
    """

    length: int = sys.maxsize
    refused: bool = False
    was_cut: bool = False


_FAULT = request_key("body-fault")


def inject(request: web.Request, fault: BodyFault) -> None:
    """Let a fault act on a request's body."""
    request[_FAULT] = fault


def is_refused(request: web.Request) -> bool:
    """Whether a fault refuses a request's body."""
    return _fault(request).refused


def _fault(request: web.Request) -> BodyFault:
    fault: BodyFault = request.get(_FAULT) or BodyFault()
    return fault


class Receiver:
    """Receives a body in blocks: while one is processed in a thread, the next one arrives. Blocks are reused.

    Args:
        background: processes the blocks.
    """

    def __init__(self, background: BackgroundTasks) -> None:
        self._background = background
        self._free: list[bytearray] = []

    async def receive(self, request: web.Request, keep: Keep) -> None:
        """Receive a body to its end; each block is processed before this returns or raises.

        Raises:
            BodyLostError: it ended early.
            Exception: whatever *keep* raises; the rest of the body is left unread.
        """
        body, fault = _Body(request), _fault(request)
        rest = fault.length
        pending: BackgroundTask[None] | None = None
        length = _FIRST
        try:
            while not body.ended and rest:
                block = self._free.pop() if self._free else bytearray(_BLOCK)
                size = await body.fill(memoryview(block)[: min(length, rest)])
                rest -= size
                if pending:
                    await pending.result()
                pending = self._background.start(partial(self._work, block, size, keep))
                length = min(2 * length, _BLOCK)
            if pending:
                await pending.result()
        finally:
            body.close()
        if not rest:
            fault.was_cut = True
            raise BodyLostError(f"a fault cut the body after {fault.length} bytes")
        if body.failure:
            raise BodyLostError(str(body.failure)) from body.failure

    async def _work(self, block: bytearray, size: int, keep: Keep) -> None:
        if size:
            with memoryview(block) as whole, whole[:size] as filled:
                await keep(filled)
        if len(self._free) < _KEPT:
            self._free.append(block)


class _Body:
    """The part of a body that is still to come.

    Attributes:
        ended: whether nothing more is to come.
        failure: why the body ended early; None if it did not.
    """

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._content = request.content
        self._socket: SocketReader | None = None
        self.ended = False
        self.failure: Exception | None = None

    async def fill(self, block: memoryview) -> int:
        """Fill a block; it is full when this returns, unless the body pauses or ends."""
        room = block
        try:
            while room and not self.ended:
                room = room[await self._next(room, _PAUSE if len(room) < len(block) else _BODY_TIMEOUT) :]
        except TimeoutError:
            if len(room) == len(block):
                self._fail(TimeoutError(f"nothing of the body arrived for {_BODY_TIMEOUT:.0f} seconds"))
        except (ConnectionError, ClientPayloadError, HttpProcessingError, RuntimeError) as error:
            self._fail(error)
        return len(block) - len(room)

    def close(self) -> None:
        """Leave the rest of the body, and the connection, to aiohttp."""
        if self._socket:
            self._socket.close()

    async def _next(self, room: memoryview, patience: float) -> int:
        """Receive some bytes, none at the body's end."""
        data = self._content.read_nowait(len(room))  # aiohttp may have received some already
        if not data and (reader := self._reader()):
            return await reader.receive(room, patience, _PAUSE)
        if not data:
            async with asyncio.timeout(patience):
                data = await self._content.read(len(room))
        room[: len(data)] = data
        self.ended = not data
        return len(data)

    def _fail(self, error: Exception) -> None:
        self.ended, self.failure = True, error

    def _reader(self) -> SocketReader | None:
        """What receives the rest if it is long; None if its length is unknown, or its rate limited."""
        if self._socket is None:
            rest = (self._request.content_length or 0) - self._content.total_bytes
            transport = self._request.transport
            if rest < LONG or not isinstance(transport, asyncio.Transport):
                return None
            self._socket = SocketReader(self._request.protocol, transport, self._content, rest)
        return self._socket if self._socket.rest else None
