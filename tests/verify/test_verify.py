"""``verify``: what is whole is called whole, and whatever is wrong of an image is named, once."""

from __future__ import annotations

import json
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from anyio import to_thread
from anyio.from_thread import start_blocking_portal
from hypothesis import given
from hypothesis import strategies as st

import asyncpush
from asyncpush import Digest, Registry, Settings
from asyncpush.emulator import Emulator
from asyncpush.errors import InvalidReferenceError, RepositoryNotFoundError, ServiceError, UsageError
from asyncpush.events import RequestDone, Retrying
from asyncpush.protocols import NotHeld
from asyncpush.reference import RegistryName
from asyncpush.verify import (
    Verification,
    VerificationFailure,
    VerificationTarget,
    parse_target,
    verify_all,
    verify_image,
)
from support.aws import REGION, aws, call_new, judge
from support.commands import Server, run_here
from support.events import Events
from support.images import FOREIGN_LAYER, A, B, C, DockerSave, Layout, at, digest, layer_tar
from support.relay import NO_WAITS, refused, relay_to
from support.servers import serving_http

LARGE = 3 * 2**20


@dataclass
class Pushed:
    """A layout that was pushed to ``team/app:1``, and the files that the emulator keeps of it."""

    layout: Layout
    root: dict[str, Any]
    store: Path

    def json(self, descriptor: dict[str, Any]) -> dict[str, Any]:
        return json.loads(self.layout.files[f"blobs/sha256/{descriptor['digest'][7:]}"])

    def file(self, named: str) -> Path:
        [path] = self.store.rglob(named.removeprefix("sha256:"))
        return path

    @property
    def child(self) -> dict[str, Any]:
        return self.json(self.root)["manifests"][0]

    @property
    def layer(self) -> dict[str, Any]:
        return self.json(self.child)["layers"][0]


async def push(registry: Registry, layout: Layout, folder: Path, destination: str = "team/app:1") -> None:
    """Push the image of a layout that the destination's tag names there, too."""
    await asyncpush.push(registry, f"oci:{layout.write(folder)}:{destination.rpartition(':')[2]}", destination)


@pytest.fixture
async def pushed(registry: Registry, tmp_path: Path) -> Pushed:
    """An index of two images that share a layer; one of them has a foreign one, too."""
    layout = Layout()
    foreign = {"mediaType": FOREIGN_LAYER, "digest": digest(b"far"), "size": 3, "urls": ["https://far.example"]}
    images = [
        at(layout.image(A, B), "linux/amd64"),
        at(layout.image(A, C, platform="linux/arm64", more=[foreign]), "linux/arm64"),
    ]
    root = layout.index(*images)
    await push(registry, layout.tag(root, "1"), tmp_path / "layout")
    return Pushed(layout, root, tmp_path / "ecr" / "repositories")


@pytest.mark.parametrize("deep", [False, True])
async def test_an_image_that_was_pushed_is_whole(
    registry: Registry, pushed: Pushed, emulator: Emulator, deep: bool
) -> None:
    blobs = {name: data for name, data in pushed.layout.files.items() if name.startswith("blobs/")}
    before = emulator.requests.counts()
    found = await verify_image(registry, "team/app:1", deep=deep)
    assert found.is_whole
    assert found == Verification(
        "team/app:1", Digest.parse(pushed.root["digest"]), 3, 5, sum(map(len, blobs.values())), (), deep
    )
    after = emulator.requests.counts()
    asked = {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}
    reads = {"GetDownloadUrlForLayer": 5, "GET /_emulator/layers/": 5} if deep else {}
    assert asked == {"BatchGetImage": 2, "BatchCheckLayerAvailability": 1, **reads}


async def test_tag_and_digest_choose_what_is_verified(registry: Registry, pushed: Pushed, tmp_path: Path) -> None:
    root, child = pushed.root["digest"], pushed.child["digest"]
    for text, found in (("team/app:1", root), (f"team/app@{root}", root), (f"team/app:1@{root}", root),
                        (f"team/app@{child}", child)):  # fmt: skip
        result = await verify_image(registry, text)
        assert (str(result.digest), result.is_whole, result.destination) == (found, True, text.partition("@")[0])
    assert (await verify_image(registry, "team/app:1", expected=Digest.parse(root))).is_whole
    latest = await verify_image(registry, "team/app")
    assert [(problem.kind, problem.subject) for problem in latest.problems] == [("missing", "tag latest")]
    assert (latest.destination, latest.digest, latest.manifests) == ("team/app:latest", None, 0)
    with pytest.raises(InvalidReferenceError, match="another digest"):
        await verify_image(registry, f"team/app@{child}", expected=Digest.parse(root))


