"""A repository of ECR as the engine needs it: what is lost is made good, what can't be is said once, and clearly."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import botocore.session
import pytest
from aiohttp import web
from anyio import to_thread

import asyncpush
from asyncpush import Digest, Settings
from asyncpush.emulator import Emulator
from asyncpush.errors import (
    ConnectionFailedError,
    InvalidLayerPartError,
    LayersNotFoundError,
    RepositoryNotFoundError,
    ServiceError,
    TagImmutableError,
    UploadNotFoundError,
)
from asyncpush.events import Retrying, Unanswered
from asyncpush.manifest import OCI_MANIFEST, Manifest, parse_manifest
from asyncpush.model import TagMutability, Upload
from asyncpush.protocols import Part, Repository
from asyncpush.reference import RegistryName
from asyncpush.settings import DEFAULT_PART_SIZE, MiB, RetryPolicy
from support.aws import aws, judge
from support.events import Events
from support.images import CONFIG, LAYER, Layout, digest, layer_tar
from support.relay import NO_WAITS, Answer, Relay, lost_reply, lost_request, passed, refused, relay_to

DATA = b"a layer" * 100
CONFIG_BYTES = b'{"architecture":"amd64","os":"linux"}'
ATTEMPTS = 3


@pytest.fixture
async def emulator(tmp_path: Path) -> AsyncIterator[Emulator]:
    """An empty local ECR that takes parts as small as ours."""
    async with Emulator(tmp_path / "ecr", fsync=False, part_size=len(DATA)) as running:
        yield running


@dataclass(frozen=True)
class Bench:
    """A repository behind a relay."""

    relay: Relay
    registry: asyncpush.Registry
    repository: Repository
    events: Events

    @property
    def retried(self) -> list[tuple[str, int]]:
        return [(event.operation, event.attempt) for event in self.events.of(Retrying)]

    def part(self, upload: Upload, data: bytes = DATA, first: int = 0) -> Part:
        encoder = self.repository.encoder(upload, first)
        encoder.add(memoryview(data))
        return encoder.finish()

    async def push(self, data: bytes) -> str:
        upload = await self.repository.begin_upload()
        await self.repository.send_part(upload, self.part(upload, data))
        return await self.repository.complete_upload(upload, Digest.of(data))

    async def push_blobs(self) -> Manifest:
        """Push what the manifest needs, and return it."""
        for data in (DATA, CONFIG_BYTES):
            await self.push(data)
        return manifest_of(DATA)


def manifest_of(layer: bytes, note: str = "") -> Manifest:
    blobs = [{"mediaType": kind, "digest": digest(data), "size": len(data)} for kind, data in (
        (CONFIG, CONFIG_BYTES), (LAYER, layer),
    )]  # fmt: skip
    document = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": blobs[0], "layers": blobs[1:]}
    return parse_manifest(json.dumps({**document, "annotations": {"note": note}}).encode())


Open = Callable[..., AbstractAsyncContextManager[Bench]]


@pytest.fixture
def bench_to(emulator: Emulator) -> Open:
    """Open a repository called ``team/app``, which is not there yet."""

    @asynccontextmanager
    async def opened(
        registry: RegistryName | None = None, max_outage: float = 60, retry: RetryPolicy = NO_WAITS
    ) -> AsyncIterator[Bench]:
        events, settings = Events(), Settings(retry=retry, max_attempts=ATTEMPTS, max_outage=max_outage)
        async with (
            relay_to(emulator.endpoint_url) as relay,
            asyncpush.connect(registry, aws=aws(relay.url), settings=settings, emit=events) as connected,
        ):
            yield Bench(relay, connected, connected.repository("team/app"), events)

    return opened


@pytest.fixture
async def bench(bench_to: Open) -> AsyncIterator[Bench]:
    """The repository, there and empty; its endpoint has answered once."""
    async with bench_to() as opened:
        assert await opened.repository.create()
        yield opened


def answered(**members: object) -> Answer:
    """Answer with this instead of doing the work."""

    async def answer(request: web.Request, relay: Relay) -> web.StreamResponse:
        await request.read()
        return web.Response(body=json.dumps(members), content_type="application/x-amz-json-1.1")

    return answer


def page(status: int) -> Answer:
    """Answer with a page, as proxies and portals do."""

    async def answer(request: web.Request, relay: Relay) -> web.StreamResponse:
        await request.read()
        return web.Response(status=status, text="<html>Please wait</html>", content_type="text/html")

    return answer


def recording(documents: list[dict[str, Any]], then: Answer = passed) -> Answer:
    """Remember the request, and pass it on."""

    async def answer(request: web.Request, relay: Relay) -> web.StreamResponse:
        documents.append(await request.json())
        return await then(request, relay)

    return answer


@pytest.mark.parametrize("losses", [1, 2])
async def test_a_part_whose_reply_was_lost_is_sent_again_and_counts_once(bench: Bench, losses: int) -> None:
    bench.relay.plan("UploadLayerPart", *[lost_reply] * losses)
    sent: list[dict[str, Any]] = []
    upload = await bench.repository.begin_upload()
    first, second = bench.part(upload, DATA), bench.part(upload, b"the rest", len(DATA))
    await bench.repository.send_part(upload, first)
    bench.relay.plan("UploadLayerPart", recording(sent, lost_reply), recording(sent))
    await bench.repository.send_part(upload, second)
    assert sent[0] == sent[1]
    assert bench.retried == [("UploadLayerPart", attempt + 1) for attempt in range(losses)] + [("UploadLayerPart", 1)]
    assert await bench.repository.complete_upload(upload, Digest.of(DATA + b"the rest")) == "pushed"


async def test_a_refused_part_is_there_only_if_ecr_has_all_of_it_and_no_more(bench: Bench) -> None:
    upload = await bench.repository.begin_upload()
    part = bench.part(upload)
    for last_valid in (None, -1, 0, part.last - 1, part.last + 1):
        members = {} if last_valid is None else {"lastValidByteReceived": last_valid}
        bench.relay.plan("UploadLayerPart", refused("InvalidLayerPartException", **members))
        with pytest.raises(InvalidLayerPartError) as caught:
            await bench.repository.send_part(upload, part)
        assert caught.value.last_valid_byte == last_valid
    bench.relay.plan("UploadLayerPart", refused("InvalidLayerPartException", lastValidByteReceived=part.last))
    await bench.repository.send_part(upload, part)
    assert bench.relay.seen["UploadLayerPart"] == 6


async def test_a_part_that_does_not_follow_the_last_one_is_refused(bench: Bench) -> None:
    upload = await bench.repository.begin_upload()
    await bench.repository.send_part(upload, bench.part(upload))
    with pytest.raises(InvalidLayerPartError) as caught:
        await bench.repository.send_part(upload, bench.part(upload, DATA, 2 * len(DATA)))
    assert caught.value.last_valid_byte == len(DATA) - 1


async def test_a_completion_whose_reply_was_lost_has_pushed_the_layer(bench: Bench) -> None:
    bench.relay.plan("CompleteLayerUpload", lost_reply)
    assert await bench.push(DATA) == "pushed"
    assert bench.relay.seen["CompleteLayerUpload"] == 2
    assert await bench.repository.available([Digest.of(DATA)]) == {Digest.of(DATA)}


async def test_an_unknown_upload_is_an_error_while_the_layer_is_missing(bench: Bench) -> None:
    """An upload that ECR does not know is an error while the layer is missing."""
    upload = await bench.repository.begin_upload()
    await bench.repository.send_part(upload, bench.part(upload))
    bench.relay.plan("CompleteLayerUpload", refused("UploadNotFoundException"))
    with pytest.raises(UploadNotFoundError):
        await bench.repository.complete_upload(upload, Digest.of(DATA))


async def test_a_layer_that_somebody_else_completed_first_is_present(bench: Bench) -> None:
    uploads = [await bench.repository.begin_upload() for _ in range(2)]
    for upload in uploads:
        await bench.repository.send_part(upload, bench.part(upload))
    outcomes = [await bench.repository.complete_upload(upload, Digest.of(DATA)) for upload in uploads]
    assert outcomes == ["pushed", "present"]


@pytest.mark.parametrize("tag", ["1", None])
async def test_an_image_is_pushed_once_whatever_is_lost(bench: Bench, tag: str | None) -> None:
    await bench.push_blobs()
    for fault in (passed, lost_request, lost_reply):
        manifest = manifest_of(DATA, fault.__name__)
        bench.relay.plan("PutImage", fault)
        bench.relay.seen.clear()
        assert await bench.repository.put_image(manifest, tag) == "pushed"
        assert bench.relay.seen["PutImage"] == (1 if fault is passed else 2)
        assert await bench.repository.put_image(manifest, tag) == "present"
        [stored] = await bench.repository.find_images(
            tags=[tag] if tag else (), digests=() if tag else [manifest.digest]
        )
        assert (stored.digest, stored.manifest) == (manifest.digest, manifest)


async def garbled(request: web.Request, relay: Relay) -> web.StreamResponse:
    """Do the work, and answer with what can't be read."""
    await passed(request, relay)
    return web.Response(body=b'{"uploadId": "00', content_type="application/x-amz-json-1.1")


