"""What an interrupted migration goes on with: what is still so at the source, made in the same way, and lately."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from aiohttp import web

from asyncpush.emulator import Emulator, KnownCredentials
from asyncpush.emulator.faults import FaultConfig, parse_fault
from asyncpush.errors import ConfigurationError
from asyncpush.events import Event, ImageDone, Notice
from asyncpush.journal import open_journal
from asyncpush.migrate.plan.load import read_plan
from asyncpush.migrate.run import migrate_plan
from asyncpush.settings import Settings
from support.aws import QUIRKS
from support.events import Events
from support.images import DockerSave
from support.migrations import Bench, layer, outcomes

STAGING, PROD = "111111111111", "222222222222"


@pytest.fixture
async def emulator(tmp_path: Path) -> AsyncIterator[Emulator]:
    owners = [KnownCredentials("test", "test", account=STAGING), KnownCredentials("other", "secret", account=PROD)]
    async with Emulator(tmp_path / "ecr", fsync=False, quirks=QUIRKS, credentials=owners) as running:
        yield running


async def interrupted(here: Bench, path: Path, after: int) -> None:
    """Migrate, and stop as Ctrl-C does once so many images are done."""
    with anyio.CancelScope() as scope:
        done = 0

        def emit(event: Event) -> None:
            nonlocal done
            done += isinstance(event, ImageDone)
            if done == after:
                scope.cancel()

        await here.run(path, emit=emit)


async def test_a_run_resumes_though_a_pattern_matches_another_repository(here: Bench) -> None:
    """The journal knows a plan by its patterns, not by what they match."""

    @here.source.rule("GET", "_catalog")
    async def catalog(_: web.Request) -> web.StreamResponse:
        return web.json_response({"repositories": sorted(here.source.tags)})

    for tag in range(6):
        here.hold("team/app", str(tag), layer(tag))
    path = here.plan({"from": "team/*"})
    await interrupted(here, path, 4)
    here.hold("team/new", "1", layer(9))
    report = await here.run(path)

    assert report.resumed
    assert "finished" in outcomes(report).values()
    assert outcomes(report)["team/new:1"] == "pushed"


async def test_of_what_was_finished_only_the_digest_is_asked(here: Bench) -> None:
    tags = [str(number) for number in range(10)]
    for tag in tags:
        here.hold("team/app", tag, layer(int(tag)))
    path = here.plan({"from": "team/app", "tags": tags})
    await interrupted(here, path, 6)
    here.source.seen.clear()
    report = await here.run(path)

    assert report.resumed
    finished = {place.rpartition(":")[2] for place, outcome in outcomes(report).items() if outcome == "finished"}
    assert 1 <= len(finished) <= 6
    assert set(outcomes(report).values()) <= {"finished", "present", "pushed"}
    heads = Counter(seen.path.rpartition("/")[2] for seen in here.source.asked("HEAD", "/manifests/"))
    assert {tag: heads[tag] for tag in finished} == dict.fromkeys(finished, 1)
    assert finished.isdisjoint(seen.path.rpartition("/")[2] for seen in here.source.asked("GET", "/manifests/"))
    assert len(await here.stored("team/app")) == 10
    assert here.emulator.requests.counts()["CompleteLayerUpload"] == 20

    here.source.seen.clear()
    again = await here.run(path, recheck=True)
    assert Counter(outcomes(again).values()) == {"present": 10}
    assert len(here.source.asked("HEAD")) == 10


async def test_a_tag_that_has_moved_since_goes_again(here: Bench) -> None:
    for tag in ("1", "latest"):
        here.hold("team/app", tag, layer(1 if tag == "1" else 2))
    path = here.plan({"from": "team/app", "tags": ["1", "latest"], "to": "mirror/app"})
    await here.run(path)
    await reopen(here)
    moved = here.hold("team/app", "latest", layer(3))
    report = await here.run(path)

    assert report.resumed
    assert outcomes(report) == {"mirror/app:1": "finished", "mirror/app:latest": "pushed"}
    assert (await here.stored("mirror/app"))["latest"] == moved["digest"]


async def test_an_archive_that_was_made_again_goes_again(here: Bench, tmp_path: Path) -> None:
    archive = tmp_path / "app.tar"
    archive.write_bytes(DockerSave().image(layer(1), tags=["app:1"]).image(layer(2), tags=["app:2"]).archive())
    path = here.plan()
    path.write_text(path.read_text().replace('"images": []', f'"images": [{{"from": "{archive}", "to": "app"}}]'))
    await here.run(path)
    await reopen(here)
    archive.write_bytes(DockerSave().image(layer(1), tags=["app:1"]).image(layer(3), tags=["app:2"]).archive())
    report = await here.run(path)

    assert report.resumed
    assert outcomes(report) == {"app:1": "finished", "app:2": "pushed"}


async def test_an_old_run_and_one_with_other_settings_are_not_gone_on_with(here: Bench) -> None:
    here.hold("team/app", "1", layer(1))
    path = here.plan({"from": "team/app", "tags": ["1"]})
    await here.run(path)
    await reopen(here)
    for settings in (
        Settings(compression="zstd"),
        Settings(compression_level=2),
        Settings(push_foreign_layers=True),
        Settings(available_platforms=True),
    ):
        async with open_journal(here.folder / "plan.journal") as journal:
            report = await migrate_plan(await read_plan(path), settings=settings, journal=journal)
        assert not report.resumed, settings
        assert set(outcomes(report).values()) == {"present"}
    events = Events()
    old = await here.run(path, emit=events, resume_within=0.0)
    assert not old.resumed
    assert set(outcomes(old).values()) == {"present"}
    assert [event.text for event in events.of(Notice) if "too old to resume" in event.text]


async def test_a_run_in_one_account_is_not_gone_on_with_in_another(
    here: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for tag in ("1", "2"):
        here.hold("team/app", tag, layer(int(tag)))
    path = here.plan({"from": "team/app", "tags": ["1", "2"]})
    await here.run(path)
    await reopen(here)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "other")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    report = await here.run(path)

    assert not report.resumed
    assert Counter(outcomes(report).values()) == {"pushed": 2}


async def test_a_journal_is_refused_where_nobody_tells_the_account(here: Bench) -> None:
    here.hold("team/app", "1", layer(1))
    path = here.plan({"from": "team/app", "tags": ["1"]})
    await here.run(path)
    # What AWS's documented policy for pushing leaves out; an emulator's GetAuthorizationToken names no account.
    here.emulator.fault_config = FaultConfig(
        faults=tuple(parse_fault(f"{name}:access-denied") for name in ("Describe*", "Get*"))
    )
    with pytest.raises(ConfigurationError, match=r"ACCOUNT\.dkr\.ecr\.eu-west-1\.amazonaws\.com"):
        await here.run(path)
    assert set(outcomes(await here.run(path, journal=False)).values()) == {"present"}

    written = path.read_text().replace('"region"', f'"registry": "{STAGING}.dkr.ecr.eu-west-1.amazonaws.com", "region"')
    path.write_text(written)
    assert set(outcomes(await here.run(path)).values()) == {"present"}


async def reopen(here: Bench) -> None:
    """Let the journal's last run be an interrupted one: what a kill leaves behind the last image."""
    with sqlite3.connect(here.folder / "plan.journal") as connection:
        connection.execute("UPDATE run SET ended = NULL WHERE id = (SELECT max(id) FROM run)")
    connection.close()
