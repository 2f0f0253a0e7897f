"""Layers through ``/v2/``: the same promises as through the API, whatever a registry or the way to it does."""

from __future__ import annotations

import errno
import os
import random
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import anyio
import pytest
import trustme
from aiohttp import web
from anyio import to_thread

import asyncpush
from asyncpush import Credentials, Registry, Settings, SourceRegistry
from asyncpush.ecr.v2 import V2Address, V2Endpoint
from asyncpush.emulator import Emulator, Quirks
from asyncpush.engine.layer import push_layer, send_layer
from asyncpush.errors import (
    ConnectionFailedError,
    DigestMismatchError,
    RepositoryNotFoundError,
    ServiceError,
    SourceError,
)
from asyncpush.events import Emit, Event, Notice, PartSent, RequestDone, Retrying, ignore
from asyncpush.journal import open_journal
from asyncpush.model import Descriptor, Digest, PushedLayer
from asyncpush.protocols import Blob
from asyncpush.settings import MiB, TransportChoice
from asyncpush.sources.blobs import BytesContent, ContentBlob, FileContent
from asyncpush.sources.registry import open_pool
from support.aws import aws, password, token
from support.emulator_client import received
from support.events import Events
from support.images import DockerSave, Layout, layer_tar
from support.registry_server import running
from support.relay import NO_WAITS, Answer, Relay, lost_reply, lost_request, passed, passed_with, relay_to

SIZE = 13 * MiB
DATA = random.Random(15).randbytes(SIZE)
DESCRIPTOR = Descriptor("application/vnd.oci.image.layer.v1.tar+gzip", Digest.of(DATA), SIZE)
PART = 5 * MiB


def held_blob() -> Blob:
    return ContentBlob("layer", DESCRIPTOR, BytesContent(DATA, "layer"))


def file_blob(folder: Path, data: bytes = DATA, descriptor: Descriptor = DESCRIPTOR) -> Blob:
    """A blob in a file of its own, which claims to have DATA."""
    path = folder / "layer"
    path.write_bytes(data)
    return ContentBlob("layer", descriptor, FileContent(path, len(data), "layer"))


@asynccontextmanager
async def remote_blob() -> AsyncIterator[Blob]:
    """The blob in another registry."""
    async with running() as server:
        server.blobs[str(DESCRIPTOR.digest)] = DATA
        registry = SourceRegistry(host=server.host, plain_http=True, anonymous=True)
        async with open_pool({server.host: registry}) as remotes:
            yield remotes.at(server.host).blob("team/app", DESCRIPTOR)


@asynccontextmanager
async def connected(url: str, transport: TransportChoice = "v2", emit: Emit = ignore) -> AsyncIterator[Registry]:
    settings = Settings(transport=transport, part_size=PART, retry=NO_WAITS, create_repository=True)
    async with asyncpush.connect(aws=aws(url), settings=settings, emit=emit) as registry:
        yield registry


async def push(registry: Registry, blob: Blob, name: str = "team/app") -> PushedLayer:
    repository = registry.repository(name)
    await repository.create()
    return await push_layer(repository, blob, registry.context)  # type: ignore[attr-defined]


async def stored(emulator: Emulator, digest: Digest = DESCRIPTOR.digest, repository: str = "team/app") -> bytes | None:
    """The bytes that a stranger reads back; None if the repository does not have the blob."""
    url = f"{emulator.endpoint_url}/v2/{repository}/blobs/{digest}"
    headers = {"Authorization": f"Basic {await to_thread.run_sync(token, emulator.endpoint_url)}"}
    async with aiohttp.ClientSession() as session, session.get(url, headers=headers) as answer:
        return await answer.read() if answer.status == 200 else None


def count(events: Events, operation: str) -> int:
    return sum(event.operation == operation for event in events.of(RequestDone))


@pytest.mark.parametrize("kind", ["file", "held"])
async def test_a_layer_is_sent_as_it_is(emulator: Emulator, tmp_path: Path, kind: str) -> None:
    events = Events()
    async with connected(emulator.endpoint_url, emit=events) as registry:
        pushed = await push(registry, file_blob(tmp_path) if kind == "file" else held_blob())

    assert pushed == PushedLayer(DESCRIPTOR, SIZE, "pushed")
    assert await stored(emulator) == DATA
    assert sum(event.sent for event in events.of(PartSent)) == SIZE
    assert (count(events, "PatchBlobUpload"), count(events, "UploadLayerPart")) == (3, 0)


