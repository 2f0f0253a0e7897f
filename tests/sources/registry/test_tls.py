"""A registry proves its name, and knows ours where it asks; no secret goes out in the clear."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from aiohttp import web

from asyncpush.errors import ConfigurationError, SourceError, SourceUnavailableError
from asyncpush.http import session
from asyncpush.settings import Credentials, SourceRegistry
from support.certificates import plain_authority
from support.registry_server import QUICK, RegistryServer, open_remote, ranged, refusal, running

CREDENTIALS = Credentials("user", "secret")


@pytest.fixture(autouse=True)
def no_certificates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test sees this machine's certificates for registries."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    etc = [tmp_path / "etc" / each / "certs.d" for each in ("containers", "docker")]
    monkeypatch.setattr(session, "CERTIFICATE_FOLDERS", tuple(etc))


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return plain_authority()


@pytest.fixture
def bundle(ca: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    ca.cert_pem.write_to_path(path)
    return path


@pytest.fixture
def certified(ca: trustme.CA) -> Callable[..., ssl.SSLContext]:
    """A server's context with a certificate for these names; with *asks*, it wants one, too."""

    def make(*names: str, asks: bool = False) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert(*names).configure_cert(context)
        if asks:
            context.verify_mode = ssl.CERT_REQUIRED
            ca.configure_trust(context)
        return context

    return make


def held() -> RegistryServer:
    return RegistryServer(tags={"team/app": ["1"]})


async def tags(registry: SourceRegistry) -> tuple[str, ...]:
    async with open_remote(registry, retry=QUICK) as remote:
        return await remote.tags("team/app")


async def test_a_registry_is_trusted_by_the_bundle_that_was_given(
    certified: Callable[..., ssl.SSLContext], bundle: Path
) -> None:
    async with running(held(), certified("127.0.0.1")) as server:
        assert await tags(SourceRegistry(host=server.host, ca_bundle=bundle, anonymous=True)) == ("1",)
        with pytest.raises(SourceUnavailableError, match=r"is not trusted.*--src-ca-bundle"):
            await tags(SourceRegistry(host=server.host, credentials=CREDENTIALS))
        assert len(server.seen) == 1


async def test_a_certificate_for_another_name_is_refused(
    certified: Callable[..., ssl.SSLContext], bundle: Path
) -> None:
    async with running(held(), certified("elsewhere.example")) as server:
        with pytest.raises(SourceUnavailableError, match="is not trusted"):
            await tags(SourceRegistry(host=server.host, ca_bundle=bundle, credentials=CREDENTIALS))
        assert not server.seen
        assert await tags(SourceRegistry(host=server.host, verify=False, anonymous=True)) == ("1",)


@pytest.mark.parametrize("joined", [False, True])
async def test_a_client_certificate_is_shown_to_who_asks(
    ca: trustme.CA, certified: Callable[..., ssl.SSLContext], bundle: Path, tmp_path: Path, joined: bool
) -> None:
    own = ca.issue_cert("me@team.example")
    certificate, key = tmp_path / "me.pem", tmp_path / "me.key"
    own.cert_chain_pems[0].write_to_path(certificate)
    own.private_key_pem.write_to_path(key)
    if joined:
        own.private_key_and_cert_chain_pem.write_to_path(certificate)
    async with running(held(), certified("127.0.0.1", asks=True)) as server:
        registry = SourceRegistry(
            host=server.host,
            ca_bundle=bundle,
            client_certificate=certificate,
            client_key=None if joined else key,
            anonymous=True,
        )
        assert await tags(registry) == ("1",)
        with pytest.raises(SourceUnavailableError, match="--src-cert"):
            await tags(SourceRegistry(host=server.host, ca_bundle=bundle, anonymous=True))


FOLDERS = [
    "etc/docker/certs.d",
    "etc/containers/certs.d",
    "home/.config/containers/certs.d",
    "home/.config/docker/certs.d",
    "home/.docker/certs.d",
]


