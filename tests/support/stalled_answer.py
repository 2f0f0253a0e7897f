"""An answer of an HTTP server that begins, and never ends."""

from __future__ import annotations

import anyio
from aiohttp import web


class StalledAnswer:
    """A handler that sends *beginning*, and then nothing until the client is gone.

    Attributes:
        begun: set once the beginning was sent.
        gone: set once the client has closed the connection.
    """

    def __init__(self, beginning: bytes, **headers: str) -> None:
        self.begun, self.gone = anyio.Event(), anyio.Event()
        self._beginning = beginning
        self._headers = {name.replace("_", "-"): value for name, value in headers.items()}

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers=self._headers)
        await response.prepare(request)
        await response.write(self._beginning)
        self.begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            self.gone.set()
        return response