#: Each operation as the engine calls it, once all that it needs is there.
CALLS: dict[str, Callable[[Bench], Awaitable[object]]] = {
    "BatchCheckLayerAvailability": lambda bench: bench.repository.available([Digest.of(DATA)]),
    "BatchGetImage": lambda bench: bench.repository.find_images(tags=["1"], digests=()),
    "DescribeRepositories": lambda bench: bench.registry.repository("team/app").tag_mutability(),
    "InitiateLayerUpload": lambda bench: bench.repository.begin_upload(),
    "UploadLayerPart": lambda bench: bench.push(DATA),
    "CompleteLayerUpload": lambda bench: bench.push(DATA),
    "PutImage": lambda bench: bench.repository.put_image(manifest_of(DATA), "1"),
}

TRANSIENT = {
    "lost request": lost_request,
    "lost reply": lost_reply,
    "server's fault": refused("ServerException", status=500),
    "throttled": refused("ThrottlingException", "Rate exceeded"),
    "too many": refused("TooManyRequestsException", status=429),
    "a proxy's page": page(502),
    "unavailable": page(503),
    "late": page(408),
    "too slow": refused("RequestTimeoutException", status=400),
    "malformed": garbled,
}


async def test_what_passes_is_waited_out_and_told(bench: Bench) -> None:
    await bench.push_blobs()
    for what, fault in TRANSIENT.items():
        for operation, call in CALLS.items():
            before = bench.relay.seen[operation]
            bench.relay.plan(operation, fault)
            bench.events.clear()
            await call(bench)
            assert bench.retried == [(operation, 1)], what
            assert bench.relay.seen[operation] == before + 2, what