def folder_of(tmp_path: Path, host: str, folder: str = FOLDERS[0]) -> Path:
    path = tmp_path / folder / host
    path.mkdir(parents=True)
    return path


@pytest.mark.parametrize("folder", FOLDERS)
async def test_certificates_are_found_where_docker_and_podman_look(
    ca: trustme.CA, certified: Callable[..., ssl.SSLContext], tmp_path: Path, folder: str
) -> None:
    own = ca.issue_cert("me@team.example")
    async with running(held(), certified("127.0.0.1", asks=True)) as server:
        path = folder_of(tmp_path, server.host, folder)
        ca.cert_pem.write_to_path(path / "ca.crt")
        own.cert_chain_pems[0].write_to_path(path / "client.cert")
        own.private_key_pem.write_to_path(path / "client.key")

        assert await tags(SourceRegistry(host=server.host, anonymous=True)) == ("1",)


async def test_an_authority_below_another_may_be_trusted_by_itself(ca: trustme.CA, tmp_path: Path) -> None:
    below = ca.create_child_ca()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    below.issue_cert("127.0.0.1").configure_cert(context)
    async with running(held(), context) as server:
        below.cert_pem.write_to_path(folder_of(tmp_path, server.host) / "ca.crt")

        assert await tags(SourceRegistry(host=server.host, anonymous=True)) == ("1",)


async def test_certificates_are_for_their_registry_alone(
    ca: trustme.CA, certified: Callable[..., ssl.SSLContext], tmp_path: Path
) -> None:
    async with running(held(), certified("127.0.0.1")) as server:
        for host in ("127.0.0.1", f"127.0.0.1:{server.port + 1}"):
            ca.cert_pem.write_to_path(folder_of(tmp_path, host) / "ca.crt")

        with pytest.raises(SourceUnavailableError, match="is not trusted"):
            await tags(SourceRegistry(host=server.host, anonymous=True))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ca.crt", r"ca\.crt can't be used for TLS"),
        ("client.cert", r"client\.cert is a certificate without its key, client\.key"),
        ("client.key", r"client\.key is a key without its certificate, client\.cert"),
        (None, r"docker/certs\.d/127\.0\.0\.1:[0-9]+ can't be read"),
    ],
)
async def test_an_unusable_docker_certificate_is_named_only_where_tls_fails(
    certified: Callable[..., ssl.SSLContext],
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str | None,
    words: str,
) -> None:
    """An unusable certificate of Docker's configuration is named only where TLS fails."""
    async with running(held(), certified("127.0.0.1")) as server:
        path = folder_of(tmp_path, server.host)
        if name is not None:
            (path / name).write_text("rubbish")
        else:
            unreadable(path, monkeypatch)

        assert await tags(SourceRegistry(host=server.host, ca_bundle=bundle, anonymous=True)) == ("1",)
        with pytest.raises(SourceUnavailableError, match=f"is not trusted.*{words}"):
            await tags(SourceRegistry(host=server.host, anonymous=True))


