"""How fast requests may start: laws in a time that jumps, and throttled pushes through a relay."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import anyio
import botocore.session
import pytest
from aiohttp import web
from botocore.exceptions import ClientError
from hypothesis import example, given, settings
from hypothesis import strategies as st

import asyncpush
from asyncpush import AwsConfiguration, Settings
from asyncpush.ecr.quotas import QUOTAS
from asyncpush.ecr.rate_limit import OperationStatistics, Pace, RateLimiter
from asyncpush.ecr.regions import is_aws
from asyncpush.ecr.retry import RetryingSender
from asyncpush.emulator import Emulator
from asyncpush.errors import ServiceError
from asyncpush.events import Event, Limited, RequestDone, Retrying
from asyncpush.reference import RegistryName, parse_destination
from asyncpush.sources import open_source
from support.aws import REGION, aws
from support.events import Events
from support.images import Layout, layer_tar
from support.relay import NO_WAITS, Relay, passed, refused, relay_to
from support.virtual_time import Loop, Time, in_virtual_time

T = TypeVar("T")

AWS = "https://api.ecr.eu-west-1.amazonaws.com"
EMULATOR = "http://127.0.0.1:5000"
ROUNDING = 1e-3


def put_image(time: Time, url: str = AWS) -> RateLimiter:
    return Pace("ecr", url, clock=time).of("PutImage")


def rate_of(operation: RateLimiter) -> float:
    rate = operation.statistics().rate
    return math.inf if rate is None else rate


async def exhaust(operation: RateLimiter) -> list[float]:
    """Start requests until the next would have to wait; when they started."""
    started: list[float] = []
    with anyio.move_on_after(0):
        while True:
            started.append(await operation.acquire())
    return started


async def keep_asking(operation: RateLimiter, workers: int, one: Callable[[], Awaitable[None]], seconds: float) -> None:
    async def work() -> None:
        while True:
            await one()

    with anyio.move_on_after(seconds):
        async with anyio.create_task_group() as tg:
            for _ in range(workers):
                tg.start_soon(work)


class Meter:
    """A service that lets a number of requests pass each second, but for a share of them, and refuses the others."""

    def __init__(self, time: Time, quota: float, *, refuses: float = 0, seed: int = 0, latency: float = 0.05) -> None:
        self.refuses, self.chance, self.latency = refuses, random.Random(seed), latency
        self.quota = self.tokens = quota
        self.time, self.filled = time, time.now
        self.passed: list[float] = []
        self.refused: list[float] = []

    def __call__(self) -> bool:
        self.tokens = min(self.quota, self.tokens + (self.time.now - self.filled) * self.quota)
        self.filled = self.time.now
        if self.tokens < 1 or self.chance.random() < self.refuses:
            self.refused.append(self.time.now)
            return False
        self.tokens -= 1
        self.passed.append(self.time.now)
        return True

    async def ask(self, operation: RateLimiter) -> None:
        """One request, repeated until it passes."""
        while True:
            started = await operation.acquire()
            await anyio.sleep(self.latency * self.chance.uniform(0.7, 1.3))
            if self():
                return operation.note_success(started)
            operation.note_throttle(started)
            await anyio.sleep(0.02)


@pytest.mark.parametrize("service", ["ecr", "ecr-public"])
def test_quotas_are_of_operations_that_there_are(service: Any) -> None:
    assert set(QUOTAS[service]) <= set(botocore.session.Session().get_service_model(service).operation_names)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_no_more_requests_start_in_any_time_than_burst_and_rate_allow(data: st.DataObject) -> None:
    service = data.draw(st.sampled_from(sorted(QUOTAS)))
    name = data.draw(st.sampled_from(sorted(QUOTAS[service])))
    quota = QUOTAS[service][name]
    gap = st.sampled_from([0.0, 0.0, 0.0, 0.01, 0.1, 0.5, 1.5, 30.0])
    requests = data.draw(st.lists(st.tuples(gap, gap, st.integers(0, 3)), min_size=1, max_size=80))

    async def main(time: Time) -> None:
        operation = Pace(service, AWS, clock=time).of(name)
        starts: list[float] = []
        rates = [(0.0, 0.8 * quota)]

        async def one(latency: float, answer: int) -> None:
            started = await operation.acquire()
            starts.append(started)
            await anyio.sleep(latency)
            (operation.note_success if answer else operation.note_throttle)(started)
            rates.append((time.now, rate_of(operation)))

        async with anyio.create_task_group() as tg:
            for wait, latency, answer in requests:
                await anyio.sleep(wait)
                tg.start_soon(one, latency, answer)

        # How many may have started by now; rates change between two starts, so the sum is theirs.
        changes = [*rates, (math.inf, 0.0)]

        def allowed(first: float, last: float) -> float:
            spans = ((max(a, first), min(b, last), rate) for (a, rate), (b, _) in pairwise(changes))
            return max(10, quota / 5) + sum((b - a) * rate for a, b, rate in spans if b > a)

        assert rates == sorted(rates, key=lambda change: change[0])
        for first in range(len(starts)):
            for last in range(first, len(starts)):
                assert last - first + 1 <= allowed(starts[first], starts[last]) + ROUNDING

    in_virtual_time(main)


@pytest.mark.parametrize("service", ["ecr", "ecr-public"])
def test_what_an_image_of_nine_layers_asks_for_starts_at_once(service: Any) -> None:
    async def main(time: Time) -> None:
        for name in QUOTAS[service]:
            operation = Pace(service, AWS, clock=time).of(name)
            assert [await operation.acquire() for _ in range(9)] == [time.now] * 9

    in_virtual_time(main)
    assert all(0.8 * quota + max(10, quota / 5) <= max(18, quota) for quota in QUOTAS[service].values())


def test_a_line_goes_in_its_order_at_four_fifths_of_the_quota() -> None:
    async def main(time: Time) -> None:
        operation = put_image(time)
        order: list[tuple[int, float]] = []

        async def one(number: int) -> None:
            order.append((number, await operation.acquire()))

        async with anyio.create_task_group() as tg:
            for number in range(30):
                tg.start_soon(one, number)
            await anyio.sleep(1)
            # Who comes now finds a token every now and then, but a line as well.
            for number in range(30, 50):
                tg.start_soon(one, number)
                await anyio.sleep(0.01)
        assert [number for number, _ in order] == list(range(50))
        assert [start for _, start in order] == pytest.approx([0.0] * 10 + [k / 8 for k in range(1, 41)])

    in_virtual_time(main)


def test_nobody_passes_a_line_that_has_not_seen_its_tokens_yet() -> None:
    async def main(time: Time) -> None:
        operation = put_image(time)
        await exhaust(operation)
        order: list[int] = []

        async def one(number: int) -> None:
            await operation.acquire()
            order.append(number)

        async with anyio.create_task_group() as tg:
            for number in range(5):
                tg.start_soon(one, number)
            await anyio.sleep(0.01)
            time.now += 10
            await one(5)
        assert order == [0, 1, 2, 3, 4, 5]

    in_virtual_time(main)


def test_a_long_line_has_one_timer() -> None:
    async def main(time: Time) -> None:
        operation = put_image(time)
        await exhaust(operation)
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Loop)
        async with anyio.create_task_group() as tg:
            for _ in range(1000):
                tg.start_soon(operation.acquire)
            await anyio.sleep(0.01)
            loop.timers.clear()
            await anyio.sleep(10)
            assert len(loop.timers) <= 10 * 8 + 1
            assert operation.statistics().waiting == 1000 - 80
            tg.cancel_scope.cancel()
        assert operation.statistics().waiting == 0

    in_virtual_time(main)


@given(
    cancelled=st.dictionaries(st.integers(0, 19), st.floats(0, 3)),
)
@example(cancelled=dict.fromkeys(range(20), 0.05))
@example(cancelled={0: 0.05, 1: 0.05})
@settings(deadline=None)
def test_who_leaves_the_line_leaves_no_gap_in_it(cancelled: dict[int, float]) -> None:
    async def main(time: Time) -> None:
        operation = put_image(time)
        sent = len(await exhaust(operation))
        starts: list[tuple[int, float]] = []
        left: dict[int, float] = {}

        async def one(number: int) -> None:
            with anyio.move_on_after(cancelled.get(number, math.inf)) as scope:
                starts.append((number, await operation.acquire()))
            if scope.cancelled_caught:
                left[number] = time.now

        async with anyio.create_task_group() as tg:
            for number in range(20):
                tg.start_soon(one, number)
        assert left == pytest.approx({number: cancelled[number] for number in left}), "leaving takes no time"
        assert [number for number, _ in starts] == [number for number in range(20) if number not in left]
        assert [start for _, start in starts] == pytest.approx([(k + 1) / 8 for k in range(len(starts))], abs=1e-4)
        after = operation.statistics()
        assert (after.sent, after.waiting) == (sent + len(starts), 0)

    in_virtual_time(main)


def test_a_rate_that_is_not_used_does_not_grow() -> None:
    async def main(time: Time) -> None:
        operation = put_image(time)
        for _ in range(100):
            operation.note_success(await operation.acquire())
            await anyio.sleep(0.2)
        assert rate_of(operation) == 8

    in_virtual_time(main)


@pytest.mark.parametrize("quota", [2, 5, 10, 40, 100])
@pytest.mark.parametrize("url", [AWS, EMULATOR])
def test_whatever_the_quota_really_is_it_is_found_and_used(quota: int, url: str) -> None:
    async def main(time: Time) -> None:
        operation, meter = put_image(time, url), Meter(time, quota)
        await keep_asking(operation, 32, lambda: meter.ask(operation), 160)
        passed, refused = (len([when for when in times if when > 60]) for times in (meter.passed, meter.refused))
        assert passed > 0.85 * quota * 100
        assert refused < (0.1 if quota > 2 else 0.25) * passed

    in_virtual_time(main)


@pytest.mark.parametrize("share", [0.03, 0.1, 0.2, 0.4])
def test_what_is_refused_at_random_slows_nothing_else(share: float) -> None:
    async def main(time: Time) -> None:
        # 16 at once, which take a fifth of a second each: 80 a second get an answer.
        operation, meter = put_image(time, EMULATOR), Meter(time, math.inf, refuses=share, latency=0.2)
        await keep_asking(operation, 16, lambda: meter.ask(operation), 40)
        assert len(meter.passed) > 0.7 * 80 * (1 - share) * 40

    in_virtual_time(main)


@pytest.mark.parametrize(("url", "before"), [(EMULATOR, 0), (EMULATOR, 12), (AWS, 0), (AWS, 12)])
def test_a_quiet_time_before_the_first_throttle_slows_nothing(url: str, before: int) -> None:
    """Requests that come late, or slowly at first, find the limit as fast as those that come at once."""

    async def main(time: Time) -> None:
        operation, meter = put_image(time, url), Meter(time, 5)
        for _ in range(before):
            await meter.ask(operation)
            await anyio.sleep(5)
        await anyio.sleep(60)
        began = time.now
        async with anyio.create_task_group() as tg:
            for _ in range(100):
                tg.start_soon(meter.ask, operation)
        assert time.now - began < 1.25 * 100 / 5

    in_virtual_time(main)


def test_what_is_refused_at_random_hides_no_limit() -> None:
    async def main(time: Time) -> None:
        operation, meter = put_image(time, EMULATOR), Meter(time, 40, refuses=0.1)
        await keep_asking(operation, 32, lambda: meter.ask(operation), 60)
        assert len(meter.passed) > 0.7 * 0.9 * 40 * 60
        assert len(meter.refused) < 0.5 * len(meter.passed)

    in_virtual_time(main)


def test_a_limit_is_met_without_a_storm() -> None:
    async def main(time: Time) -> None:
        operation, meter = put_image(time, EMULATOR), Meter(time, 20)
        await keep_asking(operation, 64, lambda: meter.ask(operation), 10)
        assert len(meter.refused) < 200, "64 at once, each again at once, would be 10,000"
        assert len(meter.passed) > 0.7 * 20 * 10

    in_virtual_time(main)


def test_a_single_throttle_changes_nothing() -> None:
    async def main(time: Time) -> None:
        operation = put_image(time)
        operation.note_throttle(await operation.acquire())
        assert rate_of(operation) == 8

    in_virtual_time(main)


def test_the_rate_never_falls_below_one_a_second() -> None:
    async def main(time: Time) -> None:
        operation = put_image(time)
        for _ in range(200):
            operation.note_throttle(await operation.acquire())
        assert rate_of(operation) == 1
        assert operation.seconds_starved(0) == time.now

    in_virtual_time(main)


def test_an_account_that_others_use_up_for_a_while_is_soon_used_again() -> None:
    async def main(time: Time) -> None:
        operation, meter = put_image(time), Meter(time, 10)

        async def others() -> None:
            await anyio.sleep(30)
            meter.quota = meter.tokens = 1e-9
            await anyio.sleep(10)
            meter.quota = 10

        async with anyio.create_task_group() as tg:
            tg.start_soon(others)
            await keep_asking(operation, 32, lambda: meter.ask(operation), 80)
        assert len([when for when in meter.passed if 50 < when <= 80]) > 0.8 * 10 * 30

    in_virtual_time(main)


def test_operations_know_nothing_of_each_other() -> None:
    async def main(time: Time) -> None:
        paces = Pace("ecr", AWS, clock=time)
        put, part = paces.of("PutImage"), paces.of("UploadLayerPart")
        for _ in range(100):
            put.note_throttle(await put.acquire())
        assert len(await exhaust(part)) == 100
        assert [each.rate for each in paces.statistics()] == [1, 400]
        assert paces.of("PutImage") is put

    in_virtual_time(main)


def test_requests_to_v2_start_at_the_quota_that_they_use() -> None:
    async def main(time: Time) -> None:
        paces = Pace("ecr", AWS, quotas={"UploadLayerPart": 50}, clock=time)
        starts = {name: len(await exhaust(paces.of(name))) for name in ("MountBlob", "PatchBlobUpload")}
        assert starts == {"MountBlob": 20, "PatchBlobUpload": 10}
        assert [(each.operation, each.rate) for each in paces.statistics()] == [
            ("MountBlob", 80),
            ("PatchBlobUpload", 40),
        ]
        assert rate_of(paces.of("GetBlobUpload")) == math.inf

    in_virtual_time(main)


def test_an_endpoint_that_is_not_aws_has_no_limit_until_it_sets_one() -> None:
    async def main(time: Time) -> None:
        paces = Pace("ecr", EMULATOR, clock=time)
        for name in (*QUOTAS["ecr"], "CreateRepository"):
            assert [await paces.of(name).acquire() for _ in range(3000)] == [0.0] * 3000
        put = paces.of("PutImage")
        started = [await put.acquire() for _ in range(100)]
        for start in started:
            put.note_throttle(start)
        rates = {each.operation: each.rate for each in paces.statistics()}
        assert rates.pop("PutImage")
        assert set(rates.values()) == {None}

    in_virtual_time(main)


@pytest.mark.parametrize("host", [
    "api.ecr.eu-west-1.amazonaws.com", "ecr.us-east-1.api.aws", "ecr-fips.us-gov-west-1.amazonaws.com",
    "api.ecr.cn-north-1.amazonaws.com.cn", "ecr.cn-north-1.api.amazonwebservices.com.cn",
    "vpce-0123-abcd.api.ecr.eu-west-1.vpce.amazonaws.com:443", "API.ECR.EU-WEST-1.AMAZONAWS.COM.",
    "api.ecr.us-iso-east-1.c2s.ic.gov", "api.ecr.eusc-de-east-1.amazonaws.eu",
])  # fmt: skip
def test_a_vpc_endpoint_is_aws_own(host: str) -> None:
    assert is_aws(f"https://{host}/")


@pytest.mark.parametrize("url", [
    EMULATOR, "http://localhost:4566", "http://[::1]:80", "https://ecr.example.com", "https://localhost.localstack.cloud",
    "https://amazonaws.com.example.com", "https://fakeamazonaws.com", "https://example.com/api.aws", "https://api.aws@example.com",
])  # fmt: skip
def test_an_emulator_is_not(url: str) -> None:
    assert not is_aws(url)


async def test_a_connection_keeps_to_the_quotas_of_its_service() -> None:
    """A connection keeps to its service's quotas, unless it has another endpoint."""
    keys = AwsConfiguration(region=REGION, access_key_id="test", secret_access_key="test")
    public = RegistryName("ecr-public", "alias", "us-east-1", host="public.ecr.aws")
    found = []
    for registry, configuration in ((None, keys), (public, keys), (None, aws(EMULATOR))):
        async with asyncpush.connect(registry, aws=configuration) as connected:
            found.append([rate_of(connected.pace.of(name)) for name in ("InitiateLayerUpload", "DescribeImages")])
    assert found == [[80, math.inf], [8, math.inf], [math.inf, math.inf]]


