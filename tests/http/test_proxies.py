"""Which requests go through the environment's proxy: those that Go would send there, to registries and to ECR alike."""

from __future__ import annotations

import ssl
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import pytest
import trustme
from aiohttp import web
from anyio.abc import SocketAttribute, SocketStream
from hypothesis import given
from hypothesis import strategies as st

import asyncpush
from asyncpush import Settings
from asyncpush.emulator import Emulator
from asyncpush.errors import ConfigurationError, ConnectionFailedError, SourceUnavailableError
from asyncpush.http.session import NoProxy, Proxies, bypasses_proxies
from asyncpush.settings import SourceRegistry
from support.aws import aws
from support.images import app_layout
from support.registry_server import QUICK, RegistryServer, open_remote, running

#: A port that nobody listens at.
DEAD = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for scheme in ("http", "https", "no", "all"):
        for name in (f"{scheme}_proxy", f"{scheme}_proxy".upper()):
            monkeypatch.delenv(name, raising=False)


#: NO_PROXY, addresses that it excepts, and others: as ``http.ProxyFromEnvironment`` of Go 1.26 has answered.
GO = [
    (
        "",
        "http://127.0.0.1:5000/ http://127.9.9.9/ http://localhost:80/ https://[::1]:5000/ http://[::ffff:127.0.0.1]/",
        "http://registry.example/ http://10.0.0.1/ http://a.localhost/ http://0.0.0.0/ http://127.example/",
    ),
    ("*", "http://registry.example/ http://10.0.0.1/", ""),
    ("a.example, *", "https://registry.example/", ""),
    ("*.*", "", "http://registry.example/"),
    (
        "example.com",
        "http://example.com/ http://EXAMPLE.com/ https://a.b.example.com:5000/",
        "http://badexample.com/ http://example.com.evil/",
    ),
    (".example.com", "http://a.example.com/", "http://example.com/"),
    ("*.example.com", "http://a.example.com/", "http://example.com/"),
    (" Example.COM ,", "http://example.com/", ""),
    ("example.com:5000", "http://example.com:5000/ https://a.example.com:5000/", "http://example.com/"),
    ("example.com:443", "https://example.com/", "http://example.com/"),
    ("example.com:", "http://example.com/", ""),
    ("example.com:http", "", "http://example.com/"),
    (":80", "", "http://example.com/"),
    (
        "10.0.0.0/8",
        "http://10.1.2.3/ https://10.255.255.255:5000/ http://[::ffff:10.1.2.3]/",
        "http://11.0.0.1/ http://10.example/",
    ),
    ("10.1.2.3/8", "http://10.200.0.1/", ""),
    ("10.0.0.0/33", "", "http://10.0.0.0/"),
    ("10.0.0.0/255.0.0.0", "", "http://10.0.0.1/"),
    ("0.0.0.0/0", "http://10.0.0.1/", "http://[fd00::1]/ http://registry.example/"),
    ("10.0.0.1", "http://10.0.0.1/ https://10.0.0.1:5000/", "http://10.0.0.10/"),
    ("10.0.0.1:5000", "http://10.0.0.1:5000/", "http://10.0.0.1/"),
    ("10.0.0", "", "http://10.0.0.1/"),
    ("0.1", "", "http://10.0.0.1/"),
    ("fd00::/8", "http://[fd00::1]:5000/", "http://[fe00::1]/"),
    ("::ffff:10.0.0.0/104", "http://10.1.2.3/", "http://11.1.2.3/"),
    ("fd00::1", "http://[fd00::1]:5000/ http://[fd00:0:0::1]/", ""),
    ("[fd00::1]:5000", "http://[fd00::1]:5000/", "http://[fd00::1]/"),
    ("[fd00::1]", "", "http://[fd00::1]/"),
    ("nonsense/,10.0.0.0/8", "http://10.0.0.1/", ""),
]


@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_no_proxy_is_read_as_go_reads_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", DEAD)
    monkeypatch.setenv("https_proxy", DEAD)

    def is_direct(url: str) -> bool:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        return Proxies.detect().address_for(parts.scheme, str(parts.hostname), port) is None

    for no_proxy, excepted, others in GO:
        monkeypatch.setenv(name, no_proxy)
        for answer in (is_direct, bypasses_proxies):
            found = [url for url in f"{excepted} {others}".split() if answer(url)]
            assert (no_proxy, found) == (no_proxy, excepted.split())


