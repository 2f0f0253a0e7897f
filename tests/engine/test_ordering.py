"""Parts of one upload: in order, two on their way at most, and early only where that can't go wrong for long."""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import AsyncIterator, Callable

import anyio
import pytest
from anyio.lowlevel import checkpoint

from asyncpush import Settings
from asyncpush.engine.ordering import OrderedSender, PipelineEstimator
from asyncpush.errors import InvalidLayerPartError, ServiceError, only_cause
from asyncpush.protocols import Part

MiB = 1024 * 1024


class Content:
    """The bytes of a part, which a weak reference can watch."""

    def read_at(self, _start: int, buffer: memoryview) -> memoryview:
        return buffer


def refused(last_valid: int | None) -> InvalidLayerPartError:
    error = InvalidLayerPartError("UploadLayerPart", "InvalidLayerPartException", "not after the last one")
    error.last_valid_byte = last_valid
    return error


class Ecr:
    """Takes parts in virtual time: each travels for a while, then waits for its answer; in order, or refused."""

    def __init__(self, *, transfer: float = 0.5, answer: float = 0.04) -> None:
        self.now = 0.0
        self.transfer, self.answer = transfer, answer
        self.overlap = PipelineEstimator(clock=lambda: self.now)
        self.stored = -1
        self.acknowledged: list[int] = []
        self.refusals: list[int] = []
        self.sent: list[int] = []
        self.on_their_way = 0
        self.most_on_their_way = 0
        self.slow: dict[int, float] = {}
        self.failures: dict[int, list[Exception]] = {}
        self._timers: list[tuple[float, int, anyio.Event]] = []
        self._numbers = itertools.count()

    async def send(self, part: Part, left: Callable[[], None]) -> None:
        self.on_their_way += 1
        self.sent.append(part.first)
        self.most_on_their_way = max(self.most_on_their_way, self.on_their_way)
        try:
            await self._sleep(self.transfer * part.size / (10 * MiB))
            left()
            await self._sleep(self.slow.get(part.first, self.answer))
            if (planned := self.failures.get(part.first)) and (failure := planned.pop(0)):
                raise failure
            if part.first != self.stored + 1:
                self.refusals.append(part.first)
                raise refused(self.stored)
            self.stored = part.last
        finally:
            self.on_their_way -= 1

    def _acknowledge(self, part: Part) -> None:
        self.acknowledged.append(part.first)

    async def _sleep(self, seconds: float) -> None:
        awake = anyio.Event()
        self._timers.append((self.now + seconds, next(self._numbers), awake))
        await awake.wait()

    async def push(self, *sizes: int) -> None:
        """Send parts of *sizes* (MiB), and let time pass while all wait for it."""
        with only_cause():
            async with anyio.create_task_group() as tg:
                done = anyio.Event()

                async def send_all() -> None:
                    await OrderedSender(self.send, self._acknowledge, self.overlap).send(_parts(sizes))
                    done.set()

                tg.start_soon(send_all)
                while not done.is_set():
                    for _ in range(10):
                        await checkpoint()
                    if self._timers:
                        first = min(self._timers)
                        self._timers.remove(first)
                        self.now = first[0]
                        first[2].set()


async def _parts(sizes: tuple[int, ...]) -> AsyncIterator[Part]:
    first = 0
    for size in sizes:
        last = first + size * MiB - 1
        yield Part(first, last, (), None, 0, "")
        first = last + 1


async def test_no_time_is_lost_between_parts_once_latency_is_known() -> None:
    """No time is lost between parts, once it is known how long answers take."""
    ecr = Ecr(transfer=0.5, answer=0.04)
    await ecr.push(*[10] * 20)
    assert math.isclose(ecr.now, 20 * 0.5 + 2 * 0.04)
    assert ecr.most_on_their_way == 2
    assert ecr.refusals == []
    assert ecr.acknowledged == [10 * MiB * number for number in range(20)]


@pytest.mark.parametrize(("transfer", "answer"), [(0.01, 0.001), (0.3, 0.2), (0.05, 5)])
async def test_parts_that_might_overtake_wait_for_the_one_before(transfer: float, answer: float) -> None:
    ecr = Ecr(transfer=transfer, answer=answer)
    await ecr.push(*[10] * 6)
    assert ecr.most_on_their_way == 1


async def test_a_short_last_part_waits_for_the_one_before() -> None:
    ecr = Ecr(transfer=0.5, answer=0.2)
    await ecr.push(10, 10, 10, 1)
    assert ecr.refusals == []
    assert math.isclose(ecr.now, 3 * 0.5 + 0.05 + 3 * 0.2)


async def test_what_one_layer_has_learnt_helps_the_next() -> None:
    ecr = Ecr(transfer=0.5, answer=0.04)
    await ecr.push(10, 10)
    ecr.stored, began = -1, ecr.now
    await ecr.push(10, 10)
    assert math.isclose(ecr.now - began, 2 * 0.5 + 0.04)


async def test_a_part_refused_as_early_is_sent_again_after_its_predecessor() -> None:
    """A part that was refused because it arrived early is sent again after its predecessor."""
    ecr = Ecr(transfer=0.5, answer=0.04)
    await ecr.push(10, 10)
    ecr.stored, ecr.slow = -1, {0: 3}
    await ecr.push(10, 10, 10)
    assert ecr.refusals == [10 * MiB]
    assert ecr.stored == 30 * MiB - 1
    assert ecr.acknowledged[2:] == [0, 10 * MiB, 20 * MiB]
    ecr.stored, ecr.slow, ecr.most_on_their_way = -1, {}, 0
    await ecr.push(*[10] * 60)
    assert ecr.most_on_their_way == 1


