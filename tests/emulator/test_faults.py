"""Faults over HTTP: each selector chooses the requests that it says, each action does what it says, and no more."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import botocore.session
import pytest
from botocore.exceptions import ClientError, ConnectionClosedError

from asyncpush.emulator import Emulator, FaultConfig
from asyncpush.emulator.faults import Fault, HitCount, Throttle, parse_fault, parse_throttle
from asyncpush.emulator.faults.operations import OPERATIONS, Call, with_members
from support.emulator_client import Ecr, digest_of, image_manifest, index_manifest, part

TARGETS = ("AmazonEC2ContainerRegistry_V20150921", "SpencerFrontendService")
LAYER, CONFIG = b"a layer" * 20_000, b"{}"
MANIFEST = image_manifest(CONFIG, LAYER)
MB = 10**6


@pytest.fixture
async def emulator(tmp_path: Path) -> AsyncIterator[Emulator]:
    """An empty local ECR that asks nobody who he is."""
    async with Emulator(tmp_path / "ecr", fsync=False, verify_signatures=False) as running:
        yield running


@pytest.fixture
async def ecr(emulator: Emulator) -> Ecr:
    client = Ecr(emulator.endpoint_url)
    for name in ("app", "team/app"):
        await client.call("create_repository", repositoryName=name)
    emulator.requests.clear()
    return client


@pytest.fixture
async def http(emulator: Emulator) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(emulator.endpoint_url) as session:
        yield session


def rules(*texts: str, seed: int | None = None) -> FaultConfig:
    return FaultConfig(faults=tuple(map(parse_fault, texts)), seed=seed)


async def code(ecr: Ecr, operation: str = "describe_repositories", **members: Any) -> str:
    """How a call ends: ``.``, or its error's code."""
    try:
        await ecr.call(operation, **members)
    except ClientError as error:
        return error.response["Error"]["Code"]
    except ConnectionClosedError:
        return "closed"
    return "."


def table(*lines: str) -> list[tuple[str, str]]:
    return [(conditions, pattern) for conditions, _, pattern in (line.rpartition(" ") for line in lines)]


@pytest.mark.parametrize(
    ("conditions", "pattern"),
    table(
        " xxxxxxxxxx",
        "nth=1: x.........",
        "nth=4: ...x......",
        "every=3: ..x..x..x.",
        "first=2: xx........",
        "after=7: .......xxx",
        "after=0: xxxxxxxxxx",
        "limit=4: xxxx......",
        "every=2,limit=3: .x.x.x....",
        "every=2:after=5: .....x.x.x",
        "nth=3,every=2: ..........",
        "probability=1: xxxxxxxxxx",
        "probability=0: ..........",
    ),
)
async def test_conditions_choose_the_requests_that_they_say(
    ecr: Ecr, emulator: Emulator, conditions: str, pattern: str
) -> None:
    emulator.fault_config = rules(f"DescribeRepositories:{conditions}throttle")
    codes = [await code(ecr) for _ in pattern]
    assert "".join("." if each == "." else "x" for each in codes) == pattern
    assert emulator.hit_counts == (HitCount(str(emulator.fault_config.faults[0]), pattern.count("x")),)


async def test_chance_is_repeatable_by_its_seed_and_one_rules_own(ecr: Ecr, emulator: Emulator) -> None:
    async def pattern(fault_config: FaultConfig) -> list[str]:
        emulator.fault_config = fault_config
        return [await code(ecr) for _ in range(40)]

    rule = "DescribeRepositories:probability=0.5:throttle"
    first, again, other = [await pattern(rules(rule, seed=seed)) for seed in (1, 1, 2)]
    beside = await pattern(rules(rule, "DescribeRepositories:probability=0.5:access-denied", seed=1))
    assert first == again != other
    assert [each == "ThrottlingException" for each in beside] == [each != "." for each in first]
    assert 5 < first.count(".") < 35


async def test_requests_are_counted_among_those_that_a_rule_selects(ecr: Ecr, emulator: Emulator) -> None:
    emulator.fault_config = rules("InitiateLayerUpload,repository=team/*:nth=2:throttle")
    calls = [("app", "."), ("team/app", "."), ("app", "."), ("team/app", "ThrottlingException"), ("team/app", ".")]
    for name, expected in calls:
        assert await code(ecr) == "."
        assert await code(ecr, "initiate_layer_upload", repositoryName=name) == expected


