"""An image in a Docker daemon, or in podman's service that speaks its API, as the archive of ``docker save``.

Paths have no version, so that each daemon answers in its own.

Sources: Docker Engine API (ImageInspect, ImageGet); docker's "Environment variables" and "Docker contexts".
"""

from __future__ import annotations

import hashlib
import json
import os
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from urllib.parse import quote, urlsplit

import aiohttp
from anyio import to_thread
from yarl import URL

from asyncpush import open_files
from asyncpush.errors import (
    ConfigurationError,
    SourceDeniedError,
    SourceError,
    SourceNotFoundError,
    SourceUnavailableError,
)
from asyncpush.events import Emit, Notice
from asyncpush.files import home_folder, read_small
from asyncpush.http.retry import note_if_slow
from asyncpush.http.session import (
    client_context,
    load_authorities,
    load_chain,
    no_password,
    usable_for_tls,
    user_agent,
)
from asyncpush.protocols import BlobStream
from asyncpush.settings import MiB

#: Where daemons listen; ``{runtime}`` is XDG_RUNTIME_DIR.
_SOCKETS = (
    "/var/run/docker.sock",
    "{runtime}/docker.sock",
    "{runtime}/podman/podman.sock",
    "/run/podman/podman.sock",
)

_DEFAULT_CONTEXT = "default"
_PORTS = {"http": 2375, "https": 2376}

_CONNECT = 30.0
#: Seconds without a byte: Docker copies the whole image to its own disk before it sends the first one.
_PATIENCE = 900.0
_NOTE_AFTER = 10.0
_LONGEST_DOCUMENT = 8 * MiB
_LONGEST_MESSAGE = 64 * 1024
_TLS_HINT = "check the certificates in DOCKER_CERT_PATH, and the port"
_HINT = "start the daemon, or set DOCKER_HOST to where it listens"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a daemon listens.

    Attributes:
        url: ``unix:///PATH`` or ``tcp://HOST:PORT``, as docker writes it.
        certificates: the folder of ``ca.pem``, ``cert.pem`` and ``key.pem`` for TLS; None without TLS.
        verify: whether its certificate is verified.
    """

    url: str
    certificates: Path | None = None
    verify: bool = True

    @property
    def name(self) -> str:
        """The daemon's name in errors."""
        return f"the Docker daemon at {self.url}"

    @property
    def socket(self) -> str | None:
        """The path of its socket; None for TCP."""
        return self.url.removeprefix("unix://") if self.url.startswith("unix://") else None

    def base(self) -> URL:
        """The URL of its API.

        Raises:
            ConfigurationError: the address is of another kind.
        """
        if self.socket is not None:
            return URL("http://docker")
        try:
            parts = urlsplit(self.url)
            scheme = "https" if self.certificates is not None or parts.scheme == "https" else "http"
            if parts.scheme in ("tcp", "http", "https") and parts.hostname:
                return URL.build(scheme=scheme, host=parts.hostname, port=parts.port or _PORTS[scheme])
        except ValueError:
            pass
        hint = "write unix:///PATH or tcp://HOST:PORT"
        if self.url.startswith("ssh://"):
            hint = "pipe the image instead: docker save NAME | asyncpush push - DESTINATION"
        raise ConfigurationError(f"{self.url[:300]!r} is not the address of a Docker daemon", hint=hint)

    def tls(self) -> ssl.SSLContext:
        """TLS with its certificates; blocks.

        Raises:
            ConfigurationError: a file can't be used.
        """
        context = client_context(verify=self.verify)
        if self.certificates is None:
            return context
        authority, certificate, key = (self.certificates / f"{name}.pem" for name in ("ca", "cert", "key"))
        if self.verify and authority.exists():
            with usable_for_tls(authority):
                load_authorities(authority, context)
        if certificate.exists():
            with usable_for_tls(certificate):
                load_chain(context, certificate, key, no_password)
        return context


def find_endpoint() -> Endpoint:
    """Find the daemon as docker does: DOCKER_HOST, the current context, or else the first socket that exists; blocks.

    Raises:
        ConfigurationError: the context that docker uses can't be read.
        SourceUnavailableError: nothing is set, and no socket exists.
    """
    home, folder = home_folder(), os.environ.get("DOCKER_CONFIG")
    configuration = Path(folder) if folder else home / ".docker" if home else Path("/nonexistent")
    if url := os.environ.get("DOCKER_HOST"):
        certificates = Path(os.environ.get("DOCKER_CERT_PATH") or configuration)
        uses_tls = bool(os.environ.get("DOCKER_TLS_VERIFY")) and not url.startswith("unix://")
        return Endpoint(url, certificates if uses_tls else None)
    context = os.environ.get("DOCKER_CONTEXT") or _read(configuration / "config.json").get("currentContext")
    if context and context != _DEFAULT_CONTEXT:
        return _of_context(str(context), configuration / "contexts")
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    sockets = [Path(path.format(runtime=runtime)) for path in _SOCKETS]
    for path in sockets:
        if path.is_socket():
            return Endpoint(f"unix://{path}")
    raise SourceUnavailableError(f"no Docker daemon listens at {', '.join(map(str, sockets))}", hint=_HINT)