@pytest.mark.parametrize(("part_size", "parts"), [(None, [20, 40, 5]), (20 * MiB, [20, 20, 20, 5])])
async def test_parts_grow_unless_their_size_is_asked_for(
    emulator: Emulator, tmp_path: Path, part_size: int | None, parts: list[int]
) -> None:
    size, events = 65 * MiB, Events()
    zeros = bytes(size)
    blob = file_blob(tmp_path, zeros, Descriptor(DESCRIPTOR.media_type, Digest.of(zeros), size))
    settings = Settings(transport="v2", part_size=part_size)
    async with asyncpush.connect(aws=aws(emulator.endpoint_url), settings=settings, emit=events) as registry:
        await push(registry, blob)

    assert [event.sent // MiB for event in events.of(PartSent) if event.sent] == parts


async def test_every_kind_of_source_goes_through(emulator: Emulator, tmp_path: Path) -> None:
    """Layers of known digests, layers that are compressed as they are read, and those of another registry."""
    layout = Layout()
    folder = layout.tag(layout.image(layer_tar("plain", 6 * MiB), layer_tar("more")), "1").write(tmp_path / "layout")
    archive = tmp_path / "saved.tar"
    archive.write_bytes(DockerSave().image(layer_tar("saved", 7 * MiB), tags=["team/app:2"]).archive())
    host = emulator.endpoint_url.removeprefix("http://")
    login = Credentials("AWS", await to_thread.run_sync(password, emulator.endpoint_url))
    source = {host: SourceRegistry(host=host, plain_http=True, credentials=login)}
    events = Events()
    async with connected(emulator.endpoint_url, emit=events) as registry:
        await asyncpush.push(registry, f"oci:{folder}:1", "team/app:1")
        await asyncpush.push(registry, f"docker-archive:{archive}", "team/app:2")
        await asyncpush.push(registry, f"docker://{host}/team/app:1", "team/copy:1", sources=source)
        for name in ("team/app:1", "team/app:2", "team/copy:1"):
            verified = await asyncpush.verify_image(registry, name, deep=True)
            assert not verified.problems
    assert count(events, "PatchBlobUpload")
    assert not count(events, "UploadLayerPart")


@pytest.mark.parametrize("other", ["v2", "api"])
@pytest.mark.parametrize("kind", ["file", "held", "remote"])
async def test_several_repositories_are_served_by_one_reading(
    emulator: Emulator, tmp_path: Path, other: TransportChoice, kind: str
) -> None:
    """Whether by the same transport or by two."""
    async with (
        connected(emulator.endpoint_url) as registry,
        connected(emulator.endpoint_url, other) as second,
        remote_blob() as remote,
    ):
        repositories = [registry.repository("team/app"), second.repository("team/b")]
        for repository in repositories:
            await repository.create()
        blob = {"file": file_blob(tmp_path), "held": held_blob(), "remote": remote}[kind]
        outcomes = await send_layer(repositories, blob, registry.context)  # type: ignore[attr-defined]

    assert outcomes == [PushedLayer(DESCRIPTOR, SIZE, "pushed")] * 2
    assert await stored(emulator) == DATA


def cut_after(size: int, *, kept: bool = True) -> Answer:
    """Cut the connection after *size* bytes of the chunk, which the registry has *kept* or dropped."""

    async def cut(request: web.Request, relay: Relay) -> web.StreamResponse:
        head = await request.content.readexactly(size)
        if kept:
            first = int(request.headers["Content-Range"].partition("-")[0])
            await passed_with(head, request, relay, **{"Content-Range": f"{first}-{first + size - 1}"})
        return await lost_request(request, relay)

    return cut


def answered(status: int, code: str = "", **headers: str) -> Answer:
    """Answer with an error of ``/v2/``; without a *code* with a page, as proxies do."""

    async def answer(request: web.Request, _: Relay) -> web.StreamResponse:
        await request.read()
        if not code:
            return web.Response(status=status, text="<html>", content_type="text/html")
        return web.json_response({"errors": [{"code": code, "message": "so"}]}, status=status, headers=headers)

    return answer


#: What happens to the next requests, by their operation.
Faults = dict[str, list[Answer]]

FAULTS: dict[str, Faults] = {
    "POST reset": {"v2:POST-upload": [lost_request]},
    "POST reply lost": {"v2:POST-upload": [lost_reply]},
    "POST 502": {"v2:POST-upload": [answered(502)]},
    "POST 429": {"v2:POST-upload": [answered(429, "TOOMANYREQUESTS")] * 3},
    "POST 401": {"v2:POST-upload": [answered(401, "UNAUTHORIZED")]},
    "PATCH reset": {"v2:PATCH-upload": [lost_request]},
    "PATCH cut, bytes kept": {"v2:PATCH-upload": [cut_after(3 * MiB + 1)]},
    "PATCH cut near its end": {"v2:PATCH-upload": [cut_after(PART - 7)]},
    "PATCH cut, bytes dropped": {"v2:PATCH-upload": [cut_after(3 * MiB, kept=False)]},
    "PATCH cut, no status": {
        "v2:PATCH-upload": [cut_after(3 * MiB + 1)],
        "v2:GET-upload": [answered(405, "UNSUPPORTED")],
    },
    "PATCH reply lost": {"v2:PATCH-upload": [lost_reply]},
    "PATCH reply lost, no status": {
        "v2:PATCH-upload": [lost_reply],
        "v2:GET-upload": [answered(404, "UNSUPPORTED")],
    },
    "PATCH 502": {"v2:PATCH-upload": [answered(502)]},
    "PATCH 401": {"v2:PATCH-upload": [answered(401, "UNAUTHORIZED")]},
    "PATCH 403 expired": {"v2:PATCH-upload": [answered(403, "DENIED, token expired")]},
    "PATCH 416 without a range": {"v2:PATCH-upload": [answered(416, "BLOB_UPLOAD_INVALID")]},
    "PATCH of an upload that vanished": {"v2:PATCH-upload": [answered(404, "BLOB_UPLOAD_UNKNOWN")]},
    "GET of an upload that vanished": {
        "v2:PATCH-upload": [lost_request],
        "v2:GET-upload": [answered(404, "BLOB_UPLOAD_UNKNOWN")],
    },
    "PUT reset": {"v2:PUT-upload": [lost_request]},
    "PUT reply lost": {"v2:PUT-upload": [lost_reply]},
    "PUT 502": {"v2:PUT-upload": [answered(502)]},
    "PUT 500": {"v2:PUT-upload": [answered(500, "UNKNOWN")]},
    "PUT 401": {"v2:PUT-upload": [answered(401, "UNAUTHORIZED")]},
    "PUT of an upload that vanished": {"v2:PUT-upload": [answered(404, "BLOB_UPLOAD_UNKNOWN")]},
    "PUT of damaged bytes": {"v2:PUT-upload": [answered(400, "DIGEST_INVALID")]},
}


@pytest.mark.parametrize(("step", "nth"), [("POST", 1), ("PATCH", 1), ("PATCH", 2), ("GET", 1), ("PUT", 1)])
async def test_a_layer_is_whole_whatever_happens_once(emulator: Emulator, tmp_path: Path, step: str, nth: int) -> None:
    """The fault meets the first request of its kind in an upload, or the second one."""
    faults = {name: fault for name, fault in FAULTS.items() if name.startswith(step)}
    blob = file_blob(tmp_path)
    async with relay_to(emulator.endpoint_url) as relay, connected(relay.url) as registry:
        for number, (name, fault) in enumerate(faults.items()):
            for operation, answers in fault.items():
                is_late = operation == "v2:PATCH-upload" and nth == 2
                relay.plan(operation, *[passed] * is_late, *answers)
            pushed = await push(registry, blob, f"team/app-{number}")
            assert pushed.descriptor == DESCRIPTOR, name
            assert await stored(emulator, repository=f"team/app-{number}") == DATA, name
            assert not any(relay.planned.values()), f"{name} has not happened"


@pytest.mark.parametrize("cuts", [3, 12])
async def test_a_connection_that_breaks_again_and_again_sends_each_byte_once(tmp_path: Path, cuts: int) -> None:
    """The registry keeps what has arrived, however little, and the client goes on from there."""
    async with (
        Emulator(tmp_path / "ecr", fsync=False, quirks=Quirks(oci_conformance="yes")) as emulator,
        relay_to(emulator.endpoint_url) as relay,
        connected(relay.url) as registry,
    ):
        relay.plan("v2:PATCH-upload", *[cut_after(MiB)] * cuts)
        await push(registry, file_blob(tmp_path))

        assert await stored(emulator) == DATA
        assert (await received(emulator))["v2:PATCH-upload"] == {"202": SIZE}


async def test_a_registry_that_never_takes_a_part_is_given_up(emulator: Emulator, tmp_path: Path) -> None:
    refusal = answered(416, "BLOB_UPLOAD_INVALID", Range="0-1048575")
    async with relay_to(emulator.endpoint_url) as relay, connected(relay.url) as registry:
        relay.plan("v2:PATCH-upload", *[refusal] * 50)
        with pytest.raises(ServiceError, match=r"PatchBlobUpload failed: BLOB_UPLOAD_INVALID"):
            await push(registry, file_blob(tmp_path))
    assert await stored(emulator) is None


def path_of(location: str) -> str:
    """The path and query of a Location, which may be absolute (the quirk ``upload-location``)."""
    parts = urlsplit(location)
    return f"{parts.path}?{parts.query}" if parts.query else parts.path


@pytest.mark.parametrize("form", ["relative", "absolute", "with a state", "of the host"])
@pytest.mark.parametrize("status", [201, 202])
async def test_uploads_go_on_where_the_registry_says(
    emulator: Emulator, tmp_path: Path, form: str, status: int
) -> None:
    states: list[str] = []

    async def located(request: web.Request, relay: Relay) -> web.StreamResponse:
        """As a registry that keeps an upload's state in its Location: the newest one counts."""
        if states:
            assert request.query.get("state") == states[-1]
        answer = await passed(request, relay)
        path = path_of(answer.headers["Location"])
        answer.headers["Location"] = {
            "relative": path.rpartition("/")[2] if request.method == "POST" else path,
            "absolute": f"{relay.url}{path}",
            "of the host": f"https://{request.headers['Host']}{path}",
            "with a state": f"{path}{'&' if '?' in path else '?'}state={len(states)}",
        }[form]
        if form == "with a state":
            states.append(str(len(states)))
        if request.method == "PATCH":
            answer.set_status(status)
        return answer

    async with relay_to(emulator.endpoint_url) as relay, connected(relay.url) as registry:
        relay.plan("v2:POST-upload", located)
        relay.plan("v2:PATCH-upload", *[located] * 3)
        await push(registry, file_blob(tmp_path))
    assert await stored(emulator) == DATA


async def test_the_password_does_not_go_to_another_host(emulator: Emulator, tmp_path: Path) -> None:
    async def elsewhere(request: web.Request, relay: Relay) -> web.StreamResponse:
        answer = await passed(request, relay)
        answer.headers["Location"] = f"http://127.0.0.1:9{path_of(answer.headers['Location'])}?signature=secret"
        return answer

    async with relay_to(emulator.endpoint_url) as relay, connected(relay.url) as registry:
        relay.plan("v2:POST-upload", elsewhere)
        with pytest.raises(ServiceError, match=r"the upload goes on at 'http://127\.0\.0\.1:9/v2/[^?]*'"):
            await push(registry, file_blob(tmp_path))


@pytest.mark.parametrize("transport", ["api", "v2"])
@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda data: data[: SIZE // 2] + b"?" + data[SIZE // 2 + 1 :], DigestMismatchError),
        (lambda data: data[:-1], DigestMismatchError),
        (lambda data: data + b"?", DigestMismatchError),
        (lambda _: b"", DigestMismatchError),
    ],
    ids=["damaged", "cut", "longer", "empty"],
)
async def test_a_wrong_source_is_never_completed(
    emulator: Emulator, tmp_path: Path, transport: TransportChoice, change: Callable[[bytes], bytes], error: type
) -> None:
    async with connected(emulator.endpoint_url, transport) as registry:
        with pytest.raises(error, match="layer"):
            await push(registry, file_blob(tmp_path, change(DATA)))
    assert await stored(emulator) is None


