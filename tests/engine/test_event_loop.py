"""The event loop only waits: no callback of a push works for long, and no blocking call is made on its thread."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from asyncio.events import Handle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from resource import RUSAGE_THREAD, getrusage

import pytest
from blockbuster import BlockingError

import asyncpush
from asyncpush import Settings
from asyncpush.sources import file_blob
from support.aws import aws
from support.commands import Server

#: Seconds that one callback may work on the loop's thread. Processor time, not the clock's: on a busy machine a
#: callback can be kept waiting by others.
LONGEST = 0.020


@dataclass(frozen=True)
class Ran:
    """A callback: its processor time, the page faults in it, and which it is if it worked for long."""

    seconds: float
    faults: int
    which: str


@contextmanager
def callbacks_timed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Ran]]:
    """The callbacks that this thread's loop runs meanwhile."""
    ran: list[Ran] = []
    thread, run = threading.current_thread(), Handle._run

    def timed(self: Handle) -> None:
        started, faults = time.thread_time(), getrusage(RUSAGE_THREAD).ru_minflt
        run(self)
        if threading.current_thread() is thread:
            seconds, faults = time.thread_time() - started, getrusage(RUSAGE_THREAD).ru_minflt - faults
            ran.append(Ran(seconds, faults, repr(self) if seconds >= LONGEST else ""))

    gc.freeze()  # as the command line does: to look for garbage in what other tests have left is not the push's work
    with monkeypatch.context() as patch:
        patch.setattr(Handle, "_run", timed)
        yield ran
    gc.unfreeze()


async def test_no_callback_of_a_push_works_for_long(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = []
    for number in range(4):
        files.append(tmp_path / f"layer-{number}")
        files[-1].write_bytes(random.Random(number).randbytes(21 * 2**20))
    settings = Settings(create_repository=True)

    with callbacks_timed(monkeypatch) as ran:
        await asyncio.sleep(0)
        async with asyncpush.connect(aws=aws(server.url), settings=settings) as registry:
            results = await asyncpush.push_layers(registry, files, "event/loop")

    assert [getattr(result, "outcome", result) for result in results] == ["pushed"] * 4
    assert len(ran) > 100
    assert [each for each in ran if each.seconds >= LONGEST] == []


async def test_the_monitor_notices_a_callback_that_works_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    with callbacks_timed(monkeypatch) as ran:
        await asyncio.sleep(0)
        until = time.thread_time() + 2 * LONGEST
        while time.thread_time() < until:
            pass
        await asyncio.sleep(0)

    assert max(each.seconds for each in ran) > LONGEST


async def test_a_blocking_call_on_the_loop_is_noticed(tmp_path: Path) -> None:
    file = tmp_path / "layer"
    file.write_bytes(b"layer")
    blob = await file_blob(file, "application/octet-stream")

    with pytest.raises(BlockingError), blob.open() as reader:
        reader.readinto(memoryview(bytearray(5)))
