"""HTTP below aiobotocore: verified certificates and host names, no redirects, and request bodies with a timeout.

aiobotocore before 3.9 (aioboto3 15.5 pins 2.25.1) uses botocore's SSL context unchanged. That context leaves the check
of the host name to urllib3, while aiohttp leaves it to the context, so that it is never done; through a proxy there is
no context, and nothing is verified. ``check_host_names`` fixes aiobotocore's class itself, since a subclass would not
protect other clients of the same program.

``EcrHttp`` sends the requests that botocore does not sign: those to ``/v2/``, and downloads.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import urlsplit

import aiobotocore
import aiobotocore.httpsession
import aiohttp
import anyio
import botocore.httpsession
from aiobotocore.httpsession import AIOHTTPSession
from anyio import to_thread
from botocore.awsrequest import AWSRequest
from botocore.httpsession import ProxyConfiguration
from botocore.utils import get_environ_proxies

from asyncpush import open_files
from asyncpush.ecr.errors import RedirectError
from asyncpush.ecr.request_body import BytesBody, TimedBody
from asyncpush.errors import ConnectionFailedError
from asyncpush.http.session import bypasses_proxies, load_authorities, load_chain, usable_for_tls
from asyncpush.settings import RetryPolicy

#: Seconds to connect, and between two bytes of an answer or a request body. ECR answers a part after storing it.
CONNECT_TIMEOUT = 20
READ_TIMEOUT = RetryPolicy().read
_CLOSE_TIMEOUT = 5

#: The statuses at which aiohttp asks at another place.
_REDIRECTS = frozenset({301, 302, 303, 307, 308})

#: For connections without TLS.
_TRUSTS_NOBODY = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

#: The release of aiobotocore that checks host names itself.
_FIXED_IN = (3, 9)


class _Proxies(ProxyConfiguration):  # type: ignore[misc] # botocore is untyped
    """botocore's choice of proxies, with full support of NO_PROXY: botocore does not support networks in it."""

    def proxy_url_for(self, url: str) -> str | None:
        address: str | None = None if bypasses_proxies(url) else super().proxy_url_for(url)
        return address


class EcrHttpSession(AIOHTTPSession):  # type: ignore[misc] # aiobotocore is untyped
    """aiobotocore's session with three changes.

    It loads certificate authorities only once a request is sent over TLS. A peer that stops accepting the body counts
    as a broken connection (``request_body``). Redirects are not followed: aiohttp would send layers and session tokens
    along. botocore follows none either, and ECR sends none.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._proxy_config = _Proxies(options.get("proxies"), options.get("proxies_config"))
        self.is_plain = False

    async def send(self, request: Any) -> Any:
        """Send a request; the read timeout also applies to its body."""
        if isinstance(request.body, bytes | bytearray) and request.body:
            request.body = BytesBody(bytes(request.body))
        if isinstance(request.body, TimedBody):
            request.body.timeout = self._timeout.sock_read
        # ``_get_session`` below reads it before anything is awaited.
        self.is_plain = request.url.lower().startswith("http:")
        return await super().send(request)

    async def _get_session(self, proxy_url: str | None) -> aiohttp.ClientSession:
        return await _get_session(self, proxy_url)


async def _refuse_redirect(request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    response = await send(request)
    location = response.headers.get("Location")
    # Without a Location, S3 says that a bucket is in another region, where botocore then asks.
    if location is None or response.status not in _REDIRECTS:
        return response
    response.close()
    # A query may contain a signature.
    target = location.partition("?")[0]
    raise RedirectError(f"it redirects to {target[:200]!r}, which is not followed")


def check_host_names() -> None:
    """Make ``AIOHTTPSession`` check host names if aiobotocore is older than 3.9; calling it again has no effect."""
    version = tuple(int(word) for word in aiobotocore.__version__.split(".")[:2])
    if version < _FIXED_IN:
        aiobotocore.httpsession.AIOHTTPSession._get_session = _get_session  # noqa: SLF001 - the defect is in a private method


async def _get_session(self: Any, proxy_url: str | None) -> aiohttp.ClientSession:
    is_plain = getattr(self, "is_plain", False) and not (proxy_url or "").lower().startswith("https:")
    key = (proxy_url, is_plain)
    lock = self.__dict__.setdefault("_asyncpush_lock", anyio.Lock())
    async with lock:
        if key not in self._sessions:
            if is_plain:
                context: ssl.SSLContext | bool = _TRUSTS_NOBODY
            else:
                context = await to_thread.run_sync(ssl_context, self, proxy_url) if self._verify else False
            connector = aiohttp.TCPConnector(limit=self._max_pool_connections, ssl=context, **self._connector_args)
            session = aiohttp.ClientSession(
                connector=connector,
                timeout=self._timeout,
                skip_auto_headers={"CONTENT-TYPE"},
                auto_decompress=False,
                middlewares=(_refuse_redirect,) if isinstance(self, EcrHttpSession) else (),
            )
            self._sessions[key] = await self._exit_stack.enter_async_context(session)
    opened: aiohttp.ClientSession = self._sessions[key]
    return opened


def ssl_context(session: Any, proxy_url: str | None) -> ssl.SSLContext:
    """The SSL context of one client's connections. It blocks: loading a bundle of authorities takes 25 ms."""
    context: ssl.SSLContext = botocore.httpsession.create_urllib3_context()
    context.check_hostname = True
    # As for source registries, and as Python 3.13 does itself: a bundle may hold an intermediate authority alone.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if bundle := botocore.httpsession.get_cert_path(session._verify):  # noqa: SLF001 - self of the method above
        with _usable(bundle):
            load_authorities(bundle, context)
    if session._cert_file:  # noqa: SLF001
        with _usable(session._cert_file):  # noqa: SLF001
            load_chain(context, session._cert_file, session._key_file)  # noqa: SLF001
    if proxy_url:
        # aiohttp uses one context for the proxy and for the host behind it, so it needs the authorities of both.
        settings = session._proxy_config.settings  # noqa: SLF001
        if bundle := settings.get("proxy_ca_bundle"):
            with _usable(bundle):
                load_authorities(bundle, context)
        if certificate := settings.get("proxy_client_cert"):
            file, key = (certificate, None) if isinstance(certificate, str) else certificate
            with _usable(file):
                load_chain(context, file, key)
    return context