@pytest.mark.parametrize("transport", ["api", "v2"])
@pytest.mark.parametrize("is_cut", [True, False], ids=["cut", "damaged"])
async def test_a_source_that_changes_while_it_is_read_is_never_completed(
    emulator: Emulator, tmp_path: Path, transport: TransportChoice, is_cut: bool
) -> None:
    data, path = DATA[: 11 * MiB] * 2, tmp_path / "layer"
    descriptor = replace(DESCRIPTOR, digest=Digest.of(data), size=len(data))
    blob = file_blob(tmp_path, data, descriptor)

    def change() -> None:
        with path.open("r+b") as file:
            if is_cut:
                file.truncate(21 * MiB)
            else:
                file.seek(21 * MiB)
                file.write(bytes(MiB))

    async def changed(request: web.Request, relay: Relay) -> web.StreamResponse:
        """Change the last part once the first one has arrived."""
        answer = await passed(request, relay)
        await to_thread.run_sync(change)
        return answer

    async with relay_to(emulator.endpoint_url) as relay, connected(relay.url, transport) as registry:
        relay.plan("v2:PATCH-upload", changed)
        relay.plan("UploadLayerPart", changed)
        with pytest.raises((DigestMismatchError, SourceError), match="layer"):
            await push(registry, blob)
    assert await stored(emulator, descriptor.digest) is None