def throttle(**headers: str) -> ServiceError:
    """An error as it comes from the wire."""
    meta: Any = {"HTTPStatusCode": 400, "HTTPHeaders": {name.replace("_", "-"): text for name, text in headers.items()}}
    error = ServiceError("PutImage", "ThrottlingException", "Rate exceeded", status=400)
    error.__cause__ = ClientError({"Error": {"Code": "ThrottlingException"}, "ResponseMetadata": meta}, "PutImage")
    return error


def call(*answers: Exception | str, max_attempts: int = 3, url: str = AWS) -> tuple[Any, float, list[Retrying]]:
    """Call with these answers, the last one for ever: what came of it, after how many seconds, and what was told."""
    events = Events()

    async def main(time: Time) -> tuple[Any, float]:
        remaining = list(answers)

        async def send() -> str:
            answer = remaining.pop(0) if len(remaining) > 1 else remaining[0]
            if isinstance(answer, Exception):
                raise answer
            return answer

        paces = Pace("ecr", url, clock=time)
        outcome: Any
        try:
            outcome = await RetryingSender(max_attempts, events, paces).call("PutImage", send)
        except asyncpush.RegistryError as error:
            outcome = error
        [after] = paces.statistics()
        assert after.retried == len(events.of(Retrying)) == after.sent - 1
        assert len(events.of(RequestDone)) == after.sent
        return outcome, time.now

    outcome, seconds = in_virtual_time(main)
    return outcome, seconds, events.of(Retrying)


