"""Single HTTP requests to a registry: TLS as configured, proxies, and redirects that leak no credentials."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

import aiohttp
from anyio import CancelScope, Lock, current_time, move_on_after, to_thread
from yarl import URL

from asyncpush import open_files
from asyncpush.errors import SourceError, SourceUnavailableError
from asyncpush.events import Emit, ignore
from asyncpush.http.encoding import decompressed, encoding_of_document
from asyncpush.http.retry import HostBackoff
from asyncpush.http.session import ClientEnvironment, proxy_advice, proxy_for
from asyncpush.settings import MiB, RetryPolicy, SourceRegistry
from asyncpush.sources.registry.requests import TransientError

#: The hint for failures that may pass.
LATER = "run the same command again later to resume"

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 5
_PROXY_LOGIN = 407

#: Bytes to read ahead of the consumer: enough to fill a part without many wake-ups.
_READ_AHEAD = MiB // 4

#: The longest header: signed addresses of blob stores run to several KiB.
_MAX_HEADER = 32 * 1024


class RegistryHttp:
    """Sends single requests to one registry and to the hosts that it redirects to; opens with the first request.

    Args:
        registry: its configuration.
        base: its address.
        retry: the time limits.
        emit: receives that requests wait for a host.
    """

    def __init__(self, registry: SourceRegistry, base: URL, retry: RetryPolicy, emit: Emit = ignore) -> None:
        self._registry = registry
        self._emit = emit
        self._origin = base.origin()
        self._retry = retry
        self._session: aiohttp.ClientSession | None = None
        self._environment: ClientEnvironment | None = None
        self._lock = Lock()
        self._hosts: dict[URL, HostBackoff] = {}

    async def aclose(self) -> None:
        """Close all connections, even when cancelled."""
        if self._session is not None:
            with CancelScope(shield=True):
                await self._session.close()
            self._session = None

    async def send(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        *,
        authorization: str | None = None,
        form: Mapping[str, str] | None = None,
    ) -> aiohttp.ClientResponse:
        """Send one request and return its response, whose body is still to be read; the caller releases it.

        Up to five redirects are followed, but none from HTTPS to HTTP. *authorization* is sent to the host, port and
        scheme of *url* alone. With a form (OAuth2), a redirect is returned and not followed.

        Raises:
            TransientError: there is no response; a retry may succeed.
            SourceUnavailableError: the host is not trusted, or does not speak HTTP.
            SourceError: the redirects form a circle, or one must not be followed.
            ConfigurationError: a certificate or proxy of the configuration can't be used.
        """
        target, seen, trusted = url, {url}, True
        while True:
            sent_headers = dict(headers)
            if authorization is not None and trusted:
                sent_headers["Authorization"] = authorization
            try:
                response = await self._send_once(method, target, sent_headers, form)
            except TransientError as error:
                if target.origin() != url.origin():
                    error.unanswered = False  # the registry has answered, with the redirect
                raise
            if response.status not in _REDIRECTS or form is not None:
                return response
            location = response.headers.get("Location", "")
            response.release()
            target = _redirected(target, location)
            if target in seen or len(seen) > _MAX_REDIRECTS:
                raise SourceError(
                    f"{_without_query(url)} redirects in a circle"
                    if target in seen
                    else f"{_without_query(url)} redirects more than {_MAX_REDIRECTS} times",
                    hint="check the address; a proxy may be wrong",
                )
            seen.add(target)
            trusted = trusted and target.origin() == url.origin()

    async def _send_once(
        self, method: str, url: URL, headers: dict[str, str], form: Mapping[str, str] | None
    ) -> aiohttp.ClientResponse:
        """Send one request, through a proxy if there is one for *url*, and follow no redirect."""
        session, environment = await self._opened()
        proxy = proxy_for(url, environment.proxies, headers)
        problem = environment.problem if url.scheme == "https" else ""
        host = self._host(url)
        async with host.asking():
            began = current_time()
            try:
                with host.silence.waiting(), _bounded(url, self._retry), translated(url, self._retry, problem):
                    response = await session.request(
                        method,
                        url,
                        headers=headers,
                        data=form,
                        allow_redirects=False,
                        proxy=proxy.url if proxy else None,
                        proxy_headers=proxy.headers if proxy else None,
                        ssl=environment.registry if url.origin() == self._origin else environment.elsewhere,
                    )
            except TransientError as error:
                error.silent = host, began
                raise
            host.note_answer()
        if response.status == _PROXY_LOGIN and proxy is not None:
            response.release()
            raise SourceUnavailableError(
                f"the proxy for {url.host} requires credentials, or refuses them",
                hint=f"set them in {url.scheme.upper()}_PROXY: http://USER:PASSWORD@HOST:PORT",
            )
        return response

    def wait_again(self) -> None:
        """Wait again for hosts that were silent for too long."""
        for host in self._hosts.values():
            host.renew()

    @contextmanager
    def reading(self, url: URL) -> Iterator[None]:
        """Receive more of a body from the host of *url* within the block."""
        silence = self._host(url).silence
        with silence.waiting():
            yield
            silence.heard()

    def _host(self, url: URL) -> HostBackoff:
        """What is known of the host of *url*."""
        origin = url.origin()
        if origin not in self._hosts:
            name = url.host_port_subcomponent if url.explicit_port else url.host
            self._hosts[origin] = HostBackoff(self._retry, name=name or "", emit=self._emit)
        return self._hosts[origin]

    async def _opened(self) -> tuple[aiohttp.ClientSession, ClientEnvironment]:
        async with self._lock:
            if self._session is None or self._environment is None:
                self._environment = await self._detected()
                retry = self._retry
                self._session = aiohttp.ClientSession(
                    # RegistryClient bounds the number of connections.
                    connector=aiohttp.TCPConnector(limit=0),
                    timeout=aiohttp.ClientTimeout(
                        total=None, connect=None, sock_connect=retry.connect, sock_read=retry.stall
                    ),
                    # With it, aiohttp would also send the credentials in ~/.netrc.
                    trust_env=False,
                    cookie_jar=aiohttp.DummyCookieJar(),
                    # Digests are those of the stored bytes.
                    auto_decompress=False,
                    headers={"Accept-Encoding": "identity", "User-Agent": self._environment.agent},
                    read_bufsize=_READ_AHEAD,
                    max_line_size=_MAX_HEADER,
                    max_field_size=_MAX_HEADER,
                )
            return self._session, self._environment

    async def _detected(self) -> ClientEnvironment:
        try:
            return await to_thread.run_sync(ClientEnvironment.detect, self._registry)
        except OSError as error:
            shortage = open_files.reason(error)
            raise TransientError(f"no connection can be made: {shortage}", hint=open_files.HINT) from error


async def read_document(response: aiohttp.ClientResponse, limit: int, retry: RetryPolicy) -> bytes | None:
    """Read a whole body, decompressed; None if it is longer than *limit* bytes.

    Raises:
        TransientError: it breaks off, or takes too long.
    """
    body = await _read_body(response, limit, retry)
    if body and (encoding := encoding_of_document(body, response.headers)):
        return await to_thread.run_sync(decompressed, body, encoding, limit)
    return body


async def _read_body(response: aiohttp.ClientResponse, limit: int, retry: RetryPolicy) -> bytes | None:
    if response.content_length is not None and response.content_length > limit and response.method != "HEAD":
        return None
    body = bytearray()
    with _bounded(response.url, retry), translated(response.url, retry):
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > limit:
                return None
    return bytes(body)


@asynccontextmanager
async def released(response: aiohttp.ClientResponse) -> AsyncIterator[aiohttp.ClientResponse]:
    """Release the connection after the block, or close it if unread bytes remain."""
    try:
        yield response
    finally:
        response.release()


@contextmanager
def _bounded(url: URL, retry: RetryPolicy) -> Iterator[None]:
    """Bound the time of the whole, since each single byte may arrive in time."""
    with move_on_after(retry.answer) as scope:
        yield
    if scope.cancelled_caught:
        raise TransientError(f"{url.host} did not complete its response within {retry.answer:g} seconds", hint=LATER)


@contextmanager
def translated(url: URL, retry: RetryPolicy, problem: str = "") -> Iterator[None]:
    """Raise our errors for aiohttp's about a request to *url*; *problem* is one with the certificates for it."""
    try:
        yield
    except (aiohttp.ClientError, OSError, ValueError) as error:
        server = f"{url.host}:{url.explicit_port}" if url.explicit_port else str(url.host)
        proxy = proxy_advice(str(url.origin()))
        translation = (
            _no_room(server, error)
            or _distrust(server, error, proxy)
            or _no_connection(server, error, retry, proxy)
            or _breakdown(server, error)
        )
        if problem and not (isinstance(translation, TransientError) and translation.unanswered):
            translation.message = f"{translation.message} ({problem})"
        raise translation from error


