"""Shards of one plan on several machines: each repository is one machine's, and layers go to each repository once."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections import Counter
from itertools import chain
from pathlib import Path

import anyio
import pytest
from anyio import to_thread
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncpush.emulator import Emulator
from asyncpush.emulator.faults import FaultConfig
from asyncpush.errors import UsageError
from asyncpush.events import Notice
from asyncpush.migrate.plan.load import read_plan
from asyncpush.migrate.shard import Shard, missing_shards, parse_shard, parse_share
from asyncpush.settings import MiB
from support.aws import QUIRKS, judge
from support.commands import cli_environment, run_beside, run_here
from support.events import Events
from support.images import Json
from support.migrations import Bench, keys, layer, outcomes
from support.registry_server import running

SHARDS = 3

BATCH = {"AWS_BATCH_JOB_ARRAY_INDEX": "2", "AWS_BATCH_JOB_ARRAY_SIZE": "8"}
SLURM = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_COUNT": "8"}


@given(names=st.lists(st.text(min_size=1), max_size=5), count=st.integers(1, 100))
@settings(max_examples=30)
def test_each_repository_is_of_exactly_one_shard(names: list[str], count: int) -> None:
    for name in names:
        assert sum(Shard(index, count).takes(name) for index in range(count)) == 1


def test_the_division_never_changes() -> None:
    """A run that resumes on a newer asyncpush must have the same repositories: sha256's first 64 bits modulo N."""
    names = ("team/app", "team/web", "mirror/library/nginx", "a")
    found = {name: [index for index in range(64) if Shard(index, 64).takes(name)] for name in names}
    assert found == {"team/app": [58], "team/web": [44], "mirror/library/nginx": [33], "a": [10]}


async def test_an_image_for_two_repositories_is_divided_between_their_shards(here: Bench) -> None:
    here.hold("team/app", "1", layer(1))
    path = here.plan({"from": "team/app", "to": "team/app"}, {"from": "team/app", "to": "team/web"})
    plan = await read_plan(path)
    parts = [Shard(index, 64).part_of(plan) for index in range(64)]
    repositories = [[goal.repository for entry in part.entries for goal in entry.goals] for part in parts]
    assert sorted(chain(*repositories)) == ["team/app", "team/web"]
    assert max(map(len, repositories)) == 1


@pytest.mark.parametrize(
    ("text", "environ", "expected"),
    [
        ("0/1", {}, "0/1"),
        (" 3/64 ", BATCH, "3/64"),
        ("auto", BATCH, "2/8"),
        ("auto/8", BATCH, "2/8"),
        ("auto", SLURM, "4/8"),
        ("auto/64", SLURM, "5/64"),
        ("auto", SLURM | {"SLURM_ARRAY_TASK_MAX": "8"}, "4/8"),
        ("auto/16", {"JOB_COMPLETION_INDEX": "0"}, "0/16"),
    ],
)
def test_a_shard_is_read_from_the_option_or_the_array_job(text: str, environ: dict[str, str], expected: str) -> None:
    assert str(parse_shard(text, environ)) == expected


@pytest.mark.parametrize(
    ("text", "environ", "complaint"),
    [
        ("64/64", {}, "shard 64/64 does not exist: shards count from 0"),
        ("0/0", {}, "shard 0/0 does not exist"),
        ("-1/4", {}, "'-1' is not a number"),
        ("1", {}, "--shard '1' is not a shard"),
        ("", {}, "is not a shard"),
        ("1/2/3", {}, "'2/3' is not a number"),
        ("²/4", {}, "is not a number"),
        ("99999999999/4", {}, "is not a number"),
        ("auto", {}, "finds no array job"),
        ("auto/x", BATCH, "'x' is not a number"),
        ("auto/9", BATCH, "does not match the array job, which has 8 tasks"),
        ("auto", {"AWS_BATCH_JOB_ARRAY_INDEX": "x", "AWS_BATCH_JOB_ARRAY_SIZE": "8"}, "AWS_BATCH_JOB_ARRAY_INDEX: 'x'"),
        ("auto", {"JOB_COMPLETION_INDEX": "3"}, "can't tell how many shards there are"),
        ("auto/3", {"JOB_COMPLETION_INDEX": "3"}, "shard 3/3 does not exist"),
        ("auto", {"SLURM_ARRAY_TASK_ID": "5"}, "SLURM_ARRAY_TASK_MIN, which is not set"),
        ("auto", SLURM | {"SLURM_ARRAY_TASK_MAX": "15"}, "so they do not number shards"),
        ("auto", SLURM | {"SLURM_ARRAY_TASK_ID": "12"}, "so they do not number shards"),
    ],
)
def test_what_is_no_shard_is_a_usage_error(text: str, environ: dict[str, str], complaint: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_shard(text, environ)
    assert complaint in str(raised.value)


@pytest.mark.parametrize("text", ["2/4", "1/0", "0.25", "1/", "", "1/-1", "1/²"])
def test_what_is_no_share_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="is not a share"):
        parse_share(text)