def test_a_body_of_deep_nesting_is_left_to_the_operation() -> None:
    call = Call("PutImage", "AmazonEC2ContainerRegistry_V20150921")
    assert with_members(call, bytearray(b'{"deep":' + b"[" * 100_000)) == call


async def test_a_repository_is_found_in_long_bodies_and_in_paths(
    ecr: Ecr, emulator: Emulator, http: aiohttp.ClientSession
) -> None:
    uploads = {name: await ecr.begin(name) for name in ("app", "team/app")}
    emulator.fault_config = rules("*,repository=team/*:throttle")
    for name, upload in uploads.items():
        sent = await code(ecr, "upload_layer_part", **part(name, upload, 0, bytes(100_000)))
        put = await code(ecr, "put_image", repositoryName=name, imageManifest=MANIFEST.decode() + " " * 100_000)
        async with http.get(f"/v2/{name}/tags/list") as response:
            expected = (".", "LayersNotFoundException", 200) if name == "app" else (*["ThrottlingException"] * 2, 429)
            assert (sent, put, response.status) == expected


async def test_of_rules_that_fire_the_first_acts_and_all_count(ecr: Ecr, emulator: Emulator) -> None:
    emulator.fault_config = rules("Describe*:nth=2:throttle", "*:first=3:access-denied", "*:nth=4:server-error")
    codes = [await code(ecr) for _ in range(5)]
    assert codes == [
        "AccessDeniedException", "ThrottlingException", "AccessDeniedException", "ServerException", ".",
    ]  # fmt: skip
    assert [each.count for each in emulator.hit_counts] == [1, 2, 1]


REFUSALS = {
    "throttle": ("ThrottlingException", 400, "Rate exceeded"),
    "server-error": ("ServerException", 500, ""),
    "unavailable": ("503", 503, "Service Unavailable"),
    "expired-token": ("ExpiredTokenException", 400, "The security token included in the request is expired"),
    "access-denied": ("AccessDeniedException", 400, "ecr:InitiateLayerUpload on resource: arn:aws:ecr:us-east-1:"),
}


@pytest.mark.parametrize("action", REFUSALS)
async def test_a_refusal_has_ecrs_code_and_status_and_nothing_is_done(
    ecr: Ecr, emulator: Emulator, tmp_path: Path, action: str
) -> None:
    emulator.fault_config = rules(f"InitiateLayerUpload:first=1:{action}")
    with pytest.raises(ClientError) as caught:
        await ecr.call("initiate_layer_upload", repositoryName="app")
    response = caught.value.response
    expected, status, message = REFUSALS[action]
    assert (response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]) == (expected, status)
    assert message in response["Error"]["Message"]
    assert [(record.operation, record.status) for record in emulator.requests] == [("InitiateLayerUpload", status)]
    assert list((tmp_path / "ecr" / "uploads").iterdir()) == []
    await ecr.begin("app")


PULLS = {
    "throttle": (429, "TOOMANYREQUESTS"),
    "server-error": (500, "UNKNOWN"),
    "unavailable": (503, "Service Unavailable"),
    "expired-token": (403, "DENIED"),
    "access-denied": (403, "DENIED"),
}


@pytest.mark.parametrize("action", PULLS)
async def test_a_refused_pull_has_the_distribution_specs_shape(
    ecr: Ecr, emulator: Emulator, http: aiohttp.ClientSession, action: str
) -> None:
    await ecr.push_image("app", "v1", CONFIG, LAYER)
    emulator.fault_config = rules(f"v2:GET-manifest:first=1:{action}")
    for expected in PULLS[action], (200, '"layers"'):
        async with http.get("/v2/app/blobs/" + digest_of(LAYER)) as response:
            assert await response.read() == LAYER
        async with http.get("/v2/app/manifests/v1") as response:
            assert response.status == expected[0]
            assert expected[1] in await response.text()
            if action != "unavailable":
                assert response.content_type.endswith("json")
    assert emulator.requests[-3].status == PULLS[action][0]


