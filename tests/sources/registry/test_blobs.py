"""Blobs of a registry, streamed: what breaks on the way is made good from the byte where it broke, or named."""

from __future__ import annotations

import gzip
import random
import zlib
from collections.abc import AsyncIterator

import anyio
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncpush.errors import (
    DigestMismatchError,
    SourceDeniedError,
    SourceError,
    SourceNotFoundError,
    SourceUnavailableError,
)
from asyncpush.events import Retrying
from asyncpush.http.encoding import Decoder
from asyncpush.model import Descriptor, Digest
from asyncpush.protocols import RemoteBlob
from asyncpush.settings import Credentials, RetryPolicy, SourceRegistry
from asyncpush.sources.registry.source_registry import SourceRegistryReader
from support.events import Events
from support.images import LAYER
from support.registry_server import QUICK, RegistryServer, cut, open_remote, ranged, refusal, running

CREDENTIALS = Credentials("user", "secret")
DATA = random.Random(7).randbytes(1_500_000)
DESCRIPTOR = Descriptor(LAYER, Digest.of(DATA), len(DATA))
PATH = f"/v2/team/app/blobs/{DESCRIPTOR.digest}"


@pytest.fixture
async def server() -> AsyncIterator[RegistryServer]:
    async with running(RegistryServer(blobs={str(DESCRIPTOR.digest): DATA})) as server:
        yield server


@pytest.fixture
def events() -> Events:
    return Events()


@pytest.fixture
async def remote(server: RegistryServer, events: Events) -> AsyncIterator[SourceRegistryReader]:
    registry = SourceRegistry(host=server.host, plain_http=True, anonymous=True)
    async with open_remote(registry, emit=events, retry=QUICK) as remote:
        yield remote


async def drain(blob: RemoteBlob, start: int = 0, size: int = 100_001) -> bytes:
    out, buffer = bytearray(), memoryview(bytearray(size))
    async with blob.stream(start) as stream:
        while count := await stream.readinto(buffer):
            out += buffer[:count]
            if count < size:
                assert await stream.readinto(buffer) == 0
    return bytes(out)


def ranges(server: RegistryServer) -> list[str | None]:
    return [seen.headers.get("Range") for seen in server.asked("GET", "/blobs/")]


def the_blob(remote: SourceRegistryReader, descriptor: Descriptor = DESCRIPTOR) -> RemoteBlob:
    return remote.blob("team/app", descriptor)


async def test_a_blob_arrives_whole_and_as_it_is_stored(server: RegistryServer, remote: SourceRegistryReader) -> None:
    blob = the_blob(remote)

    assert isinstance(blob, RemoteBlob)
    assert await drain(blob) == DATA
    assert (blob.source_size, blob.media_type) == (len(DATA), LAYER)
    assert blob.identity == str(DESCRIPTOR.digest)
    [seen] = server.asked("GET", "/blobs/")
    assert seen.headers["Accept-Encoding"] == "identity"
    assert remote.requests == {"GET blob": 1}


@pytest.mark.parametrize("start", [1, 700_000, len(DATA) - 1])
async def test_it_can_begin_at_any_byte(server: RegistryServer, remote: SourceRegistryReader, start: int) -> None:
    assert await drain(the_blob(remote), start) == DATA[start:]
    assert ranges(server) == [f"bytes={start}-"]


async def test_from_its_end_on_nothing_is_asked(server: RegistryServer, remote: SourceRegistryReader) -> None:
    assert await drain(the_blob(remote), len(DATA)) == b""
    assert not server.seen


