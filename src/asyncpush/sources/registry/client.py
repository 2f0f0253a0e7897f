"""One registry's ``/v2/``: requests in turn, with credentials, and again where that can help."""

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
    SourceUnavailableError,
)
from asyncpush.events import Emit, Notice
from asyncpush.http.encoding import unknown_encoding_of
from asyncpush.http.retry import RetryLoop, note_if_slow
from asyncpush.reference import api_host, canonical_host
from asyncpush.settings import RetryPolicy, SourceRegistry
from asyncpush.sources.registry.credentials import CredentialStore, Logins
from asyncpush.sources.registry.docker_config import Account
from asyncpush.sources.registry.errors import Refusal, is_web_page
from asyncpush.sources.registry.http import RegistryHttp, read_document
from asyncpush.sources.registry.requests import Request, RequestGate, Response, TransientError
from asyncpush.sources.registry.token_auth import LoginRefusedError, TokenAuth
from asyncpush.sources.registry.www_authenticate import parse_challenges

_MAX_ERROR_BODY = 64 * 1024
#: Seconds to learn how credentials are to be given: the request that follows takes its own time.
_INTRODUCTION = 10.0

#: How ECR, and ECR Public above all, say that a token has expired; others answer with 401.
_EXPIRED = frozenset({400, 403})
_IS_EXPIRED = re.compile(rb"token (?:has |is )?expired|expired token|ExpiredToken", re.IGNORECASE)

_API = "/v2/"

_NOTHING_WITHOUT = " (and gives nothing without one)"

UNASKED = ", which was not asked for; a proxy may do so"


