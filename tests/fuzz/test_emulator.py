"""What comes over the wire to the emulator: signed requests with something in them changed, and anything at ``/v2/``.

Each is answered in the words of its protocol, by a status below 500, and nothing of it is an error in the log.
"""

from __future__ import annotations

import json
import re
import socket
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import strategies as st

from asyncpush.emulator.threaded import ThreadedEmulator
from support.aws import judge_in, token
from support.emulator_client import OCI_INDEX, OCI_MANIFEST, digest_of, image_manifest, index_manifest
from support.fuzzing import TIME, search

pytestmark = TIME

CONFIG, LAYER = b"{}", b"layer"
MANIFEST = image_manifest(CONFIG, LAYER)
NAME = "team/app"
LONGEST_WAIT = 30


@dataclass
class Reply:
    """An HTTP answer, taken apart here."""

    status: int
    headers: dict[str, str]
    body: bytes


def exchange(emulator: ThreadedEmulator, request: bytes, *, leave: bool = False) -> Reply | None:
    """Send bytes, and read what comes until the connection ends; None if nobody answers one who sends no more."""
    url = urlsplit(emulator.endpoint_url)
    with socket.create_connection((url.hostname, url.port), LONGEST_WAIT) as client:
        try:
            client.sendall(request)
            if leave:
                client.shutdown(socket.SHUT_WR)
            data = b"".join(iter(lambda: client.recv(65536), b""))
        except (ConnectionError, BrokenPipeError):
            return None  # refused by its head, while the rest was on its way
    if not data:
        return None
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    match = re.fullmatch(r"HTTP/1\.[01] ([1-5][0-9]{2}) .*", first)
    assert match, first
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    assert len(headers) >= len(lines) - 1
    return Reply(int(match[1]), headers, body)


def is_quiet(caplog: pytest.LogCaptureFixture) -> bool:
    """Whether nothing has been logged since it was asked last."""
    told = [record for record in caplog.records if record.levelname in ("WARNING", "ERROR", "CRITICAL")]
    caplog.clear()
    return not told


@pytest.fixture(scope="module")
def authorization(ecr_emulator: ThreadedEmulator) -> bytes:
    """What opens ``/v2/``, where one image is."""
    ecr = judge_in(ecr_emulator.endpoint_url, "us-east-1")
    ecr.create_repository(repositoryName=NAME)
    for blob in (CONFIG, LAYER):
        upload = ecr.initiate_layer_upload(repositoryName=NAME)["uploadId"]
        where = {"repositoryName": NAME, "uploadId": upload}
        ecr.upload_layer_part(**where, partFirstByte=0, partLastByte=len(blob) - 1, layerPartBlob=blob)
        ecr.complete_layer_upload(**where, layerDigests=[digest_of(blob)])
    ecr.put_image(repositoryName=NAME, imageManifest=MANIFEST.decode(), imageTag="v1")
    return b"Basic " + token(ecr_emulator.endpoint_url).encode()


# Signed requests

BODY = b'{"repositoryNames": ["team/app"]}'
TARGET = "AmazonEC2ContainerRegistry_V20150921.DescribeRepositories"


def signed(url: str) -> list[tuple[bytes, bytes]]:
    """The headers of a request as botocore signs it."""
    made = AWSRequest(
        "POST",
        f"{url}/",
        headers={"X-Amz-Target": TARGET, "Content-Type": "application/x-amz-json-1.1"},
        data=BODY,
    )
    SigV4Auth(Credentials("test", "test"), "ecr", "us-east-1").add_auth(made)
    sent = [(name.encode(), value.encode()) for name, value in made.headers.items()]
    return [(b"Host", urlsplit(url).netloc.encode()), *sent]


no_breaks = st.binary(max_size=40).map(lambda data: data.replace(b"\r", b"").replace(b"\n", b""))
WORDS = [
    b"AWS4-HMAC-SHA256", b"Credential=", b"SignedHeaders=", b"Signature=", b", ", b",", b"=", b"/", b";", b"host",
    b"test", b"us-east-1", b"ecr", b"aws4_request", b"x-amz-date", b"\xb5", b"\xff", b"0" * 64, b"", b" ",
    b"20260101T000000Z", b"Thu, 01 Jan 1970 00:00:00 GMT", b"Mon, 01 Jan 0001 00:00:00 +2359",
    b"Fri, 31 Dec 9999 23:59:59 -2359", b"a" * 3000,
]  # fmt: skip
rubbish = no_breaks | st.lists(st.sampled_from(WORDS), max_size=9).map(b"".join)
HEADERS = [b"authorization", b"x-amz-date", b"x-amz-security-token", b"x-amz-target", b"content-type", b"host", b"date"]
header_changes = st.lists(st.tuples(st.sampled_from(HEADERS), st.none() | rubbish, st.booleans()), max_size=2)
splices = st.none() | st.tuples(st.integers(0, 230), st.integers(0, 3), st.sampled_from(WORDS) | st.binary(max_size=3))
targets = st.sampled_from(
    [b"/", b"/", b"/", b"/?a=%ff", b"/?a=\xff", b"/?%", b"/?a=b&a&=&&", b"//", b"/.", b"/%2f", b"/?\xc3"]
)