async def test_a_tag_that_names_another_image_is_told_with_both_digests(registry: Registry, pushed: Pushed) -> None:
    wanted = Digest.of(b"another")
    result = await verify_image(registry, "team/app:1", expected=wanted)
    [problem] = result.problems
    assert str(problem) == f"tag 1 names {pushed.root['digest']} and not {wanted}"
    assert (problem.kind, result.manifests, result.blobs) == ("unexpected", 3, 5)


async def only(registry: Registry, *, deep: bool = True) -> Any:
    result = await verify_image(registry, "team/app:1", deep=deep)
    [problem] = result.problems
    assert not result.is_whole
    return problem


async def test_a_byte_that_has_changed_on_disk_is_found_deep_only(registry: Registry, pushed: Pushed) -> None:
    file = pushed.file(pushed.layer["digest"])
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert (await verify_image(registry, "team/app:1")).is_whole
    problem = await only(registry)
    assert (problem.kind, problem.subject, str(problem.digest)) == ("damaged", "layer", pushed.layer["digest"])
    assert digest(bytes(data)) in problem.detail


async def test_a_layer_that_has_become_shorter_or_longer_is_damaged(registry: Registry, pushed: Pushed) -> None:
    file, size = pushed.file(pushed.layer["digest"]), pushed.layer["size"]
    data = file.read_bytes()
    for changed in (data[:-1], data + b"x", b""):
        file.write_bytes(changed)
        problem = await only(registry)
        assert problem.kind == "damaged"
        assert f"it has {len(changed)} bytes, but its descriptor says {size}" in problem.detail


async def test_a_manifest_that_has_changed_on_disk_is_damaged(registry: Registry, pushed: Pushed) -> None:
    file = pushed.file(pushed.child["digest"])
    file.write_bytes(file.read_bytes() + b"\n")
    problem = await only(registry, deep=False)
    assert (problem.kind, problem.subject, str(problem.digest)) == ("damaged", "manifest", pushed.child["digest"])


Change = Callable[[dict[str, Any]], None]


def changed(change: Change) -> Any:
    """Pass the request on, and change what is answered."""

    async def answer(request: web.Request, relay: Any) -> web.Response:
        async with relay.session.post(relay.target, data=await request.read(), headers=request.headers) as passed:
            document = await passed.json(content_type=None)
        change(document)
        return web.Response(body=json.dumps(document), content_type="application/x-amz-json-1.1")

    return answer


@dataclass
class Faulty:
    """A connection whose answers can be changed."""

    registry: Registry
    relay: Any
    events: Events

    async def problems(self, **changes: Change) -> list[str]:
        for operation, change in changes.items():
            self.relay.plan(operation, *[changed(change)] * 4)
        result = await verify_image(self.registry, "team/app:1")
        self.relay.planned.clear()
        return [str(problem) for problem in result.problems]


@pytest.fixture
async def faulty(emulator: Emulator, pushed: Pushed) -> AsyncIterator[Faulty]:
    events = Events()
    async with (
        relay_to(emulator.endpoint_url) as relay,
        asyncpush.connect(
            aws=aws(relay.url), settings=Settings(retry=NO_WAITS, max_attempts=3), emit=events
        ) as registry,
    ):
        yield Faulty(registry, relay, events)


def at_layer(named: str, change: Change) -> Change:
    """Change what BatchCheckLayerAvailability says of one layer."""

    def only_there(document: dict[str, Any]) -> None:
        [layer] = [each for each in document["layers"] if each["layerDigest"] == named] or [None]
        if layer is not None:
            change(layer)

    return only_there


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layerAvailability": "UNAVAILABLE"}, "is missing (UNAVAILABLE)"),
        ({"layerAvailability": "ARCHIVED"}, "is missing (ARCHIVED)"),
        ({"layerDigest": "sha256:other"}, "is missing (not mentioned)"),
        ({"layerSize": 1}, "is damaged: it has 1 bytes, but its descriptor says"),
        ({"layerSize": None}, None),
    ],
)
async def test_what_ecr_says_of_a_layer_counts(
    faulty: Faulty, pushed: Pushed, change: dict[str, Any], words: str | None
) -> None:
    layer = pushed.layer["digest"]
    found = await faulty.problems(BatchCheckLayerAvailability=at_layer(layer, lambda each: each.update(change)))
    assert [each.startswith(f"layer {layer} {words}") for each in found] == ([True] if words else [])


