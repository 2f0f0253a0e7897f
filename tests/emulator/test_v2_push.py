"""What is pushed through ``/v2/``: by any client, cut, killed, at once, and read again through the other door."""

from __future__ import annotations

import gzip
import json
import resource
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest
from anyio import to_thread

import asyncpush
from asyncpush.emulator import Emulator, Finding, Quirks
from asyncpush.emulator.faults import FaultConfig, Throttle, parse_fault
from asyncpush.emulator.store.fsck import check
from support.aws import aws, password, token
from support.emulator_client import OCI_INDEX, OCI_MANIFEST, Ecr, digest_of, image_manifest, index_manifest
from support.v2_door import NAME, Door, session_with_token

MiB = 1024 * 1024
CONFIG = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
#: Longer than two of the blocks that the emulator works on at once, and no multiple of them.
LAYER = bytes(range(251)) * 20_000
DIGEST = digest_of(LAYER)
MANIFEST = image_manifest(CONFIG, LAYER)

needs_skopeo = pytest.mark.usefixtures("skopeo")


Open = Callable[[Emulator], Awaitable[Door]]


@pytest.fixture
async def door_to() -> AsyncIterator[Open]:
    """Opens ``/v2/`` of an emulator, and makes the repository if it is missing."""
    async with AsyncExitStack() as stack:

        async def opened(emulator: Emulator) -> Door:
            ecr = Ecr(emulator.endpoint_url)
            if not (await ecr.call("describe_repositories"))["repositories"]:
                await ecr.call("create_repository", repositoryName=NAME)
            return Door(await stack.enter_async_context(await session_with_token(emulator)))

        yield opened


@pytest.fixture
async def door(emulator: Emulator, door_to: Open) -> Door:
    return await door_to(emulator)


@pytest.fixture
def ecr(emulator: Emulator) -> Ecr:
    return Ecr(emulator.endpoint_url)


