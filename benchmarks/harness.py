"""Runs contenders as child processes, interleaved over rounds, and records what each used."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from endpoints import Endpoint, layer_bytes
from rich.console import Console

from asyncpush.bench.figures import Spread

HERE = Path(__file__).parent

#: Seconds after which a contender hangs, as far as anybody is willing to wait.
_TIMEOUT = 3600

#: Reports progress; results go to standard output.
progress = Console(stderr=True)


class ContenderError(Exception):
    """Raised when a contender fails."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One run of a contender: what is executed, against which endpoint, to push so many bytes of layers.

    Attributes:
        command: what is executed.
        endpoint: where it pushes to; the environment leads there.
        size: bytes of layers.
        environment: further environment variables.
        details: called after the run; returns further members of its sample.
    """

    command: tuple[str, ...]
    endpoint: Endpoint
    size: int
    environment: dict[str, str] = field(default_factory=dict)
    details: Callable[[], dict[str, object]] = dict


@dataclass(frozen=True, slots=True)
class Contender:
    """A program that is measured.

    Attributes:
        name: its name in tables.
        prepare: sets up one run and takes it down; a fresh endpoint, where runs must not see each other.
        labels: its parameters, for tables: layers, sizes, schemes.
    """

    name: str
    prepare: Callable[[], AbstractContextManager[Launch]]
    labels: dict[str, str | float] = field(default_factory=dict)

    @property
    def shown(self) -> str:
        """Its name in a table of its own kind: the label ``shown``, or its name."""
        return str(self.labels.get("shown", self.name))


@dataclass(frozen=True, slots=True)
class Sample:
    """What a run used.

    Attributes:
        contender: its name.
        round: the round, from 1.
        seconds: wall time of the measured section; of the process, where the contender is another's program.
        cpu: processor seconds of the same, user and system, all threads.
        process_seconds: wall time of the process, from its start to its end.
        process_cpu: processor seconds of the process and of its children.
        peak: the largest that any process of the contender was in memory, in bytes.
        endpoint_cpu: processor seconds of the endpoint meanwhile.
        requests: requests that the endpoint has had.
        size: bytes of layers.
        details: what the contender reports besides.
    """

    contender: str
    round: int
    seconds: float
    cpu: float
    process_seconds: float
    process_cpu: float
    peak: int
    endpoint_cpu: float
    requests: int
    size: int
    details: dict[str, object]


@dataclass(frozen=True, slots=True)
class Results:
    """All runs of a benchmark, the warm-up left out."""

    contenders: tuple[Contender, ...]
    samples: tuple[Sample, ...]

    def of(self, name: str) -> list[Sample]:
        """The runs of one contender, by round."""
        return [sample for sample in self.samples if sample.contender == name]

    def values(self, name: str, figure: Callable[[Sample], float]) -> list[float]:
        """One figure of a contender, by round."""
        return [figure(sample) for sample in self.of(name)]

    def spread(self, name: str, figure: Callable[[Sample], float]) -> Spread:
        """Its median, least and largest value."""
        return Spread.of(self.values(name, figure))

    def median(self, name: str, figure: Callable[[Sample], float]) -> float:
        """Its median."""
        return self.spread(name, figure).median

    def ratio(self, name: str, other: str, figure: Callable[[Sample], float]) -> float:
        """The median over the rounds of *name*'s figure divided by *other*'s of the same round."""
        pairs = zip(self.of(name), self.of(other), strict=True)
        return median(figure(one) / figure(two) for one, two in pairs)

    def where(self, **labels: str | float) -> Results:
        """The results of the contenders that have these labels."""
        chosen = tuple(one for one in self.contenders if labels.items() <= one.labels.items())
        names = {contender.name for contender in chosen}
        return Results(chosen, tuple(sample for sample in self.samples if sample.contender in names))

    def document(self) -> list[dict[str, object]]:
        """The runs, for JSON."""
        return [asdict(sample) for sample in self.samples]


def measure(contenders: Sequence[Contender], rounds: int, *, warm_up: Sequence[Contender] | None = None) -> Results:
    """Run all contenders one after the other, as often as there are rounds: A B C A B C, after a warm-up of each.

    Args:
        contenders: who is measured.
        rounds: how often.
        warm_up: who runs once before, uncounted; None is all of them.

    Raises:
        ContenderError: one of them failed.
    """
    samples: list[Sample] = []
    for contender in contenders if warm_up is None else warm_up:
        probe(contender)
    for number in range(1, rounds + 1):
        for contender in contenders:
            sample = _run(contender, number)
            progress.print(f"round {number}: {contender.name}: {sample.seconds:.2f} s", highlight=False)
            samples.append(sample)
    return Results(tuple(contenders), tuple(samples))


def probe(contender: Contender) -> None:
    """Run *contender* once, uncounted.

    Raises:
        ContenderError: it fails.
    """
    progress.print(f"warm-up: {contender.name}", highlight=False)
    _run(contender, 0)


@contextmanager
def launched(endpoint: Endpoint, folder: Path, kind: str, job: dict[str, Any]) -> Iterator[Launch]:
    """One run of ``clients/KIND.py`` that pushes layers to the sink, which must have every byte of them afterwards."""
    size = sum(layer["size"] for layer in job["layers"])
    before = layer_bytes(endpoint)
    yield Launch(client(kind, {"url": endpoint.url, **job}, folder), endpoint, size)
    if (received := layer_bytes(endpoint) - before) != size:
        raise ContenderError(f"{kind}: of {size} bytes the endpoint has received {received}")


def client(name: str, job: dict[str, Any], folder: Path) -> tuple[str, ...]:
    """The command that runs ``clients/NAME.py`` with *job* (see ``clients/job.py``), kept in *folder*."""
    with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".json", delete=False, encoding="utf-8") as file:
        json.dump(job, file)
    return (sys.executable, str(HERE / "clients" / f"{name}.py"), file.name)


def _run(contender: Contender, number: int) -> Sample:
    with contender.prepare() as launch, tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        folder, endpoint = Path(scratch), launch.endpoint
        requests, cpu = endpoint.count_requests(), endpoint.cpu_seconds()
        _execute(contender.name, launch, folder)
        endpoint_cpu = endpoint.cpu_seconds() - cpu
        wall, user, system, peak = map(float, (folder / "used").read_text(encoding="ascii").split())
        inside = folder / "result"
        own = json.loads(inside.read_bytes()) if inside.exists() else {}
        return Sample(
            contender.name,
            number,
            own.get("seconds", wall),
            own.get("cpu", user + system),
            wall,
            user + system,
            # Linux counts KiB, macOS bytes (getrusage(2)).
            int(peak * (1 if sys.platform == "darwin" else 1024)),
            endpoint_cpu,
            endpoint.count_requests() - requests,
            launch.size,
            {**own.get("details", {}), **launch.details()},
        )


def _execute(name: str, launch: Launch, folder: Path) -> None:
    log = folder / "log"
    launcher = (sys.executable, "-I", "-S", str(HERE / "launch.py"), str(folder / "used"))
    environment = {**launch.endpoint.environment(), "BENCHMARK_RESULT": str(folder / "result"), **launch.environment}
    with log.open("wb") as output:
        # A session of its own: where the benchmark is interrupted, all that the contender started goes with it.
        process = subprocess.Popen(
            (*launcher, *launch.command), stdout=output, stderr=output, env=environment, start_new_session=True
        )
        try:
            status = process.wait(timeout=_TIMEOUT)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
    if status:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise ContenderError(f"{name} failed with exit status {status}: {' / '.join(said[-3:])[-600:]}")
