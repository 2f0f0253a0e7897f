"""A plan on a Dask cluster: real schedulers and workers in processes, which are killed; nothing is sent twice."""

from __future__ import annotations

import json
import random
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import anyio
import pytest
from anyio import to_thread
from anyio.abc import Process

from asyncpush import Settings
from asyncpush.emulator import Emulator
from asyncpush.emulator.faults import FaultConfig
from asyncpush.errors import (
    AsyncpushError,
    PlanError,
    RepositoryNotFoundError,
    ServiceError,
    SourceNotFoundError,
    TagImmutableError,
    UsageError,
)
from asyncpush.events import Event, ImageDone, LayerDone, LayerFailed, Notice
from asyncpush.migrate.dask.client import Cluster
from asyncpush.migrate.dask.plain import (
    Job,
    PlainError,
    Results,
    ShardOutcome,
    error_of,
    event_of,
    from_plain,
    plain_error,
    plain_event,
    plain_report,
    to_plain,
)
from asyncpush.migrate.dask.worker import check_worker, local_paths
from asyncpush.migrate.ledger import Options
from asyncpush.migrate.plan.load import parse_plan, read_plan
from asyncpush.settings import AwsConfiguration, MiB, SourceRegistry
from support.aws import QUIRKS
from support.commands import Ran, cli_environment, run_cli, run_here
from support.journals import digest
from support.migrations import Bench, keys, layer, outcomes
from support.registry_server import RegistryServer, running

REPOSITORIES = 4
#: Three parts of each layer, and one of each config.
PARTS = 4 * REPOSITORIES


@pytest.fixture
def dask(need: Callable[[str], str]) -> str:
    """The program ``dask``; tests that need it start several processes of about a second each."""
    need("distributed")
    return str(Path(sys.executable).with_name("dask"))


@pytest.fixture
async def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    """A source of layers of several parts, and a target that takes its time, with ECR's quotas."""
    keys(monkeypatch)
    config = FaultConfig(latency=0.02, bandwidth=20_000_000, quotas="aws")
    async with (
        running() as source,
        Emulator(tmp_path / "ecr", fsync=False, quirks=QUIRKS, fault_config=config) as emulator,
    ):
        bench = Bench(source, emulator, tmp_path)
        fill(bench, source)
        yield bench


def fill(bench: Bench, source: RegistryServer) -> None:
    for number in range(REPOSITORIES):
        blob = bench.layout.blob(random.Random(number).randbytes(11 * MiB), "application/vnd.oci.image.layer.v1.tar")
        config = bench.layout.blob(b'{"architecture":"amd64","os":"linux"}', "application/x-config")
        source.hold(bench.layout, bench.layout.manifest(config, [blob]), f"team/app-{number}", "1")


def plan(bench: Bench) -> Path:
    return bench.plan(*({"from": f"team/app-{number}"} for number in range(REPOSITORIES)))


def accepted(bench: Bench) -> int:
    return sum(each.operation == "UploadLayerPart" and each.status == 200 for each in bench.emulator.requests)


async def parts_taken(bench: Bench, count: int, process: Process, log: str) -> None:
    """Wait until the process has begun its run and *count* more parts have been taken, or until it has ended."""
    said = anyio.Path(bench.folder / f"{log}.err")
    while "shards to run" not in await said.read_text() and process.returncode is None:  # noqa: ASYNC110
        await anyio.sleep(0.01)
    wanted = accepted(bench) + count
    while accepted(bench) < wanted and process.returncode is None:  # noqa: ASYNC110 - the log of the emulator has no event
        await anyio.sleep(0.01)


@asynccontextmanager
async def started(*command: str | Path, folder: Path, log: str) -> AsyncIterator[Process]:
    """A process whose output goes to files, and that is killed at the end."""
    with (folder / f"{log}.out").open("wb") as out, (folder / f"{log}.err").open("wb") as err:
        words = [str(word) for word in command]
        async with await anyio.open_process(words, stdout=out, stderr=err, env=cli_environment()) as process:
            try:
                yield process
            finally:
                if process.returncode is None:
                    process.kill()