def test_a_throttled_request_is_not_given_up_for_minutes() -> None:
    outcome, seconds, retried = call(*[throttle()] * 30, "done")
    assert (outcome, len(retried)) == ("done", 30)
    assert [event.attempt for event in retried] == list(range(1, 31))
    outcome, seconds, retried = call(throttle())
    assert isinstance(outcome, ServiceError)
    assert "Service Quotas" in str(outcome)
    assert len(retried) > 100
    assert 600 <= seconds < 700


def test_requests_that_were_refused_at_once_do_not_come_back_at_once() -> None:
    delays = [call(throttle(), "done")[2][0].delay for _ in range(50)]
    assert min(delays) < 0.4 * 0.02 < 0.7 * 0.02 < max(delays) <= 0.02


def test_throttles_and_failures_are_counted_apart() -> None:
    lost = ServiceError("PutImage", "ServerException", "", status=500)
    answers = [throttle(), lost, throttle(), throttle(), lost, throttle()]
    assert call(*answers, "done")[0] == "done"
    outcome, _, retried = call(*answers, lost, "done")
    assert outcome is lost
    assert len(retried) == len(answers)


def test_a_pause_is_as_long_as_the_answer_asks() -> None:
    for asked in (7, 90):
        _, _, [event] = call(throttle(retry_after=str(asked)), "done")
        assert asked < event.delay <= asked + 1
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)
    _, _, [event] = call(throttle(retry_after=later), "done")
    assert 90 < event.delay < 110
    for nonsense in ("-5", "soon", "nan", "inf", "1e9", "", "Mon, 99 Foo 20", "Mon, 01 Jan 2001 00:00:00 GMT"):
        _, _, [event] = call(throttle(retry_after=nonsense), "done")
        assert event.delay <= 1, nonsense
    for too_long in ("601", "9" * 400):
        outcome, _, retried = call(throttle(retry_after=too_long), "done")
        assert isinstance(outcome, ServiceError)
        assert retried == []


