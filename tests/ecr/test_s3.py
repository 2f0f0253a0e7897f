"""Archives in S3: read from moto, resumed after a break, and every refusal said."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import pytest
from aiohttp import web
from anyio import to_thread

import asyncpush
from asyncpush import AwsConfiguration, Registry, Settings
from asyncpush.ecr.s3 import open_objects
from asyncpush.errors import AsyncpushError, SourceDeniedError, SourceError, SourceNotFoundError
from asyncpush.events import Retrying
from asyncpush.protocols import BlobStream
from asyncpush.reference import S3Location
from support.events import Events
from support.images import A, B, C, DockerSave, app_layout, saved
from support.migrations import keys
from support.registry_server import QUICK
from support.s3 import Bucket
from support.servers import serving_http
from support.stalled_answer import StalledAnswer

SAVED = DockerSave().image(A, B, tags=["team/app:1.0"]).image(C, tags=["team/app:2.0"]).archive()


async def test_an_archive_in_s3_is_pushed_as_the_same_archive_on_disk(
    bucket: Bucket, registry: Registry, tmp_path: Path
) -> None:
    objects = {
        "saved.tar.gz": gzip.compress(SAVED, 1),
        "saved:1.tar": SAVED,
        "oci.tar": app_layout().archive(),
    }
    for key, data in objects.items():
        await to_thread.run_sync(bucket.put, f"images/{key}", data)
        saved(tmp_path / key, data)
    for source in (
        "saved.tar.gz:team/app:2.0",
        "saved.tar.gz:@0",
        "saved:1.tar:team/app:2.0",
        "oci.tar",
        "oci.tar:1.0",
    ):
        in_s3 = await asyncpush.push(registry, f"s3://bucket/images/{source}", "team/app:s3")
        on_disk = await asyncpush.push(registry, f"{tmp_path}/{source}", "team/app:disk")
        assert in_s3.digest == on_disk.digest
    assert str(in_s3.digest) == app_layout().manifests[0]["digest"]
    async with asyncpush.open_source("s3://bucket/images/oci.tar") as source:
        [image] = await source.images()
        assert (image.source, image.repository, image.tag) == ("s3://bucket/images/oci.tar:1.0", "oci", "1.0")

    for source, error in (
        ("bucket/images/none.tar:1.0", "the bucket bucket has no object images/none.tar; "),
        ("elsewhere/app.tar", "there is no bucket elsewhere; "),
    ):
        with pytest.raises(SourceNotFoundError, match=error):
            await asyncpush.push(registry, f"s3://{source}", "team/app:s3")


@dataclass
class FakeS3:
    """Serves one object, each time up to a number of bytes, and then breaks the connection.

    Attributes:
        data: the object.
        broken_after: the bytes that each answer has at most.
        ranges: what was asked for: Range, and If-Match.
        answer: answers instead; None serves the object.
    """

    data: bytes = b""
    etag: str = '"one"'
    broken_after: int = 1 << 30
    ranges: list[tuple[str | None, str | None]] = field(default_factory=list)
    answer: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None

    async def serve(self, request: web.Request) -> web.StreamResponse:
        self.ranges.append((request.headers.get("Range"), request.headers.get("If-Match")))
        if self.answer is not None:
            return await self.answer(request)
        if request.headers.get("If-Match", self.etag) != self.etag:
            return refusal(412, "PreconditionFailed")
        start = request.http_range.start or 0
        rest = self.data[start:]
        response = web.StreamResponse(status=206 if start else 200, headers={"ETag": self.etag})
        if start:
            response.headers["Content-Range"] = f"bytes {start}-{len(self.data) - 1}/{len(self.data)}"
        response.content_length = len(rest)
        await response.prepare(request)
        await response.write(rest[: self.broken_after])
        if len(rest) > self.broken_after and request.transport is not None:
            request.transport.close()
        return response


def refusal(status: int, code: str) -> web.Response:
    text = f"<Error><Code>{code}</Code><Message>No</Message></Error>"
    headers = {"x-amz-bucket-region": "eu-central-1"} if status == 301 else {}
    return web.Response(status=status, content_type="application/xml", text=text, headers=headers)


@pytest.fixture
async def fake(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeS3]:
    """An endpoint of S3 that fails, to which the environment leads."""
    made = FakeS3()
    async with serving_http(made.serve, cancels=True) as port:
        keys(monkeypatch)
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
        yield made


@asynccontextmanager
async def opened(events: Events) -> AsyncIterator[BlobStream]:
    async with (
        open_objects(AwsConfiguration(region="us-east-1"), QUICK, events) as objects,
        objects.open(S3Location("bucket", "app.tar")) as stream,
    ):
        yield stream


async def test_a_broken_download_resumes_if_the_object_is_the_same(fake: FakeS3) -> None:
    fake.data, fake.broken_after, events = bytes(range(256)) * 1000, 100_000, Events()
    buffer = memoryview(bytearray(300_000))
    async with opened(events) as stream:
        assert await stream.readinto(buffer) == len(fake.data)
        assert await stream.readinto(buffer[:1]) == 0
    assert bytes(buffer[: len(fake.data)]) == fake.data
    assert fake.ranges == [(None, None), ("bytes=100000-", '"one"'), ("bytes=200000-", '"one"')]
    assert [event.operation for event in events if isinstance(event, Retrying)] == ["GetObject"] * 2

    async with opened(Events()) as stream:
        await stream.readinto(buffer[:50_000])
        fake.etag = '"two"'
        with pytest.raises(SourceError, match=r"app\.tar was replaced while it was read; run the same command"):
            await stream.readinto(buffer)


@pytest.mark.parametrize(
    ("status", "code", "kind", "words"),
    [
        (403, "AccessDenied", SourceDeniedError, "s3://bucket/app.tar can't be read: .*; allow s3:GetObject on it"),
        (403, "InvalidObjectState", SourceError, "s3://bucket/app.tar is in Glacier; restore it first"),
        (301, "PermanentRedirect", SourceError, "the bucket is in another region: set AWS_ENDPOINT_URL_S3"),
    ],
)
async def test_what_s3_refuses_is_said_with_what_to_do(
    fake: FakeS3, status: int, code: str, kind: type[AsyncpushError], words: str
) -> None:
    async def refuse(request: web.Request) -> web.StreamResponse:
        return refusal(status, code)

    fake.answer = refuse
    with pytest.raises(kind, match=words):
        async with opened(Events()):
            pytest.fail("it opens")


async def test_an_answer_without_an_etag_is_not_s3s(fake: FakeS3) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"a portal's page")

    fake.answer = answer
    with pytest.raises(SourceError, match=r"^s3://bucket/app\.tar can't be read: the answer has no ETag"):
        async with opened(Events()):
            pytest.fail("it opens")


async def test_a_bucket_in_another_region_is_asked_there(fake: FakeS3) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        if "/us-east-1/s3/" in request.headers["Authorization"]:
            return refusal(301, "PermanentRedirect")
        return web.Response(body=b"there", headers={"ETag": '"one"'})

    fake.answer = answer
    buffer = memoryview(bytearray(10))
    async with opened(Events()) as stream:
        assert await stream.readinto(buffer) == 5


async def test_a_cancelled_copy_from_s3_ends_while_s3_is_silent(fake: FakeS3) -> None:
    stalled = StalledAnswer(SAVED[:1024], ETag='"one"', Content_Length="1000000")
    fake.answer = stalled

    async def read() -> None:
        async with asyncpush.open_source("s3://bucket/app.tar", Settings()):
            pytest.fail("it opens")

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await stalled.begun.wait()
            tasks.cancel_scope.cancel()
        await stalled.gone.wait()
