"""The tokens of ``/v2/``: GetAuthorizationToken issues them, and each is authenticated by an HMAC."""

from __future__ import annotations

import binascii
import hmac
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec
import pybase64

from asyncpush import open_files
from asyncpush.errors import UsageError

#: The user of every token (ECR user guide, private registry authentication).
USER = "AWS"

#: Seconds for which ECR's tokens are valid.
LIFETIME = 12 * 3600.0

_SECRET_NAME = "token-secret"  # noqa: S105 - a file's name
_SECRET_BYTES = 32


class InvalidTokenError(Exception):
    """Raised when credentials for ``/v2/`` are malformed, or were not issued by this emulator."""


class ExpiredTokenError(Exception):
    """Raised when a token has expired."""


class _Claims(msgspec.Struct, frozen=True):
    account: str
    expires: float


@dataclass(frozen=True, slots=True)
class Token:
    """A token as GetAuthorizationToken answers it.

    Attributes:
        text: base64 of ``AWS:PASSWORD``, as it stands in an ``Authorization: Basic`` header.
        expires: when it expires, in seconds since 1970.
    """

    text: str
    expires: float


class Tokens:
    """Makes and checks tokens; it remembers none of them, so they outlive a restart with the same secret.

    Args:
        secret: known to this emulator only.
        lifetime: seconds for which a token is valid.
    """

    def __init__(self, secret: bytes, lifetime: float) -> None:
        self._secret = secret
        self._lifetime = lifetime

    @classmethod
    def of(cls, data: Path, lifetime: float) -> Self:
        """Read the secret of a data directory, or create one; blocks. Whoever can read the directory can forge tokens.

        Raises:
            UsageError: it can't be read or written.
        """
        path = data / _SECRET_NAME
        try:
            secret = path.read_bytes() if path.exists() else b""
            # A shorter one was being written when the machine went down: only the tokens of that moment are lost.
            if len(secret) != _SECRET_BYTES:
                secret = secrets.token_bytes(_SECRET_BYTES)
                with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:  # noqa: PTH123 - the mode
                    file.write(secret)
        except OSError as error:
            raise UsageError(
                f"{path} can't be used: {open_files.reason(error)}", hint="make it readable and writable, or remove it"
            ) from error
        return cls(secret, lifetime)

    def grant(self, account: str) -> Token:
        """Issue a token for *account*."""
        claims = _Claims(account, time.time() + self._lifetime)
        text = _encode(msgspec.json.encode(claims))
        password = f"{text}.{self._sign(text)}"
        return Token(pybase64.b64encode(f"{USER}:{password}".encode()).decode(), claims.expires)

    def check(self, text: str) -> str:
        """Check a token.

        Args:
            text: the value behind ``Authorization: Basic``.

        Returns:
            The account that it was issued to.

        Raises:
            InvalidTokenError: it was not issued here.
            ExpiredTokenError: it has expired.
        """
        try:
            user, _, password = pybase64.b64decode(text, validate=True).decode().partition(":")
            claimed, _, proof = password.partition(".")
            if user != USER or not hmac.compare_digest(proof.encode(), self._sign(claimed).encode()):
                raise InvalidTokenError
            claims = msgspec.json.decode(pybase64.urlsafe_b64decode(claimed), type=_Claims)
        except (binascii.Error, ValueError) as error:
            raise InvalidTokenError from error
        if claims.expires <= time.time():
            raise ExpiredTokenError
        return claims.account

    def _sign(self, text: str) -> str:
        return _encode(hmac.digest(self._secret, text.encode(), "sha256"))


def _encode(data: bytes) -> str:
    return pybase64.urlsafe_b64encode(data).decode()