@pytest.mark.parametrize(
    ("request_line", "name", "repository"),
    [
        ("GET /v2/", "v2:GET-base", ""),
        ("GET /v2/team/app/tags/list", "v2:GET-tags", "team/app"),
        ("HEAD /v2/team/app/manifests/v1", "v2:HEAD-manifest", "team/app"),
        ("GET /v2/blobs/manifests/blobs/sha256:0", "v2:GET-blob", "blobs/manifests"),
        ("POST /v2/team/app/blobs/uploads/", "v2:POST-upload", "team/app"),
        ("PATCH /v2/team/app/blobs/uploads/some-id", "v2:PATCH-upload", "team/app"),
        ("GET /v2/team/app/referrers/sha256:0", "v2:GET-referrers", "team/app"),
    ],
)
async def test_requests_below_v2_are_named_by_their_method_and_kind(
    emulator: Emulator, http: aiohttp.ClientSession, request_line: str, name: str, repository: str
) -> None:
    method, path = request_line.split()
    named = f"*,repository={repository or '[!a-z]'}"
    rule_hits = {name: True, "v2:*": True, "*": True, named: bool(repository), "v2:DELETE-*": False, "[A-Z]*": False}
    for rule, is_hit in rule_hits.items():
        emulator.fault_config = rules(f"{rule}:unavailable")
        async with http.request(method, path) as response:
            assert (response.status == 503) == is_hit, rule


async def test_the_names_of_operations_are_those_that_the_emulator_answers(
    emulator: Emulator, http: aiohttp.ClientSession
) -> None:
    session = botocore.session.Session()
    models = [session.get_service_model(service) for service in ("ecr", "ecr-public")]
    answered = set()
    for target in TARGETS:
        for name in {
            "ListImageReferrers",
            "UpdateImageStorageClass",
            *(name for model in models for name in model.operation_names),
        }:
            async with http.post("/", headers={"X-Amz-Target": f"{target}.{name}"}, data=b"{}") as response:
                document = json.loads(await response.read())
            if document.get("__type") not in ("UnknownOperationException", "NotImplementedException"):
                answered.add(name)
    assert answered == set(OPERATIONS)


async def exchange(emulator: Emulator, request: bytes) -> bytes:
    """One request on a connection of its own, and all that comes back until it ends."""
    received = b""
    with anyio.fail_after(30):
        async with await anyio.connect_tcp(emulator.host, emulator.port) as stream:
            await stream.send(request)
            try:
                while True:
                    received += await stream.receive()
            except anyio.EndOfStream:
                return received


def request_of(operation: str, **members: Any) -> bytes:
    body = json.dumps(members).encode()
    target = f"X-Amz-Target: {TARGETS[0]}.{operation}\r\nConnection: close"
    return f"POST / HTTP/1.1\r\nHost: ecr\r\n{target}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("action", "is_done", "is_reset"), [("reset-before", 0, 1), ("reset-after", 1, 1), ("lost-reply", 1, 0)]
)
async def test_a_cut_connection_is_reset_or_ends_before_or_after_the_work(
    ecr: Ecr, emulator: Emulator, action: str, is_done: bool, is_reset: bool
) -> None:
    emulator.fault_config = rules(f"CreateRepository:first=1:{action}")
    creation = request_of("CreateRepository", repositoryName="new")
    if is_reset:
        with pytest.raises(anyio.BrokenResourceError):
            await exchange(emulator, creation)
    else:
        assert await exchange(emulator, creation) == b""
    assert [(record.operation, record.status) for record in emulator.requests] == [
        ("CreateRepository", 200 if is_done else 0)
    ]
    again = await code(ecr, "create_repository", repositoryName="new")
    assert again == ("RepositoryAlreadyExistsException" if is_done else ".")


@pytest.mark.parametrize("action", ["reset-before", "reset-after", "lost-reply"])
async def test_a_pull_is_cut_as_well(
    ecr: Ecr, emulator: Emulator, caplog: pytest.LogCaptureFixture, action: str
) -> None:
    await ecr.push_layer("app", LAYER)
    pull = f"GET /v2/app/blobs/{digest_of(LAYER)} HTTP/1.1\r\nHost: ecr\r\nConnection: close\r\n\r\n".encode()
    emulator.fault_config = rules(f"v2:GET-blob:nth=1:{action}")
    if action == "lost-reply":
        assert await exchange(emulator, pull) == b""
    else:
        with pytest.raises(anyio.BrokenResourceError):
            await exchange(emulator, pull)
    assert (await exchange(emulator, pull)).endswith(LAYER)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_slow_reply_comes_at_least_so_late_and_is_the_same(ecr: Ecr, emulator: Emulator) -> None:
    emulator.fault_config = rules("CreateRepository:slow-reply=0.3")
    begun = time.perf_counter()
    await ecr.call("create_repository", repositoryName="new")
    assert time.perf_counter() - begun > 0.25


