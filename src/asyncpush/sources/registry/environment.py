"""What a registry's client finds on this machine: certificates, proxies, its own version.

Sources: SourceRegistry's TLS members; certs.d, docker's and podman's (containers-certs.d(5)); ``proxies``.
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from yarl import URL

from asyncpush import open_files
from asyncpush.errors import ConfigurationError
from asyncpush.files import load_authorities, load_chain
from asyncpush.http.environment import Proxies, user_agent
from asyncpush.reference import api_host, canonical_host
from asyncpush.settings import SourceRegistry
from asyncpush.sources.registry.docker_config import configuration_folder, home_folder
from asyncpush.sources.registry.requests import TransientError

#: Where administrators put certificates, a folder for each registry.
CERTIFICATE_FOLDERS = (Path("/etc/containers/certs.d"), Path("/etc/docker/certs.d"))


@dataclass(frozen=True, slots=True)
class ClientEnvironment:
    """What this machine has to say: certificates, proxies, our own version.

    Attributes:
        registry: TLS to the registry.
        elsewhere: TLS to where it redirects: a client certificate is for the registry alone.
        proxies: those of the environment.
        agent: what to call ourselves.
        problem: what of docker's and podman's certificates can't be used; empty if nothing.
    """

    registry: ssl.SSLContext
    elsewhere: ssl.SSLContext
    proxies: Proxies
    agent: str
    problem: str


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy, and what it must be told to let us through."""

    url: URL
    headers: Mapping[str, str] | None


def proxy_for(url: URL, proxies: Proxies, headers: dict[str, str]) -> Proxy | None:
    """The proxy that the environment names for *url*; *headers* get what a proxy of plain HTTP wants in them.

    Raises:
        ConfigurationError: what it names is not an address, or none of an HTTP proxy.
    """
    address = proxies.address_for(url.scheme, url.host or "", url.port or 0)
    if address is None:
        return None
    try:
        proxy = URL(address if "://" in address else f"http://{address}")
    except ValueError:
        proxy = URL()
    if not proxy.host:
        # It is not shown: it may hold a password.
        raise ConfigurationError(
            f"the proxy for {url.scheme} is not an address", hint=f"check {url.scheme.upper()}_PROXY: http://HOST:PORT"
        )
    if proxy.scheme not in ("http", "https"):
        raise ConfigurationError(
            f"the proxy for {url.scheme} speaks {proxy.scheme}, which is not known here",
            hint=f"check {url.scheme.upper()}_PROXY: http://HOST:PORT or https://HOST:PORT",
        )
    if proxy.user is None:
        return Proxy(proxy, None)
    pair = f"{proxy.user}:{proxy.password or ''}".encode()
    secret = {"Proxy-Authorization": "Basic " + base64.b64encode(pair).decode("ascii")}
    if url.scheme == "http":
        headers.update(secret)
    return Proxy(proxy.with_user(None), secret)


def detect_environment(registry: SourceRegistry) -> ClientEnvironment:
    """Read what there is; blocks for the 25 ms that the system's authorities take.

    Raises:
        ConfigurationError: a file of *registry* can't be used. One of docker's or podman's is passed over.
    """
    both = []
    for _ in range(2):
        context = ssl.create_default_context()
        # As Go has it, by which these certificates were tried: any of them may be the end of a chain, and no extension
        # is missed. Pythons differ.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if not registry.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        both.append(context)
    own, elsewhere = both
    if registry.ca_bundle is not None:
        with _usable(registry.ca_bundle):
            load_authorities(registry.ca_bundle, *both)
    if registry.client_certificate is not None:
        with _usable(registry.client_certificate):
            load_chain(own, registry.client_certificate, registry.client_key, _nobody)
    elif registry.client_key is not None:
        raise ConfigurationError(
            f"{registry.client_key} is a key without its certificate", hint="give both: --src-cert and --src-key"
        )
    problems = [] if registry.plain_http else list(_trust(registry, own, elsewhere))
    return ClientEnvironment(own, elsewhere, Proxies.detect(), user_agent(), problems[0] if problems else "")


def _trust(registry: SourceRegistry, own: ssl.SSLContext, elsewhere: ssl.SSLContext) -> Iterator[str]:
    """Use what docker and podman have for a registry in ``certs.d``; yields what of it can't be used.

    ``*.crt`` are authorities: those of all folders are trusted. ``NAME.cert`` is a client certificate and ``NAME.key``
    its key: the first one is presented, unless the registry's configuration names another.
    """
    presented = registry.client_certificate is not None
    for folder in _certificate_folders(registry.host):
        try:
            files = sorted(folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            yield f"{folder} can't be read: {open_files.reason(error)}"
            continue
        for path in files:
            key = path.with_suffix(".key")
            try:
                if path.suffix == ".crt":
                    with _usable(path):
                        load_authorities(path, own, elsewhere)
                elif path.suffix == ".cert" and not presented:
                    with _usable(path):
                        load_chain(own, path, key if key in files else None, _nobody)
                    presented = True
                elif path.suffix == ".key" and path.with_suffix(".cert") not in files:
                    yield f"{path} is a key without its certificate, {path.stem}.cert"
            except ConfigurationError as error:
                alone = path.suffix == ".cert" and key not in files
                yield f"{path} is a certificate without its key, {key.name}" if alone else error.message


def _certificate_folders(host: str) -> Iterator[Path]:
    host = canonical_host(host)
    configuration, home = configuration_folder(), home_folder()
    folders = [
        *([configuration / "containers" / "certs.d"] if configuration else []),
        *([configuration / "docker" / "certs.d"] if configuration else []),
        *([home / ".docker" / "certs.d"] if home else []),
        *CERTIFICATE_FOLDERS,
    ]
    for folder in folders:
        for name in dict.fromkeys((host, api_host(host))):
            yield folder / name


def _nobody() -> str:
    """Stand for the password of a key, which would be asked for on the terminal: there is none."""
    return ""


@contextmanager
def _usable(path: object) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if shortage := open_files.shortage(error):
            raise TransientError(f"no connection can be made: {shortage}", hint=open_files.HINT) from error
        # Neither a missing file's error nor OpenSSL's own names the file.
        raise ConfigurationError(
            f"{path} can't be used for TLS: {error.strerror or error}", hint="it must be a PEM file, without a password"
        ) from error
