"""The outcomes as the manual has them: a table for each operation, faults of one outcome in one row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby

from support.fault_matrix import TIMES, Cell, all_cells
from support.places import ROOT

MANUAL = ROOT / "src" / "asyncpush" / "docs" / "faults.md"

_HEAD = """\
# What comes of a fault

Every operation of a push, and every request of a source, under every fault: once, three times in a row, and for ever.
`pushed` is an exit status of 0 and an image that is whole; all else are the first words of the error.
They are made with the default numbers of tries, and with waits of milliseconds: a second stands for a minute.

The tables are made and checked by `tests/faults`: `ASYNCPUSH_FAULTS=all pytest tests/faults` checks all of them,
`ASYNCPUSH_FAULTS=write pytest tests/faults` makes them again, and without that a sample of every row and column is run.

- *refused*: the connection is refused; *reset before*, *reset after*: it is reset before or after the work was done.
- *lost reply*: the work is done, and the connection closed; *idle closed*: it is closed when it is used again.
- *cut*: the answer ends before its end; *wrong length*: its Content-Length is half of what comes.
- *malformed*, *wrong shape*, *empty*: a 200 with something else in it; *gzip*: compressed though nobody asked for it.
- *stall*: no answer; *drip*: an answer that comes byte by byte.
- *408*, *429*, *500*, *502 with HTML*, *503*: as a proxy or load balancer answers; *throttled*, *request timeout*,
  *expired token*, *expired signature*: as ECR or a registry does.
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
