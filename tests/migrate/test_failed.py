"""``--failed``: what the last run did not finish, and nothing else; and sources whose limits are used up."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import anyio
import pytest
from aiohttp import web
from anyio import to_thread

from asyncpush.errors import SourceLimitedError, UsageError
from asyncpush.events import Event, Limited, Notice
from asyncpush.journal.export import ImageRow, RunRow, rows
from asyncpush.journal.merge import merge
from asyncpush.migrate.limited_sources import limited_sources
from asyncpush.migrate.shard import Shard
from support.commands import run_beside
from support.events import Events
from support.migrations import Bench, layer, outcomes, reasons
from support.registry_server import QUICK, refusal, running

pytestmark = pytest.mark.anyio


def journaled(path: Path) -> tuple[list[RunRow], dict[str, str]]:
    """The runs of a journal, and the outcome of each image of the last one, by its destination."""
    found = list(rows(path))
    runs = [row for row in found if isinstance(row, RunRow)]
    images = [row for row in found if isinstance(row, ImageRow) and row.run == runs[-1].id]
    return runs, {row.copy.rpartition("/")[2]: row.outcome for row in images}


async def test_what_failed_runs_again_alone_until_nothing_has_failed(here: Bench) -> None:
    """The others are not even asked for; the run in the journal stays one, and is finished in the end."""
    for repository in ("one", "two", "three"):
        here.hold(f"team/{repository}", "1", layer(1))
    here.source.tags["team/three"].append("2")
    here.source.rule("GET", "_catalog")(partial(catalog, here))
    path = here.plan({"from": "team/*"})
    # A repository whose tags can't be listed, and a tag without a manifest.
    here.source.rule("GET", "/team/two/tags")(broken)
    first = await here.run(path, retries=0)
    assert sorted(outcomes(first).values()) == ["failed", "failed", "pushed", "pushed"]

    here.hold("team/three", "2", layer(3))
    here.source.rules.clear()
    here.source.seen.clear()
    dry = await here.run(path, failed=True, dry=True)
    assert outcomes(dry) == {"team/two:1": "planned", "team/three:2": "planned"}
    again = await here.run(path, failed=True)
    asked = {seen.path for seen in here.source.seen}
    events = Events()
    nothing = await here.run(path, failed=True, emit=events)

    assert outcomes(again) == {"team/two:1": "pushed", "team/three:2": "pushed"}
    assert not any("/one/" in each or "catalog" in each or "/three/manifests/1" in each for each in asked)
    assert (nothing.results, nothing.failures) == ((), ())
    assert any("nothing failed in the last run" in notice.text for notice in events.of(Notice))
    [run], images = await to_thread.run_sync(journaled, here.folder / "plan.journal")
    assert (run.state, run.finished, run.failed, set(images.values())) == ("finished", 4, 0, {"pushed"})


async def catalog(here: Bench, _: web.Request) -> web.StreamResponse:
    return web.json_response({"repositories": sorted(here.source.tags)})


async def broken(request: web.Request) -> web.StreamResponse:
    return refusal(403, "DENIED", "not now")


@pytest.mark.parametrize("end", ["ctrl-c", "fail-fast", "max-failures"])
async def test_what_was_not_tried_runs_too(here: Bench, end: str) -> None:
    """All but what is finished, without a look at that."""
    for tag in ("1", "2", "3"):
        here.hold("team/app", tag, layer(int(tag)))
    for repository in ("late", "never"):
        here.hold(f"team/{repository}", "1", layer(4))
    path, over = here.plan(*({"from": f"team/{n}"} for n in ("app", "late", "never"))), anyio.Event()
    journal = here.folder / "plan.journal"

    @here.source.rule("GET", "/team/late/manifests/")
    async def late(request: web.Request) -> web.StreamResponse:
        while list((await to_thread.run_sync(journaled, journal))[1].values()) != ["pushed"] * 3:  # noqa: ASYNC110 - the file has no event
            await anyio.sleep(0.01)
        over.set()
        if end == "ctrl-c":
            scope.cancel()
        return refusal(403, "DENIED", "not now")

    @here.source.rule("GET", "/team/never/")
    async def never(request: web.Request) -> None:
        await over.wait()

    with anyio.CancelScope() as scope:
        await here.run(path, fail_fast=end == "fail-fast", max_failures=1 if end == "max-failures" else None)
    assert over.is_set()
    _, images = await to_thread.run_sync(journaled, journal)
    finished = {name for name, outcome in images.items() if outcome == "pushed"}
    here.source.rules.clear()
    here.source.seen.clear()

    report = await here.run(path, failed=True)

    wanted = {"team/late:1", "team/never:1"} - {f"team/{name}" for name in finished}
    assert outcomes(report) == dict.fromkeys(wanted, "pushed")
    assert not any("/team/app/manifests" in seen.path for seen in here.source.seen)
    [run], images = await to_thread.run_sync(journaled, journal)
    assert (run.state, set(images.values()), len(images)) == ("finished", {"pushed"}, 5)


async def test_a_changed_plan_is_asked_for_the_destinations_that_failed(here: Bench) -> None:
    """A source that was corrected is taken; what the plan has no more is named, and remembered."""
    here.hold("team/right", "1", layer(1))
    entries = [{"from": f"team/{name}", "to": f"mirror/{name[0]}", "tags": ["1"]} for name in ("wrong", "gone")]
    await here.run(here.plan(*entries))
    path = here.plan({"from": "team/right", "to": "mirror/w", "tags": ["1"]}, {"from": "team/right", "to": "mirror/x"})

    report = await here.run(path, failed=True)
    command = await run_beside("migrate", path, "--failed", "--output", "json")

    assert outcomes(report) == {"mirror/w:1": "pushed"}
    assert report.gone == ((f"docker://{here.source.host}/team/gone:1", "mirror/g:1"),)
    assert [name for name, _ in report.failures] == ["mirror/g:1"]
    assert command.status == 1
    assert json.loads(command.out)["gone"] == [{"source": report.gone[0][0], "destination": "mirror/g:1"}]
    assert "1 image failed before, and the plan does not ask for it any more: docker://" in command.err


async def test_a_signature_that_failed_runs_again_with_its_image(here: Bench) -> None:
    image = here.hold("team/app", "1", layer(1))
    signature = here.layout.image(layer(2))
    here.source.hold(here.layout, signature, "team/app", f"{str(image['digest']).replace(':', '-')}.sig")
    here.source.rule("GET", ".sig", times=1)(broken)
    path = here.plan({"from": "team/app", "tags": ["1"]})
    first = await here.run(path, retries=0)
    assert outcomes(first)["team/app:1"] == "pushed"
    assert len(first.failed) == 1

    report = await here.run(path, failed=True)

    assert sorted(outcomes(report).values()) == ["present", "pushed"]
    [run], _ = await to_thread.run_sync(journaled, here.folder / "plan.journal")
    assert run.state == "finished"


async def test_merged_journals_of_shards_say_what_failed(here: Bench) -> None:
    names = [f"app-{number}" for number in range(6)]
    for name in names[:3]:
        here.hold(f"team/{name}", "1", layer(1))
    path = here.plan(*({"from": f"team/{name}", "tags": ["1"]} for name in names))
    journals = []
    for index in range(2):
        await here.run(path, shard=Shard(index, 2))
        journals.append((f"{index}-of-2", (here.folder / "plan.journal").rename(here.folder / f"{index}.journal")))
    await to_thread.run_sync(merge, journals[:1], here.folder / "plan.journal")
    partly = await here.run(path, failed=True, dry=True)
    await to_thread.run_sync(merge, journals, here.folder / "plan.journal")
    for name in names[3:]:
        here.hold(f"team/{name}", "1", layer(2))

    report = await here.run(path, failed=True)

    # One shard is not known of: what it has is not known to be finished.
    assert {f"team/{name}:1" for name in names[3:]} < set(outcomes(partly))
    assert outcomes(report) == {f"team/{name}:1": "pushed" for name in names[3:]}
    nothing = await here.run(path, failed=True)
    assert nothing.results == ()


async def test_without_a_run_it_says_what_to_do(here: Bench) -> None:
    """As a command: a missing journal is not made; files that can't be written are refused before the plan is read."""
    path = here.plan({"from": "team/app"})
    with pytest.raises(UsageError, match="no run in the journal; run the plan without --failed first"):
        await here.run(path, failed=True)
    comments = here.folder / "failed.txt"
    comments.write_text("# docker://a/b to c/d:1: why\n")
    nowhere = here.folder / "missing" / "file"
    cases: dict[tuple[object, ...], str] = {
        (path, "--failed", "--no-resume"): "leave out one of them",
        (path, "--failed", "--dask", "local:1"): "merge the journals of the shards",
        (path, "--failed", "--journal", here.folder / "other.journal"): "there is no journal",
        ("unread", "--failed-out", nowhere): f"--failed-out {nowhere} can't be written: No such file",
        ("unread", "--report", here.folder): f"--report {here.folder} can't be written: Is a directory",
        (comments,): "holds no image, only comments; if --failed-out wrote them",
    }
    for words, says in cases.items():
        done = await run_beside("migrate", *words)
        assert (done.status, says in done.err) == (2, True), done.err
    assert not (here.folder / "other.journal").exists()


