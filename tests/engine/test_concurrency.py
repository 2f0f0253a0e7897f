"""Layers in flight: more while more are faster, no more than allowed, fewer when more were for nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given
from hypothesis import strategies as st

from asyncpush.engine.concurrency import FIRST_SLOTS, AdaptiveLimiter

MiB = 1024 * 1024


class Network:
    """Gives each slot a rate, up to what all of them may have together; time passes with each part."""

    def __init__(self, most: int = 64, *, each: float = 30 * MiB, together: float = float("inf")) -> None:
        self.now = 0.0
        self.slots = AdaptiveLimiter(most, clock=lambda: self.now)
        self.each, self.together = each, together

    def acknowledge(self, parts: int, size: int = 10 * MiB) -> None:
        for _ in range(parts):
            self.now += size / min(self.each * self.slots.taken, self.together)
            self.slots.acknowledged(size)


@asynccontextmanager
async def many_layers(slots: AdaptiveLimiter, count: int = 200) -> AsyncIterator[None]:
    async def layers() -> None:
        while True:
            async with slots.hold():
                while slots.taken <= slots.count:
                    await checkpoint()

    async with anyio.create_task_group() as tg:
        for _ in range(count):
            tg.start_soon(layers)
        await checkpoint()
        yield
        tg.cancel_scope.cancel()


async def grow(network: Network, parts: int) -> None:
    for _ in range(parts):
        network.acknowledge(1)
        await checkpoint()  # those that got a slot take it
        await checkpoint()


async def test_there_are_few_slots_at_first_and_never_more_than_allowed() -> None:
    assert (AdaptiveLimiter(1).count, AdaptiveLimiter(5).count, AdaptiveLimiter(500).count) == (1, 5, FIRST_SLOTS)


async def test_slots_grow_to_the_most_while_each_of_them_adds_speed() -> None:
    network = Network(100)
    async with many_layers(network.slots):
        await grow(network, 1000)
        assert network.slots.count == network.slots.taken == 100


async def test_slots_that_add_no_speed_are_taken_back() -> None:
    network = Network(64, together=8 * 30 * MiB)
    async with many_layers(network.slots):
        await grow(network, 300)
        assert network.slots.count == FIRST_SLOTS


async def test_slots_stop_where_the_network_ends() -> None:
    network = Network(500, together=40 * 30 * MiB)
    async with many_layers(network.slots):
        await grow(network, 3000)
        assert 30 <= network.slots.count <= 80


async def test_a_network_that_becomes_faster_is_noticed() -> None:
    network = Network(64, together=8 * 30 * MiB)
    async with many_layers(network.slots):
        await grow(network, 300)
        network.together = float("inf")
        await grow(network, 60 * FIRST_SLOTS)
        assert network.slots.count == 64


async def test_small_layers_whose_bytes_hardly_count_get_more_slots_as_well() -> None:
    network = Network(64)
    async with many_layers(network.slots):
        size = 10 * MiB
        for _ in range(200):
            network.now += 0.1 / network.slots.taken  # a request's time, whatever its size
            network.slots.acknowledged(size)
            size = max(1000, int(size * 0.95))
            await checkpoint()
            await checkpoint()
        assert network.slots.count == 64


async def test_slots_that_nobody_waits_for_are_not_opened() -> None:
    network = Network(64)
    async with many_layers(network.slots, count=FIRST_SLOTS):
        await grow(network, FIRST_SLOTS // 2)
        assert network.slots.count == FIRST_SLOTS


async def test_a_slot_is_free_again_when_its_layer_fails() -> None:
    slots = AdaptiveLimiter(1)
    with pytest.raises(ValueError, match="broken"):
        async with slots.hold():
            raise ValueError("broken")
    assert slots.taken == 0
    async with slots.hold():
        assert slots.taken == 1


@given(st.integers(1, 40), st.lists(st.tuples(st.floats(0, 10), st.integers(0, 20 * MiB)), max_size=400))
async def test_there_are_always_between_one_slot_and_the_most(most: int, parts: list[tuple[float, int]]) -> None:
    now = 0.0
    slots = AdaptiveLimiter(most, clock=lambda: now)
    async with many_layers(slots, 50):
        for seconds, size in parts:
            now += seconds
            slots.acknowledged(size)
            assert 1 <= slots.count <= most


class Holders:
    """Layers that ask for a slot, hold it until they are let go, and remember who came when."""

    def __init__(self, slots: AdaptiveLimiter, tasks: anyio.abc.TaskGroup) -> None:
        self.slots, self.tasks = slots, tasks
        self.held: list[str] = []
        self._done: dict[str, anyio.Event] = {}

    async def ask(self, name: str, size: int) -> None:
        self._done[name] = anyio.Event()
        self.tasks.start_soon(self._hold, name, size)
        await checkpoint()
        await checkpoint()

    async def let_go(self, name: str) -> None:
        self._done[name].set()
        for _ in range(4):
            await checkpoint()

    async def _hold(self, name: str, size: int) -> None:
        async with self.slots.hold(size):
            self.held.append(name)
            await self._done[name].wait()


@asynccontextmanager
async def holders(slots: AdaptiveLimiter) -> AsyncIterator[Holders]:
    async with anyio.create_task_group() as tasks:
        yield Holders(slots, tasks)
        tasks.cancel_scope.cancel()


async def test_the_largest_layer_that_waits_has_the_next_slot() -> None:
    async with holders(AdaptiveLimiter(1)) as layers:
        await layers.ask("first", 2 * MiB)
        for name, size in (("small one", 3 * MiB), ("large one", 900 * MiB), ("middle one", 30 * MiB)):
            await layers.ask(name, size)
        for name in ("first", "large one", "middle one"):
            await layers.let_go(name)

        assert layers.held == ["first", "large one", "middle one", "small one"]


async def test_a_share_of_the_slots_is_for_small_layers_while_they_wait() -> None:
    async with holders(AdaptiveLimiter(8, first=8)) as layers:
        for number in range(20):
            await layers.ask(f"large {number}", 100 * MiB)
        for number in range(4):
            await layers.ask(f"small {number}", 5_000)
        for number in range(4):
            await layers.let_go(f"large {number}")

        assert layers.held[8:] == ["small 0", "small 1", "large 8", "large 9"]


async def test_who_gives_up_waiting_leaves_its_place_to_the_next() -> None:
    slots = AdaptiveLimiter(1)
    async with holders(slots) as layers:
        await layers.ask("first", 2 * MiB)
        for size in (0, 900 * MiB):
            with anyio.move_on_after(0):
                async with slots.hold(size):
                    raise AssertionError("there was no slot")
        await layers.ask("second", 3 * MiB)
        await layers.let_go("first")

        assert layers.held == ["first", "second"]
        assert slots.taken == 1


class Counted(int):
    """A size that counts how often it is compared."""

    comparisons = 0

    def __neg__(self) -> Counted:
        return Counted(-int(self))

    def __lt__(self, other: int) -> bool:
        Counted.comparisons += 1
        return int(self) < int(other)

    def __eq__(self, other: object) -> bool:
        Counted.comparisons += 1
        return int(self) == other

    __hash__ = int.__hash__


@pytest.mark.parametrize("size", [0, 2 * MiB])
async def test_who_gives_up_waiting_is_not_looked_for_among_all_that_wait(size: int) -> None:
    async def hold(slots: AdaptiveLimiter, size: int) -> None:
        async with slots.hold(size):
            raise AssertionError("there was no slot")

    slots, Counted.comparisons = AdaptiveLimiter(1), 0
    async with slots.hold(), anyio.create_task_group() as tasks:
        for number in range(300):
            tasks.start_soon(hold, slots, Counted(size + number))
        await checkpoint()
        await checkpoint()
        tasks.cancel_scope.cancel()

    assert Counted.comparisons < 300 * 100
    assert slots.taken == 0