async def test_availability_lies_in_either_way_and_about_nothing_else(ecr: Ecr, emulator: Emulator) -> None:
    held = await ecr.push_layer("app", LAYER)
    asked = {"repositoryName": "app", "layerDigests": [held, digest_of(b"absent"), "sha256:no"]}
    emulator.fault_config = rules(
        "BatchCheckLayerAvailability:nth=1:availability=UNAVAILABLE",
        "BatchCheckLayerAvailability:nth=2:availability=AVAILABLE",
    )
    answers = [await ecr.call("batch_check_layer_availability", **asked) for _ in range(3)]
    words = [[layer["layerAvailability"] for layer in answer["layers"]] for answer in answers]
    assert words == [["UNAVAILABLE"] * 2, ["AVAILABLE"] * 2, ["AVAILABLE", "UNAVAILABLE"]]
    assert [sorted(answer["layers"][0]) for answer in answers] == [
        ["layerAvailability", "layerDigest"],
        *[["layerAvailability", "layerDigest", "layerSize"]] * 2,
    ]
    assert [[layer["layerDigest"] for layer in answer["layers"]] for answer in answers] == [
        [held, digest_of(b"absent")]
    ] * 3
    assert all(len(answer["failures"]) == 1 for answer in answers)
    assert await ecr.available("app", held) == {held}


async def test_layers_are_not_found_by_the_digests_that_the_manifest_has(ecr: Ecr, emulator: Emulator) -> None:
    manifest = await ecr.push_image("app", None, CONFIG, LAYER)
    emulator.fault_config = rules("PutImage:first=2:layers-not-found")
    refusal = await ecr.refused("put_image", repositoryName="app", imageManifest=manifest.decode(), imageTag="v1")
    assert refusal.code == "LayersNotFoundException"
    assert f"'[{digest_of(CONFIG)}, {digest_of(LAYER)}]'" in refusal.message
    index = index_manifest(manifest)
    refusal = await ecr.refused("put_image", repositoryName="app", imageManifest=index.decode())
    assert refusal.code == "ReferencedImagesNotFoundException"
    assert digest_of(manifest) in refusal.message
    await ecr.put("app", manifest, "v1")


async def test_a_manifest_that_is_none_is_refused_for_what_it_is(ecr: Ecr, emulator: Emulator) -> None:
    emulator.fault_config = rules("PutImage:layers-not-found")
    assert await code(ecr, "put_image", repositoryName="app", imageManifest="{}") == "InvalidParameterException"
    assert emulator.hit_counts[0].count == 0


async def test_a_layer_lags_behind_its_completion_and_no_other_does(ecr: Ecr, emulator: Emulator) -> None:
    await ecr.push_layer("app", CONFIG)
    emulator.fault_config = rules("PutImage:lag=1000:layers-not-found", "PutImage:lag=0:layers-not-found")
    await ecr.push_layer("app", LAYER)
    await ecr.push_layer("team/app", CONFIG)
    refusal = await ecr.refused("put_image", repositoryName="app", imageManifest=MANIFEST.decode())
    assert refusal.code == "LayersNotFoundException"
    assert f"'[{digest_of(LAYER)}]'" in refusal.message
    await ecr.put("app", image_manifest(CONFIG, CONFIG), "other")


async def test_a_lag_ends(ecr: Ecr, emulator: Emulator) -> None:
    emulator.fault_config = rules("PutImage:lag=0.2:layers-not-found")
    for blob in (CONFIG, LAYER):
        await ecr.push_layer("app", blob)
    with anyio.fail_after(30):
        while await code(ecr, "put_image", repositoryName="app", imageManifest=MANIFEST.decode()) != ".":
            pass
    assert emulator.hit_counts[0].count > 0


