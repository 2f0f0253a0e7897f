"""Layers taken over from another repository through ``/v2/``, where ECR lets them be; the passwords for that last."""

from __future__ import annotations

import base64
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import anyio.lowlevel
import boto3
import pytest
import trustme
from aiohttp import web
from anyio import to_thread
from hypothesis import given
from hypothesis import strategies as st

import asyncpush
from asyncpush import AwsConfiguration, Digest, Registry, Settings
from asyncpush.ecr.auth_token import EcrLogin
from asyncpush.ecr.client import EcrClient
from asyncpush.ecr.v2 import V2Address, V2Endpoint
from asyncpush.emulator import Emulator, KnownCredentials
from asyncpush.errors import ConnectionFailedError, RegistryError, ServiceError
from asyncpush.events import RequestDone, Retrying
from asyncpush.manifest import parse_manifest
from asyncpush.protocols import StoredManifest
from asyncpush.reference import RegistryName
from support.aws import KEYS, REGION, aws
from support.events import Events
from support.images import Layout, layer_tar
from support.relay import NO_WAITS
from support.servers import serving_http

OWN = "000000000000"
OTHER = "111111111111"
HOST = f"{OWN}.dkr.ecr.{REGION}.amazonaws.com"


Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Relay:
    """Passes everything on to an emulator, and remembers the requests below ``/v2/``."""

    target: str
    url: str = ""
    planned: deque[Answer] = field(default_factory=deque)
    mounts: list[web.Request] = field(default_factory=list)
    denied: set[str] = field(default_factory=set)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path.startswith("/v2/"):
            self.mounts.append(request)
            if self.planned:
                return await self.planned.popleft()(request)
        if request.headers.get("X-Amz-Target", "").rpartition(".")[2] in self.denied:
            return web.json_response({"__type": "AccessDeniedException"}, status=400)
        data = await request.read()
        async with (
            aiohttp.ClientSession(auto_decompress=False) as session,
            session.request(request.method, f"{self.target}{request.raw_path}", data=data, headers=request.headers) as
            answer,
        ):  # fmt: skip
            return web.Response(status=answer.status, headers=answer.headers, body=await answer.read())


@asynccontextmanager
async def relay_to(target: str) -> AsyncIterator[Relay]:
    relay = Relay(target)
    async with serving_http(relay.handle, max_body=64 * 2**20) as port:
        relay.url = f"http://127.0.0.1:{port}"
        yield relay


def refused(status: int, code: str = "", message: str = "because", **headers: str) -> Answer:
    """Answer with an error as ``/v2/`` has them; without a *code* with a page, as proxies have them."""

    async def answer(_: web.Request) -> web.StreamResponse:
        if not code:
            return web.Response(status=status, text="<html>", content_type="text/html")
        return web.json_response({"errors": [{"code": code, "message": message}]}, status=status, headers=headers)

    return answer


