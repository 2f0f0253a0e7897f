"""scale: how do time, memory and requests grow with the number and the size of layers, and with the number of images?

    python benchmarks/scale.py [--images 200] [--max-layers 64] [--full]

Layers are sparse files (zeros that take no room on disk, and are read, hashed and encoded like any bytes) and go to the
discarding endpoint. Images are small, with two layers of their own each, ten to a repository, and go to the emulator.
``--full`` goes on to 2 GiB a layer, to one layer of 10 GiB and to 1,000 images.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from data import GiB, MiB, Plan, oci_layout, sparse_files
from endpoints import Endpoint, emulator, sink
from harness import Contender, Launch, Results, client, launched, measure
from report import (
    CPU,
    CPU_PER_GIB,
    ENDPOINT_CPU,
    PEAK,
    RATE,
    REQUESTS,
    SECONDS,
    Figure,
    options,
    rounds,
    save,
    scratch,
    table,
)

from asyncpush.bench.plot import Line, Panel
from asyncpush.bench.trials import size_word

#: Layers and the size of each.
_QUICK = ((1, MiB), (4, MiB))
_USUAL = (
    *((count, size) for size in (MiB, 16 * MiB) for count in (1, 4, 16, 64)),
    *((count, 256 * MiB) for count in (1, 4, 16)),
    (1, GiB),
)
_FULL = (*_USUAL, (64, 256 * MiB), (8, GiB), (8, 2 * GiB), (1, 10 * GiB))

_IMAGE_FIGURES = (SECONDS, CPU, ENDPOINT_CPU, PEAK, REQUESTS)


def main() -> None:
    """Measure and report."""
    parser = options(__doc__)
    parser.add_argument("--images", type=int, default=0, help="small images, at the most (200; 1,000 with --full)")
    parser.add_argument("--max-layers", type=int, default=64, help="layers in flight at most (64, as by default)")
    parser.add_argument("--full", action="store_true", help="up to 8 layers of 2 GiB, and one of 10 GiB")
    given = parser.parse_args()
    cases = _QUICK if given.quick else _FULL if given.full else _USUAL
    with scratch() as folder, sink() as endpoint:
        layers = [_layers(endpoint, folder, given.max_layers, *case) for case in cases]
        images = [_images(folder, number) for number in _numbers(given)]
        warm_up = [] if given.quick else [layers[0], images[0]]
        results = measure([*layers, *images], rounds(given), warm_up=warm_up)
    _report(given, results)


def _numbers(given: argparse.Namespace) -> list[int]:
    if given.quick:
        return [given.images or 4]
    most = given.images or (1000 if given.full else 200)
    return sorted({max(1, most // 8), max(1, most // 4), max(1, most // 2), most})


def _layers(endpoint: Endpoint, folder: Path, max_layers: int, count: int, size: int) -> Contender:
    job = {"layers": sparse_files(folder, count, size), "concurrency": max_layers, "watch_loop": True}
    labels: dict[str, str | float] = {"kind": "layers", "count": count, "size": size}
    prepare = partial(launched, endpoint, folder, "asyncpush_layers", job)
    return Contender(f"{count} x {size_word(size)}", prepare, labels)


def _images(folder: Path, number: int) -> Contender:
    plans = [Plan(f"team/app-{each // 10}", f"1.{each}", (32 * 1024, 4 * 1024)) for each in range(number)]
    source = oci_layout(folder / f"layout-{number}", plans)
    prepare = partial(_fresh_push, folder, source, sum(sum(plan.layers) for plan in plans))
    return Contender(f"{number} images", prepare, {"kind": "images", "count": number})


@contextmanager
def _fresh_push(folder: Path, source: str, size: int) -> Iterator[Launch]:
    with tempfile.TemporaryDirectory(dir=folder) as data, emulator(Path(data)) as endpoint:
        job = {"url": endpoint.url, "repository": "bench", "sources": [source], "concurrency": 16}
        yield Launch(client("asyncpush_images", job, folder), endpoint, size)


def _report(given: argparse.Namespace, results: Results) -> None:
    layers, images = results.where(kind="layers"), results.where(kind="images")
    figures = (SECONDS, RATE, CPU_PER_GIB, PEAK, REQUESTS)
    rows = [
        [
            contender.name,
            *(figure.show(layers.values(contender.name, figure.value)) for figure in figures),
            f"{max(_longest(sample.details) for sample in layers.of(contender.name)):.1f}",
        ]
        for contender in layers.contenders
    ]
    columns = ["layers", *(figure.title for figure in figures), "longest callback, CPU ms"]
    table(f"scale: layers, at most {given.max_layers} in flight", columns, rows)
    rows = [_image_row(images, contender) for contender in images.contenders]
    columns = ["images", *(figure.title for figure in _IMAGE_FIGURES), "ms an image", "requests an image"]
    table("scale: small images, all at once, to the emulator", columns, rows)
    save("scale", given, results, _panels(layers, images))


def _image_row(images: Results, contender: Contender) -> list[str]:
    name, count = contender.name, float(contender.labels["count"])
    row = [name, *(figure.show(images.values(name, figure.value)) for figure in _IMAGE_FIGURES)]
    each = images.median(name, SECONDS.value) * 1000 / count
    return [*row, f"{each:.1f}", f"{images.median(name, REQUESTS.value) / count:.1f}"]


def _longest(details: dict[str, object]) -> float:
    longest = details["longest_callback"]
    assert isinstance(longest, float), "the client was told to watch the loop"
    return longest * 1000


def _panels(layers: Results, images: Results) -> list[Panel]:
    panels = []
    sizes = sorted({contender.labels["size"] for contender in layers.contenders})
    for figure in (RATE, PEAK):
        lines = []
        for size in sizes:
            found = layers.where(size=size)
            lines.append(_line(size_word(int(size)), found, figure))
        panels.append(Panel(figure.title, lines=lines, x_label="layers", doubling=True, better=figure.better))
    lines = [_line("small images", images, SECONDS)]
    return [*panels, Panel(SECONDS.title, lines=lines, x_label="images", doubling=True)]


def _line(name: str, results: Results, figure: Figure) -> Line:
    """A figure along the count of layers or images."""
    spreads = [results.spread(contender.name, figure.value) for contender in results.contenders]
    counts = [float(contender.labels["count"]) for contender in results.contenders]
    return Line(name, list(zip(counts, spreads, strict=True)))


if __name__ == "__main__":
    main()