@given(st.integers(0, 2**32 - 1), st.integers(0, 32), st.integers(0, 2**32 - 1))
def test_a_network_excepts_the_addresses_that_begin_as_it_does(base: int, bits: int, number: int) -> None:
    same = base >> (32 - bits) == number >> (32 - bits)
    exceptions = NoProxy.parse(f"x.example,{IPv4Address(base)}/{bits},{IPv6Network(f'{IPv6Address(base)}/128')}")

    assert exceptions.covers(str(IPv4Address(number)), 80) == (same or number >> 24 == 127)
    assert exceptions.covers(f"::ffff:{IPv4Address(number)}", 80) == exceptions.covers(str(IPv4Address(number)), 443)


@given(st.text(alphabet="a1.:*[]/%, -f", max_size=30), st.ip_addresses() | st.sampled_from(["a.f", "f", "1"]))
def test_no_rubbish_in_no_proxy_is_an_error(text: str, host: object) -> None:
    assert NoProxy.parse(text).covers(str(host), 80) in (True, False)


@pytest.mark.parametrize(
    ("variables", "address"),
    [
        ({"HTTP_PROXY": "http://one:1", "http_proxy": "http://two:2"}, "http://one:1"),
        ({"HTTP_PROXY": "", "http_proxy": "http://two:2"}, "http://two:2"),
        ({"HTTPS_PROXY": "http://one:1", "ALL_PROXY": "http://two:2"}, None),
        ({"HTTP_PROXY": "http://attacker:1", "REQUEST_METHOD": "GET"}, None),
        ({}, None),
    ],
)
def test_which_variable_names_the_proxy(
    variables: dict[str, str], address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    assert Proxies.detect().address_for("http", "registry.example", 80) == address


# Whom it serves


async def tags(host: str, **more: object) -> tuple[str, ...]:
    registry = SourceRegistry(host=host, anonymous=True, **more)  # type: ignore[arg-type]
    async with open_remote(registry, retry=QUICK) as remote:
        return await remote.tags("team/app")


def held() -> RegistryServer:
    return RegistryServer(tags={"team/app": ["1"]})


async def test_a_registry_on_this_machine_is_asked_without_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", DEAD)
    async with running(held()) as server:
        assert await tags(server.host, plain_http=True) == ("1",)


async def test_ecr_on_this_machine_is_asked_without_the_proxy(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HTTP_PROXY", DEAD)
    layout = app_layout()
    source = f"oci:{layout.write(tmp_path / 'layout')}"
    configuration = aws(f"http://127.0.0.1:{emulator.port}")
    async with asyncpush.connect(aws=configuration, settings=Settings(create_repository=True)) as registry:
        assert (await asyncpush.push(registry, source, "team/app:1")).outcome == "pushed"


async def test_a_proxy_that_wants_to_know_who_asks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as proxy:

        @proxy.rule("GET", "/")
        async def who(request: web.Request) -> web.StreamResponse:
            return web.Response(status=407, headers={"Proxy-Authenticate": "Basic"})

        monkeypatch.setenv("HTTP_PROXY", f"http://me:s3cret@{proxy.host}")
        with pytest.raises(
            SourceUnavailableError, match=r"proxy for registry\.example requires cred.*HTTP_PROXY"
        ) as caught:
            await tags("registry.example", plain_http=True)
        assert "s3cret" not in str(caught.value)


async def test_a_proxy_that_leaves_after_it_has_agreed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async def agree(stream: SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(b"HTTP/1.1 200 Connection established\r\n\r\n")

    [listener] = (await anyio.create_tcp_listener(local_host="127.0.0.1")).listeners
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{listener.extra(SocketAttribute.local_port)}")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, agree)
        told = "Connection reset by peer.*HTTPS_PROXY"
        with pytest.raises(SourceUnavailableError, match=told):
            await tags("registry.example")
        async with asyncpush.connect(aws=aws("https://ecr.example"), settings=Settings(retry=QUICK)) as registry:
            with pytest.raises(ConnectionFailedError, match=told):
                await registry.login()
        tasks.cancel_scope.cancel()


async def test_a_proxy_behind_tls_proves_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ca, bundle = trustme.CA(), tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(bundle)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    async with running(held(), context) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url)
        assert await tags("registry.example", plain_http=True, ca_bundle=bundle) == ("1",)
        with pytest.raises(
            SourceUnavailableError, match=f"the proxy {proxy.host}, for registry.example, is not trusted"
        ):
            await tags("registry.example", plain_http=True)


async def test_a_proxy_of_another_protocol_is_an_error_that_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "socks5://me:s3cret@proxy.example:1080")
    with pytest.raises(ConfigurationError, match=r"speaks socks5.*check HTTP_PROXY") as caught:
        await tags("registry.example", plain_http=True)
    assert "s3cret" not in str(caught.value)