async def test_one_slow_answer_is_remembered_for_a_while_and_not_for_ever() -> None:
    ecr = Ecr(transfer=0.5, answer=0.04)
    ecr.overlap.answered(1.0)
    await ecr.push(*[10] * 4)
    assert ecr.most_on_their_way == 1
    ecr.stored = -1
    await ecr.push(*[10] * 20)
    assert ecr.most_on_their_way == 2


async def test_after_a_refusal_nothing_is_early_for_a_hundred_parts() -> None:
    ecr = Ecr(transfer=0.5, answer=0.04)
    ecr.overlap.refused()
    await ecr.push(*[10] * 100)
    assert ecr.most_on_their_way == 1
    ecr.stored = -1
    await ecr.push(*[10] * 3)
    assert ecr.most_on_their_way == 2


CODES = ("InvalidLayerPartException", "InvalidParameterException", "UploadNotFoundException", "ValidationException")


@pytest.mark.parametrize("code", CODES)
async def test_whatever_the_code_a_refused_early_part_follows_and_is_sent_again(code: str) -> None:
    ecr = Ecr(transfer=0.5, answer=0.04)
    ecr.overlap.answered(0.04)
    ecr.failures[10 * MiB] = [ServiceError("UploadLayerPart", code, "not now")]
    await ecr.push(10, 10, 10)
    assert ecr.acknowledged == [0, 10 * MiB, 20 * MiB]
    assert ecr.sent == [0, 10 * MiB, 20 * MiB, 10 * MiB, 20 * MiB]  # the third was early as well


async def test_a_part_that_was_not_early_is_sent_once_whatever_it_is_refused_for() -> None:
    ecr = Ecr(transfer=0.5, answer=0.04)
    ecr.overlap.answered(0.04)
    ecr.failures[0] = [ServiceError("UploadLayerPart", "InvalidParameterException", "never")]
    with pytest.raises(ServiceError, match="never"):
        await ecr.push(10, 10)
    assert ecr.sent.count(0) == 1


def test_two_refusals_in_a_row_end_it_for_the_run() -> None:
    overlap = PipelineEstimator(clock=lambda: 0.0)

    def pays(parts: int) -> bool:
        for _ in range(parts):
            overlap.answered(0.01)
        return overlap.worthwhile(10, MiB, MiB)

    overlap.refused()
    assert pays(100)
    overlap.answered(0.01, early=True)
    overlap.refused()
    assert pays(100)
    overlap.refused()
    assert not pays(10_000)


async def test_nothing_is_early_where_it_is_not_allowed() -> None:
    ecr = Ecr(transfer=0.5, answer=0.04)
    ecr.overlap = PipelineEstimator(allowed=False)
    await ecr.push(*[10] * 6)
    assert ecr.most_on_their_way == 1
    assert not Settings().early_parts


async def test_a_part_that_is_refused_although_it_was_not_early_fails_the_upload() -> None:
    ecr = Ecr()
    ecr.failures[10 * MiB] = [refused(3)]
    with pytest.raises(InvalidLayerPartError):
        await ecr.push(10, 10, 10)
    assert ecr.acknowledged == [0]


async def test_a_part_that_is_refused_twice_fails_the_upload() -> None:
    ecr = Ecr()
    ecr.failures[20 * MiB] = [refused(3), refused(3)]
    with pytest.raises(InvalidLayerPartError):
        await ecr.push(10, 10, 10)


@pytest.mark.parametrize("further", [0, 10 * MiB])
async def test_a_refused_part_that_ecr_has_already_counts_as_sent(further: int) -> None:
    ecr = Ecr(transfer=0.5, answer=0.04)
    ecr.overlap.answered(0.04)
    ecr.failures[0] = [refused(10 * MiB - 1 + further)]
    ecr.failures[10 * MiB] = [refused(20 * MiB - 1)]
    await ecr.push(10, 10)
    assert sorted(ecr.acknowledged) == [0, 10 * MiB]


async def test_a_cursor_beyond_all_that_was_sent_fails_the_upload() -> None:
    ecr = Ecr()
    ecr.failures = {0: [refused(30 * MiB - 1)], 10 * MiB: [refused(30 * MiB - 1)]}
    with pytest.raises(InvalidLayerPartError):
        await ecr.push(10, 10)


async def test_a_part_that_ecr_has_is_not_held_while_the_next_one_is_made() -> None:
    held: list[weakref.ref[Content]] = []
    acknowledged = anyio.Event()

    def part(first: int) -> Part:
        content = Content()
        held.append(weakref.ref(content))
        return Part(first, first + MiB - 1, (), content, 0, "")

    async def parts() -> AsyncIterator[Part]:
        yield part(0)
        await acknowledged.wait()
        await checkpoint()
        assert held[0]() is None
        yield part(MiB)

    async def send(part: Part, left: Callable[[], None]) -> None:
        left()

    await OrderedSender(send, lambda _: acknowledged.set(), PipelineEstimator()).send(parts())
    assert len(held) == 2


async def test_a_failure_stops_the_part_behind_it_and_arrives_alone() -> None:
    ecr = Ecr(transfer=0.5, answer=0.04)
    ecr.overlap.answered(0.04)
    ecr.failures[0] = [ServiceError("UploadLayerPart", "KmsException", "no key")]
    with pytest.raises(ServiceError, match="no key"):
        await ecr.push(10, 10, 10)
    assert ecr.on_their_way == 0
    assert ecr.acknowledged == []
