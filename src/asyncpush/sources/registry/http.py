"""HTTP as a registry's client needs it: TLS as configured, proxies, redirects that carry no secret elsewhere."""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager

import aiohttp
from anyio import CancelScope, Lock, move_on_after, to_thread
from yarl import URL

from asyncpush import open_files
from asyncpush.errors import SourceError, SourceUnavailableError
from asyncpush.http.encoding import decompressed, encoding_of_document
from asyncpush.http.retry import HostBackoff
from asyncpush.http.session import ClientEnvironment, proxy_for
from asyncpush.settings import MiB, RetryPolicy, SourceRegistry
from asyncpush.sources.registry.requests import TransientError

#: What to do about what may pass.
LATER = "run the same command again later to resume"

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 5
_PROXY_LOGIN = 407

#: What is read ahead of the consumer: enough that a part is filled without many awakenings.
_READ_AHEAD = MiB // 4

#: The longest header: signed addresses of blob stores run to several KiB.
_MAX_HEADER = 32 * 1024


class RegistryHttp:
    """Sends single requests, to one registry and to where it redirects; opened when it is first used.

    Args:
        registry: how its TLS is checked.
        base: the registry's own address.
        retry: its time limits.
    """

    def __init__(self, registry: SourceRegistry, base: URL, retry: RetryPolicy) -> None:
        self._registry = registry
        self._origin = base.origin()
        self._retry = retry
        self._session: aiohttp.ClientSession | None = None
        self._environment: ClientEnvironment | None = None
        self._lock = Lock()
        self._hosts: dict[URL, HostBackoff] = {}

    async def aclose(self) -> None:
        """Close all connections, also when cancelled."""
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
        """Send one request and return its answer, whose body is still to be read; the caller releases it.

        Redirects are followed, five at the most, never from HTTPS to HTTP. *authorization* goes to the host, port and
        scheme of *url* alone. A form (OAuth2) goes nowhere else: its redirect is the answer.

        Raises:
            TransientError: no answer; it may come the next time.
            SourceUnavailableError: the host is not trusted, or does not speak the protocol.
            SourceError: redirects in a circle, or to where no answer may come from.
        """
        session, around = await self._opened()
        at, seen, trusted = url, {url}, True
        while True:
            sent = dict(headers)
            if authorization is not None and trusted:
                sent["Authorization"] = authorization
            proxy = proxy_for(at, around.proxies, sent)
            problem = around.problem if at.scheme == "https" else ""
            host = self._host(at)
            async with host.asking():
                began = time.monotonic()
                try:
                    with _in_time(at, self._retry), translated(at, self._retry, problem):
                        answer = await session.request(
                            method,
                            at,
                            headers=sent,
                            data=form,
                            allow_redirects=False,
                            proxy=proxy.url if proxy else None,
                            proxy_headers=proxy.headers if proxy else None,
                            ssl=around.registry if at.origin() == self._origin else around.elsewhere,
                        )
                except TransientError as error:
                    error.silent = host, began
                    if at.origin() != url.origin():
                        error.unanswered = False  # who was asked has answered: where to go
                    raise
                host.note_answer()
            if answer.status == _PROXY_LOGIN and proxy is not None:
                answer.release()
                raise SourceUnavailableError(
                    f"the proxy for {at.host} wants credentials, or refuses them",
                    hint=f"give them in {at.scheme.upper()}_PROXY: http://USER:PASSWORD@HOST:PORT",
                )
            if answer.status not in _REDIRECTS or form is not None:
                return answer
            location = answer.headers.get("Location", "")
            answer.release()
            at = _redirected(at, location)
            if at in seen or len(seen) > _MAX_REDIRECTS:
                raise SourceError(
                    f"{_place(url)} redirects in a circle"
                    if at in seen
                    else f"{_place(url)} redirects more than {_MAX_REDIRECTS} times",
                    hint="check the address; a proxy may be wrong",
                )
            seen.add(at)
            trusted = trusted and at.origin() == url.origin()

    def wait_again(self) -> None:
        """Wait for hosts once more that were silent for too long."""
        for host in self._hosts.values():
            host.renew()

    def _host(self, url: URL) -> HostBackoff:
        """What is known of the host that a request to *url* goes to."""
        origin = url.origin()
        if origin not in self._hosts:
            self._hosts[origin] = HostBackoff(self._retry)
        return self._hosts[origin]

    async def _opened(self) -> tuple[aiohttp.ClientSession, ClientEnvironment]:
        async with self._lock:
            if self._session is None or self._environment is None:
                self._environment = await self._detected()
                retry = self._retry
                self._session = aiohttp.ClientSession(
                    # The number of connections is bounded above, where it is known what they are for.
                    connector=aiohttp.TCPConnector(limit=0),
                    timeout=aiohttp.ClientTimeout(
                        total=None, connect=None, sock_connect=retry.connect, sock_read=retry.stall
                    ),
                    # Its own use of the environment would also send what ~/.netrc holds.
                    trust_env=False,
                    cookie_jar=aiohttp.DummyCookieJar(),
                    # Digests are of the bytes as they are stored.
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


async def read_document(answer: aiohttp.ClientResponse, limit: int, retry: RetryPolicy) -> bytes | None:
    """Read a whole body, decompressed; None once it has turned out to be longer than *limit* bytes.

    Raises:
        TransientError: it breaks off, or takes too long.
    """
    body = await _read_body(answer, limit, retry)
    if body and (encoding := encoding_of_document(body, answer.headers)):
        return await to_thread.run_sync(decompressed, body, encoding, limit)
    return body


async def _read_body(answer: aiohttp.ClientResponse, limit: int, retry: RetryPolicy) -> bytes | None:
    if answer.content_length is not None and answer.content_length > limit and answer.method != "HEAD":
        return None
    body = bytearray()
    with _in_time(answer.url, retry), translated(answer.url, retry):
        async for chunk in answer.content.iter_any():
            body += chunk
            if len(body) > limit:
                return None
    return bytes(body)


@asynccontextmanager
async def released(answer: aiohttp.ClientResponse) -> AsyncIterator[aiohttp.ClientResponse]:
    """Give the connection back, or close it where it still has bytes to bring."""
    try:
        yield answer
    finally:
        answer.release()


@contextmanager
def _in_time(url: URL, retry: RetryPolicy) -> Iterator[None]:
    """Bound what may trickle in: each byte is in time, and the whole is not."""
    with move_on_after(retry.answer) as scope:
        yield
    if scope.cancelled_caught:
        raise TransientError(f"{url.host} has not ended its answer within {retry.answer:g} seconds", hint=LATER)


@contextmanager
def translated(url: URL, retry: RetryPolicy, problem: str = "") -> Iterator[None]:
    """Turn aiohttp's errors about a request to *url* into ours; *problem* is with certificates for it."""
    try:
        yield
    except (aiohttp.ClientError, OSError, ValueError) as error:
        where = f"{url.host}:{url.explicit_port}" if url.explicit_port else str(url.host)
        told = (
            _no_room(where, error)
            or _distrust(where, error)
            or _no_connection(where, error, retry)
            or _breakdown(where, error)
        )
        if problem and not (isinstance(told, TransientError) and told.unanswered):
            told.message = f"{told.message} ({problem})"
        raise told from error


def _no_room(where: str, error: Exception) -> TransientError | None:
    """Too many open files, which is nobody's fault at the other end; None where that is not what failed."""
    shortage = open_files.shortage(error)
    return TransientError(f"no connection to {where}: {shortage}", hint=open_files.HINT) if shortage else None


def _distrust(where: str, error: Exception) -> SourceUnavailableError | None:
    """TLS that can't be; None where that is not what failed."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        who = where if where.startswith(str(error.host)) else f"the proxy {error.host}:{error.port}, for {where},"
        return SourceUnavailableError(
            f"{who} is not trusted: {_words(error.certificate_error)}",
            hint="give its authority's certificate: --src-ca-bundle, or tls.ca in a plan",
        )
    causes = (error, error.__cause__)
    failure = next((each for each in causes if isinstance(each, aiohttp.ClientSSLError | ssl.SSLError)), None)
    if failure is None and not (type(error) is aiohttp.ClientOSError and "SSL" in str(error)):
        return None
    text = _words(error)
    said, hint = text.upper().replace(" ", "_"), "check the address and the port"
    if "WRONG_VERSION_NUMBER" in said or "RECORD_LAYER" in said:
        hint = "if it speaks plain HTTP, say so: --src-plain-http, or plain_http in a plan"
    elif "CERTIFICATE_REQUIRED" in said or "HANDSHAKE_FAILURE" in said:
        hint = "if it wants a client certificate, give --src-cert and --src-key"
    return SourceUnavailableError(f"TLS with {where} failed: {text}", hint=hint)


def _no_connection(where: str, error: Exception, retry: RetryPolicy) -> TransientError | None:
    """Nobody there; None where that is not what failed."""
    hint = "check the address and the network"
    if isinstance(error, aiohttp.ClientProxyConnectionError | aiohttp.ClientHttpProxyError):
        hint = "check HTTP_PROXY, HTTPS_PROXY and NO_PROXY"
        return TransientError(f"the proxy for {where} can't be used: {_words(error)}", hint=hint, unanswered=True)
    if isinstance(error, aiohttp.ClientConnectorError):
        return TransientError(f"{where} can't be reached: {_words(error.os_error)}", hint=hint, unanswered=True)
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        took = f"no connection within {retry.connect:g} seconds"
        return TransientError(f"{where} can't be reached: {took}", hint=hint, unanswered=True)
    if isinstance(error, TimeoutError):
        return TransientError(f"{where} has sent nothing for {retry.stall:g} seconds", hint=LATER)
    return None


def _breakdown(where: str, error: Exception) -> SourceError:
    if isinstance(error, aiohttp.ServerDisconnectedError):
        # This is all that one learns where TLS 1.3 ends for lack of a client certificate.
        hint = "go on later; if it never answers, it may want a client certificate (--src-cert)"
        return TransientError(f"{where} has broken the connection without an answer", hint=hint)
    if isinstance(error, aiohttp.ClientConnectionError | aiohttp.ClientPayloadError | OSError):
        return TransientError(f"{where} has broken the connection", hint=LATER)
    return SourceUnavailableError(
        f"{where} does not answer as a registry does: {_words(error)}", hint="check the address and the port"
    )


def _words(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientResponseError):
        # Its own text holds the whole address, and so a blob store's signature.
        return " ".join(error.message.split())[:300] or f"status {error.status}"
    if isinstance(error, aiohttp.InvalidURL):
        return "the address is malformed"
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())[:300]


def _place(url: URL) -> str:
    """What is asked for at a registry, without the secrets that a query may hold."""
    return f"{url.with_user(None).authority}{url.path}"


def _redirected(at: URL, location: str) -> URL:
    try:
        # As it is written: a signature covers each letter.
        to = at.join(URL(location, encoded=True))
    except ValueError:
        to = URL()
    if not location or to.scheme not in ("http", "https") or not to.host:
        raise SourceError(f"{at.host} redirects, but does not say where to")
    if at.scheme == "https" and to.scheme == "http":
        raise SourceError(f"{at.host} redirects from HTTPS to HTTP ({to.host})", hint="that is not followed")
    return to.with_fragment(None)
