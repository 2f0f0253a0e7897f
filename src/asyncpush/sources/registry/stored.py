"""Credentials that ``docker login`` and ``podman login`` have left: their files, read and searched.

Sources: docker's config.json (auths, credHelpers, credsStore); containers-auth.json(5).
"""

from __future__ import annotations

import base64
import binascii
import os
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from asyncpush.errors import ConfigurationError, InvalidReferenceError
from asyncpush.sources.registry.reference import canonical_host

#: What docker calls Docker Hub in its files, and to its helpers.
HUB_KEY = "https://index.docker.io/v1/"

#: Docker's way to say that a password is an identity token.
_IDENTITY_USER = "<token>"


@dataclass(frozen=True, slots=True)
class Account:
    """Who asks a registry: a user with a password, or an identity token (OAuth2's refresh token). Never printed."""

    username: str
    password: str = field(repr=False)
    identity_token: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, username: str, secret: str) -> Account | None:
        """What docker's stores mean by a user and a secret; None if they mean nothing."""
        if not username and not secret:
            return None
        if username == _IDENTITY_USER:
            return cls("", "", secret)
        return cls(username, secret)

    def basic(self) -> str:
        """The value of Authorization (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.username}:{self.password}".encode()).decode("ascii")


class _Entry(msgspec.Struct):
    auth: str | None = None
    username: str | None = None
    password: str | None = None
    identitytoken: str | None = None


class _File(msgspec.Struct):
    auths: dict[str, _Entry | None] | None = None
    credHelpers: dict[str, str] | None = None  # noqa: N815 - the file's own names
    credsStore: str | None = None  # noqa: N815


@dataclass(frozen=True, slots=True)
class AuthFile:
    """One such file.

    Attributes:
        path: where it lies.
    """

    path: Path
    _content: _File = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> AuthFile | None:
        """Read it, in a worker thread; None if there is none.

        Raises:
            ConfigurationError: it can't be read, or is malformed.
        """
        try:
            raw = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise ConfigurationError(f"{path} can't be read: {error.strerror or error}") from error
        if not raw.strip():
            return None
        try:
            return cls(path, msgspec.json.decode(raw, type=_File))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigurationError(f"{path} is malformed: {error}", hint="log in again, or mend it") from error

    def helper(self, host: str) -> str | None:
        """The credential helper for *host*: its own, or else the one for all hosts; None if there is neither."""
        for key, name in (self._content.credHelpers or {}).items():
            if _split(key) == (host, ""):
                return name
        return self._content.credsStore or None

    def account(self, host: str, repository: str) -> Account | None:
        """What the file itself holds for *repository*, or else for a namespace above it, or else for *host*.

        Raises:
            ConfigurationError: it is malformed.
        """
        found: dict[str, _Entry] = {}
        for key, entry in (self._content.auths or {}).items():
            written, path = _split(key)
            if entry is not None and written == host and (not path or f"{repository}/".startswith(f"{path}/")):
                found[path] = entry
        for path in sorted(found, key=len, reverse=True):
            if account := self._decode(found[path], host):
                return account
        return None

    def _decode(self, entry: _Entry, host: str) -> Account | None:
        if entry.identitytoken:
            return Account("", "", entry.identitytoken)
        if not entry.auth:
            return Account.of(entry.username or "", entry.password or "")
        try:
            user, colon, password = base64.b64decode(entry.auth, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"{self.path} holds no user and password for {host}", hint="log in again, or mend it"
            ) from error
        return Account.of(user, password.rstrip("\0")) if colon else None


def auth_files() -> tuple[AuthFile, ...]:
    """Docker's file and podman's, in the order that they count; blocks.

    Raises:
        ConfigurationError: one of them can't be read, or is malformed.
    """
    paths = [_docker_file(), _podman_file()]
    return tuple(file for path in paths if path is not None and (file := AuthFile.read(path)))


def _docker_file() -> Path | None:
    if folder := os.environ.get("DOCKER_CONFIG"):
        return Path(folder) / "config.json"
    try:
        return Path.home() / ".docker" / "config.json"
    except RuntimeError:
        return None  # a user without a home


def _podman_file() -> Path | None:
    if path := os.environ.get("REGISTRY_AUTH_FILE"):
        return Path(path)
    if folder := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(folder) / "containers" / "auth.json"
    return None


def _split(key: str) -> tuple[str, str]:
    """The host and the path that a key names; the paths of the API's versions are none."""
    host, _, path = key.removeprefix("https://").removeprefix("http://").partition("/")
    path = path.strip("/")
    try:
        host = canonical_host(host)
    except InvalidReferenceError:
        return host, path  # matches nothing
    return host, "" if path in ("v1", "v2") else path
