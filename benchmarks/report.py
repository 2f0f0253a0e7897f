"""What a benchmark leaves: a table on standard output, a JSON file with every round, a PNG."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from endpoints import UnavailableError
from figures import CPU, CPU_PER_GIB, ENDPOINT_CPU, PEAK, PROCESS_CPU, RATE, REQUESTS, SECONDS, Figure
from harness import ContenderError, Results, progress
from plots import Panel, draw
from rich.console import Console
from rich.table import Table

_PACKAGES = ("asyncpush", "aioboto3", "aiobotocore", "aiohttp", "anyio", "boto3", "botocore", "pybase64", "uvloop")


def options(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks share."""
    summary = (description or "").strip().partition("\n")[0]
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("--rounds", type=int, default=3, help="rounds after the warm-up (3)")
    parser.add_argument("--quick", action="store_true", help="small sizes, one round, no warm-up: does it work at all?")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="where JSON and PNG go")
    return parser


def rounds(given: argparse.Namespace) -> int:
    """The rounds to run; one in a quick run."""
    return 1 if given.quick else max(1, int(given.rounds))


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for data that is gone afterwards; what a machine lacks ends the benchmark with one line."""
    try:
        with tempfile.TemporaryDirectory(prefix="asyncpush-bench-") as folder:
            yield Path(folder)
    except (UnavailableError, ContenderError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: words to the left, figures to the right."""
    shown = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for position, column in enumerate(columns):
        shown.add_column(column, justify="right" if position else "left", overflow="fold")
    for row in rows:
        shown.add_row(*row)
    # A pipe has no width of its own: nothing may be cut off there.
    out = Console(width=None if sys.stdout.isatty() else 200)
    out.print(shown)
    out.print()


def compare(
    title: str, results: Results, figures: Sequence[Figure], *, reference: str, ratios: Sequence[Figure]
) -> None:
    """Print a row a contender: its figures, and those of *ratios* divided by the reference's, round by round."""
    shown = next(contender.shown for contender in results.contenders if contender.name == reference)
    columns = ["contender", *(figure.title for figure in figures)]
    columns += [f"{figure.short} / {shown}'s" for figure in ratios]
    rows = []
    for contender in results.contenders:
        name = contender.name
        row = [contender.shown, *(figure.show(results.values(name, figure.value)) for figure in figures)]
        row += [f"{results.ratio(name, reference, figure.value):.2f}" for figure in ratios]
        rows.append(row)
    table(title, columns, rows)


def save(name: str, given: argparse.Namespace, results: Results, panels: Sequence[Panel], **more: object) -> None:
    """Write NAME.json, and NAME.png where matplotlib is installed."""
    folder: Path = given.out
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "benchmark": name,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "options": {key: str(value) for key, value in vars(given).items()},
        "contenders": {contender.name: contender.labels for contender in results.contenders},
        "medians": _medians(results),
        "rounds": results.document(),
        **more,
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    picture = draw(path.with_suffix(".png"), f"{name}, {machine()['cpus']} CPUs, {document['made']}", panels)
    progress.print(f"written: {path}, {picture}", highlight=False, soft_wrap=True)


def _medians(results: Results) -> dict[str, dict[str, float]]:
    figures = (SECONDS, RATE, CPU, CPU_PER_GIB, PROCESS_CPU, PEAK, ENDPOINT_CPU, REQUESTS)
    return {
        contender.name: {
            figure.title: results.median(contender.name, figure.value)
            for figure in figures
            if results.of(contender.name)[0].size or figure not in (RATE, CPU_PER_GIB)
        }
        for contender in results.contenders
    }


def bars(results: Results, figure: Figure, *, title: str = "") -> Panel:
    """A panel of one figure, a bar a contender."""
    found = {}
    for contender in results.contenders:
        values = results.values(contender.name, figure.value)
        found[contender.shown] = (results.median(contender.name, figure.value), min(values), max(values))
    return Panel(title or figure.title, found)


def machine() -> dict[str, object]:
    """What the benchmark ran on."""
    model = platform.processor() or platform.machine()
    if (told := Path("/proc/cpuinfo")).exists():
        names = [
            line.partition(":")[2].strip() for line in told.read_text("utf-8").splitlines() if "model name" in line
        ]
        model = names[0] if names else model
    return {
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "model": model,
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "load": os.getloadavg(),
    }


def versions() -> dict[str, str]:
    """Python's and the packages' versions."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
