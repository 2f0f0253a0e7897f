"""Reports: tables of figures on standard output, a JSON file with every round, and a picture."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from endpoints import UnavailableError
from harness import ContenderError, Results, Sample, progress

from asyncpush import units
from asyncpush.bench.figures import Spread
from asyncpush.bench.plot import Panel, draw_panels
from asyncpush.bench.report import machine, make_console, make_table, versions
from asyncpush.errors import UsageError

GiB = 1024**3
MiB = 1024**2

_PACKAGES = ("asyncpush", "aioboto3", "aiobotocore", "aiohttp", "anyio", "boto3", "botocore", "pybase64", "uvloop")


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of a run, and how a table shows it.

    Attributes:
        title: what and in which unit.
        value: reads it from a run.
        digits: decimals.
        spread: show the least and the largest, too.
        better: which values are better.
    """

    title: str
    value: Callable[[Sample], float]
    digits: int = 2
    spread: bool = False
    better: Literal["", "lower", "higher"] = "lower"

    @property
    def short(self) -> str:
        """The title without its unit."""
        return self.title.partition(",")[0].partition(" s/")[0]

    def show(self, values: Sequence[float]) -> str:
        """The median of *values*, and their spread if asked for."""
        spread = Spread.of(values)
        return spread.show(self._number) if self.spread and len(values) > 1 else self._number(spread.median)

    def _number(self, value: float) -> str:
        return f"{value:,.{self.digits}f}"


SECONDS = Figure("wall, s", lambda sample: sample.seconds, spread=True)
RATE = Figure("GB/s", lambda sample: sample.size / sample.seconds / 1e9, 3, spread=True, better="higher")
CPU = Figure("CPU, s", lambda sample: sample.cpu)
CPU_PER_GIB = Figure("CPU s/GiB", lambda sample: sample.cpu * GiB / sample.size, spread=True)
PROCESS_CPU = Figure("CPU, s, process", lambda sample: sample.process_cpu)
PEAK = Figure("peak, MiB", lambda sample: sample.peak / MiB, 0)
ENDPOINT_CPU = Figure("endpoint CPU, s", lambda sample: sample.endpoint_cpu)
REQUESTS = Figure("requests", lambda sample: float(sample.requests), 0)


def options(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks share."""
    summary = (description or "").strip().partition("\n")[0]
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("--rounds", type=int, default=3, help="rounds after the warm-up (3)")
    parser.add_argument("--quick", action="store_true", help="small sizes, one round, no warm-up: does it work at all?")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="where JSON and PNG go")
    return parser


def parse_size(text: str) -> int:
    """Bytes in *text*, as the command line of asyncpush reads it.

    Raises:
        argparse.ArgumentTypeError: it is not a size.
    """
    try:
        return units.parse_size(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def rounds(given: argparse.Namespace) -> int:
    """The rounds to run; one in a quick run."""
    return 1 if given.quick else max(1, int(given.rounds))


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder for data; a missing requirement ends the benchmark with one line."""
    try:
        with tempfile.TemporaryDirectory(prefix="asyncpush-bench-") as folder:
            yield Path(folder)
    except (UnavailableError, ContenderError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table: the name of each row to the left, its figures to the right."""
    shown = make_table(columns, title=title, names=1)
    for row in rows:
        shown.add_row(*row)
    console = make_console()
    console.print(shown)
    console.print()


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


def tool_versions(programs: Iterable[str]) -> dict[str, str]:
    """What those of *programs* that are on the PATH say of their versions, for JSON."""
    found = {}
    for program in programs:
        if shutil.which(program):
            word = "--version" if program in ("skopeo", "aws") else "version"
            done = subprocess.run((program, word), capture_output=True, text=True, check=False, timeout=30)
            found[program] = " ".join((done.stdout or done.stderr).split())[:200]
    return found


def save(name: str, given: argparse.Namespace, results: Results, panels: Sequence[Panel], **more: object) -> None:
    """Write NAME.json, and NAME.png where matplotlib is installed."""
    folder: Path = given.out
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "benchmark": name,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(_PACKAGES),
        "options": {key: str(value) for key, value in vars(given).items()},
        "contenders": {contender.name: contender.labels for contender in results.contenders},
        "medians": _medians(results),
        "rounds": results.document(),
        **more,
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    picture = path.with_suffix(".png")
    try:
        # Not before all rounds are over: contenders are spawned from what this process holds in memory.
        draw_panels(picture, f"{name}, {machine()['cpus']} CPUs, {document['made']}", panels)
    except ImportError:
        written = f"{path}; no picture, since matplotlib is not installed (pip install 'asyncpush[bench]')"
    else:
        written = f"{path}, {picture}"
    progress.print(f"written: {written}", highlight=False, soft_wrap=True)


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


def bars(results: Results, figure: Figure, workload: str) -> Panel:
    """A panel of one figure, a bar a contender."""
    spreads = {one.shown: results.spread(one.name, figure.value) for one in results.contenders}
    return Panel(f"{workload}: {figure.title}", spreads, better=figure.better)
