"""The emulator's server: what it remembers, whom it trusts, and how it starts and ends."""

from __future__ import annotations

import gc
import socket
import ssl
import warnings
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import anyio
import pytest
import trustme
from anyio.lowlevel import checkpoint

from asyncpush.emulator import Emulator
from asyncpush.errors import UsageError
from support.emulator_client import Ecr, head


@pytest.fixture
def ecr(emulator: Emulator) -> Ecr:
    return Ecr(emulator.endpoint_url)


@pytest.fixture
async def http(emulator: Emulator) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(emulator.endpoint_url) as session:
        yield session


async def test_an_absurd_length_is_refused_before_any_of_it_comes(emulator: Emulator) -> None:
    async with await anyio.connect_tcp(emulator.host, emulator.port) as client:
        await client.send(head("PutImage", 10**15))
        assert (await client.receive()).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("line", "header", "status"),
    [
        (b"POST / HTTP/1.1", b"X-Amz-Target: \xff.\xfe", 400),
        (b"PATCH %b HTTP/1.1", b"Content-Range: \xff", 416),
    ],
)
async def test_a_header_that_is_not_text_is_refused_and_remembered(
    tmp_path: Path, line: bytes, header: bytes, status: int
) -> None:
    async with Emulator(tmp_path, verify_signatures=False, fsync=False) as emulator:
        await Ecr(emulator.endpoint_url).call("create_repository", repositoryName="app")
        async with aiohttp.ClientSession(emulator.endpoint_url) as http:
            async with http.post("/v2/app/blobs/uploads/") as begun:
                line = line.replace(b"%b", begun.headers["Location"].encode())
            async with await anyio.connect_tcp(emulator.host, emulator.port) as client:
                await client.send(line + b"\r\nHost: ecr\r\nContent-Length: 2\r\n" + header + b"\r\n\r\n{}")
                assert (await client.receive()).startswith(b"HTTP/1.1 %d " % status)
            async with http.get("/_emulator/requests") as response:
                assert (await response.json())["requests"][-1]["status"] == status


async def test_every_request_is_remembered_in_order(ecr: Ecr, emulator: Emulator, http: aiohttp.ClientSession) -> None:
    await ecr.call("create_repository", repositoryName="app")
    await ecr.refused("put_image", repositoryName="absent", imageManifest="{}")
    await ecr.call("describe_repositories")
    await ecr.call("describe_repositories")
    expected = [("CreateRepository", 200), ("PutImage", 400), *[("DescribeRepositories", 200)] * 2]
    assert [(record.operation, record.status) for record in emulator.requests] == expected
    async with http.get("/_emulator/requests") as response:
        document = await response.json()
    assert document == {
        "requests": [{"operation": operation, "status": status} for operation, status in expected],
        "counts": {"CreateRepository": 1, "PutImage": 1, "DescribeRepositories": 2},
    }


async def test_tls_is_served_with_the_given_certificate(tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with Emulator(tmp_path / "ecr", tls=context, fsync=False) as emulator:
        assert emulator.endpoint_url == f"https://127.0.0.1:{emulator.port}"
        trusting = Ecr(emulator.endpoint_url, verify=str(tmp_path / "ca.pem"))
        assert (await trusting.call("describe_repositories"))["repositories"] == []


@pytest.mark.parametrize("sent", [b"", b'{"repositoryName"', bytes(100_000)])
async def test_a_client_that_leaves_while_it_sends_is_no_error(
    ecr: Ecr, emulator: Emulator, caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    async with await anyio.connect_tcp(emulator.host, emulator.port) as client:
        await client.send(head("PutImage", 1_000_000) + sent)
    await ecr.call("describe_repositories")
    assert [record.operation for record in emulator.requests] == ["DescribeRepositories"]
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_it_closes_while_a_client_is_still_sending(tmp_path: Path) -> None:
    with anyio.fail_after(30):
        async with Emulator(tmp_path, fsync=False) as emulator:
            client = await anyio.connect_tcp(emulator.host, emulator.port)
            await client.send(head("UploadLayerPart", 1_000_000) + b'{"repositoryName": "')
            await Ecr(emulator.endpoint_url).call("describe_repositories")
        async with client:
            with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                await client.receive()
    assert [record.operation for record in emulator.requests] == ["DescribeRepositories"]


async def test_it_closes_when_it_is_cancelled_and_its_directory_is_free_again(tmp_path: Path) -> None:
    with anyio.fail_after(30):
        async with anyio.create_task_group() as group, Emulator(tmp_path, fsync=False) as emulator:
            group.start_soon(emulator.serve_forever)
            ecr = Ecr(emulator.endpoint_url)
            await ecr.call("create_repository", repositoryName="app")
            group.cancel_scope.cancel()
    async with Emulator(tmp_path, fsync=False) as again:
        assert len((await Ecr(again.endpoint_url).call("describe_repositories"))["repositories"]) == 1


async def test_no_connection_outlives_it_when_it_is_cancelled(tmp_path: Path) -> None:
    with anyio.fail_after(30):
        with anyio.CancelScope() as scope:
            async with Emulator(tmp_path, fsync=False) as emulator:
                client = await anyio.connect_tcp(emulator.host, emulator.port)
                await client.send(head("PutImage", 1_000_000))
                await Ecr(emulator.endpoint_url).call("describe_repositories")
                scope.cancel()
        async with client:
            with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                await client.receive()


async def test_an_error_in_its_block_comes_out_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        async with Emulator(tmp_path, fsync=False):
            raise KeyError


async def test_a_port_that_is_taken_is_refused_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError) as caught:
            async with Emulator(tmp_path, port=port):
                pass
    assert f"127.0.0.1 port {port}: Address already in use; " in str(caught.value)
    async with Emulator(tmp_path, fsync=False):
        pass


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 70000), ("192.0.2.1", 0), ("no such host", 0)])
async def test_an_address_that_can_not_be_listened_on_is_refused(tmp_path: Path, host: str, port: int) -> None:
    with pytest.raises(UsageError, match="can't listen on"):
        async with Emulator(tmp_path, host=host, port=port):
            pass


async def test_no_connection_is_lost_that_comes_while_it_stops(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        for rounds in range(4):
            with socket.socket() as client:
                client.setblocking(False)
                async with Emulator(tmp_path, fsync=False) as emulator:
                    with pytest.raises(BlockingIOError):
                        client.connect(("127.0.0.1", int(emulator.endpoint_url.rpartition(":")[2])))
                    for _ in range(rounds):
                        await checkpoint()
        gc.collect()
    assert not [str(each.message) for each in warned]