@pytest.mark.parametrize("operation", ["UploadLayerPart", "CompleteLayerUpload"])
async def test_an_expired_upload_is_gone(ecr: Ecr, emulator: Emulator, tmp_path: Path, operation: str) -> None:
    emulator.fault_config = rules(f"{operation}:nth=1:upload-expired")
    upload, other = await ecr.begin("app"), await ecr.begin("app")
    if operation == "CompleteLayerUpload":
        await ecr.send("app", upload, 0, LAYER)
    complete = {"repositoryName": "app", "uploadId": upload, "layerDigests": [digest_of(LAYER)]}
    for _ in range(2):
        members = part("app", upload, 0, LAYER) if operation == "UploadLayerPart" else complete
        refusal = await ecr.refused("".join(f"_{c.lower()}" if c.isupper() else c for c in operation)[1:], **members)
        assert refusal.code == "UploadNotFoundException"
        assert upload in refusal.message
    await ecr.send("app", other, 0, LAYER)
    assert [path.name for path in (tmp_path / "ecr" / "uploads").iterdir()] == [other]
    assert emulator.hit_counts[0].count == 1


async def test_an_operation_has_its_burst_and_then_gets_ecrs_throttle(ecr: Ecr, emulator: Emulator) -> None:
    emulator.fault_config = FaultConfig(throttles=(parse_throttle("InitiateLayerUpload=0.001:3"),))
    codes = [await code(ecr, "initiate_layer_upload", repositoryName="app") for _ in range(5)]
    assert codes == [".", ".", ".", "ThrottlingException", "ThrottlingException"]
    assert (
        await code(ecr, "initiate_layer_upload", repositoryName="app", registryId="1" * 12)
        == "RepositoryNotFoundException"
    )
    assert [await code(ecr) for _ in range(5)] == ["."] * 5
    refusal = await ecr.refused("initiate_layer_upload", repositoryName="app")
    assert (refusal.message, refusal.status) == ("Rate exceeded", 400)
    assert emulator.hit_counts == (HitCount("InitiateLayerUpload=0.001:3", 3),)


async def test_the_quotas_are_ecrs(ecr: Ecr, emulator: Emulator) -> None:
    emulator.fault_config = FaultConfig(quotas="aws")
    refused = 0
    with anyio.fail_after(60):
        while not refused:
            async with anyio.create_task_group() as group:
                outcomes: list[str] = []

                async def put(outcomes: list[str] = outcomes) -> None:
                    outcomes.append(await code(ecr, "put_image", repositoryName="app", imageManifest=MANIFEST.decode()))

                for _ in range(40):
                    group.start_soon(put)
            refused = outcomes.count("ThrottlingException")
    assert outcomes.count("LayersNotFoundException") == 40 - refused >= 1
    assert emulator.hit_counts == (HitCount("quotas=aws", refused),)


async def test_what_was_throttled_is_not_counted_by_rules(ecr: Ecr, emulator: Emulator) -> None:
    emulator.fault_config = FaultConfig(
        throttles=(Throttle("Describe*", 0.001, 2),), faults=(Fault("*", "throttle", nth=3),)
    )
    assert [await code(ecr) for _ in range(3)] == [".", ".", "ThrottlingException"]
    assert [each.count for each in emulator.hit_counts] == [1, 0]


async def test_pulls_have_rates_too(emulator: Emulator, http: aiohttp.ClientSession) -> None:
    emulator.fault_config = FaultConfig(throttles=(Throttle("v2:GET-tags", 0.001, 1),))
    statuses = []
    for _ in range(3):
        async with http.get("/v2/app/tags/list") as response:
            statuses.append((response.status, "Rate exceeded" in await response.text()))
    assert statuses == [(404, False), (429, True), (429, True)]


async def test_latency_is_at_least_what_was_asked_for_and_jitter_varies_it(ecr: Ecr, emulator: Emulator) -> None:
    emulator.fault_config = FaultConfig(latency=0.06, jitter=0.02)
    begun = time.perf_counter()
    for _ in range(5):
        await ecr.call("describe_repositories")
    assert time.perf_counter() - begun > 5 * 0.04 * 0.9


async def test_a_part_and_a_pull_take_the_time_that_the_bandwidth_allows(
    ecr: Ecr, emulator: Emulator, http: aiohttp.ClientSession
) -> None:
    data = bytes(range(250)) * (4 * 1500)
    upload = await ecr.begin("app")
    emulator.fault_config = FaultConfig(bandwidth=6 * MB)
    begun = time.perf_counter()
    await ecr.send("app", upload, 0, data)
    sent = time.perf_counter() - begun
    await ecr.complete("app", upload, digest_of(data))
    begun = time.perf_counter()
    async with http.get("/v2/app/blobs/" + digest_of(data)) as response:
        assert await response.read() == data
    pulled = time.perf_counter() - begun
    # 2 MB in base64 and 1.5 MB as they are.
    assert sent > 0.25
    assert pulled > 0.15