async def lost(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def enable(emulator: Emulator, region: str = REGION, **keys: str) -> None:
    """Let blobs be mounted in a registry of the emulator's."""
    make = partial(boto3.client, "ecr", endpoint_url=emulator.endpoint_url, region_name=region, **(keys or KEYS))
    client = await to_thread.run_sync(make)
    await to_thread.run_sync(partial(client.put_account_setting, name="BLOB_MOUNTING", value="ENABLED"))
    client.close()


LAYER_TAR = layer_tar("shared", 5000)


async def push(registry: Registry, folder: Path, destination: str) -> Digest:
    """Push an image of one layer, and return the layer's digest."""
    layout = Layout()
    image = layout.image(LAYER_TAR)
    await asyncpush.push(registry, f"oci:{layout.tag(image, '1').write(folder)}:1", destination)
    reader = registry.reader(destination.partition(":")[0])
    [stored] = (await reader.manifests(["1"])).values()
    assert isinstance(stored, StoredManifest)
    return parse_manifest(stored.raw).layers[0].digest


@dataclass
class Bench:
    """A registry behind a relay: ``team/base`` has an image of *layer*, ``team/app`` has nothing."""

    registry: Registry
    relay: Relay
    events: Events
    layer: Digest

    async def mount(self, source: str = "team/base", digest: Digest | None = None) -> bool:
        return await self.registry.repository("team/app").mount(digest or self.layer, source)

    async def is_there(self) -> bool:
        return self.layer in await self.registry.repository("team/app").available([self.layer])


@pytest.fixture
async def bench(emulator: Emulator, tmp_path: Path) -> AsyncIterator[Bench]:
    events = Events()
    settings = Settings(retry=NO_WAITS, create_repository=True, max_attempts=3)
    async with (
        relay_to(emulator.endpoint_url) as relay,
        asyncpush.connect(aws=aws(relay.url), settings=settings, emit=events) as registry,
    ):
        layer = await push(registry, tmp_path / "layout", "team/base:1")
        await registry.repository("team/app").create()
        yield Bench(registry, relay, events, layer)


async def test_a_layer_is_mounted_where_the_account_lets_it_be(bench: Bench, emulator: Emulator) -> None:
    await enable(emulator)
    assert await bench.mount() is True
    assert await bench.is_there()
    [done] = [event for event in bench.events.of(RequestDone) if event.operation == "MountBlob"]
    assert done.outcome == "succeeded"
    [request] = bench.relay.mounts
    assert request.headers["Host"] == HOST
    assert request.query == {"mount": str(bench.layer), "from": "team/base"}
    assert not [each for each in emulator.requests if each.operation.startswith("DELETE")]


async def test_a_layer_is_not_mounted_where_the_account_does_not(bench: Bench) -> None:
    assert await bench.mount() is False
    assert not await bench.is_there()


async def test_what_ecr_does_not_have_or_no_image_names_is_not_mounted(
    bench: Bench, emulator: Emulator, tmp_path: Path
) -> None:
    await enable(emulator)
    file = tmp_path / "loose"
    file.write_bytes(b"a layer that no image names")
    [loose] = await asyncpush.push_layers(bench.registry, [file], "team/base")
    assert await bench.mount(digest=loose.digest) is False  # type: ignore[union-attr]
    assert await bench.mount(digest=Digest.of(b"nowhere")) is False
    assert await bench.mount(source="team/absent") is False
    assert await bench.registry.repository("team/absent").mount(bench.layer, "team/base") is False


@pytest.mark.parametrize("name", [None, RegistryName("ecr", OTHER, "eu-west-2")])
async def test_mounts_stay_within_the_registry_that_is_meant(
    emulator: Emulator, tmp_path: Path, name: RegistryName | None
) -> None:
    """The same names lie in the default registry, which a request without a Host would reach."""
    keys = aws(emulator.endpoint_url)
    default = AwsConfiguration(
        region="us-east-1", endpoint_url=emulator.endpoint_url, access_key_id="test", secret_access_key="test"
    )
    settings = Settings(retry=NO_WAITS, create_repository=True)
    async with asyncpush.connect(aws=default, settings=settings) as decoy:
        await push(decoy, tmp_path / "decoy", "team/base:1")
        await decoy.repository("team/app").create()
    await enable(emulator, "us-east-1")
    async with asyncpush.connect(name, aws=keys, settings=settings) as registry:
        layer = await push(registry, tmp_path / "meant", "team/base:1")
        app = registry.repository("team/app")
        await app.create()
        assert await app.mount(layer, "team/base") is False, "BLOB_MOUNTING is off here"
        assert layer not in await app.available([layer])
    async with asyncpush.connect(aws=default) as decoy:
        assert layer not in await decoy.repository("team/app").available([layer])


async def test_another_accounts_layers_are_mounted_there(tmp_path: Path) -> None:
    keys = [KnownCredentials("test", "test"), KnownCredentials("two", "secret", account=OTHER)]
    async with Emulator(tmp_path / "ecr", fsync=False, credentials=keys) as emulator:
        two = AwsConfiguration(
            region="eu-west-2", endpoint_url=emulator.endpoint_url, access_key_id="two", secret_access_key="secret"
        )
        async with asyncpush.connect(aws=two, settings=Settings(retry=NO_WAITS, create_repository=True)) as registry:
            layer = await push(registry, tmp_path / "layout", "team/base:1")
            await registry.repository("team/app").create()
            assert await registry.repository("team/app").mount(layer, "team/base") is False
            await enable(emulator, "eu-west-2", aws_access_key_id="two", aws_secret_access_key="secret")
            assert await registry.repository("team/app").mount(layer, "team/base") is True
            assert await registry.account() == OTHER


async def test_nothing_is_mounted_where_nobody_says_whose_the_registry_is(bench: Bench, emulator: Emulator) -> None:
    await enable(emulator)
    bench.relay.denied |= {"DescribeRegistry", "DescribeRepositories"}
    assert await bench.mount() is False
    assert not bench.relay.mounts


async def test_ecr_public_mounts_nothing_and_is_not_asked(emulator: Emulator) -> None:
    name = RegistryName("ecr-public", OWN, "us-east-1", host="public.ecr.aws")
    async with asyncpush.connect(name, aws=aws(emulator.endpoint_url), settings=Settings(retry=NO_WAITS)) as registry:
        assert await registry.repository("team/app").mount(Digest.of(b"layer"), "team/base") is False
    assert not emulator.requests


async def test_what_passes_is_waited_out_and_told(bench: Bench, emulator: Emulator) -> None:
    await enable(emulator)
    for fault in (refused(429, "TOOMANYREQUESTS", "Rate exceeded"), refused(500, "UNKNOWN"), refused(503), lost):
        bench.events.clear()
        assert await bench.mount() is True
        bench.relay.planned.append(fault)
        assert await bench.mount() is True
        assert [event.operation for event in bench.events.of(Retrying)] == ["MountBlob"]
    statistics = {each.operation: each for each in bench.registry.pace.statistics()}
    assert (statistics["MountBlob"].throttled, statistics["MountBlob"].retried) == (1, 4)


async def test_retry_after_counts(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.relay.planned.append(refused(429, "TOOMANYREQUESTS", **{"Retry-After": "7"}))
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr("asyncpush.http.retry.anyio.sleep", sleep)
    assert await bench.mount() is False
    [wait] = [each for each in waits if each >= 1]
    assert 7 <= wait < 7.1


@pytest.mark.parametrize(
    ("fault", "error", "words"),
    [
        (refused(403, "DENIED", "not you"), ServiceError, "MountBlob failed: DENIED: not you.*GetDownloadUrlForLayer"),
        (refused(400, "DIGEST_INVALID"), ServiceError, "DIGEST_INVALID"),
        (refused(418), ServiceError, "MountBlob failed: 418.*check http://127.0.0.1"),
    ],
)
async def test_what_does_not_pass_fails_at_once(
    bench: Bench, fault: Answer, error: type[RegistryError], words: str
) -> None:
    bench.relay.planned.append(fault)
    with pytest.raises(error, match=words):
        await bench.mount()
    assert len(bench.relay.mounts) == 1


async def test_a_redirect_is_not_followed_with_the_password(bench: Bench) -> None:
    async def redirect(request: web.Request) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": f"http://localhost:{request.url.port}/v2/elsewhere"})

    bench.relay.planned.extend([redirect] * 3)
    with pytest.raises(ConnectionFailedError, match="redirects"):
        await bench.mount()
    assert {request.path for request in bench.relay.mounts} == {"/v2/team/app/blobs/uploads/"}


async def test_a_host_that_can_not_be_reached_is_tried_once(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(V2Endpoint, "address", lambda self: _nowhere())
    with pytest.raises(ConnectionFailedError, match=r"MountBlob got no answer from http://127\.0\.0\.1:9"):
        await bench.mount()
    assert not bench.events.of(Retrying)


async def _nowhere() -> V2Address:
    return V2Address("http://127.0.0.1:9")


@pytest.mark.parametrize("fault", [refused(401, "UNAUTHORIZED"), refused(403, "DENIED", "Your token has expired.")])
async def test_a_password_that_is_not_taken_is_renewed_once(bench: Bench, emulator: Emulator, fault: Answer) -> None:
    await enable(emulator)
    bench.relay.planned.append(fault)
    assert await bench.mount() is True
    passwords = [request.headers["Authorization"] for request in bench.relay.mounts]
    assert len(set(passwords)) == len(passwords) == 2
    assert emulator.requests.counts()["GetAuthorizationToken"] == 2
    bench.relay.planned.extend([fault] * 2)
    with pytest.raises(ServiceError) as caught:
        await bench.mount()
    assert passwords[1].removeprefix("Basic ") not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        (RegistryName("ecr", OTHER, "us-east-1", True, False, f"{OTHER}.dkr.ecr-fips.us-east-1.amazonaws.com"),
         f"https://{OTHER}.dkr.ecr-fips.us-east-1.amazonaws.com"),
        (RegistryName("ecr", OTHER), f"https://{OTHER}.dkr.ecr.us-east-1.amazonaws.com"),
        (RegistryName(), f"https://{OWN}.dkr.ecr.us-east-1.amazonaws.com"),
    ],
)  # fmt: skip
async def test_at_aws_the_registrys_own_host_is_asked_and_none_is_made_up(name: RegistryName, place: str) -> None:
    """Nothing is sent: only where to is looked at, with an API that answers like AWS's."""
    keys = AwsConfiguration(region="us-east-1", access_key_id="test", secret_access_key="test")
    async with asyncpush.connect(name, aws=keys) as registry:
        endpoint = registry.endpoint_url
        v2: Any = registry._ecr.v2
        v2._login = EcrLogin(FakeCalls(endpoint, [(b"AWS:password", 1e6)]), clock=lambda: 0.0)
        assert await v2.address() == V2Address(place)


class FakeCalls(EcrClient):
    """GetAuthorizationToken alone, with these tokens: what each says, and when it ends."""

    def __init__(self, endpoint: str, tokens: list[tuple[bytes, float]]) -> None:
        self.endpoint_url = endpoint
        self.tokens = tokens
        self.asked = 0

    async def call(self, operation: str, **members: Any) -> dict[str, Any]:
        assert (operation, members) == ("GetAuthorizationToken", {})
        self.asked += 1
        await anyio.lowlevel.checkpoint()
        text, end = self.tokens.pop(0)
        if not text:
            raise ConnectionFailedError("no answer")
        entry = {
            "authorizationToken": base64.b64encode(text).decode(),
            "expiresAt": datetime.fromtimestamp(end, UTC),
            "proxyEndpoint": f"https://{OWN}.dkr.ecr.us-east-1.amazonaws.com",
        }
        return {"authorizationData": [entry]}


@given(life=st.floats(min_value=1, max_value=50_000), share=st.floats(min_value=0, max_value=1.5))
async def test_a_password_is_kept_while_it_lasts_and_renewed_well_before_its_end(life: float, share: float) -> None:
    now = 1_000_000.0
    calls = FakeCalls("", [(b"AWS:one", now + life), (b"AWS:two", now + 1e6)])
    login = EcrLogin(calls, clock=lambda: now)
    assert (await login()).password == "one"
    now += share * life
    renewed = (await login()).password == "two"
    early = life * (1 - share) - min(3600, life / 2)
    if abs(early) > 1e-6:
        assert renewed == (early < 0)
    assert calls.asked == 1 + renewed


async def test_however_many_wait_one_password_is_asked_for() -> None:
    calls = FakeCalls("", [(b"AWS:one", 1e6)])
    login = EcrLogin(calls, clock=lambda: 0.0)
    passwords = []

    async def ask() -> None:
        passwords.append((await login()).password)

    async with anyio.create_task_group() as tg:
        for _ in range(20):
            tg.start_soon(ask)
    assert passwords == ["one"] * 20
    assert calls.asked == 1


async def test_a_renewal_that_fails_is_no_failure_while_the_old_password_opens() -> None:
    now = 0.0
    calls = FakeCalls("", [(b"AWS:one", 10_000), (b"", 0), (b"", 0), (b"AWS:two", 1e6)])
    login = EcrLogin(calls, clock=lambda: now)
    assert (await login()).password == "one"
    now = 7000.0
    assert (await login()).password == "one"
    assert (await login()).password == "one"
    assert calls.asked == 2
    now = 10_001.0
    with pytest.raises(ConnectionFailedError):
        await login()
    assert (await login()).password == "two"


@pytest.mark.parametrize("text", [b"no colon", b":nobody", b"AWS:", b"\xff:\xfe"])
async def test_a_token_that_is_none_is_no_answer_of_ecrs(text: bytes) -> None:
    with pytest.raises(ServiceError, match="not an answer from ECR"):
        await EcrLogin(FakeCalls("http://x", [(text, 1e6)]), clock=lambda: 0.0)()


async def test_passwords_that_end_are_renewed_in_a_long_run(tmp_path: Path) -> None:
    """The emulator's passwords last for one second: mounts go on when they have ended, too."""
    async with Emulator(tmp_path / "ecr", fsync=False, token_lifetime=1.0) as emulator:
        await enable(emulator)
        settings = Settings(retry=NO_WAITS, create_repository=True)
        async with asyncpush.connect(aws=aws(emulator.endpoint_url), settings=settings) as registry:
            layer = await push(registry, tmp_path / "layout", "team/base:1")
            app = registry.repository("team/app")
            await app.create()
            while emulator.requests.counts().get("GetAuthorizationToken", 0) < 4:
                assert await app.mount(layer, "team/base") is True


@pytest.mark.parametrize("trusted", [True, False])
async def test_the_certificate_of_the_registrys_host_is_checked_as_the_apis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trusted: bool
) -> None:
    ca, bundle = trustme.CA(), tmp_path / "bundle.pem"
    ca.cert_pem.write_to_path(bundle)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
    context, wrong = (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) for _ in range(2))
    ca.issue_cert("localhost").configure_cert(context)
    ca.issue_cert("elsewhere.example").configure_cert(wrong)
    settings = Settings(retry=NO_WAITS, create_repository=True)
    async with (
        Emulator(tmp_path / "ecr", fsync=False, tls=context) as emulator,
        Emulator(tmp_path / "wrong", fsync=False, tls=wrong) as other,
        asyncpush.connect(aws=aws(f"https://localhost:{emulator.port}"), settings=settings) as registry,
    ):
        layer = await push(registry, tmp_path / "layout", "team/base:1")
        app = registry.repository("team/app")
        await app.create()
        if trusted:
            assert await app.mount(layer, "team/base") is False
            return

        async def elsewhere(_: V2Endpoint) -> V2Address:
            return V2Address(f"https://localhost:{other.port}")

        monkeypatch.setattr(V2Endpoint, "address", elsewhere)
        with pytest.raises(ConnectionFailedError, match=rf"https://localhost:{other.port}\S* is not trusted.*mismatch"):
            await app.mount(layer, "team/base")
        assert not other.requests