async def test_an_empty_answer_is_a_lost_reply(bench: Bench) -> None:
    await bench.push_blobs()
    for operation in ("InitiateLayerUpload", "CompleteLayerUpload", "PutImage"):
        bench.relay.plan(operation, answered())
        await CALLS[operation](bench)
        assert bench.retried[-1] == (operation, 1)


@pytest.mark.parametrize(
    ("said", "meant"),
    [("big", 10 * MiB), (True, 10 * MiB), ([1], 10 * MiB), (1, 5 * MiB), (-5, 5 * MiB), (10**12, 20 * MiB)],
)
async def test_a_part_size_that_cannot_be_meant_is_not_heeded(bench: Bench, said: object, meant: int) -> None:
    bench.relay.plan("InitiateLayerUpload", answered(uploadId="one", partSize=said))
    assert (await bench.repository.begin_upload()).part_size == meant


async def test_an_answer_without_an_end_is_cut_off_and_asked_for_again(
    bench_to: Open,
) -> None:

    async def drip(request: web.Request, relay: Relay) -> web.StreamResponse:
        await request.read()
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(10_000):
            await response.write(b" ")
            await anyio.sleep(0.02)
        return response

    async with bench_to(retry=replace(NO_WAITS, answer=0.3, note_after=0.1)) as bench:
        await bench.repository.create()
        for operation in ("BatchCheckLayerAvailability", "UploadLayerPart"):
            bench.relay.plan(operation, drip)
            await CALLS[operation](bench)
            assert bench.relay.seen[operation] == 2
        told = bench.events.of(Unanswered)
        assert {event.host for event in told} == {urlsplit(bench.relay.url).netloc}
        assert all(event.seconds >= 0.1 for event in told)
        retries = [(event.operation, event.host) for event in bench.events.of(Retrying)]
        assert retries == [
            (operation, told[0].host) for operation in ("BatchCheckLayerAvailability", "UploadLayerPart")
        ]