class RegistryClient:
    """The requests to one registry.

    Args:
        registry: how it is reached.
        logins: makes the login of ECR registries.
        emit: hears of each request that is sent again.
        retry: time limits, and how often that is.
    """

    def __init__(self, registry: SourceRegistry, logins: Logins, emit: Emit, retry: RetryPolicy) -> None:
        self.host = canonical_host(registry.host)
        self.retry = retry
        self.requests: Counter[str] = Counter()
        self.emit = emit
        self._plain = registry.plain_http
        self._base = URL(f"{'http' if registry.plain_http else 'https'}://{api_host(self.host)}")
        self._http = RegistryHttp(registry, self._base, retry)
        self.wait_again = self._http.wait_again
        self._accounts = CredentialStore(registry, self.host, logins, retry.helper)
        self._authority = TokenAuth(
            self.host, self._accounts, self._http, retry, emit, self.requests, plain=registry.plain_http
        )
        self._turns = CapacityLimiter(open_files.share(registry.connections))
        self._gate = RequestGate(retry)
        self._first = Lock()
        self._introduced = False
        self._asking = Lock()
        self._api_asked = False
        self._has_account: dict[str, bool] = {}
        self._open_to_nobody: set[str] = set()
        self._told: set[Account] = set()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    def tries(self, operation: str) -> RetryLoop:
        """Count the tries of one request."""
        return RetryLoop(operation, self.retry, self._gate, self.emit)

    def notice(self, text: str) -> None:
        """Tell the user something."""
        self.emit(Notice(text))

    async def fetch(self, ask: Request, limit: int, *, once: bool = False) -> Response:
        """Send a request, again where that can help, and read the whole answer, up to *limit* bytes of it.

        Args:
            ask: the request.
            limit: the longest body.
            once: try again only where nobody answers: there is another way to learn it, once a throttle is waited out.

        Raises:
            SourceNotFoundError: what was asked for is not there.
            SourceDeniedError: the registry refuses.
            SourceUnavailableError: it can't be reached, or fails too often.
            ManifestError: the answer is a web page.
            SourceError: it refuses for any other cause.
        """
        tries = self.tries(ask.operation)
        while True:
            try:
                opened = await self.open(ask)
                try:
                    response = opened.response
                    body = b"" if ask.method == "HEAD" else await read_document(response, limit, self.retry)
                    encoding = unknown_encoding_of(response.headers)
                    if body and encoding and not body.lstrip().startswith(b"{"):  # some label what is not compressed
                        raise ManifestError(f"{ask.what} of {self.host} comes compressed with {encoding}{UNASKED}")
                    if body and is_web_page(body):
                        raise ManifestError(
                            f"{ask.what} of {self.host} is malformed: the answer is a web page",
                            hint="check the address and the port; a proxy may want you to log in",
                        )
                    links = response.headers.getall("Link", ())
                    return Response(response.status, response.headers, response.url, body, links)
                finally:
                    opened.close()
            except TransientError as error:
                if once and not (error.throttled or error.unanswered):
                    raise
                await tries.wait(error)
                if once and error.throttled:
                    raise

    def turn(self) -> AbstractAsyncContextManager[ConnectionTurn]:
        """Take a turn, for requests one after the other."""
        return own_turn(self._turns)

    async def open(self, ask: Request, turn: ConnectionTurn | None = None) -> OpenAnswer:
        """Send a request once, and leave its body to be read; a 401 is answered with credentials.

        Args:
            ask: the request.
            turn: the caller's turn; None takes one until the answer is closed.

        Raises:
            TransientError: it may succeed the next time.
            SourceError: as ``fetch``.
        """
        if turn is not None:
            return OpenAnswer(await self._introduced_open(ask), None)
        own = ConnectionTurn(self._turns)
        await own.take()
        try:
            return OpenAnswer(await self._introduced_open(ask), own)
        except BaseException:
            own.give_back()
            raise

    async def _introduced_open(self, ask: Request) -> aiohttp.ClientResponse:
        """Send a request, in a turn: what all others wait for here has one, too."""
        with self._accounts.explained():
            await self._learn_way(ask)
            if not self._introduced:
                # Who comes first learns whether credentials are wanted: else as many as come at once would be refused.
                async with self._first:
                    if not self._introduced:
                        try:
                            return await self._open(ask)
                        finally:
                            self._introduced = True
            return await self._open(ask)

    async def _learn_way(self, ask: Request) -> None:
        """Ask ``/v2/`` once how credentials are to be given, where there are some: it may want them while others don't.

        Some show everybody a part of what they hold, or hide the rest behind a 404, and ask for nothing.
        """
        if ask.repository in self._has_account or self._authority.knows_way or ask.path == _API:
            return
        if self._accounts.opens_ecr:
            return
        async with self._asking:
            if ask.repository in self._has_account or self._authority.knows_way:
                return
            try:
                account = await self._accounts.find(ask.repository)
            except (ConfigurationError, SourceError):
                account = None  # whoever needs it learns why
            if account is not None and not self._api_asked:
                self._api_asked = True
                await self._ask_way()
            # Last: whoever comes meanwhile waits for the answer.
            self._has_account[ask.repository] = account is not None

    async def _ask_way(self) -> None:
        with move_on_after(_INTRODUCTION):
            try:
                response = await self._send(Request("ping", _API, "its API"), None)
            except SourceError:
                return  # the request that follows says so
            response.release()
            if response.status == 401 and response.url.origin() == self._base.origin():
                self._authority.introduced(parse_challenges(response.headers.getall("WWW-Authenticate", ())))

    async def _open(self, ask: Request) -> aiohttp.ClientResponse:
        """Send a request as who has stored a login, and where that is refused as nobody; or the other way round.

        A stored login may be old, or good for other repositories only, and what is asked for be everybody's.
        """
        nobody = ask.scope in self._open_to_nobody
        try:
            return await self._attempt(ask, nobody=nobody)
        except SourceDeniedError as error:
            login = error.account if isinstance(error, LoginRefusedError) else self._authority.account(ask.scope)
            if not nobody and (login is None or not login.origin):
                raise
            if isinstance(error, LoginRefusedError):
                self._accounts.pass_over(error.account)
            try:
                opened = await self._attempt(ask, nobody=not nobody)
            except SourceUnavailableError:
                raise
            except SourceError:
                if not nobody and _NOTHING_WITHOUT not in error.message:
                    error.message += _NOTHING_WITHOUT
                raise error from None
            if nobody:
                self._open_to_nobody.discard(ask.scope)
            elif login is not None:
                self._note_refused(login, ask, everywhere=isinstance(error, LoginRefusedError))
            return opened

    def _note_refused(self, login: Account, ask: Request, *, everywhere: bool) -> None:
        if not everywhere:
            self._open_to_nobody.add(ask.scope)
        if login not in self._told:
            self._told.add(login)
            text = f"{self.host} refuses {login.label}, and gives {ask.what} without one"
            self.notice(f"{text}; log in again (docker login {self.host}), or log out")

    async def _attempt(self, ask: Request, *, nobody: bool) -> aiohttp.ClientResponse:
        authorization = await self._authority.current(ask.repository, ask.scope, nobody=nobody)
        challenges_left = 2  # one for a token that has expired, or none; one for other needs than its scope told
        while True:
            response = await self._send(ask, authorization)
            if response.status in ask.expected:
                if authorization is None:
                    self._authority.note_open(ask.scope, nobody=nobody)
                return response
            try:
                ours = response.url.origin() == self._base.origin()
                body = (
                    b"" if ask.method == "HEAD" else await read_document(response, _MAX_ERROR_BODY, self.retry) or b""
                )
                challenges = parse_challenges(response.headers.getall("WWW-Authenticate", ()))
                expired = response.status in _EXPIRED and authorization is not None and bool(_IS_EXPIRED.search(body))
                if not ours or not challenges_left or not (expired or (response.status == 401 and challenges)):
                    silent = response.status == 401 and not challenges
                    raise self._refusal(ask, response, body, ours=ours, expired=expired, silent=silent, nobody=nobody)
            finally:
                response.release()
            challenges_left -= 1
            if expired and not challenges:
                challenges_left = 0
                authorization = await self._authority.expired(ask.repository, ask.scope, authorization, nobody=nobody)
            else:
                authorization = await self._authority.challenged(
                    challenges, ask.repository, ask.scope, authorization, nobody=nobody
                )

    async def _send(self, ask: Request, authorization: str | None) -> aiohttp.ClientResponse:
        await self._gate.wait_open()
        self.requests[ask.operation] += 1
        url = URL(f"{self._base}{ask.path}", encoded=True)
        with note_if_slow(f"{ask.what} has no answer yet from {self.host}", self.notice, self.retry.note_after):
            return await self._http.send(ask.method, url, ask.headers, authorization=authorization)

    def _refusal(
        self,
        ask: Request,
        response: aiohttp.ClientResponse,
        body: bytes,
        *,
        ours: bool,
        expired: bool,
        silent: bool,
        nobody: bool,
    ) -> SourceError:
        account = None if nobody else self._authority.account(ask.scope)
        login = account.label if account and account.origin else "these credentials" if account else ""
        return Refusal(
            ask,
            self.host,
            response.status,
            response.headers,
            body,
            elsewhere=None if ours else response.url.host,
            plain_http=self._plain,
            login=login,
            kept_back=not login and not nobody and self._has_account.get(ask.repository, False),
            expired=expired,
            silent=silent,
        ).as_error()


