"""What holds a migration back when it is told to: failures, request rates, limits on pulls; and its forecast."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import pytest
from aiohttp import web

from asyncpush.cli.forecast import forecast_document, forecast_lines
from asyncpush.cli.migrate import failed_lines
from asyncpush.errors import SourceNotFoundError, TooManyFailuresError, UsageError
from asyncpush.http.token_bucket import TokenBucket
from asyncpush.migrate.forecast import Forecast, LimitForecast, PullForecast, RegistryForecast
from asyncpush.migrate.ledger import Options
from support.images import at
from support.migrations import Bench, layer, reasons

pytestmark = pytest.mark.anyio

ENTRIES = 40
PLATFORMS = ("linux/amd64", "linux/arm64")


async def test_no_image_is_begun_after_too_many_have_failed(here: Bench) -> None:
    """What was not tried is counted, listed, and done by the next run, which resumes."""
    path = here.plan(*({"from": f"team/app-{number}", "tags": ["1"]} for number in range(ENTRIES)))
    here.hold("team/app-0", "1", layer(0))

    report = await here.run(path, max_failures=3)

    assert isinstance(report.stopped, TooManyFailuresError)
    tried = [result for result in report.failed if isinstance(result.error, SourceNotFoundError)]
    assert 3 <= len(tried) < ENTRIES
    pushed = Counter(result.outcome for result in report.results)["pushed"]
    assert len(report.not_tried) == ENTRIES - len(tried) - pushed
    lines = failed_lines(report)
    assert len(lines) == len(tried) + len(report.not_tried)
    assert not any(line.startswith("#") for line in lines)

    for number in range(ENTRIES):
        here.hold(f"team/app-{number}", "1", layer(number))
    after = await here.run(path, max_failures=3)
    assert after.resumed
    assert not after.failed
    assert len(after.results) == ENTRIES


async def test_fewer_failures_than_the_limit_stop_nothing(here: Bench) -> None:
    for number in range(5):
        here.hold("team/app", str(number), layer(number))
    path = here.plan({"from": "team/app", "tags": ["missing", "0", "1", "2", "3", "4"]})

    report = await here.run(path, max_failures=2)

    assert report.stopped is None
    assert Counter(result.outcome for result in report.results) == {"pushed": 5, "failed": 1}


@pytest.mark.parametrize("number", [0, -1])
async def test_a_limit_of_no_failures_is_refused(number: int) -> None:
    with pytest.raises(UsageError, match="--max-failures"):
        Options(max_failures=number)


@pytest.mark.parametrize("mounts", [True, False])
async def test_a_forecast_has_the_requests_of_the_run(here: Bench, mounts: bool) -> None:
    """Of two repositories that share a layer, with an index and an alias; with mounts and without."""
    if mounts:
        await here.mounting()
    base = layer(1)
    for number in range(3):
        for repository in ("one", "two"):
            here.hold(f"team/{repository}", str(number), base, layer(number + 10))
    children = [here.layout.image(base, layer(20 + number)) for number in range(2)]
    index = here.layout.index(*(at(child, name) for child, name in zip(children, PLATFORMS, strict=True)))
    for tag in ("3", "latest"):
        here.source.hold(here.layout, index, "team/one", tag)
    path = here.plan({"from": "team/one", "referrers": False}, {"from": "team/two", "referrers": False})

    dry = await here.run(path, dry=True)
    report = await here.run(path)

    assert not reasons(report)
    assert dry.forecast is not None
    [registry] = dry.forecast.registries
    amounts = {limit.name: limit.amount for limit in registry.limits}
    assert amounts["PutImage"] == report.requests["PutImage"] == 3 + 3 + 2 + 2
    begun = report.requests["InitiateLayerUpload"] + report.requests.get("MountBlob", 0)
    assert amounts["InitiateLayerUpload"] == begun
    for operation in ("UploadLayerPart", "CompleteLayerUpload"):
        assert amounts[operation] == report.requests[operation]
    assert (registry.blobs_mounted > 0) == mounts
    sent = sum(result.bytes_sent for result in dry.results)
    assert (sent, report.forecast) == (report.sent, None)
    assert dry.forecast.transfer == LimitForecast("bytes", round(sent * 4 / 3), 100_000_000, "assumed")


async def test_a_second_dry_run_has_nothing_to_send(here: Bench) -> None:
    here.hold("team/app", "1", layer(1))
    path = here.plan({"from": "team/app"})
    await here.run(path)

    dry = await here.run(path, dry=True, journal=False)

    assert dry.forecast is not None
    assert {limit.name for limit in dry.forecast.registries[0].limits} <= {"BatchGetImage"}
    assert dry.forecast.transfer.amount == 0


async def test_quotas_of_the_plan_are_those_of_the_forecast(here: Bench) -> None:
    here.hold("team/app", "1", layer(1))
    target = {"region": "eu-west-1", "endpoint_url": here.emulator.endpoint_url, "quotas": {"PutImage": 50}}
    plan = here.plan({"from": "team/app"}, quotas={"PutImage": 20, "UploadLayerPart": 30}, targets={"here": target})

    dry = await here.run(plan, dry=True)

    assert dry.forecast is not None
    limits = {limit.name: (limit.rate, limit.basis) for limit in dry.forecast.registries[0].limits}
    assert limits["PutImage"] == (50, "plan")
    assert limits["UploadLayerPart"] == (30, "plan")
    assert limits["CompleteLayerUpload"] == (100, "default")


async def test_a_registry_that_counts_pulls_is_asked_by_head(here: Bench) -> None:
    """Three tags of one image are one pull; what is left is in the forecast, and too little of it is a warning."""
    image = here.hold("hub/app", "1", layer(1))
    for tag in ("1.0", "latest"):
        here.source.hold(here.layout, image, "hub/app", tag)
    for method in ("GET", "HEAD"):

        @here.source.rule(method, "/v2/")
        async def _(request: web.Request) -> web.StreamResponse:
            answer = here.source.regular(request)
            for name, value in (("Limit", "100;w=21600"), ("Remaining", "0;w=21600")):
                answer.headers[f"RateLimit-{name}"] = value
            answer.headers["Docker-RateLimit-Source"] = "203.0.113.7"
            return answer

    dry = await here.run(here.plan({"from": "hub/app", "referrers": False}), dry=True)

    assert len(here.source.asked("HEAD", "/manifests/")) == 3
    assert len(here.source.asked("GET", "/manifests/")) == 1
    assert dry.forecast is not None
    assert dry.forecast.pulls == (PullForecast(here.source.host, "100 requests in 6 hours", 0, 1),)
    assert any("WARNING: the run needs 1" in line for line in forecast_lines(dry.forecast))


async def test_other_limits_are_not_of_pulls(here: Bench) -> None:
    """A registry that counts all requests gets no HEAD that saves none."""
    here.hold("team/app", "1", layer(1))

    @here.source.rule("GET", "/v2/")
    async def _(request: web.Request) -> web.StreamResponse:
        answer = here.source.regular(request)
        answer.headers.update({"RateLimit-Limit": "100;w=60", "RateLimit-Remaining": "9;w=60"})
        return answer

    dry = await here.run(here.plan({"from": "team/app", "referrers": False}), dry=True)

    assert not here.source.asked("HEAD")
    assert dry.forecast is not None
    assert dry.forecast.pulls == ()


def forecast(*limits: LimitForecast, transfer: int = 0, basis: Literal["assumed", "option"] = "option") -> Forecast:
    address = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
    registry = RegistryForecast(address, "eu-west-1", "ecr", limits, 0, 0)
    return Forecast((registry,), LimitForecast("bytes", transfer, 100_000_000, basis), (), 5.0)


PUTS = LimitForecast("PutImage", 50_000, 10, "default", "L-AD52DFB2")
UNKNOWN = LimitForecast("PutImage", 50_000, 10, "default")
BEGINS = LimitForecast("InitiateLayerUpload", 100_000, 100, "default", "L-95B28F8D")


def test_the_longest_limit_binds() -> None:
    found = forecast(PUTS, BEGINS, transfer=10**10)
    assert (found.binding, found.seconds) == (PUTS, 5 + 30 + (50_000 - 240) / 10)
    assert forecast_lines(found)[0] == "forecast: about 1:23:31; PutImage binds"
    assert forecast_document(found)["binding"] == "PutImage"
    assert forecast(PUTS, transfer=10**12).binding == LimitForecast("bytes", 10**12, 100_000_000, "option")
    assert forecast_lines(forecast()) == ["forecast: nothing to send"]


@pytest.mark.parametrize(
    ("limits", "transfer", "words"),
    [
        ((PUTS, BEGINS), 0, "--quota-code L-AD52DFB2 --desired-value 50 "),
        ((PUTS,), 0, "--quota-code L-AD52DFB2 --desired-value 100 "),
        ((PUTS,), 4_900 * 10**8, "--quota-code L-AD52DFB2 --desired-value 11 "),
        (
            (LimitForecast("PutImage", 50_000, 10, "default"),),
            0,
            "list-service-quotas --service-code ecr --region eu-west-1",
        ),
    ],
)
def test_a_higher_quota_is_suggested_as_far_as_it_helps(
    limits: tuple[LimitForecast, ...], transfer: int, words: str
) -> None:
    command = forecast(*limits, transfer=transfer).raise_quota
    assert command is not None
    assert words in command


@pytest.mark.parametrize(("amount", "seconds"), [(0, 0), (80, 10), (240, 30), (250, 31), (50_240, 5030)])
def test_a_quota_is_used_with_caution_at_first(amount: int, seconds: float) -> None:
    assert LimitForecast("PutImage", amount, 10, "plan").seconds == pytest.approx(seconds)
    assert LimitForecast("bytes", amount, 10, "option").seconds == pytest.approx(amount / 10)


def test_a_short_run_needs_no_higher_quota() -> None:
    short = forecast(LimitForecast("PutImage", 50, 10, "default", "L-AD52DFB2"))
    assert short.raise_quota is not None
    assert not any("aws service-quotas" in line for line in forecast_lines(short))
    assert any("aws service-quotas" in line for line in forecast_lines(forecast(PUTS)))


def test_an_assumed_rate_lowers_no_suggestion() -> None:
    command = forecast(PUTS, transfer=4_900 * 10**8, basis="assumed").raise_quota
    assert command is not None
    assert "--desired-value 100 " in command


def test_no_quota_is_suggested_where_bytes_bind() -> None:
    assert forecast(PUTS, transfer=10**12).raise_quota is None


async def test_each_request_to_a_source_waits_for_its_rate(here: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """``requests_per_second`` of the plan: no request of the registry's API passes by it."""
    taken = 0
    take = TokenBucket.take

    async def counted(self: TokenBucket, most: int) -> int:
        nonlocal taken
        if self.rate == 500:
            taken += 1
        return await take(self, most)

    monkeypatch.setattr(TokenBucket, "take", counted)
    for number in range(3):
        here.hold("team/app", str(number), layer(number))
    source = {"plain_http": True, "credentials": {"anonymous": True}, "requests_per_second": 500}

    report = await here.run(here.plan({"from": "team/app"}, registries={here.source.host: source}))

    assert not report.failed
    assert taken == len(here.source.seen) > 0
