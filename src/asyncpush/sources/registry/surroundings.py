"""What a registry's client finds on this machine: certificates, proxies, its own version.

Sources: SourceRegistry's TLS members; HTTP_PROXY, HTTPS_PROXY and NO_PROXY, as ``urllib`` reads them.
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from urllib.request import getproxies, proxy_bypass

from yarl import URL

from asyncpush.errors import ConfigurationError
from asyncpush.settings import SourceRegistry


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What this machine has to say: certificates, proxies, our own version.

    Attributes:
        registry: TLS to the registry.
        elsewhere: TLS to where it redirects: a client certificate is for the registry alone.
        proxies: addresses by scheme.
        agent: what to call ourselves.
    """

    registry: ssl.SSLContext
    elsewhere: ssl.SSLContext
    proxies: Mapping[str, str]
    agent: str


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy, and what it must be told to let us through."""

    url: URL
    headers: Mapping[str, str] | None


def proxy_for(url: URL, proxies: Mapping[str, str], headers: dict[str, str]) -> Proxy | None:
    """The proxy that the environment names for *url*; *headers* get what a proxy of plain HTTP wants in them.

    Raises:
        ConfigurationError: what it names is no address.
    """
    address = proxies.get(url.scheme)
    if not address or url.host is None or proxy_bypass(f"{url.host}:{url.port}"):
        return None
    try:
        proxy = URL(address if "://" in address else f"http://{address}")
    except ValueError:
        proxy = URL()
    if not proxy.host:
        # It is not shown: it may hold a password.
        raise ConfigurationError(
            f"the proxy for {url.scheme} is no address", hint=f"check {url.scheme.upper()}_PROXY: http://HOST:PORT"
        )
    if proxy.user is None:
        return Proxy(proxy, None)
    pair = f"{proxy.user}:{proxy.password or ''}".encode()
    secret = {"Proxy-Authorization": "Basic " + base64.b64encode(pair).decode("ascii")}
    if url.scheme == "http":
        headers.update(secret)
    return Proxy(proxy.with_user(None), secret)


def look_around(registry: SourceRegistry) -> Surroundings:
    """Read what there is; blocks for the 25 ms that the system's authorities take.

    Raises:
        ConfigurationError: a file of *registry* can't be used.
    """
    both = []
    for _ in range(2):
        context = ssl.create_default_context()
        if not registry.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if registry.ca_bundle is not None:
            with _usable(registry.ca_bundle):
                context.load_verify_locations(registry.ca_bundle)
        both.append(context)
    own, elsewhere = both
    if registry.client_certificate is not None:
        with _usable(registry.client_certificate):
            # A password would be asked for on the terminal: there is none.
            own.load_cert_chain(registry.client_certificate, registry.client_key, password=lambda: "")
    elif registry.client_key is not None:
        raise ConfigurationError(
            f"{registry.client_key} is a key without its certificate", hint="give both: --src-cert and --src-key"
        )
    return Surroundings(own, elsewhere, getproxies(), f"asyncpush/{version('asyncpush')}")


@contextmanager
def _usable(path: object) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # Neither a missing file's error nor OpenSSL's own names the file.
        raise ConfigurationError(
            f"{path} can't be used for TLS: {error.strerror or error}", hint="it must be a PEM file, without a password"
        ) from error
