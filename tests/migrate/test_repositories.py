"""Repositories that a migration creates: whole, or known to be half made, whatever has stopped it in between."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from anyio import to_thread

from asyncpush.emulator.faults import FaultConfig, parse_fault
from asyncpush.events import Notice
from asyncpush.journal import open_journal
from asyncpush.settings import Settings
from support.aws import REGION, judge
from support.events import Events
from support.migrations import Bench, layer, outcomes, reasons
from support.relay import NO_WAITS, deleting, passed, relay_to

SELECTION = {"tagStatus": "untagged", "countType": "sinceImagePushed", "countUnit": "days", "countNumber": 14}
LIFECYCLE = {"rules": [{"rulePriority": 1, "selection": SELECTION, "action": {"type": "expire"}}]}
KEPT = {"create": True, "lifecycle_policy": LIFECYCLE}


async def policies(here: Bench, *names: str) -> dict[str, object]:
    """The lifecycle policies of repositories, as boto3 finds them."""
    client = judge(here.emulator.endpoint_url)

    def ask(name: str) -> object:
        try:
            return json.loads(client.get_lifecycle_policy(repositoryName=name)["lifecyclePolicyText"])
        except client.exceptions.LifecyclePolicyNotFoundException:
            return None

    return {name: await to_thread.run_sync(ask, name) for name in names}


@pytest.mark.parametrize("journal", [True, False])
async def test_a_repository_left_without_its_policy_gets_it_first(here: Bench, journal: bool) -> None:
    """Access denied, 503 or a policy that ECR refuses stop its repository only, and the next run finishes it."""
    for name in ("team/app", "team/other"):
        here.hold(name, "1", layer(1))
    path = here.plan({"from": "team/app", "repository": KEPT}, {"from": "team/other"})
    here.emulator.fault_config = FaultConfig(faults=(parse_fault("PutLifecyclePolicy:access-denied"),))
    failed = await here.run(path, journal=journal)
    assert outcomes(failed) == {"team/app:1": "failed", "team/other:1": "pushed"}
    assert ["team/app was created, but lacks it" in reason for reason in reasons(failed)] == [True]
    again = await here.run(path, journal=journal)
    assert outcomes(again) == {"team/app:1": "failed", "team/other:1": "present"}

    here.emulator.fault_config = FaultConfig()
    assert (await here.run(path, journal=journal)).failed == ()
    assert await policies(here, "team/app", "team/other") == {"team/app": LIFECYCLE, "team/other": None}
    here.emulator.requests.clear()
    await here.run(path, journal=journal)
    assert "PutLifecyclePolicy" not in here.emulator.requests.counts()


async def test_only_what_is_known_to_be_half_made_is_finished(here: Bench) -> None:
    """A kill between two requests is known to the journal; what somebody else has made and filled is theirs."""
    names = ["team/theirs", "team/immutable", "team/killed"]
    client = judge(here.emulator.endpoint_url)
    for name in names:
        here.hold(name, "1", layer(1))
        mutability = "IMMUTABLE" if name == "team/immutable" else "MUTABLE"
        await to_thread.run_sync(
            lambda name=name, mutability=mutability: client.create_repository(
                repositoryName=name, imageTagMutability=mutability
            )
        )
    path = here.plan({"from": "team/theirs"}, {"from": "team/killed"})
    await here.run(path)
    address = f"{here.emulator.endpoint_url.removeprefix('http://')}/{REGION}/000000000000/team/killed"
    async with open_journal(here.folder / "plan.journal") as journal:
        await journal.repository_begun(address)
    for name in names:
        here.hold(name, "2", layer(2))
    path = here.plan(*({"from": name, "repository": KEPT} for name in names))
    assert (await here.run(path)).failed == ()
    assert await policies(here, *names) == {**dict.fromkeys(names), "team/killed": LIFECYCLE}
    async with open_journal(here.folder / "plan.journal") as journal:
        assert not journal.is_half_made(address)


@pytest.mark.parametrize("transport", ["api", "v2"])
@pytest.mark.parametrize("create", [True, False])
async def test_a_repository_deleted_in_mid_run_comes_back_whole(here: Bench, transport: str, create: bool) -> None:
    """With its settings, and images and signatures that were put before; if the plan creates none, the run fails."""
    image = here.hold("team/app", "1", layer(0), layer(1))
    here.hold("team/app", f"sha256-{image['digest'][7:]}.sig", layer(9))
    here.hold("team/app", "2", layer(0), layer(2))
    client, events = judge(here.emulator.endpoint_url), Events()
    await to_thread.run_sync(lambda: client.create_repository(repositoryName="team/app"))
    settings = Settings(retry=replace(NO_WAITS, lag_waits=(0.0, 0.0)))
    async with relay_to(here.emulator.endpoint_url) as relay:
        relay.plan("PutImage", passed, passed, deleting("team/app"))
        target = {"region": REGION, "endpoint_url": relay.url, "transport": transport}
        entry = {"from": "team/app", "repository": {**KEPT, "create": create}}
        report = await here.run(here.plan(entry, targets={"here": target}), settings=settings, emit=events)

    if create:
        assert set(outcomes(report).values()) == {"pushed"}
        assert len(await here.stored("team/app")) == 3
        assert await policies(here, "team/app") == {"team/app": LIFECYCLE}
        assert any("deleted during the run" in notice.text for notice in events.of(Notice))
    else:
        assert any("RepositoryNotFoundException" in reason for reason in reasons(report))