# Limits of sources


#: Anything above a second is beyond what a request waits for.
IMPATIENT = replace(QUICK, throttled=0.5)


@pytest.fixture
def used_up(here: Bench) -> dict[str, str]:
    """A source that refuses manifests after the first two, with these headers, until they are cleared."""
    headers = {"RateLimit_Limit": "2;w=21600", "RateLimit_Remaining": "0;w=21600"}
    served: list[str] = []

    @here.source.rule("GET", "/manifests/")
    async def _(request: web.Request) -> web.StreamResponse | None:
        served.append(request.path)
        if len(set(served)) <= 2 or not headers:
            return None
        return refusal(429, "TOOMANYREQUESTS", "You have reached your pull rate limit.", **headers)

    return headers


async def test_a_source_whose_limit_is_used_up_is_left_alone(here: Bench, used_up: dict[str, str]) -> None:
    """One refusal is enough; other sources go on; each image that is left is named; --failed does them later."""
    for number in range(30):
        here.hold(f"team/app-{number}", "1", layer(number))
    async with running() as other:
        other.hold(here.layout, here.layout.image(layer(99)), "team/other", "1")
        here.source.rule("GET", "_catalog")(partial(catalog, here))
        path = here.plan({"from": "team/*", "referrers": False})
        document = json.loads(path.read_text())
        document["registries"][other.host] = {"plain_http": True}
        document["images"].append({"from": f"{other.host}/team/other", "to": "other"})
        path.write_text(json.dumps(document))
        command = await run_beside("migrate", path, "--output", "json")
        refused = len(here.source.asked("GET", "/manifests/")) - 2

    result = json.loads(command.out)
    totals = result["totals"]
    assert command.status == 1
    assert (totals["left"], totals["failed"], totals["pushed"]) == (28, 0, 3)
    assert 1 <= refused <= 16
    [limited] = result["limitedSources"]
    assert (limited["source"], limited["images"], limited["isGuess"]) == (here.source.host, 28, True)
    lines = command.err.splitlines()
    [told] = [line for line in lines if "28 images left for about " in line]
    assert "run the same command again then, with --failed, or with --wait to stay" in told
    assert sum("accepts no more requests" in line for line in lines) <= 1
    _, images = await to_thread.run_sync(journaled, here.folder / "plan.journal")
    assert list(images.values()).count("left") == 28

    used_up.clear()
    report = await here.run(path, failed=True)
    assert sorted(outcomes(report).values()) == ["pushed"] * 28


