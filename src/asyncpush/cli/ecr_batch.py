"""``asyncpush ecr ... --batch``: where its inputs come from, where its lines go, progress, a summary."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import anyio
from anyio import to_thread

from asyncpush import open_files
from asyncpush.awscli.batch import Batch, Tally
from asyncpush.awscli.batch_input import BatchInput
from asyncpush.awscli.call import open_for
from asyncpush.awscli.command import Command
from asyncpush.awscli.configuration import Configuration
from asyncpush.awscli.errors import CommandError
from asyncpush.awscli.formats import Query
from asyncpush.awscli.inputs import read_arguments
from asyncpush.cli.run import DONE, FAILED, run_quietly, say_error
from asyncpush.cli.streams import STANDARD_INPUT, say, write_as_it_is

#: Seconds between two looks at the progress.
_PERIOD = 0.2


def run_batch(command: Command, configuration: Configuration, query: Query) -> int:
    """Run a batch.

    Returns:
        1 if any input failed.

    Raises:
        CommandError: the file can't be opened, or an argument can't be read.
        AsyncpushError: no client can be made.
    """
    began = time.monotonic()
    batch = Batch(command, read_arguments(command), configuration, query)
    in_flight = command.extras.max_requests

    async def main(inputs: BatchInput) -> int:
        async with open_for(command, in_flight, None) as client, anyio.create_task_group() as tg:
            if sys.stderr.isatty():
                tg.start_soon(_show, batch.tally, began)
            await batch.run(client, inputs, partial(write_as_it_is, needed=True))
            tg.cancel_scope.cancel()
        return FAILED if batch.tally.outcomes["failed"] else DONE

    with _opened(command.extras.batch or "-") as descriptor:
        status = run_quietly(partial(main, BatchInput(descriptor)))
    if batch.lost is not None:
        say_error(batch.lost, about=f"only the first {batch.tally.outcomes.total()} inputs were sent")
    say(_summary(batch.tally, time.monotonic() - began))
    return status


@contextmanager
def _opened(name: str) -> Iterator[int]:
    if name in ("-", STANDARD_INPUT):
        yield sys.stdin.fileno()
        return
    path = Path(os.path.expandvars(name.removeprefix("file://"))).expanduser()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CommandError(f"Unable to read the batch {name}: {open_files.reason(error)}") from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


async def _show(tally: Tally, began: float) -> None:
    try:
        while True:
            await anyio.sleep(_PERIOD)
            rate = tally.outcomes.total() / (time.monotonic() - began)
            await to_thread.run_sync(_write_over, f"{_counts(tally)}; {rate:.0f} a second")
    finally:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(_write_over, "")


def _write_over(text: str) -> None:
    sys.stderr.write(f"\r\x1b[K{text}")
    sys.stderr.flush()


def _counts(tally: Tally) -> str:
    outcomes = tally.outcomes
    return (
        f"{outcomes.total()} inputs: {outcomes['done']} done, {outcomes['present']} already there, "
        f"{outcomes['failed']} failed"
    )


def _summary(tally: Tally, seconds: float) -> str:
    requests = tally.requests
    return (
        f"asyncpush: {_counts(tally)}; {requests.total()} requests ({requests['throttled']} throttled) "
        f"in {seconds:.1f} s"
    )
