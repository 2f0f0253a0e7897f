"""The credentials that ``docker login`` and ``podman login`` have stored: their files, read and searched.

Sources: docker's config.json (auths, credHelpers, credsStore) and DOCKER_AUTH_CONFIG; containers-auth.json(5).
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec

from asyncpush import open_files
from asyncpush.errors import ConfigurationError, InvalidReferenceError
from asyncpush.files import configuration_folder, home_folder, read_small
from asyncpush.redaction import hide, hide_login
from asyncpush.reference import HUB, canonical_host

#: Docker Hub's key in docker's files, and for its helpers.
HUB_KEY = "https://index.docker.io/v1/"

#: The user by which docker marks a password as an identity token.
_IDENTITY_USER = "<token>"

_HINT = "fix that file"


#: Bytes of a file of logins; one for hundreds of registries has some hundred KiB.
_LONGEST = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Account:
    """An account at a registry; its secrets are never printed.

    Attributes:
        username: the user, with a password.
        identity_token: OAuth2's refresh token, in place of both.
        registry_token: a token for the registry itself, in place of both.
        origin: the file that holds it, or that names the helper; empty if the user gave it for this run.
    """

    username: str
    password: str = field(repr=False)
    identity_token: str | None = field(default=None, repr=False)
    registry_token: str | None = field(default=None, repr=False)
    origin: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        hide_login(self.username, self.password)
        hide(self.identity_token, self.registry_token)

    @classmethod
    def of(cls, username: str, secret: str) -> Account | None:
        """Read a user and a secret as docker's stores write them; None if they are empty."""
        if not secret and username in ("", _IDENTITY_USER):
            return None
        if username == _IDENTITY_USER:
            return cls("", "", secret)
        return cls(username, secret)

    @property
    def name(self) -> str:
        """Its name."""
        return self.username or ("the registry token" if self.registry_token else "the identity token")

    @property
    def label(self) -> str:
        """Its name in errors, with where it is stored."""
        return f"the login of {self.name!r} in {self.origin}" if self.origin else f"the credentials of {self.name!r}"

    def authorization(self) -> str | None:
        """The value of Authorization for the registry itself; None for an identity token."""
        if self.registry_token is not None:
            return f"Bearer {self.registry_token}"
        return self.basic() if self.identity_token is None else None

    def basic(self) -> str:
        """The value of Authorization for Basic (RFC 7617)."""
        raw = f"{self.username}:{self.password}".encode(errors="surrogateescape")
        return "Basic " + base64.b64encode(raw).decode("ascii")


class _Entry(msgspec.Struct):
    auth: str | None = None
    username: str | None = None
    password: str | None = None
    identitytoken: str | None = None
    registrytoken: str | None = None


class _File(msgspec.Struct):
    # Each entry is decoded when it is needed: a malformed one affects itself only.
    auths: dict[str, Any] | None = None
    credHelpers: dict[str, str] | None = None  # noqa: N815 - the file's own names
    credsStore: str | None = None  # noqa: N815


@dataclass(frozen=True, slots=True)
class Helper:
    """A credential helper that a file names.

    Attributes:
        name: ``NAME`` in ``docker-credential-NAME``.
        server: the server to ask it for.
    """

    name: str
    server: str


@dataclass(frozen=True, slots=True)
class AuthFile:
    """One file of logins.

    Attributes:
        name: its path, or the variable that holds it.
    """

    name: str
    _content: _File = field(repr=False)

    @classmethod
    def parse(cls, name: str, raw: bytes, *, legacy: bool = False) -> AuthFile:
        """Parse a file; a *legacy* one, ``~/.dockercfg``, holds entries alone.

        Raises:
            ConfigurationError: it is malformed.
        """
        try:
            # JSON allows no line breaks in strings, but shells that wrap base64 put them there.
            document = json.loads(raw, strict=False)
            return cls(name, msgspec.convert({"auths": document} if legacy else document, _File))
        except (ValueError, RecursionError) as error:
            # The error holds the whole document, so it is not chained.
            raise ConfigurationError(f"{name} is malformed: {' '.join(str(error).split())}", hint=_HINT) from None

    def helper(self, host: str) -> Helper | None:
        """The credential helper for *host*: its own, or else the one for all hosts; None without either."""
        for key, name in (self._content.credHelpers or {}).items():
            if _split(key) == (_without_default_port(host), ""):
                # Docker and podman have different names for Docker Hub; each asks by the name that it looks up.
                return Helper(name, key if host == HUB else host) if name else None
        name = self._content.credsStore or ""
        return Helper(name, HUB_KEY if host == HUB else host) if name else None

    def account(self, host: str, repository: str) -> Account | None:
        """The account in the file for *repository*, or else for a namespace above it, or else for *host*.

        Raises:
            ConfigurationError: no entry can be used, and one is malformed.
        """
        found = []
        for key, entry in (self._content.auths or {}).items():
            if (specificity := _specificity(key, host, repository)) is not None:
                found.append((specificity, key, entry))
        malformed: ConfigurationError | None = None
        for _, key, entry in sorted(found, key=itemgetter(0), reverse=True):
            try:
                if account := _decode(entry):
                    return replace(account, origin=self.name)
            except ValueError:
                # The cause is not shown: it may hold a secret.
                malformed = malformed or ConfigurationError(
                    f"{self.name} holds no user and password for {key}", hint=_HINT
                )
        if malformed is not None:
            raise malformed
        return None


