"""Plain HTTP beside a client, for ``/v2/`` and for downloads: with its TLS checks, its time-outs, and proxies."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import anyio
from aiobotocore.httpsession import AIOHTTPSession
from botocore.awsrequest import AWSRequest
from botocore.utils import get_environ_proxies

from asyncpush.ecr.session import CONNECT_TIMEOUT, READ_TIMEOUT, NoRedirects
from asyncpush.http.session import bypasses_proxies

_CLOSE_TIMEOUT = 5


class EcrHttp:
    """Sends requests that botocore does not sign; ``open_http`` makes it.

    It is botocore's own sender: a certificate must be one that the client would take (AWS_CA_BUNDLE counts), and the
    proxies of the environment are used, but for the hosts that it excepts. Its errors are botocore's.
    """

    def __init__(self, verify: bool | str, connections: int, read_timeout: float) -> None:
        self._read_timeout = read_timeout
        self._verify = verify
        self._connections = connections
        self._sessions: dict[tuple[str, bool], AIOHTTPSession] = {}

    async def send(
        self, method: str, url: str, headers: dict[str, str], *, stream: bool = False, redirects: bool = False
    ) -> Any:
        """Send a request without a body.

        Args:
            method: the HTTP method.
            url: where to; percent-encoded.
            headers: all that is sent beside what HTTP itself needs.
            stream: leave the answer's body to be read from ``raw.content``; ``raw.close()`` ends that.
            redirects: follow them, ten at the most. Never with credentials among *headers*: they would go along.

        Returns:
            The answer, as aiobotocore has it: ``status_code``, ``headers``, ``content`` to be awaited, and ``raw``.
        """
        request = AWSRequest(method, url, headers, stream_output=stream).prepare()
        session = await self._session(url, redirects=redirects)
        return await session.send(request)

    async def aclose(self) -> None:
        """Close all connections."""
        while self._sessions:
            await self._sessions.popitem()[1].close()

    async def _session(self, url: str, *, redirects: bool) -> AIOHTTPSession:
        # Each host has a session of its own, since NO_PROXY may except it.
        key = (urlsplit(url).netloc, redirects)
        session = self._sessions.get(key)
        if session is None:
            kind = AIOHTTPSession if redirects else NoRedirects
            session = kind(
                verify=self._verify,
                proxies={} if bypasses_proxies(url) else get_environ_proxies(url),
                timeout=(CONNECT_TIMEOUT, self._read_timeout),
                max_pool_connections=self._connections,
            )
            self._sessions[key] = session
            await session.__aenter__()  # since aiobotocore 3 it sends nothing before that; it does not wait
        return session


@asynccontextmanager
async def open_http(client: Any, connections: int, read_timeout: float = READ_TIMEOUT) -> AsyncIterator[EcrHttp]:
    """Open HTTP beside *client*, with *connections* to each host at the most; *read_timeout* is between two bytes."""
    # A client's configuration does not tell which authorities it trusts; what sends its requests does.
    verify = client._endpoint.http_session._verify  # noqa: SLF001
    http = EcrHttp(verify, connections, read_timeout)
    try:
        yield http
    finally:
        # aiohttp knows one cancellation, anyio repeats it at every await: closing is kept out of its reach.
        with anyio.move_on_after(_CLOSE_TIMEOUT, shield=True):
            await http.aclose()
