"""Which proxy the environment names for an address, as Go reads it, and so docker, podman, skopeo and crane.

``urllib`` knows no networks in NO_PROXY and sends this machine's own addresses through the proxy, too.

Sources: golang.org/x/net/http/httpproxy (HTTP_PROXY, HTTPS_PROXY, NO_PROXY, or the same in lower case).
"""

from __future__ import annotations

import functools
import os
import platform
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from socket import inet_aton
from typing import TypeAlias
from urllib.parse import urlsplit

from asyncpush.redaction import hide_user_of

_Address: TypeAlias = IPv4Address | IPv6Address
_Network: TypeAlias = IPv4Network | IPv6Network

_PORTS = {"http": 80, "https": 443}
_HOST_AND_PORT = re.compile(r"(?:\[(?P<bracketed>[^\[\]]*)\]|(?P<host>[^\[\]:]*)):(?P<port>[^\[\]:]*)")
_CIDR = re.compile(r"[0-9a-f.:]+/[0-9]+")
_MAPPED = 96

#: Where instances of EC2 ask for their credentials; 169.254.169.254 is a link's.
_AWS_METADATA = IPv6Address("fd00:ec2::254")


@dataclass(frozen=True, slots=True)
class NoProxy:
    """What NO_PROXY excepts from proxies; ``NoProxy.parse`` reads it.

    Attributes:
        everything: it is ``*``, or has it among its entries.
        networks: ``10.0.0.0/8``; any port.
        addresses: ``10.0.0.1`` and ``[fd00::1]:5000``; an empty port is any.
        domains: ``example.com``, with all that is below it, and its port.
        subdomains: ``.example.com``, which is only what is below it, and its port.
    """

    everything: bool = False
    networks: tuple[_Network, ...] = ()
    addresses: frozenset[tuple[_Address, str]] = frozenset()
    domains: frozenset[tuple[str, str]] = frozenset()
    subdomains: frozenset[tuple[str, str]] = frozenset()

    @classmethod
    def parse(cls, text: str) -> NoProxy:
        """Read the value of NO_PROXY; entries that mean nothing are passed over."""
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

    def cover(self, host: str, port: int) -> bool:
        """Whether *host*, an IPv6 address without brackets, is reached at *port* without a proxy."""
        host = host.strip().lower()
        if is_loopback(host) or self.everything:
            return True
        address, ports = _address(host), ("", str(port))
        if address is not None:
            known = any((address, each) in self.addresses for each in ports)
            return known or any(address in network for network in self.networks)
        if any((host, each) in self.domains for each in ports):
            return True
        above = [host[at:] for at, letter in enumerate(host) if letter == "."]
        return any(
            (domain, each) in self.subdomains or (domain[1:], each) in self.domains
            for domain in above
            for each in ports
        )


@dataclass(frozen=True, slots=True)
class Proxies:
    """What the environment says of proxies.

    Attributes:
        addresses: a proxy's address by the scheme that it is for, ``http`` or ``https``; as written.
        exceptions: where none is used.
    """

    addresses: Mapping[str, str] = field(repr=False)
    exceptions: NoProxy

    @classmethod
    def detect(cls) -> Proxies:
        """Read the environment."""
        addresses = {scheme: _variable(f"{scheme}_proxy") for scheme in _PORTS}
        if "REQUEST_METHOD" in os.environ:
            # Of a CGI program, HTTP_PROXY is what the client has sent as a header named Proxy.
            addresses["http"] = os.environ.get("http_proxy", "")
        for address in addresses.values():
            hide_user_of(address)
        return cls(addresses, NoProxy.parse(_variable("no_proxy")))

    def address_for(self, scheme: str, host: str, port: int) -> str | None:
        """The address of the proxy for what is at *host* and *port*; None where none is used."""
        address = self.addresses.get(scheme)
        return address if address and not self.exceptions.cover(host, port) else None


def is_loopback(host: str) -> bool:
    """Whether *host*, without a port, is this machine itself."""
    address = _address(host.strip("[]"))
    return host == "localhost" or (address is not None and address.is_loopback)


def is_only_here(host: str) -> bool:
    """Whether *host*, without a port, means another machine to everybody: this one itself, or its link.

    What a cloud tells its machines, credentials among it, is at such an address, too.
    """
    host = host.strip("[]").rstrip(".").lower()
    address = _address(host.partition("%")[0])
    if address is None:
        with suppress(OSError):
            address = IPv4Address(inet_aton(host))  # 127.1 and 0x7f000001 are addresses to all who connect
    if address is None:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_link_local or address.is_unspecified or address == _AWS_METADATA


def is_excepted(url: str) -> bool:
    """Whether the environment excepts *url* from proxies: NO_PROXY does, or it is on this machine."""
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS.get(parts.scheme, 0)
    except ValueError:
        return False
    return bool(parts.hostname) and _parsed(_variable("no_proxy")).cover(parts.hostname or "", port)


@cache
def _parsed(text: str) -> NoProxy:
    return NoProxy.parse(text)


def _variable(name: str) -> str:
    return os.environ.get(name.upper()) or os.environ.get(name, "")


def _address(text: str) -> _Address | None:
    """An address, without its zone, and as IPv4 where it is one that IPv6 writes."""
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
