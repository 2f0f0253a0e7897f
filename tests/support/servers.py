"""Servers of a test's own: each on a free port of 127.0.0.1, and closed without losing a connection."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from aiohttp import web

from asyncpush.emulator.connections import stop_accepting

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

ServeStream = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving_http(
    handler: Handler,
    *,
    tls: ssl.SSLContext | None = None,
    at: Path | None = None,
    max_body: int = 2**20,
    cancels: bool = False,
) -> AsyncIterator[int]:
    """Answer each request by *handler*.

    Args:
        handler: answers.
        tls: the certificate; None speaks plain HTTP.
        at: the path of a socket to listen at instead of a port.
        max_body: bytes of a request's body, at most.
        cancels: whether the handler is cancelled if the client leaves.

    Yields:
        The port; 0 at a path.
    """
    application = web.Application(client_max_size=max_body)
    application.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1, handler_cancellation=cancels)
    await runner.setup()
    with _listener(at) as listener:
        try:
            await web.SockSite(runner, listener, ssl_context=tls).start()
            yield 0 if at else listener.getsockname()[1]
        finally:
            await stop_accepting(listener)
            await runner.cleanup()


@asynccontextmanager
async def serving_streams(
    serve: ServeStream, *, tls: ssl.SSLContext | None = None, limit: int = 2**16, received: int | None = None
) -> AsyncIterator[int]:
    """Give each connection to *serve*.

    Args:
        serve: reads and writes, and closes the writer.
        tls: the certificate; None speaks plain TCP.
        limit: bytes that the reader holds.
        received: bytes that the kernel holds; None leaves it to the kernel.

    Yields:
        The port.
    """
    with _listener() as listener:
        if received is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, received)
        server = await asyncio.start_server(serve, sock=listener, ssl=tls, limit=limit)
        try:
            yield listener.getsockname()[1]
        finally:
            await stop_accepting(listener)
            server.close()


@contextmanager
def serving_thread(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    """Answer by *handler* in threads, for what blocks this one; the port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def _listener(at: Path | None = None) -> socket.socket:
    if at is None:
        return socket.create_server(("127.0.0.1", 0))
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(at))
    listener.listen()
    return listener
