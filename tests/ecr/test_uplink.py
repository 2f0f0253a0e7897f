"""Slow lines: parts share them so that each arrives while its signature is good."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import anyio
import pytest

import asyncpush
from asyncpush import Settings
from asyncpush.ecr.uplink import Uplink
from asyncpush.emulator import Emulator
from asyncpush.emulator.auth import sigv4
from support.aws import aws
from support.slow_network import MiB, SlowNetwork, slow_network, trusted_tls

SIZE = 2 * MiB
#: The emulator takes a signature for three seconds.
SETTINGS = Settings(create_repository=True, signature_lifetime=2)

#: Whatever is not over by then hangs.
WATCHDOG = 60


@pytest.fixture
async def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SlowNetwork]:
    """A line to an ECR that takes signatures for three seconds, over TLS."""
    monkeypatch.setattr(sigv4, "MAX_SKEW", timedelta(seconds=3))
    context = trusted_tls(tmp_path, monkeypatch)
    async with (
        Emulator(tmp_path / "ecr", fsync=False, tls=context) as emulator,
        slow_network(emulator.endpoint_url, rate=10_000_000) as between,
    ):
        yield between


def layers(folder: Path, count: int) -> list[Path]:
    files = [folder / f"layer-{number}" for number in range(count)]
    for number, file in enumerate(files):
        file.write_bytes(random.Random(number).randbytes(SIZE))
    return files


@dataclass
class Part:
    """A part on a line that is made up: what aiohttp's writer and connection tell of it."""

    size: int
    first: int = 0
    buffer: int = 0
    passed: float = 0
    has_ended: bool = False
    arrived: anyio.Event = field(default_factory=anyio.Event)

    @property
    def output_size(self) -> float:
        return min(self.passed + self.buffer, self.size)

    @property
    def transport(self) -> Part | None:
        return None if self.has_ended else self

    @property
    def protocol(self) -> Part:
        return self

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, _: str) -> None:
        return None

    def set_exception(self, _: Exception) -> None:
        self.has_ended = True

    def abort(self) -> None:
        self.arrived.set()


@dataclass
class MadeUpLine:
    """A line of so many bytes a second, which all parts share alike, and its time; it buffers some of each part."""

    rate: float
    buffer: int = 0
    now: float = 0.0
    carried: float = 0.0
    most_at_once: int = 0
    parts: list[Part] = field(default_factory=list)

    def pass_on(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds
        self.most_at_once = max(self.most_at_once, len(self.parts))
        room = self.rate * seconds
        while self.parts and room > 1:
            share = min(room / len(self.parts), min(part.size - part.passed for part in self.parts))
            for part in self.parts:
                part.passed += share
            room -= share * len(self.parts)
            self.carried += share * len(self.parts)
            for part in [part for part in self.parts if part.size - part.passed < 1]:
                self.parts.remove(part)
                part.arrived.set()

    async def send(self, uplink: Uplink, size: int, first: int) -> list[float]:
        """Send a part, again until it has arrived; the seconds of each time."""
        took = []
        while True:
            async with uplink.transfer(first, size, may_stop=len(took) < 3) as transfer:
                part, began = Part(size, first, self.buffer), self.now
                transfer.start(part)
                self.parts.append(part)
                await part.arrived.wait()
                if part in self.parts:
                    self.parts.remove(part)
                took.append(self.now - began)
                if not transfer.is_stopped:
                    uplink.note_arrival(transfer)
                    return took


@pytest.mark.parametrize("buffer", [0, 4 * MiB], ids=["plain", "buffered"])
@pytest.mark.parametrize(
    ("rates", "layers", "parts"),
    [([150_000], 16, 1), ([150_000], 6, 4), ([600_000], 32, 2), ([600_000, 150_000], 16, 3), ([5_000_000], 32, 2)],
    ids=["150kB/s", "150kB/s-many-parts", "600kB/s", "slower-after-a-minute", "5MB/s"],
)
async def test_parts_share_a_slow_line_so_that_none_outlives_its_signature(
    rates: list[float], layers: int, parts: int, buffer: int
) -> None:
    """The line is full all the time, and hardly anything goes over it in vain."""
    told: list[str] = []
    line = MadeUpLine(rates[0], buffer)
    uplink = Uplink(told.append, clock=lambda: line.now)
    size, took = 14_000_000, list[list[float]]()

    async def layer() -> None:
        for number in range(parts):
            took.append(await line.send(uplink, size, number * 10_485_760))

    with anyio.fail_after(WATCHDOG):
        async with anyio.create_task_group() as tg:
            for _ in range(layers):
                tg.start_soon(layer)
            while len(took) < layers * parts:
                await anyio.wait_all_tasks_blocked()
                line.pass_on(1.0)
                if line.now > 60:
                    line.rate = rates[-1]
                uplink.measure()
    needed = layers * parts * size
    assert max(each[-1] for each in took) < 270
    assert needed <= line.carried + 1 <= 1.05 * needed + 100
    ideal = 60 + (needed - 60 * rates[0]) / rates[-1]
    assert ideal - 2 < line.now < ideal / 0.95 + 5
    assert bool(told) == (min(rates) < 1_000_000)


async def test_a_line_that_becomes_wide_again_is_used() -> None:
    line = MadeUpLine(100_000)
    uplink = Uplink(lambda _: None, clock=lambda: line.now)
    done = list[list[float]]()

    async def layer() -> None:
        done.append(await line.send(uplink, 7_000_000, 0))

    with anyio.fail_after(WATCHDOG):
        async with anyio.create_task_group() as tg:
            for _ in range(200):
                tg.start_soon(layer)
            while len(done) < 200:
                await anyio.wait_all_tasks_blocked()
                if line.now > 120:
                    line.rate = 20_000_000
                    line.most_at_once = 0 if line.now == 121 else line.most_at_once
                line.pass_on(1.0)
                uplink.measure()
    assert line.most_at_once > 20
    assert line.now < 300


async def test_a_part_with_an_expired_signature_is_signed_and_sent_again(line: SlowNetwork, tmp_path: Path) -> None:
    """A part that has outlived its signature is signed and sent once more."""
    line.rate = 800_000
    async with (
        asyncpush.connect(aws=aws(line.url), settings=SETTINGS) as registry,
        anyio.create_task_group() as tg,
    ):

        async def widen() -> None:
            await anyio.sleep(3.5)
            line.rate = 50_000_000

        tg.start_soon(widen)
        with anyio.fail_after(WATCHDOG):
            [result] = await asyncpush.push_layers(registry, layers(tmp_path, 1), "team/app")
    assert getattr(result, "outcome", result) == "pushed"
    assert line.carried > 2 * SIZE * 4 // 3
