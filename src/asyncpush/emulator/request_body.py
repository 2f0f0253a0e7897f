"""A request's body, received without a copy more than needed."""

from __future__ import annotations

from aiohttp import web

from asyncpush.emulator.errors import AwsError

#: Bytes of the longest body: a 20 MiB part in base64 has 26.7 MiB.
MAX_BODY = 32 * 1024 * 1024


async def read_body(request: web.BaseRequest) -> bytearray:
    """Receive a body into one buffer of its announced length, or a growing one where none was announced.

    Raises:
        AwsError: RequestEntityTooLargeException.
        ConnectionError: the client left.
    """
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
