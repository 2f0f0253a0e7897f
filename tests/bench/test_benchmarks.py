"""The benchmarks: their discarding endpoint is one that clients take for ECR, and each of them runs and reports."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from anyio import to_thread
from botocore.exceptions import ClientError

import asyncpush
from asyncpush import Settings
from support.aws import aws, judge
from support.images import Layout, layer_tar
from support.places import ROOT

BENCHMARKS = ROOT / "benchmarks"

#: The benchmark that every run of the tests includes.
ALWAYS_RUN = "parts"
MiB = 1024 * 1024

#: Bytes whose last part is a short one, and none of whose parts has a length that 3 divides.
LAYER = bytes(range(256)) * (4 * 1024 * 2 + 7)


@dataclass(frozen=True, slots=True)
class Sink:
    """A running discarding endpoint."""

    url: str

    @property
    def stats(self) -> dict[str, Any]:
        """What it has received."""
        with urllib.request.urlopen(f"{self.url}/_sink/stats") as reply:
            return json.load(reply)


Start = Callable[..., AbstractContextManager[Sink]]


@contextmanager
def sink(*options: str) -> Iterator[Sink]:
    """Run ``benchmarks/sink.py``."""
    command = [sys.executable, str(BENCHMARKS / "sink.py"), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Sink(process.stdout.readline().strip())
        finally:
            process.terminate()
        assert json.loads(process.stdout.read())["cpu_seconds"] > 0
    assert process.returncode == 0


def push_by_boto3(url: str, part_size: int) -> None:
    """Push ``LAYER`` as boto3's documentation shows it, and see that every answer is what ECR's would be."""
    client = judge(url)
    upload = client.initiate_layer_upload(repositoryName="bench/layer")
    assert upload["partSize"] == part_size
    for first in range(0, len(LAYER), part_size):
        part = LAYER[first : first + part_size]
        last = first + len(part) - 1
        members = {"repositoryName": "bench/layer", "uploadId": upload["uploadId"], "layerPartBlob": part}
        answer = client.upload_layer_part(**members, partFirstByte=first, partLastByte=last)
        assert answer["lastByteReceived"] == last
    digest = f"sha256:{hashlib.sha256(LAYER).hexdigest()}"
    members = {"repositoryName": "bench/layer", "uploadId": upload["uploadId"]}
    assert client.complete_layer_upload(**members, layerDigests=[digest])["layerDigest"] == digest


def test_boto3_completes_a_layer_on_the_sink() -> None:
    with sink("--part-size", str(MiB)) as endpoint:
        push_by_boto3(endpoint.url, MiB)

        assert endpoint.stats["requests"] == {
            "InitiateLayerUpload": 1,
            "UploadLayerPart": 3,
            "CompleteLayerUpload": 1,
            "stats": 1,
        }
        assert endpoint.stats["layer_bytes"] == len(LAYER)


async def test_asyncpush_completes_layers_and_images_on_the_sink(tmp_path: Path) -> None:
    layout = Layout()
    layout.tag(layout.image(layer_tar("base")), "1").write(tmp_path / "layout")
    files = [tmp_path / f"layer-{number}" for number in range(3)]
    for number, file in enumerate(files):
        file.write_bytes(bytes([number]) * (11 * MiB + number))

    with sink() as endpoint:
        async with asyncpush.connect(aws=aws(endpoint.url), settings=Settings(create_repository=True)) as registry:
            layers = await asyncpush.push_layers(registry, files, "bench/layers")
            received = (await to_thread.run_sync(lambda: endpoint.stats))["layer_bytes"]
            image = await asyncpush.push(registry, f"oci:{tmp_path / 'layout'}", "bench/image:1")

    assert [getattr(layer, "outcome", layer) for layer in layers] == ["pushed"] * 3
    assert received == 33 * MiB + 3
    assert image.outcome == "pushed"


async def test_asyncpush_completes_layers_at_the_v2_of_the_sink(tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    layer.write_bytes(LAYER)

    with sink() as endpoint:
        async with asyncpush.connect(aws=aws(endpoint.url), settings=Settings(transport="v2")) as registry:
            [pushed] = await asyncpush.push_layers(registry, [layer], "bench/layers")
        stats = await to_thread.run_sync(lambda: endpoint.stats)

    assert getattr(pushed, "outcome", pushed) == "pushed"
    assert stats["layer_bytes"] == len(LAYER)
    assert {name for name in stats["requests"] if name.startswith("v2 ")} == {"v2 POST", "v2 PATCH", "v2 PUT"}
    assert "UploadLayerPart" not in stats["requests"]


def test_the_sink_refuses_a_part_that_is_not_as_long_as_it_says() -> None:
    members = {"repositoryName": "bench/layer", "uploadId": "one", "layerPartBlob": LAYER}

    with sink() as endpoint:
        with pytest.raises(ClientError, match="InvalidLayerPartException"):
            judge(endpoint.url).upload_layer_part(**members, partFirstByte=0, partLastByte=2 * len(LAYER))
        assert endpoint.stats["layer_bytes"] == 0


def test_no_push_is_faster_than_the_network_that_the_sink_stands_for() -> None:
    rate, latency = 8_000_000, 0.02
    with sink("--part-size", str(MiB), "--bandwidth", str(rate), "--latency", str(latency)) as endpoint:
        started = time.monotonic()
        push_by_boto3(endpoint.url, MiB)
        seconds = time.monotonic() - started

    assert seconds >= len(LAYER) * 4 / 3 / rate + 5 * latency


BENCHES = {
    "parts --tls": ("--layers", "2", "--tls"),
    "scale": (),
    "shards": ("--workers", "1"),
    "peers": ("--without", "skopeo", "regctl", "oras", "ocync"),
    "transports": ("--only", "http"),
    "warm": (),
}


@pytest.mark.parametrize("bench", BENCHES)
def test_a_benchmark_prints_a_table_and_writes_down_every_round(bench: str, tmp_path: Path) -> None:
    done = run(bench.split()[0], tmp_path, *BENCHES[bench])

    [written] = tmp_path.glob("*.json")
    check(written)
    assert "wall, s" in done.stdout
    assert written.with_suffix(".png").exists() == (find_spec("matplotlib") is not None)


def test_the_start_of_each_command_is_measured_as_a_whole_process(tmp_path: Path) -> None:
    done = run("start", tmp_path)

    rounds = json.loads((tmp_path / "start.json").read_bytes())["rounds"]
    requests = {sample["contender"]: sample["requests"] for sample in rounds}
    assert list(requests) == ["push", "push again", "--help", "--version", "import aioboto3, anyio, rich"]
    assert requests["push"] >= 5
    assert requests["--help"] == requests["--version"] == 0
    assert all(0 < sample["seconds"] == sample["process_seconds"] for sample in rounds)
    assert "start: whole processes" in done.stdout


def test_without_matplotlib_a_benchmark_goes_on_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "matplotlib.py").write_text("raise ImportError")

    done = run("wan", tmp_path / "results", "--latency", "0.005", "--transports", "v2", PYTHONPATH=str(tmp_path))

    assert "time / ideal" in done.stdout
    assert "matplotlib is not installed" in done.stderr
    [written] = (tmp_path / "results").iterdir()
    check(written)


def check(written: Path) -> None:
    """See that a benchmark's JSON says what was measured where, in every round."""
    document = json.loads(written.read_bytes())
    assert written.stem.startswith(document["benchmark"].partition("-")[0])
    assert document["machine"]["cpus"] >= 1
    assert document["versions"]["asyncpush"]
    assert {sample["contender"] for sample in document["rounds"]} == set(document["medians"])
    for sample in document["rounds"]:
        assert 0 < sample["seconds"] <= sample["process_seconds"]
        assert sample["requests"] > 0
        assert sample["peak"] > MiB


