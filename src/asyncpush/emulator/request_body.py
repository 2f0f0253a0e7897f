"""A request's body, received without a copy more than needed."""

from __future__ import annotations

from typing import cast

from aiohttp import web

from asyncpush.emulator.errors import AwsError

#: Bytes of the longest body: a 20 MiB part in base64 has 26.7 MiB.
MAX_BODY = 32 * 1024 * 1024

#: Where a request keeps what was received. aiohttp warns of keys that are not of its kind, and had none before 3.14.
_RECEIVED = cast("str", web.RequestKey("received", object) if hasattr(web, "RequestKey") else "asyncpush.received")


async def read_body(request: web.BaseRequest) -> bytearray:
    """Receive a body; whoever asks again is given the same buffer, or the same error.

    Raises:
        AwsError: RequestEntityTooLargeException.
        ConnectionError: the client left.
    """
    received: bytearray | Exception | None = request.get(_RECEIVED)
    if received is None:
        try:
            received = await _receive(request)
        except (AwsError, ConnectionError) as error:
            received = error
        request[_RECEIVED] = received
    if isinstance(received, Exception):
        raise received
    return received


async def _receive(request: web.BaseRequest) -> bytearray:
    """Receive into one buffer of the announced length, or a growing one where none was announced."""
    announced = request.content_length or 0
    if announced > MAX_BODY:
        raise _too_large()
    body, received = bytearray(announced), 0
    async for block in request.content.iter_any():
        if received + len(block) > MAX_BODY:
            raise _too_large()
        body[received : received + len(block)] = block
        received += len(block)
    return body


def _too_large() -> AwsError:
    return AwsError("RequestEntityTooLargeException", f"A request can have up to {MAX_BODY} bytes", status=413)
