"""The emulator: its listener, its lifetime, and the way of a request through authentication and faults to an API."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio
import msgspec
from aiohttp import web

from asyncpush import open_files
from asyncpush.emulator.api.dispatch import Addressing, ApiResponse, JsonApi, operation_name, refusal
from asyncpush.emulator.api.layers import DOWNLOAD_PATH, Downloads
from asyncpush.emulator.auth.authentication import Authentication, read_principal
from asyncpush.emulator.auth.credentials import DEFAULT_CREDENTIALS, KnownCredentials, by_access_key_id
from asyncpush.emulator.auth.tokens import LIFETIME, ExpiredTokenError, InvalidTokenError, Tokens
from asyncpush.emulator.connections import Bodies, Connections, check_announced, header_text, read_body, stop_accepting
from asyncpush.emulator.dashboard.handlers import Dashboard
from asyncpush.emulator.errors import AwsError
from asyncpush.emulator.faults.injector import HitCount
from asyncpush.emulator.faults.middleware import FaultMiddleware, add_admin
from asyncpush.emulator.faults.operations import Call
from asyncpush.emulator.faults.rules import FaultConfig
from asyncpush.emulator.limits import Limits, Quirks
from asyncpush.emulator.request_log import Received, RequestLog
from asyncpush.emulator.store.fsck import open_recovered
from asyncpush.emulator.store.state import BackgroundTasks, Store
from asyncpush.emulator.v2.answers import refusal as v2_refusal
from asyncpush.emulator.v2.answers import token_expired, unauthorized
from asyncpush.emulator.v2.dispatch import V2Api
from asyncpush.errors import UsageError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

MiB = 1024 * 1024

#: Connections that may wait to be accepted: a client opens all of its connections at once.
_BACKLOG = 1024

#: Seconds that answers under way have when the emulator closes; changes of data take the time that they need.
_CLOSING = 0.5

#: Seconds that a client has for the TLS handshake.
_HANDSHAKE = 10.0

#: Milliseconds that an answer may wait for a client that does not read it, where the system supports such a limit.
_UNREAD = 300_000

#: Bytes that a connection may be ahead of its reader: asyncio's largest read. aiohttp's own 64 KiB costs a fifth more.
_READ_BUFFER = 256 * 1024


class Emulator:
    """A local ECR on a data directory, serving while its ``async with`` block runs.

    It answers ECR's JSON API at ``/``, where browsers get a page that shows what it does; pushes and pulls at ``/v2/``;
    and lists its requests at ``/_emulator/requests`` and the bytes of their bodies at ``/_emulator/received``.
    Each repository is an OCI image layout (``store/disk.py`` says where); another emulator on the same directory
    continues with everything that this one acknowledged, however this one ended.

    Args:
        data: the data directory; created if it does not exist.
        host: the address to listen on.
        port: the port; 0 takes a free one.
        part_size: bytes a part, as InitiateLayerUpload answers them. Below ECR's minimum of 5 MiB for all parts but the
            last, the minimum is this size, too.
        fsync: whether what is acknowledged as a layer or image must outlive a power cut.
        tls: serve ``https`` with this context.
        quirks: how to answer where ECR's own answer is not known.
        credentials: the keys that requests may be signed with, and whose they are.
        verify_signatures: whether requests must be signed with them, and pulls need a token of GetAuthorizationToken;
            otherwise everybody may do everything, and unknown keys belong to the account 000000000000.
        token_lifetime: seconds that such a token lasts; ECR's 12 hours.
        discard: keep no bytes of layers, only what is known of them, and blobs of up to 1 MiB or in JSON; a data
            directory is made for one or the other. For measurements: pulls of a discarded layer are refused.
        fault_config: the faults that it starts with.
        admin: whether anybody who can reach it may change the faults, at ``/_emulator/faults``.

    Attributes:
        requests: the last 100,000 requests, oldest first.

    Raises:
        UsageError: there are no credentials, or contradictory ones; on entering, if the directory can't be used or is
            in use, or the address can't be listened on.
    """

    def __init__(
        self,
        data: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        part_size: int = 10 * MiB,
        fsync: bool = True,
        tls: ssl.SSLContext | None = None,
        quirks: Quirks | None = None,
        credentials: Iterable[KnownCredentials] = DEFAULT_CREDENTIALS,
        verify_signatures: bool = True,
        token_lifetime: float = LIFETIME,
        discard: bool = False,
        fault_config: FaultConfig | None = None,
        admin: bool = False,
    ) -> None:
        self.requests = RequestLog()
        self._received = Received()
        self._middleware = FaultMiddleware(fault_config or FaultConfig(), self.requests.record, self._expire)
        self._admin = admin
        self._data = data
        self._host = host
        self._port = port
        self._part_size = part_size
        self._fsync = fsync
        self._discard = discard
        self._tls = tls
        self._quirks = quirks or Quirks()
        self._keys = by_access_key_id(credentials)
        if verify_signatures and not self._keys:
            raise UsageError("there are no credentials to verify signatures with", hint="give some, or verify none")
        self._verify_signatures = verify_signatures
        self._token_lifetime = token_lifetime

    @property
    def host(self) -> str:
        """The address that it listens on."""
        return self._host

    @property
    def port(self) -> int:
        """The port that it listens on; for port 0, the free port that it took on entering."""
        return self._port

    @property
    def endpoint_url(self) -> str:
        """What to give to AWS clients, ``http://HOST:PORT``."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._tls else 'http'}://{host}:{self._port}"

    @property
    def fault_config(self) -> FaultConfig:
        """The current faults; they can be replaced at any time, which resets the counts."""
        return self._middleware.fault_config

    @fault_config.setter
    def fault_config(self, fault_config: FaultConfig) -> None:
        self._middleware.set(fault_config)

    @property
    def hit_counts(self) -> tuple[HitCount, ...]:
        """How often each throttle and rule of the faults has fired, in order."""
        return self._middleware.hit_counts

    async def serve_forever(self) -> None:
        """Wait until cancelled; requests are served all the while."""
        await anyio.sleep_forever()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            store = self._store = Store(
                self._data,
                fsync=self._fsync,
                upload_lifetime=self._quirks.upload_lifetime,
                discard=self._discard,
            )
            await store.in_thread(open_recovered, store)
            stack.push_async_callback(_shielded, partial(store.in_thread, store.close))
            listener = stack.enter_context(_listen(self._host, self._port))
            self._port = listener.getsockname()[1]
            self._downloads = Downloads(store)
            limits = Limits(self.endpoint_url, self._part_size, self._quirks)
            addressing = Addressing(store, self._quirks, {key.account for key in self._keys.values()})
            tokens = await store.in_thread(Tokens.of, self._data, self._token_lifetime)
            self._authentication = Authentication(
                self._keys if self._verify_signatures else None, tokens, store.in_thread
            )
            self._json = await store.in_thread(JsonApi, store, limits, self._downloads, addressing, tokens)
            self._background = BackgroundTasks(await stack.enter_async_context(anyio.create_task_group()))
            self._v2 = V2Api(store, limits, self._background)
            faults = self._middleware
            self._dashboard = await store.in_thread(
                Dashboard, store, lambda: faults.fault_config, lambda: faults.hit_counts
            )
            await self._serve(listener, stack)
            self._open = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # The error is not passed on: the task group has no part in it, and would wrap it in a group.
        await self._open.aclose()

    async def _serve(self, listener: socket.socket, stack: AsyncExitStack) -> None:
        bodies = Bodies()
        self._connections = Connections(bodies.hurry)
        middlewares = (
            self._dashboard.traffic.middleware,
            self._connections.middleware,
            self._received.middleware,
            self._admit,
            bodies.middleware,
            self._middleware.middleware,
        )
        application = web.Application(middlewares=middlewares)
        application.router.add_post("/", self._answer_json)
        self._dashboard.add_to(application)
        application.router.add_get("/_emulator/requests", self._answer_requests)
        application.router.add_get("/_emulator/received", self._received.answer)
        application.router.add_get(f"{DOWNLOAD_PATH}{{token}}", self._answer_layer)
        if self._admin:
            add_admin(application.router, self._middleware)
        application.router.add_route("*", "/v2/{path:.*}", self._answer_v2)
        runner = web.AppRunner(application, shutdown_timeout=_CLOSING, handle_signals=False)
        await runner.setup()
        stack.push_async_callback(_shielded, runner.cleanup)
        assert runner.server is not None, "it is set up"  # noqa: S101
        serving = await asyncio.get_running_loop().create_server(
            # Digests and signatures cover the bytes as they arrive, whatever Content-Encoding the client names.
            self._connections.factory(runner.server, access_log=None, read_bufsize=_READ_BUFFER, auto_decompress=False),
            sock=listener,
            ssl=self._tls,
            ssl_handshake_timeout=_HANDSHAKE if self._tls else None,
            backlog=_BACKLOG,
        )
        stack.callback(serving.close)
        stack.push_async_callback(_shielded, partial(stop_accepting, listener))

    @web.middleware
    async def _admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse by the headers alone what can't be valid, before its body is read."""
        if request.path == "/" and request.method == "POST":
            try:
                check_announced(request)
                self._authentication.check_claim(request)
            except AwsError as error:
                return self._answered(refusal(operation_name(header_text(request, "X-Amz-Target")), error))
        return await handler(request)

    async def _answer_json(self, request: web.Request) -> web.Response:
        target = header_text(request, "X-Amz-Target")
        try:
            body = await read_body(request)
            await self._authentication.check_signature(request, body)
        except ConnectionError:
            return web.Response(status=400)  # Nobody reads it: the client disconnected while it sent.
        except AwsError as error:
            return self._answered(refusal(operation_name(target), error))
        self._connections.prove(request)
        principal = read_principal(request.headers, self._keys)
        return self._answered(await self._background.finish(lambda: self._json.answer(target, body, principal)))

    def _answered(self, answer: ApiResponse) -> web.Response:
        self.requests.record(answer.operation, answer.status)
        return answer.to_http()

    async def _expire(self, call: Call) -> None:
        await self._store.expire_upload(call.upload_id)

    async def _answer_v2(self, request: web.Request) -> web.StreamResponse:
        response: web.StreamResponse
        try:
            self._authentication.check_token(request)
        except InvalidTokenError:
            response = v2_refusal(unauthorized(request))
        except ExpiredTokenError:
            response = v2_refusal(token_expired())
        else:
            self._connections.prove(request)
            response = await self._v2.answer(request)
        self.requests.record(f"{request.method} {request.path}", response.status)
        return response

    async def _answer_layer(self, request: web.Request) -> web.StreamResponse:
        file = self._downloads.open(request.match_info["token"])
        self.requests.record(f"{request.method} {DOWNLOAD_PATH}", 403 if file is None else 200)
        if file is None:
            return web.Response(status=403, text="This address has expired, or is not valid")
        self._connections.prove(request)
        return _blob(file)

    async def _answer_requests(self, _: web.Request) -> web.Response:
        document = {"requests": list(self.requests), "counts": self.requests.counts()}
        return web.Response(body=msgspec.json.encode(document), headers={"Content-Type": "application/json"})


_LAST_PORT = 65535


def _listen(host: str, port: int) -> socket.socket:
    try:
        if not 0 <= port <= _LAST_PORT:  # create_server would refuse it and leave its socket open
            raise OverflowError(f"port must be 0-{_LAST_PORT}")
        # Without the port: getaddrinfo takes 70000 for 4464.
        family, _, _, _, address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.create_server((address[0], port), family=family, backlog=_BACKLOG)
    except (OSError, OverflowError) as error:
        reason = (open_files.shortage(error) or getattr(error, "strerror", None) or str(error)).partition(" (")[0]
        raise UsageError(
            f"can't listen on {host} port {port}: {reason}",
            hint="name a free port (0 takes any) and an address of this machine",
        ) from error
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # connections inherit it from their listener
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD)
    return listener


def _blob(file: Path) -> web.FileResponse:
    return web.FileResponse(file, headers={"Content-Type": "application/octet-stream"})


async def _shielded(work: Callable[[], Awaitable[None]]) -> None:
    with anyio.CancelScope(shield=True):
        await work()