async def test_answers_that_fail_are_counted(bench: Bench) -> None:
    bench.relay.plan("InitiateLayerUpload", *[page(500)] * ATTEMPTS)
    bench.relay.seen.clear()
    bench.events.clear()
    with pytest.raises(asyncpush.RegistryError, match="InitiateLayerUpload"):
        await bench.repository.begin_upload()
    assert bench.relay.seen["InitiateLayerUpload"] == ATTEMPTS
    assert bench.retried == [("InitiateLayerUpload", attempt + 1) for attempt in range(ATTEMPTS - 1)]


async def test_no_answer_is_waited_out_however_often_it_was_asked_for(bench: Bench) -> None:
    bench.relay.plan("InitiateLayerUpload", *[lost_request] * 20 * ATTEMPTS)
    await bench.repository.begin_upload()
    assert bench.relay.seen["InitiateLayerUpload"] == 20 * ATTEMPTS + 1


async def test_an_outage_ends_a_request_once_it_has_lasted_too_long(bench_to: Open) -> None:
    async with bench_to(max_outage=0.1) as bench:
        await bench.repository.create()
        bench.relay.plan("InitiateLayerUpload", *[lost_request] * 100_000)
        with pytest.raises(ConnectionFailedError, match="InitiateLayerUpload got no answer"):
            await bench.repository.begin_upload()


async def test_throttles_end_no_retry(bench: Bench) -> None:
    throttles = 10 * ATTEMPTS
    bench.relay.plan("InitiateLayerUpload", *[refused("ThrottlingException")] * throttles)
    await bench.repository.begin_upload()
    assert bench.relay.seen["InitiateLayerUpload"] == throttles + 1
    assert bench.retried == [("InitiateLayerUpload", attempt + 1) for attempt in range(throttles)]


async def test_an_endpoint_that_has_never_answered_gets_more_tries(
    bench_to: Open,
) -> None:
    """An endpoint that has never answered gets more tries, unless its address may be wrong."""
    async with bench_to() as bench:
        bench.relay.plan("CreateRepository", lost_request)
        assert await bench.repository.create()
        assert bench.relay.seen["CreateRepository"] == 2
    events = Events()
    async with asyncpush.connect(aws=aws("http://127.0.0.1:1"), emit=events) as registry:
        with pytest.raises(ConnectionFailedError, match=r"127\.0\.0\.1:1"):
            await registry.repository("team/app").begin_upload()
    assert not events.of(Retrying)


ADVICE = {
    "LimitExceededException": "Service Quotas",
    "InvalidSignatureException": "clock",
    "InvalidParameterException": "",
    "KmsException": "key",
}


