"""``/_emulator/faults``: what the faults is, what it has done, and another one, while the emulator runs."""

from __future__ import annotations

import msgspec
from aiohttp import web

from asyncpush.emulator.errors import AwsError
from asyncpush.emulator.faults.config import describe, read_json
from asyncpush.emulator.faults.middleware import FaultMiddleware
from asyncpush.emulator.faults.rules import FaultConfig
from asyncpush.emulator.request_body import read_body
from asyncpush.errors import UsageError


def add_admin(router: web.UrlDispatcher, middleware: FaultMiddleware) -> None:
    """Route GET, PUT and DELETE; each answers the document of the faults that then is."""

    async def tell(_: web.Request) -> web.Response:
        return _json(describe(middleware.fault_config, middleware.hit_counts))

    async def change(request: web.Request) -> web.Response:
        try:
            middleware.set(read_json(bytes(await read_body(request))).fault_config())
        except (AwsError, ConnectionError, UsageError) as error:
            return _json({"message": str(error)}, status=400)
        return await tell(request)

    async def clear(request: web.Request) -> web.Response:
        middleware.set(FaultConfig())
        return await tell(request)

    router.add_get("/_emulator/faults", tell)
    router.add_put("/_emulator/faults", change)
    router.add_delete("/_emulator/faults", clear)


def _json(document: object, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(document), status=status, content_type="application/json")
