"""The figures of a run, each with its unit and the way that tables show it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness import Sample

GiB = 1024**3
MiB = 1024**2


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure of a run, and how a table shows it.

    Attributes:
        title: what and in which unit.
        value: takes it from a run.
        digits: decimals.
        spread: show the least and the largest, too.
    """

    title: str
    value: Callable[[Sample], float]
    digits: int = 2
    spread: bool = False

    @property
    def short(self) -> str:
        """The title without its unit."""
        return self.title.partition(",")[0].partition(" s/")[0]

    def show(self, values: Sequence[float]) -> str:
        """The median of *values*, and their spread if wanted."""
        ordered = sorted(values)
        middle = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
        text = f"{middle:,.{self.digits}f}"
        if self.spread and len(ordered) > 1:
            text += f" ({ordered[0]:,.{self.digits}f}-{ordered[-1]:,.{self.digits}f})"
        return text


SECONDS = Figure("wall, s", lambda sample: sample.seconds, spread=True)
RATE = Figure("GB/s", lambda sample: sample.size / sample.seconds / 1e9, 3, spread=True)
CPU = Figure("CPU, s", lambda sample: sample.cpu)
CPU_PER_GIB = Figure("CPU s/GiB", lambda sample: sample.cpu * GiB / sample.size, spread=True)
PROCESS_CPU = Figure("CPU, s, process", lambda sample: sample.process_cpu)
PEAK = Figure("peak, MiB", lambda sample: sample.peak / MiB, 0)
ENDPOINT_CPU = Figure("endpoint CPU, s", lambda sample: sample.endpoint_cpu)
REQUESTS = Figure("requests", lambda sample: float(sample.requests), 0)
