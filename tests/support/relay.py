"""A relay between a client and the emulator that drops, refuses or delays single requests."""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO

import aiohttp
import anyio
from aiohttp import web
from anyio import to_thread

from asyncpush.emulator.faults.operations import name_v2
from asyncpush.settings import RetryPolicy
from support.aws import judge
from support.servers import serving_http

#: Requests are sent again at once.
NO_WAITS = RetryPolicy(first_wait=0.0001, longest_wait=0.0001, throttled_wait=0.0001, slowest_rate=1000.0)

Answer = Callable[[web.Request, "Relay"], Awaitable[web.StreamResponse]]


@dataclass
class Relay:
    """A running relay.

    Attributes:
        url: what to give to the client.
        target: where it passes requests on to.
        planned: for each operation, or request of ``/v2/`` (``v2:PATCH-upload``), what to do with its next requests
            instead of passing them on.
        seen: how many requests of each operation came.
    """

    url: str
    target: str
    session: aiohttp.ClientSession
    planned: dict[str, deque[Answer]] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)

    def plan(self, operation: str, *answers: Answer) -> None:
        """Do this with the next requests of *operation*; those after them pass."""
        self.planned.setdefault(operation, deque()).extend(answers)


async def passed(request: web.Request, relay: Relay) -> web.Response:
    """Pass the request on, and the answer back; the Host, too, since it is signed."""
    return await passed_with(await request.read(), request, relay)


async def passed_with(data: bytes, request: web.Request, relay: Relay, **headers: str) -> web.Response:
    """Pass the request on with another body, and other headers."""
    body = BytesIO(data)  # aiohttp warns of long bytes
    url, sent = f"{relay.target}{request.raw_path}", {**request.headers, "Content-Length": str(len(data)), **headers}
    async with relay.session.request(request.method, url, data=body, headers=sent) as answer:
        if request.path != "/":
            return web.Response(status=answer.status, body=await answer.read(), headers=answer.headers)
        return web.Response(
            status=answer.status,
            body=await answer.read(),
            headers={"Content-Type": "application/x-amz-json-1.1", "x-amzn-RequestId": "relayed"},
        )


async def lost_reply(request: web.Request, relay: Relay) -> web.StreamResponse:
    """Do the work, and cut the connection instead of answering."""
    await passed(request, relay)
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def lost_request(request: web.Request, relay: Relay) -> web.StreamResponse:
    """Cut the connection before anything was done."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def hang(request: web.Request, relay: Relay) -> web.StreamResponse:
    """Never answer."""
    await request.read()
    await anyio.sleep_forever()
    raise AssertionError


def caught(arrived: anyio.Event) -> Answer:
    """Tell that the request has come, and never answer it."""

    async def answer(request: web.Request, relay: Relay) -> web.StreamResponse:
        arrived.set()
        return await hang(request, relay)

    return answer


def refused(code: str, message: str = "refused by the relay", status: int = 400, **members: object) -> Answer:
    """Answer with an error of ECR's shape instead of doing the work."""

    async def answer(request: web.Request, relay: Relay) -> web.StreamResponse:
        await request.read()
        body = json.dumps({"__type": code, "message": message, **members})
        return web.Response(status=status, body=body, content_type="application/x-amz-json-1.1")

    return answer


def deleting(repository: str) -> Answer:
    """Delete *repository* before the request is passed on."""

    async def answer(request: web.Request, relay: Relay) -> web.StreamResponse:
        client = judge(relay.target)
        await to_thread.run_sync(lambda: client.delete_repository(repositoryName=repository, force=True))
        return await passed(request, relay)

    return answer


@asynccontextmanager
async def relay_to(target: str) -> AsyncIterator[Relay]:
    """Run a relay on a free port."""
    async with aiohttp.ClientSession() as session:
        relay = Relay("", target, session)

        async def handle(request: web.Request) -> web.StreamResponse:
            operation = request.headers.get("X-Amz-Target", "").rpartition(".")[2]
            operation = operation or name_v2(request.method, request.path.removeprefix("/v2/")).operation
            relay.seen[operation] += 1
            planned = relay.planned.get(operation)
            return await (planned.popleft() if planned else passed)(request, relay)

        async with serving_http(handle, max_body=64 * 2**20) as port:
            relay.url = f"http://127.0.0.1:{port}"
            yield relay
