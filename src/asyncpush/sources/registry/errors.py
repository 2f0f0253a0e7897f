"""What a registry's refusal means, as an error that says what to do.

Sources: OCI distribution-spec 1.1, "error codes"; Docker Hub's rate limit headers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from asyncpush.errors import SourceDeniedError, SourceError, SourceNotFoundError
from asyncpush.http.retry import retry_after
from asyncpush.sources.registry.http import LATER
from asyncpush.sources.registry.requests import Request, TransientError

_TRANSIENT = frozenset({408, 425, 500, 502, 503, 504})

#: How servers answer plain HTTP where they speak HTTPS.
_WANTS_HTTPS = re.compile(rb"HTTPS|SSL|TLS", re.IGNORECASE)

#: What RateLimit-Limit says: a number of requests, and the seconds that it is for.
_RATE_LIMIT = re.compile(r"([0-9]+)(?:\s*;\s*w=([0-9]+))?")

#: What may stand before the first letter of a text: marks of its encoding, and blanks.
_BEFORE_TEXT = b"\xef\xbb\xbf\xff\xfe\0 \t\r\n"
#: How blob stores begin their errors, which are XML and no web page.
_STORE_ERROR = re.compile(rb"<\?xml[^>]*>\s*<Error\b|<Error\b")

#: What to do about answers that are web pages.
BETWEEN = (
    "what has answered is not the registry, but something before it: a proxy, a firewall, a login page; see from where"
    " it can be reached, and check HTTPS_PROXY and NO_PROXY"
)
_NO_REGISTRY = "check the name, and the address: it may not be a registry's"
#: What to do about a part of an image that is not where the image is.
INCOMPLETE = "the image is incomplete at its source: push it there again"


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


class _Error(msgspec.Struct):
    code: str = ""
    message: str = ""


class _Errors(msgspec.Struct):
    errors: list[_Error] | None = None


@dataclass(frozen=True, slots=True)
class _Said:
    """The first error of a refusal; empty where it names none."""

    code: str = ""
    message: str = ""

    @property
    def words(self) -> str:
        """What the registry says, to stand behind our own words."""
        text = " ".join(f"{self.code} {self.message}".split())
        text = "".join(letter for letter in text if letter.isprintable())[:300]
        return f": {text}" if text else ""


def _first_error(body: bytes) -> _Said:
    try:
        errors = msgspec.json.decode(body, type=_Errors).errors if body else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Said()
    return _Said(errors[0].code, errors[0].message) if errors else _Said()


def is_web_page(body: bytes) -> bool:
    """Whether *body* is for people to read, and not what a registry has to say."""
    text = body[:1024].lstrip(_BEFORE_TEXT)
    return text.startswith(b"<") and not _STORE_ERROR.match(text)


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that does not give what was asked for, and what is known of it.

    Attributes:
        ask: the request.
        host: the registry.
        status: the answer's HTTP status.
        headers: the answer's.
        body: its beginning, at least.
        elsewhere: the host that has given it, where the registry has redirected there; None if that is the registry.
        plain_http: the request went in plain HTTP.
        login: whose credentials the request carried; empty if it did not say who asks.
        kept_back: it did not, though there are credentials: nobody has asked for them.
        expired: the answer says that the token has expired.
        silent: it wants credentials, and does not say which.
    """

    ask: Request
    host: str
    status: int
    headers: Mapping[str, str]
    body: bytes
    elsewhere: str | None
    plain_http: bool
    login: str
    kept_back: bool
    expired: bool
    silent: bool

    def as_error(self) -> SourceError:
        """What to raise."""
        ask, host, status, said = self.ask, self.host, self.status, _first_error(self.body)
        # What asks for a login as registries do is one, or its own server in front.
        page = is_web_page(self.body) and (status != 401 or self.silent)
        words = " and a web page" if page else said.words
        text = f"{ask.what}: {host} answers with status {status}{words}"
        after = retry_after(self.headers.get("Retry-After"))
        if self.elsewhere is not None:
            text = f"{ask.what}: {self.elsewhere}, where {host} redirects to, answers with status {status}"
            if status in (400, 401, 403, 409, 410):
                # Addresses of blob stores expire: the registry gives a fresh one.
                return TransientError(text, status=status)
        match status:
            case 429:
                return self._throttled(said, after)
            case 404:
                return NotThereError(f"{host} has no {ask.what}{said.words}", said.code, hint=self._why_missing(page))
            case 401 | 403:
                wants = ", and does not say what it wants to know" if self.silent and not page else ""
                message = text if page else f"{host} refuses {ask.what} (status {status}){wants}{said.words}"
                return DeniedError(message, status, hint=BETWEEN if page else self._why_denied())
            case _ if status in _TRANSIENT:
                return TransientError(text, hint=LATER, after=after, status=status)
            case _ if status >= 400:
                hint = f"log in again (docker login {host})" if self.expired else BETWEEN if page else None
                if status == 400 and self.plain_http and not said.code and _WANTS_HTTPS.search(self.body):
                    hint = "it speaks HTTPS: leave out --src-plain-http, or plain_http in the plan"
                return RefusedError(text, status, hint=hint)
            case _:
                return RefusedError(text, status, hint=BETWEEN if page else "check the address and the port")

    def _why_missing(self, page: bool) -> str:
        if self.ask.of_image:
            return INCOMPLETE
        return _NO_REGISTRY if page else "check the name; it may also be hidden from you"

    def _why_denied(self) -> str:
        if self.expired:
            return f"log in again (docker login {self.host})"
        if self.kept_back:
            return "it asks for no credentials, so yours are kept back; its operators must mend that"
        return f"{self.login} may not read it" if self.login else f"log in (docker login {self.host})"

    def _throttled(self, said: _Said, after: float | None) -> TransientError:
        limit = _describe_limit(self.headers.get("RateLimit-Limit"))
        used_up = self.headers.get("RateLimit-Remaining", "").partition(";")[0].strip() == "0"
        allows = f"it allows {limit}" if limit else "its rate limit is reached"
        hint = "go on later, or ask its operators for more"
        if not (self.login or self.kept_back):
            hint = f"log in (docker login {self.host}): that usually raises the limit; or go on later"
        return TransientError(
            f"{self.ask.what}: {self.host} takes no more requests for now: {allows}{said.words}",
            hint=hint,
            after=after,
            throttled=True,
            # Nothing left, and no word until when: such windows are hours long.
            final=used_up and after is None,
        )


def _describe_limit(value: str | None) -> str | None:
    """What RateLimit-Limit says, in words: ``100;w=21600`` is 100 requests in 6 hours; None if it says nothing."""
    match = _RATE_LIMIT.match(value.strip()) if value else None
    if match is None:
        return None
    if match[2] is None:
        return f"{match[1]} requests"
    seconds = int(match[2])
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{match[1]} requests in {seconds // size} {unit}"
    return f"{match[1]} requests in {seconds} seconds"
