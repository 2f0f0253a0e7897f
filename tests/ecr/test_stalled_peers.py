"""A peer that stops reading: a broken connection like any other, for each body that is sent."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

import asyncpush
from asyncpush import Settings
from asyncpush.emulator import Emulator
from asyncpush.engine.memory import MemoryAccount
from asyncpush.events import Retrying
from asyncpush.settings import RetryPolicy
from support.aws import aws
from support.events import Events
from support.images import LAYER, Layout
from support.slow_network import MiB, slow_network, trusted_tls

#: Whatever is not over by then hangs.
WATCHDOG = 60


SETTINGS = Settings(create_repository=True, retry=RetryPolicy(read=0.5))


@pytest.fixture
async def emulator(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Emulator]:
    """A local ECR, over plain HTTP and over TLS."""
    context = trusted_tls(tmp_path, monkeypatch) if request.param == "https" else None
    async with Emulator(tmp_path / "ecr", fsync=False, tls=context) as running:
        yield running


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
        monkeypatch.setattr(MemoryAccount, "take_nowait", lambda *_: False)
    layer = tmp_path / "layer"
    layer.write_bytes(random.Random(1).randbytes(7 * MiB))
    events = Events()
    async with (
        slow_network(emulator.endpoint_url, MiB) as passes,
        asyncpush.connect(aws=aws(passes.url), settings=SETTINGS, emit=events) as registry,
    ):
        with anyio.fail_after(WATCHDOG):
            [result] = await asyncpush.push_layers(registry, [layer], "team/app")

    assert isinstance(result, asyncpush.LayerResult)
    assert passes.stopped == 1
    retries = events.of(Retrying)
    assert {retry.operation for retry in retries} == {"UploadLayerPart"}
    assert any("the peer has accepted none of the request for 0.5 seconds" in retry.reason for retry in retries)


@pytest.mark.parametrize("emulator", ["http"], indirect=True)
async def test_a_manifest_that_nobody_takes_is_put_again(emulator: Emulator, tmp_path: Path) -> None:
    layout = Layout()
    long = layout.blob(b"layer", LAYER, annotations={"padding": "x" * (3 * MiB)})
    folder = layout.tag(layout.image(more=[long]), "1").write(tmp_path / "app")
    events = Events()
    async with (
        slow_network(emulator.endpoint_url, MiB) as passes,
        asyncpush.connect(aws=aws(passes.url), settings=SETTINGS, emit=events) as registry,
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
        slow_network(emulator.endpoint_url, slow=True) as passes,
        asyncpush.connect(aws=aws(passes.url), settings=SETTINGS, emit=events) as registry,
    ):
        with anyio.fail_after(WATCHDOG):
            [result] = await asyncpush.push_layers(registry, [layer], "team/app")

    assert isinstance(result, asyncpush.LayerResult)
    assert events.of(Retrying) == []