def changed(
    headers: list[tuple[bytes, bytes]],
    changes: list[tuple[bytes, bytes | None, bool]],
    splice: tuple[int, int, bytes] | None,
) -> list[tuple[bytes, bytes]]:
    """The headers with some replaced, repeated or left out, and with a few bytes of the Authorization changed."""
    for name, value, repeated in changes:
        if not repeated:
            headers = [pair for pair in headers if pair[0].lower() != name]
        if value is not None:
            headers = [*headers, (name, value)]
    if splice:
        at, length, some = splice
        some = some.replace(b"\r", b"").replace(b"\n", b"")
        headers = [
            (name, value[:at] + some + value[at + length :] if name == b"Authorization" else value)
            for name, value in headers
        ]
    return headers


def test_a_changed_request_is_refused_in_the_words_of_aws(
    ecr_emulator: ThreadedEmulator, authorization: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    def law(target: bytes, changes: list[Any], splice: Any, body: bytes) -> None:
        original = signed(ecr_emulator.endpoint_url)
        headers = changed(original, changes, splice)
        sent = [*headers, (b"Content-Length", b"%d" % len(body)), (b"Connection", b"close")]
        head = b"\r\n".join([b"POST " + target + b" HTTP/1.1", *(name + b": " + value for name, value in sent)])
        reply = exchange(ecr_emulator, head + b"\r\n\r\n" + body)
        assert reply is not None
        assert reply.status < 500
        assert is_quiet(caplog)
        if reply.headers["content-type"] == "application/x-amz-json-1.1":
            document = json.loads(reply.body)
            if reply.status == 200:
                assert [each["repositoryName"] for each in document["repositories"]] == [NAME]
                assert body == BODY
            else:
                assert re.fullmatch("[A-Z][A-Za-z]+", document["__type"])
                assert document["__type"] != "InternalFailure"
        else:
            assert reply.status in (400, 404, 405)  # no HTTP, or not where the API is
        if (target, headers, body) == (b"/", original, BODY):
            assert reply.status == 200

    bodies = st.sampled_from([BODY, BODY, BODY, b"", b"{", BODY + b" "])
    search(law, targets, header_changes, splices, bodies, examples=50)


# /v2/

PIECES = [
    NAME, "team", "none", "/", "//", "manifests/", "blobs/", "blobs/uploads/", "tags/list", "referrers/", "_catalog",
    "v1", "v2", digest_of(MANIFEST), digest_of(CONFIG), digest_of(LAYER), digest_of(b"never"), "sha256:",
    "sha512:" + "0" * 128, "..", ".", "%2e%2e", "%2f", "%00", "%ff", "\u20ac", "\udcff", "a" * 300, "{upload}",
    "latest", ":", "@", " ",
]  # fmt: skip
usual = st.sampled_from(
    [
        f"{NAME}/manifests/v1", f"{NAME}/manifests/{digest_of(MANIFEST)}", f"{NAME}/blobs/{digest_of(LAYER)}",
        f"{NAME}/blobs/uploads/", f"{NAME}/blobs/uploads/{{upload}}", f"{NAME}/blobs/uploads/{{upload}}",
        f"{NAME}/tags/list", f"{NAME}/referrers/{digest_of(MANIFEST)}", "_catalog", "", f"{NAME}/manifests/new",
        "team/other/blobs/uploads/",
    ]
)  # fmt: skip
paths = usual | usual | st.lists(st.sampled_from(PIECES), max_size=6).map("".join)
QUERY = [
    "digest=", "mount=", "from=", "n=", "last=", "artifactType=", "&", "?", "0", "1", "-1", "9" * 30, "v1", "%", "%ff",
    "\udcff", "%00", digest_of(LAYER), digest_of(b"never"), digest_of(b"abc"), NAME, "sha256:", "none/none",
]  # fmt: skip
queries = st.just("") | st.lists(st.sampled_from(QUERY), max_size=5).map("".join)
methods = st.sampled_from(
    ["GET", "GET", "HEAD", "PUT", "PUT", "POST", "POST", "PATCH", "PATCH", "DELETE", "OPTIONS", "BREW"]
)
RANGES = [
    "0-2",
    "3-5",
    "bytes 0-2/3",
    "bytes=0-",
    "bytes=1-1",
    "bytes=-1",
    "bytes=9-",
    "5-1",
    "0-" + "9" * 18,
    "x",
    "0-\u0663",
]
HEADS = ["Content-Range", "Range", "Content-Type", "Accept", "If-Range", "If-None-Match", "Content-Encoding", "Host"]
HEAD_VALUES = [
    *RANGES, *RANGES, OCI_MANIFEST, OCI_INDEX, "*/*", "gzip", "", "\u00ff", "evil\u00e9", "a" * 3000, "[::1",
    "000000000000.dkr.ecr.us-east-1.amazonaws.com", "x.dkr.ecr..amazonaws.com", "public.ecr.aws",
]  # fmt: skip
extras = st.dictionaries(st.sampled_from(HEADS), st.sampled_from(HEAD_VALUES), max_size=3)
CONTENTS = [
    b"", b"abc", b"abc", LAYER, MANIFEST, MANIFEST, index_manifest(MANIFEST), b"{", b"[]", b"null", b"\xff",
    b"[" * 9000, MANIFEST.replace(b"layers", b"layerz"), image_manifest(b"never", b"never"), b"x" * 70_000,
]  # fmt: skip
contents = st.sampled_from(CONTENTS)
#: How the length of a body is told: as it is, in chunks, wrongly, or not at all.
lengths = st.sampled_from(["right"] * 6 + ["chunked", "chunked", "cut", "broken chunks", "none"])
requests = st.lists(st.tuples(methods, paths, queries, extras, contents, lengths), min_size=1, max_size=5)


def framed(content: bytes, length: str) -> tuple[bytes, bytes]:
    match length:
        case "right":
            return b"Content-Length: %d\r\n" % len(content), content
        case "cut":
            return b"Content-Length: %d\r\n" % (len(content) + 5), content
        case "chunked":
            return b"Transfer-Encoding: chunked\r\n", (
                b"%x\r\n%s\r\n" % (len(content), content) if content else b""
            ) + b"0\r\n\r\n"
        case "broken chunks":
            return b"Transfer-Encoding: chunked\r\n", b"%x\r\n%s\r\nzz\r\n" % (len(content) + 1, content)
        case _:
            return b"", content


def test_any_request_to_v2_is_answered_as_the_specification_has_it(
    ecr_emulator: ThreadedEmulator, authorization: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    host = urlsplit(ecr_emulator.endpoint_url).netloc

    def law(said: list[Any], lets_in: bool) -> None:
        upload = "0" * 36
        for method, path, query, extra, content, length in said:
            target = f"/v2/{path.replace('{upload}', upload)}{'?' * bool(query)}{query}".replace(" ", "%20")
            named = {"Host": host, **extra, "Connection": "close"}
            lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
            told, body = framed(content, length)
            way = authorization if lets_in else b"Basic eA=="
            head = f"{method} {target} HTTP/1.1\r\n{lines}".encode("utf-8", "surrogateescape")
            is_whole = length not in ("cut", "broken chunks")
            sent = head + b"Authorization: " + way + b"\r\n" + told + b"\r\n" + body
            reply = exchange(ecr_emulator, sent, leave=not is_whole)
            assert is_quiet(caplog)
            if reply is None:
                assert not is_whole
                continue
            assert reply.status < 500
            is_answered = reply.headers.get("docker-distribution-api-version") == "registry/2.0"
            if not lets_in:
                assert reply.status in (400, 401, 403, 404)
            has_document = method != "HEAD" and reply.status != 416  # a range of a blob says all in its headers
            if reply.status >= 400 and is_answered and has_document:
                [error] = json.loads(reply.body)["errors"]
                assert re.fullmatch("[A-Z_]+", error["code"])
                assert isinstance(error["message"], str)
            if reply.status == 202 and "docker-upload-uuid" in reply.headers:
                upload = reply.headers["docker-upload-uuid"]

    search(law, requests, st.sampled_from([True] * 5 + [False]), examples=40)
    answer = exchange(
        ecr_emulator,
        b"GET /v2/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: " + authorization + b"\r\n\r\n",
    )
    assert answer is not None
    assert answer.status == 200