async def test_retry_after_is_read_from_a_real_answer(emulator: Emulator) -> None:
    async def later(request: web.Request, relay: Relay) -> web.StreamResponse:
        await request.read()
        return web.Response(status=503, headers={"Retry-After": "3600"})

    async with (
        relay_to(emulator.endpoint_url) as relay,
        asyncpush.connect(aws=aws(relay.url), settings=Settings(retry=NO_WAITS)) as registry,
    ):
        relay.plan("InitiateLayerUpload", *[later] * 2)
        with pytest.raises(ServiceError, match="503"):
            await registry.repository("team/app").begin_upload()
        assert relay.seen["InitiateLayerUpload"] == 1


async def test_throttled_manifests_delay_no_part_and_arrive_all(emulator: Emulator, tmp_path: Path) -> None:
    layout, count = Layout(), 8
    for number in range(count):
        layout.tag(layout.image(layer_tar(f"{number} a"), layer_tar(f"{number} b")), str(number))
    blobs, throttles = count * 3, 0
    throttled = refused("ThrottlingException", "Rate exceeded")

    async def until_all_parts_came(request: web.Request, relay: Relay) -> web.StreamResponse:
        nonlocal throttles
        if throttles >= 100 and relay.seen["UploadLayerPart"] == blobs:
            return await passed(request, relay)
        # A pace that all operations had in common could not come to this point.
        throttles += 1
        return await throttled(request, relay)

    events = Events()
    options = Settings(retry=NO_WAITS, create_repository=True, max_layers=2)
    async with (
        relay_to(emulator.endpoint_url) as relay,
        asyncpush.connect(aws=aws(relay.url), settings=options, emit=events) as registry,
        open_source(f"oci:{layout.write(tmp_path / 'layout')}", options) as source,
    ):
        relay.plan("PutImage", *[until_all_parts_came] * 100_000)
        images = [(image, parse_destination(f"team/app:{image.tag}")) for image in await source.images()]
        outcomes = await asyncpush.push_all(registry, images)
        after = {each.operation: each for each in registry.pace.statistics()}

    assert [getattr(outcome, "outcome", outcome) for outcome in outcomes] == ["pushed"] * count
    assert throttles >= 100
    assert {event.operation for event in events.of(Retrying)} == {"PutImage"}
    assert len(events.of(Retrying)) == throttles
    part, put = after["UploadLayerPart"], after["PutImage"]
    assert part == OperationStatistics("UploadLayerPart", blobs, 0, 0, 0, None)
    assert (put.sent, put.throttled, put.retried, put.waiting) == (count + throttles, throttles, throttles, 0)


