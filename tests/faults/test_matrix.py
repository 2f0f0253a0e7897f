"""What comes of each fault in each operation is what the manual says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from anyio import to_thread

from support.fault_matrix import PUSH, SOURCE, TIMES, all_cells, ground, outcomes, read_models_once, sample
from support.fault_proxy import FAULTS
from support.fault_table import MANUAL, parse, render
from support.virtual_time import AheadLoop

#: ``all`` checks every cell instead of a sample, and ``write`` writes the manual's page again.
WANTED = os.environ.get("ASYNCPUSH_FAULTS", "sample")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """A loop whose clock faults put ahead."""
    return "asyncio", {"loop_factory": AheadLoop}


def test_the_page_has_every_cell_and_is_what_they_make() -> None:
    known = parse(MANUAL.read_text())
    assert set(known) == set(all_cells())
    assert render(known) == MANUAL.read_text()


def test_the_sample_has_every_operation_fault_and_count() -> None:
    """The sample has every operation, every fault, and every number of times."""
    cells = sample(dict.fromkeys(all_cells(), "pushed"))
    assert {cell.operation for cell in cells} == {*PUSH, *SOURCE}
    assert {cell.fault for cell in cells} == set(FAULTS)
    assert {cell.times for cell in cells} == set(TIMES)


@pytest.mark.timeout(3600 if WANTED != "sample" else 300)
async def test_what_comes_of_a_fault_is_what_the_manual_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_models_once(monkeypatch)
    known = {} if WANTED == "write" else parse(await to_thread.run_sync(MANUAL.read_text))
    cells = sample(known) if WANTED == "sample" else all_cells()
    async with ground(tmp_path) as place:
        found = await outcomes(place, cells)
    if WANTED == "write":
        await to_thread.run_sync(MANUAL.write_text, render(found))
    else:
        assert {str(cell): said for cell, said in found.items()} == {str(cell): known[cell] for cell in cells}