async def test_a_layer_that_ecr_finds_fault_with_is_missing(faulty: Faulty, pushed: Pushed) -> None:
    layer = pushed.layer["digest"]

    def fail(document: dict[str, Any]) -> None:
        document["layers"] = [each for each in document["layers"] if each["layerDigest"] != layer]
        failure = {"layerDigest": layer, "failureCode": "InvalidLayerDigest", "failureReason": "Odd"}
        document["failures"].append(failure)

    found = await faulty.problems(BatchCheckLayerAvailability=fail)
    assert found == [f"layer {layer} is missing (InvalidLayerDigest: Odd)"]


async def test_a_child_that_is_missing_is_named(faulty: Faulty, pushed: Pushed) -> None:
    child = pushed.child["digest"]

    def gone(document: dict[str, Any]) -> None:
        for lost in [each for each in document["images"] if each["imageId"]["imageDigest"] == child]:
            document["images"].remove(lost)
            failure = {"imageId": {"imageDigest": child}, "failureCode": "ImageNotFound", "failureReason": "Not here"}
            document["failures"].append(failure)

    assert await faulty.problems(BatchGetImage=gone) == [f"manifest {child} is missing (ImageNotFound: Not here)"]


async def test_manifests_that_are_not_what_they_are_said_to_be_are_named(faulty: Faulty, pushed: Pushed) -> None:
    root = pushed.root["digest"]

    def at_root(change: Change) -> Change:
        def only_there(document: dict[str, Any]) -> None:
            for image in document["images"]:
                if image["imageId"]["imageDigest"] == root:
                    change(image)

        return only_there

    def other_type(image: dict[str, Any]) -> None:
        image["imageManifestMediaType"] = "application/vnd.oci.image.manifest.v1+json"

    [problem] = await faulty.problems(BatchGetImage=at_root(other_type))
    assert problem.startswith(f"manifest {root} can't be read: it says it is")

    def other_bytes(image: dict[str, Any]) -> None:
        image["imageManifest"] += " "

    [problem] = await faulty.problems(BatchGetImage=at_root(other_bytes))
    assert problem.startswith(f"manifest {root} is damaged: its bytes have the digest")

    schema1 = json.dumps({"schemaVersion": 1, "fsLayers": []})

    def old(image: dict[str, Any]) -> None:
        image["imageManifest"], image["imageId"]["imageDigest"] = schema1, digest(schema1.encode())

    [problem] = await faulty.problems(BatchGetImage=at_root(old))
    assert "schema version 1" in problem


async def test_a_child_of_another_size_than_its_index_says_is_damaged(registry: Registry, tmp_path: Path) -> None:
    layout = Layout()
    image = layout.image(A)
    await push(registry, layout.tag(image, "image"), tmp_path / "layout", "team/app:image")
    index = layout.index({**image, "size": image["size"] + 1})
    raw = layout.files[f"blobs/sha256/{index['digest'][7:]}"].decode()
    client = judge(registry.endpoint_url)
    await to_thread.run_sync(partial(client.put_image, repositoryName="team/app", imageManifest=raw, imageTag="1"))
    client.close()
    problem = await only(registry, deep=False)
    assert (problem.kind, str(problem.digest)) == ("damaged", image["digest"])
    assert f"it has {image['size']} bytes, but its descriptor says {image['size'] + 1}" in problem.detail


async def test_an_index_too_deep_to_be_looked_at_is_told(registry: Registry, tmp_path: Path) -> None:
    layout = Layout()
    nested = layout.image(A)
    client = judge(registry.endpoint_url)
    await push(registry, layout.tag(nested, "1"), tmp_path / "layout")
    for _ in range(6):
        nested = layout.index(nested)
        raw = layout.files[f"blobs/sha256/{nested['digest'][7:]}"].decode()
        await to_thread.run_sync(partial(client.put_image, repositoryName="team/app", imageManifest=raw, imageTag="1"))
    client.close()
    problem = await only(registry, deep=False)
    assert (problem.kind, problem.detail) == ("unreadable", "is nested too deeply in indexes to be checked")


