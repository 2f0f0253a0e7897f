"""TLS, proxies and certificate authorities: what this machine's environment sets up for every client of HTTP.

Proxies are chosen as Go chooses them, and thus as docker, podman, skopeo and crane do: ``urllib`` supports no networks
in NO_PROXY, and sends even requests to this machine through the proxy.

Sources: golang.org/x/net/http/httpproxy (HTTP_PROXY, HTTPS_PROXY, NO_PROXY, or the same in lower case);
containers-certs.d(5) and docker's certs.d.
"""

from __future__ import annotations

import base64
import functools
import os
import platform
import re
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from socket import inet_aton
from typing import TypeAlias
from urllib.parse import urlsplit

from yarl import URL

from asyncpush import open_files
from asyncpush.errors import ConfigurationError
from asyncpush.files import configuration_folder, home_folder, pem_file
from asyncpush.redaction import hide_user_of
from asyncpush.reference import api_host, canonical_host
from asyncpush.settings import SourceRegistry

_Address: TypeAlias = IPv4Address | IPv6Address
_Network: TypeAlias = IPv4Network | IPv6Network

#: Where administrators put certificates, a folder for each registry.
CERTIFICATE_FOLDERS = (Path("/etc/containers/certs.d"), Path("/etc/docker/certs.d"))

_PORTS = {"http": 80, "https": 443}
_HOST_AND_PORT = re.compile(r"(?:\[(?P<bracketed>[^\[\]]*)\]|(?P<host>[^\[\]:]*)):(?P<port>[^\[\]:]*)")
_CIDR = re.compile(r"[0-9a-f.:]+/[0-9]+")
_MAPPED = 96

#: Where instances of EC2 ask for their credentials; 169.254.169.254 is link-local anyway.
_AWS_METADATA = IPv6Address("fd00:ec2::254")


@dataclass(frozen=True, slots=True)
class ClientEnvironment:
    """What a client of one registry takes from this machine.

    Attributes:
        registry: TLS to the registry.
        elsewhere: TLS to the hosts that it redirects to: a client certificate is for the registry alone.
        proxies: those of the environment.
        agent: the User-Agent.
        problem: which of docker's and podman's certificates can't be used; empty if all can.
    """

    registry: ssl.SSLContext
    elsewhere: ssl.SSLContext
    proxies: Proxies
    agent: str
    problem: str

    @classmethod
    def detect(cls, registry: SourceRegistry) -> ClientEnvironment:
        """Read the environment and the certificates for *registry*; blocks for the 25 ms that authorities take to load.

        Raises:
            ConfigurationError: a file that *registry* names can't be used. Files of docker's and podman's are skipped.
            OSError: too many files are open.
        """
        own, elsewhere = both = [client_context(verify=registry.verify) for _ in range(2)]
        if registry.ca_bundle is not None:
            with usable_for_tls(registry.ca_bundle):
                load_authorities(registry.ca_bundle, *both)
        if registry.client_certificate is not None:
            with usable_for_tls(registry.client_certificate):
                load_chain(own, registry.client_certificate, registry.client_key, no_password)
        elif registry.client_key is not None:
            raise ConfigurationError(
                f"{registry.client_key} is a key without its certificate", hint="give both: --src-cert and --src-key"
            )
        problems = [] if registry.plain_http else list(_trust(registry, own, elsewhere))
        return cls(own, elsewhere, Proxies.detect(), user_agent(), problems[0] if problems else "")


