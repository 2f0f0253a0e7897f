"""transports: what do layers cost that go to ``/v2/`` as they are, beside ECR's API, oras and crane?

    python benchmarks/transports.py [--size 1GiB] [--only http tls hashed wan many]

asyncpush is measured without its start, except in the last row; peers are whole processes, which start in hundredths of
a second. Last comes a table of goals.

- **http**, **tls**: 8 layers of an OCI layout, whose digests are known, so that nothing needs to be hashed. The floor
  reads and sends the same layers in bare threads, with Python's own TLS, and nothing else.
- **hashed**: the same image from a registry, over TLS at both ends: what comes from there is hashed on its way.
- **wan**: 16 layers over connections of 30 MB/s each, 40 ms away; one column of ``wan.py``.
- **many**: 32 layers of 8 MiB over TLS, whole processes.

The endpoint is an emulator that keeps no layers (``serve --discard``), but hashes them, and checks passwords and
signatures; of **wan**, it is the sink, since the network is to be what limits both transports.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from cases import Case, in_registry, synthetic
from data import GiB, MiB, sparse_files
from endpoints import Certificate, Endpoint, UnavailableError, make_certificate, sink
from harness import Contender, Launch, Results, client, launched, measure, progress
from pushers import CRANE, ORAS, V2, Pusher, push_target
from report import (
    CPU_PER_GIB,
    ENDPOINT_CPU,
    PEAK,
    PROCESS_CPU,
    RATE,
    REQUESTS,
    SECONDS,
    Figure,
    bars,
    compare,
    options,
    parse_size,
    rounds,
    save,
    scratch,
    table,
    tool_versions,
)

_API, _V2 = "asyncpush, api", "asyncpush, v2"


@dataclass(frozen=True, slots=True)
class Row:
    """An image, the way to the endpoint, and who pushes.

    Attributes:
        key: its name at ``--only``.
        title: what its table says.
        layers: how many the image has.
        size: bytes of each layer.
        is_tls: push over TLS.
        from_registry: the image comes from a registry, over the same scheme.
        library: the transports that asyncpush's library pushes by, measured without its start.
        has_floor: measure the least that a client in Python can do, too.
        peers: who pushes as a whole process.
    """

    key: str
    title: str
    layers: int
    size: int
    is_tls: bool
    from_registry: bool = False
    library: tuple[str, ...] = ("v2", "api")
    has_floor: bool = False
    peers: tuple[Pusher, ...] = ()


def _rows(given: argparse.Namespace) -> list[Row]:
    """The rows that were asked for."""
    size = given.size // 8
    network = given.wan_layer_size / given.bandwidth
    far = f"{given.latency * 1000:g} ms a request, {given.bandwidth / 1e6:g} MB/s a connection"
    far += f"; the bytes alone need {network:.1f} s by v2, {network * 4 / 3:.1f} s by api"
    small = 64 * 1024 if given.quick else 8 * MiB
    rows = [
        Row("http", "over HTTP, digests known", 8, size, is_tls=False, has_floor=True, peers=(ORAS,)),
        Row("tls", "over TLS, digests known", 8, size, is_tls=True, has_floor=True, peers=(ORAS,)),
        Row("hashed", "over TLS, from a registry", 8, size, is_tls=True, from_registry=True, peers=(ORAS,)),
        Row("wan", f"over HTTP, {far}", 16, given.wan_layer_size, is_tls=False),
        Row("many", "over TLS, whole processes", 32, small, is_tls=True, library=(), peers=(V2, CRANE)),
    ]
    return [row for row in rows if row.key in given.only]


@dataclass(frozen=True, slots=True)
class Goal:
    """What a figure must and should be.

    Attributes:
        row: where it is measured.
        name: what it is.
        needs: the contenders that it needs.
        measured: reads it from the results of the row.
        at_least: the worst value that will do.
        aim: the value to reach.
        is_more_better: larger values are better.
    """

    row: str
    name: str
    needs: tuple[str, ...]
    measured: Callable[[Results], float]
    at_least: float
    aim: float
    is_more_better: bool = False

    def reaches(self, value: float, goal: float) -> bool:
        """Whether *value* is as good as *goal*."""
        return value >= goal if self.is_more_better else value <= goal


def _ratio(row: str, one: str, other: str, figure: Figure) -> Callable[[Results], float]:
    return lambda results: results.ratio(f"{one}: {row}", f"{other}: {row}", figure.value)


GOALS = (
    Goal(
        "http",
        "CPU s/GiB of v2 over HTTP, digests known",
        (_V2,),
        lambda results: results.median(f"{_V2}: http", CPU_PER_GIB.value),
        0.6,
        0.3,
    ),
    Goal("tls", "over TLS: CPU, v2 / oras", (_V2, "oras"), _ratio("tls", _V2, "oras", CPU_PER_GIB), 0.8, 0.5),
    Goal(
        "hashed", "from a registry: CPU, v2 / oras", (_V2, "oras"), _ratio("hashed", _V2, "oras", CPU_PER_GIB), 1, 0.9
    ),
    Goal("wan", "16 layers far away: time, v2 / api", (_V2, _API), _ratio("wan", _V2, _API, SECONDS), 0.8, 0.76),
    Goal(
        "many",
        "32 layers of 8 MiB: time, crane / v2",
        ("crane", _V2),
        _ratio("many", "crane", _V2, SECONDS),
        1,
        1.5,
        True,
    ),
)


def main() -> None:
    """Measure and report."""
    parser = options(__doc__)
    keys = ("http", "tls", "hashed", "wan", "many")
    parser.add_argument("--only", nargs="+", choices=keys, default=list(keys), help="the rows to measure (all)")
    parser.add_argument("--size", type=parse_size, default=GiB, help="bytes of the image of 8 layers (1GiB)")
    parser.add_argument("--wan-layer-size", type=parse_size, default=128 * MiB, help="bytes of a layer of wan (128MiB)")
    parser.add_argument("--latency", type=float, default=0.04, help="seconds a round trip of wan (0.04)")
    parser.add_argument("--bandwidth", type=parse_size, default=30_000_000, help="bytes a second and connection (30MB)")
    given = parser.parse_args()
    if given.quick:
        given.size, given.wan_layer_size, given.latency = 8 * 64 * 1024, 64 * 1024, 0.001
    skipped: dict[str, str] = {}
    with scratch() as folder, ExitStack() as stack:
        certificate = make_certificate(folder)
        made: dict[tuple[int, int], Case] = {}
        contenders: list[Contender] = []
        for row in _rows(given):
            if row.key == "wan":
                far = stack.enter_context(sink(latency=given.latency, bandwidth=given.bandwidth))
                contenders += _far_away(folder, row, far)
                continue
            shape = (row.layers, row.size)
            if shape not in made:
                layout = folder / f"{row.layers}-layers-of-{row.size}"
                made[shape] = synthetic(layout, row.layers * row.size, layers=row.layers)
            tls = certificate if row.is_tls else None
            try:
                case = _source(stack, folder, row, made[shape], tls)
            except UnavailableError as error:
                skipped[row.key] = str(error)
            else:
                contenders += _entrants(folder, row, case, tls, skipped)
        results = measure(contenders, rounds(given), warm_up=[] if given.quick else None)
    _report(given, results, skipped)


def _source(stack: ExitStack, folder: Path, row: Row, case: Case, tls: Certificate | None) -> Case:
    if not row.from_registry:
        return case
    data = folder / f"registry-{row.key}"
    data.mkdir()
    return stack.enter_context(in_registry(case, data, tls))


def _entrants(
    folder: Path, row: Row, case: Case, tls: Certificate | None, skipped: dict[str, str]
) -> Iterator[Contender]:
    for transport in row.library:
        shown = f"asyncpush, {transport}"
        labels: dict[str, str | float] = {"shown": shown, "row": row.key}
        yield Contender(f"{shown}: {row.key}", partial(_by_library, folder, row, case, tls, transport), labels)
    if row.has_floor:
        yield Contender(f"floor: {row.key}", partial(_floor, folder, case, tls), {"shown": "floor", "row": row.key})
    for pusher in row.peers:
        name, labels = f"{pusher.name}: {row.key}", {"shown": pusher.name, "row": row.key}
        if shutil.which(pusher.program):
            yield Contender(name, partial(_by_process, folder, case, tls, pusher), labels)
        else:
            skipped[name] = f"{pusher.program} is not on the PATH"


def _far_away(folder: Path, row: Row, endpoint: Endpoint) -> Iterator[Contender]:
    layers = sparse_files(folder, row.layers, row.size)
    for transport in row.library:
        job = {"layers": layers, "concurrency": row.layers, "transport": transport}
        labels: dict[str, str | float] = {"shown": f"asyncpush, {transport}", "row": row.key}
        run = partial(launched, endpoint, folder, "asyncpush_layers", job)
        yield Contender(f"asyncpush, {transport}: {row.key}", run, labels)


@contextmanager
def _by_library(folder: Path, row: Row, case: Case, tls: Certificate | None, transport: str) -> Iterator[Launch]:
    with push_target(folder, tls, options=("--discard",)) as target:
        job = {"url": target.endpoint.url, "repository": "bench", "sources": [case.source], "create": True}
        job |= {"transport": transport, "concurrency": row.layers, "variant": "connected"}
        yield Launch(client("asyncpush_images", job, folder), target.endpoint, case.size, target.environment)


@contextmanager
def _floor(folder: Path, case: Case, tls: Certificate | None) -> Iterator[Launch]:
    with push_target(folder, tls, options=("--discard",)) as target:
        job = {"url": target.endpoint.url, "repository": target.repository, "sources": [case.source]}
        yield Launch(client("floor_v2", job, folder), target.endpoint, case.size, target.environment)


@contextmanager
def _by_process(folder: Path, case: Case, tls: Certificate | None, pusher: Pusher) -> Iterator[Launch]:
    with push_target(folder, tls, options=("--discard",)) as target:
        command = pusher.command(case, target)
        if command is None:
            raise UnavailableError(f"{pusher.name} does not read {case.kind}")
        yield Launch(command, target.endpoint, case.size, target.environment)


def _report(given: argparse.Namespace, results: Results, skipped: dict[str, str]) -> None:
    figures = (SECONDS, RATE, CPU_PER_GIB, PROCESS_CPU, PEAK, ENDPOINT_CPU, REQUESTS)
    panels = []
    for row in _rows(given):
        found = results.where(row=row.key)
        if not found.contenders:
            continue
        title = f"transports: {row.layers} layers of {row.size / MiB:,.1f} MiB, {row.title}"
        compare(title, found, figures, reference=f"{_V2}: {row.key}", ratios=(SECONDS, CPU_PER_GIB))
        panels.append(bars(found, SECONDS if row.key in ("wan", "many") else CPU_PER_GIB, f"{row.key}: {row.title}"))
    goals = list(_judge(results))
    table("goals", ["figure", "measured", "at least", "aim", "met"], [each.row for each in goals])
    for name, reason in skipped.items():
        progress.print(f"skipped: {name}: {reason}", highlight=False, soft_wrap=True)
    save(
        "transports",
        given,
        results,
        panels,
        skipped=skipped,
        goals=[asdict(each) for each in goals],
        tools=tool_versions(["crane", "oras"]),
    )


@dataclass(frozen=True, slots=True)
class Judged:
    """A goal and what was measured."""

    name: str
    measured: float
    at_least: float
    aim: float
    met: str

    @property
    def row(self) -> list[str]:
        """For a table."""
        return [self.name, f"{self.measured:.3f}", f"{self.at_least:g}", f"{self.aim:g}", self.met]


def _judge(results: Results) -> Iterator[Judged]:
    """The goals whose contenders have run."""
    names = {contender.name for contender in results.contenders}
    for goal in GOALS:
        if names.issuperset(f"{name}: {goal.row}" for name in goal.needs):
            value = goal.measured(results)
            met = "yes" if goal.reaches(value, goal.at_least) else "NO"
            met = "the aim" if goal.reaches(value, goal.aim) else met
            yield Judged(goal.name, value, goal.at_least, goal.aim, met)


if __name__ == "__main__":
    main()