async def test_the_download_of_a_layer_takes_the_time_that_the_bandwidth_allows(
    ecr: Ecr, emulator: Emulator, http: aiohttp.ClientSession
) -> None:
    data = bytes(range(250)) * (4 * 1500)
    await ecr.push_image("app", "1", b"{}", data)
    answer = await ecr.call("get_download_url_for_layer", repositoryName="app", layerDigest=digest_of(data))
    emulator.fault_config = FaultConfig(bandwidth=6 * MB)
    begun = time.perf_counter()
    async with http.get(answer["downloadUrl"]) as response:
        assert await response.read() == data
    assert time.perf_counter() - begun > 0.15


async def test_bandwidth_stops_the_sender_itself(emulator: Emulator) -> None:
    emulator.fault_config = FaultConfig(bandwidth=0.1 * MB)
    accepted = 0
    async with await anyio.connect_tcp(emulator.host, emulator.port) as stream:
        await stream.send(f"POST / HTTP/1.1\r\nHost: ecr\r\nContent-Length: {30 * MB}\r\n\r\n".encode())
        with anyio.move_on_after(0.5):
            while accepted < 30 * MB:
                await stream.send(bytes(100_000))
                accepted += 100_000
    # The rest is what this machine's sockets hold of what was not read yet.
    assert 0 < accepted < 15 * MB


async def test_connections_keep_their_requests_whole_while_the_bandwidth_changes(
    ecr: Ecr, emulator: Emulator, http: aiohttp.ClientSession
) -> None:
    fault_configs = (None, 20 * MB, None, 5 * MB, 50 * MB, None)
    for number, bandwidth in enumerate(fault_configs):
        data = bytes([number]) * 300_000
        emulator.fault_config = FaultConfig(bandwidth=bandwidth)
        await ecr.push_layer("app", data)
        for headers, expected in (({}, data), ({"Range": "bytes=10-19"}, data[:10])):
            async with http.get("/v2/app/blobs/" + digest_of(data), headers=headers) as response:
                assert await response.read() == expected
                assert "Content-Encoding" not in response.headers


async def test_a_bandwidth_that_is_lifted_holds_nobody_up_any_more(
    ecr: Ecr, emulator: Emulator, http: aiohttp.ClientSession
) -> None:
    emulator.fault_config = FaultConfig(bandwidth=1000)

    async def push() -> None:
        await ecr.push_layer("app", LAYER)
        async with http.get("/v2/app/blobs/" + digest_of(LAYER)) as response:
            assert await response.read() == LAYER

    # At this rate a part and a pull would take five minutes.
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(push)
            # A smaller request, and the part's turn has come.
            assert await ecr.begin("app")
            await anyio.sleep(0.3)
            emulator.fault_config = FaultConfig(bandwidth=100 * MB)


async def test_a_paced_client_that_leaves_is_no_error(
    ecr: Ecr, emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    emulator.fault_config = FaultConfig(bandwidth=0.2 * MB)
    for _ in range(3):
        async with await anyio.connect_tcp(emulator.host, emulator.port) as stream:
            await stream.send(b"POST / HTTP/1.1\r\nHost: ecr\r\nContent-Length: 1000000\r\n\r\n" + bytes(200_000))
    emulator.fault_config = FaultConfig()
    await ecr.call("describe_repositories")
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_that_is_too_long_is_refused_whatever_the_faults(
    emulator: Emulator, http: aiohttp.ClientSession, announced: bool
) -> None:
    emulator.fault_config = rules("*:throttle")
    body = bytes(33 * 1024 * 1024)

    async def blocks() -> AsyncIterator[bytes]:
        yield body

    headers = {"X-Amz-Target": f"{TARGETS[0]}.PutImage"}
    async with http.post("/", headers=headers, data=body if announced else blocks()) as response:
        assert response.status == 413


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"repositoryName": 1}', b"\xff", b""])
async def test_a_body_that_no_rule_can_read_is_the_operations_to_judge(
    emulator: Emulator, http: aiohttp.ClientSession, body: bytes
) -> None:
    emulator.fault_config = rules("*,repository=team/*:throttle", "PutImage:layers-not-found")
    async with http.post("/", headers={"X-Amz-Target": f"{TARGETS[0]}.PutImage"}, data=body) as response:
        assert json.loads(await response.read())["__type"] in ("SerializationException", "InvalidParameterException")


