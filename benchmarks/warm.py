"""warm: what does it cost to push everything a second time, when all of it is there?

    python benchmarks/warm.py [IMAGES]

IMAGES is a folder as ``peers`` takes it; without it, those of ``asyncpush demo`` are made. One more image has 8 layers
of one part each. All are pushed to the emulator, into repositories that exist, then all again over a new connection:
one image at a time, and in runs of their own all at once.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from cases import find_images, make_cases
from data import MiB, Plan, oci_layout
from endpoints import emulator
from harness import Contender, Launch, Results, client, measure
from report import PEAK, SECONDS, bars, options, rounds, save, scratch, table


def main() -> None:
    """Measure and report."""
    parser = options(__doc__)
    parser.add_argument("images", type=Path, nargs="?", metavar="IMAGES", help="a folder of images")
    given = parser.parse_args()
    with scratch() as folder:
        cases = find_images(given.images) if given.images else make_cases(folder / "made", small=given.quick)
        # All images of a layout: some of them share layers.
        sources = list(dict.fromkeys(_whole(case.source) for case in cases))
        size = 64 * 1024 if given.quick else 2 * MiB
        sources.append(oci_layout(folder / "eight", [Plan("eight-layers", "1", (size,) * 8)]))
        ways = {"one by one": False, "all at once": True}
        contenders = [Contender(name, partial(_twice, folder, sources, at_once)) for name, at_once in ways.items()]
        results = measure(contenders, rounds(given), warm_up=[] if given.quick else None)
    _report(given, results)


def _whole(source: str) -> str:
    kind, _, name = source.partition(":")
    return f"oci:{name.rpartition(':')[0]}" if kind == "oci" else source


@contextmanager
def _twice(folder: Path, sources: list[str], at_once: bool) -> Iterator[Launch]:
    with tempfile.TemporaryDirectory(dir=folder) as data, emulator(Path(data)) as endpoint:
        job = {"url": endpoint.url, "repository": "bench", "sources": sources, "at_once": at_once}
        job |= {"passes": 2, "create": True}
        yield Launch(client("asyncpush_images", job, folder), endpoint, 0)


def _report(given: argparse.Namespace, results: Results) -> None:
    rounds_of = [_passes(sample.details) for sample in results.of("one by one")]
    rows = []
    for number, first in enumerate(rounds_of[0][0]):
        cold, warm = ([one[which][number] for one in rounds_of] for which in (0, 1))
        rows.append([first["image"], *_columns(cold), *_columns(warm), _operations(warm[0])])
    columns = ["image", "cold, ms", "requests", "MiB sent", "warm, ms", "requests", "MiB sent", "what was asked"]
    table("warm: each image pushed, and pushed again", columns, rows)
    _report_all(results)
    save("warm", given, results, [bars(results, figure, "pushed twice") for figure in (SECONDS, PEAK)])


def _report_all(results: Results) -> None:
    rows = []
    for name in ("one by one", "all at once"):
        samples = results.of(name)
        for which, word in enumerate(("cold", "warm")):
            totals = [_total(_passes(sample.details)[which]) for sample in samples]
            images = int(str(samples[0].details["images"]))
            seconds, requests = median(one[0] for one in totals), median(one[1] for one in totals)
            each = (f"{seconds * 1000 / images:.1f}", f"{requests / images:.1f}")
            rows.append([f"{word}, {name}", str(images), f"{seconds:.2f}", f"{requests:.0f}", *each])
    table("warm: everything", ["push", "images", "wall, s", "requests", "ms an image", "requests an image"], rows)


def _passes(details: dict[str, object]) -> list[list[dict[str, Any]]]:
    passes = details["passes"]
    assert isinstance(passes, list), "the client writes it so"
    return passes


def _total(rows: list[dict[str, Any]]) -> tuple[float, int]:
    return sum(row["seconds"] for row in rows), sum(sum(row["requests"].values()) for row in rows)


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    seconds, requests = (median(_total([row])[which] for row in rows) for which in (0, 1))
    return [f"{seconds * 1000:.1f}", f"{requests:.0f}", f"{rows[0]['bytes'] / MiB:.1f}"]


def _operations(row: dict[str, Any]) -> str:
    return ", ".join(f"{count} {name}" for name, count in row["requests"].items())


if __name__ == "__main__":
    main()