@pytest.mark.parametrize("stop_after", [1, 2])
@pytest.mark.parametrize("transport", ["v2", "api"])
async def test_an_upload_outlives_the_process_and_the_choice_of_transport(
    emulator: Emulator, tmp_path: Path, stop_after: int, transport: TransportChoice
) -> None:
    parts = 0
    with anyio.CancelScope() as scope:

        def emit(event: Event) -> None:
            nonlocal parts
            parts += isinstance(event, PartSent) and event.sent > 0
            if parts == stop_after:
                scope.cancel()

        await push_with_journal(emulator, tmp_path, "v2", emit)
    events = Events()
    pushed = await push_with_journal(emulator, tmp_path, transport, events)

    assert pushed.sent <= SIZE - (stop_after - 1) * PART
    assert await stored(emulator) == DATA
    assert (count(events, "PostBlobUpload"), count(events, "InitiateLayerUpload")) == (0, 0)


async def push_with_journal(emulator: Emulator, folder: Path, transport: TransportChoice, emit: Emit) -> PushedLayer:
    settings = Settings(transport=transport, part_size=PART)
    async with (
        open_journal(folder / "journal") as journal,
        asyncpush.connect(aws=aws(emulator.endpoint_url), settings=settings, emit=emit, journal=journal) as registry,
    ):
        await registry.account()
        return await push(registry, file_blob(folder))