async def test_what_does_not_pass_fails_at_once_with_advice(bench: Bench) -> None:
    for operation, call in CALLS.items():
        for code, advice in ADVICE.items():
            before = bench.relay.seen[operation]
            bench.relay.plan(operation, refused(code, "because"))
            with pytest.raises(ServiceError, match=f"^{operation} failed: {code}: because.*{advice}[^\n]*$") as caught:
                await call(bench)
            assert (caught.value.operation, caught.value.code, caught.value.status) == (operation, code, 400)
            assert bench.relay.seen[operation] == before + 1
    assert bench.retried == []


async def test_a_failure_while_another_is_handled_is_not_taken_for_it(bench: Bench) -> None:
    """A redirect of CreateRepository, sent since BatchGetImage found no repository, is CreateRepository's failure."""

    async def elsewhere(request: web.Request, relay: Relay) -> web.StreamResponse:
        await request.read()
        return web.Response(status=307, headers={"Location": "http://127.0.0.1:1/"})

    bench.relay.plan("CreateRepository", *[elsewhere] * ATTEMPTS)
    try:
        raise RepositoryNotFoundError("BatchGetImage", "RepositoryNotFoundException", "it does not exist")
    except RepositoryNotFoundError:
        with pytest.raises(ConnectionFailedError, match=r"^CreateRepository got no answer from .* it redirects to"):
            await bench.repository.create()
    assert bench.relay.seen["CreateRepository"] == 1 + ATTEMPTS


async def test_a_missing_repository_is_told_as_such_by_every_operation(bench_to: Open) -> None:
    async with bench_to() as bench:
        for call in CALLS.values():
            with pytest.raises(RepositoryNotFoundError, match="--create-repository"):
                await call(bench)
        assert bench.retried == []


async def test_a_repository_is_created_once(bench_to: Open) -> None:
    async with bench_to() as bench:
        assert await bench.repository.create() is True
        assert await bench.repository.create() is False


@pytest.mark.parametrize("status", [400, 403])
async def test_who_may_push_but_not_read_pushes(bench: Bench, tmp_path: Path, status: int) -> None:
    layout = Layout()
    layout.tag(layout.image(layer_tar("one")), "1")
    source = f"oci:{layout.write(tmp_path / 'layout')}:1"
    denied = refused("AccessDeniedException", status=status)
    for operation in ("BatchGetImage", "DescribeRepositories"):
        bench.relay.plan(operation, *[denied] * 10)
    async with asyncpush.connect(aws=aws(bench.relay.url), settings=Settings(retry=NO_WAITS)) as registry:
        result = await asyncpush.push(registry, source, "team/app:1")
        assert (result.outcome, result.layers_sent) == ("pushed", 2)
        assert (await asyncpush.push(registry, source, "team/app:1")).outcome == "present"
    assert (await bench.repository.tag_mutability()).is_immutable("1") is False


#: For each mutability, with ``dev-*`` and ``nightly`` excluded where it knows exclusions: which tags can't move.
IMMUTABLE_TAGS = {
    "MUTABLE": set(),
    "IMMUTABLE": {"release-1", "dev-1", "dev", "nightly", "Nightly"},
    "MUTABLE_WITH_EXCLUSION": {"dev-1", "nightly"},
    "IMMUTABLE_WITH_EXCLUSION": {"release-1", "dev", "Nightly"},
}