def test_missing_shards_are_told_from_the_names_of_journals() -> None:
    assert missing_shards(["a/plan.0-of-3.journal", "s3://b/2-of-3/plan"]) == []
    assert missing_shards(["a/plan.0-of-3.journal", "s3://b/plan-2-of-3"]) == [Shard(1, 3)]
    assert missing_shards(["plan.0-of-3.journal", "plan.1-of-4.journal"]) == []


def fill(bench: Bench, repositories: int = 9) -> Path:
    """Repositories with a layer of their own and one that all share."""
    for number in range(repositories):
        bench.hold(f"team/app-{number}", "1", layer(0), layer(1 + number))
    return bench.plan(*({"from": f"team/app-{number}"} for number in range(repositories)))


async def test_shards_at_once_do_together_what_one_machine_does(here: Bench) -> None:
    path, events = fill(here), Events()
    done: dict[str, str] = {}

    async def run(index: int) -> None:
        report = await here.run(path, journal=False, emit=events, shard=Shard(index, SHARDS))
        done.update(outcomes(report))

    async with anyio.create_task_group() as tg:
        for index in range(SHARDS):
            tg.start_soon(run, index)

    names = [f"team/app-{number}" for number in range(9)]
    assert done == {f"{name}:1": "pushed" for name in names}
    for name in names:
        assert await here.stored(name)
    counts = here.emulator.requests.counts()
    assert {counts["CreateRepository"], counts["PutImage"]} == {9}
    assert counts["CompleteLayerUpload"] == 27, "each repository's two layers and its config, once"
    assert all(request.status == 200 for request in here.emulator.requests if request.operation != "BatchGetImage")
    notices = [event.text for event in events if isinstance(event, Notice) and event.text.startswith("shard")]
    assert len(notices) == SHARDS
    assert all(text.endswith("of the plan's 9 repositories") for text in notices)


async def test_what_another_shard_has_put_is_mounted(here: Bench) -> None:
    await here.mounting()
    path = fill(here)
    base = 0
    for index in range(SHARDS):
        sent = here.emulator.requests.counts()["CompleteLayerUpload"]
        report = await here.run(path, journal=False, shard=Shard(index, SHARDS))
        assert set(outcomes(report).values()) == {"pushed"}
        uploads = here.emulator.requests.counts()["CompleteLayerUpload"] - sent
        base += uploads - 2 * len(report.results)
    assert base == 1, "only the first shard uploads the layer that all share"


async def test_a_shard_uploads_what_cannot_be_mounted_from_another(here: Bench) -> None:
    """Other shards have the layer, but no image of theirs refers to it yet: mounts are declined, and uploads follow."""
    await here.mounting()
    path = fill(here)

    def prepare() -> None:
        client = judge(here.emulator.endpoint_url)
        for number in range(9):
            if not Shard(0, SHARDS).takes(f"team/app-{number}"):
                client.create_repository(repositoryName=f"team/app-{number}")
                upload = client.initiate_layer_upload(repositoryName=f"team/app-{number}")["uploadId"]
                data = here.source.blobs[base]
                client.upload_layer_part(
                    repositoryName=f"team/app-{number}",
                    uploadId=upload,
                    partFirstByte=0,
                    partLastByte=len(data) - 1,
                    layerPartBlob=data,
                )
                client.complete_layer_upload(repositoryName=f"team/app-{number}", uploadId=upload, layerDigests=[base])

    [base] = set.intersection(*(layers_of(here, f"team/app-{number}") for number in range(9)))
    await to_thread.run_sync(prepare)
    report = await here.run(path, journal=False, shard=Shard(0, SHARDS))
    assert set(outcomes(report).values()) == {"pushed"}
    mounts = [request.status for request in here.emulator.requests if request.operation.endswith("/blobs/uploads/")]
    assert 202 in mounts, "a mount was declined"
    puts = [request.status for request in here.emulator.requests if request.operation == "PutImage"]
    assert puts == [200] * len(report.results), "no manifest was put before its layers"


def layers_of(bench: Bench, repository: str) -> set[str]:
    import json

    document: Json = json.loads(bench.source.manifests[f"{repository}:1"][1])
    return {str(each["digest"]) for each in document["layers"]}


async def test_a_shard_without_repositories_has_nothing_to_do(here: Bench, tmp_path: Path) -> None:
    path = fill(here, 1)
    [index] = [index for index in range(2) if not Shard(index, 2).takes("team/app-0")]
    done = await run_beside("migrate", path, "--shard", f"{index}/2")
    assert (done.status, done.out) == (0, "")
    assert f"shard {index}/2 has 0 of the plan's 1 repositories" in done.err
    assert "0 images: nothing to do" in done.err
    assert await anyio.Path(tmp_path / f"plan.{index}-of-2.journal").exists()


