"""Saying who is asking: nothing at first, then what the registry's challenge wants; tokens kept until they expire.

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
from asyncpush.sources.registry.errors import BETWEEN, is_web_page
from asyncpush.sources.registry.http import RegistryHttp, read_document, released
from asyncpush.sources.registry.requests import RequestGate, TransientError
from asyncpush.sources.registry.www_authenticate import Challenge

#: The token specification's own, where an answer does not say.
_DEFAULT_LIFETIME = 60.0
#: A token is renewed so many seconds before it expires, or at a quarter of its life, whichever is less.
_MARGIN = 30.0
#: Tokens run to a few KiB.
_MAX_TOKEN_ANSWER = 256 * 1024

#: How Go prints a time: "2026-11-28 19:00:00.123 +0000 UTC m=+0.1".
_GO_TIME = re.compile(r"^(\S+ \S+) ([+-][0-9]{4}) .*$")

_CLIENT = "asyncpush"
_BASIC: Final = "basic"
_LOGIN_HINT = "log in (docker login {host}), or give credentials: --src-creds, or in a plan"


class LoginRefusedError(SourceDeniedError):
    """Raised where an account is not taken at all, whatever is asked for."""

    def __init__(self, message: str, account: Account, *, hint: str | None = None) -> None:
        self.account = account
        super().__init__(message, hint=hint)


class _TokenDocument(msgspec.Struct):
    token: str | None = None
    access_token: str | None = None
    refresh_token: str | None = None
    # Numbers and times are written in many ways; a token is not worth less for it.
    expires_in: Any = None
    issued_at: Any = None


@dataclass(frozen=True, slots=True)
class _Bearer:
    """Where tokens are to be had."""

    realm: URL
    service: str | None


@dataclass(slots=True)
class _Grant:
    """What is known for one scope: the value of Authorization, whose it is, and when it must be renewed."""

    for_nobody: bool = False
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
        plain: it is spoken to in plain HTTP.
        accounts: where credentials come from.
        http: sends the requests for tokens.
        retry: how often they are tried.
        emit: hears of each new try.
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
        self._gate = RequestGate(retry)
        self._way: _Bearer | Literal["basic"] | None = None
        self._grants: dict[tuple[str, bool], _Grant] = {}
        self._refreshed: dict[str, str] = {}

    async def current(self, repository: str, scope: str, *, nobody: bool = False) -> str | None:
        """The value of Authorization for a request; None where nobody has asked for one yet, or there is none.

        Args:
            repository: whose request it is; empty for one that concerns the whole registry.
            scope: what it needs, such as ``repository:team/app:pull``.
            nobody: do not say who asks, though there are credentials.

        Raises:
            SourceError: no token is to be had.
        """
        grant = self._grant(scope, nobody)
        if grant.open and grant.value is None:
            return None  # what one request wants, others of this scope do not
        if self._way is None or (grant.value is not None and time.monotonic() < grant.renew_at):
            return grant.value
        if self._way == _BASIC and await self._account(grant, repository) is None:
            return None  # another repository wanted credentials; this one may be everybody's
        return await self._renewed(grant, repository, scope, grant.value)

    @property
    def knows_way(self) -> bool:
        """Whether a challenge has told how credentials are to be given."""
        return self._way is not None

    def introduced(self, challenges: tuple[Challenge, ...]) -> None:
        """Take note of how credentials are to be given, before a request needs them; what leads nowhere is ignored."""
        with suppress(SourceError):
            self._way = self._choose(challenges)

    async def challenged(
        self, challenges: tuple[Challenge, ...], repository: str, scope: str, used: str | None, *, nobody: bool = False
    ) -> str | None:
        """What to say instead of *used*, which a 401 has refused.

        Args:
            challenges: what the answer asks for.
            repository: whose request it was; empty for one that concerns the whole registry.
            scope: what it needs, such as ``repository:team/app:pull``.
            used: what it had said.
            nobody: as in ``current``.

        Raises:
            SourceDeniedError: there is nothing else to say.
            SourceError: no token is to be had.
        """
        grant = self._grant(scope, nobody)
        before, self._way = self._way, self._choose(challenges)
        if isinstance(self._way, _Bearer):
            offered = next(challenge.get("scope") for challenge in challenges if challenge.scheme == "bearer")
            # Some name no repository: then what is asked for counts.
            grant.scope = offered if offered and "::" not in offered else grant.scope
        try:
            return await self._renewed(grant, repository, scope, used)
        except SourceError:
            # It leads nowhere: other requests may need none, and learn of it if they do.
            self._way = before
            raise

    def note_open(self, scope: str, *, nobody: bool = False) -> None:
        """Take note that something of *scope* is everybody's."""
        self._grant(scope, nobody).open = True

    async def expired(self, repository: str, scope: str, used: str | None, *, nobody: bool = False) -> str | None:
        """What to say instead of *used*, which has expired; the registry has said so without a challenge.

        Raises:
            SourceDeniedError: there is nothing else to say.
            SourceError: no token is to be had.
        """
        return await self._renewed(self._grant(scope, nobody), repository, scope, used)

    def account(self, scope: str) -> Account | None:
        """Whose credentials stand behind what requests for *scope* say of who is asking; None if it is nobody."""
        grant = self._grants.get((scope, False))
        return grant.account if grant is not None and grant.value is not None else None

    def _grant(self, scope: str, nobody: bool) -> _Grant:
        return self._grants.setdefault((scope, nobody), _Grant(for_nobody=nobody))

    async def _account(self, grant: _Grant, repository: str, *, refresh: bool = False) -> Account | None:
        return None if grant.for_nobody else await self._accounts.find(repository, refresh=refresh)

    def _choose(self, challenges: tuple[Challenge, ...]) -> _Bearer | Literal["basic"]:
        for challenge in challenges:
            if challenge.scheme == "bearer" and (realm := challenge.get("realm")):
                return _Bearer(self._checked(realm), challenge.get("service"))
        if any(challenge.scheme == "basic" for challenge in challenges):
            return _BASIC
        schemes = ", ".join(challenge.scheme[:20] for challenge in challenges[:5]) or "nothing"
        raise SourceDeniedError(f"{self._host} asks for {schemes}; Basic and Bearer with a realm are known")

    def _checked(self, text: str) -> URL:
        try:
            realm = URL(text)
        except ValueError:
            realm = URL()
        if realm.scheme not in ("http", "https") or not realm.host:
            raise SourceError(f"{self._host} names no address to get tokens from", hint="its configuration is wrong")
        if realm.scheme == "http" and not self._plain and not is_loopback(realm.host or ""):
            raise SourceError(
                f"{self._host} wants tokens to be got from {realm.host} in plain HTTP",
                hint="credentials go nowhere in the clear; mend the registry's configuration",
            )
        if is_machine_local(realm.host) and not is_machine_local(URL(f"//{self._host}").host or ""):
            raise SourceError(
                f"{self._host} wants tokens to be got from {realm.host}, which is this machine or its network's own",
                hint="credentials do not go there; check the registry's configuration",
            )
        return realm

    async def _renewed(self, grant: _Grant, repository: str, scope: str, used: str | None) -> str | None:
        """A value other than *used*: got once, however many wait for it, and fail with it."""
        round_before = grant.rounds
        async with grant.lock:
            if grant.value is not None and grant.value != used and time.monotonic() < grant.renew_at:
                return grant.value
            if grant.rounds != round_before and grant.error is not None:
                raise grant.error
            grant.error = None
            try:
                account = await self._account(grant, repository)
                if isinstance(self._way, _Bearer) and (account is None or account.registry_token is None):
                    await self._fetch(grant, self._way, account, repository, scope)
                else:
                    await self._direct(grant, account, repository, used)
            except SourceError as error:
                grant.error, grant.value = error, None
                raise
            finally:
                grant.rounds += 1
            return grant.value

    async def _direct(self, grant: _Grant, account: Account | None, repository: str, used: str | None) -> None:
        """Basic, or a token that the registry itself takes."""
        if account is not None and account.authorization() == used:
            account = await self._accounts.find(repository, refresh=True)
        value = account.authorization() if account else None
        if account is None or value is None:
            raise SourceDeniedError(
                f"{self._host} wants credentials, and there are none for it", hint=_LOGIN_HINT.format(host=self._host)
            )
        if value == used:
            raise LoginRefusedError(
                f"{self._host} does not take {account.label}",
                account,
                hint=f"check user and password; {_LOGIN_HINT.format(host=self._host)}",
            )
        grant.value, grant.renew_at, grant.account = value, float("inf"), account

    async def _fetch(self, grant: _Grant, way: _Bearer, account: Account | None, repository: str, scope: str) -> None:
        try:
            document = await self._request_token(way, account, grant.scope or scope)
        except SourceDeniedError:
            again = await self._account(grant, repository, refresh=True)
            if again == account:
                raise
            account = again
            document = await self._request_token(way, account, grant.scope or scope)
        value = document.token or document.access_token
        if not value or not value.isascii() or not value.isprintable():
            raise SourceError(f"{way.realm.host} gave no token for {self._host}")
        hide(value)
        grant.value, grant.renew_at = f"Bearer {value}", time.monotonic() + _lifetime(document)
        grant.account = account

    async def _request_token(self, way: _Bearer, account: Account | None, scope: str) -> _TokenDocument:
        async def ask() -> _TokenDocument:
            await self._gate.wait_open()
            return await self._ask(way, account, scope)

        try:
            return await RetryLoop("token", self._retry, self._gate, self._emit).run(ask)
        except SourceUnavailableError as error:
            # Not a TransientError: the request that wants the token must not begin these tries again.
            raise SourceUnavailableError(f"no token for {self._host}: {error.message}", hint=error.hint) from error

    async def _ask(self, way: _Bearer, account: Account | None, scope: str) -> _TokenDocument:
        self._requests["token"] += 1
        asked = {"service": way.service, "scope": scope}
        parameters = {name: value for name, value in asked.items() if value}
        headers = {"Accept": "application/json"}
        identity = account.identity_token if account else None
        if identity is not None:
            form = {"grant_type": "refresh_token", "client_id": _CLIENT, **parameters}
            form["refresh_token"] = self._refreshed.get(identity, identity)
            answer = await self._http.send("POST", way.realm, headers, form=form)
        else:
            basic = account.basic() if account else None
            answer = await self._http.send("GET", way.realm.update_query(parameters), headers, authorization=basic)
        async with released(answer):
            body = await read_document(answer, _MAX_TOKEN_ANSWER, self._retry)
            if is_web_page(body or b"") and (answer.status == 403 or answer.status < 400):
                text = f"{way.realm.host}, which gives them, answers with status {answer.status} and a web page"
                raise SourceUnavailableError(text, hint=BETWEEN)
            if answer.status != 200:
                raise self._refusal(way, answer.status, answer.headers, account)
        try:
            document = msgspec.json.decode(body or b"", type=_TokenDocument)
        except (msgspec.DecodeError, UnicodeDecodeError):
            # Neither the answer nor the decoder's words about it: they may hold a token.
            raise SourceError(f"{way.realm.host} gave no token for {self._host} that can be read") from None
        if identity is not None and document.refresh_token:
            self._refreshed[identity] = document.refresh_token
            hide(document.refresh_token)
        return document

    def _refusal(self, way: _Bearer, status: int, headers: Mapping[str, str], account: Account | None) -> SourceError:
        where = f"{way.realm.host}, which gives tokens for {self._host},"
        if status == 429 or status >= 500:
            throttled = status == 429
            return TransientError(
                f"{where} answers with status {status}",
                after=retry_after(headers.get("Retry-After")),
                throttled=throttled,
            )
        hint = _LOGIN_HINT.format(host=self._host)
        if status in (400, 401, 403) and account is not None:
            return LoginRefusedError(
                f"{where} refuses {account.label} (status {status})", account, hint=f"check user and password; {hint}"
            )
        if status in (400, 401, 403):
            return SourceDeniedError(f"{where} refuses (status {status})", hint=hint)
        return SourceUnavailableError(f"{where} answers with status {status}")


def _lifetime(document: _TokenDocument) -> float:
    """Seconds until a token is to be renewed."""
    whole = _seconds(document.expires_in) or _DEFAULT_LIFETIME
    left = whole
    if isinstance(document.issued_at, str):
        try:
            # Tokens can come from a cache, and be old already; an age beyond their life means that the clocks differ.
            issued = datetime.fromisoformat(_GO_TIME.sub(r"\1\2", document.issued_at.strip()))
            age = time.time() - issued.timestamp()
        except (ValueError, OverflowError):
            age = 0.0
        left = whole - age if 0 < age < whole else whole
    return left - min(_MARGIN, left / 4)


def _seconds(value: object) -> float | None:
    """A time in seconds, which some write as text; None if it is none."""
    try:
        seconds = float(value) if isinstance(value, int | float | str) else 0.0
    except (OverflowError, ValueError):
        return None
    return seconds if 0 < seconds < float("inf") else None