def _of_context(name: str, contexts: Path) -> Endpoint:
    identity = hashlib.sha256(name.encode()).hexdigest()
    document = _read(contexts / "meta" / identity / "meta.json")
    try:
        endpoint = document["Endpoints"]["docker"]  # type: ignore[index] # whatever the file holds
        url, verify = str(endpoint["Host"]), not endpoint.get("SkipTLSVerify", False)
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"the context {name!r} of docker names no daemon", hint="see `docker context ls`, or set DOCKER_HOST"
        ) from error
    certificates = contexts / "tls" / identity / "docker"
    return Endpoint(url, certificates if certificates.is_dir() else None, verify)


def _read(path: Path) -> dict[str, object]:
    """A JSON document of docker's; empty if there is none."""
    try:
        document = json.loads(read_small(path, _LONGEST_DOCUMENT))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ConfigurationError(f"{path} can't be read: {open_files.reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} is malformed", hint="fix that file, or set DOCKER_HOST") from error
    return document if isinstance(document, dict) else {}


@asynccontextmanager
async def open_image(name: str, emit: Emit) -> AsyncIterator[BlobStream]:
    """Let the daemon save an image, and receive the archive within the block.

    Args:
        name: the image's name with a tag or digest, or its id.
        emit: receives a ``Notice`` if the daemon keeps us waiting.

    Raises:
        SourceNotFoundError: the daemon has no such image.
        SourceDeniedError: this user may not use the daemon.
        SourceUnavailableError: it can't be reached.
        ConfigurationError: DOCKER_HOST or docker's context can't be used.
    """
    endpoint = await to_thread.run_sync(find_endpoint)
    agent = await to_thread.run_sync(user_agent)  # the first call reads files
    base = endpoint.base()
    if endpoint.socket is not None:
        connector: aiohttp.BaseConnector = aiohttp.UnixConnector(path=endpoint.socket)
    else:
        tls = await to_thread.run_sync(endpoint.tls) if base.scheme == "https" else True
        connector = aiohttp.TCPConnector(ssl=tls)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=_PATIENCE)
    async with aiohttp.ClientSession(
        base, connector=connector, timeout=timeout, headers={"User-Agent": agent}, read_bufsize=MiB
    ) as session:
        daemon = _Daemon(session, endpoint, emit)
        with daemon.translated(name):
            await daemon.require(name)
            response = await daemon.get(f"/images/{quote(name, safe='/:@')}/get", name)
        async with response:
            yield _SavedImage(response.content, daemon, name)


@dataclass(frozen=True, slots=True)
class _Daemon:
    """An open session with a daemon."""

    session: aiohttp.ClientSession
    endpoint: Endpoint
    emit: Emit

    async def require(self, name: str) -> None:
        """Check that the daemon has an image, before it is saved.

        Raises:
            SourceNotFoundError: it has not.
        """
        response = await self.get(f"/images/{quote(name, safe='/:@')}/json", name)
        response.release()

    async def get(self, path: str, name: str) -> aiohttp.ClientResponse:
        """Send a request about an image; its answer is a success, and its body is still to be read."""
        what = f"{self.endpoint.name} has not answered about {name}"
        with note_if_slow(what, lambda text: self.emit(Notice(text)), _NOTE_AFTER):
            response = await self.session.get(URL(path, encoded=True))
        if response.status == HTTPStatus.OK:
            return response
        async with response:
            message = _message_of(await response.content.read(_LONGEST_MESSAGE))
        if response.status == HTTPStatus.NOT_FOUND:
            raise SourceNotFoundError(
                f"{self.endpoint.name} has no image {name}",
                hint="`docker images` lists what it has, `docker pull` fetches others",
            )
        raise SourceError(f"{self.endpoint.name} refuses image {name} (status {response.status}): {message}")

    @contextmanager
    def translated(self, name: str) -> Iterator[None]:
        """Raise errors of sources for those of aiohttp."""
        who = self.endpoint.name
        try:
            yield
        except aiohttp.ClientConnectorError as error:
            is_tls = isinstance(error, aiohttp.ClientSSLError)
            hint = open_files.advice(error, _TLS_HINT if is_tls else _HINT)
            if isinstance(error.os_error, PermissionError):
                hint = "join the group docker (`usermod -aG docker USER`) and log in again, or use a rootless daemon"
                raise SourceDeniedError(f"{who} can't be reached: Permission denied", hint=hint) from error
            reason = open_files.reason(error.os_error)
            raise SourceUnavailableError(f"{who} can't be reached: {reason}", hint=hint) from error
        except TimeoutError as error:
            raise SourceUnavailableError(
                f"{who} has sent nothing of {name} for {_PATIENCE:g} seconds", hint="see the daemon's log"
            ) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise SourceUnavailableError(
                f"{who} broke off in the middle of {name}", hint="see the daemon's log, and run the same command again"
            ) from error


@dataclass(frozen=True, slots=True)
class _SavedImage:
    """The archive of an image (``BlobStream``)."""

    content: aiohttp.StreamReader
    daemon: _Daemon
    name: str

    async def readinto(self, buffer: memoryview) -> int:
        """See ``BlobStream``."""
        filled = 0
        with self.daemon.translated(self.name):
            while filled < len(buffer) and (data := await self.content.read(len(buffer) - filled)):
                buffer[filled : filled + len(data)] = data
                filled += len(data)
        return filled


def _message_of(body: bytes) -> str:
    """The message in the body of an error."""
    try:
        return str(json.loads(body)["message"])[:300]
    except (ValueError, KeyError, TypeError, RecursionError):
        return body.decode("utf-8", "replace").strip()[:300] or "no message"
