"""One registry's ``/v2/``: requests in turn, with credentials, again where that can help, and refusals as errors.

Sources: OCI distribution-spec 1.1 (end points, error codes); Docker Hub's rate limit headers.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import quote

import aiohttp
from anyio import CapacityLimiter, Lock, move_on_after, to_thread
from yarl import URL

from asyncpush.errors import (
    ConfigurationError,
    ManifestError,
    SourceDeniedError,
    SourceError,
    SourceNotFoundError,
    SourceUnavailableError,
)
from asyncpush.events import Emit, Notice
from asyncpush.retry import retry_after, told_if_late
from asyncpush.settings import SourceRegistry
from asyncpush.sources.registry.auth import Authority
from asyncpush.sources.registry.challenge import parse_challenges
from asyncpush.sources.registry.credentials import Accounts, Logins
from asyncpush.sources.registry.encoding import decompressed, encoding_of, unknown_encoding_of
from asyncpush.sources.registry.http import LATER, Http, read_body
from asyncpush.sources.registry.patience import Mood, Patience, TransientError, Tries, describe_limit
from asyncpush.sources.registry.reference import api_host, canonical_host
from asyncpush.sources.registry.said import Said, first_error

_MAX_ERROR_BODY = 64 * 1024
#: Seconds to learn how credentials are to be given: the request that follows takes its own time.
_INTRODUCTION = 10.0
_TRANSIENT = frozenset({408, 425, 500, 502, 503, 504})

#: How ECR, and ECR Public above all, say that a token has expired; others answer with 401.
_EXPIRED = frozenset({400, 403})
_IS_EXPIRED = re.compile(rb"token (?:has |is )?expired|expired token|ExpiredToken", re.IGNORECASE)

_API = "/v2/"

UNASKED = ", which was not asked for; a proxy may do so"

#: How servers answer plain HTTP where they speak HTTPS.
_WANTS_HTTPS = re.compile(rb"HTTPS|SSL|TLS", re.IGNORECASE)


class NotThereError(SourceNotFoundError):
    """Raised for a 404; ``code`` is the registry's, such as ``NAME_UNKNOWN``, or empty."""

    def __init__(self, message: str, code: str, *, hint: str | None = None) -> None:
        self.code = code
        super().__init__(message, hint=hint)


class DeniedError(SourceDeniedError):
    """Raised for a 401 or 403, or for lack of credentials; ``status`` is the HTTP status."""

    def __init__(self, message: str, status: int, *, hint: str | None = None) -> None:
        self.status = status
        super().__init__(message, hint=hint)


class RefusedError(SourceError):
    """Raised for any other refusal; ``status`` is its HTTP status."""

    def __init__(self, message: str, status: int, *, hint: str | None = None) -> None:
        self.status = status
        super().__init__(message, hint=hint)


@dataclass(frozen=True, slots=True)
class Ask:
    """A request.

    Attributes:
        operation: what it is called in events and counts, such as ``GET blob``.
        path: behind the registry's address; quoted already.
        what: how to call what it asks for, in errors.
        repository: whose it is; empty for what concerns the whole registry.
        headers: what it says beside its credentials.
        expected: statuses that are no failure.
    """

    operation: str
    path: str
    what: str
    repository: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    expected: frozenset[int] = frozenset({200})

    @property
    def method(self) -> str:
        """The HTTP method: the operation's first word where that is one."""
        return "HEAD" if self.operation.startswith("HEAD") else "GET"

    @property
    def scope(self) -> str:
        """What a token must be good for."""
        if self.repository:
            return f"repository:{self.repository}:pull"
        return "registry:catalog:*" if "_catalog" in self.path else ""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; its body is None where that was too long. ``links`` are its Link headers."""

    status: int
    headers: Mapping[str, str]
    url: URL
    body: bytes | None
    links: Sequence[str] = ()


class OpenAnswer:
    """An answer whose body is still to be read. It takes one of the registry's turns until it is closed."""

    def __init__(self, response: aiohttp.ClientResponse, turns: CapacityLimiter, key: object) -> None:
        self.response = response
        self._turns = turns
        self._key: object | None = key

    def close(self) -> None:
        """Give back the connection and the turn; may be called again."""
        if self._key is not None:
            self.response.release()
            self._turns.release_on_behalf_of(self._key)
            self._key = None


