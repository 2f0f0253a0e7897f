"""TLS: who is asked proves its name, to every client of the process, through a proxy too, or nothing is sent."""

from __future__ import annotations

import asyncio
import importlib.util
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import aioboto3
import aiobotocore
import anyio
import pytest
import trustme
from aiobotocore.config import AioConfig
from aiobotocore.httpsession import AIOHTTPSession
from anyio import to_thread
from botocore.awsrequest import AWSRequest
from botocore.exceptions import BotoCoreError, SSLError

import asyncpush
from asyncpush import AwsConfiguration, Registry, Settings
from asyncpush.ecr import http_session
from asyncpush.emulator import Emulator, KnownCredentials
from asyncpush.errors import ConfigurationError, ConnectionFailedError
from support.aws import KEYS, REGION, aws
from support.certificates import plain_authority
from support.commands import Ran, run_cli
from support.images import Layout, layer_tar
from support.servers import serving_streams

AIOBOTOCORE = tuple(int(word) for word in aiobotocore.__version__.split(".")[:2])
until_mended = pytest.mark.skipif(AIOBOTOCORE >= (3, 9), reason="aiobotocore checks host names itself since 3.9")
ELSEWHERE = "elsewhere.example"
SETTINGS = Settings(create_repository=True)


@dataclass
class Authority:
    """A certificate authority, and the file that clients trust it by."""

    ca: trustme.CA
    bundle: Path

    def server(self, *names: str) -> ssl.SSLContext:
        """A server's context with a certificate for *names*."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*names).configure_cert(context)
        return context


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    ca, bundle = plain_authority(), tmp_path_factory.mktemp("ca") / "bundle.pem"
    ca.cert_pem.write_to_path(bundle)
    return Authority(ca, bundle)


@pytest.fixture
def trusted(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """The authority, named by AWS_CA_BUNDLE."""
    monkeypatch.setenv("AWS_CA_BUNDLE", str(authority.bundle))
    return authority


@pytest.fixture
def start(tmp_path: Path) -> Callable[[ssl.SSLContext], Emulator]:
    keys = [KnownCredentials("test", "test"), KnownCredentials("role", "secret", "token")]
    return lambda context: Emulator(tmp_path / "ecr", fsync=False, tls=context, credentials=keys)


@pytest.fixture
def layout(tmp_path: Path) -> str:
    layout = Layout()
    layout.tag(layout.image(layer_tar("tls")), "1")
    return f"oci:{layout.write(tmp_path / 'layout')}:1"


async def push(configuration: AwsConfiguration, layout: str, name: str = "team/app:1") -> asyncpush.ImageResult:
    async with asyncpush.connect(aws=configuration, settings=SETTINGS) as registry:
        return await asyncpush.push(registry, layout, name)


def localhost(emulator: Emulator) -> AwsConfiguration:
    return aws(f"https://localhost:{emulator.port}")


async def cli(emulator: Emulator, layout: str, **environment: str) -> Ran:
    """Push by the command, in a process of its own."""
    words = ("push", layout, "team/app:1", "--create-repository", "--progress", "none")
    environment["AWS_ENDPOINT_URL_ECR"] = f"https://localhost:{emulator.port}"
    return await to_thread.run_sync(partial(run_cli, *words, **environment))


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
async def test_a_push_goes_to_a_server_whose_certificate_is_trusted_and_names_it(
    trusted: Authority, start: Callable[..., Emulator], layout: str, name: str
) -> None:
    async with start(trusted.server(name)) as emulator:
        assert (await push(aws(f"https://{name}:{emulator.port}"), layout)).outcome == "pushed"
        assert (await push(aws(f"https://{name}:{emulator.port}"), layout)).outcome == "present"


async def test_an_intermediate_authority_alone_may_be_trusted(
    start: Callable[..., Emulator], layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    intermediate = Authority(trustme.CA().create_child_ca(), tmp_path / "bundle.pem")
    intermediate.ca.cert_pem.write_to_path(intermediate.bundle)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(intermediate.bundle))
    async with start(intermediate.server("localhost")) as emulator:
        assert (await push(localhost(emulator), layout)).outcome == "pushed"


async def test_a_certificate_for_another_host_is_refused_before_anything_is_sent(
    trusted: Authority, start: Callable[..., Emulator], layout: str
) -> None:
    async with start(trusted.server(ELSEWHERE)) as emulator:
        for url in (f"https://127.0.0.1:{emulator.port}", f"https://localhost:{emulator.port}"):
            with pytest.raises(ConnectionFailedError, match=f"{url} is not trusted.*mismatch"):
                await push(aws(url), layout)
        assert list(emulator.requests) == []


async def test_an_authority_that_nobody_trusts_is_refused(
    authority: Authority, start: Callable[..., Emulator], layout: str
) -> None:
    async with start(authority.server("localhost")) as emulator:
        with pytest.raises(ConnectionFailedError, match="is not trusted"):
            await push(localhost(emulator), layout)
        assert list(emulator.requests) == []


async def test_the_command_says_in_one_line_that_a_host_is_not_trusted(
    trusted: Authority, start: Callable[..., Emulator], layout: str
) -> None:
    async with start(trusted.server(ELSEWHERE)) as emulator:
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        ran = await cli(emulator, layout, **keys, AWS_REGION=REGION)
        assert list(emulator.requests) == []
    assert (ran.status, ran.out) == (1, "")
    [line] = ran.err.splitlines()
    assert line.startswith("asyncpush: error: ")
    assert "is not trusted" in line
    assert "AWS_CA_BUNDLE" in line


@until_mended
@pytest.mark.parametrize("content", [None, b"no certificate"])
async def test_a_bundle_that_can_not_be_used_is_named(
    content: bytes | None,
    start: Callable[..., Emulator],
    authority: Authority,
    layout: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = tmp_path / "bundle.pem"
    if content is not None:
        bundle.write_bytes(content)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
    async with start(authority.server("localhost")) as emulator:
        with pytest.raises(ConfigurationError, match=f"{bundle} can't be used"):
            await push(localhost(emulator), layout)


@dataclass
class Sts:
    """An STS that gives everybody a role, and remembers what it was sent."""

    received: list[bytes] = field(default_factory=list)
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            self.received.append(await reader.readuntil(b"\r\n\r\n"))
            body = (
                "<AssumeRoleResponse><AssumeRoleResult><Credentials><AccessKeyId>role</AccessKeyId>"
                "<SecretAccessKey>secret</SecretAccessKey><SessionToken>token</SessionToken>"
                "<Expiration>2099-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>"
            )
            writer.write(
                f"HTTP/1.1 200 OK\r\nContent-Type: text/xml\r\nConnection: close\r\n"
                f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
            )
            await writer.drain()
        writer.close()


@asynccontextmanager
async def sts(context: ssl.SSLContext) -> AsyncIterator[Sts]:
    running = Sts()
    async with serving_streams(running.serve, tls=context) as port:
        running.url = f"https://localhost:{port}"
        yield running


async def test_a_client_as_credential_providers_make_them_checks_names_too(
    trusted: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    http_session.check_host_names()
    async with sts(trusted.server(ELSEWHERE)) as service:
        session = aioboto3.Session()._session
        async with session.create_client("sts", endpoint_url=service.url, region_name=REGION, **KEYS) as client:
            with pytest.raises(SSLError, match="mismatch"):
                await client.get_caller_identity()
    assert service.received == []


@pytest.mark.parametrize("name", [ELSEWHERE, "localhost"])
async def test_a_role_is_assumed_only_where_sts_proves_its_name(
    name: str, trusted: Authority, start: Callable[..., Emulator], layout: str, tmp_path: Path
) -> None:
    config = tmp_path / "config"
    config.write_text(
        f"[profile deploy]\nregion = {REGION}\nrole_arn = arn:aws:iam::123456789012:role/deploy\n"
        "source_profile = base\n[profile base]\naws_access_key_id = base\naws_secret_access_key = secret\n"
    )
    async with start(trusted.server("localhost")) as emulator, sts(trusted.server(name)) as service:
        environment = {"AWS_PROFILE": "deploy", "AWS_CONFIG_FILE": str(config), "AWS_ENDPOINT_URL_STS": service.url}
        ran = await cli(emulator, layout, **environment, AWS_MAX_ATTEMPTS="1")
        if name == "localhost":
            assert (ran.status, ran.err) == (0, "")
            assert len(service.received) == 1
        else:
            assert (ran.status, ran.out) == (4, "")
            assert ran.err.startswith("asyncpush: error: no AWS credentials from role ")
            assert f"SSL validation failed for {service.url}" in ran.err
            assert ran.err.count("\n") == 1
            assert (service.received, list(emulator.requests)) == ([], [])


@dataclass
class Proxy:
    """An HTTP proxy that connects every name to one port of this machine."""

    target: int
    url: str = ""
    asked: list[str] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        method, name, _ = head.decode().split(" ", 2)
        assert method == "CONNECT"
        self.asked.append(name)
        behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", self.target)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        async with anyio.create_task_group() as tg:
            tg.start_soon(self._pass_on, reader, behind_writer)
            tg.start_soon(self._pass_on, behind_reader, writer)

    @staticmethod
    async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(2**16):
                writer.write(data)
                await writer.drain()
        writer.close()


@asynccontextmanager
async def proxy_to(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Proxy]:
    proxy = Proxy(emulator.port)
    async with serving_streams(proxy.serve) as port:
        proxy.url = f"http://127.0.0.1:{port}"
        monkeypatch.setenv("HTTPS_PROXY", proxy.url)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name)
        yield proxy


@pytest.mark.parametrize("name", [ELSEWHERE, "api.ecr.test"])
async def test_a_proxy_changes_nothing_about_whom_to_trust(
    name: str, trusted: Authority, start: Callable[..., Emulator], layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start(trusted.server(name)) as emulator, proxy_to(emulator, monkeypatch) as proxy:
        configuration = aws("https://api.ecr.test")
        if name == "api.ecr.test":
            assert (await push(configuration, layout)).outcome == "pushed"
        else:
            with pytest.raises(ConnectionFailedError, match=r"https://api\.ecr\.test is not trusted.*mismatch"):
                await push(configuration, layout)
            assert list(emulator.requests) == []
        assert set(proxy.asked) == {"api.ecr.test:443"}


async def test_behind_a_proxy_an_authority_that_nobody_trusts_is_refused(
    authority: Authority, start: Callable[..., Emulator], layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start(authority.server("api.ecr.test")) as emulator, proxy_to(emulator, monkeypatch):
        with pytest.raises(ConnectionFailedError, match="is not trusted"):
            await push(aws("https://api.ecr.test"), layout)
        assert list(emulator.requests) == []


@pytest.fixture
def as_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """aiobotocore without our mending."""
    spec = importlib.util.find_spec("aiobotocore.httpsession")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(AIOHTTPSession, "_get_session", module.AIOHTTPSession._get_session)


@pytest.fixture
def unmended(as_shipped: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_session, "check_host_names", lambda: None)


@until_mended
async def test_unmended_aiobotocore_takes_a_certificate_for_another_host(
    unmended: None, trusted: Authority, start: Callable[..., Emulator], tmp_path: Path
) -> None:
    async with start(trusted.server(ELSEWHERE)) as emulator:
        assert await names_of_repositories(localhost(emulator)) == []
        assert len(emulator.requests) == 1


@until_mended
async def test_unmended_aiobotocore_takes_any_certificate_behind_a_proxy(
    unmended: None, authority: Authority, start: Callable[..., Emulator], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start(authority.server(ELSEWHERE)) as emulator, proxy_to(emulator, monkeypatch):
        assert await names_of_repositories(aws("https://api.ecr.test")) == []
        assert len(emulator.requests) == 1


async def names_of_repositories(configuration: AwsConfiguration, **options: Any) -> list[str]:
    session = aioboto3.Session(region_name=REGION, **KEYS)
    async with session.client("ecr", endpoint_url=configuration.endpoint_url, **options) as client:
        answer = await client.describe_repositories()
    return [each["repositoryName"] for each in answer["repositories"]]


async def test_a_client_that_asks_for_no_checks_gets_none(
    authority: Authority, start: Callable[..., Emulator], monkeypatch: pytest.MonkeyPatch
) -> None:
    http_session.check_host_names()
    async with start(authority.server(ELSEWHERE)) as emulator:
        assert await names_of_repositories(localhost(emulator), verify=False) == []
        async with proxy_to(emulator, monkeypatch):
            assert await names_of_repositories(aws("https://api.ecr.test"), verify=False) == []


async def test_a_client_certificate_is_shown(
    authority: Authority, start: Callable[..., Emulator], tmp_path: Path
) -> None:
    http_session.check_host_names()
    context = authority.server("localhost")
    authority.ca.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    issued = authority.ca.issue_cert("client@example.org")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    mine = AioConfig(client_cert=(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")))
    nobody = AioConfig(retries={"total_max_attempts": 1})
    async with start(context) as emulator:
        names = partial(names_of_repositories, localhost(emulator), verify=str(authority.bundle))
        assert await names(config=mine) == []
        with pytest.raises(BotoCoreError):
            await names(config=nobody)
        assert len(emulator.requests) == 1


@until_mended
async def test_requests_at_once_share_one_context_that_is_made_off_the_loop(
    trusted: Authority, start: Callable[..., Emulator], monkeypatch: pytest.MonkeyPatch
) -> None:
    made_in: list[threading.Thread] = []
    make = http_session.ssl_context

    def counted(*arguments: Any) -> ssl.SSLContext:
        made_in.append(threading.current_thread())
        return make(*arguments)

    monkeypatch.setattr(http_session, "ssl_context", counted)

    async def ask(registry: Registry, name: str) -> None:
        await registry.repository(name).create()

    async with (
        start(trusted.server("localhost")) as emulator,
        asyncpush.connect(aws=localhost(emulator)) as registry,
        anyio.create_task_group() as tg,
    ):
        for number in range(20):
            tg.start_soon(ask, registry, f"team/app{number}")
    [thread] = made_in
    assert thread is not threading.current_thread()


@until_mended
async def test_authorities_are_loaded_once_a_request_is_sent_over_tls(
    trusted: Authority, start: Callable[..., Emulator], layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[object] = []
    load = http_session.load_authorities
    monkeypatch.setattr(http_session, "load_authorities", lambda *given: loaded.append(given[0]) or load(*given))
    http_session.check_host_names()
    session = http_session.EcrHttpSession(verify=str(trusted.bundle))

    async def ask(scheme: str, emulator: Emulator) -> int:
        request = AWSRequest("GET", f"{scheme}://localhost:{emulator.port}/v2/", {})
        return (await session.send(request.prepare())).status_code

    async with session:
        async with start(None) as emulator:
            assert (await push(aws(f"http://localhost:{emulator.port}"), layout)).outcome == "pushed"
            assert await ask("http", emulator) == 401
        assert loaded == []
        async with start(trusted.server("localhost")) as emulator:
            assert await ask("https", emulator) == 401
        assert loaded == [str(trusted.bundle)]
        async with start(trusted.server(ELSEWHERE)) as emulator:
            with pytest.raises(BotoCoreError):
                await ask("https", emulator)


async def test_event_loops_in_several_threads_each_have_their_own_connections(
    trusted: Authority, start: Callable[..., Emulator], layout: str
) -> None:
    async with start(trusted.server("localhost")) as emulator, anyio.create_task_group() as tg:

        async def in_a_loop_of_its_own(name: str) -> None:
            task = partial(push, localhost(emulator), layout, name)
            result = await to_thread.run_sync(partial(anyio.run, task))
            assert result.outcome == "pushed"

        for number in range(3):
            tg.start_soon(in_a_loop_of_its_own, f"loop{number}:1")


@pytest.mark.parametrize(("version", "ours"), [("2.25.1", True), ("3.8.2", True), ("3.9.0", False), ("3.10.0", False)])
def test_only_an_aiobotocore_that_needs_it_is_mended(
    version: str, ours: bool, as_shipped: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = AIOHTTPSession._get_session
    monkeypatch.setattr(aiobotocore, "__version__", version)
    for _ in range(2):
        http_session.check_host_names()
        assert (AIOHTTPSession._get_session is not shipped) is ours
