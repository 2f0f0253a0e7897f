"""Small programs of the user's, such as those that give credentials: run to their end, but never without a bound."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import anyio
from anyio.abc import ByteReceiveStream

#: Bytes that such a program may print: credentials run to some KiB.
MAX_OUTPUT = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of a program; what it has printed may be a secret.

    Attributes:
        status: its exit status, or the negative number of the signal that ended it.
        output: what it printed; ``MAX_OUTPUT`` bytes at the most.
        said: what it printed on standard error, as much.
        is_endless: it printed more, and was killed.
    """

    status: int
    output: bytes = field(repr=False)
    said: bytes = field(repr=False)
    is_endless: bool


async def run_small(command: Sequence[str], given: bytes = b"") -> Ended:
    """Run a program with *given* on standard input, until it ends or the caller is cancelled.

    Raises:
        OSError: it can't be run.
        ValueError: its name or an argument can't be one.
    """
    output, said = bytearray(), bytearray()
    is_endless = False
    pipe = subprocess.PIPE
    stdin = pipe if given else subprocess.DEVNULL
    async with await anyio.open_process(command, stdin=stdin, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None  # noqa: S101 - narrows types
        assert process.stderr is not None  # noqa: S101
        async with anyio.create_task_group() as tg:
            tg.start_soon(_keep, process.stderr, said)
            if process.stdin is not None:
                with suppress(anyio.BrokenResourceError):  # it may have ended, and have said why
                    await process.stdin.send(given)
                    await process.stdin.aclose()
            async for chunk in process.stdout:
                output += chunk[: MAX_OUTPUT + 1 - len(output)]
                if is_endless := len(output) > MAX_OUTPUT:
                    with suppress(ProcessLookupError):
                        process.kill()
                    tg.cancel_scope.cancel()
                    break
        status = await process.wait()
    return Ended(status, bytes(output[:MAX_OUTPUT]), bytes(said), is_endless)


async def _keep(stream: ByteReceiveStream, kept: bytearray) -> None:
    async for chunk in stream:
        kept += chunk[: MAX_OUTPUT - len(kept)]