def run(bench: str, out: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a benchmark's own command, quickly; without ``ASYNCPUSH_BENCHMARKS``, only one of them."""
    if (bench, "--tls" in options) != (ALWAYS_RUN, False) and not os.environ.get("ASYNCPUSH_BENCHMARKS"):
        pytest.skip("the benchmarks take two minutes of processor time: set ASYNCPUSH_BENCHMARKS=1, as CI does")
    command = [sys.executable, str(BENCHMARKS / f"{bench}.py"), "--quick", "--out", str(out), *options]
    merged = {**os.environ, **environment}
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=merged)
    assert done.returncode == 0, done.stderr
    return done


#: A migration that is over in seconds.
SMALL = ("--size", "3MB", "--repositories", "5", "--tags", "8", "--latency", "1ms", "--manifests", "0")


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the benchmarks, whose modules can be imported."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return BENCHMARKS


def test_migrate_compares_with_peers_and_finds_all_targets_equal(
    need: Callable[[str], str], skopeo: str, tmp_path: Path
) -> None:
    need("docker-registry")
    peers = ["skopeo", *(["regsync"] if shutil.which("regsync") else [])]

    done = run("migrate", tmp_path, *SMALL, "--mounting", "on", "--contenders", "asyncpush", *peers)

    [written] = tmp_path.glob("*.json")
    check(written)
    document = json.loads(written.read_bytes())
    assert [each["tool"] for each in document["checked"]] == ["asyncpush", *peers]
    assert [each["equality"]["wrong"] for each in document["checked"]] == [[], *([] for _ in peers)]
    sent = {sample["contender"]: sample["details"]["bytes_received"] for sample in document["rounds"]}
    assert all(size > 2_500_000 for name, size in sent.items() if name.endswith(", cold"))
    assert {name: size for name, size in sent.items() if size and not name.endswith(", cold")} == {}
    assert len(sent) == 3 + 2 * len(peers)
    assert {each["name"]: each["value"] <= each["limit"] for each in document["judged"]}["bytes sent / unique bytes"]
    assert "requests at the sources" in done.stdout