async def test_a_layer_that_ecr_does_not_give_is_told_and_the_others_are_read(faulty: Faulty, pushed: Pushed) -> None:
    for code, kind in (("LayerInaccessibleException", "unreadable"), ("LayersNotFoundException", "missing")):
        faulty.relay.plan("GetDownloadUrlForLayer", refused(code, "no"))
        result = await verify_image(faulty.registry, "team/app:1", deep=True)
        [problem] = result.problems
        assert (problem.kind, result.blobs) == (kind, 4)
        assert f"can't be read: GetDownloadUrlForLayer failed: {code}: no" in str(problem)


async def test_who_may_not_read_is_told_once(faulty: Faulty) -> None:
    for operation in ("GetDownloadUrlForLayer", "BatchGetImage"):
        faulty.relay.plan(operation, *[refused("AccessDeniedException")] * 5)
        with pytest.raises(ServiceError, match=f"{operation} failed: AccessDeniedException"):
            await verify_image(faulty.registry, "team/app:1", deep=True)
        faulty.relay.planned.clear()


async def test_many_images_of_a_repository_are_asked_for_together(
    registry: Registry, emulator: Emulator, tmp_path: Path
) -> None:
    shared, names = layer_tar("shared", 9000), [str(number) for number in range(101)]  # more than one call takes
    layout = Layout()
    digests = {}
    async with asyncpush.open_source(
        f"oci:{_tagged(layout, names, shared, digests).write(tmp_path / 'layout')}", registry.settings
    ) as source:
        images = [(image, parse_target(f"team/app:{image.tag}").destination) for image in await source.images()]
        await asyncpush.push_all(registry, images)
    before = emulator.requests.counts()
    targets = [parse_target(f"team/app:{name}@{digests[name]}") for name in names]
    results = await verify_all(registry, targets, deep=True)
    after = emulator.requests.counts()
    assert [(result.destination, result.is_whole) for result in results if isinstance(result, Verification)] == [
        (f"team/app:{name}", True) for name in names
    ]
    assert after["BatchGetImage"] - before["BatchGetImage"] == 2
    assert after["BatchCheckLayerAvailability"] - before["BatchCheckLayerAvailability"] == 3
    assert after["GetDownloadUrlForLayer"] == 101 + 101 + 1, "a layer that all share is read once"


def _tagged(layout: Layout, names: list[str], shared: bytes, digests: dict[str, str]) -> Layout:
    for name in names:
        image = layout.image(shared, layer_tar(f"own {name}", 10))
        digests[name] = str(image["digest"])
        layout.tag(image, name, **{"io.containerd.image.name": f"docker.io/team/app:{name}"})
    return layout


async def test_a_repository_that_fails_does_not_stop_the_others(registry: Registry, pushed: Pushed) -> None:
    targets = [parse_target(name) for name in ("team/absent:1", "team/app:1", "ghcr.team/x:1")[:2]]
    elsewhere = parse_target("123456789012.dkr.ecr.eu-west-1.amazonaws.com/team/app:1")
    absent, whole, other = await verify_all(registry, [*targets, elsewhere])
    assert isinstance(absent, VerificationFailure)
    assert isinstance(absent.error, RepositoryNotFoundError)
    assert isinstance(whole, Verification)
    assert whole.is_whole
    assert isinstance(other, VerificationFailure)
    assert isinstance(other.error, InvalidReferenceError)
    assert await verify_all(registry, []) == []


async def test_ecr_public_can_not_be_verified_and_that_is_said(emulator: Emulator) -> None:
    name = RegistryName("ecr-public", "team", "us-east-1", host="public.ecr.aws")
    async with asyncpush.connect(name, aws=aws(emulator.endpoint_url), settings=Settings(retry=NO_WAITS)) as registry:
        with pytest.raises(UsageError, match="ECR Public's API returns no manifests"):
            await verify_image(registry, "public.ecr.aws/team/app:1")
    assert not emulator.requests


DIGEST = str(Digest.of(b"x"))


