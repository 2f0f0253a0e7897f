"""A verification as it goes on: results at once, proofs that outlive an interruption, settings against the plan."""

from __future__ import annotations

import json
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread
from anyio.streams.text import TextReceiveStream

import asyncpush
from asyncpush import Registry, open_journal
from asyncpush.emulator import Emulator
from asyncpush.emulator.faults import FaultConfig, parse_fault
from asyncpush.events import ImagePlanned, ImageVerified, LayerDone, PartRead
from asyncpush.journal.export import ProofRow, rows
from asyncpush.verify import Proofs, Verification, VerificationWatcher, parse_target, verify_all
from support.aws import REGION, aws, judge
from support.commands import cli_environment, run_beside
from support.events import Events
from support.images import A, B, C, Layout, layer_tar
from support.migrations import Bench, layer

DAY = 24 * 60 * 60


class Heard(VerificationWatcher):
    """What a verification has told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def expect(self, target: Any) -> None:
        self.told.append(f"expects {target}")

    def found(self, result: Any, target: Any = None) -> None:
        self.told.append(f"{target} is {'whole' if result.is_whole else 'broken'}")


async def test_what_was_proved_is_not_read_again_until_it_is_found_broken(
    emulator: Emulator, registry: Registry, tmp_path: Path
) -> None:
    layout = Layout()
    images = {tag: layout.image(A, data) for tag, data in {"1": B, "2": C}.items()}
    for tag, image in images.items():
        layout.tag(image, tag)
    folder = layout.write(tmp_path / "layout")
    for tag in images:
        await asyncpush.push(registry, f"oci:{folder}:{tag}", f"team/app:{tag}")
    own = json.loads(layout.files[f"blobs/sha256/{images['2']['digest'][7:]}"])["layers"][1]
    [file] = (tmp_path / "ecr").rglob(own["digest"][7:])
    data = await to_thread.run_sync(file.read_bytes)
    targets, events = [parse_target(f"team/app:{tag}") for tag in images], Events()
    path, now = tmp_path / "v.journal", 1_000_000.0

    async def verify(*, deep: bool = True, within: float | None = DAY) -> tuple[list[Any], int, list[str]]:
        """The results, how many blobs were read, and what was told."""
        before, heard = emulator.requests.counts()["GetDownloadUrlForLayer"], Heard()
        async with (
            open_journal(path, clock=lambda: now) as journal,
            asyncpush.connect(aws=aws(emulator.endpoint_url), emit=events) as connected,
        ):
            proofs = Proofs(journal, within)
            found = await verify_all(connected, targets, deep=deep, watcher=heard, proofs=proofs)
        return found, emulator.requests.counts()["GetDownloadUrlForLayer"] - before, heard.told

    await to_thread.run_sync(file.write_bytes, data[:-1] + b"?")
    (whole, broken), reads, told = await verify()
    assert (whole.is_whole, broken.is_whole, reads) == (True, False, 5)
    assert told[:2] == ["expects team/app:1", "expects team/app:2"]
    assert sorted(told[2:]) == ["team/app:1 is whole", "team/app:2 is broken"]
    assert sum(event.read for event in events.of(PartRead)) == sum(event.size for event in events.of(ImagePlanned))
    assert {event.outcome for event in events.of(LayerDone)} == {"read"}
    assert sorted(event.outcome for event in events.of(ImageVerified)) == ["broken", "whole"]

    await to_thread.run_sync(file.write_bytes, data)
    now += DAY / 2
    (before, again), reads, _ = await verify()
    assert (before.is_whole, before.deep, str(before.read_at)[:10], again.read_at, reads) == (
        True, True, "1970-01-12", None, 3)  # fmt: skip
    assert (await verify(within=None))[1] == 5, "without an age, all is read"
    assert (await verify(deep=False))[1] == 0
    now += DAY - 1
    assert (await verify())[1] == 0, "a look without reading takes no proof back"
    now += 2
    assert (await verify())[1] == 5, "a proof has an end"

    client = judge(emulator.endpoint_url)
    await to_thread.run_sync(
        partial(client.batch_delete_image, repositoryName="team/app", imageIds=[{"imageTag": "2"}])
    )
    _, missing = (await verify(deep=False))[0]
    assert isinstance(missing, Verification)
    assert not missing.is_whole
    proofs = [row for row in await to_thread.run_sync(lambda: list(rows(path))) if isinstance(row, ProofRow)]
    assert [(row.reference, row.digest, row.deep) for row in proofs] == [("1", images["1"]["digest"], True)]


async def test_an_interrupted_verification_tells_all_that_it_knows(
    emulator: Emulator, registry: Registry, tmp_path: Path
) -> None:
    """A line is there at once; after SIGINT the rest is counted; after SIGTERM the document is whole."""
    small, large = Layout(), Layout()
    small.tag(small.image(layer_tar("small")), "1")
    large.tag(large.image(layer(1, 4_000_000)), "1")
    for name, layout in {"a/small": small, "b/large": large}.items():
        await asyncpush.push(registry, f"oci:{layout.write(tmp_path / name)}:1", f"{name}:1")
    emulator.fault_config = FaultConfig(bandwidth=100_000)
    keys = {"AWS_REGION": REGION, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    environment = cli_environment(AWS_ENDPOINT_URL_ECR=emulator.endpoint_url, **keys)
    verify = [sys.executable, "-m", "asyncpush", "verify", "b/large:1", "a/small:1", "--deep"]
    verify += ["--journal", str(tmp_path / "v.journal")]

    with anyio.fail_after(60):
        async with await anyio.open_process(verify, env=environment) as first:
            assert first.stdout
            assert first.stderr
            line = (await first.stdout.receive()).decode()
            first.send_signal(signal.SIGINT)
            err = "".join([text async for text in TextReceiveStream(first.stderr)])
    assert first.returncode == 130
    assert line.startswith("a/small:1@sha256:")
    *_, summary, end = err.splitlines()
    assert summary.startswith("asyncpush: 1 image whole in 0:0")
    assert ", 1 not (1 not verified); " in summary
    assert end == "asyncpush: interrupted; nothing was changed; run the same command again"

    words = [*verify, "--proved-within", "1h", "--output", "json", "--progress", "json"]
    with anyio.fail_after(60):
        async with await anyio.open_process(words, env=environment) as second:
            assert second.stdout
            assert second.stderr
            seen = TextReceiveStream(second.stderr)
            while "image-verified" not in await seen.receive():
                pass
            second.terminate()
            document = json.loads("".join([text async for text in TextReceiveStream(second.stdout)]))
    assert second.returncode == 143
    assert [(image["destination"], image["outcome"]) for image in document["images"]] == [
        ("b/large:1", "unverified"), ("a/small:1", "whole")]  # fmt: skip
    assert document["images"][1]["readAt"]
    assert (document["totals"]["unverified"], document["stopped"]["code"]) == (1, "Interrupted")


RULE = {"rulePriority": 1, "selection": {"tagStatus": "untagged", "countType": "imageCountMoreThan", "countNumber": 9},
        "action": {"type": "expire"}}  # fmt: skip
STATEMENT = {"Effect": "Allow", "Principal": {"AWS": "123456789012"}, "Action": ["ecr:BatchGetImage"]}
SAME = {"Effect": "Allow", "Principal": {"AWS": ["arn:aws:iam::123456789012:root"]}, "Action": "ecr:BatchGetImage"}


async def test_settings_that_differ_from_the_plan_are_named_each_in_a_line(here: Bench) -> None:
    stated = {
        "create": True,
        "mutability": "IMMUTABLE_WITH_EXCLUSION",
        "exclusions": ["dev-*"],
        "scan_on_push": True,
        "encryption": "AES256",
        "tags": {"team": "core", "tier": "1"},
        "lifecycle_policy": {"rules": [RULE]},
        "policy": {"Version": "2012-10-17", "Statement": [STATEMENT]},
    }
    for name in ("kept", "changed", "bare"):
        here.hold(name, "1", A)
    path = here.plan(
        {"from": "kept", "to": "team/kept", "repository": stated},
        {"from": "changed", "to": "team/changed", "repository": stated},
        {"from": "bare", "to": "team/bare"},
    )
    await here.run(path)

    def change() -> None:
        client = judge(here.emulator.endpoint_url)
        [described] = client.describe_repositories(repositoryNames=["team/changed"])["repositories"]
        same = json.dumps({"Statement": [SAME], "Version": "2012-10-17"}, indent=2)
        client.set_repository_policy(repositoryName="team/kept", policyText=same)
        name = {"repositoryName": "team/changed"}
        client.put_image_tag_mutability(**name, imageTagMutability="MUTABLE")
        client.put_image_scanning_configuration(**name, imageScanningConfiguration={"scanOnPush": False})
        more = {**RULE, "selection": {**RULE["selection"], "countNumber": 10}}
        client.put_lifecycle_policy(**name, lifecyclePolicyText=json.dumps({"rules": [more]}))
        client.delete_repository_policy(**name)
        client.untag_resource(resourceArn=described["repositoryArn"], tagKeys=["tier"])
        client.put_image_tag_mutability(repositoryName="team/bare", imageTagMutability="IMMUTABLE")

    await to_thread.run_sync(change)
    ran = await run_beside("verify", path, "--progress", "none")
    assert (ran.status, len(ran.out.splitlines())) == (1, 3)
    lines = ran.err.splitlines()
    policy = json.dumps(stated["policy"], separators=(",", ":"))
    differences = [line for line in lines if line.startswith("asyncpush: error: team/changed: ")]
    assert [line.removeprefix("asyncpush: error: team/changed: ") for line in differences] == [
        "tag mutability is MUTABLE, and the plan says IMMUTABLE_WITH_EXCLUSION (dev-*)",
        "scanning on push is off, and the plan says on",
        f"repository policy is missing, and the plan says {policy[:100]}...",
        "lifecycle policy (rules.selection.countNumber) is 10, and the plan says 9",
        "resource tag tier is missing, and the plan says '1'",
    ]
    assert lines[-1].startswith("asyncpush: 3 images whole in 0:0")
    assert lines[-1].endswith("; 5 settings of 1 repository not as planned")
    assert len(lines) == len(differences) + 2, "one note says what to do"

    here.emulator.fault_config = FaultConfig(faults=(parse_fault("GetLifecyclePolicy:access-denied"),))
    ran = await run_beside("verify", path, "--progress", "none", "--output", "json")
    document = json.loads(ran.out)
    assert [len(compared["differences"]) for compared in document["settings"]] == [4, 0]
    assert {each["setting"] for compared in document["settings"] for each in compared["unread"]} == {"lifecycle policy"}
    assert ran.err.count("lifecycle policy not compared with the plan, of team/") == 1
    assert document["totals"]["settingsDifferent"] == 4

    ran = await run_beside("verify", path, "--no-settings", "-q")
    assert (ran.status, ran.err) == (0, "")
