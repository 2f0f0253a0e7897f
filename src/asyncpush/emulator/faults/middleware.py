"""Where faults meet requests: an aiohttp middleware over the JSON API and ``/v2/``, and ``/_emulator/faults``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import anyio
import msgspec
from aiohttp import web
from anyio import to_thread

from asyncpush.emulator.api.layers import DOWNLOAD_PATH
from asyncpush.emulator.connections import read_body
from asyncpush.emulator.errors import AwsError
from asyncpush.emulator.faults.bandwidth import Bandwidth, is_paced
from asyncpush.emulator.faults.config import describe, read_json
from asyncpush.emulator.faults.injector import Expire, FaultInjector, HitCount
from asyncpush.emulator.faults.operations import Call, identify, with_members
from asyncpush.emulator.faults.rules import FaultConfig
from asyncpush.errors import UsageError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

#: Records a request's operation and the HTTP status of its answer.
Record = Callable[[str, int], None]

#: Threads that parse bodies: separate ones, since a client in this process may hold all others.
_THREADS = 4


class FaultMiddleware:
    """Applies the current faults of an emulator to each request.

    Args:
        fault_config: the faults at first.
        record: is called for each request that a fault answers instead of the emulator.
        expire: expires an upload.
    """

    def __init__(self, fault_config: FaultConfig, record: Record, expire: Expire) -> None:
        self._record = record
        self._expire = expire
        self._bandwidth = Bandwidth()
        self._threads: anyio.CapacityLimiter | None = None
        self.set(fault_config)

    @property
    def fault_config(self) -> FaultConfig:
        """The current faults."""
        return self._fault_config

    @property
    def hit_counts(self) -> tuple[HitCount, ...]:
        """How often each throttle and rule fired."""
        return self._injector.hit_counts if self._injector else ()

    def set(self, fault_config: FaultConfig) -> None:
        """Replace the faults; counts restart, and requests under way end with the faults that they began with."""
        self._fault_config = fault_config
        self._injector = None if fault_config.is_empty else FaultInjector(fault_config, self._expire)
        self._bandwidth.rate = fault_config.bandwidth

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Apply the current faults to a request."""
        injector = self._injector
        call = identify(request) if injector else None
        if call or request.path.startswith(DOWNLOAD_PATH):
            self._bandwidth.pace(request)
        if injector is None or call is None:
            response = await handler(request)
        else:
            response = await self._through(injector, request, call, handler)
        if isinstance(response, web.FileResponse) and is_paced(request):
            # Any coding keeps aiohttp from using sendfile, which would bypass the limit; identity changes nothing.
            response.enable_compression(web.ContentCoding.identity)
        return response

    async def _through(
        self, injector: FaultInjector, request: web.Request, call: Call, handler: Handler
    ) -> web.StreamResponse:
        if not call.is_v2:
            try:
                body = await read_body(request, bounded=not is_paced(request))
            except (AwsError, ConnectionError):
                return await handler(request)
            if injector.asks_for_members(call):
                self._threads = self._threads or anyio.CapacityLimiter(_THREADS)
                call = await to_thread.run_sync(partial(with_members, call, body), limiter=self._threads)
        worked = False

        async def work() -> web.StreamResponse:
            nonlocal worked
            worked = True
            return await handler(request)

        response = await injector.answer(request, call, work)
        if not worked:
            operation = f"{request.method} {request.path}" if call.is_v2 else call.operation
            is_cut = request.transport is None or request.transport.is_closing()
            self._record(operation, 0 if is_cut else response.status)
        return response


def add_admin(router: web.UrlDispatcher, middleware: FaultMiddleware) -> None:
    """Route GET, PUT and DELETE of ``/_emulator/faults``; each answers the document of the resulting faults."""

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
