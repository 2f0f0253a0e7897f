"""The server's side of every connection: whose may stay, and which of a client's mistakes are worth a log entry."""

from __future__ import annotations

import asyncio
import errno
import sys
from collections.abc import Awaitable, Callable
from typing import Any, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

#: Connections, at a time, that nothing proven has come through. More are let in only where one of these is closed.
MAX_STRANGERS = 512

#: Seconds that such a connection may stay without a request.
STRANGER_TIMEOUT = 30.0

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Connections:
    """The connections of one server; a stranger is one through which no request with credentials has come yet.

    Args:
        hurry: called where strangers want room and all of them have a request under way.
    """

    def __init__(self, hurry: Callable[[], None]) -> None:
        self._hurry = hurry
        # In order of arrival: what closes it; None while a request is under way.
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
        """Take a connection out of the strangers: what came through it was asked with credentials."""
        self.lost(request.protocol)

    def made(self, connection: web.RequestHandler) -> None:
        """Count a new connection, and make room for it."""
        if len(self._strangers) >= MAX_STRANGERS:
            silent = next((each for each, timer in self._strangers.items() if timer), None)
            if silent is None:
                self._hurry()
            else:
                self._close(silent)
        self._strangers[connection] = None
        self._wait(connection, for_request=True)

    def lost(self, connection: web.RequestHandler) -> None:
        """Count a connection no more."""
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
    """aiohttp's, which also tells when it begins and ends."""

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
        """Log a defect; what a client wrote wrong is told to the client, and one that reads no more is none, either."""
        error = kw.get("exc_info") or sys.exception()
        is_unread = isinstance(error, TimeoutError) and error.errno == errno.ETIMEDOUT
        if is_unread or isinstance(error, HttpProcessingError | web.RequestPayloadError):
            self.logger.debug(*args)
        else:
            super().log_exception(*args, **kw)