async def address_in(file: Path) -> str:
    """A scheduler's address, once it has written its file to the end."""
    with anyio.fail_after(60):
        while True:
            with suppress(FileNotFoundError, json.JSONDecodeError):
                return str(json.loads(await anyio.Path(file).read_text())["address"])
            await anyio.sleep(0.05)


def migration(path: Path, cluster: str, *words: str) -> list[str]:
    own = ["--part-size", "5MiB", "--progress", "plain", "--shards", "8"]
    return [sys.executable, "-m", "asyncpush", "migrate", str(path), "--dask", cluster, *own, *words]


def printed(folder: Path, log: str) -> Ran:
    return Ran(0, (folder / f"{log}.out").read_text(), (folder / f"{log}.err").read_text())


async def everything_is_there(bench: Bench, out: str) -> None:
    found = sorted(line.partition("@")[0] for line in Ran(0, out, "").references.splitlines())
    assert found == [f"team/app-{number}:1" for number in range(REPOSITORIES)]
    for number in range(REPOSITORIES):
        assert await bench.stored(f"team/app-{number}")
    throttled = sum(each.operation == "PutImage" and each.status == 400 for each in bench.emulator.requests)
    assert throttled == 0


async def test_processes_finish_a_plan_though_one_of_them_is_killed(dask: str, slow: Bench, tmp_path: Path) -> None:
    import psutil

    page = tmp_path / "run.html"
    words = migration(plan(slow), "local:2", "--report", str(page))
    async with started(*words, folder=tmp_path, log="run") as client:
        await parts_taken(slow, 4, client, "run")
        workers = [
            child
            for child in psutil.Process(client.pid).children(recursive=True)
            if "spawn_main" in " ".join(child.cmdline())
        ]
        assert len(workers) == 2, printed(tmp_path, "run").err
        workers[0].send_signal(signal.SIGKILL)
        assert await client.wait() == 0, printed(tmp_path, "run").err

    ran = printed(tmp_path, "run")
    await everything_is_there(slow, ran.out)
    assert PARTS <= accepted(slow) <= PARTS + 2, "a kill loses the answers of what one shard has in flight"
    assert f"{REPOSITORIES} images: " in ran.err
    assert "Traceback" not in ran.err
    layers = re.findall(r'"title":[^{}]*"outcome":"(\w+)"', page.read_text())
    assert layers.count("pushed") >= REPOSITORIES
    assert set(layers) <= {"pushed", "interrupted"}, "the layers of a worker that was killed have not failed"
    # Its journals are those of the shards of any other engine.
    journals = [file for index in range(8) if (file := tmp_path / f"plan.{index}-of-8.journal").exists()]
    merge = partial(run_here, "journal", "merge", *journals, "--into", tmp_path / "all.journal")
    merged = await to_thread.run_sync(merge)
    assert len(merged.out.splitlines()) == REPOSITORIES
    workers = [worker for worker in workers if worker.is_running()]
    assert not workers, "no process is left"


async def test_a_cluster_goes_on_though_clients_and_a_worker_are_killed(dask: str, slow: Bench, tmp_path: Path) -> None:
    """The client is killed, started again and interrupted, started again; then a worker is killed."""
    file = tmp_path / "scheduler.json"
    scheduler = (dask, "scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", file)
    worker = (dask, "worker", "--scheduler-file", file, "--nthreads", "1", "--no-nanny", "--no-dashboard")
    async with (
        started(*scheduler, folder=tmp_path, log="scheduler"),
        started(*worker, folder=tmp_path, log="worker-0") as victim,
        started(*worker, folder=tmp_path, log="worker-1"),
    ):
        address = await address_in(file)
        words = migration(plan(slow), address, "--journal", str(tmp_path / "{shard}.journal"))
        for number, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
            async with started(*words, folder=tmp_path, log="client") as client:
                await parts_taken(slow, 3, client, "client")
                client.send_signal(number)
                with anyio.fail_after(60):
                    assert await client.wait() == status, printed(tmp_path, "client").err
        assert "interrupted" in printed(tmp_path, "client").err
        async with started(*words, folder=tmp_path, log="client") as client:
            await parts_taken(slow, 2, client, "client")
            victim.kill()
            assert await client.wait() == 0, printed(tmp_path, "client").err

    ran = printed(tmp_path, "client")
    await everything_is_there(slow, ran.out)
    assert PARTS <= accepted(slow) <= PARTS + 6, "two shards run at once, and three times they were stopped"


