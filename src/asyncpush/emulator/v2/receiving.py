"""A body of any length, received in blocks: while one is worked on in a thread, the next one arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

from aiohttp import ClientPayloadError, StreamReader
from aiohttp.http_exceptions import HttpProcessingError

from asyncpush.emulator.store.background import BackgroundTask, BackgroundTasks

#: Bytes worked on at once: enough to pay for a hop to a thread and an entry in the catalog.
_BLOCK = 2 * 1024 * 1024

#: Blocks that are kept for the next body: two each for as many uploads as threads can serve.
_KEPT = 16

#: Seconds without a byte after which a client counts as gone.
_BODY_TIMEOUT = 60.0

#: Does the work on bytes that follow those of the last call.
Keep = Callable[[memoryview], Awaitable[None]]


class BodyLostError(Exception):
    """Raised when the client left, or broke HTTP, before the end of its body; what came before it was kept."""


class Receiver:
    """Receives bodies into blocks that are used again: memory that is touched first costs more than the work on it.

    Args:
        finishing: where blocks are worked on.
    """

    def __init__(self, finishing: BackgroundTasks) -> None:
        self._finishing = finishing
        self._free: list[bytearray] = []

    async def receive(self, content: StreamReader, keep: Keep) -> None:
        """Receive a body to its end; each block is kept before this returns, or raises.

        Raises:
            BodyLostError: it ended too early.
            Exception: whatever *keep* raises; the rest of the body is left unread.
        """
        body = _Body(content)
        pending: BackgroundTask[None] | None = None
        while await body.more():
            block = self._free.pop() if self._free else bytearray(_BLOCK)
            size = await body.fill(block)
            if pending:
                await pending.result()
            pending = self._finishing.start(partial(self._work, block, size, keep))
        if pending:
            await pending.result()
        if body.lost:
            raise BodyLostError(str(body.lost)) from body.lost

    async def _work(self, block: bytearray, size: int, keep: Keep) -> None:
        with memoryview(block) as whole, whole[:size] as filled:
            await keep(filled)
        if len(self._free) < _KEPT:
            self._free.append(block)


class _Body:
    """What is still to come of a body.

    Attributes:
        ended: nothing is.
        lost: why, if that was not its end.
    """

    def __init__(self, content: StreamReader) -> None:
        self._content = content
        self._rest = memoryview(b"")
        self.ended = False
        self.lost: Exception | None = None

    async def more(self) -> bool:
        """Wait for bytes; False where the body has ended."""
        if not self._rest and not self.ended:
            self._rest = memoryview(await self._next())
            self.ended = not self._rest
        return not self.ended

    async def fill(self, block: bytearray) -> int:
        """Put bytes into a block; it is full when this returns, unless the body ended."""
        size = 0
        while size < len(block) and await self.more():
            count = min(len(block) - size, len(self._rest))
            block[size : size + count] = self._rest[:count]
            self._rest = self._rest[count:]
            size += count
        return size

    async def _next(self) -> bytes:
        try:
            async with asyncio.timeout(_BODY_TIMEOUT):
                return await self._content.readany()
        except TimeoutError:
            self.lost = TimeoutError(f"nothing of the body came for {_BODY_TIMEOUT:.0f} seconds")
        except (ConnectionError, ClientPayloadError, HttpProcessingError, RuntimeError) as error:
            self.lost = error
        return b""
