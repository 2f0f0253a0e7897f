"""Authorization at a registry: none at first, then what the registry's challenge asks for; tokens are cached.

Sources: RFC 7617 (Basic), RFC 6750 (Bearer), the distribution project's token and OAuth2 specifications.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal

import msgspec
from anyio import Lock
from yarl import URL

from asyncpush.errors import SourceDeniedError, SourceError, SourceUnavailableError
from asyncpush.events import Emit
from asyncpush.http.retry import RetryLoop, retry_after
from asyncpush.http.session import is_loopback, is_machine_local
from asyncpush.redaction import hide
from asyncpush.settings import RetryPolicy
from asyncpush.sources.registry.credentials import CredentialStore
from asyncpush.sources.registry.docker_config import Account
from asyncpush.sources.registry.errors import BETWEEN, TRANSIENT, is_web_page
from asyncpush.sources.registry.http import RegistryHttp, read_document, released
from asyncpush.sources.registry.requests import RequestGate, TransientError
from asyncpush.sources.registry.www_authenticate import Challenge

#: Seconds that a token is valid where the response does not say; the token specification's default.
_DEFAULT_LIFETIME = 60.0
#: Seconds before its expiry that a token is renewed; a quarter of its lifetime if that is less.
_MARGIN = 30.0
#: Bytes of a token response; tokens have a few KiB.
_MAX_TOKEN_ANSWER = 256 * 1024

#: How Go prints a time: "2026-11-28 19:00:00.123 +0000 UTC m=+0.1".
_GO_TIME = re.compile(r"^(\S+ \S+) ([+-][0-9]{4}) .*$")

_CLIENT = "asyncpush"
_BASIC: Final = "basic"
_LOGIN_HINT = "log in (docker login {host}), or give credentials: --src-creds, or in a plan"


class LoginRefusedError(SourceDeniedError):
    """Raised when an account is refused altogether, whatever was requested."""

    def __init__(self, message: str, account: Account, *, hint: str | None = None) -> None:
        self.account = account
        super().__init__(message, hint=hint)


class _TokenDocument(msgspec.Struct):
    token: str | None = None
    access_token: str | None = None
    refresh_token: str | None = None
    # Servers write numbers and times in many ways; the token is valid nonetheless.
    expires_in: Any = None
    issued_at: Any = None


@dataclass(frozen=True, slots=True)
class _Bearer:
    """The server that issues tokens."""

    realm: URL
    service: str | None


@dataclass(slots=True)
class _Authorization:
    """What is known for one scope: the value of Authorization, whose it is, and when to renew it."""

    is_anonymous: bool = False
    lock: Lock = field(default_factory=Lock)
    scope: str | None = None
    value: str | None = field(default=None, repr=False)
    account: Account | None = None
    open: bool = False
    renew_at: float = 0.0
    rounds: int = 0
    error: SourceError | None = None


class TokenAuth:
    """Gives each request to one registry its Authorization.

    Args:
        host: the registry, as users write it.
        plain: whether it is reached in plain HTTP.
        accounts: finds the credentials.
        http: sends the requests for tokens.
        retry: when they are sent again.
        emit: receives each retry.
        requests: counts them.
    """

    def __init__(
        self,
        host: str,
        accounts: CredentialStore,
        http: RegistryHttp,
        retry: RetryPolicy,
        emit: Emit,
        requests: Counter[str],
        *,
        plain: bool,
    ) -> None:
        self._host = host
        self._plain = plain
        self._accounts = accounts
        self._http = http
        self._retry = retry
        self._emit = emit
        self._requests = requests
        self._gate = RequestGate(retry, host)
        self._scheme: _Bearer | Literal["basic"] | None = None
        self._authorizations: dict[tuple[str, bool], _Authorization] = {}
        self._refreshed: dict[str, str] = {}

    async def authorize(self, repository: str, scope: str, *, anonymous: bool = False) -> str | None:
        """The value of Authorization for a request; None as long as none was asked for, or if there is none.

        Args:
            repository: the request's repository; empty for a request about the whole registry.
            scope: the scope that it needs, such as ``repository:team/app:pull``.
            anonymous: use no credentials, even if there are some.

        Raises:
            SourceError: no token can be obtained.
        """
        state = self._authorization_for(scope, anonymous)
        if state.open and state.value is None:
            return None  # this scope is public, even though another request was challenged
        if self._scheme is None or (state.value is not None and time.monotonic() < state.renew_at):
            return state.value
        if self._scheme == _BASIC and await self._account(state, repository) is None:
            return None  # another repository needed credentials; this one may be public
        return await self._renew(state, repository, scope, state.value)

    @property
    def knows_scheme(self) -> bool:
        """Whether a challenge has named the authentication scheme."""
        return self._scheme is not None

    def note_challenges(self, challenges: tuple[Challenge, ...]) -> None:
        """Note the authentication scheme before a request needs it; unusable challenges are ignored."""
        with suppress(SourceError):
            self._scheme = self._choose(challenges)

    async def answer_challenge(
        self,
        challenges: tuple[Challenge, ...],
        repository: str,
        scope: str,
        previous: str | None,
        *,
        anonymous: bool = False,
    ) -> str | None:
        """The value of Authorization to use after a 401 has refused *previous*.

        Args:
            challenges: those of the response.
            repository: the request's repository; empty for a request about the whole registry.
            scope: the scope that it needs, such as ``repository:team/app:pull``.
            previous: the value that it had.
            anonymous: as in ``authorize``.

        Raises:
            SourceDeniedError: there are no other credentials.
            SourceError: no token can be obtained.
        """
        state = self._authorization_for(scope, anonymous)
        before, self._scheme = self._scheme, self._choose(challenges)
        if isinstance(self._scheme, _Bearer):
            offered = next(challenge.get("scope") for challenge in challenges if challenge.scheme == "bearer")
            # Some registries offer a scope without a repository; then the scope of the request counts.
            state.scope = offered if offered and "::" not in offered else state.scope
        try:
            return await self._renew(state, repository, scope, previous)
        except SourceError:
            # The challenge is unusable: other requests may need no credentials, or raise the same error.
            self._scheme = before
            raise

    def note_public(self, scope: str, *, anonymous: bool = False) -> None:
        """Note that *scope* is public."""
        self._authorization_for(scope, anonymous).open = True

    async def replace_expired(
        self, repository: str, scope: str, previous: str | None, *, anonymous: bool = False
    ) -> str | None:
        """The value of Authorization to use after *previous* has expired; the registry has sent no challenge.

        Raises:
            SourceDeniedError: there are no other credentials.
            SourceError: no token can be obtained.
        """
        return await self._renew(self._authorization_for(scope, anonymous), repository, scope, previous)

    def account(self, scope: str) -> Account | None:
        """The account that authorizes requests for *scope*; None if they are anonymous."""
        state = self._authorizations.get((scope, False))
        return state.account if state is not None and state.value is not None else None

    def _authorization_for(self, scope: str, anonymous: bool) -> _Authorization:
        return self._authorizations.setdefault((scope, anonymous), _Authorization(is_anonymous=anonymous))

    async def _account(self, state: _Authorization, repository: str, *, refresh: bool = False) -> Account | None:
        return None if state.is_anonymous else await self._accounts.find(repository, refresh=refresh)

    def _choose(self, challenges: tuple[Challenge, ...]) -> _Bearer | Literal["basic"]:
        for challenge in challenges:
            if challenge.scheme == "bearer" and (realm := challenge.get("realm")):
                return _Bearer(self._checked_realm(realm), challenge.get("service"))
        if any(challenge.scheme == "basic" for challenge in challenges):
            return _BASIC
        schemes = ", ".join(challenge.scheme[:20] for challenge in challenges[:5]) or "nothing"
        raise SourceDeniedError(f"{self._host} asks for {schemes}; only Basic and Bearer with a realm are supported")

    def _checked_realm(self, text: str) -> URL:
        try:
            realm = URL(text)
        except ValueError:
            realm = URL()
        if realm.scheme not in ("http", "https") or not realm.host:
            raise SourceError(f"{self._host} names no valid address for tokens", hint="its configuration is wrong")
        if realm.scheme == "http" and not self._plain and not is_loopback(realm.host or ""):
            raise SourceError(
                f"{self._host} sends clients to {realm.host} for tokens in plain HTTP",
                hint="credentials are never sent in the clear; fix the registry's configuration",
            )
        if is_machine_local(realm.host) and not is_machine_local(URL(f"//{self._host}").host or ""):
            raise SourceError(
                f"{self._host} sends clients to {realm.host} for tokens, which is this machine or on its local network",
                hint="credentials are not sent there; check the registry's configuration",
            )
        return realm

    async def _renew(self, state: _Authorization, repository: str, scope: str, previous: str | None) -> str | None:
        """A value other than *previous*; concurrent requests wait for the same one, and fail together."""
        rounds_before = state.rounds
        async with state.lock:
            if state.value is not None and state.value != previous and time.monotonic() < state.renew_at:
                return state.value
            if state.rounds != rounds_before and state.error is not None:
                raise state.error
            state.error = None
            try:
                account = await self._account(state, repository)
                if isinstance(self._scheme, _Bearer) and (account is None or account.registry_token is None):
                    await self._fetch_token(state, self._scheme, account, repository, scope)
                else:
                    await self._use_account(state, account, repository, previous)
            except SourceError as error:
                state.error, state.value = error, None
                raise
            finally:
                state.rounds += 1
            return state.value

    async def _use_account(
        self, state: _Authorization, account: Account | None, repository: str, previous: str | None
    ) -> None:
        """Use Basic, or a token that the registry itself accepts."""
        if account is not None and account.authorization() == previous:
            account = await self._accounts.find(repository, refresh=True)
        value = account.authorization() if account else None
        if account is None or value is None:
            raise SourceDeniedError(
                f"{self._host} requires credentials, and there are none for it",
                hint=_LOGIN_HINT.format(host=self._host),
            )
        if value == previous:
            raise LoginRefusedError(
                f"{self._host} refuses {account.label}",
                account,
                hint=f"check user and password; {_LOGIN_HINT.format(host=self._host)}",
            )
        state.value, state.renew_at, state.account = value, float("inf"), account

    async def _fetch_token(
        self, state: _Authorization, scheme: _Bearer, account: Account | None, repository: str, scope: str
    ) -> None:
        try:
            document = await self._request_token(scheme, account, state.scope or scope)
        except SourceDeniedError:
            renewed = await self._account(state, repository, refresh=True)
            if renewed == account:
                raise
            account = renewed
            document = await self._request_token(scheme, account, state.scope or scope)
        value = document.token or document.access_token
        if not value or not value.isascii() or not value.isprintable():
            raise SourceError(f"{scheme.realm.host} returned no token for {self._host}")
        hide(value)
        state.value, state.renew_at = f"Bearer {value}", time.monotonic() + _lifetime(document)
        state.account = account

    async def _request_token(self, scheme: _Bearer, account: Account | None, scope: str) -> _TokenDocument:
        async def request() -> _TokenDocument:
            await self._gate.wait_open()
            return await self._send_token_request(scheme, account, scope)

        try:
            return await RetryLoop("token", self._retry, self._gate, self._emit).run(request)
        except SourceUnavailableError as error:
            # Not a TransientError: the request that wants the token must not begin these tries again.
            raise SourceUnavailableError(f"no token for {self._host}: {error.message}", hint=error.hint) from error

    async def _send_token_request(self, scheme: _Bearer, account: Account | None, scope: str) -> _TokenDocument:
        self._requests["token"] += 1
        parameters = {name: value for name, value in (("service", scheme.service), ("scope", scope)) if value}
        headers = {"Accept": "application/json"}
        identity = account.identity_token if account else None
        if identity is not None:
            form = {"grant_type": "refresh_token", "client_id": _CLIENT, **parameters}
            form["refresh_token"] = self._refreshed.get(identity, identity)
            response = await self._http.send("POST", scheme.realm, headers, form=form)
        else:
            basic = account.basic() if account else None
            response = await self._http.send("GET", scheme.realm.update_query(parameters), headers, authorization=basic)
        async with released(response):
            body = await read_document(response, _MAX_TOKEN_ANSWER, self._retry)
            if is_web_page(body or b"") and (response.status == 403 or response.status < 400):
                text = f"{scheme.realm.host}, which issues them, answers with status {response.status} and a web page"
                raise SourceUnavailableError(text, hint=BETWEEN)
            if response.status != 200:
                raise self._refusal(scheme, response.status, response.headers, account)
        try:
            document = msgspec.json.decode(body or b"", type=_TokenDocument)
        except (msgspec.DecodeError, UnicodeDecodeError):
            # Neither the response nor the decoder's message is shown: they may hold a token.
            raise SourceError(f"{scheme.realm.host} returned no readable token for {self._host}") from None
        if identity is not None and document.refresh_token:
            self._refreshed[identity] = document.refresh_token
            hide(document.refresh_token)
        return document

    def _refusal(
        self, scheme: _Bearer, status: int, headers: Mapping[str, str], account: Account | None
    ) -> SourceError:
        server = f"{scheme.realm.host}, which issues tokens for {self._host},"
        if status == 429 or status in TRANSIENT or status >= 500:
            throttled = status == 429
            return TransientError(
                f"{server} answers with status {status}",
                after=retry_after(headers.get("Retry-After")),
                throttled=throttled,
            )
        hint = _LOGIN_HINT.format(host=self._host)
        if status in (400, 401, 403) and account is not None:
            return LoginRefusedError(
                f"{server} refuses {account.label} (status {status})", account, hint=f"check user and password; {hint}"
            )
        if status in (400, 401, 403):
            return SourceDeniedError(f"{server} refuses (status {status})", hint=hint)
        return SourceUnavailableError(f"{server} answers with status {status}")


def _lifetime(document: _TokenDocument) -> float:
    """Seconds until a token must be renewed."""
    lifetime = _seconds(document.expires_in) or _DEFAULT_LIFETIME
    remaining = lifetime
    if isinstance(document.issued_at, str):
        try:
            # Cached tokens can be old already; an age beyond their lifetime means that the clocks differ.
            issued = datetime.fromisoformat(_GO_TIME.sub(r"\1\2", document.issued_at.strip()))
            age = time.time() - issued.timestamp()
        except (ValueError, OverflowError):
            age = 0.0
        remaining = lifetime - age if 0 < age < lifetime else lifetime
    return remaining - min(_MARGIN, remaining / 4)


def _seconds(value: object) -> float | None:
    """A time in seconds, which some servers write as text; None if it is malformed."""
    try:
        seconds = float(value) if isinstance(value, int | float | str) else 0.0
    except (OverflowError, ValueError):
        return None
    return seconds if 0 < seconds < float("inf") else None