async def test_which_tags_may_not_move(bench: Bench) -> None:
    async def mutability_now() -> TagMutability:
        return await bench.registry.repository("team/app").tag_mutability()

    client = await to_thread.run_sync(judge, bench.relay.url)
    filters = [{"filterType": "WILDCARD", "filter": each} for each in ("dev-*", "nightly")]
    for mutability, immutable in IMMUTABLE_TAGS.items():
        excluded = {"imageTagMutabilityExclusionFilters": filters} if "EXCLUSION" in mutability else {}
        await to_thread.run_sync(partial(client.delete_repository, repositoryName="team/app"))
        create = partial(client.create_repository, repositoryName="team/app", **excluded)
        await to_thread.run_sync(partial(create, imageTagMutability=mutability))
        described = await mutability_now()
        found = {tag for tag in IMMUTABLE_TAGS["IMMUTABLE"] if described.is_immutable(tag)}
        assert found == immutable, mutability
    settings = {"imageTagMutability": "IMMUTABLE", "imageTagMutabilityExclusionFilters": filters}
    bench.relay.plan("DescribeRepositories", answered(repositories=[settings]))
    assert (await mutability_now()).is_immutable("dev-1"), (
        "filters that are left over from another mode count for nothing"
    )


async def test_an_immutable_tag_stays_and_the_error_says_what_it_names(bench_to: Open) -> None:
    async with bench_to() as bench:
        create = partial(judge(bench.relay.url).create_repository, repositoryName="team/app")
        await to_thread.run_sync(partial(create, imageTagMutability="IMMUTABLE"))
        manifest = await bench.push_blobs()
        assert await bench.repository.put_image(manifest, "1") == "pushed"
        assert await bench.repository.put_image(manifest, "1") == "present"
        with pytest.raises(TagImmutableError, match=str(manifest.digest)) as caught:
            await bench.repository.put_image(manifest_of(DATA, "other"), "1")
        assert caught.value.present == manifest.digest
        # ECR is reported to refuse the same image under its immutable tag with this code, too.
        bench.relay.plan("PutImage", refused("ImageTagAlreadyExistsException"))
        assert await bench.repository.put_image(manifest, "1") == "present"


async def test_a_manifest_whose_blobs_are_missing_is_told_as_such(bench: Bench) -> None:
    with pytest.raises(LayersNotFoundError):
        await bench.repository.put_image(manifest_of(DATA), "1")


async def test_250_digests_are_asked_for_in_3_calls(bench: Bench) -> None:
    there = [Digest.of(str(number).encode()) for number in (0, 120, 249)]
    for number in (0, 120, 249):
        await bench.push(str(number).encode())
    asked: list[dict[str, Any]] = []
    bench.relay.plan("BatchCheckLayerAvailability", *[recording(asked)] * 10)
    digests = [Digest.of(str(number).encode()) for number in range(250)]
    assert await bench.repository.available(digests) == frozenset(there)
    assert sorted(len(each["layerDigests"]) for each in asked) == [50, 100, 100]
    assert {digest for each in asked for digest in each["layerDigests"]} == {str(digest) for digest in digests}
    assert await bench.repository.available([]) == frozenset()


async def test_250_images_are_looked_for_in_3_calls(bench: Bench) -> None:
    manifest = await bench.push_blobs()
    await bench.repository.put_image(manifest, "1")
    asked: list[dict[str, Any]] = []
    bench.relay.plan("BatchGetImage", *[recording(asked)] * 10)
    digests = [Digest.of(str(number).encode()) for number in range(248)]
    found = await bench.repository.find_images(tags=["1"], digests=[*digests, manifest.digest])
    assert sorted(len(each["imageIds"]) for each in asked) == [50, 100, 100]
    assert {image.digest for image in found} == {manifest.digest}
    assert "1" in {image.tag for image in found}
    assert await bench.repository.find_images(tags=(), digests=()) == ()
    asked.clear()
    bench.relay.plan("BatchGetImage", *[recording(asked)] * 10)
    tags = [f"v{number}" for number in range(150)]
    [found_again] = await bench.repository.find_images(tags=[*tags, "1"], digests=digests[:50])
    assert (found_again.digest, found_again.tag) == (manifest.digest, "1")
    assert sorted(len(each["imageIds"]) for each in asked) == [1, 100, 100]