def test_a_scheduler_out_of_reach_is_said_in_one_line(
    dask: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "0.5s")
    path = tmp_path / "list.txt"
    path.write_text("docker://127.0.0.1:9/team/app:1 team/app\n")
    done = run_cli("migrate", path, "--dask", "tcp://127.0.0.1:9", "--no-resume", "--progress", "none")
    assert done.status == 1
    assert "the Dask scheduler tcp://127.0.0.1:9 can't be reached" in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--dask", "local:0"), "is not a cluster; write tcp://SCHEDULER:8786, or local:4"),
        (("--dask", "local:"), "is not a cluster"),
        (("--dask", "local:9999999999999"), "is not a cluster"),
        (("--dask", "scheduler:8786"), "is not a cluster"),
        (("--dask", "tcp://"), "is not a cluster"),
        (("--dask", "local:2", "--shard", "0/4"), "--dask runs all shards, and --shard is for one"),
        (("--dask", "local:2", "--dry-run"), "--dry-run needs no cluster"),
        (("--dask", "local:2", "--shards", "0"), "--shards is 0"),
        (("--shards", "4"), "--shards is for --dask"),
        (("--dask", "local:2", "--journal", "one.journal"), "is one journal for all shards; write {shard} in it"),
        (("--dask", "tcp://127.0.0.1:9"), "need journals that each of them reaches"),
        (("--dask", "local:2", "--src-creds", "me:secret-word"), "is not sent to the workers of a cluster"),
    ],
)
def test_wrong_usage_of_a_cluster_is_refused(tmp_path: Path, words: tuple[str, ...], complaint: str) -> None:
    path = tmp_path / "list.txt"
    path.write_text("docker://127.0.0.1:9/team/app:1 team/app\n")
    done = run_here("migrate", path, *words)
    assert done.status == 2
    assert complaint in done.err
    assert "secret-word" not in done.err
    assert list(tmp_path.iterdir()) == [path]


def test_dask_is_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    path = tmp_path / "list.txt"
    path.write_text("docker://127.0.0.1:9/team/app:1 team/app\n")
    done = run_here("migrate", path, "--dask", "local:2")
    assert (done.status, done.out) == (2, "")
    assert "--dask needs Dask, which is not installed; pip install 'asyncpush[dask]'" in done.err


def job(path: Path, **members: object) -> Job:
    common = {
        "version": "0.1.0",
        "text": path.read_text(),
        "path": str(path),
        "shards": 4,
        "settings": Settings(),
        "options": Options(),
        "aws": AwsConfiguration(),
        "sources": {},
        "has_login": False,
        "platforms": (),
        "create_repository": False,
        "strict": False,
        "journal": None,
        "local_paths": (),
    }
    return Job(**{**common, **members})  # type: ignore[arg-type]