async def test_a_broken_connection_resumes_from_the_byte_where_it_broke(
    server: RegistryServer, remote: SourceRegistryReader, events: Events
) -> None:
    """A download whose connection breaks resumes from the byte where it broke."""

    @server.rule("GET", "/blobs/", times=1)
    async def first(request: web.Request) -> web.StreamResponse:
        return await cut(request, DATA[:600_000], len(DATA))

    @server.rule("GET", "/blobs/", times=1)
    async def second(request: web.Request) -> web.StreamResponse:
        start = int(request.headers["Range"].removeprefix("bytes=").rstrip("-"))
        return await cut(request, DATA[start : start + 200_000], len(DATA) - start, start=start)

    assert await drain(the_blob(remote)) == DATA
    assert ranges(server) == [None, "bytes=600000-", "bytes=800000-"]
    assert [event.operation for event in events.of(Retrying)] == ["GET blob"] * 2


async def test_a_body_without_a_length_that_ends_early_is_made_good(
    server: RegistryServer, remote: SourceRegistryReader
) -> None:
    @server.rule("GET", "/blobs/", times=1)
    async def short(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(DATA[:900_000])
        await response.write_eof()
        return response

    assert await drain(the_blob(remote)) == DATA
    assert ranges(server) == [None, "bytes=900000-"]


async def test_a_stall_is_a_break(server: RegistryServer) -> None:
    over = anyio.Event()

    @server.rule("GET", "/blobs/", times=1)
    async def stalled(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = len(DATA)
        await response.prepare(request)
        await response.write(DATA[:500_000])
        await over.wait()
        return response

    registry = SourceRegistry(host=server.host, plain_http=True, anonymous=True)
    async with open_remote(registry, retry=RetryPolicy(stall=0.2, first_wait=0.001)) as remote:
        assert await drain(the_blob(remote)) == DATA
    over.set()
    assert ranges(server) == [None, "bytes=500000-"]


async def test_it_is_given_up_after_six_breaks_without_progress(
    server: RegistryServer, remote: SourceRegistryReader, events: Events
) -> None:
    @server.rule("GET", "/blobs/")
    async def nothing(request: web.Request) -> web.StreamResponse:
        return await cut(request, b"", len(DATA))

    with pytest.raises(SourceUnavailableError, match="broke the connection"):
        await drain(the_blob(remote))
    assert remote.requests == {"GET blob": 6}
    assert len(events) == 5


async def test_with_progress_in_between_it_goes_on_and_on(server: RegistryServer, remote: SourceRegistryReader) -> None:
    step = len(DATA) // 10

    @server.rule("GET", "/blobs/")
    async def a_little(request: web.Request) -> web.StreamResponse:
        start = int(request.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        return await cut(request, DATA[start : start + step], len(DATA) - start, start=start)

    assert await drain(the_blob(remote)) == DATA
    assert remote.requests["GET blob"] == 10


async def test_a_registry_that_knows_no_ranges_is_read_from_the_first_byte_again(
    server: RegistryServer, remote: SourceRegistryReader
) -> None:
    @server.rule("GET", "/blobs/", times=1)
    async def broken(request: web.Request) -> web.StreamResponse:
        return await cut(request, DATA[:600_000], len(DATA))

    @server.rule("GET", "/blobs/")
    async def all_of_it(request: web.Request) -> web.StreamResponse:
        return web.Response(body=DATA)

    assert await drain(the_blob(remote)) == DATA
    assert await drain(the_blob(remote), 123) == DATA[123:]


@pytest.mark.parametrize(
    "claim", ["bytes 5-1499999/1500000", "bytes 600001-1499999/1500000", "rubbish", "", "bytes 600000-1500000/1500000"]
)
async def test_a_range_that_was_not_asked_for_is_not_taken(
    server: RegistryServer, remote: SourceRegistryReader, claim: str
) -> None:
    @server.rule("GET", "/blobs/")
    async def wrong(request: web.Request) -> web.StreamResponse | None:
        if "Range" not in request.headers:
            return None
        return web.Response(status=206, body=DATA[600_000:], headers={"Content-Range": claim})

    assert await drain(the_blob(remote), 600_000) == DATA[600_000:]
    assert ranges(server) == ["bytes=600000-", None]


async def test_a_range_that_comes_in_pieces_is_asked_for_piece_by_piece(
    server: RegistryServer, remote: SourceRegistryReader, events: Events
) -> None:
    @server.rule("GET", "/blobs/", times=2)
    async def piece(request: web.Request) -> web.StreamResponse:
        start = int(request.headers["Range"].removeprefix("bytes=").rstrip("-"))
        end = start + 300_000
        return web.Response(
            status=206,
            body=DATA[start:end],
            headers={"Content-Range": f"bytes {start}-{end - 1}/{len(DATA)}"},
        )

    assert await drain(the_blob(remote), 100) == DATA[100:]
    assert ranges(server) == ["bytes=100-", "bytes=300100-", "bytes=600100-"]
    assert not events


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("start", [0, 10])
async def test_more_bytes_than_the_descriptor_says_are_refused(
    server: RegistryServer, remote: SourceRegistryReader, chunked: bool, start: int
) -> None:
    @server.rule("GET", "/blobs/")
    async def longer(request: web.Request) -> web.StreamResponse:
        response = ranged(request, DATA + b"x")
        if chunked:
            response.enable_chunked_encoding()
        return response

    with pytest.raises(DigestMismatchError, match="1500000 bytes expected, 1500001 bytes read"):
        await drain(the_blob(remote), start)


async def test_a_byte_that_comes_after_the_last_one_is_refused(
    server: RegistryServer, remote: SourceRegistryReader
) -> None:
    read = anyio.Event()

    @server.rule("GET", "/blobs/")
    async def one_more(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(DATA)
        await read.wait()
        await response.write(b"x")
        await response.write_eof()
        return response

    async with the_blob(remote).stream() as stream:
        assert await stream.readinto(memoryview(bytearray(len(DATA)))) == len(DATA)
        read.set()
        with pytest.raises(DigestMismatchError, match="1500001 bytes read"):
            await stream.readinto(memoryview(bytearray(10)))


async def test_a_length_that_contradicts_the_descriptor_is_refused_at_once(
    server: RegistryServer, remote: SourceRegistryReader
) -> None:
    server.blobs[str(DESCRIPTOR.digest)] = DATA[:-1]

    with pytest.raises(DigestMismatchError):
        async with the_blob(remote).stream() as stream:
            await stream.readinto(memoryview(bytearray(1)))
    assert remote.requests == {"GET blob": 1}


async def test_a_blob_that_is_missing_is_named(remote: SourceRegistryReader) -> None:
    other = Descriptor(LAYER, Digest("b" * 64), 5)

    with pytest.raises(
        SourceNotFoundError, match=r"layer bbbbbbbbbbbb of 127\.0\.0\.1:.*/team/app.*BLOB_UNKNOWN.*incomplete"
    ):
        await drain(the_blob(remote, other))


async def test_errors_of_the_registry_are_waited_out(
    server: RegistryServer, remote: SourceRegistryReader, events: Events
) -> None:
    @server.rule("GET", "/blobs/", times=5)
    async def down(request: web.Request) -> web.StreamResponse:
        return web.Response(status=503)

    assert await drain(the_blob(remote)) == DATA
    assert [event.attempt for event in events.of(Retrying)] == [1, 2, 3, 4, 5]
    assert all(0 < event.delay <= 0.002 for event in events)


async def test_a_401_in_the_middle_brings_a_new_token(server: RegistryServer) -> None:
    issued = []

    @server.rule("GET", "/token")
    async def token(request: web.Request) -> web.StreamResponse:
        issued.append(f"t{len(issued)}")
        return web.json_response({"token": issued[-1], "expires_in": 3600})

    @server.rule("GET", "/blobs/")
    async def guarded(request: web.Request) -> web.StreamResponse | None:
        if not issued or request.headers.get("Authorization") != f"Bearer {issued[-1]}":
            challenge = f'Bearer realm="{server.url}/token",service="here",scope="repository:team/app:pull"'
            return refusal(401, "UNAUTHORIZED", "who is it?", WWW_Authenticate=challenge)
        if "Range" not in request.headers:
            issued.append("expired")  # what was issued counts no more
            return await cut(request, DATA[:700_000], len(DATA))
        return None

    registry = SourceRegistry(host=server.host, plain_http=True, anonymous=True)
    async with open_remote(registry, retry=QUICK) as remote:
        assert await drain(the_blob(remote)) == DATA
        assert remote.requests["token"] == 2
    assert ranges(server)[-2:] == ["bytes=700000-"] * 2


async def test_a_redirect_to_another_host_carries_no_credentials_there(server: RegistryServer) -> None:
    async with running() as store:

        @store.rule("GET", "/signed")
        async def signed(request: web.Request) -> web.StreamResponse:
            return ranged(request, DATA)

        @server.rule("GET", "/blobs/")
        async def redirected(request: web.Request) -> web.StreamResponse:
            if "Authorization" not in request.headers:
                return refusal(401, "UNAUTHORIZED", "who?", WWW_Authenticate='Basic realm="here"')
            signed = f"{store.url}/signed/a%2Fb?X-Sig=%2B%20%7E&x={DESCRIPTOR.digest}"
            return web.Response(status=307, headers={"Location": signed})

        registry = SourceRegistry(host=server.host, plain_http=True, credentials=CREDENTIALS)
        async with open_remote(registry, retry=QUICK) as remote:
            assert await drain(the_blob(remote), 5) == DATA[5:]

        [there] = store.seen
        assert there.authorization is None
        assert "secret" not in str(there.headers)
        assert there.headers["Range"] == "bytes=5-"
        assert there.target == f"/signed/a%2Fb?X-Sig=%2B%20%7E&x={DESCRIPTOR.digest}"


async def test_a_redirect_within_the_registry_keeps_them(server: RegistryServer) -> None:
    @server.rule("GET", "/moved")
    async def moved(request: web.Request) -> web.StreamResponse:
        return ranged(request, DATA)

    @server.rule("GET", "/blobs/")
    async def redirected(request: web.Request) -> web.StreamResponse:
        if "Authorization" not in request.headers:
            return refusal(401, "UNAUTHORIZED", "who?", WWW_Authenticate='Basic realm="here"')
        raise web.HTTPFound("/moved/there")

    registry = SourceRegistry(host=server.host, plain_http=True, credentials=CREDENTIALS)
    async with open_remote(registry, retry=QUICK) as remote:
        assert await drain(the_blob(remote)) == DATA
    assert [seen.authorization is None for seen in server.asked("GET", "/moved")] == [False]


@pytest.mark.parametrize(
    ("location", "words"),
    [
        (PATH, "in a circle"),
        ("/v2/{count}", "more than 5 times"),
        ("", "redirects without a valid address"),
        ("ftp://127.0.0.1/x", "redirects without a valid address"),
    ],
)
async def test_redirects_have_an_end(
    server: RegistryServer, remote: SourceRegistryReader, location: str, words: str
) -> None:
    @server.rule("GET", "/v2/")
    async def on_and_on(request: web.Request) -> web.StreamResponse:
        return web.Response(status=307, headers={"Location": location.format(count=len(server.seen))})

    with pytest.raises(SourceError, match=words):
        await drain(the_blob(remote))
    assert len(server.seen) <= 6


async def test_the_address_of_a_blob_store_that_has_expired_is_asked_for_anew(
    server: RegistryServer, remote: SourceRegistryReader
) -> None:
    @server.rule("GET", "/blobs/", times=1)
    async def stale(request: web.Request) -> web.StreamResponse:
        raise web.HTTPTemporaryRedirect(f"http://localhost:{server.port}/expired")

    @server.rule("GET", "/expired")
    async def expired(request: web.Request) -> web.StreamResponse:
        return web.Response(status=403, text="Request has expired")

    assert await drain(the_blob(remote)) == DATA


async def test_who_leaves_early_lets_go_of_the_connection_and_the_turn(server: RegistryServer) -> None:
    registry = SourceRegistry(host=server.host, plain_http=True, anonymous=True, connections=1)
    async with open_remote(registry, retry=QUICK) as remote:
        for _ in range(3):
            with anyio.fail_after(5):
                async with the_blob(remote).stream() as stream:
                    assert await stream.readinto(memoryview(bytearray(10))) == 10
        assert await drain(the_blob(remote)) == DATA


async def test_a_connection_serves_one_blob_after_another(server: RegistryServer) -> None:
    peers: list[object] = []

    @server.rule("GET", "/blobs/")
    async def noted(request: web.Request) -> None:
        peers.append(request.transport and request.transport.get_extra_info("peername"))

    registry = SourceRegistry(host=server.host, plain_http=True, anonymous=True, connections=2)
    async with open_remote(registry, retry=QUICK) as remote:
        for _ in range(3):
            assert await drain(the_blob(remote)) == DATA
    assert len(peers) == 3
    assert len(set(peers)) == 1


async def test_who_is_cancelled_lets_go_too(server: RegistryServer) -> None:
    asked, over = anyio.Event(), anyio.Event()

    @server.rule("GET", "/blobs/", times=1)
    async def stalled(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = len(DATA)
        await response.prepare(request)
        await response.write(DATA[:1000])
        asked.set()
        await over.wait()
        return response

    registry = SourceRegistry(host=server.host, plain_http=True, anonymous=True, connections=1)
    async with open_remote(registry, retry=QUICK) as remote:
        async with anyio.create_task_group() as tg:
            tg.start_soon(drain, the_blob(remote))
            await asked.wait()
            tg.cancel_scope.cancel()
        with anyio.fail_after(5):
            assert await drain(the_blob(remote)) == DATA
    over.set()


async def test_no_more_requests_at_once_than_there_are_connections(server: RegistryServer) -> None:
    at_once, most = 0, 0

    @server.rule("GET", "/blobs/")
    async def counted(request: web.Request) -> web.StreamResponse:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        response = web.StreamResponse()
        response.content_length = len(DATA)
        await response.prepare(request)
        await response.write(DATA[:-1])
        await anyio.wait_all_tasks_blocked()
        at_once -= 1
        await response.write(DATA[-1:])
        return response

    registry = SourceRegistry(host=server.host, plain_http=True, anonymous=True, connections=3)
    async with open_remote(registry, retry=QUICK) as remote, anyio.create_task_group() as tg:
        for _ in range(12):
            tg.start_soon(drain, the_blob(remote))
    assert most == 3


async def test_a_refusal_is_final_and_says_what_to_do(server: RegistryServer, remote: SourceRegistryReader) -> None:
    @server.rule("GET", "/blobs/")
    async def denied(request: web.Request) -> web.StreamResponse:
        return refusal(403, "DENIED", "no\nway")

    with pytest.raises(SourceDeniedError, match=r"403\): DENIED no way; log in"):
        await drain(the_blob(remote))
    assert remote.requests == {"GET blob": 1}


# Ranges that are refused, and bodies that come compressed


@pytest.mark.parametrize("status", [400, 403, 404, 405, 416, 500, 501])
async def test_a_range_that_is_refused_costs_no_blob(
    server: RegistryServer, remote: SourceRegistryReader, status: int
) -> None:
    @server.rule("GET", "/blobs/", times=1)
    async def broken(request: web.Request) -> web.StreamResponse:
        return await cut(request, DATA[:600_000], len(DATA))

    @server.rule("GET", "/blobs/")
    async def no_ranges(request: web.Request) -> web.StreamResponse | None:
        return web.Response(status=status) if "Range" in request.headers else None

    assert await drain(the_blob(remote)) == DATA
    assert ranges(server)[-1] is None


GZIPPED = gzip.compress(random.Random(8).randbytes(700_000))
PACKED = Descriptor(LAYER, Digest.of(GZIPPED), len(GZIPPED))
PLAIN = Descriptor("application/vnd.oci.image.layer.v1.tar", Digest.of(DATA), len(DATA))


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("descriptor", "data", "sent", "encoding"),
    [
        pytest.param(PACKED, GZIPPED, GZIPPED, "x-gzip", id="its own label"),
        pytest.param(PACKED, GZIPPED, gzip.compress(GZIPPED), "gzip", id="compressed once more"),
        pytest.param(PLAIN, DATA, gzip.compress(DATA), "gzip", id="a plain layer"),
        pytest.param(PLAIN, DATA, zlib.compress(DATA), "deflate", id="a plain layer, deflated"),
        pytest.param(PLAIN, DATA, DATA, "gzip", id="a label that lies"),
        pytest.param(PLAIN, DATA, gzip.compress(DATA), "identity, gzip", id="a list of labels"),
        pytest.param(PLAIN, DATA, gzip.compress(DATA), "aws-chunked,GZIP", id="another list of labels"),
        pytest.param(PLAIN, DATA, DATA, "UTF-8", id="a label that is none"),
    ],
)
@pytest.mark.parametrize("breaks", [False, True])
async def test_what_comes_compressed_is_the_blob_once_more(
    server: RegistryServer,
    remote: SourceRegistryReader,
    descriptor: Descriptor,
    data: bytes,
    sent: bytes,
    encoding: str,
    chunked: bool,
    breaks: bool,
) -> None:
    @server.rule("GET", "/blobs/", times=int(breaks))
    async def broken(request: web.Request) -> web.StreamResponse:
        return await labelled(request, sent[:300_000], len(sent), encoding)

    @server.rule("GET", "/blobs/")
    async def whole(request: web.Request) -> web.StreamResponse:
        # As a proxy does: ranges are of what it sends.
        response = ranged(request, sent)
        response.headers["Content-Encoding"] = encoding
        if chunked:
            response.enable_chunked_encoding()
        return response

    assert await drain(the_blob(remote, descriptor)) == data
    assert await drain(the_blob(remote, descriptor), 1000) == data[1000:]


BLOCKS = DATA[: 2000 * 512]
SMALL = DATA[:100_000]
JSON = Descriptor("application/vnd.oci.image.config.v1+json", Digest.of(DATA), len(DATA))


@pytest.mark.parametrize("breaks", [False, True])
@pytest.mark.parametrize(
    ("descriptor", "data", "sent", "chunked"),
    [
        pytest.param(JSON, DATA, gzip.compress(DATA), True, id="a config"),
        pytest.param(PLAIN, DATA, gzip.compress(DATA), False, id="a plain layer of another length"),
        pytest.param(
            Descriptor(PLAIN.media_type, Digest.of(BLOCKS), len(BLOCKS)),
            BLOCKS,
            gzip.compress(BLOCKS),
            True,
            id="a plain layer of a tar's blocks",
        ),
        pytest.param(PACKED, GZIPPED, gzip.compress(GZIPPED), False, id="compressed once more"),
        pytest.param(PACKED, GZIPPED, GZIPPED, True, id="its own compression"),
        pytest.param(
            Descriptor(LAYER, Digest.of(SMALL), len(SMALL)), SMALL, gzip.compress(SMALL), True, id="all of it at once"
        ),
        pytest.param(
            Descriptor(PLAIN.media_type, PACKED.digest, PACKED.size), GZIPPED, GZIPPED, True, id="a type that lies"
        ),
    ],
)
async def test_what_comes_compressed_and_does_not_say_so(
    server: RegistryServer,
    remote: SourceRegistryReader,
    descriptor: Descriptor,
    data: bytes,
    sent: bytes,
    chunked: bool,
    breaks: bool,
) -> None:
    @server.rule("GET", "/blobs/", times=int(breaks))
    async def broken(request: web.Request) -> web.StreamResponse:
        return await cut(request, sent[:300_000], len(sent))

    @server.rule("GET", "/blobs/")
    async def whole(request: web.Request) -> web.StreamResponse:
        response = ranged(request, sent)
        if chunked:
            response.enable_chunked_encoding()
        return response

    assert await drain(the_blob(remote, descriptor)) == data
    assert await drain(the_blob(remote, descriptor), 1000) == data[1000:]


async def test_a_compressed_body_is_decompressed_whatever_the_blobs_type_says(
    server: RegistryServer, remote: SourceRegistryReader
) -> None:
    """As a layer that is encrypted, or one that is not a gzip though it is called so."""

    @server.rule("GET", "/blobs/")
    async def packed(request: web.Request) -> web.StreamResponse:
        return web.Response(body=gzip.compress(DATA), headers={"Content-Encoding": "gzip"})

    encrypted = Descriptor("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", DESCRIPTOR.digest, len(DATA))
    for descriptor in (encrypted, DESCRIPTOR):
        assert await drain(the_blob(remote, descriptor)) == DATA


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip"])
async def test_a_compression_that_is_not_known_is_named(
    server: RegistryServer, remote: SourceRegistryReader, encoding: str, chunked: bool
) -> None:
    sent = [DATA[:1000]]

    @server.rule("GET", "/v2/")
    async def packed(request: web.Request) -> web.StreamResponse:
        response = web.Response(body=sent[0], headers={"Content-Encoding": encoding})
        if chunked:
            response.enable_chunked_encoding()
        return response

    words = f"comes compressed with {encoding}, which was not requested"
    with pytest.raises(SourceError, match=words):
        await drain(the_blob(remote))
    with pytest.raises(SourceError, match=words):
        await remote.tags("team/app")
    sent[0] = DATA
    assert await drain(the_blob(remote)) == DATA  # it was its own label


async def test_a_compressed_body_whose_header_comes_first_is_decompressed(
    server: RegistryServer, remote: SourceRegistryReader
) -> None:
    sent = gzip.compress(GZIPPED)

    @server.rule("GET", "/blobs/")
    async def slowly(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Encoding": "gzip"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        for piece in (sent[:1], sent[1:10], sent[10:11], sent[11:]):
            await response.write(piece)
            await anyio.wait_all_tasks_blocked()
        await response.write_eof()
        return response

    assert await drain(the_blob(remote, PACKED)) == GZIPPED


async def test_what_grows_without_end_as_it_is_decompressed_is_refused(
    server: RegistryServer, remote: SourceRegistryReader
) -> None:
    small = Descriptor(PLAIN.media_type, Digest("d" * 64), 1000)

    @server.rule("GET", "/blobs/")
    async def bomb(request: web.Request) -> web.StreamResponse:
        return web.Response(body=gzip.compress(bytes(50_000_000)), headers={"Content-Encoding": "gzip"})

    with pytest.raises(DigestMismatchError, match=r"1000 bytes expected, 26\d{4} bytes read"):
        await drain(the_blob(remote, small))


async def labelled(request: web.Request, data: bytes, announced: int, encoding: str) -> web.StreamResponse:
    """The beginning of a body that is compressed."""
    response = web.StreamResponse(headers={"Content-Encoding": encoding})
    response.content_length = announced
    await response.prepare(request)
    await response.write(data)
    assert request.transport is not None
    request.transport.close()
    return response


@settings(max_examples=25, deadline=None)
@given(data=st.binary(max_size=5000), members=st.integers(1, 3), step=st.integers(1, 700), limit=st.integers(1, 900))
def test_a_decoder_gives_all_bytes_however_they_come(data: bytes, members: int, step: int, limit: int) -> None:
    for encoding, packed in (
        ("gzip", b"".join(gzip.compress(data) for _ in range(members))),
        ("deflate", zlib.compress(data)),
        ("deflate", zlib.compress(data)[2:-4]),
    ):
        decoder, found = Decoder("gzip" if encoding == "gzip" else "deflate"), b""
        for at in range(0, len(packed), step):
            decoder.feed(packed[at : at + step])
            while piece := decoder.read(limit):
                assert len(piece) <= limit
                found += piece
        assert found == data * (members if encoding == "gzip" else 1)
