"""What the emulator was asked, how it answered, and how many bytes it received; for tests and for observers."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec
from aiohttp import web

from asyncpush.emulator.faults.operations import identify

#: Requests that are remembered; older ones are forgotten, so that a server that runs for weeks does not grow.
_REMEMBERED = 100_000


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request: the operation's name, or method and path below ``/v2/``; and the HTTP status of its answer.

    The status is 0 where faults cut the connection before anything was done.
    """

    operation: str
    status: int


class RequestLog(deque[RequestRecord]):
    """The last requests, oldest first."""

    def __init__(self) -> None:
        super().__init__(maxlen=_REMEMBERED)

    def record(self, operation: str, status: int) -> None:
        """Append a request."""
        self.append(RequestRecord(operation, status))

    def counts(self) -> Counter[str]:
        """How many there were of each operation."""
        return Counter(record.operation for record in self)


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