@contextmanager
def _usable(file: str) -> Iterator[None]:
    try:
        with usable_for_tls(file, "see AWS_CA_BUNDLE and ca_bundle"):
            yield
    except OSError as error:
        shortage = open_files.reason(error)
        raise ConnectionFailedError(f"no connection can be made: {shortage}", hint=open_files.HINT) from error


class EcrHttp:
    """Sends requests that botocore does not sign; created by ``open_http``.

    It uses aiobotocore's session, so that it trusts the same certificates as the client (including AWS_CA_BUNDLE), and
    uses the proxies of the environment. Its errors are botocore's.
    """

    def __init__(self, verify: bool | str, connections: int, read_timeout: float) -> None:
        self._read_timeout = read_timeout
        self._verify = verify
        self._connections = connections
        self._sessions: dict[tuple[str, bool], AIOHTTPSession] = {}

    async def send(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        *,
        body: TimedBody | None = None,
        stream: bool = False,
        redirects: bool = False,
    ) -> Any:
        """Send a request.

        Args:
            method: the HTTP method.
            url: the address, percent-encoded.
            headers: its headers, except those that HTTP itself adds.
            body: its body; a redirect can't be followed with it.
            stream: leave the response's body to be read from ``raw.content``, until ``raw.close()``.
            redirects: follow up to ten redirects. Never with credentials in *headers*: they would be sent along.

        Returns:
            aiobotocore's response: ``status_code``, ``headers``, ``content`` to be awaited, and ``raw``.
        """
        request = AWSRequest(method, url, headers, data=body, stream_output=stream).prepare()
        session = await self._session(url, redirects=redirects)
        return await session.send(request)

    async def aclose(self) -> None:
        """Close all connections."""
        while self._sessions:
            await self._sessions.popitem()[1].close()

    async def _session(self, url: str, *, redirects: bool) -> AIOHTTPSession:
        # Each host has a session of its own, since NO_PROXY may exclude it.
        key = (urlsplit(url).netloc, redirects)
        session = self._sessions.get(key)
        if session is None:
            session_class = AIOHTTPSession if redirects else EcrHttpSession
            session = session_class(
                verify=self._verify,
                proxies={} if bypasses_proxies(url) else get_environ_proxies(url),
                timeout=(CONNECT_TIMEOUT, self._read_timeout),
                max_pool_connections=self._connections,
            )
            self._sessions[key] = session
            await session.__aenter__()  # aiobotocore 3 and later require it; it does not wait
        return session


@asynccontextmanager
async def open_http(client: Any, connections: int, read_timeout: float = READ_TIMEOUT) -> AsyncIterator[EcrHttp]:
    """Open an ``EcrHttp`` with the TLS settings of *client*, and up to *connections* to each host."""
    # Only a client's session, and not its configuration, knows which authorities it trusts.
    verify = client._endpoint.http_session._verify  # noqa: SLF001
    http = EcrHttp(verify, connections, read_timeout)
    try:
        yield http
    finally:
        # aiohttp expects one cancellation, and anyio repeats it at every await: closing is shielded from that.
        with anyio.move_on_after(_CLOSE_TIMEOUT, shield=True):
            await http.aclose()
