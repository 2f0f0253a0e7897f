"""parts: what does it cost to push a part, by asyncpush, by boto3 in threads, by stock aioboto3, and at the least?

    python benchmarks/parts.py [--layers 4] [--size 800MiB] [--part-size 10MiB] [--tls]

Layers of random bytes, in the page cache, go to the discarding endpoint in a process of its own, which shares the
machine's processors. asyncpush shares memory between its threads as the command does. The floor does the same reads,
hashes, base64 and sends with plain sockets in threads, and nothing else.
"""

from __future__ import annotations

import argparse
from functools import partial
from importlib.util import find_spec

from data import MiB, random_files
from endpoints import make_certificate, sink
from harness import Contender, Results, launched, measure
from report import (
    CPU_PER_GIB,
    ENDPOINT_CPU,
    PEAK,
    RATE,
    REQUESTS,
    SECONDS,
    bars,
    compare,
    options,
    parse_size,
    rounds,
    save,
    scratch,
)

OURS = "asyncpush"

#: Name, client and variant of each.
CONTENDERS = (
    (OURS, "asyncpush_layers", ""),
    ("asyncpush, hashed first", "asyncpush_layers", "library"),
    ("asyncpush, uvloop", "asyncpush_layers", "uvloop"),
    ("boto3, threads", "boto3_threads", ""),
    ("aioboto3, stock", "aioboto3_stock", ""),
    ("floor", "floor", ""),
    ("floor, held", "floor", "held"),
)


def main() -> None:
    """Measure and report."""
    parser = options(__doc__)
    parser.add_argument("--layers", type=int, default=4, help="layers that the bytes are cut into (4)")
    parser.add_argument("--size", type=parse_size, default=800 * MiB, help="bytes in all (800MiB)")
    parser.add_argument("--part-size", type=parse_size, default=10 * MiB, help="bytes a part (10MiB)")
    parser.add_argument("--concurrency", type=int, default=8, help="layers in flight, and boto3's threads (8)")
    parser.add_argument("--tls", action="store_true", help="over HTTPS, with a self-signed CA")
    given = parser.parse_args()
    if given.quick:
        given.size = 12 * MiB
    with scratch() as folder:
        tls = make_certificate(folder) if given.tls else None
        layers = random_files(folder, given.layers, given.size // given.layers)
        job = {"layers": layers, "concurrency": given.concurrency}
        with sink(tls, part_size=given.part_size) as endpoint:
            contenders = [
                Contender(name, partial(launched, endpoint, folder, kind, {**job, "variant": variant}))
                for name, kind, variant in CONTENDERS
                if variant != "uvloop" or find_spec("uvloop")
            ]
            results = measure(contenders, rounds(given), warm_up=[] if given.quick else None)
    _report(given, results)


def _report(given: argparse.Namespace, results: Results) -> None:
    title = f"parts: {given.size // MiB} MiB in {given.layers} layers, parts of {given.part_size // MiB} MiB"
    title += ", over HTTPS" if given.tls else ", over HTTP"
    figures = (RATE, SECONDS, CPU_PER_GIB, PEAK, ENDPOINT_CPU, REQUESTS)
    compare(title, results, figures, reference=OURS, ratios=(SECONDS, CPU_PER_GIB))
    name = f"parts-{given.layers}-tls" if given.tls else f"parts-{given.layers}"
    save(name, given, results, [bars(results, figure, title) for figure in (RATE, CPU_PER_GIB, PEAK)])


if __name__ == "__main__":
    main()
