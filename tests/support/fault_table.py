"""The manual's tables of outcomes: one for each operation, with faults of one outcome in one row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby

from support.fault_matrix import TIMES, Cell, all_cells
from support.places import ROOT

MANUAL = ROOT / "src" / "asyncpush" / "docs" / "faults.md"

_HEAD = """\
# Faults and what comes of them

Look up how a push ends under each fault of ECR or a registry.

The tables list every operation of a push, and every request of a source, under every fault: once, three times in a
row, and for ever. `pushed` means an exit status of 0 and a complete image; every other cell has the first words of the
error. The tests send one layer at a time, with the default numbers of tries and the default time-outs, and wait
milliseconds between two tries.

`tests/faults` makes and checks the tables: `ASYNCPUSH_FAULTS=all pytest tests/faults` checks all of them,
`ASYNCPUSH_FAULTS=write pytest tests/faults` writes them again. Without the variable, it runs a sample of every row and
column.

- *refused*: the connection is refused; *reset before*, *reset after*: it is reset before or after the server did the
  work.
- *lost reply*: the server does the work and closes the connection; *idle closed*: it closes the connection when the
  next request comes.
- *cut*: the answer ends too early; *wrong length*: its Content-Length is half of what comes.
- *malformed*, *wrong shape*, *empty*: a 200 with something else in it; *gzip*: compressed, though nobody asked for it.
- *stall*: no answer; *drip*: an answer that comes byte by byte.
- *408*, *429*, *500*, *502 with HTML*, *503*: as a proxy or load balancer answers; *throttled*, *request timeout*,
  *expired token*, *expired signature*: as ECR or a registry answers.
- *skewed clock*: ECR finds the client's clock an hour ahead; *redirect*: to the same place.
"""


def render(outcomes: Mapping[Cell, str]) -> str:
    """The manual's page."""
    return "\n".join((_HEAD, *_tables(outcomes)))


def _tables(outcomes: Mapping[Cell, str]) -> Iterator[str]:
    for operation, cells in groupby(all_cells(), lambda cell: cell.operation):
        rows: dict[tuple[str, ...], list[str]] = {}
        for fault in dict.fromkeys(cell.fault for cell in cells):
            rows.setdefault(tuple(outcomes[Cell(operation, fault, times)] for times in TIMES), []).append(fault)
        yield f"## {operation}\n"
        yield f"| fault | {' | '.join(TIMES)} |"
        yield f"| --- |{' --- |' * len(TIMES)}"
        yield from (f"| {', '.join(faults)} | {' | '.join(said)} |" for said, faults in rows.items())
        yield ""


def parse(text: str) -> dict[Cell, str]:
    """The outcomes that the page tells."""
    found = {}
    operation = ""
    for line in text.splitlines():
        if line.startswith("## "):
            operation = line.removeprefix("## ")
        elif line.startswith("| ") and not line.startswith(("| fault |", "| ---")):
            faults, *said = line.removeprefix("| ").removesuffix(" |").split(" | ")
            for fault in faults.split(", "):
                found.update({Cell(operation, fault, times): each for times, each in zip(TIMES, said, strict=True)})
    return found