async def test_an_image_that_was_there_is_present_however_often_it_was_throttled(
    emulator: Emulator, tmp_path: Path
) -> None:
    layout = Layout()
    source = f"oci:{layout.tag(layout.image(layer_tar('one')), '1').write(tmp_path / 'layout')}"
    async with (
        relay_to(emulator.endpoint_url) as relay,
        asyncpush.connect(aws=aws(relay.url), settings=Settings(retry=NO_WAITS, create_repository=True)) as registry,
    ):
        await asyncpush.push(registry, source, "team/app:1")
        repository = registry.repository("team/app")
        [stored] = await repository.find_images(tags=["1"], digests=())
        relay.plan("PutImage", *[refused("ThrottlingException")] * 3)
        assert stored.manifest is not None
        assert await repository.put_image(stored.manifest, "1") == "present"


def test_a_stated_quota_holds_at_any_endpoint() -> None:
    """It replaces ECR's default, and an emulator is not asked first what it takes."""

    async def main(time: Time) -> list[float]:
        pace = Pace("ecr", EMULATOR, quotas={"PutImage": 50}, clock=time)
        return [rate_of(pace.of(operation)) for operation in ("PutImage", "UploadLayerPart")]

    assert in_virtual_time(main) == [40, math.inf]


@pytest.mark.parametrize("service", ["ecr", "ecr-public"])
def test_quotas_have_codes_where_they_are_documented(service: str) -> None:
    pace = Pace(service, AWS, quotas={"PutImage": 25})  # type: ignore[arg-type] # a literal
    stated = pace.quota("PutImage")
    assert stated is not None
    assert (stated.rate, stated.is_stated) == (25, True)
    assert stated.code == ("L-AD52DFB2" if service == "ecr" else None)
    usual = pace.quota("UploadLayerPart")
    assert usual is not None
    assert (usual.rate, usual.is_stated) == (QUOTAS[service]["UploadLayerPart"], False)  # type: ignore[index]
    assert pace.quota("DescribeImages") is None


