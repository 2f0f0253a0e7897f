"""The one place where weather meets requests: an aiohttp middleware over the JSON API and ``/v2/``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import anyio
from aiohttp import web
from anyio import to_thread

from asyncpush.emulator.errors import AwsError
from asyncpush.emulator.faults.bandwidth import Bandwidth, is_paced
from asyncpush.emulator.faults.injector import Expire, FaultInjector, HitCount
from asyncpush.emulator.faults.operations import Call, identify, with_members
from asyncpush.emulator.faults.rules import FaultConfig
from asyncpush.emulator.request_body import read_body
from asyncpush.emulator.request_log import RequestLog, RequestRecord

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

#: Threads that look into bodies: of the emulator's own, since a client in its process may hold all others.
_THREADS = 4


class FaultMiddleware:
    """The weather that an emulator has now, on its way to each request.

    Args:
        weather: what it is at first.
        log: remembers requests that weather answers instead of the emulator.
        expire: makes an upload be gone.
    """

    def __init__(self, weather: FaultConfig, log: RequestLog, expire: Expire) -> None:
        self._log = log
        self._expire = expire
        self._bandwidth = Bandwidth()
        self._threads: anyio.CapacityLimiter | None = None
        self.set(weather)

    @property
    def weather(self) -> FaultConfig:
        """What it is."""
        return self._weather

    @property
    def fired(self) -> tuple[HitCount, ...]:
        """How often each of its throttles and rules has fired."""
        return self._sky.fired if self._sky else ()

    def set(self, weather: FaultConfig) -> None:
        """Change it; counts begin anew, and requests under way end in the one that they came in."""
        self._weather = weather
        self._sky = None if weather.is_fair else FaultInjector(weather, self._expire)
        self._bandwidth.rate = weather.bandwidth

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer a request in this weather."""
        sky = self._sky
        call = identify(request) if sky else None
        if sky is None or call is None:
            response = await handler(request)
        else:
            self._bandwidth.pace(request)
            response = await self._through(sky, request, call, handler)
        if isinstance(response, web.FileResponse) and is_paced(request):
            # Any coding keeps aiohttp from handing the socket to the kernel's sendfile, and this one changes nothing.
            response.enable_compression(web.ContentCoding.identity)
        return response

    async def _through(
        self, sky: FaultInjector, request: web.Request, call: Call, handler: Handler
    ) -> web.StreamResponse:
        if not call.is_v2:
            try:
                body = await read_body(request, bounded=not is_paced(request))
            except (AwsError, ConnectionError):
                return await handler(request)
            if sky.asks_for_members(call):
                self._threads = self._threads or anyio.CapacityLimiter(_THREADS)
                call = await to_thread.run_sync(partial(with_members, call, body), limiter=self._threads)
        worked = False

        async def work() -> web.StreamResponse:
            nonlocal worked
            worked = True
            return await handler(request)

        response = await sky.answer(request, call, work)
        if not worked:
            operation = f"{request.method} {request.path}" if call.is_v2 else call.operation
            is_cut = request.transport is None or request.transport.is_closing()
            self._log.append(RequestRecord(operation, 0 if is_cut else response.status))
        return response