class ConnectionTurn:
    """One of a registry's turns: the right to one connection, for one request after the other."""

    def __init__(self, turns: CapacityLimiter) -> None:
        self._turns = turns
        self._is_held = False

    async def take(self) -> None:
        """Wait for it."""
        await self._turns.acquire_on_behalf_of(self)
        self._is_held = True

    def give_back(self) -> None:
        """Let somebody else have it; may be called again."""
        if self._is_held:
            self._is_held = False
            self._turns.release_on_behalf_of(self)


class OpenAnswer:
    """An answer whose body is still to be read. What was asked without a turn of its own takes one until it is closed.

    Args:
        response: the answer.
        turn: what is given back with it; None leaves it to the caller.
    """

    def __init__(self, response: aiohttp.ClientResponse, turn: ConnectionTurn | None) -> None:
        self.response = response
        self._turn = turn

    def close(self) -> None:
        """Give back the connection and the turn; may be called again."""
        self.response.release()
        if self._turn is not None:
            self._turn.give_back()


@asynccontextmanager
async def own_turn(turns: CapacityLimiter) -> AsyncIterator[ConnectionTurn]:
    """Have one of *turns* meanwhile."""
    turn = ConnectionTurn(turns)
    await turn.take()
    try:
        yield turn
    finally:
        turn.give_back()
