"""Authentication: SigV4 signatures for the JSON API, tokens for ``/v2/``, and the principal that a request names."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Protocol

from aiohttp import web

from asyncpush.emulator.auth.credentials import KnownCredentials
from asyncpush.emulator.auth.sigv4 import SignedRequest, check_claim, verify
from asyncpush.emulator.auth.tokens import InvalidTokenError, Tokens
from asyncpush.emulator.registry import DEFAULT_ACCOUNT, DEFAULT_REGION

#: Bodies of more bytes than this are hashed in a thread.
_INLINE = 64 * 1024

#: The services that a credential may be scoped to, by the service of a request's target.
_SERVICES = {"AmazonEC2ContainerRegistry_V20150921": ("ecr",), "SpencerFrontendService": ("ecr-public",)}

# Credential=KEY/YYYYMMDD/REGION/SERVICE/aws4_request. The region becomes part of a path: only these characters.
_CREDENTIAL = re.compile(
    r"Credential=(?P<key>[^/,\s]{1,256})/[0-9]{8}/(?P<region>[a-z0-9][a-z0-9-]{0,39})/[a-z0-9-]{1,40}/aws4_request"
)

#: Verifies a signature in a worker thread.
InThread = Callable[[Callable[[], KnownCredentials]], Awaitable[KnownCredentials]]


@dataclass(frozen=True, slots=True)
class Principal:
    """Who sends a request, as its signature claims.

    Attributes:
        account: 12 digits.
        region: such as ``eu-west-1``.
        access_key_id: empty if the request has no readable credential.
    """

    account: str = DEFAULT_ACCOUNT
    region: str = DEFAULT_REGION
    access_key_id: str = ""


class Owned(Protocol):
    """A key that belongs to an account."""

    @property
    def account(self) -> str:
        """12 digits."""
        ...


def read_principal(headers: Mapping[str, str], keys: Mapping[str, Owned]) -> Principal:
    """Read a request's Authorization header (SigV4, or SigV4's form with another algorithm).

    Args:
        headers: the request's headers; names in any case if the mapping knows that.
        keys: the keys that are known, by access key id.
    """
    match = _CREDENTIAL.search(headers.get("Authorization", ""))
    if match is None:
        return Principal()
    owned = keys.get(match["key"])
    return Principal(owned.account if owned else DEFAULT_ACCOUNT, match["region"], match["key"])


class Authentication:
    """Verifies who sent a request.

    Args:
        keys: the keys that requests may be signed with, by access key id; None verifies nothing, at ``/v2/`` either.
        tokens: makes and checks the tokens of ``/v2/``.
        in_thread: where long bodies are hashed.
    """

    def __init__(self, keys: Mapping[str, KnownCredentials] | None, tokens: Tokens, in_thread: InThread) -> None:
        self._keys = keys
        self._tokens = tokens
        self._in_thread = in_thread

    def check_claim(self, request: web.BaseRequest) -> None:
        """Check the signature that a request to the JSON API claims, by its headers, before its body is received.

        Raises:
            AwsError: it claims no signature, or one that can't be valid.
        """
        if self._keys is not None:
            signed, services = _signed(request)
            check_claim(signed, keys=self._keys, services=services, now=datetime.now(UTC))

    async def check_signature(self, request: web.BaseRequest, body: bytearray) -> KnownCredentials | None:
        """Verify the signature of a request to the JSON API.

        Returns:
            The key that it was signed with; None where nothing is verified.

        Raises:
            AwsError: the signature is missing or wrong.
        """
        if self._keys is None:
            return None
        signed, services = _signed(request)
        work = partial(verify, signed, body, keys=self._keys, services=services, now=datetime.now(UTC))
        return await self._in_thread(work) if len(body) > _INLINE else work()

    def check_token(self, request: web.BaseRequest) -> None:
        """Check the token of a request to ``/v2/``.

        Raises:
            InvalidTokenError: it is missing, malformed, or was not issued here.
            ExpiredTokenError: it has expired.
        """
        if self._keys is None:
            return
        scheme, _, text = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "basic":
            raise InvalidTokenError
        self._tokens.check(text.strip())


def _signed(request: web.BaseRequest) -> tuple[SignedRequest, tuple[str, ...]]:
    """A request as its signature covers it, and the services that its credential may be scoped to."""
    path, _, query = request.raw_path.partition("?")
    services = _SERVICES.get(request.headers.get("X-Amz-Target", "").rpartition(".")[0], ("ecr", "ecr-public"))
    return SignedRequest(request.method, path, query, request.raw_headers), services
