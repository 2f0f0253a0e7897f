"""``asyncpush bench``: what it measures, what it leaves behind, and what it asks before it costs anything."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pty
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import web
from anyio import to_thread
from hypothesis import given, settings
from hypothesis import strategies as st

import asyncpush
from asyncpush.bench.figures import Latency
from asyncpush.bench.sweep import LayerMaker
from asyncpush.bench.trials import make_plan, size_word
from asyncpush.emulator import Emulator
from asyncpush.engine.layer import push_layer
from asyncpush.events import RequestDone
from asyncpush.manifest import parse_manifest
from asyncpush.model import Upload
from asyncpush.protocols import SeekableReader
from asyncpush.settings import MiB
from asyncpush.units import parse_size
from support.aws import aws, judge
from support.commands import Ran, Server, cli_environment, run_cli, run_here
from support.events import Events
from support.relay import Relay, hang, lost_request, passed, refused, relay_to

ERROR = "asyncpush: error: "
HOST = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


def small(*more: str | Path, rounds: int = 1, warm_up: int = 0) -> list[str]:
    """A sweep whose pushes take no time, and *more*."""
    often = ["--rounds", str(rounds), "--warm-up", str(warm_up)]
    return ["bench", "--size", "1KiB", "--layers", "2", *often, *map(str, more)]


def here(url: str, *words: str | Path) -> Ran:
    """Run a command against *url*, in this process."""
    return run_here(*words, AWS_ENDPOINT_URL_ECR=url, AWS_REGION="eu-west-1", **KEYS)


def apart(url: str, *words: str | Path) -> Ran:
    """Run a command against *url*, in a process of its own."""
    return run_cli(*words, AWS_ENDPOINT_URL_ECR=url, AWS_REGION="eu-west-1", **KEYS)


def left(url: str) -> list[str]:
    """The repositories that benchmarks have left, by boto3's word."""
    found = judge(url).describe_repositories()["repositories"]
    return [each["repositoryName"] for each in found if each["repositoryName"].startswith("asyncpush-bench")]


def requests_of(server: Server) -> Counter[str]:
    with urllib.request.urlopen(f"{server.url}/_emulator/requests") as answer:
        return Counter(json.load(answer)["counts"])


# What it measures


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ran, Path]:
    """A sweep of two combinations against the emulator, and where its temporary files were."""
    scratch = tmp_path_factory.mktemp("scratch")
    words = ("--layers", "1,2", "--max-layers", "1,1", "--size", "6MiB", "--part-size", "5MiB", "--rounds", "2")
    ran = run_cli("bench", *words, "--output", "json", AWS_PROFILE="no-such-profile", TMPDIR=str(scratch))
    return ran, scratch


def test_without_an_endpoint_it_measures_the_emulator_and_leaves_nothing(swept: tuple[Ran, Path]) -> None:
    ran, scratch = swept

    assert ran.status == 0, ran.err
    endpoint = json.loads(ran.out)["endpoint"]
    assert endpoint["emulator"] is True
    assert list(scratch.iterdir()) == []
    with pytest.raises(OSError, match="refused"), urllib.request.urlopen(endpoint["url"]):
        pass


def test_the_whole_is_said_before_it_is_sent(swept: tuple[Ran, Path]) -> None:
    first = swept[0].err.splitlines()[0]

    # (1 + 2) layers x 6 MiB x (1 warm-up + 2 rounds) = 54 MiB.
    assert first == (
        "asyncpush: 6 pushes, 0.05 GiB of layers in all (0.07 GiB over the wire), to the emulator, "
        "which shares this machine"
    )
    assert json.loads(swept[0].out)["plan"] == {
        "warmUp": 1,
        "rounds": 2,
        "maxMemory": 256 * MiB,
        "bytes": 54 * MiB,
    }


def test_combinations_take_turns(swept: tuple[Ran, Path]) -> None:
    rounds = json.loads(swept[0].out)["rounds"]

    order = [(each["round"], each["layers"], each["maxLayers"]) for each in rounds]
    assert order == [(number, layers, 1) for number in (1, 2) for layers in (1, 2)]