def test_a_migration_that_is_killed_ends_with_everything_there(need: Callable[[str], str], tmp_path: Path) -> None:
    need("docker-registry")

    done = run("migrate", tmp_path, *SMALL, "--size", "10MB", "--kills", "3")

    [written] = tmp_path.glob("*.json")
    kills = json.loads(written.read_bytes())["kills"]
    assert 1 <= kills["kills"] <= 3
    assert kills["equality"]["wrong"] == []
    assert len(kills["runs"]) == kills["kills"] + 1
    # No limit here: of so little, one part is a large share.
    assert kills["received"]["kept"] == sum(each["wire"]["bytes_kept"] for each in kills["runs"]) > 1_000_000
    assert kills["undisturbed"]["bytes_received"] > 9_000_000
    assert "in flight at kills" in done.stdout


def test_a_forecast_is_compared_with_its_run(need: Callable[[str], str], tmp_path: Path) -> None:
    need("docker-registry")

    done = run("migrate", tmp_path, *SMALL, "--forecast")

    [written] = tmp_path.glob("*.json")
    [made] = json.loads(written.read_bytes())["rounds"]
    [registry] = made["forecast"]["registries"]
    expected = {limit["name"]: limit["amount"] for limit in registry["limits"]}
    assert 0 < expected["PutImage"] <= made["requests"]["PutImage"]
    assert expected["UploadLayerPart"] > 0
    assert "PutImage" in done.stdout


def test_the_brake_is_measured_over_both_transports(tmp_path: Path) -> None:
    run("brake", tmp_path)

    [written] = tmp_path.glob("*.json")
    measured = json.loads(written.read_bytes())["measured"]
    assert [each["transport"] for each in measured] == ["api", "v2"]
    assert all(0 < each["slowest"] <= each["mean"] <= each["fastest"] for each in measured)


def test_what_is_missing_at_the_target_of_a_migration_is_noticed(
    benchmarks: Path, need: Callable[[str], str], skopeo: str, tmp_path: Path
) -> None:
    need("docker-registry")
    import corpus
    import stage
    import tools

    recipe = corpus.Recipe(size=500_000, repositories=2, tags=3)
    with (
        stage.sources(tmp_path / "corpus", recipe, print) as origin,
        stage.target(tmp_path, origin, stage.Conditions("1ms", "100MB/s", 0), mounting=True) as here,
    ):
        environment = {**here.endpoint.environment(), **here.environment}
        subprocess.run(tools.skopeo_command(here), env=environment, check=True, timeout=60)
        assert tools.check(origin, here, referrers=False).wrong == ()
        [lacking] = [each for each in tools.check(origin, here, referrers=True).wrong if "lacks its referrers" in each]
        signed = origin.corpus.repositories[1]
        assert lacking.startswith(signed.target)

        tag, digest = next(iter(origin.corpus.repositories[0].tags.items()))
        repository = origin.corpus.repositories[0].target
        here.ecr.batch_delete_image(repositoryName=repository, imageIds=[{"imageDigest": digest}])
        wrong = tools.check(origin, here, referrers=False).wrong
        assert f"{repository}:{tag} is missing, not {digest}" in wrong
        assert f"{repository}@{digest} is missing" in wrong

    assert stage.find_corpus(stage.place_of(tmp_path / "corpus", recipe)) == origin.corpus
    assert stage.find_corpus(stage.place_of(tmp_path / "corpus", corpus.Recipe(seed=2))) is None


def test_a_corpus_is_the_same_for_the_same_seed_and_as_large_as_asked_for(benchmarks: Path) -> None:
    import corpus

    recipe = corpus.Recipe(size=50_000_000, repositories=8, tags=24)
    drawings = corpus.draw(recipe)
    layers = {
        layer.name: layer.size
        for drawing in drawings
        for platforms in drawing.images.values()
        for each in platforms
        for layer in each
    }

    assert corpus.draw(recipe) == drawings
    assert corpus.draw(corpus.Recipe(seed=2, size=50_000_000, repositories=8, tags=24)) != drawings
    assert sum(len(drawing.images) + bool(drawing.alias) for drawing in drawings) == 24
    assert sum(layers.values()) == pytest.approx(50_000_000, rel=0.01)
    assert {drawing.host for drawing in drawings} == {"registry", "emulator"}


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("PutImage", "PutImage"),
        ("PATCH /v2/team/app/blobs/uploads/3f6c?_state=x", "PATCH uploads"),
        ("POST /v2/team/app/blobs/uploads/", "POST uploads"),
        ("HEAD /v2/team/blobs/blobs/sha256:00", "HEAD blob"),
        ("GET /v2/app/manifests/1.0", "GET manifest"),
        ("GET /v2/app/referrers/sha256:00", "GET referrers"),
        ("GET /v2/", "GET other"),
    ],
)
def test_requests_are_counted_by_kind(benchmarks: Path, operation: str, kind: str) -> None:
    import wire

    assert wire.kind_of(operation) == kind