async def test_only_available_layers_are_there(bench: Bench) -> None:
    digests = {word: Digest.of(word.encode()) for word in ("AVAILABLE", "UNAVAILABLE", "ARCHIVED", "", "available")}
    layers = [{"layerDigest": str(digest), "layerAvailability": word} for word, digest in digests.items()]
    layers += [{"layerDigest": "md5:1234", "layerAvailability": "AVAILABLE"}, {"layerAvailability": "UNAVAILABLE"}]
    failures = [{"layerDigest": str(Digest.of(b"odd")), "failureCode": "MissingLayerDigest"}]
    bench.relay.plan("BatchCheckLayerAvailability", answered(layers=layers, failures=failures), answered())
    asked = [*digests.values(), Digest.of(b"odd"), Digest.of(b"unmentioned")]
    assert await bench.repository.available(asked) == {digests["AVAILABLE"]}
    assert await bench.repository.available(asked) == frozenset()


async def test_ecr_says_how_large_parts_are_or_they_have_10_mib(bench: Bench) -> None:
    for members, size in (({}, DEFAULT_PART_SIZE), ({"partSize": 7 * MiB}, 7 * MiB)):
        bench.relay.plan("InitiateLayerUpload", answered(uploadId="id", **members))
        assert await bench.repository.begin_upload() == Upload("id", size, 4200)


PUBLIC = botocore.session.Session().get_service_model("ecr-public")


async def test_an_account_in_the_destination_goes_into_every_request(bench_to: Open) -> None:
    asked: list[dict[str, Any]] = []
    async with bench_to(RegistryName("ecr", "123456789012", "eu-west-1")) as bench:
        for operation in (*CALLS, "CreateRepository"):
            bench.relay.plan(operation, *[recording(asked)] * 10)
        await bench.repository.create()
        manifest = await bench.push_blobs()
        await bench.repository.put_image(manifest, "1")
        await bench.repository.find_images(tags=["1"], digests=())
        await bench.repository.available([manifest.digest])
        await bench.repository.tag_mutability()
        assert len(bench.relay.seen) == len(CALLS) + 1
    assert {each.get("registryId") for each in asked} == {"123456789012"}


async def test_without_an_account_no_request_names_one(bench: Bench) -> None:
    asked: list[dict[str, Any]] = []
    for operation in CALLS:
        bench.relay.plan(operation, *[recording(asked)] * 10)
    await bench.repository.put_image(await bench.push_blobs(), "1")
    assert asked
    assert not any("registryId" in each for each in asked)


@pytest.mark.parametrize("registry_id", ["team-alias", "123456789012"])
async def test_a_public_registry_is_named_where_ecr_public_takes_it(bench_to: Open, registry_id: str) -> None:
    manifest = manifest_of(DATA)
    image = {"imageId": {"imageDigest": str(manifest.digest)}}
    asked: dict[str, list[dict[str, Any]]] = {}
    answers: dict[str, Answer] = {
        "BatchCheckLayerAvailability": answered(layers=[]),
        "CompleteLayerUpload": answered(layerDigest=digest(DATA)),
        "CreateRepository": answered(repository={}),
        "DescribeImages": answered(imageDetails=[{"imageDigest": str(manifest.digest), "imageTags": ["1"]}]),
        "InitiateLayerUpload": answered(uploadId="id", partSize=DEFAULT_PART_SIZE),
        "PutImage": answered(image=image),
        "UploadLayerPart": answered(lastByteReceived=len(DATA) - 1),
    }
    registry = RegistryName("ecr-public", registry_id, "us-east-1", host="public.ecr.aws")
    async with bench_to(registry) as bench:
        for operation, answer in answers.items():
            bench.relay.plan(operation, recording(asked.setdefault(operation, []), answer))
        await bench.repository.create()
        assert await bench.repository.available([manifest.digest]) == frozenset()
        assert (await bench.repository.begin_upload()).max_parts == 1000
        upload = Upload("id", DEFAULT_PART_SIZE, 1000)
        await bench.repository.send_part(upload, bench.part(upload))
        assert await bench.repository.complete_upload(upload, Digest.of(DATA)) == "pushed"
        assert await bench.repository.put_image(manifest, "1") == "pushed"
        [found] = await bench.repository.find_images(tags=["1"], digests=())
        assert (found.digest, found.tag) == (manifest.digest, "1")
        assert (await bench.repository.tag_mutability()).is_immutable("1") is False
        assert bench.relay.seen.keys() == answers.keys()
    for operation, requests in asked.items():
        member = PUBLIC.operation_model(operation).input_shape.members.get("registryId")
        takes = member is not None and re.fullmatch(member.metadata.get("pattern", ".{2,50}"), registry_id) is not None
        assert [request.get("registryId") for request in requests] == [registry_id if takes else None], operation


