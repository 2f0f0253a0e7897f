"""Token buckets: what passes at which rate, in a time that jumps."""

from __future__ import annotations

from itertools import pairwise

import anyio
import anyio.lowlevel
import pytest

from asyncpush.events import Event, Limited
from asyncpush.http.token_bucket import LimitReporter, TokenBucket
from support.virtual_time import Time, in_virtual_time

RATE = 2_000_000
BLOCK = 512 * 1024
CALLERS = 8


@pytest.mark.parametrize("rate", [50_000, RATE, 50_000_000])
def test_thirty_seconds_carry_what_the_rate_allows(rate: int) -> None:
    """Within one per cent of the rate over half a minute; in a second never more than one grant more; to all alike."""

    async def main(time: Time) -> tuple[dict[int, int], list[int]]:
        bucket = TokenBucket(lambda: rate, smallest=16 * 1024, clock=time)
        passed: dict[int, int] = dict.fromkeys(range(CALLERS), 0)
        seconds = [0] * 31

        async def take(caller: int) -> None:
            while True:
                count = await bucket.take(BLOCK)
                passed[caller] += count
                seconds[int(time())] += count

        with anyio.move_on_after(30):
            async with anyio.create_task_group() as tg:
                for caller in passed:
                    tg.start_soon(take, caller)
        return passed, seconds[:30]

    passed, seconds = in_virtual_time(main)
    grant = max(16 * 1024, rate // 20)
    assert sum(passed.values()) == pytest.approx(30 * rate, rel=0.01)
    assert max(seconds) <= rate + grant
    assert max(passed.values()) - min(passed.values()) <= grant


def test_requests_start_one_by_one() -> None:
    async def main(time: Time) -> list[float]:
        bucket = TokenBucket(lambda: 5.0, clock=time)
        started = []
        for _ in range(11):
            await bucket.take(1)
            started.append(time())
        return started

    started = in_virtual_time(main)
    assert all(later - earlier == pytest.approx(0.2) for earlier, later in pairwise(started))


def test_a_new_rate_holds_for_what_waits_already() -> None:
    async def main(time: Time) -> list[float]:
        rates: list[float | None] = [0.001]
        bucket = TokenBucket(lambda: rates[0], clock=time)
        await bucket.take(1)
        passed = []

        async def take() -> None:
            await bucket.take(1)
            passed.append(time())

        async with anyio.create_task_group() as tg:
            for _ in range(3):
                tg.start_soon(take)
            await anyio.sleep(10)
            rates[0] = None
        return passed

    assert in_virtual_time(main) == [pytest.approx(10, abs=0.5)] * 3


def test_one_that_gives_up_lets_the_next_one_pass() -> None:
    async def main(time: Time) -> float:
        bucket = TokenBucket(lambda: 1.0, clock=time)
        await bucket.take(1)
        async with anyio.create_task_group() as tg:
            with anyio.CancelScope() as given_up:
                tg.start_soon(bucket.take, 1)
                await anyio.lowlevel.checkpoint()
                with anyio.move_on_after(0.5):
                    await bucket.take(1)
            assert not given_up.cancelled_caught
            await bucket.take(1)
        return time()

    assert in_virtual_time(main) == pytest.approx(2)


def test_what_is_given_back_passes_again() -> None:
    async def main(time: Time) -> float:
        bucket = TokenBucket(lambda: 100.0, smallest=100, clock=time)
        assert await bucket.take(100) == 100
        before = time()
        bucket.give_back(100)
        assert await bucket.take(100) == 100
        return time() - before

    assert in_virtual_time(main) == 0


def test_a_limit_is_reported_once_a_second() -> None:
    async def main(time: Time) -> list[Event]:
        events: list[Event] = []
        report = LimitReporter(events.append, lambda: Limited("bandwidth", 10.0, "user"), time)
        bucket = TokenBucket(lambda: 10.0, on_wait=report, clock=time)
        for _ in range(36):
            await bucket.take(1)
        return events

    assert in_virtual_time(main) == [Limited("bandwidth", 10.0, "user")] * 4


def test_nothing_is_reported_while_nothing_waits() -> None:
    async def main(time: Time) -> list[str]:
        waited: list[str] = []
        bucket = TokenBucket(lambda: None, on_wait=lambda: waited.append("waited"), clock=time)
        assert await bucket.take(BLOCK) == BLOCK
        return waited

    assert in_virtual_time(main) == []
