"""What clients can do to the emulator before it knows who they are: next to nothing."""

from __future__ import annotations

import re
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest

from asyncpush.emulator import Emulator, connections
from support.emulator_client import Ecr, head
from support.processes import connected, served

MiB = 1024 * 1024
CLIENTS = 300

#: The longest part, as JSON.
LONG = 28_000_000

NOBODY = re.sub(rb"Authorization: [^\r]+\r\n", b"", head("UploadLayerPart", LONG))


async def test_a_request_without_credentials_is_refused_before_its_body_comes(emulator: Emulator) -> None:
    async with await connected(emulator.endpoint_url) as client:
        await client.send(NOBODY)
        with anyio.fail_after(30):
            answer = await client.receive()
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"MissingAuthenticationTokenException" in answer
    assert [(record.operation, record.status) for record in emulator.requests] == [("UploadLayerPart", 400)]


async def test_announced_bodies_that_do_not_come_take_no_memory(tmp_path: Path) -> None:
    """Bodies that are announced and do not come take no memory and no turn."""
    async with AsyncExitStack() as stack:
        url, process = stack.enter_context(served(tmp_path / "data"))
        ecr = Ecr(url)
        await ecr.call("create_repository", repositoryName="app")
        upload_id = await ecr.begin("app")
        for beginning in [NOBODY, head("UploadLayerPart", LONG) + b"{"] * (CLIENTS // 2):
            await (await stack.enter_async_context(await connected(url))).send(beginning)
        with anyio.fail_after(30):
            await ecr.send("app", upload_id, 0, bytes(5 * MiB))
        resident = re.search(r"VmHWM:\s+(\d+) kB", await anyio.Path(f"/proc/{process}/status").read_text())
    assert resident
    assert int(resident[1]) * 1024 < 150 * MiB


async def test_those_who_hold_room_and_send_no_more_leave_it_to_those_who_wait(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "HURRIED_TIMEOUT", 0.1)
    stalled = head("UploadLayerPart", LONG) + bytes(100_000)
    ecr = Ecr(emulator.endpoint_url)
    await ecr.call("create_repository", repositoryName="app")
    upload_id = await ecr.begin("app")
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(await connected(emulator.endpoint_url)) for _ in range(15)]
        for client in clients:
            await client.send(stalled)
        with anyio.fail_after(30):
            await ecr.send("app", upload_id, 0, bytes(2 * MiB))
            answer = await clients[0].receive()
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"RequestTimeoutException"' in answer


async def test_strangers_beyond_the_limit_are_let_in_where_a_silent_one_was(
    emulator: Emulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_STRANGERS", 3)
    ecr = Ecr(emulator.endpoint_url)
    await ecr.call("describe_repositories")
    async with AsyncExitStack() as stack:
        asking = await stack.enter_async_context(await connected(emulator.endpoint_url))
        await asking.send(head("PutImage", 100))
        silent = [await stack.enter_async_context(await connected(emulator.endpoint_url)) for _ in range(3)]
        with anyio.fail_after(30), pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
            await silent[0].receive()
        await ecr.call("describe_repositories")
        await asking.send(b"x" * 100)
        assert (await asking.receive()).startswith(b"HTTP/1.1 400")


async def test_a_connection_that_says_nothing_is_closed(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "STRANGER_TIMEOUT", 0.01)
    async with await connected(emulator.endpoint_url) as client:
        await client.send(b"GET / HT")
        with anyio.fail_after(30), pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
            await client.receive()


@pytest.mark.parametrize(
    "line", [b"GET /v2/" + b"a" * 20_000 + b" HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nA: " + b"b" * 20_000 + b"\r\n"]
)
async def test_what_is_no_http_is_told_to_its_client_and_not_to_the_log(
    emulator: Emulator, caplog: pytest.LogCaptureFixture, line: bytes
) -> None:
    async with await connected(emulator.endpoint_url) as client:
        await client.send(line + b"\r\n")
        assert b" 400 " in await client.receive()
    assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []
