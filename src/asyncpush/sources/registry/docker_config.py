"""Credentials that ``docker login`` and ``podman login`` have left: their files, read and searched.

Sources: docker's config.json (auths, credHelpers, credsStore) and DOCKER_AUTH_CONFIG; containers-auth.json(5).
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from asyncpush import open_files
from asyncpush.errors import ConfigurationError, InvalidReferenceError
from asyncpush.files import configuration_folder, home_folder, read_small
from asyncpush.redaction import hide, hide_login
from asyncpush.reference import HUB, canonical_host

#: What docker calls Docker Hub in its files, and to its helpers.
HUB_KEY = "https://index.docker.io/v1/"

#: Docker's way to say that a password is an identity token.
_IDENTITY_USER = "<token>"

_MEND = "mend that file"


#: Bytes of a file of logins; those of hundreds of registries have some hundred KiB.
_LONGEST = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Account:
    """Who asks a registry; its secrets are never printed.

    Attributes:
        username: a user, with a password.
        identity_token: in their place, OAuth2's refresh token.
        registry_token: in their place, a token for the registry itself.
        origin: the file that holds it, or names the helper that does; empty where the user gave it for this run.
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
        """What docker's stores mean by a user and a secret; None if they mean nothing."""
        if not secret and username in ("", _IDENTITY_USER):
            return None
        if username == _IDENTITY_USER:
            return cls("", "", secret)
        return cls(username, secret)

    @property
    def name(self) -> str:
        """What to call it."""
        return self.username or ("the registry token" if self.registry_token else "the identity token")

    @property
    def label(self) -> str:
        """What to call it in errors, with where it is stored."""
        return f"the login of {self.name!r} in {self.origin}" if self.origin else f"the credentials of {self.name!r}"

    def authorization(self) -> str | None:
        """The value of Authorization that it has for a registry by itself; None of an identity token."""
        if self.registry_token is not None:
            return f"Bearer {self.registry_token}"
        return self.basic() if self.identity_token is None else None

    def basic(self) -> str:
        """The value of Authorization (RFC 7617)."""
        raw = f"{self.username}:{self.password}".encode(errors="surrogateescape")
        return "Basic " + base64.b64encode(raw).decode("ascii")


class _Entry(msgspec.Struct):
    auth: str | None = None
    username: str | None = None
    password: str | None = None
    identitytoken: str | None = None
    registrytoken: str | None = None


class _File(msgspec.Struct):
    # Each entry is understood when it is needed: a bad one costs itself only.
    auths: dict[str, Any] | None = None
    credHelpers: dict[str, str] | None = None  # noqa: N815 - the file's own names
    credsStore: str | None = None  # noqa: N815


@dataclass(frozen=True, slots=True)
class Helper:
    """A credential helper that a file names.

    Attributes:
        name: ``NAME`` in ``docker-credential-NAME``.
        server: what to ask it for.
    """

    name: str
    server: str


@dataclass(frozen=True, slots=True)
class AuthFile:
    """One such file.

    Attributes:
        name: where it lies, or the variable that holds it.
    """

    name: str
    _content: _File = field(repr=False)

    @classmethod
    def parse(cls, name: str, raw: bytes, *, legacy: bool = False) -> AuthFile:
        """Read what a file holds; *legacy* has entries alone, as ``~/.dockercfg``.

        Raises:
            ConfigurationError: it is malformed.
        """
        try:
            # Line ends within a string are none of JSON's; shells put them there, with the base64 that they wrap.
            document = json.loads(raw, strict=False)
            return cls(name, msgspec.convert({"auths": document} if legacy else document, _File))
        except (ValueError, RecursionError) as error:
            # The error itself holds the whole document.
            raise ConfigurationError(f"{name} is malformed: {' '.join(str(error).split())}", hint=_MEND) from None

    def helper(self, host: str) -> Helper | None:
        """The credential helper for *host*: its own, or else the one for all hosts; None if there is neither."""
        for key, name in (self._content.credHelpers or {}).items():
            if _split(key) == (_without_default_port(host), ""):
                # Docker and podman call Docker Hub by different names; each asks by the one that it looks for.
                return Helper(name, key if host == HUB else host) if name else None
        name = self._content.credsStore or ""
        return Helper(name, HUB_KEY if host == HUB else host) if name else None

    def account(self, host: str, repository: str) -> Account | None:
        """What the file itself holds for *repository*, or else for a namespace above it, or else for *host*.

        Raises:
            ConfigurationError: nothing of it will do, and some of it is malformed.
        """
        found = []
        for key, entry in (self._content.auths or {}).items():
            if (closeness := _closeness(key, host, repository)) is not None:
                found.append((closeness, key, entry))
        problem: ConfigurationError | None = None
        for _, key, entry in sorted(found, key=lambda each: each[0], reverse=True):
            try:
                if account := _decode(entry):
                    return replace(account, origin=self.name)
            except ValueError:
                # What is wrong is not said: it may show a secret.
                problem = problem or ConfigurationError(f"{self.name} holds no user and password for {key}", hint=_MEND)
        if problem is not None:
            raise problem
        return None


