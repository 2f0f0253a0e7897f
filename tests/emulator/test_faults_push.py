"""Pushes in faults: whatever an emulator does to any operation, the image that ends up there is the right one."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import anyio
import pytest
from anyio import to_thread

import asyncpush
from asyncpush import Registry, Settings
from asyncpush.emulator import Emulator, FaultConfig
from asyncpush.emulator.faults import parse_fault, parse_throttle
from asyncpush.errors import ServiceError
from support.aws import aws, token
from support.images import Layout
from support.relay import NO_WAITS

KiB, MiB = 1024, 1024 * 1024


@pytest.fixture
async def emulator(tmp_path: Path) -> AsyncIterator[Emulator]:
    """An empty local ECR that takes small parts."""
    async with Emulator(tmp_path / "ecr", fsync=False, part_size=16 * KiB) as running:
        yield running


@pytest.fixture
async def registry(emulator: Emulator) -> AsyncIterator[Registry]:
    """A connection to an endpoint that has answered before: one that never has is given up at once."""
    settings = Settings(
        retry=replace(NO_WAITS, lag_waits=(0.01, 0.02, 0.05, 0.1)), create_repository=True, max_attempts=20
    )
    async with asyncpush.connect(aws=aws(emulator.endpoint_url), settings=settings) as connected:
        await connected.repository("warm").create()
        yield connected


def layout_of(seed: int, size: int = 50 * KiB) -> Layout:
    chance = random.Random(seed)
    layout = Layout()
    return layout.tag(layout.image(chance.randbytes(size), chance.randbytes(3)), "1.0")


async def assert_pulled(emulator: Emulator, layout: Layout, repository: str) -> None:
    """Every blob of the layout, the manifest too, is what the repository gives."""
    headers = {"Authorization": f"Basic {await to_thread.run_sync(token, emulator.endpoint_url)}"}
    async with aiohttp.ClientSession(emulator.endpoint_url, headers=headers) as session:
        async with session.get(f"/v2/{repository}/manifests/1.0") as response:
            manifest, named = await response.read(), response.headers["Docker-Content-Digest"]
        blobs = {name.rpartition("/")[2]: data for name, data in layout.files.items() if name.startswith("blobs/")}
        assert blobs.pop(named.removeprefix("sha256:")) == manifest
        assert len(blobs) == 3
        for digest, data in blobs.items():
            async with session.get(f"/v2/{repository}/blobs/sha256:{digest}") as response:
                assert await response.read() == data


OPERATIONS = (
    "BatchGetImage",
    "CreateRepository",
    "BatchCheckLayerAvailability",
    "InitiateLayerUpload",
    "UploadLayerPart",
    "CompleteLayerUpload",
    "PutImage",
)

FAULTS = (
    "throttle",
    "server-error",
    "unavailable",
    "reset-before",
    "reset-after",
    "lost-reply",
    "slow-reply=0.02",
)

PARTICULAR = (
    "BatchCheckLayerAvailability:nth=1:availability=AVAILABLE",
    "BatchCheckLayerAvailability:availability=UNAVAILABLE",
    "UploadLayerPart:nth=1:upload-expired",
    "UploadLayerPart:nth=4:upload-expired",
    "CompleteLayerUpload:nth=2:upload-expired",
    "PutImage:first=3:layers-not-found",
    "PutImage:lag=0.05:layers-not-found",
)

#: Each fault at the first two requests of each operation: one that is sent again meets it again.
RULES = {operation: [f"{operation}:first=2:{fault}" for fault in FAULTS] for operation in OPERATIONS}


@pytest.mark.parametrize("rules", [*RULES.values(), PARTICULAR], ids=[*RULES, "particular"])
async def test_a_push_ends_well_and_the_image_is_right(
    emulator: Emulator, registry: Registry, tmp_path: Path, rules: list[str]
) -> None:
    for number, rule in enumerate(rules):
        # A layer of several parts where it is about a later one.
        layout, repository = layout_of(number, 11 * MiB if "nth=4" in rule else 50 * KiB), f"team/app-{number}"
        folder = layout.write(tmp_path / repository)
        emulator.fault_config = FaultConfig(faults=(parse_fault(rule),))

        result = await asyncpush.push(registry, f"oci:{folder}", f"{repository}:1.0")

        assert result.outcome == "pushed", rule
        assert emulator.hit_counts[0].count >= 1, rule
        emulator.fault_config = FaultConfig()
        await assert_pulled(emulator, layout, repository)


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_batch_comes_through_a_storm(emulator: Emulator, registry: Registry, tmp_path: Path, seed: int) -> None:
    layouts = {f"team/app-{number}": layout_of(number) for number in range(4)}
    rules = [
        *(f"[A-Z]*:probability=0.05:{fault}" for fault in FAULTS),
        "UploadLayerPart:every=9,limit=2:upload-expired",
        "PutImage:lag=0.02:layers-not-found",
    ]
    emulator.fault_config = FaultConfig(
        latency=0.001,
        jitter=0.001,
        bandwidth=20e6,
        faults=tuple(map(parse_fault, rules)),
        throttles=(parse_throttle("InitiateLayerUpload=100:2"),),
        seed=seed,
    )

    async def push(repository: str, layout: Layout) -> None:
        folder = layout.write(tmp_path / repository)
        await asyncpush.push(registry, f"oci:{folder}", f"{repository}:1.0")

    async with anyio.create_task_group() as group:
        for repository, layout in layouts.items():
            group.start_soon(push, repository, layout)

    assert sum(each.count for each in emulator.hit_counts) > 10
    emulator.fault_config = FaultConfig()
    for repository, layout in layouts.items():
        await assert_pulled(emulator, layout, repository)


@pytest.mark.parametrize("action", ["expired-token", "access-denied"])
async def test_what_no_new_try_can_help_ends_the_push_at_once(
    emulator: Emulator, registry: Registry, tmp_path: Path, action: str
) -> None:
    folder = layout_of(1).write(tmp_path / "app")
    emulator.fault_config = FaultConfig(faults=(parse_fault(f"InitiateLayerUpload:{action}"),))

    with pytest.raises(ServiceError, match=r"InitiateLayerUpload failed: (ExpiredToken|AccessDenied)Exception"):
        await asyncpush.push(registry, f"oci:{folder}", "team/app:1.0")

    assert emulator.requests.counts()["PutImage"] == 0
