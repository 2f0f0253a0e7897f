"""The request of UploadLayerPart as it goes over the wire: its body against botocore's, its signature by hand."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import random
import weakref
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace

import botocore.session
import pytest
from anyio import CapacityLimiter, to_thread
from botocore.serialize import JSONSerializer
from hypothesis import example, given
from hypothesis import strategies as st

import asyncpush
from asyncpush import AwsConfiguration, Settings
from asyncpush.ecr.part_body import JsonPartEncoder, OutgoingPart, PartBody
from asyncpush.ecr.repository import EcrRepository
from asyncpush.engine.parts import PartCutter
from asyncpush.errors import ConnectionFailedError, SourceError
from asyncpush.model import Descriptor, Upload
from asyncpush.protocols import Part
from asyncpush.reference import RegistryName
from asyncpush.settings import MAX_PART_SIZE, MiB
from support.aws import REGION
from support.servers import serving_streams

KEY_ID, SECRET, TOKEN = "AKIDEXAMPLE", "wJalr/XUtnFEMI+K7MDENG", "session+token/with=signs"
REGISTRIES = {
    "ecr": RegistryName("ecr", "123456789012", REGION),
    "ecr-public": RegistryName("ecr-public", "team-alias", "us-east-1", host="public.ecr.aws"),
}
TARGETS = {
    "ecr": "AmazonEC2ContainerRegistry_V20150921.UploadLayerPart",
    "ecr-public": "SpencerFrontendService.UploadLayerPart",
}

MODELS = {service: botocore.session.Session().get_service_model(service) for service in TARGETS}

WORDS = st.text("ab09", min_size=1, max_size=12)
NAMES = st.lists(WORDS | st.sampled_from([".", "_", "__", "-", "---", "/"]).map("a{}0".format), min_size=2).map("".join)
ODD_IDS = st.text(min_size=1, max_size=60) | st.sampled_from(['"', "\\", '\\"}', "\u2028é", "📦", "\x00\n", "\ud800"])


@st.composite
def blocks(draw: st.DrawFn) -> list[bytes]:
    """Any bytes, cut at any places that leave all but the last block with a length that 3 divides."""
    size = draw(st.one_of(st.integers(0, 12), st.integers(0, MiB)))
    data = random.Random(draw(st.integers(0, 2**32))).randbytes(size)
    cuts = sorted(3 * cut for cut in draw(st.lists(st.integers(0, size // 3), max_size=6)))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, size], strict=True)]


@given(
    service=st.sampled_from(list(TARGETS)),
    registry_id=st.none() | st.from_regex("[0-9]{12}", fullmatch=True) | st.just("team-alias"),
    repository=NAMES,
    upload_id=ODD_IDS,
    first=st.integers(0, 2**63 - 1 - MiB),
    pieces=blocks(),
)
@example("ecr", None, "team/app", '"\\', 0, [b""])
@example("ecr", None, "team/app", "id", 10 * MiB, [b"\xff" * 3, b"\x00"])
def test_a_part_says_what_botocore_would_say(
    service: str, registry_id: str | None, repository: str, upload_id: str, first: int, pieces: list[bytes]
) -> None:
    data = b"".join(pieces)
    upload = Upload(upload_id, 10 * MiB, 4200)
    held, again = (
        encoded(JsonPartEncoder(registry_id, repository, upload, first, content), pieces)
        for content in (None, Remembered(data, first))
    )
    body = b"".join(held.body)

    members = {"registryId": registry_id} if registry_id else {}
    members |= {"repositoryName": repository, "uploadId": upload_id, "partFirstByte": first}
    members |= {"partLastByte": first + len(data) - 1, "layerPartBlob": data}
    model = MODELS[service].operation_model("UploadLayerPart")
    expected = JSONSerializer().serialize_to_request(members, model)

    said = json.loads(body)
    assert said == json.loads(expected["body"])
    assert base64.b64decode(said["layerPartBlob"], validate=True) == data
    for part in (held, again):
        assert (part.first, part.last, part.size) == (first, first + len(data) - 1, len(data))
        assert part.body_size == len(body)
        assert part.body_sha256 == hashlib.sha256(body).hexdigest()
        assert PartBody(OutgoingPart(part), CapacityLimiter(1)).decode().encode() == body
    assert sum(map(len, again.body)) < 2000, "what can be read again is not held"


def encoded(encoder: JsonPartEncoder, pieces: list[bytes]) -> Part:
    for piece in pieces:
        encoder.add(memoryview(piece))
    return encoder.finish()


@dataclass
class Remembered:
    """Bytes that can be read again, as those of a file can."""

    data: bytes
    first: int = 0
    consumed: int = 0

    def readinto(self, buffer: memoryview) -> int:
        raise AssertionError("only read again")

    def read_at(self, start: int, buffer: memoryview) -> memoryview:
        return memoryview(self.data)[start - self.first :][: len(buffer)]


@dataclass(frozen=True)
class Captured:
    """A request as its bytes came in."""

    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def authorization(self) -> dict[str, str]:
        """The parts of the Authorization header: Credential, SignedHeaders, Signature."""
        algorithm, _, rest = self.headers["authorization"].partition(" ")
        assert algorithm == "AWS4-HMAC-SHA256"
        return dict(word.split("=", 1) for word in rest.split(", "))


@dataclass
class CapturingServer:
    """Keeps each request, byte for byte, and answers all of them the same, or as UploadLayerPart."""

    url: str = ""
    status: str = "200 OK"
    answer: bytes = b""
    more_headers: str = ""
    requests: list[Captured] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                line, *fields = head.decode("ascii").splitlines()[:-1]
                pairs = [each.split(":", 1) for each in fields]
                headers = {name.lower(): value.strip() for name, value in pairs}
                assert len(headers) == len(pairs), "a header came twice"
                body = await reader.readexactly(int(headers["content-length"]))
                self.requests.append(Captured(line, headers, body))
                answer = self.answer or b'{"lastByteReceived": %d}' % json.loads(body)["partLastByte"]
                writer.write(
                    f"HTTP/1.1 {self.status}\r\nContent-Type: application/x-amz-json-1.1\r\n"
                    f"Content-Length: {len(answer)}\r\n{self.more_headers}\r\n".encode()
                    + answer
                )
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def capturing(**answer: object) -> AsyncIterator[CapturingServer]:
    captured = CapturingServer(**answer)
    async with serving_streams(captured.serve, limit=256 * 1024) as port:
        captured.url = f"http://127.0.0.1:{port}"
        yield captured


@asynccontextmanager
async def repository(service: str, url: str) -> AsyncIterator[EcrRepository]:
    registry = REGISTRIES[service]
    aws, settings = AwsConfiguration(region=registry.region, endpoint_url=url), Settings(max_attempts=1)
    async with asyncpush.connect(registry, aws=aws, settings=settings) as connected:
        opened = connected.repository("team/app")
        assert isinstance(opened, EcrRepository)
        yield opened


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials where every AWS tool looks for them."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


def signature(request: Captured, secret: str) -> str:
    """The signature that *request* must have, by AWS's description of SigV4, over the body that arrived."""
    method, target, _ = request.line.split(" ")
    path, _, query = target.partition("?")
    claimed = request.authorization
    _, day, region, service, terminator = claimed["Credential"].split("/")
    signed = claimed["SignedHeaders"].split(";")
    canonical = [method, path, query, *(f"{name}:{' '.join(request.headers[name].split())}" for name in signed)]
    canonical += ["", claimed["SignedHeaders"], hashlib.sha256(request.body).hexdigest()]
    hashed = hashlib.sha256("\n".join(canonical).encode()).hexdigest()
    scope = f"{day}/{region}/{service}/{terminator}"
    to_sign = f"AWS4-HMAC-SHA256\n{request.headers['x-amz-date']}\n{scope}\n{hashed}"
    key = f"AWS4{secret}".encode()
    for word in (day, region, service, terminator, to_sign):
        key = hmac.digest(key, word.encode(), "sha256")
    return key.hex()


