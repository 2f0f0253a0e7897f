"""How long a silent host is waited for: laws in a time that jumps."""

from __future__ import annotations

import anyio
import pytest

from asyncpush.ecr.rate_limit import Pace
from asyncpush.ecr.retry import RetryingSender
from asyncpush.errors import ConnectionFailedError
from asyncpush.events import ignore
from asyncpush.http.retry import HostBackoff, SilenceLimit
from asyncpush.settings import RetryPolicy, Settings
from support.virtual_time import Time, in_virtual_time


class Host:
    """A host that is silent between two times, and how often it is asked."""

    def __init__(self, time: Time, silent: tuple[float, float], *, takes: float = 0.0, max_outage: float = 300) -> None:
        self.time, self.silent, self.takes = time, silent, takes
        self.known = HostBackoff(RetryPolicy(outage=max_outage), clock=time)
        self.asked: list[float] = []

    async def ask(self) -> float:
        """One request, until it has an answer; when that was."""
        silence, failed = SilenceLimit(clock=self.time), None
        while True:
            async with self.known.asking(failed):
                began = self.time.now
                self.asked.append(began)
                await anyio.sleep(self.takes)
                if not self.silent[0] <= began < self.silent[1]:
                    self.known.note_answer()
                    return self.time.now
            failed = ConnectionFailedError("no answer")
            delay = silence.wait(self.known, began)
            if delay is None:
                raise failed
            await anyio.sleep(delay)

    async def ask_all(self, many: int) -> list[float | None]:
        """Many requests at once; None for those that are given up."""
        ends: list[float | None] = []

        async def one() -> None:
            try:
                ends.append(await self.ask())
            except ConnectionFailedError:
                ends.append(None)

        async with anyio.create_task_group() as tg:
            for _ in range(many):
                tg.start_soon(one)
        return ends


@pytest.mark.parametrize("seconds", [5, 17, 120, 250])
def test_an_outage_of_minutes_is_waited_out_by_one_request_for_all(seconds: float) -> None:
    async def main(time: Time) -> None:
        host = Host(time, (1, 1 + seconds))
        await host.ask()
        await anyio.sleep(1)
        ends = await host.ask_all(100)
        assert all(end is not None and end <= 1 + seconds + 21 for end in ends), "waits are capped at 20 seconds"
        # Those that were under way, one at a time, and each once it is over.
        assert len(host.asked) <= 1 + 100 + 40 + 100

    in_virtual_time(main)


@pytest.mark.parametrize("takes", [0, 10, 90])
def test_an_outage_is_given_up_in_time_by_all_at_once(takes: float) -> None:
    async def main(time: Time) -> None:
        host = Host(time, (1, 10_000), takes=takes)
        host.known.note_answer()
        await anyio.sleep(1)
        assert await host.ask_all(50) == [None] * 50
        assert 100 < time.now <= 1 + 300
        before = len(host.asked)
        assert await host.ask_all(50) == [None] * 50
        assert len(host.asked) == before + 50, "each that comes later has one try"
        host.silent = (1, time.now + 40)
        host.known.renew()
        assert None not in await host.ask_all(50)

    in_virtual_time(main)


def test_who_is_cancelled_holds_up_nobody_else() -> None:
    async def main(time: Time) -> None:
        host = Host(time, (1, 60), takes=5)
        host.known.note_answer()
        await anyio.sleep(1)
        async with anyio.create_task_group() as tg:
            for _ in range(20):
                tg.start_soon(host.ask)
            await anyio.sleep(30)
            tg.cancel_scope.cancel()
        assert None not in await host.ask_all(20)

    in_virtual_time(main)


def test_a_request_that_is_never_answered_ends_though_others_are() -> None:
    async def main(time: Time) -> None:
        host = HostBackoff(clock=time)
        silence = SilenceLimit(clock=time)
        tries = 0
        host.note_answer()
        while (delay := silence.wait(host, time.now)) is not None:
            tries += 1
            host.note_answer()
            await anyio.sleep(delay)
        assert 15 < tries < 100
        assert 250 < time.now <= 300

    in_virtual_time(main)


@pytest.mark.parametrize(("takes", "tries"), [(90, 2), (20, 3)])
def test_one_lost_answer_does_not_end_the_first_request(takes: float, tries: int) -> None:
    """A host that has never answered has a minute, and a second try however long the first one took."""

    async def main(time: Time) -> None:
        host = Host(time, (0, 10_000), takes=takes)
        with pytest.raises(ConnectionFailedError):
            await host.ask()
        assert len(host.asked) == tries

    in_virtual_time(main)


def test_a_rate_sends_no_requests_during_an_outage() -> None:
    """A rate that lets requests pass during an outage sends none of them."""

    async def main(time: Time) -> None:
        host = HostBackoff(clock=time)
        retries = RetryingSender(
            3, ignore, Pace("ecr", "https://api.ecr.eu-west-1.amazonaws.com", clock=time), host=host
        )
        host.note_answer()
        sent: list[float] = []

        async def send() -> None:
            sent.append(time.now)
            if 2 <= time.now < 60:
                raise ConnectionFailedError("no answer")

        async with anyio.create_task_group() as tg:
            for _ in range(100):
                tg.start_soon(retries.call, "PutImage", send)
        assert len([when for when in sent if 2 <= when < 60]) < 30, "8 a second may start"

    in_virtual_time(main)


def test_the_policy_for_a_host_is_that_of_the_settings_with_their_outage() -> None:
    settings = Settings(retry=RetryPolicy(stall=1, outage=9), max_outage=7)

    assert RetryPolicy.of(settings) == RetryPolicy(stall=1, outage=7)
    assert RetryPolicy.of(Settings()) == RetryPolicy()