def _decode(document: object) -> Account | None:
    """The account of an entry; None if it is empty, as docker leaves it where a helper has the password.

    Raises:
        ValueError: it is malformed.
    """
    entry = msgspec.convert(document, _Entry | None)
    if entry is None:
        return None
    if token := (entry.registrytoken or "").strip():
        if not token.isascii() or not token.isprintable():
            raise ValueError("a token is one word")
        return Account("", "", registry_token=token)
    if entry.identitytoken:
        return Account("", "", entry.identitytoken)
    user, password = entry.username or "", entry.password or ""
    if encoded := "".join((entry.auth or "").split()).rstrip("="):
        # Docker sends the bytes to the registry as they are, whatever their encoding.
        raw = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
        text = raw.decode(errors="surrogateescape")
        user, colon, password = text.partition(":")
        if not colon:
            raise ValueError("USER:PASSWORD has a colon")
        password = password.strip("\0")
    else:
        f"{user}{password}".encode()  # raises for lone surrogates, which JSON can hold
    return Account.of(user, password)


#: Podman's folder where the session has none.
RUN_FOLDER = Path("/run/containers")


def auth_files() -> tuple[AuthFile | ConfigurationError, ...]:
    """The files that docker and podman look into, most important first; or why one can't be read. Blocks.

    DOCKER_AUTH_CONFIG comes first, as in docker, and then containers-auth.json(5)'s order, in which docker's own files
    come last.
    """
    found: list[AuthFile | ConfigurationError] = []
    if text := os.environ.get("DOCKER_AUTH_CONFIG", "").strip():
        try:
            found.append(AuthFile.parse("DOCKER_AUTH_CONFIG", os.fsencode(text)))
        except ConfigurationError as error:
            found.append(error)
    auth_file = os.environ.get("REGISTRY_AUTH_FILE")
    for path in dict.fromkeys([*([Path(auth_file)] if auth_file else []), *_paths()]):
        try:
            raw = read_small(path, _LONGEST)
            if raw.strip():
                found.append(AuthFile.parse(str(path), raw, legacy=path.name == ".dockercfg"))
        except ConfigurationError as error:
            found.append(error)
        except OSError as error:
            if isinstance(error, NotADirectoryError) and str(path.parent) == os.environ.get("DOCKER_CONFIG"):
                # Docker warns about it and continues.
                text = f"DOCKER_CONFIG names {path.parent}, which is not a folder"
                found.append(ConfigurationError(text, hint="name the folder that holds config.json"))
            elif not isinstance(error, FileNotFoundError | NotADirectoryError) or str(path) == auth_file:
                found.append(ConfigurationError(f"{path} can't be read: {open_files.reason(error)}"))
    return tuple(found)


def _paths() -> Iterator[Path]:
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        yield Path(runtime) / "containers" / "auth.json"
    yield RUN_FOLDER / str(os.getuid()) / "auth.json"
    if (configuration := configuration_folder()) is not None:
        yield configuration / "containers" / "auth.json"
    home, docker = home_folder(), os.environ.get("DOCKER_CONFIG")
    if docker:
        yield Path(docker) / "config.json"
    elif home is not None:
        yield home / ".docker" / "config.json"
    if home is not None:
        yield home / ".dockercfg"


def _specificity(key: str, host: str, repository: str) -> tuple[int, bool, bool] | None:
    """How specific an entry's key is to *repository* at *host*, as a sort key; None if it does not match.

    A path behind a host is a namespace, as in podman. A path in a URL is the API's, or meaningless, as in docker, and
    counts only where nothing else matches.
    """
    key_host, path = _split(key)
    if key_host != _without_default_port(host):
        return None
    is_address = "://" in key
    if path and f"{repository}/".startswith(f"{path}/"):
        return len(path), not is_address, True
    if path and not is_address:
        return None
    return 0, not path, not is_address


def _split(key: str) -> tuple[str, str]:
    """The host and the path that a key names; paths of API versions count as empty."""
    host, _, path = key.removeprefix("https://").removeprefix("http://").partition("/")
    path = path.strip("/")
    try:
        host = canonical_host(_without_default_port(host))
    except InvalidReferenceError:
        return host, path  # matches no registry
    return host, "" if path in ("v1", "v2") else path


def _without_default_port(host: str) -> str:
    return host.removesuffix(":443")