def unreadable(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``chmod 700`` by root has it, for a test that root may run."""
    regular = Path.iterdir

    def refused(self: Path) -> Iterator[Path]:
        if self == path:
            raise PermissionError(13, "Permission denied")
        return regular(self)

    monkeypatch.setattr(Path, "iterdir", refused)


@pytest.mark.parametrize("member", ["ca_bundle", "client_certificate", "client_key"])
@pytest.mark.parametrize("content", [None, "rubbish"])
async def test_a_file_that_does_not_do_is_named(tmp_path: Path, member: str, content: str | None) -> None:
    path = tmp_path / "file.pem"
    if content is not None:
        path.write_text(content)

    with pytest.raises(ConfigurationError, match=r"file\.pem"):
        await tags(SourceRegistry(host="127.0.0.1:1", anonymous=True, **{member: path}))


async def test_plain_http_is_spoken_only_where_it_was_said(certified: Callable[..., ssl.SSLContext]) -> None:
    async with running(held()) as server:
        with pytest.raises(SourceUnavailableError, match="--src-plain-http"):
            await tags(SourceRegistry(host=server.host, credentials=CREDENTIALS))
        assert not server.seen
    async with running(held(), certified("127.0.0.1")) as server:
        with pytest.raises(SourceError):
            await tags(SourceRegistry(host=server.host, plain_http=True, anonymous=True))


async def test_a_redirect_from_https_to_http_is_not_followed(
    certified: Callable[..., ssl.SSLContext], bundle: Path
) -> None:
    async with running() as plain, running(held(), certified("127.0.0.1")) as server:

        @server.rule("GET", "/tags/")
        async def down(request: web.Request) -> web.StreamResponse:
            return web.Response(status=302, headers={"Location": f"{plain.url}/x"})

        with pytest.raises(SourceError, match="from HTTPS to HTTP"):
            await tags(SourceRegistry(host=server.host, ca_bundle=bundle, anonymous=True))
        assert not plain.seen


@pytest.mark.parametrize("realm", ["http://tokens.example/token", "http://10.0.0.1/token"])
async def test_credentials_go_to_no_token_service_in_the_clear(
    certified: Callable[..., ssl.SSLContext], bundle: Path, realm: str
) -> None:
    async with running(held(), certified("127.0.0.1")) as server:

        @server.rule("GET", "/tags/")
        async def ask(request: web.Request) -> web.StreamResponse:
            return refusal(401, "UNAUTHORIZED", "who?", WWW_Authenticate=f'Bearer realm="{realm}"')

        with pytest.raises(SourceError, match="in plain HTTP; credentials are never sent in the clear"):
            await tags(SourceRegistry(host=server.host, ca_bundle=bundle, credentials=CREDENTIALS))


async def test_the_client_certificate_is_for_the_registry_alone(
    ca: trustme.CA, certified: Callable[..., ssl.SSLContext], bundle: Path, tmp_path: Path
) -> None:
    shown: list[object] = []
    own = tmp_path / "me.pem"
    ca.issue_cert("me@team.example").private_key_and_cert_chain_pem.write_to_path(own)
    curious = certified("127.0.0.1", asks=True)
    curious.verify_mode = ssl.CERT_OPTIONAL
    async with running(held(), certified("127.0.0.1", asks=True)) as server, running(tls=curious) as store:

        @store.rule("GET", "/page")
        async def page(request: web.Request) -> web.StreamResponse:
            assert request.transport is not None
            shown.append(request.transport.get_extra_info("peercert"))
            return ranged(request, b'{"tags": ["2"]}')

        @server.rule("GET", "/tags/")
        async def elsewhere(request: web.Request) -> web.StreamResponse:
            return web.Response(status=302, headers={"Location": f"{store.url}/page"})

        registry = SourceRegistry(host=server.host, ca_bundle=bundle, client_certificate=own, anonymous=True)
        assert await tags(registry) == ("2",)
    assert not any(shown)


async def test_a_proxy_of_the_environment_is_used_and_nothing_of_netrc(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    async with running(held()) as proxy:
        monkeypatch.setenv("http_proxy", f"http://me:{'p%40ss'}@{proxy.host}")
        registry = SourceRegistry(host="registry.example:5000", plain_http=True, anonymous=True)

        assert await tags(registry) == ("1",)
        [seen] = proxy.seen
        assert seen.headers["Host"] == "registry.example:5000"
        assert seen.headers["Proxy-Authorization"] == "Basic bWU6cEBzcw=="
        assert seen.authorization is None

        monkeypatch.setenv("NO_PROXY", "registry.example,127.0.0.1")
        with pytest.raises(SourceUnavailableError, match="can't be reached"):
            await tags(registry)