async def test_an_image_that_is_there_needs_no_pull(here: Bench) -> None:
    """Docker Hub answers HEAD when no pull is left."""
    here.hold("team/there", "1", layer(1))
    path = here.plan(*({"from": f"team/{name}", "referrers": False} for name in ("there", "new")))
    await here.run(path, journal=False, retries=0)
    here.hold("team/new", "1", layer(2))
    refused = anyio.Event()

    @here.source.rule("GET", "/manifests/")
    async def _(request: web.Request) -> web.StreamResponse:
        refused.set()
        return refusal(429, "TOOMANYREQUESTS", "no pulls", RateLimit_Limit="1;w=21600", RateLimit_Remaining="0;w=21600")

    @here.source.rule("GET", "/team/there/tags")
    async def later(request: web.Request) -> None:
        await refused.wait()

    assert outcomes(await here.run(path)) == {"team/new:1": "left", "team/there:1": "present"}


async def test_a_migration_can_wait_for_a_source(here: Bench, used_up: dict[str, str]) -> None:
    used_up["Retry_After"] = "1"
    for number in range(8):
        here.hold("team/app", str(number), layer(number))
    path, events = here.plan({"from": "team/app", "referrers": False}), Events()

    def emit(event: Event) -> None:
        events(event)
        if isinstance(event, Limited):
            used_up.clear()

    left = await here.run(path, retry=IMPATIENT, retries=0)
    [source] = limited_sources(left.results)
    assert (source.images, source.is_guess) == (6, False)
    assert all(isinstance(result.error, SourceLimitedError) for result in left.failed)
    used_up["Retry_After"] = "1"
    report = await here.run(path, retry=IMPATIENT, failed=True, wait=True, emit=emit)

    assert not reasons(report)
    assert len(report.results) == 6
    assert {event.reason for event in events.of(Limited)} == {"source"}
    assert len(await here.stored("team/app")) == 8