def _no_room(server: str, error: Exception) -> TransientError | None:
    """The error for too many open files; None if something else failed."""
    shortage = open_files.shortage(error)
    return TransientError(f"no connection to {server}: {shortage}", hint=open_files.HINT) if shortage else None


def _distrust(server: str, error: Exception, proxy: str) -> SourceUnavailableError | None:
    """The error for a failure of TLS; None if something else failed. *proxy* is what to check besides the address."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        who = server if server.startswith(str(error.host)) else f"the proxy {error.host}:{error.port}, for {server},"
        return SourceUnavailableError(
            f"{who} is not trusted: {_reason(error.certificate_error)}",
            hint="give its authority's certificate: --src-ca-bundle, or tls.ca in a plan",
        )
    causes = (error, error.__cause__)
    failure = next((cause for cause in causes if isinstance(cause, aiohttp.ClientSSLError | ssl.SSLError)), None)
    if failure is None and not (type(error) is aiohttp.ClientOSError and "SSL" in str(error)):
        return None
    text = _reason(error)
    reason, hint = text.upper().replace(" ", "_"), f"check the address and the port{proxy}"
    if not proxy and ("WRONG_VERSION_NUMBER" in reason or "RECORD_LAYER" in reason):
        hint = "if it speaks plain HTTP, give --src-plain-http, or plain_http in a plan"
    elif "CERTIFICATE_REQUIRED" in reason or "HANDSHAKE_FAILURE" in reason:
        hint = "if it requires a client certificate, give --src-cert and --src-key"
    return SourceUnavailableError(f"TLS with {server} failed: {text}", hint=hint)


def _no_connection(server: str, error: Exception, retry: RetryPolicy, proxy: str) -> TransientError | None:
    """The error for a failure to connect, or for silence; None if something else failed.

    Args:
        server: the host, and its port if the address names one.
        error: the failure.
        retry: the times after which a connection or an answer counts as failed.
        proxy: what to check besides the address.
    """
    hint = f"check the address and the network{proxy}"
    if isinstance(error, aiohttp.ClientProxyConnectionError | aiohttp.ClientHttpProxyError):
        hint = "check HTTP_PROXY, HTTPS_PROXY and NO_PROXY"
        return TransientError(f"the proxy for {server} can't be used: {_reason(error)}", hint=hint, unanswered=True)
    if isinstance(error, aiohttp.ClientConnectorError):
        return TransientError(
            f"{server} can't be reached: {open_files.reason(error.os_error)}", hint=hint, unanswered=True
        )
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        took = f"no connection within {retry.connect:g} seconds"
        return TransientError(f"{server} can't be reached: {took}", hint=hint, unanswered=True)
    if isinstance(error, TimeoutError):
        return TransientError(f"{server} has sent nothing for {retry.stall:g} seconds", hint=LATER)
    return None


def _breakdown(server: str, error: Exception) -> SourceError:
    if isinstance(error, aiohttp.ServerDisconnectedError):
        # With TLS 1.3, the lack of a client certificate shows only as this.
        hint = f"{LATER}; if it never answers, it may require a client certificate (--src-cert)"
        return TransientError(f"{server} closed the connection without a response", hint=hint)
    if isinstance(error, aiohttp.ClientConnectionError | aiohttp.ClientPayloadError | OSError):
        return TransientError(f"{server} broke the connection", hint=LATER)
    return SourceUnavailableError(
        f"{server} does not respond as a registry does: {_reason(error)}", hint="check the address and the port"
    )


def _reason(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientResponseError):
        # Its own text holds the whole URL, and with it a blob store's signature.
        return " ".join(error.message.split())[:300] or f"status {error.status}"
    if isinstance(error, aiohttp.InvalidURL):
        return "the address is malformed"
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())[:300]


def _without_query(url: URL) -> str:
    """*url* without its query, which may hold secrets."""
    return f"{url.with_user(None).authority}{url.path}"


def _redirected(url: URL, location: str) -> URL:
    try:
        # Keep the encoding as it is: a signature covers each character.
        target = url.join(URL(location, encoded=True))
    except ValueError:
        target = URL()
    if not location or target.scheme not in ("http", "https") or not target.host:
        raise SourceError(f"{url.host} redirects without a valid address")
    if url.scheme == "https" and target.scheme == "http":
        raise SourceError(
            f"{url.host} redirects from HTTPS to HTTP ({target.host})", hint="such redirects are not followed"
        )
    return target.with_fragment(None)
