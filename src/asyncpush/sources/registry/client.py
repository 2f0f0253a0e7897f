"""The HTTP API of one registry: requests within its connections, authorized, and retried where that can help."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import aiohttp
from anyio import CapacityLimiter, Lock, move_on_after
from yarl import URL

from asyncpush import open_files
from asyncpush.errors import (
    ConfigurationError,
    ManifestError,
    SourceDeniedError,
    SourceError,
    SourceLimitedError,
    SourceUnavailableError,
)
from asyncpush.events import Emit, Limited, Notice
from asyncpush.http.encoding import unknown_encoding_of
from asyncpush.http.retry import RetryLoop
from asyncpush.http.token_bucket import LimitReporter, TokenBucket
from asyncpush.reference import HUB, api_host, canonical_host
from asyncpush.settings import RetryPolicy, SourceRegistry
from asyncpush.sources.registry.credentials import CredentialStore
from asyncpush.sources.registry.docker_config import Account
from asyncpush.sources.registry.errors import Refusal, is_web_page
from asyncpush.sources.registry.http import RegistryHttp, read_document
from asyncpush.sources.registry.logins import Logins
from asyncpush.sources.registry.pull_limit import PullLimit, UsedUpLimit, pull_limit
from asyncpush.sources.registry.requests import Request, RequestGate, Response, TransientError
from asyncpush.sources.registry.token_auth import LoginRefusedError, TokenAuth
from asyncpush.sources.registry.www_authenticate import parse_challenges

_MAX_ERROR_BODY = 64 * 1024
#: Seconds to learn the authentication scheme: the request that follows has its own time limits.
_SCHEME_TIMEOUT = 10.0

#: The statuses by which ECR, and above all ECR Public, report an expired token; other registries send 401.
_EXPIRED = frozenset({400, 403})
_IS_EXPIRED = re.compile(rb"token (?:has |is )?expired|expired token|ExpiredToken", re.IGNORECASE)

_API = "/v2/"

_REFUSES_ANONYMOUS = " (and refuses anonymous requests, too)"

UNASKED = ", which was not requested; a proxy may be the cause"


class RegistryClient:
    """Sends requests to one registry.

    Args:
        registry: how to reach it.
        logins: creates the login for ECR registries.
        emit: receives each retry.
        retry: the time limits, and when requests are sent again.

    Attributes:
        pull_limit: the limit on pulls that the registry's answers tell; None if they tell none.
    """

    def __init__(self, registry: SourceRegistry, logins: Logins, emit: Emit, retry: RetryPolicy) -> None:
        self.host = canonical_host(registry.host)
        self.retry = retry
        self.requests: Counter[str] = Counter()
        self.emit = emit
        self._plain = registry.plain_http
        self._base = URL(f"{'http' if registry.plain_http else 'https'}://{api_host(self.host)}")
        self._http = RegistryHttp(registry, self._base, retry, emit)
        self.wait_again = self._http.wait_again
        self.reading = self._http.reading
        self._accounts = CredentialStore(registry, self.host, logins, retry.helper)
        self._auth = TokenAuth(
            self.host, self._accounts, self._http, retry, emit, self.requests, plain=registry.plain_http
        )
        self._slots = CapacityLimiter(open_files.share(registry.connections))
        self._gate = RequestGate(retry, self.host)
        self._used_up = UsedUpLimit()
        rate = registry.requests_per_second
        report = LimitReporter(emit, lambda: Limited(self.host, rate or 0, "user"))
        self._pace = TokenBucket(lambda: rate, on_wait=report)
        self.pull_limit: PullLimit | None = None
        self._first_lock = Lock()
        self._has_asked = False
        self._scheme_lock = Lock()
        self._has_asked_api = False
        self._has_account: dict[str, bool] = {}
        self._public_scopes: set[str] = set()
        self._reported: set[Account] = set()

    @property
    def counts_pulls(self) -> bool:
        """Whether the registry limits pulls, as which it does not count a HEAD."""
        return self.host == HUB or self.pull_limit is not None

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    def retry_loop(self, operation: str) -> RetryLoop:
        """Return what decides when one request is sent again, and when it is given up."""
        return RetryLoop(operation, self.retry, self._gate, self.emit)

    def notify(self, text: str) -> None:
        """Tell the user something."""
        self.emit(Notice(text))

    async def fetch(self, request: Request, limit: int, *, once: bool = False) -> Response:
        """Send a request, again where that can help, and read the whole response, up to *limit* bytes.

        Args:
            request: the request.
            limit: the longest body.
            once: retry only where the host can't be reached: the caller has another way to learn the answer. After a
                throttle, the wait is kept nonetheless.

        Raises:
            SourceNotFoundError: the registry does not have it.
            SourceDeniedError: the registry denies access.
            SourceUnavailableError: the registry can't be reached, or fails too often.
            SourceLimitedError: its limit is used up for long; no request is sent while that is known.
            ManifestError: the response is a web page.
            SourceError: the registry refuses for another reason.
        """
        retries = self.retry_loop(request.operation)
        while True:
            try:
                opened = await self.open(request)
                try:
                    response = opened.response
                    body = b"" if request.method == "HEAD" else await read_document(response, limit, self.retry)
                    encoding = unknown_encoding_of(response.headers)
                    if body and encoding and not body.lstrip().startswith(b"{"):  # some servers label plain JSON so
                        raise ManifestError(f"{request.what} of {self.host} comes compressed with {encoding}{UNASKED}")
                    if body and is_web_page(body):
                        raise ManifestError(
                            f"{request.what} of {self.host} is malformed: the answer is a web page",
                            hint="check the address and the port; a proxy may require a login",
                        )
                    links = response.headers.getall("Link", ())
                    return Response(response.status, response.headers, response.url, body, links)
                finally:
                    opened.close()
            except TransientError as error:
                if once and not (error.throttled or error.unanswered):
                    raise
                await retries.wait(error)
                if once and error.throttled:
                    raise

    def slot(self) -> AbstractAsyncContextManager[ConnectionSlot]:
        """Take a connection slot, for requests one after the other."""
        return connection_slot(self._slots)

    async def open(self, request: Request, slot: ConnectionSlot | None = None) -> OpenResponse:
        """Send a request once, and leave the body of its response to be read; a 401 is answered with credentials.

        Args:
            request: the request.
            slot: the caller's slot; None takes one until the response is closed.

        Raises:
            TransientError: a retry may succeed.
            SourceError: as ``fetch``.
        """
        if slot is not None:
            return OpenResponse(await self._open_authorized(request), None)
        own = ConnectionSlot(self._slots)
        await own.acquire()
        try:
            return OpenResponse(await self._open_authorized(request), own)
        except BaseException:
            own.release()
            raise

    async def _open_authorized(self, request: Request) -> aiohttp.ClientResponse:
        """Send a request. The caller holds a slot: whatever others wait for here is then never starved of one."""
        self._used_up.check(request.operation, request.what)
        with self._accounts.explain_refusals():
            await self._learn_scheme(request)
            if not self._has_asked:
                # The first request learns whether credentials are needed; else all concurrent ones would be refused.
                async with self._first_lock:
                    if not self._has_asked:
                        try:
                            return await self._open(request)
                        finally:
                            self._has_asked = True
            return await self._open(request)

    async def _learn_scheme(self, request: Request) -> None:
        """Ask ``/v2/`` once for the authentication scheme, if there are credentials: other paths may not name it.

        Some registries show anonymous clients a part of their content, or hide the rest behind a 404, and send no
        challenge.
        """
        if request.repository in self._has_account or self._auth.knows_scheme or request.path == _API:
            return
        if self._accounts.uses_aws_login:
            return
        async with self._scheme_lock:
            if request.repository in self._has_account or self._auth.knows_scheme:
                return
            try:
                account = await self._accounts.find(request.repository)
            except (ConfigurationError, SourceError):
                account = None  # the request that needs it raises this
            if account is not None and not self._has_asked_api:
                self._has_asked_api = True
                await self._ask_scheme()
            # Last, so that concurrent requests wait for the answer.
            self._has_account[request.repository] = account is not None

    async def _ask_scheme(self) -> None:
        with move_on_after(_SCHEME_TIMEOUT):
            try:
                response = await self._send(Request("ping", _API, "its API"), None)
            except SourceError:
                return  # the request that follows reports it
            response.release()
            if response.status == 401 and response.url.origin() == self._base.origin():
                self._auth.note_challenges(parse_challenges(response.headers.getall("WWW-Authenticate", ())))

    async def _open(self, request: Request) -> aiohttp.ClientResponse:
        """Send a request with the stored login and, if that is refused, anonymously; or the other way round.

        A stored login may have expired, or be valid for other repositories only, while the image is public.
        """
        anonymous = request.scope in self._public_scopes
        try:
            return await self._attempt(request, anonymous=anonymous)
        except SourceDeniedError as error:
            login = error.account if isinstance(error, LoginRefusedError) else self._auth.account(request.scope)
            if not anonymous and (login is None or not login.origin):
                raise
            if isinstance(error, LoginRefusedError):
                self._accounts.reject(error.account)
            try:
                opened = await self._attempt(request, anonymous=not anonymous)
            except SourceUnavailableError:
                raise
            except SourceError:
                if not anonymous and _REFUSES_ANONYMOUS not in error.message:
                    error.message += _REFUSES_ANONYMOUS
                raise error from None
            if anonymous:
                self._public_scopes.discard(request.scope)
            elif login is not None:
                self._note_refused(login, request, everywhere=isinstance(error, LoginRefusedError))
            return opened

    def _note_refused(self, login: Account, request: Request, *, everywhere: bool) -> None:
        if not everywhere:
            self._public_scopes.add(request.scope)
        if login not in self._reported:
            self._reported.add(login)
            text = f"{self.host} refuses {login.label}, but serves {request.what} without a login"
            self.notify(f"{text}; log in again (docker login {self.host}), or log out")

    async def _attempt(self, request: Request, *, anonymous: bool) -> aiohttp.ClientResponse:
        authorization = await self._auth.authorize(request.repository, request.scope, anonymous=anonymous)
        challenges_left = 2  # one for a missing or expired token, and one for a scope other than expected
        while True:
            response = await self._send(request, authorization)
            if response.status in request.expected:
                if authorization is None:
                    self._auth.note_public(request.scope, anonymous=anonymous)
                return response
            try:
                is_own = response.url.origin() == self._base.origin()
                body = (
                    b""
                    if request.method == "HEAD"
                    else await read_document(response, _MAX_ERROR_BODY, self.retry) or b""
                )
                challenges = parse_challenges(response.headers.getall("WWW-Authenticate", ()))
                expired = response.status in _EXPIRED and authorization is not None and bool(_IS_EXPIRED.search(body))
                if not is_own or not challenges_left or not (expired or (response.status == 401 and challenges)):
                    lacks_challenge = response.status == 401 and not challenges
                    raise self._refusal(
                        request,
                        response,
                        body,
                        is_own=is_own,
                        expired=expired,
                        lacks_challenge=lacks_challenge,
                        anonymous=anonymous,
                    )
            finally:
                response.release()
            challenges_left -= 1
            if expired and not challenges:
                challenges_left = 0
                authorization = await self._auth.replace_expired(
                    request.repository, request.scope, authorization, anonymous=anonymous
                )
            else:
                authorization = await self._auth.answer_challenge(
                    challenges, request.repository, request.scope, authorization, anonymous=anonymous
                )

    async def _send(self, request: Request, authorization: str | None) -> aiohttp.ClientResponse:
        await self._pace.take(1)
        await self._gate.wait_open()
        self._used_up.check(request.operation, request.what)  # others may have learned it meanwhile
        self.requests[request.operation] += 1
        url = URL(f"{self._base}{request.path}", encoded=True)
        response = await self._http.send(request.method, url, request.headers, authorization=authorization)
        self.pull_limit = pull_limit(response.headers) or self.pull_limit
        return response

    def _refusal(
        self,
        request: Request,
        response: aiohttp.ClientResponse,
        body: bytes,
        *,
        is_own: bool,
        expired: bool,
        lacks_challenge: bool,
        anonymous: bool,
    ) -> SourceError:
        account = None if anonymous else self._auth.account(request.scope)
        login = account.label if account and account.origin else "these credentials" if account else ""
        error = Refusal(
            request,
            self.host,
            response.status,
            response.headers,
            body,
            elsewhere=None if is_own else response.url.host,
            plain_http=self._plain,
            login=login,
            credentials_unused=not login and not anonymous and self._has_account.get(request.repository, False),
            expired=expired,
            lacks_challenge=lacks_challenge,
            pull_limit=self.pull_limit,
            patience=self.retry.throttled,
        ).as_error()
        if isinstance(error, SourceLimitedError):
            self._used_up.note(request.operation, error)
        return error


class ConnectionSlot:
    """The right to one of a registry's connections, for one request after the other."""

    def __init__(self, slots: CapacityLimiter) -> None:
        self._slots = slots
        self._is_held = False

    async def acquire(self) -> None:
        """Wait for the slot."""
        await self._slots.acquire_on_behalf_of(self)
        self._is_held = True

    def release(self) -> None:
        """Give the slot back; calling it again does no harm."""
        if self._is_held:
            self._is_held = False
            self._slots.release_on_behalf_of(self)


class OpenResponse:
    """A response whose body is still to be read.

    Args:
        response: the response.
        slot: released with it; None if the caller holds the slot.
    """

    def __init__(self, response: aiohttp.ClientResponse, slot: ConnectionSlot | None) -> None:
        self.response = response
        self._slot = slot

    def close(self) -> None:
        """Release the connection and the slot; calling it again does no harm."""
        self.response.release()
        if self._slot is not None:
            self._slot.release()


@asynccontextmanager
async def connection_slot(slots: CapacityLimiter) -> AsyncIterator[ConnectionSlot]:
    """Hold one of *slots* within the block."""
    slot = ConnectionSlot(slots)
    await slot.acquire()
    try:
        yield slot
    finally:
        slot.release()
