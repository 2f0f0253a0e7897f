"""shards: how much faster is a migration on 2 and 4 machines, and what do ECR's quotas make of it?

    python benchmarks/shards.py [--workers 1 2 4] [--latency 0.04] [--bandwidth 20MB] [--layers 2]

A machine is a process of ``asyncpush migrate --shard``; all of them, and the emulator, share this one. So that the
network and not its cores is the limit, each machine has few layers in flight, each over a connection of its own at the
rate. The repositories are named so that the shards are equal: what is measured is the machines, not the dice.

Images with the layers of that table go without quotas. In the second table, small images go with ECR's (10 PutImage a
second), and throttled requests are counted, with and without ``--share``. Each is compared with the model: bytes at the
rate of the connections, or images at four fifths of the quota, whichever takes longer.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from data import MiB, Plan, oci_layout
from endpoints import Endpoint, emulator
from harness import Contender, Launch, Results, client, measure
from report import CPU, ENDPOINT_CPU, REQUESTS, SECONDS, options, parse_size, rounds, save, scratch, table

from asyncpush.bench.figures import Spread
from asyncpush.bench.plot import Line, Panel
from asyncpush.migrate.shard import Shard

#: ECR's quota of PutImage, and what of it asyncpush uses, and its burst.
_QUOTA, _USED, _BURST = 10, 0.8, 10


def main() -> None:
    """Measure and report."""
    parser = options(__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], help="machines (1 2 4)")
    parser.add_argument("--latency", type=float, default=0.04, help="seconds a round trip (0.04)")
    parser.add_argument("--bandwidth", type=parse_size, default=20_000_000, help="bytes a second and connection (20MB)")
    parser.add_argument("--layers", type=int, default=2, help="layers in flight on each machine (2)")
    parser.add_argument("--repositories", type=int, default=16, help="repositories with an image of two layers (16)")
    parser.add_argument("--layer-size", type=parse_size, default=10 * MiB, help="bytes of each layer (10MiB)")
    parser.add_argument("--small", type=int, default=200, help="small images, for the quotas (200)")
    parser.add_argument("--transport", choices=["api", "v2"], default="api", help="(api)")
    given = parser.parse_args()
    if given.quick:
        given.workers, given.repositories, given.small, given.layer_size = given.workers[:2], 4, 8, MiB
    with scratch() as folder:
        large = _plan(folder / "large", given, given.repositories, given.layer_size)
        small = _plan(folder / "small", given, given.small, 4096)
        contenders = []
        for count in given.workers:
            wide = partial(_run, folder, given, large, count, quotas=False, share=False)
            labels: dict[str, str | float] = {"kind": "network", "count": count}
            contenders.append(Contender(_name(count), wide, labels))
        for count in given.workers:
            for share in (True,) if given.quick else (False, True):
                metered = partial(_run, folder, given, small, count, quotas=True, share=share)
                labels = {"kind": "quotas", "count": count, "share": float(share)}
                contenders.append(Contender(f"{_name(count)}, {'--share' if share else 'no share'}", metered, labels))
        results = measure(contenders, rounds(given), warm_up=[])
    _report(given, results)


def _name(count: int) -> str:
    return f"{count} machine{'s' if count > 1 else ''}"


def _plan(folder: Path, given: argparse.Namespace, count: int, size: int) -> Path:
    """A plan of images of two layers, each in a repository of its own; as many in each shard, for any of the counts."""
    folder.mkdir()
    most = max(given.workers)
    names: list[str] = []
    number = 0
    while len(names) < count:
        name, number = f"team/app-{number}", number + 1
        if Shard(len(names) % most, most).takes(name):
            names.append(name)
    images = []
    for name in names:
        source = oci_layout(folder / name.replace("/", "-"), [Plan(name, "1", (size, size))])
        images.append({"from": source, "to": name})
    path = folder / "plan.json"
    document = {"version": 1, "targets": {"own": {}}, "defaults": {"repository": {"create": True}}, "images": images}
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


@contextmanager
def _run(
    folder: Path, given: argparse.Namespace, plan: Path, count: int, *, quotas: bool, share: bool
) -> Iterator[Launch]:
    conditions = ["--discard", "--no-verify-signatures", "--latency", f"{given.latency}s", "--admin"]
    conditions += ["--quotas", "aws"] if quotas else ["--bandwidth", f"{given.bandwidth}B/s"]
    images, size = (given.small, 4096) if quotas else (given.repositories, given.layer_size)
    job = {
        "sources": [str(plan)],
        "concurrency": 32 if quotas else given.layers,
        "variant": f"{count}{' share' if share else ''}",
        "transport": given.transport,
    }
    with tempfile.TemporaryDirectory(dir=folder) as data, emulator(Path(data), options=conditions) as endpoint:
        command = client("asyncpush_shards", {"url": endpoint.url, **job}, folder)
        yield Launch(command, endpoint, 2 * images * size, details=partial(_refused, endpoint))


def _refused(endpoint: Endpoint) -> dict[str, object]:
    """How many requests the quotas have refused."""
    document = json.loads(endpoint.fetch("/_emulator/faults"))
    return {"refused": sum(int(hit["count"]) for hit in document.get("hit_counts", ()))}


def _report(given: argparse.Namespace, results: Results) -> None:
    network, metered = results.where(kind="network"), results.where(kind="quotas")
    figures = (SECONDS, CPU, ENDPOINT_CPU, REQUESTS)
    first = network.contenders[0].name
    size = 2 * given.repositories * given.layer_size * (4 / 3 if given.transport == "api" else 1)
    models = {count: _seconds(given, size, count) for count in given.workers}
    rows = []
    for contender in network.contenders:
        name, model = contender.name, models[int(contender.labels["count"])]
        row = [name, *(figure.show(network.values(name, figure.value)) for figure in figures)]
        faster = network.ratio(first, name, SECONDS.value)
        rows.append([*row, f"{faster:.2f}", f"{model:.2f}", f"{network.median(name, SECONDS.value) / model:.2f}"])
    title = f"shards: {2 * given.repositories} layers of {given.layer_size / MiB:g} MiB, {given.latency * 1000:g} ms, "
    title += f"{given.bandwidth / 1e6:g} MB/s a connection, {given.layers} layers in flight on each machine"
    columns = ["machines", *(figure.title for figure in figures), "times as fast", "model, s", "time / model"]
    table(title, columns, rows)
    least = max(1, given.small - _BURST) / (_USED * _QUOTA)
    rows = []
    for contender in metered.contenders:
        name = contender.name
        row = [name, *(figure.show(metered.values(name, figure.value)) for figure in figures)]
        refused = [_count(sample.details["refused"]) / sample.requests for sample in metered.of(name)]
        against = metered.median(name, SECONDS.value) / least
        rows.append([*row, f"{100 * max(refused):.2f}", f"{least:.1f}", f"{against:.2f}"])
    columns = ["machines", *(figure.title for figure in figures), "throttled, % at most", "model, s", "time / model"]
    table(f"shards: {given.small} small images, with ECR's quotas", columns, rows)
    save("shards", given, results, _panels(network, models), model={"network": models, "quotas": least})


def _seconds(given: argparse.Namespace, size: float, count: int) -> float:
    """What the connections allow: each carries its share of the bytes, and of the blobs' round trips."""
    blobs: int = 3 * given.repositories  # two layers and a config
    connections: int = count * given.layers
    rate, latency = float(given.bandwidth), float(given.latency)
    return size / (connections * rate) + blobs / connections * 3 * latency


def _count(value: object) -> int:
    assert isinstance(value, int)
    return value


def _panels(network: Results, models: dict[int, float]) -> Sequence[Panel]:
    names = [(float(each.labels["count"]), each.name) for each in network.contenders]
    lines = [
        Line("measured", [(count, network.spread(name, SECONDS.value)) for count, name in names]),
        Line("model", [(float(count), Spread.of([seconds])) for count, seconds in models.items()]),
    ]
    return [Panel(SECONDS.title, lines=lines, x_label="machines", doubling=True)]


if __name__ == "__main__":
    main()
