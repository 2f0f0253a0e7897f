"""A proxy that spoils the answers of one operation, the first few or all, in every way that networks do."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import aiohttp

from asyncpush.emulator.connections import stop_accepting
from support.virtual_time import AheadLoop

#: On, and no time to linger: closing then resets the connection.
_RESET = struct.pack("ii", 1, 0)

#: Seconds of the client's time between two bytes of an answer that drips: far fewer than any time-out has.
_STEP = 5.0
#: Real seconds in which those pass: a few turns of the event loop, so that the client sees each step.
_TURN = 0.001

_ISO = "%Y%m%dT%H%M%SZ"

Headers = Mapping[str, str]


@dataclass(frozen=True)
class Request:
    """A request as it came.

    Attributes:
        operation: ECR's name of it, or what it asks a source for: ``GET blob``.
        is_first: whether nothing else came through its connection before.
        connection: where the next request comes from.
    """

    method: str
    path: str
    headers: Headers
    body: bytes
    operation: str
    is_first: bool
    connection: asyncio.StreamReader

    @property
    def is_ecr(self) -> bool:
        return "x-amz-target" in self.headers


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Headers
    body: bytes

    def raw(self, *, length: int | None = None) -> bytes:
        """The bytes of the answer; with another length than its own, if asked for."""
        named = {**self.headers, "Content-Length": str(len(self.body) if length is None else length)}
        lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
        return f"HTTP/1.1 {self.status} Answer\r\n{lines}\r\n".encode() + self.body


class HangUpError(Exception):
    """Raised to close the connection, by a reset or in order."""

    def __init__(self, *, reset: bool) -> None:
        self.reset = reset


@dataclass
class Clock:
    """Puts the event loop's clock ahead while faults last, so that a busy machine can't make anything else too late.

    Attributes:
        under_way: how many requests have time to be answered: meanwhile, the clock goes as ever.
    """

    under_way: int = 0

    @contextmanager
    def going_as_ever(self) -> Iterator[None]:
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1

    def put_ahead(self, seconds: float = _STEP) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, AheadLoop), "the test runs on another loop"
        if not self.under_way:
            loop.ahead += seconds

    async def passes(self, request: Request, writer: asyncio.StreamWriter) -> AsyncIterator[None]:
        """Steps of time, until the client leaves."""
        while not (request.connection.at_eof() or writer.transport.is_closing()):
            yield
            await asyncio.sleep(_TURN)
            self.put_ahead()


@dataclass
class Proxy:
    """A running proxy.

    Attributes:
        target: where it passes requests on to.
        clock: what faults that take time put ahead.
        operation: which requests are spoilt.
        fault: how.
        times: how many of them; None is all.
        spared: the path of requests that are not spoilt.
        seen: how many requests of each operation came.
    """

    target: str
    session: aiohttp.ClientSession
    clock: Clock
    operation: str = ""
    fault: str = ""
    times: int | None = 0
    spared: str = ""
    port: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    spoilt: int = 0
    _tries: int = 0
    _server: asyncio.Server | None = None
    _closed: socket.socket | None = None
    _serving: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def listen(self, listener: socket.socket) -> None:
        self.port = listener.getsockname()[1]
        self._server = await asyncio.start_server(self._serve, sock=listener)

    def refuse(self) -> None:
        """Stop listening, but keep the port: connections are refused."""
        if self._server and not self._closed:
            self._server.close()
            self._closed = _bound(self.port)

    def retried(self) -> None:
        """To be told of every new try: after so many of them, the next one finds it listening again."""
        if self._closed is None:
            return
        self._tries += 1
        if self._tries == self.times:
            listener, self._closed = self._closed, None
            listener.listen()  # what comes waits until the task has begun
            self._serving.add(asyncio.create_task(self.listen(listener)))

    async def close(self) -> None:
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        if self._server:
            for listener in self._server.sockets:
                await stop_accepting(listener)
            self._server.close()
        if self._closed:
            self._closed.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._serving.add(task)
        is_first = True
        try:
            while (request := await _read(reader, is_first=is_first)) is not None:
                self.seen[request.operation] += 1
                await self._answer(request, writer)
                is_first = False
        except HangUpError as end:
            if end.reset:
                option = socket.SOL_SOCKET, socket.SO_LINGER, _RESET
                writer.transport.get_extra_info("socket").setsockopt(*option)
                writer.transport.abort()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has left, or the cell is over
        finally:
            writer.close()

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> None:
        is_meant = request.operation == self.operation and request.path != self.spared
        is_spoilt = is_meant and (self.times is None or self.spoilt < self.times)
        if is_spoilt and not (self.fault == "idle closed" and request.is_first):
            self.spoilt += 1
            await FAULTS[self.fault](self, request, writer)
        else:
            await _write(writer, (await self.forward(request)).raw())

    async def forward(self, request: Request) -> Answer:
        """Forward the request."""
        url = self.target + request.path
        headers = {name: value for name, value in request.headers.items() if name != "content-length"}
        body = request.body or None
        asked = self.session.request(request.method, url, headers=headers, data=body, allow_redirects=False)
        with self.clock.going_as_ever():
            async with asked as answer:
                body = b"" if request.method == "HEAD" else await answer.read()
        kept = ("Content-Type", "WWW-Authenticate", "Docker-Content-Digest", "Content-Range", "x-amzn-RequestId")
        return Answer(answer.status, {name: answer.headers[name] for name in kept if name in answer.headers}, body)


def _bound(port: int) -> socket.socket:
    # asyncio turns Nagle's algorithm off only where the protocol is named: a byte would wait for the kernel's clock.
    bound = socket.socket(proto=socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    return bound


async def _read(reader: asyncio.StreamReader, *, is_first: bool) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    line, *lines = head.decode("latin-1").rstrip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    method, path, _ = line.split(" ")
    return Request(method, path, headers, body, _operation(method, path, headers), is_first, reader)


def _operation(method: str, path: str, headers: Headers) -> str:
    if "x-amz-target" in headers:
        return headers["x-amz-target"].rpartition(".")[2]
    kinds = {"/manifests/": "manifest", "/blobs/": "blob", "/tags/list": "tags", "/referrers/": "referrers"}
    kind = next((kind for part, kind in kinds.items() if part in path), "token" if "/token" in path else "base")
    return f"{method} {kind}"


async def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


Fault = Callable[[Proxy, Request, asyncio.StreamWriter], Awaitable[None]]


async def refused(proxy: Proxy, request: Request, writer: asyncio.StreamWriter) -> None:
    proxy.refuse()
    proxy.spoilt = proxy.times or 0  # those that follow come when it listens again
    raise HangUpError(reset=True)


async def reset_before(proxy: Proxy, request: Request, writer: asyncio.StreamWriter) -> None:
    raise HangUpError(reset=True)


async def reset_after(proxy: Proxy, request: Request, writer: asyncio.StreamWriter) -> None:
    await proxy.forward(request)
    raise HangUpError(reset=True)


async def lost_reply(proxy: Proxy, request: Request, writer: asyncio.StreamWriter) -> None:
    await proxy.forward(request)
    raise HangUpError(reset=False)


async def idle_closed(proxy: Proxy, request: Request, writer: asyncio.StreamWriter) -> None:
    raise HangUpError(reset=False)


async def cut(proxy: Proxy, request: Request, writer: asyncio.StreamWriter) -> None:
    raw = (await proxy.forward(request)).raw()
    await _write(writer, raw[:-4] if raw.endswith(b"}") else raw[: len(raw) * 3 // 4])
    raise HangUpError(reset=False)


async def wrong_length(proxy: Proxy, request: Request, writer: asyncio.StreamWriter) -> None:
    answer = await proxy.forward(request)
    await _write(writer, answer.raw(length=len(answer.body) // 2))


async def stall(proxy: Proxy, request: Request, writer: asyncio.StreamWriter) -> None:
    async for _ in proxy.clock.passes(request, writer):
        pass
    raise HangUpError(reset=False)


async def drip(proxy: Proxy, request: Request, writer: asyncio.StreamWriter) -> None:
    await _write(writer, Answer(200, {"Content-Type": "application/json"}, b"").raw(length=10**6))
    async for _ in proxy.clock.passes(request, writer):
        await _write(writer, b" ")
    raise HangUpError(reset=False)


async def gzipped(proxy: Proxy, request: Request, writer: asyncio.StreamWriter) -> None:
    answer = await proxy.forward(request)
    headers = {**answer.headers, "Content-Encoding": "gzip"}
    await _write(writer, Answer(answer.status, headers, gzip.compress(answer.body)).raw())


async def redirect(proxy: Proxy, request: Request, writer: asyncio.StreamWriter) -> None:
    await _write(writer, Answer(307, {"Location": f"http://{proxy.host}{request.path}"}, b"").raw())


async def skewed(proxy: Proxy, request: Request, writer: asyncio.StreamWriter) -> None:
    """The client's clock is an hour ahead of the server's."""
    now = datetime.now(UTC) - timedelta(hours=1)
    date = {"Date": f"{now:%a, %d %b %Y %H:%M:%S GMT}"}
    if not request.is_ecr:
        answer = await proxy.forward(request)
        await _write(writer, Answer(answer.status, {**answer.headers, **date}, answer.body).raw())
        return
    signed, latest = now + timedelta(hours=1), now + timedelta(minutes=5)
    text = f"Signature not yet current: {signed:{_ISO}} is still later than {latest:{_ISO}} ({now:{_ISO}} + 5 min.)"
    await _write(writer, _refusal(request, 400, "InvalidSignatureException", text, date).raw())


def answers(status: int, body: bytes = b"", media_type: str = "text/plain", **headers: str) -> Fault:
    """Answer this instead of forwarding the request."""

    async def fault(proxy: Proxy, request: Request, writer: asyncio.StreamWriter) -> None:
        named = {"Content-Type": media_type, **{name.replace("_", "-"): value for name, value in headers.items()}}
        await _write(writer, Answer(status, named, b"" if request.method == "HEAD" else body).raw())

    return fault


def refuses(ecr: tuple[int, str, str], source: tuple[int, str, str]) -> Fault:
    """Refuse as ECR does, or as a registry does."""

    async def fault(proxy: Proxy, request: Request, writer: asyncio.StreamWriter) -> None:
        await _write(writer, _refusal(request, *(ecr if request.is_ecr else source)).raw())

    return fault


def _refusal(request: Request, status: int, code: str, text: str, more: Headers | None = None) -> Answer:
    if request.is_ecr:
        headers = {"Content-Type": "application/x-amz-json-1.1", "x-amzn-RequestId": "spoilt", **(more or {})}
        return Answer(status, headers, json.dumps({"__type": code, "message": text}).encode())
    headers = {"Content-Type": "application/json", **(more or {})}
    if status == 401:
        headers["WWW-Authenticate"] = f'Bearer realm="http://{request.headers["host"]}/token",error="invalid_token"'
    body = json.dumps({"errors": [{"code": code, "message": text}]}).encode()
    return Answer(status, headers, b"" if request.method == "HEAD" else body)


_LATE = "Signature expired: 20261129T010000Z is now earlier than 20261129T011000Z (20261129T011500Z - 5 min.)"
_HTML = b"<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"

FAULTS: dict[str, Fault] = {
    "refused": refused,
    "reset before": reset_before,
    "reset after": reset_after,
    "lost reply": lost_reply,
    "idle closed": idle_closed,
    "cut": cut,
    "wrong length": wrong_length,
    "malformed": answers(200, b'{"not": json', "application/json"),
    "wrong shape": answers(200, b'["no", "object"]', "application/json"),
    "empty": answers(200),
    "stall": stall,
    "drip": drip,
    "408": answers(408, b"Request Timeout"),
    "429": answers(429, b"Too Many Requests"),
    "500": answers(500, b"Internal Server Error"),
    "502 with HTML": answers(502, _HTML, "text/html"),
    "503": answers(503, b"Service Unavailable"),
    "throttled": refuses((400, "ThrottlingException", "Rate exceeded"), (429, "TOOMANYREQUESTS", "Rate exceeded")),
    "request timeout": refuses(
        (400, "RequestTimeoutException", "Request timed out"), (408, "UNKNOWN", "Request timed out")
    ),
    "expired token": refuses(
        (400, "ExpiredTokenException", "The security token included in the request is expired"),
        (401, "UNAUTHORIZED", "authentication required"),
    ),
    "expired signature": refuses(
        (400, "InvalidSignatureException", _LATE),
        (403, "DENIED", "Your authorization token has expired. Reauthenticate and try again."),
    ),
    "skewed clock": skewed,
    "redirect": redirect,
    "gzip": gzipped,
}


@asynccontextmanager
async def relaying(proxy: Proxy) -> AsyncIterator[Proxy]:
    """Run it on a free port."""
    listener = _bound(0)
    listener.listen()
    await proxy.listen(listener)
    try:
        yield proxy
    finally:
        await proxy.close()