async def test_it_closes_while_an_answer_is_held_back(tmp_path: Path) -> None:
    async def left_alone() -> None:
        assert await exchange(emulator, request_of("CreateRepository", repositoryName="app")) == b""

    fault_config = rules("CreateRepository:slow-reply=1000")
    with anyio.fail_after(30):
        async with (
            anyio.create_task_group() as group,
            Emulator(tmp_path, fsync=False, fault_config=fault_config, verify_signatures=False) as emulator,
        ):
            group.start_soon(left_alone)
            # The first request is done, and its answer waits, once another one finds what it has made.

            while await code(Ecr(emulator.endpoint_url), "list_images", repositoryName="app") != ".":
                pass


async def test_without_leave_nobody_reads_or_changes_the_faults(
    emulator: Emulator, http: aiohttp.ClientSession
) -> None:
    for method in ("GET", "PUT", "DELETE"):
        async with http.request(method, "/_emulator/faults", data=b"{}") as response:
            assert response.status == 404


@pytest.fixture
async def admin(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Ask the admin endpoint of an emulator that has one, and the emulator itself."""
    async with (
        Emulator(tmp_path / "ecr", fsync=False, admin=True) as emulator,
        aiohttp.ClientSession(emulator.endpoint_url) as session,
    ):

        async def asked(method: str, document: object = None) -> tuple[int, dict[str, Any], Emulator]:
            async with session.request(method, "/_emulator/faults", json=document) as response:
                return response.status, json.loads(await response.read()), emulator

        yield asked


async def test_faults_are_read_set_and_cleared_while_the_emulator_runs(admin: Callable[..., Any]) -> None:
    document = {
        "latency": "1ms",
        "bandwidth": "100MB/s",
        "throttle": ["ListImages=0.001:1"],
        "fault": ["Describe*:nth=2:unavailable", "*:probability=0:throttle"],
        "seed": 3,
    }
    none_fired = [{"rule": rule, "count": 0} for rule in (*document["throttle"], *document["fault"])]  # type: ignore[misc]
    status, told, emulator = await admin("PUT", document)
    assert (status, told) == (200, {**document, "hit_counts": none_fired})
    ecr = Ecr(emulator.endpoint_url)
    assert [await code(ecr) for _ in range(3)] == [".", "503", "."]
    await code(ecr, "list_images", repositoryName="app")
    assert await code(ecr, "list_images", repositoryName="app") == "ThrottlingException"
    _, told, _ = await admin("GET")
    assert [each["count"] for each in told["hit_counts"]] == [1, 1, 0]
    # What was told can be set again; counts begin again.
    assert (await admin("PUT", told))[1] == {**document, "hit_counts": none_fired}
    assert (await admin("DELETE"))[:2] == (200, {})
    assert emulator.fault_config == FaultConfig()
    assert [await code(ecr) for _ in range(3)] == ["."] * 3


@pytest.mark.parametrize(
    ("document", "named"),
    [
        ({"fault": ["PutImage:explode"]}, "'PutImage:explode'"),
        ({"faults": []}, "faults"),
        ({"latency": 4}, "latency"),
        ({"quotas": "gcp"}, "quotas"),
        ([], "Expected `object`"),
        (None, "truncated"),
    ],
)
async def test_a_wrong_fault_config_is_refused_and_the_old_one_stays(
    admin: Callable[..., Any], document: object, named: str
) -> None:
    await admin("PUT", {"latency": "1ms"})
    status, told, emulator = await admin("PUT", document)
    assert status == 400
    assert named in told["message"]
    assert "\n" not in told["message"]
    assert emulator.fault_config == FaultConfig(latency=0.001)


async def test_no_fault_keeps_the_admin_out(admin: Callable[..., Any]) -> None:
    await admin("PUT", {"fault": ["*:reset-before"], "throttle": ["*=0.001:1"]})
    assert [(await admin("GET"))[0] for _ in range(3)] == [200] * 3
