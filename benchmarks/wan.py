"""wan: how near does a push come to what a network with a delay and a rate per connection allows?

    python benchmarks/wan.py [--latency 0.04] [--bandwidth 30MB] [--layer-size 128MiB]

The discarding endpoint holds each answer back for a round trip, and reads each connection at a fixed rate. All layers
are in flight at once. A layer's parts go in order, the next one on a second connection as soon as the one before has
left for the kernel: what is still in the socket then travels beside it, so that a time can be below the ideal of one
connection a layer. What the machine does without any delay or rate is measured in the same rounds: no network makes it
faster than that.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

from data import MiB, sparse_files
from endpoints import sink
from harness import Contender, Results, Sample, launched, measure
from report import CPU_PER_GIB, PEAK, RATE, REQUESTS, SECONDS, options, parse_size, rounds, save, scratch, table

from asyncpush.bench.figures import Spread
from asyncpush.bench.plot import Line, Panel
from asyncpush.bench.trials import size_word

_UNLIMITED = "no limits"


@dataclass(frozen=True, slots=True)
class Network:
    """A network, and what it allows at best.

    Attributes:
        latency: seconds a round trip.
        bandwidth: bytes a second and connection, of what goes over the wire: base64, 4/3 of the layer.
    """

    latency: float
    bandwidth: float

    def ideal(self, layer_size: int) -> float:
        """Seconds for layers of *layer_size* at one connection's rate each, if nothing ever waited for an answer."""
        return layer_size * 4 / 3 / self.bandwidth

    def least(self, layer_size: int) -> float:
        """The same with the answers that nothing can be sent before: to begin, to the last part, and to complete."""
        return self.ideal(layer_size) + 3 * self.latency


def main() -> None:
    """Measure and report."""
    parser = options(__doc__)
    parser.add_argument("--latency", type=float, default=0.04, help="seconds a round trip (0.04)")
    parser.add_argument("--bandwidth", type=parse_size, default=30_000_000, help="bytes a second and connection (30MB)")
    parser.add_argument("--layer-size", type=parse_size, default=128 * MiB, help="bytes of each layer (128MiB)")
    parser.add_argument("--part-size", type=parse_size, default=10 * MiB, help="bytes a part, as the endpoint wants it")
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 4, 16, 32], help="layers in flight (1 4 16 32)")
    given = parser.parse_args()
    if given.quick:
        given.layers, given.layer_size = given.layers[:2], 6 * MiB
    network = Network(given.latency, given.bandwidth)
    with (
        scratch() as folder,
        sink(part_size=given.part_size, latency=given.latency, bandwidth=given.bandwidth) as wide,
        sink(part_size=given.part_size) as near,
    ):
        contenders = []
        for count in given.layers:
            job = {"layers": sparse_files(folder, count, given.layer_size), "concurrency": count}
            run = partial(launched, wide, folder, "asyncpush_layers", job)
            contenders.append(Contender(f"{count} layers", run, {"kind": "wan", "count": count}))
        run = partial(launched, near, folder, "asyncpush_layers", job)
        contenders.append(Contender(_UNLIMITED, run, {"kind": "near", "count": count}))
        results = measure(contenders, rounds(given), warm_up=contenders[-1:] if not given.quick else [])
    _report(given, results, network)


def _report(given: argparse.Namespace, results: Results, network: Network) -> None:
    figures = (SECONDS, RATE, CPU_PER_GIB, PEAK, REQUESTS)
    rows = []
    for contender in results.contenders:
        row = [contender.name, *(figure.show(results.values(contender.name, figure.value)) for figure in figures)]
        rows.append(row + ([] if contender.name == _UNLIMITED else _against(results, contender.name, given, network)))
    title = f"wan: layers of {size_word(given.layer_size)}, {network.latency * 1000:g} ms a request, "
    title += f"{network.bandwidth / 1e6:g} MB/s a connection"
    shares = ["time / ideal", "time / least", "time / least of network and machine"]
    table(title, ["in flight", *(figure.title for figure in figures), *shares], rows)
    save("wan", given, results, _panels(results, given, network), network=_network(network, given.layer_size))


def _network(network: Network, layer_size: int) -> dict[str, float]:
    return {"ideal": network.ideal(layer_size), "least": network.least(layer_size)}


def _against(results: Results, name: str, given: argparse.Namespace, network: Network) -> list[str]:
    ideal, least = network.ideal(given.layer_size), network.least(given.layer_size)
    machine = [
        sample.seconds / max(least, sample.size / RATE.value(near) / 1e9)
        for sample, near in zip(results.of(name), results.of(_UNLIMITED), strict=True)
    ]
    seconds = results.median(name, SECONDS.value)
    return [f"{seconds / ideal:.3f}", f"{seconds / least:.3f}", f"{median(machine):.3f}"]


def _panels(results: Results, given: argparse.Namespace, network: Network) -> list[Panel]:
    found = results.where(kind="wan")
    ideal = network.ideal(given.layer_size)
    least = Spread.of([network.least(given.layer_size) / ideal])

    def line(figure: Callable[[Sample], float]) -> Line:
        names = [(float(contender.labels["count"]), contender.name) for contender in found.contenders]
        return Line("asyncpush", [(count, found.spread(name, figure)) for count, name in names])

    times = line(lambda sample: sample.seconds / ideal)
    floor = Line("least, with its round trips", [(count, least) for count, _ in times.points])
    along = "layers in flight"
    return [
        Panel("time / ideal", lines=[times, floor], x_label=along, doubling=True),
        Panel(PEAK.title, lines=[line(PEAK.value)], x_label=along, doubling=True),
    ]


if __name__ == "__main__":
    main()