def upload_part(encoder: JsonPartEncoder, data: bytes) -> Part:
    encoder.add(memoryview(data))
    return encoder.finish()


UPLOAD = Upload('3b"\\é📦', 10 * MiB, 4200)


@pytest.mark.parametrize(("service", "token"), [("ecr", None), ("ecr", TOKEN), ("ecr-public", TOKEN)])
async def test_a_part_is_signed_as_aws_describes_and_as_boto3_does(
    service: str, token: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if token:
        monkeypatch.setenv("AWS_SESSION_TOKEN", token)
    monkeypatch.setenv("AWS_SDK_UA_APP_ID", "nightly-mirror")
    data = random.Random(7).randbytes(2 * MiB + 1)
    async with capturing() as server:
        async with repository(service, server.url) as ours:
            await ours.send_part(UPLOAD, upload_part(ours.encoder(UPLOAD, 5), data))
        [sent] = server.requests
        await to_thread.run_sync(send_by_boto3, server.url, service, token, data)
        stock = server.requests[1]

    assert sent.line == "POST / HTTP/1.1"
    assert sent.headers["x-amz-target"] == TARGETS[service]
    assert sent.headers["content-type"] == "application/x-amz-json-1.1"
    assert sent.headers["content-length"] == str(len(sent.body))
    assert "transfer-encoding" not in sent.headers
    assert sent.headers["user-agent"].startswith("asyncpush/")
    assert "app/nightly-mirror" in sent.headers["user-agent"]
    assert "app/nightly-mirror" in stock.headers["user-agent"]
    assert sent.headers.get("x-amz-security-token") == token
    scope = sent.authorization["Credential"].split("/")
    assert [scope[0], *scope[2:]] == [KEY_ID, REGISTRIES[service].region, service, "aws4_request"]
    assert sent.authorization["Signature"] == signature(sent, SECRET)
    assert json.loads(sent.body) == json.loads(stock.body)

    for name in ("content-type", "x-amz-target", "x-amz-security-token"):
        assert sent.headers.get(name) == stock.headers.get(name)
    assert sent.authorization["SignedHeaders"] == stock.authorization["SignedHeaders"]
    assert stock.authorization["Signature"] == signature(stock, SECRET), "the judge itself is wrong"


def send_by_boto3(url: str, service: str, token: str | None, data: bytes) -> None:
    registry = REGISTRIES[service]
    stock = botocore.session.Session().create_client(
        service,
        region_name=registry.region,
        endpoint_url=url,
        aws_access_key_id=KEY_ID,
        aws_secret_access_key=SECRET,
        aws_session_token=token,
    )
    stock.upload_layer_part(
        registryId=registry.id,
        repositoryName="team/app",
        uploadId=UPLOAD.id,
        partFirstByte=5,
        partLastByte=4 + len(data),
        layerPartBlob=data,
    )
    stock.close()


async def test_a_body_that_was_tampered_with_does_not_bear_its_signature() -> None:
    async with capturing() as server, repository("ecr", server.url) as ours:
        await ours.send_part(UPLOAD, upload_part(ours.encoder(UPLOAD, 0), bytes(MiB)))
    [sent] = server.requests
    assert sent.authorization["Signature"] == signature(sent, SECRET)
    assert sent.authorization["Signature"] != signature(sent, SECRET[:-1])
    for place in (0, MiB, -1):
        body = bytearray(sent.body)
        body[place] ^= 1
        assert sent.authorization["Signature"] != signature(replace(sent, body=bytes(body)), SECRET)


async def test_the_other_operations_are_signed_too() -> None:
    async with capturing(answer=b'{"layers": [], "failures": []}') as server, repository("ecr", server.url) as ours:
        assert await ours.available([asyncpush.Digest.of(b"layer")]) == frozenset()
    [sent] = server.requests
    assert sent.authorization["Signature"] == signature(sent, SECRET)


async def test_a_redirect_to_another_host_gets_no_credentials_and_no_layers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A redirect to another host takes neither credentials nor layers along."""
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    async with capturing() as other:
        elsewhere = f"Location: {other.url.replace('127.0.0.1', 'localhost')}/\r\n"
        async with (
            capturing(status="307 Temporary Redirect", more_headers=elsewhere) as server,
            repository("ecr", server.url) as ours,
        ):
            with pytest.raises(asyncpush.RegistryError):
                await ours.send_part(UPLOAD, upload_part(ours.encoder(UPLOAD, 0), b"secret layer"))
        assert len(server.requests) == 1
    assert other.requests == []


class Zeros:
    """A blob of zeros (``Blob`` and ``BlobReader``)."""

    name, media_type, identity = "zeros", "application/octet-stream", "zeros"
    descriptor: Descriptor | None = None

    def __init__(self, size: int) -> None:
        self.source_size = size
        self.consumed = 0

    def open(self) -> AbstractContextManager[Zeros]:
        return nullcontext(self)

    def readinto(self, buffer: memoryview) -> int:
        count = min(len(buffer), self.source_size - self.consumed)
        self.consumed += count
        return count


class CountingWriter:
    """Takes writes one at a time, each only once the last was awaited to its end."""

    def __init__(self) -> None:
        self.blocks: list[bytes] = []
        self.busy = False

    async def write(self, block: bytes) -> None:
        assert not self.busy
        self.busy = True
        await asyncio.sleep(0)
        self.blocks.append(block)
        self.busy = False


@pytest.mark.parametrize("how", ["write", "write_with_length"])
@pytest.mark.parametrize("hold", [True, False])
async def test_the_largest_part_goes_out_in_blocks_one_by_one_as_often_as_asked(how: str, hold: bool) -> None:
    blob = Zeros(MAX_PART_SIZE)
    cutter = PartCutter(
        blob, blob, MAX_PART_SIZE, lambda first, again: JsonPartEncoder(None, "team/app", UPLOAD, first, again)
    )
    zeros = Remembered(bytes(MAX_PART_SIZE))
    part = await to_thread.run_sync(lambda: cutter.next_part(content=None if hold else zeros))
    assert part is not None
    body = PartBody(OutgoingPart(part), CapacityLimiter(1))
    for _ in range(2):
        writer = CountingWriter()
        await (body.write(writer) if how == "write" else body.write_with_length(writer, body.size))
        assert hashlib.sha256(b"".join(writer.blocks)).hexdigest() == part.body_sha256
        assert max(map(len, writer.blocks)) <= MiB
        assert len(writer.blocks) > MAX_PART_SIZE // MiB
        if hold:
            views = [memoryview(block) for block in writer.blocks]
            assert [id(view.obj) for view in views] == [id(block) for block in part.body], "nothing is copied"
    assert body.size == len(body) == part.body_size > MAX_PART_SIZE * 4 // 3


async def test_a_request_that_gets_no_answer_names_the_endpoint() -> None:
    async with capturing() as server:
        url = server.url
    async with repository("ecr", url) as ours:
        with pytest.raises(ConnectionFailedError, match=url):
            await ours.send_part(UPLOAD, upload_part(ours.encoder(UPLOAD, 0), b"layer"))


async def test_a_source_that_is_cut_while_its_part_leaves_is_what_failed() -> None:
    class Cut:
        def read_at(self, start: int, buffer: memoryview) -> memoryview:
            raise SourceError("base.tar ends 7 bytes early")

    async with capturing() as server, repository("ecr", server.url) as ours:
        part = upload_part(ours.encoder(UPLOAD, 0, Cut()), b"layer")
        with pytest.raises(SourceError, match=r"base\.tar ends 7 bytes early"):
            await ours.send_part(UPLOAD, part)


async def test_a_part_is_held_by_its_sender_alone() -> None:
    made: list[weakref.ref[JsonPartEncoder]] = []

    def encoder(first: int, again: object) -> JsonPartEncoder:
        made.append(weakref.ref(each := JsonPartEncoder(None, "team/app", UPLOAD, first, None)))
        return each

    blob = Zeros(3 * MiB)
    cutter = PartCutter(blob, blob, MiB, encoder)
    while await to_thread.run_sync(lambda: cutter.next_part(content=None)) is not None:
        assert [each for each in made if each() is not None] == []