def test_targets_are_read() -> None:
    assert parse_target("team/app").reference == "latest"
    assert parse_target("team/app:1").reference == "1"
    assert parse_target(f"team/app@{DIGEST}").reference == Digest.parse(DIGEST)
    assert parse_target(f"team/app:1@{DIGEST}") == VerificationTarget(
        parse_target("team/app:1").destination, Digest.parse(DIGEST)
    )
    for text in (f"team/app:@{DIGEST}", "team/app@", "team/app@sha512:00", f"@{DIGEST}", f"team/app@{DIGEST}@x", ""):
        with pytest.raises(InvalidReferenceError):
            parse_target(text)


@given(st.text(max_size=60))
def test_whatever_is_written_is_a_target_or_an_error(text: str) -> None:
    try:
        target = parse_target(text)
    except InvalidReferenceError:
        pass
    else:
        assert str(target).partition(":")[0] in text


Answer = Callable[[web.Request, "Files"], Awaitable[web.StreamResponse]]


@dataclass
class Files:
    """A server of one file, as S3 is: by address, whole or from a byte on; it fails as told."""

    data: bytes
    url: str = ""
    planned: list[Answer] = field(default_factory=list)
    requests: list[web.Request] = field(default_factory=list)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        return await (self.planned.pop(0) if self.planned else give)(request, self)

    @property
    def ranges(self) -> list[str | None]:
        return [request.headers.get("Range") for request in self.requests]


async def give(request: web.Request, files: Files) -> web.StreamResponse:
    start = int(request.headers.get("Range", "bytes=0-")[6:-1])
    headers = {"Content-Range": f"bytes {start}-{len(files.data) - 1}/{len(files.data)}"} if start else {}
    return web.Response(status=206 if start else 200, body=files.data[start:], headers=headers)


async def give_all(request: web.Request, files: Files) -> web.StreamResponse:
    return web.Response(body=files.data)


def broken_after(share: float, inner: Answer = give) -> Answer:
    """Give a part of what is due, and cut the connection."""

    async def answer(request: web.Request, files: Files) -> web.StreamResponse:
        whole = await inner(request, files)
        assert isinstance(whole, web.Response)
        assert isinstance(whole.body, bytes)
        response = web.StreamResponse(status=whole.status, headers=whole.headers)
        response.content_length = len(whole.body)
        await response.prepare(request)
        await response.write(whole.body[: int(share * len(whole.body))])
        assert request.transport is not None
        request.transport.close()
        return response

    return answer


def status(code: int) -> Answer:
    async def answer(request: web.Request, files: Files) -> web.StreamResponse:
        return web.Response(status=code, text="<Error/>")

    return answer


def redirected(times: int) -> Answer:
    async def answer(request: web.Request, files: Files) -> web.StreamResponse:
        if times > 1:
            files.planned.insert(0, redirected(times - 1))
        raise web.HTTPTemporaryRedirect(f"{files.url.replace('127.0.0.1', 'localhost')}?hop={times}")

    return answer


@dataclass
class Reading:
    """A layer whose bytes come from a server of ours."""

    registry: Registry
    files: Files
    events: Events
    relay: Any

    async def read(self) -> Any:
        return await self.registry.reader("team/app").read_blob(Digest.of(self.files.data))


@asynccontextmanager
async def serving(files: Files) -> AsyncIterator[Files]:
    async with serving_http(files.handle) as port:
        files.url = f"http://127.0.0.1:{port}/layer"
        yield files


SECRET = "X-Amz-Signature=0123456789abcdef"


@pytest.fixture
async def reading() -> AsyncIterator[Reading]:
    events = Events()
    async with (
        serving(Files(random.Random(1).randbytes(LARGE))) as files,
        relay_to("http://127.0.0.1:9") as relay,
        asyncpush.connect(
            aws=aws(relay.url), settings=Settings(retry=NO_WAITS, max_attempts=3), emit=events
        ) as registry,
    ):

        async def address(request: web.Request, _: Any) -> web.StreamResponse:
            await request.read()
            body = json.dumps({"downloadUrl": f"{files.url}?{SECRET}", "layerDigest": "x"})
            return web.Response(body=body, content_type="application/x-amz-json-1.1")

        relay.plan("GetDownloadUrlForLayer", *[address] * 10)
        yield Reading(registry, files, events, relay)