def test_the_document_adds_up(swept: tuple[Ran, Path]) -> None:
    document = json.loads(swept[0].out)

    assert (document["version"], document["failure"]) == (1, None)
    assert document["machine"]["cpus"] == os.cpu_count()
    assert document["versions"]["asyncpush"]
    for each in document["rounds"]:
        layers = each["layers"]
        assert (each["size"], each["partSize"], each["bytes"]) == (6 * MiB, 5 * MiB, layers * 6 * MiB)
        assert each["bytesPerSecond"] == pytest.approx(each["bytes"] / each["seconds"], rel=1e-3)
        assert each["cpuSecondsPerGiB"] == pytest.approx(each["cpuSeconds"] / each["bytes"] * 2**30, rel=1e-3)
        assert each["requests"] == {
            "InitiateLayerUpload": layers,
            "UploadLayerPart": 2 * layers,
            "CompleteLayerUpload": layers,
        }
        assert {name: len(times) for name, times in each["latencies"].items()} == {
            "UploadLayerPart": 2 * layers,
            "CompleteLayerUpload": layers,
        }
        assert all(0 < time < each["seconds"] for times in each["latencies"].values() for time in times)
    for combination in document["combinations"]:
        check_combination(combination, document["rounds"])


def check_combination(combination: dict[str, Any], rounds: list[dict[str, Any]]) -> None:
    """Its figures are those of its rounds."""
    key = ("layers", "size", "maxLayers", "partSize")
    own = [each for each in rounds if all(each[name] == combination[name] for name in key)]
    assert combination["rounds"] == len(own) == 2
    for figure in ("seconds", "bytesPerSecond", "cpuSecondsPerGiB"):
        values = [each[figure] for each in own]
        expected = {"median": statistics.median(values), "least": min(values), "largest": max(values)}
        assert combination[figure] == pytest.approx(expected, rel=1e-6, abs=1e-6)
    for operation, latency in combination["latencies"].items():
        times = sorted(time for each in own for time in each["latencies"][operation])
        assert latency["count"] == len(times)
        assert [latency["p50"], latency["p99"]] == [times[(len(times) - 1) // 2], times[-1]]


def test_every_layer_is_new_and_every_repository_goes(server: Server) -> None:
    before = requests_of(server)
    words = small("--output", "json", "-q", rounds=2, warm_up=1)
    ran = here(server.url, *words)
    sent = requests_of(server) - before

    assert (ran.status, ran.err) == (0, "")
    assert json.loads(ran.out)["endpoint"]["emulator"] is False
    assert sent["CompleteLayerUpload"] == 3 * 2
    assert sent["CreateRepository"] == sent["DeleteRepository"] == 3
    assert left(server.url) == []


def test_the_table_has_a_column_for_what_was_swept_and_names_the_fastest(server: Server) -> None:
    ran = here(
        server.url, "bench", "--size", "1KiB,2KiB", "--layers", "2", "--max-layers", "1,2", "--rounds", "2", "-q"
    )

    assert (ran.status, ran.err) == (0, "")
    lines = ran.out.splitlines()
    assert lines[0].endswith(f" CPUs, to {server.url}")
    assert lines[1] == "layers 2, part-size default, medians of 2 rounds (least-largest)"
    spread = r"[\d.]+ \([\d.]+-[\d.]+\)"
    rows = [line for line in lines if re.fullmatch(rf"[12]KiB +[12]( +{spread}){{3}}( +\d+/\d+/\d+){{2}}", line)]
    assert len(rows) == 4
    assert "No request was throttled or sent again." in lines
    fastest = [line for line in lines if line.startswith("Fastest for")]
    assert [line.split(":")[0] for line in fastest] == ["Fastest for 2 x 1KiB", "Fastest for 2 x 2KiB"]


async def test_throttles_and_retries_are_counted_not_hidden(emulator: Emulator) -> None:
    async with relay_to(emulator.endpoint_url) as relay:
        relay.plan("UploadLayerPart", refused("ThrottlingException"), lost_request)
        ran = await to_thread.run_sync(apart, relay.url, *small("--output", "json"))

    assert ran.status == 0, ran.err
    [combination] = json.loads(ran.out)["combinations"]
    assert (combination["throttled"], combination["retried"]) == (1, 2)
    assert combination["latencies"]["UploadLayerPart"]["count"] == 2
    assert json.loads(ran.out)["rounds"][0]["requests"]["UploadLayerPart"] == 4


async def test_each_try_is_one_event_that_says_how_it_ended(emulator: Emulator) -> None:
    events = Events()
    async with (
        relay_to(emulator.endpoint_url) as relay,
        asyncpush.connect(aws=aws(relay.url), emit=events) as registry,
    ):
        repository = registry.repository("team/app")
        relay.plan("CreateRepository", refused("ThrottlingException"), lost_request)
        await repository.create()
        with pytest.raises(asyncpush.RegistryError):
            await repository.complete_upload(Upload("none", 1, 1), asyncpush.Digest("0" * 64))

    ends = [(event.operation, event.outcome) for event in events.of(RequestDone)]
    assert ends[:3] == [("CreateRepository", outcome) for outcome in ("throttled", "unanswered", "succeeded")]
    assert ("CompleteLayerUpload", "refused") in ends


async def test_a_request_s_time_leaves_out_its_wait_in_line(emulator: Emulator) -> None:
    events = Events()
    async with asyncpush.connect(aws=aws(emulator.endpoint_url), emit=events) as registry:
        await registry.repository("team/app").create()
        pace = registry.pace.of("DescribeRepositories")
        for _ in range(30):
            pace.note_throttle(await pace.acquire())
        [rate] = [each.rate for each in registry.pace.statistics() if each.operation == "DescribeRepositories"]
        began = anyio.current_time()
        async with anyio.create_task_group() as tg:
            for _ in range(3):
                tg.start_soon(registry.repository("team/app").tag_mutability)
        whole = anyio.current_time() - began

    *_, last = [event for event in events.of(RequestDone) if event.operation == "DescribeRepositories"]
    # Throttles empty the bucket: before its own turn, the last request had to wait for those of the two others.
    assert rate
    assert last.seconds < whole - 2 / rate


def test_no_face_shows_the_end_of_each_request(server: Server) -> None:
    ran = here(server.url, *small("--progress", "json"))

    kinds = {json.loads(line)["type"] for line in ran.err.splitlines()[1:]}
    assert kinds == {"image-planned", "notice", "layer-started", "part-sent", "layer-done", "end"}


# The layers


@settings(max_examples=30)
@given(size=st.integers(32, 700_000), start=st.integers(0, 700_000), count=st.integers(0, 400_000))
def test_a_synthetic_layer_can_be_read_from_any_place(size: int, start: int, count: int) -> None:
    async def make() -> Any:
        return (await LayerMaker().make(1, size))[0]

    layer = anyio.run(make)
    with layer.open() as reader:
        assert isinstance(reader, SeekableReader)
        whole = bytearray(size + 10)
        assert reader.readinto(memoryview(whole)) == reader.consumed == size
        assert reader.readinto(memoryview(whole)[:5]) == 0
        piece = bytes(reader.read_at(start, memoryview(bytearray(count))))
    data = bytes(whole[:size])
    assert piece == data[start : start + count]
    assert layer.descriptor.digest.hex == hashlib.sha256(data).hexdigest()


async def test_no_two_layers_are_the_same() -> None:
    maker = LayerMaker()
    layers = [*await maker.make(20, 1024), *await maker.make(20, 1024)]

    assert len({layer.identity for layer in layers}) == 40


# Its arithmetic


@given(st.lists(st.floats(0.001, 100), min_size=1, max_size=300))
def test_a_percentile_is_the_least_time_that_so_many_requests_kept(seconds: list[float]) -> None:
    latency = Latency.of(seconds)

    assert latency is not None
    assert latency.count == len(seconds)
    for share, value in ((50, latency.p50), (90, latency.p90), (99, latency.p99)):
        kept = [each for each in seconds if each <= value]
        assert value in seconds
        assert 100 * len(kept) >= share * len(seconds)
        assert 100 * sum(each < value for each in seconds) < share * len(seconds)


@given(
    layers=st.lists(st.integers(1, 50), min_size=1, max_size=3),
    sizes=st.lists(st.integers(1024, 2**40 // 32), min_size=1, max_size=3),
    warm_up=st.integers(0, 3),
    rounds=st.integers(1, 4),
)
def test_a_plan_takes_every_combination_once_a_round(
    layers: list[int], sizes: list[int], warm_up: int, rounds: int
) -> None:
    plan = make_plan(
        layers=layers,
        sizes=sizes,
        max_layers=[1, 16],
        part_sizes=[None],
        warm_up=warm_up,
        rounds=rounds,
        max_memory=256 * MiB,
    )
    trials = list(plan.trials())

    count = len(set(layers)) * len(set(sizes)) * 2
    assert len(plan.combinations) == len(set(plan.combinations)) == count
    assert [trial.round for trial in trials[::count]] == [0] * warm_up + list(range(1, rounds + 1))
    for first in range(0, len(trials), count):
        assert tuple(trial.combination for trial in trials[first : first + count]) == plan.combinations
    assert plan.total == sum(trial.combination.total for trial in trials)


@given(st.integers(0, 2**45))
def test_a_size_is_written_so_that_it_can_be_given_back(size: int) -> None:
    assert parse_size(size_word(size)) == size


# What it leaves


async def test_after_a_failure_nothing_is_left_and_what_was_measured_is_told(emulator: Emulator) -> None:
    async with relay_to(emulator.endpoint_url) as relay:
        relay.plan("CompleteLayerUpload", passed, passed, *[refused("AccessDeniedException", "Not any more.")] * 2)
        ran = await to_thread.run_sync(
            apart, relay.url, *small("--max-layers", "8", "--output", "json", "-q", rounds=2)
        )

    document = json.loads(ran.out)
    assert ran.status == 1
    assert ran.err.count("\n") == 1
    assert ran.err.startswith(f"{ERROR}round 2, 2 x 1KiB, --max-layers 8: CompleteLayerUpload failed: AccessDenied")
    assert [each["round"] for each in document["rounds"]] == [1]
    assert document["failure"] in ran.err
    assert await to_thread.run_sync(left, emulator.endpoint_url) == []


@pytest.mark.parametrize(("operation", "deleted"), [("CreateRepository", 0), ("InitiateLayerUpload", 1)])
async def test_a_failure_before_any_figures_is_one_line_and_cleans_up(
    emulator: Emulator, operation: str, deleted: int
) -> None:
    """A failure before any figures is one line, and what the sweep created is deleted."""
    async with relay_to(emulator.endpoint_url) as relay:
        relay.plan(operation, *[refused("AccessDeniedException")] * 2)
        ran = await to_thread.run_sync(apart, relay.url, *small("-q"))

    assert (ran.status, ran.out, ran.err.count("\n")) == (4, "", 1)
    assert f"{operation} failed: AccessDenied" in ran.err
    assert relay.seen["DeleteRepository"] == deleted
    assert await to_thread.run_sync(left, emulator.endpoint_url) == []


async def test_a_repository_that_cannot_be_deleted_is_named_with_a_command(
    emulator: Emulator,
) -> None:
    """The error names the repository that stays behind, and the command that removes it."""
    async with relay_to(emulator.endpoint_url) as relay:
        relay.plan("DeleteRepository", refused("AccessDeniedException", "You may not."))
        ran = await to_thread.run_sync(apart, relay.url, *small("-q"))
        [name] = await to_thread.run_sync(left, emulator.endpoint_url)

    assert (ran.status, ran.out) == (1, "")
    assert ran.err == (
        f"{ERROR}repository {name} is left behind: DeleteRepository failed: AccessDeniedException: You may not; "
        f"remove it with: aws ecr delete-repository --force --repository-name {name} "
        f"--region eu-west-1 --endpoint-url {relay.url}\n"
    )


@pytest.mark.parametrize("may_delete", [True, False])
async def test_ctrl_c_leaves_nothing_or_says_what_it_leaves(emulator: Emulator, may_delete: bool) -> None:
    arrived = anyio.Event()

    async def caught(request: web.Request, relay: Relay) -> web.StreamResponse:
        arrived.set()
        return await hang(request, relay)

    async with relay_to(emulator.endpoint_url) as relay:
        relay.plan("UploadLayerPart", caught, caught)
        if not may_delete:
            relay.plan("DeleteRepository", refused("AccessDeniedException"))
        environment = cli_environment(AWS_ENDPOINT_URL_ECR=relay.url, AWS_REGION="eu-west-1", **KEYS)
        command = [sys.executable, "-m", "asyncpush", *small("-q")]
        async with await anyio.open_process(command, env=environment) as process:
            with anyio.fail_after(20):
                await arrived.wait()
            assert len(await to_thread.run_sync(left, emulator.endpoint_url)) == 1
            process.send_signal(signal.SIGINT)
            with anyio.fail_after(20):
                assert process.stderr is not None
                err = b"".join([piece async for piece in process.stderr]).decode()
                status = await process.wait()
        remaining = await to_thread.run_sync(left, emulator.endpoint_url)

    lines = err.splitlines()
    assert status == 130
    assert lines[-1].startswith("asyncpush: interrupted")
    if may_delete:
        assert (remaining, len(lines)) == ([], 1)
    else:
        assert len(lines) == 2
        assert f"repository {remaining[0]} is left behind" in lines[0]
        assert f"aws ecr delete-repository --force --repository-name {remaining[0]} " in lines[0]


async def test_ctrl_c_ends_the_emulator_too(tmp_path: Path) -> None:
    environment = cli_environment(TMPDIR=str(tmp_path))
    words = ["bench", "--size", "64MiB", "--rounds", "1000", "--progress", "json"]
    async with await anyio.open_process([sys.executable, "-m", "asyncpush", *words], env=environment) as process:
        assert process.stderr is not None
        err = b""
        with anyio.fail_after(20):
            while b"part-sent" not in err:
                err += await process.stderr.receive()
        assert await to_thread.run_sync(os.listdir, tmp_path)
        process.send_signal(signal.SIGINT)
        with anyio.fail_after(20):
            async for piece in process.stderr:
                err += piece
            assert await process.wait() == 130
    assert err.decode().splitlines()[-1].startswith("asyncpush: interrupted")
    assert await to_thread.run_sync(os.listdir, tmp_path) == []


@pytest.mark.parametrize("service", ["ecr", "ecr-public"])
async def test_a_repository_is_deleted_with_what_is_in_it_by_force_only(emulator: Emulator, service: str) -> None:
    host = HOST if service == "ecr" else "public.ecr.aws/alias"
    async with asyncpush.connect(host, aws=aws(emulator.endpoint_url)) as registry:
        repository = registry.repository("team/app")
        assert await repository.delete(force=True) is False
        await repository.create()
        [layer] = await LayerMaker().make(1, 1024)
        await push_layer(repository, layer, registry.context)
        manifest = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json"}
        described = {"mediaType": layer.media_type, "digest": layer.identity, "size": 1024}
        raw = json.dumps({**manifest, "config": described, "layers": [described]}).encode()
        await repository.put_image(parse_manifest(raw), "1")
        with pytest.raises(asyncpush.RegistryError, match="RepositoryNotEmptyException"):
            await repository.delete()
        assert await repository.delete(force=True) is True
        assert await repository.create() is True


# What it asks first


@pytest.fixture
def proxy() -> Iterator[tuple[str, list[bytes]]]:
    """A proxy that serves nobody, and what it was asked: all that would leave for AWS goes through it."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def listen() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        asked.append(connection.recv(4096))
                        connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(timeout=5)


TARGETS = (
    [HOST],
    ["public.ecr.aws/alias"],
    ["--region", "eu-west-1"],
    ["--endpoint-url", "https://vpce-1.api.ecr.eu-west-1.vpce.amazonaws.com", "--region", "eu-west-1"],
)


@pytest.mark.parametrize("words", TARGETS, ids=" ".join)
def test_nothing_goes_to_an_account_before_somebody_has_agreed(
    proxy: tuple[str, list[bytes]], words: list[str]
) -> None:
    url, asked = proxy
    ran = run_here(*small(*words), HTTPS_PROXY=url, **KEYS)

    assert (ran.status, ran.out, asked) == (2, "", [])
    assert ran.err.count("\n") == 1
    assert re.search(
        r"1 push, 0\.00 GiB .*(account|own).*(eu-west|us-east)-1.*; there is no terminal .* --yes", ran.err
    )
    agreed = run_here(*small(*words, "--yes", "-q"), HTTPS_PROXY=url, **KEYS)
    assert (agreed.status, agreed.out, agreed.err.count("\n")) == (1, "", 1)
    assert asked[0].startswith(b"CONNECT ")


@pytest.mark.parametrize(("answer", "status"), [("\n", 2), ("y\n", 1), ("\x03", 130)])
def test_a_terminal_is_asked(proxy: tuple[str, list[bytes]], answer: str, status: int) -> None:
    url, asked = proxy
    leader, follower = pty.openpty()
    environment = cli_environment(HTTPS_PROXY=url, AWS_REGION="", **KEYS)
    process = subprocess.Popen(
        [sys.executable, "-c", TERMINAL, *small(HOST)],
        stdin=follower,
        stderr=follower,
        stdout=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    os.close(follower)
    shown = ""
    with contextlib.suppress(OSError):  # the terminal fails once its last writer is gone
        while data := os.read(leader, 65536).decode():
            shown += data
            if data.endswith("[y/N] "):
                os.write(leader, answer.encode())
    out = process.communicate(timeout=20)[0]
    os.close(leader)

    assert (process.returncode, out) == (status, b"")
    assert re.search(r"1 push, .* to account 123456789012, eu-west-1 \(https://api\.ecr\.eu-west-1\.amazonaws", shown)
    assert bool(asked) == (status == 1)


#: The command, with its standard input as the terminal that Ctrl-C comes from.
TERMINAL = (
    "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); from asyncpush.__main__ import main; main()"
)


# What it refuses


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--size 0", "--size is 0 bytes; give 1KiB to 52000MiB"),
        ("--size 60000MiB", "--size is .* bytes; give 1KiB to 52000MiB"),
        ("--size 1MiB,big", "--size: invalid size 'big'"),
        ("--layers 0", "--layers is 0"),
        ("--layers 1,,4", "--layers: '' is not a number"),
        ("--layers -1", "--layers: '-1' is not a number"),
        ("--max-layers 4,0", "--max-layers is 0"),
        ("--part-size 5MiB,4MiB", "--part-size is 4194304 bytes; ECR takes parts of 5MiB to 20MiB"),
        ("--part-size 21MiB", "--part-size is .* bytes; ECR takes parts of 5MiB to 20MiB"),
        ("--max-memory 1MiB", "--max-memory is 1048576 bytes"),
        ("--max-memory lots", "invalid size 'lots'"),
        ("--rounds 0", "--rounds is 0"),
        ("--rounds many", ".*many"),
        ("--warm-up -1", "--warm-up is -1"),
        ("localhost:4510", "'localhost:4510' is not an ECR registry"),
        ("--plot picture.jpg", "--plot picture.jpg is not a .png file"),
        ("--plot missing/picture.png", "--plot missing/picture.png can't be written: No such file or directory"),
        ("--profile none", ".*profile.*none"),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_is_sent(server: Server, words: str, told: str) -> None:
    before = requests_of(server)
    ran = here(server.url, "bench", *words.split())

    assert (ran.status, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert re.match(f"{ERROR}{told}", ran.err), ran.err
    assert requests_of(server) == before


def test_the_plot_is_a_picture(server: Server, need: Callable[[str], str], tmp_path: Path) -> None:
    need("matplotlib")
    picture = tmp_path / "sweep.png"
    ran = here(server.url, *small("--plot", picture, "--max-layers", "1,2", "--part-size", "5MiB,6MiB", "-q"))

    assert (ran.status, ran.err) == (0, "")
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert "MB/s" in ran.out


def test_a_missing_matplotlib_is_told_before_anything_is_measured(server: Server, tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError('No module named matplotlib')")
    before = requests_of(server)
    path = os.pathsep.join([str(tmp_path), str(Path(asyncpush.__file__).parents[1])])
    ran = server.run(*small("--plot", tmp_path / "sweep.png"), PYTHONPATH=path)

    assert (ran.status, ran.out) == (2, "")
    assert ran.err == f"{ERROR}--plot needs matplotlib: No module named matplotlib; pip install 'asyncpush[bench]'\n"
    assert requests_of(server) == before
    assert not (tmp_path / "sweep.png").exists()


def test_an_endpoint_that_is_not_there_is_one_line() -> None:
    ran = here("http://127.0.0.1:9", *small("-q"))

    assert (ran.status, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert "http://127.0.0.1:9" in ran.err


def test_help_names_every_option_in_80_columns() -> None:
    ran = run_cli("bench", "--help", COLUMNS="80")

    assert (ran.status, ran.err) == (0, "")
    assert max(len(line) for line in ran.out.splitlines()) <= 80
    words = "--layers --size --max-layers --part-size --max-memory --rounds --warm-up --plot --yes --region --profile"
    for word in [*words.split(), "--endpoint-url", "--output", "--progress", "--quiet", "--verbose", "REGISTRY"]:
        assert word in ran.out
