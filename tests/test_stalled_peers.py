"""A peer that stops reading: a broken connection like any other, for each body that is sent."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest
import trustme

import asyncpush
from asyncpush import Settings
from asyncpush.ecr import session
from asyncpush.emulator import Emulator
from asyncpush.events import Retrying
from asyncpush.stream.budget import BudgetAccount
from conftest import Events, aws
from images import LAYER, Layout

KiB = 1024
MiB = 1024 * KiB

#: Whatever is not over by then hangs.
WATCHDOG = 60


@dataclass
class Crossing:
    """Passes bytes on to an endpoint, and stops reading a connection for good: the first that brings so many."""

    target: str
    stops_after: int
    slow: bool = False
    url: str = ""
    stopped: int = 0
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        there = urlsplit(self.target)
        from_target, to_target = await asyncio.open_connection(there.hostname, there.port)
        back = asyncio.create_task(self._answers(from_target, writer))
        try:
            brought = 0
            while data := await reader.read(64 * KiB):
                brought += len(data)
                if self.slow:
                    await asyncio.sleep(0.03 if brought < 2 * MiB else 0)
                elif brought > self.stops_after and not self.stopped:
                    self.stopped += 1
                    await anyio.sleep_forever()
                to_target.write(data)
                await to_target.drain()
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            back.cancel()
            to_target.close()
            writer.close()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(64 * KiB):
            writer.write(data)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()


@asynccontextmanager
async def crossing(emulator: Emulator, stops_after: int = 0, *, slow: bool = False) -> AsyncIterator[Crossing]:
    """What lies between a client and an emulator."""
    passes = Crossing(emulator.endpoint_url, stops_after, slow)
    listener = socket.create_server(("127.0.0.1", 0))
    # Small, so that little has left before the sender notices.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * KiB)
    server = await asyncio.start_server(passes.serve, sock=listener, limit=64 * KiB)
    passes.url = f"{urlsplit(emulator.endpoint_url).scheme}://localhost:{listener.getsockname()[1]}"
    try:
        yield passes
    finally:
        server.close()
        passes.close()


@pytest.fixture
async def emulator(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Emulator]:
    """A local ECR, over plain HTTP and over TLS."""
    context = None
    if request.param == "https":
        authority = trustme.CA()
        bundle = tmp_path / "bundle.pem"
        authority.cert_pem.write_to_path(str(bundle))
        monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("localhost").configure_cert(context)
    async with Emulator(tmp_path / "ecr", fsync=False, tls=context) as running:
        yield running


@pytest.fixture(autouse=True)
def time_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "Transport", partial(session.Transport, read_timeout=0.5))


@pytest.mark.parametrize(
    ("emulator", "plenty"),
    [("http", True), ("https", False)],
    indirect=["emulator"],
    ids=["held", "encoded-on-the-way-over-tls"],
)
async def test_a_part_that_nobody_takes_is_sent_again(
    emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, plenty: bool
) -> None:
    if not plenty:
        monkeypatch.setattr(BudgetAccount, "take_nowait", lambda *_: False)
    layer = tmp_path / "layer"
    layer.write_bytes(random.Random(1).randbytes(7 * MiB))
    events = Events()
    async with (
        crossing(emulator, MiB) as passes,
        asyncpush.connect(aws=aws(passes.url), settings=Settings(create_repository=True), emit=events) as registry,
    ):
        with anyio.fail_after(WATCHDOG):
            [result] = await asyncpush.push_layers(registry, [layer], "team/app")

    assert isinstance(result, asyncpush.LayerResult)
    assert passes.stopped == 1
    retries = events.of(Retrying)
    assert {retry.operation for retry in retries} == {"UploadLayerPart"}
    assert any("it has taken none of the request for 0.5 seconds" in retry.reason for retry in retries)


@pytest.mark.parametrize("emulator", ["http"], indirect=True)
async def test_a_manifest_that_nobody_takes_is_put_again(emulator: Emulator, tmp_path: Path) -> None:
    layout = Layout()
    long = layout.blob(b"layer", LAYER, annotations={"padding": "x" * (3 * MiB)})
    folder = layout.tag(layout.image(more=[long]), "1").write(tmp_path / "app")
    events = Events()
    async with (
        crossing(emulator, MiB) as passes,
        asyncpush.connect(aws=aws(passes.url), settings=Settings(create_repository=True), emit=events) as registry,
    ):
        with anyio.fail_after(WATCHDOG):
            result = await asyncpush.push(registry, f"oci:{folder}", "team/app:1")

    assert result.outcome == "pushed"
    assert passes.stopped == 1
    assert "PutImage" in {retry.operation for retry in events.of(Retrying)}


@pytest.mark.parametrize("emulator", ["https"], indirect=True)
async def test_what_is_taken_slowly_is_no_broken_connection(emulator: Emulator, tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    layer.write_bytes(random.Random(1).randbytes(6 * MiB))
    events = Events()
    async with (
        crossing(emulator, slow=True) as passes,
        asyncpush.connect(aws=aws(passes.url), settings=Settings(create_repository=True), emit=events) as registry,
    ):
        with anyio.fail_after(WATCHDOG):
            [result] = await asyncpush.push_layers(registry, [layer], "team/app")

    assert isinstance(result, asyncpush.LayerResult)
    assert events.of(Retrying) == []
