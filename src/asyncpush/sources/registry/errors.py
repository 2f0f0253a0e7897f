"""A registry's refusals, as errors that say what to do.

Source: OCI distribution-spec 1.1, "error codes".
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from asyncpush.errors import SourceDeniedError, SourceError, SourceLimitedError, SourceNotFoundError
from asyncpush.http.retry import retry_after
from asyncpush.sources.registry.http import LATER
from asyncpush.sources.registry.pull_limit import (
    PullLimit,
    describe_limit,
    is_used_up,
    pause_until_renewed,
    until_text,
)
from asyncpush.sources.registry.requests import Request, TransientError

#: The statuses of failures that may pass.
TRANSIENT = frozenset({408, 425, 500, 502, 503, 504})

#: What servers that speak HTTPS say to plain HTTP.
_WANTS_HTTPS = re.compile(rb"HTTPS|SSL|TLS", re.IGNORECASE)

#: What may precede the first letter of a text: byte order marks and whitespace.
_BEFORE_TEXT = b"\xef\xbb\xbf\xff\xfe\0 \t\r\n"
#: How errors of blob stores begin, which are XML but not web pages.
_STORE_ERROR = re.compile(rb"<\?xml[^>]*>\s*<Error\b|<Error\b")

#: The hint for responses that are web pages.
BETWEEN = (
    "the response is not from the registry, but from something in front of it: a proxy, a firewall, a login page; find"
    " out from where the registry can be reached, and check HTTPS_PROXY and NO_PROXY"
)
#: Letters of a registry's own words that are shown.
_SHOWN = 300
_NO_REGISTRY = "check the name and the address: it may not be a registry's"
#: The hint for a missing part of an image.
INCOMPLETE = "the image is incomplete at its source: push it there again"


class NotThereError(SourceNotFoundError):
    """Raised for a 404; ``code`` is the registry's error code, such as ``NAME_UNKNOWN``, or empty."""

    def __init__(self, message: str, code: str, *, hint: str | None = None) -> None:
        self.code = code
        super().__init__(message, hint=hint)


class DeniedError(SourceDeniedError):
    """Raised for a 401 or 403; ``status`` is the HTTP status."""

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
class _RegistryError:
    """The first error in the body of a refusal; empty if it names none."""

    code: str = ""
    message: str = ""

    @property
    def words(self) -> str:
        """The registry's own words, to follow ours."""
        text = " ".join(f"{self.code} {self.message}".split())
        text = "".join(letter for letter in text if letter.isprintable())[:_SHOWN]
        return f": {text}" if text else ""


def _first_error(body: bytes) -> _RegistryError:
    try:
        errors = msgspec.json.decode(body, type=_Errors).errors if body else None
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _RegistryError(message="" if is_web_page(body) else body[:_SHOWN].decode(errors="replace"))
    return _RegistryError(errors[0].code, errors[0].message) if errors else _RegistryError()


def is_web_page(body: bytes) -> bool:
    """Whether *body* is a web page and not a response of a registry."""
    text = body[:1024].lstrip(_BEFORE_TEXT)
    return text.startswith(b"<") and not _STORE_ERROR.match(text)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A response that refuses a request, and its circumstances.

    Attributes:
        request: the request.
        host: the registry.
        status: the response's HTTP status.
        headers: the response's headers.
        body: the beginning of its body, at least.
        elsewhere: the host that has sent it after a redirect; None if that is the registry.
        plain_http: whether the request was sent in plain HTTP.
        login: the account whose credentials the request carried; empty if it was anonymous.
        credentials_unused: whether it was anonymous although there are credentials, since none were asked for.
        expired: whether the response says that the token has expired.
        lacks_challenge: whether it is a 401 without a challenge.
        pull_limit: the limit on pulls that earlier responses have told.
        patience: the seconds that the request may wait if it was throttled.
    """

    request: Request
    host: str
    status: int
    headers: Mapping[str, str]
    body: bytes
    elsewhere: str | None
    plain_http: bool
    login: str
    credentials_unused: bool
    expired: bool
    lacks_challenge: bool
    pull_limit: PullLimit | None
    patience: float

    def as_error(self) -> SourceError:
        """The error to raise."""
        request, host, status, reported = self.request, self.host, self.status, _first_error(self.body)
        # A 401 with a challenge is from the registry, or from its own server in front.
        page = is_web_page(self.body) and (status != 401 or self.lacks_challenge)
        words = " and a web page" if page else reported.words
        text = f"{request.what}: {host} answers with status {status}{words}"
        after = retry_after(self.headers.get("Retry-After"))
        if self.elsewhere is not None:
            text = f"{request.what}: {self.elsewhere}, where {host} redirects to, answers with status {status}"
            if status in (400, 401, 403, 409, 410):
                # Addresses in blob stores expire; the registry returns a new one.
                return TransientError(text, status=status)
        match status:
            case 429:
                return self._throttled(reported, after)
            case 404:
                return NotThereError(
                    f"{host} has no {request.what}{reported.words}", reported.code, hint=self._why_missing(page)
                )
            case 401 | 403:
                suffix = " without a challenge" if self.lacks_challenge and not page else ""
                message = text if page else f"{host} refuses {request.what} (status {status}){suffix}{reported.words}"
                return DeniedError(message, status, hint=BETWEEN if page else self._why_denied())
            case _ if status in TRANSIENT:
                return TransientError(text, hint=LATER, after=after, status=status)
            case _ if status >= 400:
                hint = f"log in again (docker login {host})" if self.expired else BETWEEN if page else None
                if status == 400 and self.plain_http and not reported.code and _WANTS_HTTPS.search(self.body):
                    hint = "the registry speaks HTTPS: remove --src-plain-http, or plain_http in the plan"
                return RefusedError(text, status, hint=hint)
            case _:
                return RefusedError(text, status, hint=BETWEEN if page else "check the address and the port")

    def _why_missing(self, page: bool) -> str:
        if self.request.of_image:
            return INCOMPLETE
        return _NO_REGISTRY if page else "check the name; you may also lack access to it"

    def _why_denied(self) -> str:
        if self.expired:
            return f"log in again (docker login {self.host})"
        if self.credentials_unused:
            return "the registry asks for no credentials, so yours were not sent; its operators must fix that"
        return f"{self.login} has no access to it" if self.login else f"log in (docker login {self.host})"

    def _throttled(self, reported: _RegistryError, after: float | None) -> SourceError:
        limit = describe_limit(self.headers)
        allows = f"it allows {limit}" if limit else "its rate limit is reached"
        hint = f"{LATER}, or ask the registry's operators for a higher limit"
        if not (self.login or self.credentials_unused):
            hint = f"log in (docker login {self.host}), which usually raises the limit; or {LATER}"
        pause = pause_until_renewed(self.headers, after, self.pull_limit)
        if pause is not None and pause.seconds > self.patience:
            until = time.time() + pause.seconds
            return SourceLimitedError(
                f"{self.request.what}: {self.host} accepts no more requests until "
                f"{until_text(until, is_guess=pause.is_guess)}: {allows}{reported.words}",
                self.host,
                until,
                is_guess=pause.is_guess,
                hint=hint,
            )
        return TransientError(
            f"{self.request.what}: {self.host} accepts no more requests for now: {allows}{reported.words}",
            hint=hint,
            after=pause.seconds if pause else None,
            throttled=True,
            # It may last for hours.
            final=pause is None and is_used_up(self.headers, self.pull_limit),
        )
