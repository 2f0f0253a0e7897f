"""What came in requests' bodies, byte by byte; for those who count what a client sends, and sends again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

from asyncpush.emulator.faults.operations import identify

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Received:
    """Bytes of bodies, by the operation's name, as rules of faults have it, and the answer's HTTP status.

    The status is 0 where nobody was left to be answered, or nobody was: what came may have been kept all the same.
    What is under way is told as the bytes that were announced.
    """

    def __init__(self) -> None:
        self._received: dict[str, Counter[int]] = {}
        self._under_way: Counter[str] = Counter()

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Count a request's body; the outermost one, so that every answer counts."""
        call = identify(request)
        if call is None:
            return await handler(request)
        status, announced = 0, request.content_length or 0
        self._under_way[call.operation] += announced
        try:
            response = await handler(request)
            status = response.status
        finally:
            self._under_way[call.operation] -= announced
            if request.content.total_bytes:
                is_left = request.transport is None or request.transport.is_closing()
                counts = self._received.setdefault(call.operation, Counter())
                counts[0 if is_left else status] += request.content.total_bytes
        return response

    async def answer(self, _: web.Request) -> web.Response:
        """Tell it all: received, as operation -> status -> bytes, and underWay, as operation -> bytes."""
        document = {"received": self._received, "underWay": +self._under_way}
        return web.Response(body=msgspec.json.encode(document), headers={"Content-Type": "application/json"})