def test_requests_that_wait_tell_for_which_limit() -> None:
    """Once a second; a quota until ECR throttles below it, then its throttling."""

    async def main(time: Time) -> list[Event]:
        events: list[Event] = []
        operation = Pace("ecr", AWS, clock=time, emit=events.append).of("PutImage")
        for _ in range(34):
            await operation.acquire()
        quota = len(events)
        for _ in range(40):
            operation.note_throttle(await operation.acquire())
        return [*events[:quota], events[-1]]

    *first, last = in_virtual_time(main)
    assert first == [Limited("PutImage", 8.0, "quota", 10)] * 3
    assert isinstance(last, Limited)
    assert (last.reason, last.throttled > 0, last.rate < 8) == ("throttling", True, True)


@pytest.mark.parametrize("url", [AWS, EMULATOR])
def test_clients_that_share_a_quota_keep_within_it_together(url: str) -> None:
    """Each keeps to its share, at any endpoint, and tries for no more, since the others have the rest."""

    async def main(time: Time) -> Meter:
        meter = Meter(time, QUOTAS["ecr"]["PutImage"])
        async with anyio.create_task_group() as tg:
            for _ in range(4):
                operation = Pace("ecr", url, share=1 / 4, assumed=True, clock=time).of("PutImage")
                tg.start_soon(keep_asking, operation, 20, partial(meter.ask, operation), 300)
        return meter

    meter = in_virtual_time(main)
    assert not meter.refused
    assert len(meter.passed) / 300 == pytest.approx(8, rel=0.03), "four fifths of the quota"


def test_a_tiny_share_still_proceeds() -> None:
    async def main(time: Time) -> list[float]:
        operation = Pace("ecr", AWS, share=1 / 1000, clock=time).of("PutImage")
        return [await operation.acquire() for _ in range(3)]

    first, second, third = in_virtual_time(main)
    assert (second - first, third - second) == (pytest.approx(125), pytest.approx(125))
