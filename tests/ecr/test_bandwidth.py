"""``--bandwidth``: how it is written, and that each byte of a layer passes the brake, whatever way it leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import aiohttp
import anyio
import pytest

import asyncpush
from asyncpush import Bandwidth, Settings, UsageError
from asyncpush.ecr.uplink import Uplink
from asyncpush.emulator import Emulator
from asyncpush.http.token_bucket import TokenBucket
from asyncpush.settings import MIN_BANDWIDTH, MiB
from support.aws import aws
from support.slow_network import trusted_tls

SIZE = 7_000_001


@pytest.mark.parametrize(
    ("text", "rates"),
    [
        ("50MB/s", {0: 50_000_000, 1439: 50_000_000}),
        ("off", {0: None, 720: None}),
        ("08:00,10MB/s 19:00,off", {0: None, 479: None, 480: 10_000_000, 1139: 10_000_000, 1140: None}),
        ("19:00,off 8:00,10MB/s", {479: None, 480: 10_000_000, 1140: None}),
        ("00:00,1MB/s 12:30,2MB/s", {0: 1_000_000, 749: 1_000_000, 750: 2_000_000, 1439: 2_000_000}),
    ],
)
def test_a_rate_or_a_timetable(text: str, rates: dict[int, float | None]) -> None:
    bandwidth = Bandwidth.parse(text)
    assert {minute: bandwidth.rate_at(minute) for minute in rates} == rates
    assert Bandwidth.parse(str(bandwidth)) == bandwidth


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "10",
        "off off",
        "0MB/s",
        "24:00,1MB/s",
        "08:00",
        "08:00,",
        "8,1MB/s",
        "08:00,1MB/s 08:00,off",
        "1MB/s 2MB/s",
    ],
)
def test_no_bandwidth(text: str) -> None:
    with pytest.raises(UsageError):
        Bandwidth.parse(text)


def test_a_rate_at_which_signatures_expire_is_refused() -> None:
    assert Bandwidth.parse(f"{MIN_BANDWIDTH}B/s").rate_at(0) == MIN_BANDWIDTH
    with pytest.raises(UsageError, match="signatures"):
        Bandwidth.parse(f"{MIN_BANDWIDTH - 1}B/s")


@pytest.mark.parametrize("transport", ["api", "v2"])
@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.anyio
async def test_each_byte_of_a_body_passes_the_brake(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    transport: Literal["api", "v2"],
    scheme: str,
) -> None:
    """What is taken from the brake and not given back is what the emulator has received."""
    taken = 0
    take, give_back = TokenBucket.take, TokenBucket.give_back

    async def counted_take(self: TokenBucket, most: int) -> int:
        nonlocal taken
        granted = await take(self, most)
        taken += granted
        return granted

    def counted_return(self: TokenBucket, tokens: int) -> None:
        nonlocal taken
        taken -= tokens
        give_back(self, tokens)

    monkeypatch.setattr(TokenBucket, "take", counted_take)
    monkeypatch.setattr(TokenBucket, "give_back", counted_return)
    context = trusted_tls(tmp_path, monkeypatch) if scheme == "https" else None
    files = [tmp_path / name for name in ("one", "two")]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]) * SIZE)
    settings = Settings(transport=transport, bandwidth=Bandwidth.parse("1GB/s"), create_repository=True)
    async with Emulator(tmp_path / "ecr", fsync=False, tls=context) as emulator:
        endpoint = emulator.endpoint_url.replace("127.0.0.1", "localhost")
        async with asyncpush.connect(settings=settings, aws=aws(endpoint)) as registry:
            results = await asyncpush.push_layers(registry, files, "team/app")
            results.raise_for_failures()
        async with aiohttp.ClientSession() as session:
            answer = await session.get(f"{endpoint}/_emulator/received", ssl=False)
            received = (await answer.json())["received"]
    bodies = received["UploadLayerPart" if transport == "api" else "v2:PATCH-upload"]
    assert taken == sum(bodies.values())
    assert taken >= len(files) * SIZE


@pytest.mark.parametrize(("rate", "parts"), [(None, 2), (3_000_000, 2), (1_500_000, 1), (100_000, 1)])
@pytest.mark.anyio
async def test_no_more_parts_are_under_way_than_the_brake_soon_lets_pass(rate: int | None, parts: int) -> None:
    """A part that is interrupted is lost: under a brake, those under way arrive within ten seconds."""
    told: list[str] = []
    uplink = Uplink(told.append, brake=TokenBucket(lambda: rate))
    started = 0

    async def transfer(number: int) -> None:
        nonlocal started
        async with uplink.transfer(number, 13_900_000):
            started += 1
            await anyio.sleep_forever()

    async with anyio.create_task_group() as tg:
        for number in range(4):
            tg.start_soon(transfer, number)
        await anyio.wait_all_tasks_blocked()
        tg.cancel_scope.cancel()
    assert started == parts
    assert uplink.part_size(10 * MiB) == (5 * MiB if rate == 100_000 else 10 * MiB)