async def test_auto_takes_v2_where_it_answers(emulator: Emulator, tmp_path: Path) -> None:
    events = Events()
    async with connected(emulator.endpoint_url, "auto", events) as registry:
        await push(registry, file_blob(tmp_path))
    assert count(events, "PatchBlobUpload") == 3
    assert not events.of(Notice)


@pytest.mark.parametrize("status", [403, 404, 502])
async def test_auto_takes_the_api_where_v2_does_not_answer(emulator: Emulator, tmp_path: Path, status: int) -> None:
    events = Events()
    async with relay_to(emulator.endpoint_url) as relay, connected(relay.url, "auto", events) as registry:
        relay.plan("v2:GET-base", *[answered(status)] * 3)
        await push(registry, file_blob(tmp_path))
        await push(registry, held_blob())
    assert (count(events, "UploadLayerPart"), count(events, "PatchBlobUpload")) == (6, 0)
    [notice] = events.of(Notice)
    assert "layers go through ECR's API: /v2/ can't be used" in notice.text
    assert await stored(emulator) == DATA


async def test_a_host_that_can_not_be_reached_is_named_with_the_way_out(
    emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a VPC that has an endpoint for ecr.api alone."""

    async def nowhere(_: V2Endpoint) -> V2Address:
        return V2Address("http://127.0.0.1:9")

    monkeypatch.setattr(V2Endpoint, "address", nowhere)
    async with connected(emulator.endpoint_url) as registry:
        with pytest.raises(ConnectionFailedError, match=r"PostBlobUpload got no answer from http://127\.0\.0\.1:9"):
            await push(registry, file_blob(tmp_path))
    async with connected(emulator.endpoint_url) as registry:
        with pytest.raises(ConnectionFailedError) as caught:
            await push(registry, file_blob(tmp_path))
    assert "ecr.dkr" in (caught.value.hint or "")
    assert "--transport api" in (caught.value.hint or "")
    async with connected(emulator.endpoint_url, "auto") as registry:
        await push(registry, file_blob(tmp_path))
    assert await stored(emulator) == DATA


async def test_a_missing_repository_is_named(emulator: Emulator, tmp_path: Path) -> None:
    async with connected(emulator.endpoint_url) as registry:
        with pytest.raises(RepositoryNotFoundError, match="PostBlobUpload failed: NAME_UNKNOWN"):
            await push_layer(registry.repository("team/none"), file_blob(tmp_path), registry.context)  # type: ignore[attr-defined]


@pytest.mark.parametrize("error", [errno.EINVAL, errno.EIO])
async def test_a_file_that_can_not_be_sent_at_once_is_read(
    emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    """By a file system without sendfile: reading tells whether the file is at fault, and the connection is not."""

    def refuse(*_: int) -> int:
        raise OSError(error, "no")

    monkeypatch.setattr("os.sendfile", refuse)
    async with connected(emulator.endpoint_url) as registry:
        await push(registry, file_blob(tmp_path))
    assert await stored(emulator) == DATA


@asynccontextmanager
async def serving(folder: Path, monkeypatch: pytest.MonkeyPatch, scheme: str) -> AsyncIterator[Emulator]:
    """An emulator over HTTP, or over TLS with a certificate that clients trust."""
    context = None
    if scheme == "https":
        ca, bundle, context = trustme.CA(), folder / "bundle.pem", ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.cert_pem.write_to_path(bundle)
        ca.issue_cert("127.0.0.1").configure_cert(context)
        monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
    async with Emulator(folder / "ecr", fsync=False, tls=context) as emulator:
        yield emulator


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_disk_that_fails_is_blamed_and_not_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    blob, events, read = file_blob(tmp_path), Events(), os.preadv

    def fail(descriptor: int, buffers: list[memoryview], position: int, *flags: int) -> int:
        if position < SIZE - 1:
            raise OSError(errno.EIO, "Input/output error")
        return read(descriptor, buffers, position, *flags)

    def refuse(*_: int) -> int:
        raise OSError(errno.EIO, "Input/output error")

    async with serving(tmp_path, monkeypatch, scheme) as emulator:
        monkeypatch.setattr("os.sendfile", refuse)
        monkeypatch.setattr("os.preadv", fail)
        async with connected(emulator.endpoint_url, emit=events) as registry:
            with pytest.raises(SourceError, match="layer can't be read: Input/output error"):
                await push(registry, blob)
    assert not events.of(Retrying)


class Renegotiation(ssl.SSLObject):
    """TLS with a peer that negotiates again: of the first long block, the rest can't be encrypted at first."""

    long_writes = 0

    def write(self, data: memoryview) -> int:
        self.long_writes += len(data) > MiB // 8
        if len(data) > MiB // 8 and self.long_writes == 2:
            raise ssl.SSLWantReadError
        return super().write(data)


async def test_over_tls_each_byte_leaves_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssl.SSLContext, "sslobject_class", Renegotiation)
    async with (
        serving(tmp_path, monkeypatch, "https") as emulator,
        connected(emulator.endpoint_url) as registry,
    ):
        for name, blob in (("team/file", file_blob(tmp_path)), ("team/held", held_blob())):
            pushed = await push(registry, blob, name)
            assert (pushed.descriptor, pushed.sent) == (DESCRIPTOR, SIZE)
        files = list((tmp_path / "ecr").rglob(DESCRIPTOR.digest.hex))
        assert {path.read_bytes() == DATA for path in files} == {True}
