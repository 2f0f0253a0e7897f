"""Parts that are cut in a worker thread: whoever is cancelled waits for a block, not for a layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import pytest
from anyio import from_thread, to_thread

from asyncpush.ecr.part_body import JsonPartEncoder
from asyncpush.engine.parts import BLOCK_SIZE, PartCutter
from asyncpush.model import Upload

BLOCKS = 200


class Blob:
    """A layer without a digest, whose reader cancels a scope at its third block."""

    descriptor = None

    def __init__(self, scope: anyio.CancelScope) -> None:
        self.consumed = self.reads = 0
        self._scope = scope

    def readinto(self, buffer: memoryview) -> int:
        self.reads += 1
        if self.reads == 3:
            from_thread.run_sync(self._scope.cancel)
        return len(buffer)


@pytest.mark.parametrize(
    "work",
    [lambda cutter: cutter.skip(BLOCKS * BLOCK_SIZE), lambda cutter: cutter.next_part(content=None)],
    ids=["skipping", "cutting"],
)
async def test_who_is_cancelled_reads_no_further_block(work: Callable[[PartCutter[Any]], object]) -> None:
    with anyio.CancelScope() as scope:
        blob: Any = Blob(scope)
        encoder = partial(JsonPartEncoder, None, "app", Upload("id", BLOCKS * BLOCK_SIZE, 1))
        cutter = PartCutter(blob, blob, BLOCKS * BLOCK_SIZE, encoder)
        await to_thread.run_sync(work, cutter)

    assert scope.cancelled_caught
    assert blob.reads == 3
