"""The budget of bytes: whatever layers share it, all of them get through, and it holds what it may."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal

import anyio
import pytest
from anyio import CancelScope, CapacityLimiter
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from asyncpush import Settings
from asyncpush.ecr.part_body import JsonPartEncoder
from asyncpush.engine.compress import CompressedBlob
from asyncpush.engine.concurrency import AdaptiveLimiter
from asyncpush.engine.context import PushContext
from asyncpush.engine.layer import send_layer
from asyncpush.engine.memory import MemoryBudget
from asyncpush.errors import AsyncpushError, DigestMismatchError
from asyncpush.events import ignore
from asyncpush.model import Descriptor, Digest, PushedLayer, Upload
from asyncpush.protocols import Blob, Part, RandomAccess
from asyncpush.settings import MiB, SourceRegistry
from support.registry_server import QUICK, RegistryServer, open_remote, running

KiB = 1024
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

#: Real sizes, in KiB for MiB.
WINDOW = 2 * KiB

#: Seconds that a part takes, at most: long enough for the next ones to be made, so that all comes in any order.
LONGEST = 0.01

#: Whatever is not over by then hangs.
WATCHDOG = 60.0


class Reader:
    """Reads bytes front to back."""

    def __init__(self, data: bytes) -> None:
        self.consumed = 0
        self._data = data

    def readinto(self, buffer: memoryview) -> int:
        data = self._data[self.consumed : self.consumed + len(buffer)]
        buffer[: len(data)] = data
        self.consumed += len(data)
        return len(data)


class AgainReader(Reader):
    """Reads them again, too."""

    def read_at(self, start: int, buffer: memoryview) -> memoryview:
        data = self._data[start : start + len(buffer)]
        buffer[: len(data)] = data
        return buffer[: len(data)]


@dataclass(frozen=True)
class Bytes:
    """A blob on this machine."""

    data: bytes
    reader: type[Reader] = AgainReader
    name: str = "layer"
    media_type: str = LAYER

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(LAYER, Digest(sha256(self.data).hexdigest()), len(self.data))

    @property
    def source_size(self) -> int:
        return len(self.data)

    @property
    def identity(self) -> str:
        return str(self.descriptor.digest)

    def mismatch(self, expected: Digest | int, actual: Digest | int) -> DigestMismatchError:
        return DigestMismatchError(self.name, expected, actual)

    @contextmanager
    def open(self) -> Iterator[Reader]:
        yield self.reader(self.data)


@dataclass(frozen=True)
class FarBytes:
    """A blob of a registry that answers so many requests at once."""

    near: Bytes
    turns: CapacityLimiter
    name: str = "layer"
    media_type: str = LAYER

    @property
    def descriptor(self) -> Descriptor:
        return self.near.descriptor

    @property
    def source_size(self) -> int:
        return self.near.source_size

    @property
    def identity(self) -> str:
        return self.near.identity

    def mismatch(self, expected: Digest | int, actual: Digest | int) -> DigestMismatchError:
        return self.near.mismatch(expected, actual)

    @asynccontextmanager
    async def stream(self, start: int = 0) -> AsyncIterator[FarStream]:
        async with self.turns:
            yield FarStream(self.near.data[start:])


class FarStream:
    def __init__(self, data: bytes) -> None:
        self._reader = Reader(data)

    async def readinto(self, buffer: memoryview) -> int:
        await checkpoint()
        return self._reader.readinto(buffer)


@dataclass
class Ecr:
    """A repository that takes parts in order, each in its own time."""

    chance: random.Random
    address: str
    part_size: int
    uploads: dict[str, bytearray] = field(default_factory=dict)
    layers: dict[Digest, bytes] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.address

    async def begin_upload(self) -> Upload:
        upload = Upload(str(len(self.uploads)), self.part_size, 1000)
        self.uploads[upload.id] = bytearray()
        return upload

    def encoder(self, upload: Upload, first: int, content: RandomAccess | None) -> JsonPartEncoder:
        return JsonPartEncoder(None, self.name, upload, first, content)

    async def send_part(self, upload: Upload, part: Part, on_sent: Callable[[], None] | None = None) -> None:
        if on_sent:
            on_sent()
        await anyio.sleep(self.chance.uniform(0, LONGEST))
        assert part.first == len(self.uploads[upload.id])
        self.uploads[upload.id] += bytes(part.size)

    async def complete_upload(self, upload: Upload, digest: Digest) -> Literal["pushed", "present"]:
        self.layers[digest] = bytes(self.uploads[upload.id])
        return "pushed"


def resources(limit: int, slots: int = 64) -> PushContext:
    return PushContext(Settings(), ignore, MemoryBudget(limit, WINDOW), AdaptiveLimiter(slots, first=slots))


async def send_all(
    blobs: Sequence[Blob],
    repositories: list[Any],
    shared: PushContext,
    chance: random.Random,
    *,
    pause: float = 3 * LONGEST,
) -> None:
    """Send each blob to all of the repositories, each up to *pause* after the one before; fail where that hangs."""
    sent: list[PushedLayer | AsyncpushError] = []

    async def send(blob: Blob) -> None:
        async with shared.limiter.hold(blob.source_size):
            sent.extend(await send_layer(repositories, blob, shared))

    with anyio.fail_after(WATCHDOG):
        async with anyio.create_task_group() as tg:
            for blob in blobs:
                tg.start_soon(send, blob)
                await anyio.sleep(chance.uniform(0, pause))
    assert [each for each in sent if not isinstance(each, PushedLayer)] == []
    assert len(sent) == len(blobs) * len(repositories)
    assert shared.memory.held == 0


@pytest.mark.parametrize("targets", range(1, 9))
async def test_every_mixture_of_layers_gets_through(targets: int) -> None:
    chance = random.Random(targets)
    part, limit = chance.choice([5, 10, 20]) * KiB, chance.choice([30, 48]) * KiB
    turns = CapacityLimiter(1)
    kinds = ["again", "compressed", "far", *chance.choices(["again", "once", "compressed", "far"], k=3)]
    blobs = [_blob(kind, chance.randrange(1, 5 * part), turns) for kind in kinds]
    repositories = [Ecr(chance, f"registry-{number}/app", part) for number in range(targets)]

    await send_all(blobs, repositories, resources(limit), chance)


async def test_a_layer_that_can_be_read_again_is_not_stopped_by_one_that_can_not() -> None:
    chance = random.Random(1)
    for _ in range(12):
        blobs = [_blob("again", 160 * KiB, CapacityLimiter(1)), _blob("once", 60 * KiB, CapacityLimiter(1))]

        await send_all(blobs, [Ecr(chance, "registry/app", 20 * KiB)], resources(48 * KiB), chance)


async def test_layers_that_wait_for_their_registry_hold_no_memory() -> None:
    """Layers that wait for a turn at their registry hold no memory that those with a turn need."""
    data = [random.Random(number).randbytes(100 * KiB) for number in range(6)]
    blobs = {f"sha256:{sha256(each).hexdigest()}": each for each in data}
    chance = random.Random(1)
    async with running(RegistryServer(blobs=blobs)) as server:
        registry = SourceRegistry(host=server.host, plain_http=True, anonymous=True, connections=1)
        async with open_remote(registry, retry=QUICK) as remote:
            layers = [remote.blob("team/app", Descriptor(LAYER, Digest.parse(each), 100 * KiB)) for each in blobs]
            await send_all(layers, [Ecr(chance, "registry/app", 20 * KiB)], resources(64 * KiB), chance, pause=0)
    assert len(server.asked("GET", "/blobs/")) == 6


def _blob(kind: str, size: int, turns: CapacityLimiter) -> Blob:
    local = Bytes(random.Random(size).randbytes(size), AgainReader if kind == "again" else Reader)
    if kind == "far":
        return FarBytes(local, turns)
    return CompressedBlob(local, LAYER) if kind == "compressed" else local


async def _let_all_go_on() -> None:
    for _ in range(8):
        await checkpoint()


class Waiters:
    """Tasks that hold windows or parts of a budget until they are let go."""

    def __init__(self, budget: MemoryBudget, tasks: TaskGroup) -> None:
        self.budget, self.tasks = budget, tasks
        self.has: list[str] = []

    async def part(self, name: str, size: int) -> CancelScope:
        return await self._start(name, self._part, size)

    async def window(self, name: str) -> CancelScope:
        return await self._start(name, self._window)

    async def let_go(self, scope: CancelScope) -> None:
        scope.cancel()
        await _let_all_go_on()

    async def _start(
        self, name: str, hold: Callable[..., AbstractAsyncContextManager[object]], *size: int
    ) -> CancelScope:
        scope = CancelScope()

        async def held() -> None:
            with scope:
                async with hold(*size):
                    self.has.append(name)
                    await anyio.sleep_forever()

        self.tasks.start_soon(held)
        await _let_all_go_on()
        return scope

    @asynccontextmanager
    async def _part(self, size: int) -> AsyncIterator[None]:
        async with self.budget.account() as account:
            await account.take(size)
            yield

    @asynccontextmanager
    async def _window(self) -> AsyncIterator[None]:
        async with self.budget.window():
            yield


@asynccontextmanager
async def waiters(limit: int) -> AsyncIterator[Waiters]:
    budget = MemoryBudget(limit, 2)
    async with anyio.create_task_group() as tasks:
        yield Waiters(budget, tasks)
        tasks.cancel_scope.cancel()
    assert budget.held == 0


async def test_a_window_goes_before_parts_that_wait() -> None:
    async with waiters(48) as all_of_them:
        await all_of_them.part("first", 27)
        await all_of_them.part("second", 27)
        await all_of_them.window("window")

        assert all_of_them.has == ["first", "window"]


async def test_parts_leave_room_for_a_window() -> None:
    async with waiters(48) as all_of_them:
        await all_of_them.part("first", 40)
        await all_of_them.part("second", 7)
        await all_of_them.window("window")

        assert all_of_them.has == ["first", "window"]


async def test_windows_do_not_starve_a_part_that_waits() -> None:
    async with waiters(48) as all_of_them:
        scopes = [await all_of_them.window(f"window {number}") for number in range(24)]
        await all_of_them.part("part", 27)
        for number in range(24):
            await all_of_them.window(f"late window {number}")
        assert len(all_of_them.has) == 24
        for scope in scopes[:14]:
            await all_of_them.let_go(scope)
        assert all_of_them.has[24:] == ["part"]
        assert all_of_them.budget.held == 47


async def test_a_part_larger_than_the_budget_goes_alone() -> None:
    """A part larger than the budget goes while no other part is in memory; windows go one by one."""
    async with waiters(48) as all_of_them:
        small = await all_of_them.part("small", 5)
        await all_of_them.part("large", 60)
        await all_of_them.part("next", 5)
        assert all_of_them.has == ["small"]
        await all_of_them.let_go(small)
        first = await all_of_them.window("window")
        await all_of_them.window("another window")
        assert all_of_them.has == ["small", "large", "window"]
        await all_of_them.let_go(first)
        assert all_of_them.has[3:] == ["another window"]


async def test_who_gives_up_waiting_for_memory_lets_the_next_have_it() -> None:
    async with waiters(48) as all_of_them:
        await all_of_them.part("first", 30)
        large = await all_of_them.part("large", 40)
        await all_of_them.part("small", 10)
        assert all_of_them.has == ["first"]
        await all_of_them.let_go(large)
        assert all_of_them.has == ["first", "small"]


def test_memory_serves_another_part_once_no_view_of_it_is_left() -> None:
    """Not before: a connection may keep a view of bytes that it has yet to send."""
    budget = MemoryBudget(8 * MiB, 0)
    first = budget.buffer(MiB)
    first[:4] = b"1234"
    view = first[1:3]
    del first
    second = budget.buffer(MiB)
    second[:4] = b"abcd"
    assert view == b"23"
    del view
    assert budget.buffer(MiB)[:4] == b"1234"


async def test_memory_that_is_kept_for_other_parts_counts_against_the_limit() -> None:
    limit = 16 * MiB
    budget = MemoryBudget(limit, 0)
    tracemalloc.start()
    try:
        for size in (MiB, 2 * MiB, MiB + 1):
            views = []
            while budget.held + size <= limit:
                await budget.take(size)
                views.append(budget.buffer(size))
                assert tracemalloc.get_traced_memory()[0] <= limit + 3 * MiB
            held = budget.held
            views.clear()
            budget.give_back(held)
        while budget.held < limit:
            await budget.take(MiB)
        assert tracemalloc.get_traced_memory()[0] <= 2 * MiB
    finally:
        tracemalloc.stop()
