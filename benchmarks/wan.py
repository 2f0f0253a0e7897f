"""wan: how near does a push come to what a network with a delay and a rate per connection allows?

    python benchmarks/wan.py [--latency 0.04] [--bandwidth 30MB] [--layer-size 128MiB] [--transports api v2]

The discarding endpoint holds each answer back for a round trip, and reads each connection at a fixed rate. All layers
are in flight at once. A layer's parts go in order, the next one on a second connection as soon as the one before has
left for the kernel: what is still in the socket then travels beside it, so that a time can be below the ideal of one
connection a layer. What the machine does without any delay or rate is measured in the same rounds: no network makes it
faster than that.
"""

from __future__ import annotations

import argparse
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


def _unlimited(transport: str) -> str:
    return f"{transport}: no limits"


@dataclass(frozen=True, slots=True)
class Network:
    """A network, and what it allows at best.

    Attributes:
        latency: seconds a round trip.
        bandwidth: bytes a second and connection, of what goes over the wire.
        layer_size: bytes of each layer.
    """

    latency: float
    bandwidth: float
    layer_size: int

    def ideal(self, transport: str) -> float:
        """Seconds for layers at one connection's rate each, if nothing ever waited for an answer.

        The API takes base64: 4/3 of a layer.
        """
        return self.layer_size * (4 / 3 if transport == "api" else 1) / self.bandwidth

    def least(self, transport: str) -> float:
        """The same with the answers that nothing can be sent before: to begin, to the last part, and to complete."""
        return self.ideal(transport) + 3 * self.latency


def main() -> None:
    """Measure and report."""
    parser = options(__doc__)
    parser.add_argument("--latency", type=float, default=0.04, help="seconds a round trip (0.04)")
    parser.add_argument("--bandwidth", type=parse_size, default=30_000_000, help="bytes a second and connection (30MB)")
    parser.add_argument("--layer-size", type=parse_size, default=128 * MiB, help="bytes of each layer (128MiB)")
    parser.add_argument("--part-size", type=parse_size, default=10 * MiB, help="bytes a part, as the endpoint wants it")
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 4, 16, 32], help="layers in flight (1 4 16 32)")
    parser.add_argument("--transports", nargs="+", choices=["api", "v2"], default=["api", "v2"], help="(api v2)")
    given = parser.parse_args()
    if given.quick:
        given.layers, given.layer_size = given.layers[:2], 6 * MiB
    network = Network(given.latency, given.bandwidth, given.layer_size)
    with (
        scratch() as folder,
        sink(part_size=given.part_size, latency=given.latency, bandwidth=given.bandwidth) as wide,
        sink(part_size=given.part_size) as near,
    ):
        contenders = []
        for transport in given.transports:
            for count in given.layers:
                layers = sparse_files(folder, count, given.layer_size)
                job = {"layers": layers, "concurrency": count, "transport": transport}
                labels: dict[str, str | float] = {"kind": "wan", "count": count, "transport": transport}
                run = partial(launched, wide, folder, "asyncpush_layers", job)
                contenders.append(Contender(f"{transport}: {count} layers", run, labels))
            run = partial(launched, near, folder, "asyncpush_layers", job)
            contenders.append(Contender(_unlimited(transport), run, {"kind": "near", "transport": transport}))
        warm_up = [] if given.quick else [each for each in contenders if each.labels["kind"] == "near"]
        results = measure(contenders, rounds(given), warm_up=warm_up)
    _report(given, results, network)


def _report(given: argparse.Namespace, results: Results, network: Network) -> None:
    figures = (SECONDS, RATE, CPU_PER_GIB, PEAK, REQUESTS)
    rows = []
    for contender in results.contenders:
        row = [contender.name, *(figure.show(results.values(contender.name, figure.value)) for figure in figures)]
        rows.append(row + (_against(results, contender, network) if contender.labels["kind"] == "wan" else []))
    title = f"wan: layers of {size_word(given.layer_size)}, {network.latency * 1000:g} ms a request, "
    title += f"{network.bandwidth / 1e6:g} MB/s a connection"
    shares = ["time / ideal", "time / least", "time / least of network and machine"]
    table(title, ["in flight", *(figure.title for figure in figures), *shares], rows)
    if len(given.transports) == 2:
        counts = [
            (count, results.ratio(f"v2: {count} layers", f"api: {count} layers", SECONDS.value))
            for count in given.layers
        ]
        table("time, v2 / api", ["in flight", "v2 / api"], [[str(count), f"{ratio:.3f}"] for count, ratio in counts])
    least = {transport: network.least(transport) for transport in given.transports}
    ideal = {transport: network.ideal(transport) for transport in given.transports}
    save("wan", given, results, _panels(results, given, network), network={"ideal": ideal, "least": least})


def _against(results: Results, contender: Contender, network: Network) -> list[str]:
    name, transport = contender.name, str(contender.labels["transport"])
    ideal, least = network.ideal(transport), network.least(transport)
    machine = [
        sample.seconds / max(least, sample.size / RATE.value(near) / 1e9)
        for sample, near in zip(results.of(name), results.of(_unlimited(transport)), strict=True)
    ]
    seconds = results.median(name, SECONDS.value)
    return [f"{seconds / ideal:.3f}", f"{seconds / least:.3f}", f"{median(machine):.3f}"]


def _panels(results: Results, given: argparse.Namespace, network: Network) -> list[Panel]:
    times, peaks = [], []
    for transport in given.transports:
        found, ideal = results.where(kind="wan", transport=transport), network.ideal(transport)
        names = [(float(contender.labels["count"]), contender.name) for contender in found.contenders]
        least = Spread.of([network.least(transport) / ideal])
        share = partial(_share, ideal=ideal)
        times.append(Line(transport, [(count, found.spread(name, share)) for count, name in names]))
        times.append(Line(f"{transport}: least, with its round trips", [(count, least) for count, _ in names]))
        peaks.append(Line(transport, [(count, found.spread(name, PEAK.value)) for count, name in names]))
    along = "layers in flight"
    return [
        Panel("time / ideal", lines=times, x_label=along, doubling=True),
        Panel(PEAK.title, lines=peaks, x_label=along, doubling=True),
    ]


def _share(sample: Sample, *, ideal: float) -> float:
    return sample.seconds / ideal


if __name__ == "__main__":
    main()