@pytest.mark.parametrize("path", ["blobs/uploads/", "manifests/v1", "nothing/there"])
async def test_a_body_counts_as_it_comes_whatever_its_encoding_is_said_to_be(
    door: Door, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    for body in (b"not compressed at all", gzip.compress(bytes(MiB))):
        if path.endswith("uploads/"):
            target = f"{await door.begin()}?digest={digest_of(body)}"
            status, headers, _ = await door.ask("PUT", target, body, Content_Encoding="gzip")
            assert (status, headers["Docker-Content-Digest"]) == (201, digest_of(body))
        else:
            status, _, answer = await door.ask("GET", path, body, Content_Encoding="gzip")
            assert status == 404, answer
    assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


async def head_of(emulator: Emulator, method: str, path: str) -> bytes:
    """The head of a request that announces the layer."""
    basic = await to_thread.run_sync(token, emulator.endpoint_url)
    head = f"{method} {path} HTTP/1.1\r\nHost: ecr\r\nAuthorization: Basic {basic}\r\n"
    return f"{head}Content-Length: {len(LAYER)}\r\n\r\n".encode()


async def test_a_patch_that_was_cut_goes_on_from_the_range_that_the_status_tells(
    emulator: Emulator, door: Door
) -> None:
    location = await door.begin()
    with anyio.fail_after(20):
        async with await anyio.connect_tcp(emulator.host, emulator.port) as stream:
            await stream.send(await head_of(emulator, "PATCH", location) + LAYER[: 3 * MiB])
            while not await door.received(location):
                pass
        status = 416
        while status == 416:  # what came last may be on its way to the disk still
            first = await door.received(location)
            asked = f"{first}-{len(LAYER) - 1}"
            status, *_ = await door.ask("PATCH", location, LAYER[first:], Content_Range=asked)
    assert status == 202
    assert 0 < first <= 3 * MiB
    assert (await door.ask("PUT", f"{location}?digest={DIGEST}"))[0] == 201
    assert (await door.ask("GET", f"blobs/{DIGEST}"))[2] == LAYER


async def test_a_put_of_unknown_length_that_was_cut_leaves_the_upload(emulator: Emulator, door: Door) -> None:
    location = await door.begin()
    basic = await to_thread.run_sync(token, emulator.endpoint_url)
    head = f"PUT {location}?digest={DIGEST} HTTP/1.1\r\nHost: ecr\r\nAuthorization: Basic {basic}\r\n"
    with anyio.fail_after(20):
        async with await anyio.connect_tcp(emulator.host, emulator.port) as stream:
            await stream.send(f"{head}Transfer-Encoding: chunked\r\n\r\n{3 * MiB:x}\r\n".encode() + LAYER[: 3 * MiB])
            while not await door.received(location):
                pass
        status = 416
        while status == 416:
            first = await door.received(location)
            asked = f"{first}-{len(LAYER) - 1}"
            put = f"{location}?digest={DIGEST}"
            status, *_ = await door.ask("PUT", put, LAYER[first:], Content_Range=asked)
    assert status == 201


async def test_bytes_of_another_digest_go_with_their_upload(door: Door, tmp_path: Path) -> None:
    location = await door.begin()
    assert (await door.ask("PUT", f"{location}?digest={DIGEST}", b"other"))[0] == 400
    assert (await door.ask("GET", location))[0] == 404
    assert await to_thread.run_sync(lambda: list((tmp_path / "ecr/uploads").iterdir())) == []


async def test_an_upload_outlives_the_emulator(tmp_path: Path, door_to: Open) -> None:
    async with Emulator(tmp_path / "ecr", fsync=False, part_size=MiB) as first:
        door = await door_to(first)
        location = await door.begin()
        await door.ask("PATCH", location, LAYER[:MiB])
    async with Emulator(tmp_path / "ecr", fsync=False, part_size=MiB) as second:
        door = await door_to(second)
        assert await door.received(location) == MiB
        assert (await door.ask("PUT", f"{location}?digest={DIGEST}", LAYER[MiB:]))[0] == 201
        assert (await door.ask("GET", f"blobs/{DIGEST}"))[2] == LAYER


async def test_a_push_whose_client_was_killed_leaves_nothing(emulator: Emulator, door: Door, tmp_path: Path) -> None:
    await cut_post(emulator, f"/v2/{NAME}/blobs/uploads/?digest={DIGEST}", LAYER[:MiB])
    await door.push(CONFIG)  # the emulator works on
    with anyio.fail_after(10):
        while await to_thread.run_sync(lambda: list((tmp_path / "ecr/uploads").iterdir())):
            pass


async def cut_post(emulator: Emulator, path: str, sent: bytes) -> None:
    async with await anyio.connect_tcp(emulator.host, emulator.port) as stream:
        await stream.send(await head_of(emulator, "POST", path) + sent)


async def test_of_two_patches_of_the_same_bytes_one_is_taken(door: Door) -> None:
    location = await door.begin()
    gate = anyio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield LAYER[:10]
        await gate.wait()
        yield LAYER[10:]

    statuses: list[int] = []

    async def patch(data: Any) -> None:
        statuses.append((await door.ask("PATCH", location, data))[0])

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(patch, slowly())
            await patch(LAYER)  # the one that hangs keeps nobody away
            gate.set()
    assert statuses == [202, 416]
    assert (await door.ask("PUT", f"{location}?digest={DIGEST}"))[0] == 201


def completing(upload: str) -> dict[str, Any]:
    return {"repositoryName": NAME, "uploadId": upload, "layerDigests": [DIGEST]}


async def test_one_layer_pushed_through_both_doors_at_once_is_there_once(door: Door, ecr: Ecr, tmp_path: Path) -> None:
    async def by_json() -> None:
        upload = await ecr.begin(NAME)
        await ecr.send(NAME, upload, 0, LAYER)
        with suppress(pytest.fail.Exception):  # it is refused, unless it is the first
            assert (
                await ecr.refused("complete_layer_upload", **completing(upload))
            ).code == "LayerAlreadyExistsException"

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(door.push, LAYER)
            group.start_soon(by_json)
    assert (await door.ask("GET", f"blobs/{DIGEST}"))[2] == LAYER
    assert list((tmp_path / "ecr/uploads").iterdir()) == []


async def test_both_doors_give_what_the_other_one_took(emulator: Emulator, door: Door, ecr: Ecr) -> None:
    """What asyncpush pushed is pulled through `/v2/`, and what was pushed there is found by the JSON API."""
    await door.push(CONFIG, LAYER)
    assert await door.put(MANIFEST, "v1") == (201, [])
    assert await ecr.available(NAME, DIGEST) == {DIGEST}
    assert await ecr.tags(NAME) == {digest_of(MANIFEST): ["v1"]}
    answer = await ecr.call("batch_get_image", repositoryName=NAME, imageIds=[{"imageTag": "v1"}])
    assert answer["images"][0]["imageManifest"].encode() == MANIFEST
    url = (await ecr.call("get_download_url_for_layer", repositoryName=NAME, layerDigest=DIGEST))["downloadUrl"]
    async with aiohttp.request("GET", url) as response:
        assert await response.read() == LAYER


async def test_an_upload_can_change_doors(door: Door, ecr: Ecr) -> None:
    location = await door.begin()
    layer = LAYER + LAYER
    await door.ask("PATCH", location, layer[: 5 * MiB])
    await ecr.send(NAME, location.rpartition("/")[2], 5 * MiB, layer[5 * MiB :])
    assert (await door.ask("PUT", f"{location}?digest={digest_of(layer)}"))[0] == 201


@pytest.mark.parametrize(
    ("quirks", "again"), [("image-already-exists", (201, [])), ("image-tag-already-exists", (400, ["TAG_INVALID"]))]
)
async def test_an_immutable_tag_stays_with_its_image(
    tmp_path: Path, door_to: Open, quirks: Any, again: tuple[int, list[str]]
) -> None:
    async with Emulator(tmp_path / "ecr", fsync=False, quirks=Quirks(same_immutable_tag=quirks)) as emulator:
        door, ecr = await door_to(emulator), Ecr(emulator.endpoint_url)
        await ecr.call("put_image_tag_mutability", repositoryName=NAME, imageTagMutability="IMMUTABLE")
        await door.push(CONFIG, LAYER)
        assert await door.put(MANIFEST, "v1") == (201, [])
        assert await door.put(MANIFEST, "v1") == again
        assert await door.put(image_manifest(CONFIG, LAYER, LAYER), "v1") == (400, ["TAG_INVALID"])
        assert (await door.ask("GET", "manifests/v1"))[2] == MANIFEST


async def test_a_patch_is_answered_as_the_quirk_has_it(tmp_path: Path, door_to: Open) -> None:
    async with Emulator(tmp_path / "ecr", fsync=False, quirks=Quirks(patch_status="201")) as emulator:
        door = await door_to(emulator)
        assert (await door.ask("PATCH", await door.begin(), LAYER))[0] == 201


@pytest.mark.parametrize(
    ("setting", "referenced", "encryption", "status"),
    [
        ("ENABLED", True, "AES256", 201),
        ("DISABLED", True, "AES256", 202),
        ("ENABLED", False, "AES256", 202),
        ("ENABLED", True, "KMS", 202),
    ],
)
async def test_a_blob_is_mounted_where_ecr_would(
    door: Door, ecr: Ecr, tmp_path: Path, setting: str, referenced: bool, encryption: str, status: int
) -> None:
    await ecr.call("put_account_setting", name="BLOB_MOUNTING", value=setting)
    await ecr.call("create_repository", repositoryName="other", encryptionConfiguration={"encryptionType": encryption})
    await door.push(CONFIG, LAYER)
    if referenced:
        await door.put(MANIFEST, "v1")
    mounted, _, _ = await door.ask("POST", f"/v2/other/blobs/uploads/?mount={DIGEST}&from={NAME}")
    assert mounted == status
    there = await ecr.available("other", DIGEST)
    assert there == ({DIGEST} if status == 201 else set())
    await ecr.call("delete_repository", repositoryName=NAME, force=True)
    if there:
        assert (await door.ask("GET", f"/v2/other/blobs/{DIGEST}"))[2] == LAYER


async def test_a_mounted_blob_outlives_the_emulator(tmp_path: Path, door_to: Open) -> None:
    async with Emulator(tmp_path / "ecr", fsync=False) as emulator:
        door, ecr = await door_to(emulator), Ecr(emulator.endpoint_url)
        await ecr.call("put_account_setting", name="BLOB_MOUNTING", value="ENABLED")
        await ecr.call("create_repository", repositoryName="other")
        await door.push(CONFIG, LAYER)
        await door.put(MANIFEST, "v1")
        await door.ask("POST", f"/v2/other/blobs/uploads/?mount={DIGEST}&from={NAME}")
    found: list[Finding] = []
    await check(tmp_path / "ecr", found.append)
    assert found == []
    async with Emulator(tmp_path / "ecr", fsync=False) as emulator:
        door = await door_to(emulator)
        assert (await door.ask("GET", f"/v2/other/blobs/{DIGEST}"))[2] == LAYER


async def test_a_push_creates_a_repository_where_a_template_says_so(door: Door, ecr: Ecr) -> None:
    await ecr.call(
        "create_repository_creation_template",
        prefix="made",
        appliedFor=["CREATE_ON_PUSH"],
        imageTagMutability="IMMUTABLE",
    )
    made = Door(door.http, "made/here")
    assert (await made.ask("HEAD", f"blobs/{DIGEST}"))[0] == 404
    await made.push(CONFIG, LAYER)
    assert await made.put(MANIFEST, "v1") == (201, [])
    (found,) = (await ecr.call("describe_repositories", repositoryNames=["made/here"]))["repositories"]
    assert found["imageTagMutability"] == "IMMUTABLE"
    assert (await door.ask("POST", "/v2/elsewhere/blobs/uploads/"))[0] == 404


async def test_the_host_decides_which_registry_is_pushed_into(emulator: Emulator, door: Door, ecr: Ecr) -> None:
    host = "000000000000.dkr.ecr.eu-west-1.amazonaws.com"
    assert (await door.ask("POST", "blobs/uploads/", Host=host))[0] == 404
    there = Ecr(emulator.endpoint_url, region="eu-west-1")
    await there.call("create_repository", repositoryName=NAME)
    status, _, _ = await door.ask("POST", f"blobs/uploads/?digest={DIGEST}", LAYER, Host=host)
    assert status == 201
    assert await there.available(NAME, DIGEST) == {DIGEST}
    assert await ecr.available(NAME, DIGEST) == set()


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file of this process can grow beyond *limit* bytes, as none can on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_disk_is_a_500_and_the_upload_goes_on_when_there_is_room(door: Door, tmp_path: Path) -> None:
    location = await door.begin()
    with full_disk(3 * MiB):
        status, _, body = await door.ask("PATCH", location, LAYER)
    assert status == 500
    assert [error["code"] for error in json.loads(body)["errors"]] == ["UNKNOWN"]
    received = await door.received(location)
    assert 0 < received <= 3 * MiB
    assert (await door.ask("PUT", f"{location}?digest={DIGEST}", LAYER[received:]))[0] == 201
    assert (await door.ask("GET", f"blobs/{DIGEST}"))[2] == LAYER


async def test_a_layer_has_its_quota_here_too(tmp_path: Path, door_to: Open) -> None:
    async with Emulator(tmp_path / "ecr", fsync=False, quirks=Quirks(max_layer_size=MiB)) as emulator:
        door = await door_to(emulator)
        status, _, body = await door.ask("PATCH", await door.begin(), LAYER)
        assert (status, json.loads(body)["errors"][0]["code"]) == (413, "SIZE_INVALID")


async def test_repositories_are_listed_by_page(door: Door, ecr: Ecr) -> None:
    await ecr.call("create_repository", repositoryName="a/b")
    assert json.loads((await door.ask("GET", "/v2/_catalog"))[2]) == {"repositories": ["a/b", NAME]}
    _, headers, body = await door.ask("GET", "/v2/_catalog?n=1")
    assert json.loads(body) == {"repositories": ["a/b"]}
    assert headers["Link"] == '</v2/_catalog?last=a%2Fb&n=1>; rel="next"'


async def test_faults_reach_pushes_through_v2_too(emulator: Emulator, door: Door) -> None:
    location = await door.begin()
    emulator.fault_config = FaultConfig(
        throttles=(Throttle("v2:PUT-manifest", 0.001, 1),),
        faults=(
            parse_fault("v2:PATCH-upload:first=1:server-error"),
            parse_fault("v2:PATCH-upload:nth=3:upload-expired"),
        ),
    )
    assert [(await door.ask("PATCH", location, LAYER))[0] for _ in range(3)] == [500, 202, 404]
    assert [(await door.put(MANIFEST, "v1"))[1] for _ in range(2)] == [["MANIFEST_BLOB_UNKNOWN"], ["TOOMANYREQUESTS"]]
    assert [hit.count for hit in emulator.hit_counts] == [1, 1, 1]


async def test_pushes_are_remembered_with_method_and_path(emulator: Emulator, door: Door) -> None:
    emulator.requests.clear()
    location = await door.begin()
    await door.ask("PUT", f"{location}?digest={digest_of(b'')}", LAYER)
    assert [(record.operation, record.status) for record in emulator.requests] == [
        (f"POST /v2/{NAME}/blobs/uploads/", 202),
        (f"PUT {location}", 400),
    ]


def skopeo_copy(*words: str) -> None:
    subprocess.run(["skopeo", "copy", "--all", *words], check=True, capture_output=True, timeout=60)


@needs_skopeo
async def test_skopeo_pushes_and_asyncpush_finds_it_there(
    emulator: Emulator, door: Door, real_images: Path, tmp_path: Path
) -> None:
    at = f"docker://{emulator.host}:{emulator.port}/{NAME}"
    credentials = f"AWS:{await to_thread.run_sync(password, emulator.endpoint_url)}"
    push = ("--dest-tls-verify=false", f"--dest-creds={credentials}")
    pull = ("--src-tls-verify=false", f"--src-creds={credentials}")
    for source, tag in (
        (f"oci:{real_images}/busybox", "oci"),
        (f"docker-archive:{real_images}/busybox.docker.tar", "docker"),
    ):
        await to_thread.run_sync(skopeo_copy, *push, source, f"{at}:{tag}")
        await to_thread.run_sync(skopeo_copy, *pull, f"{at}:{tag}", f"dir:{tmp_path}/{tag}")
        pulled = (tmp_path / tag / "manifest.json").read_bytes()
        assert (await door.ask("GET", f"manifests/{tag}"))[2] == pulled
    async with asyncpush.connect(aws=replace(aws(emulator.endpoint_url), region="us-east-1")) as registry:
        result = await asyncpush.push(registry, f"oci:{real_images}/busybox", f"{NAME}:oci")
    assert (result.outcome, result.bytes_sent) == ("present", 0)


@needs_skopeo
async def test_skopeo_pushes_an_index_with_all_its_images(emulator: Emulator, door: Door, ecr: Ecr) -> None:
    layer = gzip.compress(LAYER[:1000])
    await door.push(CONFIG, layer)
    one, two = image_manifest(CONFIG, layer), image_manifest(CONFIG, layer, annotations={"number": "two"})
    index = index_manifest(one, two)
    for manifest, reference in ((one, digest_of(one)), (two, digest_of(two))):
        assert await door.put(manifest, reference) == (201, [])
    assert (await door.ask("PUT", "manifests/multi", index, Content_Type=OCI_INDEX))[0] == 201
    await ecr.call("create_repository", repositoryName="copied")
    at = f"docker://{emulator.host}:{emulator.port}"
    credentials = f"AWS:{await to_thread.run_sync(password, emulator.endpoint_url)}"
    unsafe = ("--src-tls-verify=false", "--dest-tls-verify=false")
    unsafe += (f"--src-creds={credentials}", f"--dest-creds={credentials}")
    await to_thread.run_sync(skopeo_copy, *unsafe, f"{at}/{NAME}:multi", f"{at}/copied:multi")
    assert await ecr.tags("copied") == {digest_of(one): [], digest_of(two): [], digest_of(index): ["multi"]}


# The rules of an upload hold whichever door it comes by


async def refusal(answer: tuple[int, Any, bytes]) -> tuple[int, str, str]:
    status, _, body = answer
    [error] = json.loads(body)["errors"]
    return status, error["code"], error["message"]


@pytest.mark.parametrize("way", ["put", "post", "patch"])
async def test_a_blob_of_no_bytes_is_refused_as_by_the_json_api(door: Door, ecr: Ecr, way: str) -> None:
    empty = digest_of(b"")
    if way == "post":
        answer = await door.ask("POST", f"blobs/uploads/?digest={empty}", b"")
    else:
        location = await door.begin()
        if way == "patch":
            assert (await door.ask("PATCH", location, b""))[0] == 202
        answer = await door.ask("PUT", f"{location}?digest={empty}", b"")
    status, code, message = await refusal(answer)
    assert (status, code) == (400, "BLOB_UPLOAD_INVALID")
    assert message.endswith("cannot be completed because it does not have any parts")
    assert empty not in await ecr.available(NAME, empty)


@pytest.mark.parametrize("sizes", [(5 * MiB - 1, 1), (100, 100), (5 * MiB, 100, 100), (6 * MiB, 5 * MiB - 1, 7)])
async def test_a_short_chunk_before_the_last_is_refused_as_by_the_json_api(
    door: Door, ecr: Ecr, sizes: tuple[int, ...]
) -> None:
    location, layer = await door.begin(), (LAYER * 4)[: sum(sizes)]
    first = 0
    for size in sizes:
        assert (await door.ask("PATCH", location, layer[first : first + size]))[0] == 202
        first += size
    status, code, message = await refusal(await door.ask("PUT", f"{location}?digest={digest_of(layer)}"))
    assert (status, code) == (400, "BLOB_UPLOAD_INVALID")
    assert message == "All layer parts except the last part should be at least 5MB"
    complete = {"repositoryName": NAME, "uploadId": location.rpartition("/")[2], "layerDigests": [digest_of(layer)]}
    assert (await ecr.refused("complete_layer_upload", **complete)).code == "LayerPartTooSmallException"


@pytest.mark.parametrize("last_in_put", [True, False])
async def test_chunks_of_the_least_size_and_a_short_last_one_are_taken(door: Door, last_in_put: bool) -> None:
    location, layer = await door.begin(), (LAYER * 3)[: 10 * MiB + 1]
    chunks = [layer[: 5 * MiB], layer[5 * MiB : 10 * MiB], layer[10 * MiB :]]
    for chunk in chunks[:2] if last_in_put else chunks:
        assert (await door.ask("PATCH", location, chunk))[0] == 202
    last = chunks[2] if last_in_put else None
    assert (await door.ask("PUT", f"{location}?digest={digest_of(layer)}", last))[0] == 201


async def test_a_chunk_that_was_cut_goes_on_as_the_same_part(emulator: Emulator, door: Door) -> None:
    location, layer = await door.begin(), (LAYER * 2)[: 8 * MiB]
    basic = await to_thread.run_sync(token, emulator.endpoint_url)
    head = (
        f"PATCH {location} HTTP/1.1\r\nHost: ecr\r\nAuthorization: Basic {basic}\r\nContent-Length: {6 * MiB}\r\n\r\n"
    )
    with anyio.fail_after(20):
        async with await anyio.connect_tcp(emulator.host, emulator.port) as stream:
            await stream.send(head.encode() + layer[: 4 * MiB])
            while not await door.received(location):
                pass
        while (await door.ask("GET", location))[1]["Range"] != f"0-{4 * MiB - 1}":
            pass
    assert (await door.ask("PATCH", location, layer[4 * MiB : 6 * MiB]))[0] == 202
    assert (await door.ask("PUT", f"{location}?digest={digest_of(layer)}", layer[6 * MiB :]))[0] == 201


@pytest.mark.parametrize(("chunks", "status"), [(2, 202), (3, 403)])
async def test_chunks_count_as_parts(tmp_path: Path, door_to: Open, chunks: int, status: int) -> None:
    lowered = Quirks(max_parts=2)
    async with Emulator(tmp_path / "ecr", fsync=False, part_size=MiB, quirks=lowered) as emulator:
        door = await door_to(emulator)
        location = await door.begin()
        statuses = [(await door.ask("PATCH", location, LAYER[:MiB]))[0] for _ in range(chunks)]
        assert statuses[-1] == status


async def test_a_quirk_takes_what_the_specification_wants_taken(tmp_path: Path, door_to: Open) -> None:
    async with Emulator(tmp_path / "ecr", fsync=False, quirks=Quirks(oci_conformance="yes")) as emulator:
        door = await door_to(emulator)
        await door.push(b"", CONFIG)
        location = await door.begin()
        for chunk in (LAYER[:10], LAYER[10:]):
            assert (await door.ask("PATCH", location, chunk))[0] == 202
        assert (await door.ask("PUT", f"{location}?digest={DIGEST}"))[0] == 201
        assert await door.put(image_manifest(CONFIG), "bare") == (201, [])


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        OCI_MANIFEST,
    ],
)
async def test_a_manifest_of_schema_one_is_405_unsupported(door: Door, media_type: str) -> None:
    schema_1 = b'{"schemaVersion":1,"name":"team/app","tag":"1","fsLayers":[],"history":[]}'
    status, code, message = await refusal(await door.ask("PUT", "manifests/1", schema_1, Content_Type=media_type))
    assert (status, code) == (405, "UNSUPPORTED")
    assert message == "Invalid parameter at 'ImageManifest' failed to satisfy constraint: 'Invalid JSON syntax'"


async def test_an_image_without_layers_is_405_unsupported(door: Door) -> None:
    await door.push(CONFIG)
    answer = await door.ask("PUT", "manifests/1", image_manifest(CONFIG), Content_Type=OCI_MANIFEST)
    status, code, message = await refusal(answer)
    assert (status, code) == (405, "UNSUPPORTED")
    assert message == (
        "Invalid parameter at 'ImageManifest' failed to satisfy constraint: 'Image has to have at least 1 layer'"
    )


async def test_an_index_of_missing_images_names_them_in_brackets(door: Door) -> None:
    index = index_manifest(MANIFEST, image_manifest(CONFIG, LAYER, annotations={"number": "two"}))
    lost = ", ".join(each["digest"] for each in json.loads(index)["manifests"])
    answer = await door.ask("PUT", "manifests/1", index, Content_Type=OCI_INDEX)
    status, code, message = await refusal(answer)
    assert (status, code) == (404, "MANIFEST_BLOB_UNKNOWN")
    assert message == (
        f"Images with digests '[{lost}]' required for pushing image into repository with name '{NAME}' in the registry "
        "with id '000000000000' do not exist"
    )