def _trust(registry: SourceRegistry, own: ssl.SSLContext, elsewhere: ssl.SSLContext) -> Iterator[str]:
    """Load what docker and podman have for a registry in ``certs.d``; yield what can't be used of it.

    ``*.crt`` are authorities, and those of all folders are trusted. ``NAME.cert`` is a client certificate and
    ``NAME.key`` its key; the first one is presented, unless the registry's configuration names another.
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
                    with usable_for_tls(path):
                        load_authorities(path, own, elsewhere)
                elif path.suffix == ".cert" and not presented:
                    with usable_for_tls(path):
                        load_chain(own, path, key if key in files else None, no_password)
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


def no_password() -> str:
    """Answer OpenSSL's question for a key's password, which it would otherwise ask on the terminal: there is none."""
    return ""


def client_context(*, verify: bool) -> ssl.SSLContext:
    """TLS to a server that was tried with clients in Go; it blocks for the 12 ms that authorities take to load."""
    context = ssl.create_default_context()
    # As in Go: any certificate that is trusted may end a chain, and no extension is required. The defaults differ
    # between versions of Python.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def load_authorities(bundle: str | Path, *contexts: ssl.SSLContext) -> None:
    """Make *contexts* trust the authorities in a file.

    Raises:
        OSError: it can't be read, or holds no certificates.
    """
    with pem_file(bundle) as name:
        for context in contexts:
            context.load_verify_locations(name)


def load_chain(
    context: ssl.SSLContext,
    certificate: str | Path,
    key: str | Path | None,
    password: Callable[[], str] | None = None,
) -> None:
    """Make *context* present a certificate. Without *password*, OpenSSL asks for one on the terminal.

    Raises:
        OSError: a file can't be read, or the two don't belong together.
    """
    with pem_file(certificate) as name, pem_file(key) if key else nullcontext() as key_name:
        context.load_cert_chain(name, key_name, password)


@contextmanager
def usable_for_tls(path: object, hint: str = "it must be a PEM file, without a password") -> Iterator[None]:
    """Name *path* in errors about it: neither a missing file's error nor OpenSSL's does.

    Raises:
        ConfigurationError: it can't be used.
        OSError: too many files are open.
    """
    try:
        yield
    except OSError as error:
        if open_files.shortage(error):
            raise
        raise ConfigurationError(f"{path} can't be used for TLS: {error.strerror or error}", hint=hint) from error


@dataclass(frozen=True, slots=True)
class NoProxy:
    """The hosts that NO_PROXY excludes from proxies.

    Attributes:
        everything: one of its entries is ``*``.
        networks: ``10.0.0.0/8``; any port.
        addresses: ``10.0.0.1`` and ``[fd00::1]:5000``; an empty port means any.
        domains: ``example.com`` and everything below it, and the port.
        subdomains: ``.example.com``, which is only what lies below it, and the port.
    """

    everything: bool = False
    networks: tuple[_Network, ...] = ()
    addresses: frozenset[tuple[_Address, str]] = frozenset()
    domains: frozenset[tuple[str, str]] = frozenset()
    subdomains: frozenset[tuple[str, str]] = frozenset()

    @classmethod
    def parse(cls, text: str) -> NoProxy:
        """Read the value of NO_PROXY; meaningless entries are skipped."""
        networks: list[_Network] = []
        addresses, domains, subdomains = set(), set(), set()
        for entry in (word.strip().lower() for word in text.split(",")):
            if entry == "*":
                return cls(everything=True)
            if (network := _network(entry)) is not None:
                networks.append(network)
                continue
            split = _HOST_AND_PORT.fullmatch(entry)
            host, port = (split["bracketed"] or split["host"] or "", split["port"]) if split else (entry, "")
            if (address := _address(host)) is not None and "%" not in host:
                addresses.add((address, port))
            elif host.removeprefix("*").startswith("."):
                subdomains.add((host.removeprefix("*"), port))
            elif host:
                domains.add((host, port))
        return cls(False, tuple(networks), frozenset(addresses), frozenset(domains), frozenset(subdomains))

    def covers(self, host: str, port: int) -> bool:
        """Whether *host* (an IPv6 address has no brackets) is reached at *port* without a proxy."""
        host = host.strip().lower()
        if is_loopback(host) or self.everything:
            return True
        address, ports = _address(host), ("", str(port))
        if address is not None:
            is_listed = any((address, entry_port) in self.addresses for entry_port in ports)
            return is_listed or any(address in network for network in self.networks)
        if any((host, entry_port) in self.domains for entry_port in ports):
            return True
        parents = [host[dot:] for dot, letter in enumerate(host) if letter == "."]
        return any(
            (parent, entry_port) in self.subdomains or (parent[1:], entry_port) in self.domains
            for parent in parents
            for entry_port in ports
        )


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxies that the environment names.

    Attributes:
        addresses: each proxy's address as written, by the scheme that it is for: ``http`` or ``https``.
        exceptions: the hosts that are reached without one.
    """

    addresses: Mapping[str, str] = field(repr=False)
    exceptions: NoProxy

    @classmethod
    def detect(cls) -> Proxies:
        """Read the environment."""
        addresses = {scheme: _variable(f"{scheme}_proxy") for scheme in _PORTS}
        if "REQUEST_METHOD" in os.environ:
            # In a CGI program, HTTP_PROXY is the value of a header named Proxy that the client has sent.
            addresses["http"] = os.environ.get("http_proxy", "")
        for address in addresses.values():
            hide_user_of(address)
        return cls(addresses, NoProxy.parse(_variable("no_proxy")))

    def address_for(self, scheme: str, host: str, port: int) -> str | None:
        """The address of the proxy for requests to *host* and *port*; None where none is used."""
        address = self.addresses.get(scheme)
        return address if address and not self.exceptions.covers(host, port) else None


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy, and the headers that authenticate us to it."""

    url: URL
    headers: Mapping[str, str] | None


def proxy_for(url: URL, proxies: Proxies, headers: dict[str, str]) -> Proxy | None:
    """The proxy that the environment names for *url*; a proxy for plain HTTP adds its credentials to *headers*.

    Raises:
        ConfigurationError: it is not an address, or not that of an HTTP proxy.
    """
    address = proxies.address_for(url.scheme, url.host or "", url.port or 0)
    if address is None:
        return None
    try:
        proxy = URL(address if "://" in address else f"http://{address}")
    except ValueError:
        proxy = URL()
    if not proxy.host:
        # The address is not shown: it may hold a password.
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


def is_loopback(host: str) -> bool:
    """Whether *host*, without a port, is this machine itself."""
    address = _address(host.strip("[]"))
    return host == "localhost" or (address is not None and address.is_loopback)


def is_machine_local(host: str) -> bool:
    """Whether *host*, without a port, means a different machine to everybody: this one, or a neighbour on its link.

    Clouds serve metadata, credentials among it, from such addresses.
    """
    host = host.strip("[]").rstrip(".").lower()
    address = _address(host.partition("%")[0])
    if address is None:
        with suppress(OSError):
            address = IPv4Address(inet_aton(host))  # connect() takes 127.1 and 0x7f000001, too
    if address is None:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_link_local or address.is_unspecified or address == _AWS_METADATA


def bypasses_proxies(url: str) -> bool:
    """Whether *url* is reached without a proxy: NO_PROXY lists it, or it is on this machine."""
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError:
        return False
    return bool(parts.hostname) and _parsed(_variable("no_proxy")).covers(parts.hostname or "", port)


@functools.cache
def _parsed(text: str) -> NoProxy:
    return NoProxy.parse(text)


def _variable(name: str) -> str:
    return os.environ.get(name.upper()) or os.environ.get(name, "")


def _address(text: str) -> _Address | None:
    """An address without its zone, and an IPv4-mapped one as IPv4."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or IPv6Address(int(address))
    return address


def _network(text: str) -> _Network | None:
    if not _CIDR.fullmatch(text):
        return None
    try:
        network = ip_network(text, strict=False)
    except ValueError:
        return None
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    if mapped is not None and network.prefixlen >= _MAPPED:
        return IPv4Network((mapped, network.prefixlen - _MAPPED))
    return network


@functools.cache
def user_agent() -> str:
    """The User-Agent of every request (RFC 9110, section 10.1.5): ``asyncpush/VERSION Python/VERSION SYSTEM``."""
    return f"asyncpush/{version('asyncpush')} Python/{platform.python_version()} {platform.system()}"


def proxy_advice(url: str) -> str:
    """What to check besides the network if *url* can't be reached: the proxy on the way; empty if there is none."""
    scheme = url.partition(":")[0].lower()
    if not _variable(f"{scheme}_proxy") or bypasses_proxies(url):
        return ""
    return f", and the proxy that {scheme.upper()}_PROXY names"