async def test_a_worker_is_asked_before_whether_it_can_run_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, archive = tmp_path / "list.txt", tmp_path / "app.tar"
    archive.write_bytes(b"")
    path.write_text(f"{archive} team/app:1\n")
    known = job(path, local_paths=(str(archive),))
    assert (await check_worker(to_plain(known)))["missing"] == []
    archive.unlink()
    assert (await check_worker(to_plain(known)))["missing"] == [str(archive)]

    path.write_text(
        "version: 1\ntargets: {here: {registry: '${NOWHERE}'}}\nimages: [{from: docker.io/library/nginx}]\n"
    )
    told = await check_worker(to_plain(job(path)))
    assert "NOWHERE" in str(error_of(from_plain(told["error"], PlainError)))

    with pytest.raises(UsageError, match=r"docker-daemon:app:1 is on this machine alone; migrate it without --dask"):
        local_paths(parse_plan("s3://b/app.tar team/a\ndocker-daemon:app:1 team/b\n", None, {}))

    source = SourceRegistry(host="127.0.0.1:9")
    path.write_text("docker://127.0.0.1:9/team/app:1 team/app\n")
    login = job(path, sources={source.host: source}, has_login=True)
    monkeypatch.delenv("ASYNCPUSH_SRC_CREDS", raising=False)
    told = await check_worker(to_plain(login))
    assert "ASYNCPUSH_SRC_CREDS is not set" in str(error_of(from_plain(told["error"], PlainError)))
    monkeypatch.setenv("ASYNCPUSH_SRC_CREDS", "me:secret")
    assert (await check_worker(to_plain(login)))["error"] is None
    other = await check_worker({**to_plain(login), "version": "9.9", "text": 7})
    assert other == {"error": None, "version": "0.1.0", "missing": []}


async def test_a_job_is_plain_data(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text("version: 1\n")
    sources = {"a.test": SourceRegistry(host="a.test", ca_bundle=Path("/etc/ca.pem"))}
    settings = Settings(max_layers=3, part_size=5 * MiB, quota_share=0.25)
    travels = job(path, sources=sources, settings=settings, options=Options(recheck=True))
    document = json.loads(json.dumps(to_plain(travels)))
    assert from_plain(document, Job) == travels


@pytest.mark.parametrize(
    "error",
    [
        UsageError("no", hint="do"),
        PlanError(["a: no", "b: no"]),
        ServiceError("PutImage", "ThrottlingException", "slow down", status=400, request_id="1"),
        RepositoryNotFoundError("PutImage", "RepositoryNotFoundException", "none", status=400),
        TagImmutableError("team/app", "1", "this", digest("that")),
        SourceNotFoundError("nothing there"),
    ],
)
def test_an_error_comes_back_as_it_was(error: AsyncpushError) -> None:
    again = error_of(from_plain(json.loads(json.dumps(to_plain(plain_error(error)))), PlainError))
    assert (type(again), str(again), again.hint) == (type(error), str(error), error.hint)
    for name in ("code", "status", "problems"):
        assert getattr(again, name, None) == getattr(error, name, None)


def test_an_error_of_an_unknown_class_is_no_way_to_other_code() -> None:
    for kind in ("Path", "traceback", "object", "no_such"):
        again = error_of(PlainError(kind=kind, message="m", hint=None, members={}))
        assert type(again) is AsyncpushError


@pytest.mark.parametrize(
    "event",
    [
        ImageDone("team/app:1", digest("a"), "pushed"),
        LayerDone("key", digest("b"), "mounted"),
        LayerFailed("key"),
        Notice("x"),
    ],
)
def test_an_event_comes_back_as_it_was(event: Event) -> None:
    plain = plain_event(event)
    assert plain is not None
    assert event_of(*json.loads(json.dumps(plain))) == event


async def test_a_report_comes_back_as_it_was(here: Bench) -> None:
    here.hold("team/app", "1", layer(1))
    path = here.plan(
        {"from": "team/app"}, {"from": "team/none"}, {"from": "team/app", "to": "team/x", "tags": {"glob": "z*"}}
    )
    report = await here.run(path, journal=False, retries=0)
    document = json.loads(json.dumps(to_plain(plain_report(report, None))))
    outcome = from_plain(document, ShardOutcome)
    made = Results(await read_plan(path))
    again = [made.result(result) for result in outcome.results]
    assert {result.copy.destination: result.outcome for result in again} == outcomes(report)
    assert [str(result.error) for result in again] == [str(result.error) for result in report.results]
    assert [result.copy.key for result in again] == [result.copy.key for result in report.results]
    assert [made.nothing_taken(nothing) for nothing in outcome.nothing_taken] == list(report.nothing_taken)
    assert outcome.sent == report.sent
    assert Cluster.parse("local:3") == Cluster(processes=3)
