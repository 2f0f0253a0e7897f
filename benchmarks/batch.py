"""batch: what does a batch cost as a task group of ``push`` calls, and with how many layers in flight should it begin?

    python benchmarks/batch.py [--images 100] [--first 16 32] [--latency 0.2] [--bandwidth 5MB]

First, small images of a registry (an emulator) go into another emulator: by one ``push`` call each, all in a task
group, and by one ``push_all``. Then a medium batch, images of 16 layers of 6 MiB from a layout, goes to the discarding
endpoint over a network with a delay and a rate per connection, beginning with so many layers in flight.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from data import MiB, Plan, oci_layout
from endpoints import Endpoint, emulator, sink
from harness import Contender, Launch, Results, client, measure
from report import CPU, PEAK, REQUESTS, SECONDS, bars, options, parse_size, rounds, save, scratch, table

#: Layers of an image of the medium batch.
_LAYERS = 16


def main() -> None:
    """Measure and report."""
    parser = options(__doc__)
    parser.add_argument("--images", type=int, default=100, help="small images (100)")
    parser.add_argument("--medium", type=int, default=4, help="images of the medium batch (4)")
    parser.add_argument("--first", type=int, nargs="+", default=[16, 32], help="layers in flight at first (16 32)")
    parser.add_argument("--latency", type=float, default=0.2, help="seconds a round trip (0.2)")
    parser.add_argument("--bandwidth", type=parse_size, default=5_000_000, help="bytes a second and connection (5MB)")
    given = parser.parse_args()
    if given.quick:
        given.images, given.medium, given.latency = 4, 1, 0.0
    size = (MiB if given.quick else 6 * MiB,) * _LAYERS
    with scratch() as folder, emulator(folder / "source") as source:
        small = oci_layout(folder / "small", [Plan("small", str(n), (20_000,)) for n in range(given.images)])
        medium = oci_layout(folder / "medium", [Plan("medium", str(n), size) for n in range(given.medium)])
        sources = [f"{small}:{number}" for number in range(given.images)]
        _fill(source, folder, sources)
        sources = [f"docker://{source.host}/bench/{number}:latest" for number in range(given.images)]
        contenders = [Contender(how, partial(_fresh, folder, sources, how)) for how in ("push", "push_all")]
        with sink(latency=given.latency, bandwidth=given.bandwidth) as network:
            sources = [f"{medium}:{number}" for number in range(given.medium)]
            for first in given.first:
                run = partial(_to, network, folder, sources, f"push:{first}")
                contenders.append(Contender(f"medium, {first} at first", run))
            results = measure(contenders, rounds(given), warm_up=[] if given.quick else None)
    _report(given, results)


def _fill(endpoint: Endpoint, folder: Path, sources: list[str]) -> None:
    """Bring images into *endpoint*, where others read them."""
    measure([Contender("source", partial(_to, endpoint, folder, sources, "push_all"))], 1, warm_up=[])


@contextmanager
def _fresh(folder: Path, sources: list[str], how: str) -> Iterator[Launch]:
    with (
        tempfile.TemporaryDirectory(dir=folder) as data,
        emulator(Path(data)) as endpoint,
        _to(endpoint, folder, sources, how) as launch,
    ):
        yield launch


@contextmanager
def _to(endpoint: Endpoint, folder: Path, sources: list[str], how: str) -> Iterator[Launch]:
    job = {"url": endpoint.url, "repository": "bench", "sources": sources, "variant": how}
    yield Launch(client("asyncpush_batch", job, folder), endpoint, 0)


def _report(given: argparse.Namespace, results: Results) -> None:
    figures = (SECONDS, CPU, PEAK, REQUESTS)
    rows = [
        [contender.name, *(figure.show(results.values(contender.name, figure.value)) for figure in figures)]
        for contender in results.contenders
    ]
    table("batch: push calls, push_all, and a medium batch", ["batch", *(figure.title for figure in figures)], rows)
    save("batch", given, results, [bars(results, figure, "batch of images") for figure in (SECONDS, CPU)])


if __name__ == "__main__":
    main()