async def test_public_images_are_looked_for_one_by_one(bench_to: Open) -> None:
    manifest = manifest_of(DATA)
    asked: list[dict[str, Any]] = []
    there = answered(imageDetails=[{"imageDigest": str(manifest.digest)}])
    missing = refused("ImageNotFoundException")

    async def by_tag_there_is_none(request: web.Request, relay: Relay) -> web.StreamResponse:
        asked.append(await request.json())
        return await (missing if "imageTag" in asked[-1]["imageIds"][0] else there)(request, relay)

    async with bench_to(RegistryName("ecr-public", "team-alias", "us-east-1", host="public.ecr.aws")) as bench:
        bench.relay.plan("DescribeImages", *[by_tag_there_is_none] * 2)
        found = await bench.repository.find_images(tags=["1"], digests=[manifest.digest])
    assert [(image.digest, image.tag) for image in found] == [(manifest.digest, None)]
    ids = [{"imageTag": "1"}, {"imageDigest": str(manifest.digest)}]
    assert sorted((each["imageIds"] for each in asked), key=str) == sorted(([each] for each in ids), key=str)


#: Answers that are a success by their status, and none by what they say.
WRONG = [
    ("UploadLayerPart", answered(lastByteReceived=len(DATA))),
    ("UploadLayerPart", answered(lastByteReceived=0)),
    ("CompleteLayerUpload", answered(layerDigest=digest(b"other"))),
    ("PutImage", answered(image={"imageId": {"imageDigest": digest(b"other")}})),
    ("BatchCheckLayerAvailability", answered(layers=[{"layerAvailability": "AVAILABLE"}])),
    ("DescribeRepositories", answered(repositories=[{"imageTagMutabilityExclusionFilters": [{}]}])),
    ("BatchGetImage", answered(images=[{"imageManifest": "{}"}])),
    ("BatchGetImage", answered(images=[{"imageId": {"imageDigest": "sha1:1"}, "imageManifest": "{}"}])),
]


async def test_an_answer_that_contradicts_what_was_sent_is_no_success(bench: Bench) -> None:
    for operation, answer in WRONG:
        bench.relay.plan(operation, answer)
        with pytest.raises(ServiceError, match=f"{operation} failed: (Wrong|Unexpected)"):
            await CALLS[operation](bench)


async def test_an_answer_that_is_not_ecrs_names_the_endpoint(bench: Bench) -> None:
    """A page in the place of an answer may be a lost reply: only where it stays is it somebody else's."""
    for operation in ("PutImage", "CompleteLayerUpload", "InitiateLayerUpload", "DescribeRepositories"):
        bench.relay.plan(operation, *[page(200)] * 20)
        with pytest.raises(ServiceError, match=f"{operation} failed: Unexpected.*check {bench.relay.url}$"):
            await CALLS[operation](bench)
    for answer in (page(404), page(403)):
        bench.relay.planned.clear()
        bench.relay.plan("InitiateLayerUpload", answer)
        with pytest.raises(ServiceError, match=f"check {bench.relay.url}$"):
            await bench.repository.begin_upload()