def _decode(document: object) -> Account | None:
    """The account of an entry; None if it is empty, as docker's are where a helper has the password.

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
        # Whatever its encoding, its bytes go to the registry as they are, as docker sends them.
        raw = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
        text = raw.decode(errors="surrogateescape")
        user, colon, password = text.partition(":")
        if not colon:
            raise ValueError("USER:PASSWORD has a colon")
        password = password.strip("\0")
    else:
        f"{user}{password}".encode()  # JSON can write what is not text
    return Account.of(user, password)


#: Podman's folder, without one of the session's.
RUN_FOLDER = Path("/run/containers")


def auth_files() -> tuple[AuthFile | ConfigurationError, ...]:
    """What docker and podman look into, in the order that it counts; in a file's place, why it can't be read. Blocks.

    That is DOCKER_AUTH_CONFIG first, as docker has it, and then containers-auth.json(5)'s order, in which docker's own
    files come last.
    """
    found: list[AuthFile | ConfigurationError] = []
    if text := os.environ.get("DOCKER_AUTH_CONFIG", "").strip():
        try:
            found.append(AuthFile.parse("DOCKER_AUTH_CONFIG", os.fsencode(text)))
        except ConfigurationError as error:
            found.append(error)
    explicit = os.environ.get("REGISTRY_AUTH_FILE")
    for path in dict.fromkeys([*([Path(explicit)] if explicit else []), *_paths()]):
        try:
            raw = read_small(path, _LONGEST)
            if raw.strip():
                found.append(AuthFile.parse(str(path), raw, legacy=path.name == ".dockercfg"))
        except ConfigurationError as error:
            found.append(error)
        except OSError as error:
            if isinstance(error, NotADirectoryError) and str(path.parent) == os.environ.get("DOCKER_CONFIG"):
                # Docker warns of it, and goes on without.
                named = f"DOCKER_CONFIG names {path.parent}, which is not a folder"
                found.append(ConfigurationError(named, hint="name the folder that holds config.json"))
            elif not isinstance(error, FileNotFoundError | NotADirectoryError) or str(path) == explicit:
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


def _closeness(key: str, host: str, repository: str) -> tuple[int, bool, bool] | None:
    """How close the key of an entry is to *repository* at *host*, the closest being the greatest; None if it isn't.

    A path that follows a host is a namespace, as podman has it; one in an address is the API's or nothing, as docker
    has it, and counts only where nothing else does.
    """
    written, path = _split(key)
    if written != _without_default_port(host):
        return None
    is_address = "://" in key
    if path and f"{repository}/".startswith(f"{path}/"):
        return len(path), not is_address, True
    if path and not is_address:
        return None
    return 0, not path, not is_address


def _split(key: str) -> tuple[str, str]:
    """The host and the path that a key names; the paths of the API's versions are none."""
    host, _, path = key.removeprefix("https://").removeprefix("http://").partition("/")
    path = path.strip("/")
    try:
        host = canonical_host(_without_default_port(host))
    except InvalidReferenceError:
        return host, path  # matches nothing
    return host, "" if path in ("v1", "v2") else path


def _without_default_port(host: str) -> str:
    return host.removesuffix(":443")
