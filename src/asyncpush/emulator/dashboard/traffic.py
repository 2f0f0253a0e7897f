"""Requests by operation and by client, in bounded memory, for the page."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass

from aiohttp import web

from asyncpush.emulator.connections import header_text
from asyncpush.emulator.faults.operations import counted_as, identify

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

#: Clients that are remembered: those that sent a request last.
_CLIENTS = 32

#: Characters of a client's name.
_LONGEST_NAME = 160

#: How the JSON API's answer to a throttled request begins; its status, 400, is that of other errors, too.
_THROTTLED = b'{"__type":"ThrottlingException"'


@dataclass(slots=True)
class _Count:
    """What one operation was asked for.

    Attributes:
        requests: all requests, those under way too.
        throttled: requests that were answered with "too many requests".
        failed: other requests with an error of the client's or the server's, or without an answer.
        bytes: bytes of bodies, of requests that are answered.
    """

    requests: int = 0
    throttled: int = 0
    failed: int = 0
    bytes: int = 0


@dataclass(slots=True)
class _Client:
    requests: int = 0
    last_seen: float = 0.0


class Traffic:
    """Counts requests since the emulator's start."""

    def __init__(self) -> None:
        self._operations: dict[str, _Count] = {}
        self._clients: dict[str, _Client] = {}

    @web.middleware
    async def middleware(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        """Count a request; outside of all that may answer it."""
        call = identify(request)
        if call is None:
            return await handler(request)
        self._meet(header_text(request, "User-Agent"))
        count = self._operations.setdefault(counted_as(call.operation), _Count())
        count.requests += 1
        response: web.StreamResponse | None = None
        try:
            response = await handler(request)
        finally:
            count.bytes += request.content.total_bytes
            if _is_throttled(response):
                count.throttled += 1
            elif response is None or response.status >= 400 or _is_cut(request):
                count.failed += 1
        return response

    def operations(self) -> list[dict[str, object]]:
        """A row for each operation, the most frequent first."""
        ordered = sorted(self._operations.items(), key=lambda item: (-item[1].requests, item[0]))
        return [{"operation": name, **asdict(count)} for name, count in ordered]

    def clients(self) -> list[dict[str, object]]:
        """A row for each client, by its User-Agent; the last one to send a request first."""
        return [
            {"name": name, "requests": client.requests, "lastSeen": round(client.last_seen)}
            for name, client in reversed(self._clients.items())
        ]

    def totals(self) -> dict[str, int]:
        """The sums over all operations."""
        counts = self._operations.values()
        return {
            "requests": sum(count.requests for count in counts),
            "throttled": sum(count.throttled for count in counts),
            "failed": sum(count.failed for count in counts),
            "received": sum(count.bytes for count in counts),
        }

    def _meet(self, user_agent: str) -> None:
        name = user_agent[:_LONGEST_NAME] or "(no User-Agent)"
        client = self._clients.pop(name, None) or _Client()
        client.requests += 1
        client.last_seen = time.time()
        self._clients[name] = client  # at the end: the order is that of the last requests
        if len(self._clients) > _CLIENTS:
            del self._clients[next(iter(self._clients))]


def _is_throttled(response: web.StreamResponse | None) -> bool:
    if response is None or response.status not in (400, 429):
        return False
    body = response.body if isinstance(response, web.Response) else None
    return response.status == 429 or (isinstance(body, bytes) and body.startswith(_THROTTLED))


def _is_cut(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()
