"""What the emulator was asked, how it answered, and how many bytes it received; for tests and for observers."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec
from aiohttp import web

from asyncpush.emulator.faults.operations import counted_as, identify

#: Requests that are remembered: a server that runs for weeks must not grow.
_REMEMBERED = 100_000


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request: the operation's name, or method and path below ``/v2/``; and the HTTP status of its answer.

    The status is 0 where a fault cut the connection before anything was done.
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
    """Bytes of bodies, by the operation (as fault rules name it) and the HTTP status of the answer.

    The status is 0 where the client disconnected, or got no answer: the bytes may have been stored all the same.
    Bodies under way count with the bytes that they announce.
    """

    def __init__(self) -> None:
        self._received: dict[str, Counter[int]] = {}
        self._under_way: Counter[str] = Counter()

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Count a request's body; the outermost middleware, so that every answer counts."""
        call = identify(request)
        if call is None:
            return await handler(request)
        name, status, announced = counted_as(call.operation), 0, request.content_length or 0
        self._under_way[name] += announced
        try:
            response = await handler(request)
            status = response.status
        finally:
            self._under_way[name] -= announced
            if request.content.total_bytes:
                is_left = request.transport is None or request.transport.is_closing()
                counts = self._received.setdefault(name, Counter())
                counts[0 if is_left else status] += request.content.total_bytes
        return response

    async def answer(self, _: web.Request) -> web.Response:
        """Answer ``received``, operation -> status -> bytes, and ``underWay``, operation -> bytes."""
        document = {"received": self._received, "underWay": +self._under_way}
        return web.Response(body=msgspec.json.encode(document), headers={"Content-Type": "application/json"})