async def test_a_download_that_breaks_goes_on_where_it_broke(reading: Reading) -> None:
    reading.files.planned = [broken_after(0.5), broken_after(0.5), broken_after(0.0)]
    read = await reading.read()
    assert (read.digest, read.size) == (Digest.of(reading.files.data), LARGE)
    first, *rest = reading.files.ranges
    assert first is None
    starts = [int(str(each)[6:-1]) for each in rest]
    assert 0 < starts[0] < starts[1] == starts[2] < LARGE
    assert [event.operation for event in reading.events.of(Retrying)] == ["DownloadLayer"]
    outcomes = [event.outcome for event in reading.events.of(RequestDone) if event.operation == "DownloadLayer"]
    assert outcomes == ["succeeded", "succeeded", "unanswered", "succeeded"]


async def test_a_server_that_knows_no_ranges_is_read_from_the_start_again(reading: Reading) -> None:
    reading.files.planned = [broken_after(0.6), broken_after(0.9, give_all), give_all]
    read = await reading.read()
    assert (read.digest, read.size) == (Digest.of(reading.files.data), LARGE)
    assert len(reading.files.requests) == 3


async def test_no_credentials_go_to_the_server_and_redirects_are_followed(
    reading: Reading, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login user password secret\nmachine localhost login user password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    reading.files.planned = [redirected(3)]
    assert (await reading.read()).digest == Digest.of(reading.files.data)
    assert len(reading.files.requests) == 4
    for request in reading.files.requests:
        assert not {"Authorization", "X-Amz-Security-Token", "Cookie"} & set(request.headers)


async def test_a_server_that_redirects_for_ever_is_given_up(reading: Reading) -> None:
    """A server that redirects for ever is given up, and its address is not shown."""
    reading.files.planned = [redirected(1000)]
    with pytest.raises(asyncpush.RegistryError) as caught:
        await reading.read()
    assert len(reading.files.requests) < 100
    told = [str(caught.value), repr(caught.value), *(event.reason for event in reading.events.of(Retrying))]
    assert not [each for each in told if SECRET in each or "hop=" in each]


async def test_an_address_that_has_ended_is_asked_for_again(reading: Reading) -> None:
    reading.files.planned = [broken_after(0.5), status(403)]
    assert (await reading.read()).size == LARGE
    assert reading.relay.seen["GetDownloadUrlForLayer"] == 2
    assert reading.files.ranges[-1] == reading.files.ranges[1] != None  # noqa: E711


@pytest.mark.parametrize(("code", "tries"), [(404, 1), (403, 4), (503, 3), (416, 1)])
async def test_a_server_that_refuses_is_quoted_without_the_address(reading: Reading, code: int, tries: int) -> None:
    reading.files.planned = [status(code)] * 20
    with pytest.raises(ServiceError, match=f"DownloadLayer failed: HTTP{code}") as caught:
        await reading.read()
    assert len(reading.files.requests) == tries
    assert SECRET not in str(caught.value)


async def test_a_range_that_was_not_asked_for_is_no_answer(reading: Reading) -> None:
    async def other(request: web.Request, files: Files) -> web.StreamResponse:
        return web.Response(status=206, body=files.data[1:], headers={"Content-Range": f"bytes 1-{LARGE - 1}/{LARGE}"})

    reading.files.planned = [broken_after(0.5), other]
    with pytest.raises(ServiceError, match="HTTP206"):
        await reading.read()


async def test_what_the_repository_does_not_mention_is_not_held(faulty: Faulty) -> None:
    faulty.relay.plan("BatchGetImage", changed(lambda document: document.update(images=[], failures=[])))
    assert await faulty.registry.reader("team/app").manifests(["1"]) == {"1": NotHeld("not mentioned")}


def test_what_the_command_says_to_do_about_a_damaged_layer_mends_it(tmp_path: Path) -> None:
    """Deleting the image alone does not: the layer stays, and is not sent again."""
    (tmp_path / "app.tar").write_bytes(DockerSave().image(A, B, tags=["app:1"]).archive())
    words = ("push", tmp_path / "app.tar", "damaged/app:1", "--create-repository", "-q")
    emulator = Emulator(tmp_path / "ecr", fsync=False)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(emulator):
        env = {"AWS_ENDPOINT_URL_ECR": emulator.endpoint_url, "AWS_REGION": REGION} | dict.fromkeys(
            ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "test"
        )
        assert run_here(*words, **env).status == 0
        blobs = next((tmp_path / "ecr").glob("repositories/**/damaged/app/_layout/blobs/sha256"))
        layer = max(blobs.iterdir(), key=lambda path: path.stat().st_size)
        layer.write_bytes(layer.read_bytes()[:-1] + b"?")

        ran = run_here("verify", "damaged/app:1", "--deep", "--progress", "none", **env)
        assert ran.status == 1
        assert re.search(r"note: damaged/app:1: .* deleted \(aws ecr delete-repository --force\) and made", ran.err)

        judge(emulator.endpoint_url).delete_repository(repositoryName="damaged/app", force=True)
        assert run_here(*words, **env).status == 0
        assert run_here("verify", "damaged/app:1", "--deep", **env).status == 0


def test_the_command_says_what_is_whole_and_names_what_is_not(server: Server, tmp_path: Path) -> None:
    layout = Layout()
    layout.tag(layout.image(A, B), "1")
    source = f"oci:{layout.write(tmp_path / 'layout')}:1"
    pushed = server.run("push", source, "verified/app:1", "--create-repository", "-q")
    name = pushed.references.strip()
    ran = run_here("verify", "verified/app:1", "--deep", **server.environment)
    size = sum(len(data) for name, data in layout.files.items() if name.startswith("blobs/"))
    assert ran.status == 0
    assert re.fullmatch(r"asyncpush: 1 image whole in 0:0.; [0-9.]+ KiB read and hashed\n", ran.err)
    assert ran.out == f"{name}  whole: 1 manifest, 3 blobs, {size} bytes\n"

    words = ("verified/app:2", "verified/absent:1", f"verified/app:1@{DIGEST}", "verified/app:1")
    ran = run_here("verify", *words, "--progress", "none", **server.environment)
    assert (ran.status, ran.out) == (1, f"{name}  whole: 1 manifest, 3 blobs, {size} bytes\n")
    first, second, failed, push, expect, summary = ran.err.splitlines()
    assert push == "asyncpush: note: verified/app:2: push it again, or run the migration again"
    assert expect.startswith("asyncpush: note: verified/app:1: push the image that is expected")
    assert re.fullmatch(
        r"asyncpush: 1 image whole in 0:0., 3 not \(2 broken, 1 not verified\); "
        "sizes and digests of manifests only; --deep reads the bytes",
        summary,
    )
    assert first.startswith("asyncpush: error: verified/app:2: tag 2 is missing (ImageNotFound")
    assert failed.startswith("asyncpush: error: verified/absent:1: BatchGetImage failed: RepositoryNotFoundException")
    assert second == f"asyncpush: error: verified/app:1: tag 1 names {name.partition('@')[2]} and not {DIGEST}"

    ran = run_here("verify", *words, "--output", "json", **server.environment)
    document = json.loads(ran.out)
    assert [image["outcome"] for image in document["images"]] == ["broken", "failed", "broken", "whole"]
    assert {"images": 4, "whole": 1, "broken": 2, "failed": 1, "unverified": 0}.items() <= document["totals"].items()
    assert document["images"][3]["bytes"] == size
    assert document["images"][2]["problems"][0]["kind"] == "unexpected"
    assert ran.status == 1

    image = {"repositoryName": "verified/app", "imageId": {"imageTag": "1"}}
    call_new(server.url, "UpdateImageStorageClass", **image, targetStorageClass="ARCHIVE")
    ran = run_here("verify", "verified/app:1", "--progress", "none", **server.environment)
    assert "verified/app:1: tag 1 is archived (ImageInaccessible: " in ran.err
    restoring = "update-image-storage-class --repository-name REPOSITORY --image-id imageTag=TAG"
    assert f"verified/app:1: restore it first: aws ecr {restoring}" in ran.err


@pytest.mark.parametrize("words", [(), ("team/app:!",), (f"team/app@{DIGEST[:-1]}",), ("public.ecr.aws/team/app",)])
def test_wrong_usage_is_told_as_such(words: tuple[str, ...]) -> None:
    keys = {"AWS_REGION": REGION, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    ran = run_here("verify", *words, **keys)
    assert (ran.status, ran.out) == (2, "")
    [line] = ran.err.splitlines()
    assert line.startswith("asyncpush: error: ")
