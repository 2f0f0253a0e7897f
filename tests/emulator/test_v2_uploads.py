"""Uploads below ``/v2/`` as ECR and what lies before it have them: open questions, faults, and bodies of any pace."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest
import trustme

from asyncpush.emulator import Emulator, FaultConfig, Quirks
from asyncpush.emulator.faults import parse_fault
from support.emulator_client import Ecr, digest_of
from support.v2_door import NAME, Door

MiB = 1024 * 1024
LAYER = bytes(range(251)) * 30_000
DIGEST = digest_of(LAYER)

Opened = tuple[Emulator, Door]


@asynccontextmanager
async def open_door(data: Path, authority: trustme.CA | None = None, **quirks: Any) -> AsyncIterator[Opened]:
    """An emulator that asks nobody who he is, and its ``/v2/``; over TLS if there is an authority."""
    served = trusting = None
    trusted = data / "ca.pem"
    if authority:
        served = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("127.0.0.1").configure_cert(served)
        authority.cert_pem.write_to_path(str(trusted))
        trusting = ssl.create_default_context(cafile=str(trusted))
    chosen = Quirks(**quirks)
    async with Emulator(data / "ecr", fsync=False, verify_signatures=False, quirks=chosen, tls=served) as emulator:
        ecr = Ecr(emulator.endpoint_url, verify=str(trusted) if authority else None)
        await ecr.call("create_repository", repositoryName=NAME)
        connector = aiohttp.TCPConnector(ssl=trusting or True)
        async with aiohttp.ClientSession(emulator.endpoint_url, connector=connector) as http:
            yield emulator, Door(http)


def codes(body: bytes) -> list[str]:
    return [error["code"] for error in json.loads(body)["errors"]]


def head(method: str, path: str, length: int) -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: ecr\r\nContent-Length: {length}\r\n\r\n".encode()


# Open questions


async def test_the_range_of_a_second_patch_can_be_stale(tmp_path: Path) -> None:
    async with open_door(tmp_path, patch_range="stale", patch_status="201") as (_, door):
        location = await door.begin()
        ranges = []
        for first in (0, 5 * MiB, 6 * MiB):
            last = {0: 5 * MiB, 5 * MiB: 6 * MiB, 6 * MiB: len(LAYER)}[first]
            status, headers, _ = await door.ask("PATCH", location, LAYER[first:last])
            ranges.append((status, headers["Range"]))
        assert ranges == [(201, f"0-{5 * MiB - 1}"), (201, f"0-{5 * MiB - 1}"), (201, f"0-{6 * MiB - 1}")]
        assert await door.received(location) == len(LAYER)


@pytest.mark.parametrize("chosen", ["absolute", "with-query"])
async def test_a_location_can_be_absolute_and_have_a_query(tmp_path: Path, chosen: str) -> None:
    async with open_door(tmp_path, upload_location=chosen) as (emulator, door):
        location = (await door.ask("POST", "blobs/uploads/"))[1]["Location"].removeprefix(emulator.endpoint_url)
        path, _, query = location.partition("?")
        assert path.startswith(f"/v2/{NAME}/blobs/uploads/")
        assert (query != "") == (chosen == "with-query")
        status, headers, _ = await door.ask("PATCH", location, LAYER[: 5 * MiB])
        assert (status, headers["Location"]) == (202, f"{emulator.endpoint_url}{location}")
        without = [await door.ask(method, f"{path}?digest={DIGEST}") for method in ("PATCH", "GET", "PUT", "DELETE")]
        if query:
            assert [(status, codes(body)) for status, _, body in without] == [(400, ["BLOB_UPLOAD_INVALID"])] * 4
            ending = f"{location}&digest={DIGEST}"
            assert (await door.ask("PUT", ending, LAYER[5 * MiB :]))[0] == 201


@pytest.mark.parametrize(("chosen", "code"), [("204", None), ("404", "BLOB_UPLOAD_UNKNOWN"), ("405", "UNSUPPORTED")])
async def test_the_status_of_an_upload_can_be_kept_back(tmp_path: Path, chosen: str, code: str | None) -> None:
    async with open_door(tmp_path, upload_status=chosen) as (_, door):
        location = await door.begin()
        await door.ask("PATCH", location, LAYER)
        status, _, body = await door.ask("GET", location)
        assert (status, codes(body) if body else [None]) == (int(chosen), [code])
        assert (await door.ask("PUT", f"{location}?digest={DIGEST}"))[0] == 201


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
async def test_a_short_chunk_can_be_refused_with_the_next_bytes(tmp_path: Path, method: str) -> None:
    async with open_door(tmp_path, short_chunk="at-next") as (_, door):
        location = await door.begin()
        for chunk in (LAYER[: 5 * MiB], LAYER[5 * MiB : 5 * MiB + 7]):
            assert (await door.ask("PATCH", location, chunk))[0] == 202
        status, _, body = await door.ask(method, f"{location}?digest={DIGEST}", LAYER[5 * MiB + 7 :])
        assert (status, codes(body)) == (400, ["BLOB_UPLOAD_INVALID"])
        assert "at least 5MB" in body.decode()
        whole = digest_of(LAYER[: 5 * MiB + 7])
        assert (await door.ask("PUT", f"{location}?digest={whole}"))[0] == 201  # then it was the last one


async def test_the_416_of_a_chunk_out_of_order_says_where_to_go_on(tmp_path: Path) -> None:
    async with open_door(tmp_path) as (_, door):
        location = await door.begin()
        await door.ask("PATCH", location, LAYER[: 5 * MiB])
        for first in (0, 6 * MiB):
            asked = f"{first}-{first + 9}"
            status, headers, body = await door.ask("PATCH", location, LAYER[:10], Content_Range=asked)
            assert (status, codes(body), headers["Range"]) == (416, ["BLOB_UPLOAD_INVALID"], f"0-{5 * MiB - 1}")
            assert f"First byte of the layer part is {first} instead of {5 * MiB}" in body.decode()


# Faults


async def test_a_reset_in_a_body_keeps_the_bytes_before_it(tmp_path: Path) -> None:
    async with open_door(tmp_path) as (emulator, door):
        location = await door.begin()
        emulator.fault_config = FaultConfig(faults=(parse_fault("v2:PATCH-upload:nth=1:reset-during=5242883"),))
        with pytest.raises(aiohttp.ClientOSError):
            await door.ask("PATCH", location, LAYER)
        assert await door.received(location) == 5242883
        assert (await door.ask("PATCH", location, LAYER[5242883:]))[0] == 202
        assert (await door.ask("PUT", f"{location}?digest={DIGEST}"))[0] == 201
        assert [hit.count for hit in emulator.hit_counts] == [1]


async def test_a_body_that_is_shorter_than_its_reset_is_whole(tmp_path: Path) -> None:
    async with open_door(tmp_path) as (emulator, door):
        emulator.fault_config = FaultConfig(faults=(parse_fault("v2:PUT-upload:reset-during=8MiB"),))
        await door.push(LAYER)
        assert emulator.hit_counts[0].count == 1


@pytest.mark.parametrize("action", ["lost-reply", "reset-after"])
async def test_a_reply_that_is_lost_leaves_what_was_done(tmp_path: Path, action: str) -> None:
    async with open_door(tmp_path) as (emulator, door):
        location = await door.begin()
        rules = (f"v2:PATCH-upload:nth=1:{action}", f"v2:PUT-upload:{action}")  # aiohttp itself sends PUT again
        emulator.fault_config = FaultConfig(faults=tuple(map(parse_fault, rules)))
        with pytest.raises(aiohttp.ClientConnectionError):
            await door.ask("PATCH", location, LAYER)
        assert await door.received(location) == len(LAYER)
        with pytest.raises(aiohttp.ClientConnectionError):
            await door.ask("PUT", f"{location}?digest={DIGEST}")
        assert (await door.ask("GET", location))[0] == 404
        assert (await door.ask("HEAD", f"blobs/{DIGEST}"))[0] == 200


REFUSALS = {
    "unauthorized": (401, "UNAUTHORIZED", {"WWW-Authenticate": "Basic realm="}),
    "expired-token": (403, "DENIED", {}),
    "retry-after=1.5": (429, "TOOMANYREQUESTS", {"Retry-After": "2"}),
    "throttle": (429, "TOOMANYREQUESTS", {}),
    "range-invalid": (416, "BLOB_UPLOAD_INVALID", {"Range": f"0-{5 * MiB - 1}"}),
    "server-error": (500, "UNKNOWN", {}),
    "bad-gateway": (502, None, {"Content-Type": "text/html"}),
    "upload-expired": (404, "BLOB_UPLOAD_UNKNOWN", {}),
}


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
@pytest.mark.parametrize("action", REFUSALS)
async def test_a_refusal_in_mid_blob_takes_nothing_and_the_next_goes_on(
    tmp_path: Path, action: str, method: str
) -> None:
    async with open_door(tmp_path) as (emulator, door):
        location = await door.begin()
        assert (await door.ask("PATCH", location, LAYER[: 5 * MiB]))[0] == 202
        emulator.fault_config = FaultConfig(faults=(parse_fault(f"v2:{method}-upload:nth=1:{action}"),))
        sent = {"method": method, "path": f"{location}?digest={DIGEST}", "data": LAYER[5 * MiB :]}
        status, headers, body = await door.ask(**sent)
        expected, code, named = REFUSALS[action]
        assert (status, codes(body) if code else [body[:6]]) == (expected, [code or b"<html>"])
        assert all(value in headers[name] for name, value in named.items())
        if action == "upload-expired":
            assert (await door.ask("GET", location))[0] == 404
        else:
            assert await door.received(location) == 5 * MiB
            assert (await door.ask(**sent))[0] == {"PATCH": 202, "PUT": 201}[method]


OTHER_REFUSALS = {1: "unauthorized", 2: "bad-gateway", 3: "retry-after=1"}


@pytest.mark.parametrize("operation", ["v2:POST-upload", "v2:GET-upload"])
async def test_other_requests_of_an_upload_have_their_faults_as_well(tmp_path: Path, operation: str) -> None:
    async with open_door(tmp_path) as (emulator, door):
        location = await door.begin()
        method = operation[3:].partition("-")[0]
        path = "blobs/uploads/" if method == "POST" else location
        rules = [f"{operation}:nth={number}:{action}" for number, action in OTHER_REFUSALS.items()]
        rules.append(f"{operation}:reset-before")
        emulator.fault_config = FaultConfig(faults=tuple(map(parse_fault, rules)))
        assert [(await door.ask(method, path))[0] for _ in range(3)] == [401, 502, 429]
        with pytest.raises(aiohttp.ClientConnectionError):
            await door.ask(method, path)
        emulator.fault_config = FaultConfig()
        assert (await door.ask(method, path))[0] == {"POST": 202, "GET": 204}[method]


async def test_nothing_of_a_body_is_taken_while_it_stalls(tmp_path: Path) -> None:
    async with open_door(tmp_path) as (emulator, door):
        location = await door.begin()
        stalls = [parse_fault(f"v2:PATCH-upload:nth={number}:stall={text}") for number, text in ((1, "1h"), (2, "9ms"))]
        emulator.fault_config = FaultConfig(faults=tuple(stalls))
        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(door.ask, "PATCH", location, LAYER)
                while not emulator.hit_counts[0].count:
                    await anyio.lowlevel.checkpoint()
                assert [await door.received(location) for _ in range(3)] == [0, 0, 0]
                group.cancel_scope.cancel()
        assert (await door.ask("PATCH", location, LAYER))[0] == 202
        assert await door.received(location) == len(LAYER)
        assert [hit.count for hit in emulator.hit_counts] == [1, 1]


# Bodies


@pytest.mark.parametrize("chunked", [False, True])
async def test_what_a_client_has_sent_before_it_pauses_is_told(tmp_path: Path, chunked: bool) -> None:
    async with open_door(tmp_path) as (emulator, door):
        location, size = await door.begin(), 700_001
        begun = head("PATCH", location, len(LAYER))
        if chunked:
            coded = f"Transfer-Encoding: chunked\r\n\r\n{size:x}".encode()
            begun = begun.replace(f"Content-Length: {len(LAYER)}\r\n".encode(), coded)
        with anyio.fail_after(20):
            async with await anyio.connect_tcp(emulator.host, emulator.port) as stream:
                await stream.send(begun + LAYER[:size])
                while await door.received(location) != size:
                    await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("secure", [False, True])
async def test_requests_right_behind_a_long_body_are_answered(tmp_path: Path, secure: bool) -> None:
    authority = trustme.CA() if secure else None
    async with open_door(tmp_path, authority) as (emulator, door):
        location = await door.begin()
        asked = [
            head("PATCH", location, 6 * MiB) + LAYER[: 6 * MiB],
            head("GET", location, 0),
            head("PUT", f"{location}?digest={DIGEST}", len(LAYER) - 6 * MiB) + LAYER[6 * MiB :],
            head("HEAD", f"/v2/{NAME}/blobs/{DIGEST}", 0).replace(b"Host", b"Connection: close\r\nHost"),
        ]
        trusting = ssl.create_default_context(cafile=str(tmp_path / "ca.pem")) if secure else None
        answered = b""
        with anyio.fail_after(30):
            async with (
                await anyio.connect_tcp(
                    emulator.host, emulator.port, ssl_context=trusting, tls_standard_compatible=False
                ) as stream,
                anyio.create_task_group() as group,
            ):
                group.start_soon(stream.send, b"".join(asked))
                async for data in stream:
                    answered += data
        statuses = [line.split()[1] for line in answered.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
        assert statuses == [b"202", b"204", b"201", b"200"]
        async with door.http.get(f"/v2/{NAME}/blobs/{DIGEST}") as response:
            assert await response.read() == LAYER