class Wire:
    """The requests to one registry.

    Args:
        registry: how it is reached.
        logins: makes the login of ECR registries.
        emit: hears of each request that is sent again.
        patience: time limits, and how often that is.
    """

    def __init__(self, registry: SourceRegistry, logins: Logins, emit: Emit, patience: Patience) -> None:
        self.host = canonical_host(registry.host)
        self.patience = patience
        self.requests: Counter[str] = Counter()
        self.emit = emit
        self._plain = registry.plain_http
        self._base = URL(f"{'http' if registry.plain_http else 'https'}://{api_host(self.host)}")
        self._http = Http(registry, self._base, patience)
        self.wait_again = self._http.wait_again
        self._accounts = Accounts(registry, self.host, logins, patience.helper)
        self._authority = Authority(
            self.host, self._accounts, self._http, patience, emit, self.requests, plain=registry.plain_http
        )
        self._turns = CapacityLimiter(registry.connections)
        self._mood = Mood()
        self._first = Lock()
        self._introduced = False
        self._asking = Lock()
        self._api_asked = False
        self._has_account: dict[str, bool] = {}

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    def tries(self, operation: str) -> Tries:
        """Count the tries of one request."""
        return Tries(operation, self.patience, self._mood, self.emit)

    def notice(self, text: str) -> None:
        """Tell the user something."""
        self.emit(Notice(text))

    async def fetch(self, ask: Ask, limit: int, *, once: bool = False) -> Answer:
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
                    body = b"" if ask.method == "HEAD" else await self._body(response, limit)
                    encoding = unknown_encoding_of(response.headers)
                    if body and encoding and not body.lstrip().startswith(b"{"):  # some label what is not compressed
                        raise ManifestError(f"{ask.what} of {self.host} comes compressed with {encoding}{UNASKED}")
                    if body and body.lstrip().startswith(b"<"):
                        raise ManifestError(
                            f"{ask.what} of {self.host} is malformed: the answer is a web page",
                            hint="check the address and the port; a proxy may want you to log in",
                        )
                    links = response.headers.getall("Link", ())
                    return Answer(response.status, response.headers, response.url, body, links)
                finally:
                    opened.close()
            except TransientError as error:
                if once and not (error.throttled or error.unanswered):
                    raise
                await tries.failed(error)
                if once and error.throttled:
                    raise

    async def _body(self, response: aiohttp.ClientResponse, limit: int) -> bytes | None:
        """A whole body, decompressed; None if it is longer than *limit* bytes."""
        body = await read_body(response, limit, self.patience)
        if body and (encoding := encoding_of(response.headers)):
            return await to_thread.run_sync(decompressed, body, encoding, limit)
        return body

    async def open(self, ask: Ask) -> OpenAnswer:
        """Send a request once, and leave its body to be read; a 401 is answered with credentials.

        Raises:
            TransientError: it may succeed the next time.
            SourceError: as ``fetch``.
        """
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

    async def _learn_way(self, ask: Ask) -> None:
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
                opened = await self._send(Ask("ping", _API, "its API"), None)
            except SourceError:
                return  # the request that follows says so
            opened.close()
            response = opened.response
            if response.status == 401 and response.url.origin() == self._base.origin():
                self._authority.introduced(parse_challenges(response.headers.getall("WWW-Authenticate", ())))

    async def _open(self, ask: Ask) -> OpenAnswer:
        authorization = await self._authority.current(ask.repository, ask.scope)
        challenges_left = 2  # one for a token that has expired, or none; one for other needs than its scope told
        while True:
            opened = await self._send(ask, authorization)
            response = opened.response
            if response.status in ask.expected:
                if authorization is None:
                    self._authority.note_open(ask.scope)
                return opened
            try:
                ours = response.url.origin() == self._base.origin()
                body = b"" if ask.method == "HEAD" else await self._body(response, _MAX_ERROR_BODY) or b""
                challenges = parse_challenges(response.headers.getall("WWW-Authenticate", ()))
                expired = response.status in _EXPIRED and authorization is not None and bool(_IS_EXPIRED.search(body))
                if not ours or not challenges_left or not (expired or (response.status == 401 and challenges)):
                    silent = response.status == 401 and not challenges
                    raise self._refusal(ask, response, body, ours=ours, expired=expired, silent=silent)
            finally:
                opened.close()
            challenges_left -= 1
            if expired and not challenges:
                challenges_left = 0
                authorization = await self._authority.expired(ask.repository, ask.scope, authorization)
            else:
                authorization = await self._authority.challenged(challenges, ask.repository, ask.scope, authorization)

    async def _send(self, ask: Ask, authorization: str | None) -> OpenAnswer:
        key = object()
        await self._turns.acquire_on_behalf_of(key)
        try:
            await self._mood.turn()
            self.requests[ask.operation] += 1
            url = URL(f"{self._base}{ask.path}", encoded=True)
            with told_if_late(f"{ask.what} has no answer yet from {self.host}", self.notice):
                response = await self._http.send(ask.method, url, ask.headers, authorization=authorization)
        except BaseException:
            self._turns.release_on_behalf_of(key)
            raise
        return OpenAnswer(response, self._turns, key)

    def _refusal(
        self, ask: Ask, response: aiohttp.ClientResponse, body: bytes, *, ours: bool, expired: bool, silent: bool
    ) -> SourceError:
        """What an answer that is none means.

        Args:
            ask: the request.
            response: the answer.
            body: its body.
            ours: the registry has given it, not somebody that it redirects to.
            expired: it says that the token has expired.
            silent: it wants credentials, and does not say which.
        """
        status, after = response.status, retry_after(response.headers.get("Retry-After"))
        said = first_error(body)
        text = f"{ask.what}: {self.host} answers with status {status}{said.words}"
        if not ours:
            text = f"{ask.what}: {response.url.host}, where {self.host} redirects to, answers with status {status}"
            if status in (400, 401, 403, 409, 410):
                # Addresses of blob stores expire: the registry gives a fresh one.
                return TransientError(text, status=status)
        known = self._authority.is_logged_in(ask.scope)
        kept_back = not known and self._has_account.get(ask.repository, False)
        match status:
            case 429:
                return self._throttle(ask, response, after, said, known or kept_back)
            case 404:
                return NotThereError(
                    f"{self.host} has no {ask.what}{said.words}",
                    said.code,
                    hint="check the name; it may also be hidden from you",
                )
            case 401 | 403:
                wants = ", and does not say what it wants to know" if silent else ""
                advice = "these credentials may not read it" if known else f"log in (docker login {self.host})"
                if kept_back:
                    advice = "it asks for no credentials, so yours are kept back; its operators must mend that"
                return DeniedError(
                    f"{self.host} refuses {ask.what} (status {status}){wants}{said.words}",
                    status,
                    hint=f"log in again (docker login {self.host})" if expired else advice,
                )
            case _ if status in _TRANSIENT:
                return TransientError(text, hint=LATER, after=after, status=status)
            case _ if status >= 400:
                hint = f"log in again (docker login {self.host})" if expired else None
                if status == 400 and self._plain and not said.code and _WANTS_HTTPS.search(body):
                    hint = "it speaks HTTPS: leave out --src-plain-http, or plain_http in the plan"
                return RefusedError(text, status, hint=hint)
            case _:
                return SourceUnavailableError(text, hint="check the address and the port")

    def _throttle(
        self, ask: Ask, response: aiohttp.ClientResponse, after: float | None, said: Said, known: bool
    ) -> TransientError:
        limit = describe_limit(response.headers.get("RateLimit-Limit"))
        used_up = response.headers.get("RateLimit-Remaining", "").partition(";")[0].strip() == "0"
        allows = f"it allows {limit}" if limit else "its rate limit is reached"
        hint = "go on later, or ask its operators for more"
        if not known:
            hint = f"log in (docker login {self.host}): that usually raises the limit; or go on later"
        return TransientError(
            f"{ask.what}: {self.host} takes no more requests for now: {allows}{said.words}",
            hint=hint,
            after=after,
            throttled=True,
            # Nothing left, and no word until when: such windows are hours long.
            final=used_up and after is None,
        )


Kind = Literal["manifests", "blobs", "referrers", "tags"]


def path_of(repository: str, kind: Kind, reference: str) -> str:
    """The path of something in a repository; *reference* is a tag or a digest, or ``list``."""
    return f"/v2/{quote(repository)}/{kind}/{quote(reference, safe=':')}"