async def test_options_that_name_files_take_the_shard(here: Bench, tmp_path: Path) -> None:
    path = fill(here, 1)
    here.source.blobs.pop(next(iter(layers_of(here, "team/app-0"))))
    words = ("--journal", tmp_path / "{shard}.db", "--failed-out", tmp_path / "failed-{shard}.txt")
    done = await run_beside("migrate", path, "--shard", "auto", *words, **{**BATCH, "AWS_BATCH_JOB_ARRAY_INDEX": "0"})
    ran = await run_beside("migrate", path, "--shard", "auto/1", *words, JOB_COMPLETION_INDEX="0")
    assert (done.status, ran.status) == (0 if not Shard(0, 8).takes("team/app-0") else 1, 1)
    for name in ("0-of-8.db", "failed-0-of-8.txt", "0-of-1.db"):
        assert await anyio.Path(tmp_path / name).exists()
    [line] = (await anyio.Path(tmp_path / "failed-0-of-1.txt").read_text()).splitlines()
    assert line.endswith(" team/app-0:1")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--shard", "auto", "--journal", "all.journal"), "is one journal for all shards; write {shard} in it"),
        (("--journal", "{shard}.journal"), "--journal contains {shard}, but there is no shard"),
        (("--failed-out", "{shard}.txt"), "--failed-out contains {shard}, but there is no shard"),
        (("--shard", "8/8"), "shards count from 0"),
        (("--share", "4"), "write 1/P"),
        (("--journal", "s3://"), "names no bucket"),
    ],
)
def test_wrong_usage_is_said_before_anything_is_sent(tmp_path: Path, words: tuple[str, ...], complaint: str) -> None:
    path = tmp_path / "list.txt"
    path.write_text("docker://127.0.0.1:9/team/app:1 team/app\n")
    done = run_here("migrate", path, *words, **BATCH)
    assert done.status == 2
    assert complaint in done.err
    assert done.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]


async def test_processes_of_an_array_job_killed_at_random_finish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As AWS Batch runs them: the same command with other variables, again after it was killed or failed."""
    keys(monkeypatch)
    dice = random.Random(os.environ.get("ASYNCPUSH_KILL_SEED", "7"))
    config = FaultConfig(latency=0.01, bandwidth=30_000_000, quotas="aws")
    async with (
        running() as source,
        Emulator(tmp_path / "ecr", fsync=False, quirks=QUIRKS, fault_config=config) as emulator,
    ):
        bench = Bench(source, emulator, tmp_path)
        for number in range(4):
            data = random.Random(number).randbytes(11 * MiB)
            blob = bench.layout.blob(data, "application/vnd.oci.image.layer.v1.tar")
            configuration = bench.layout.blob(b'{"architecture":"amd64","os":"linux"}', "application/x-config")
            source.hold(bench.layout, bench.layout.manifest(configuration, [blob]), f"team/app-{number}", "1")
        path = bench.plan(*({"from": f"team/app-{number}"} for number in range(4)))
        statuses = Counter[int]()

        async def job(index: int) -> None:
            variables = {"AWS_BATCH_JOB_ARRAY_INDEX": str(index), "AWS_BATCH_JOB_ARRAY_SIZE": "2"}
            words = ["migrate", str(path), "--shard", "auto", "--share", "1/2", "--progress", "none"]
            command = [sys.executable, "-m", "asyncpush", *words, "--part-size", "5MiB"]
            for attempt in range(3):
                async with await anyio.open_process(
                    command, env=cli_environment(**variables), stdout=None, stderr=None
                ) as process:
                    if not attempt:
                        sent = emulator.requests.counts()["UploadLayerPart"] + dice.randint(1, 3)
                        while emulator.requests.counts()["UploadLayerPart"] < sent and process.returncode is None:  # noqa: ASYNC110
                            await anyio.sleep(0.01)
                        with_kill = process.returncode is None
                        if with_kill:
                            process.send_signal(signal.SIGKILL)
                    status = await process.wait()
                statuses[status] += 1
                if status == 0:
                    return
            pytest.fail("three attempts are enough")

        async with anyio.create_task_group() as tg:
            for index in range(2):
                tg.start_soon(job, index)

        assert statuses[0] == 2
        assert statuses[-signal.SIGKILL] >= 1
        for number in range(4):
            assert await bench.stored(f"team/app-{number}")
        taken = [request for request in emulator.requests if request.operation == "UploadLayerPart"]
        kills = statuses[-signal.SIGKILL]
        # Three parts of each layer, one of each config; a kill may lose the answers of what each upload had in flight.
        accepted = sum(request.status == 200 for request in taken)
        assert 16 <= accepted <= 16 + 3 * kills, accepted
        throttled = sum(request.status == 400 for request in emulator.requests if request.operation == "PutImage")
        assert throttled == 0
        journals = [tmp_path / f"plan.{index}-of-2.journal" for index in range(2)]
        merged = await run_beside("journal", "merge", *journals, "--into", tmp_path / "all.journal")
        assert merged.status == 0, merged.err
        assert len(merged.out.splitlines()) == 4
