"""Runs small programs of the user, such as credential helpers, with a limit on their output."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import anyio
from anyio.abc import ByteReceiveStream

#: The most bytes that such a program may print: credentials take some KiB.
MAX_OUTPUT = 1024 * 1024


@dataclass(frozen=True, slots=True)
class CompletedProgram:
    """A program that has ended; its output may contain secrets.

    Attributes:
        status: its exit status, or the negative number of the signal that ended it.
        output: its standard output, at most ``MAX_OUTPUT`` bytes.
        errors: its standard error, at most as much.
        is_too_long: whether it printed more, and was killed.
    """

    status: int
    output: bytes = field(repr=False)
    errors: bytes = field(repr=False)
    is_too_long: bool


async def run_small(command: Sequence[str], stdin: bytes = b"") -> CompletedProgram:
    """Run a program with *stdin* on standard input, until it ends or the caller is cancelled.

    Raises:
        OSError: it can't be run.
        ValueError: its name or an argument is not valid.
    """
    output, errors = bytearray(), bytearray()
    is_too_long = False
    pipe = subprocess.PIPE
    stdin_mode = pipe if stdin else subprocess.DEVNULL
    async with await anyio.open_process(command, stdin=stdin_mode, stdout=pipe, stderr=pipe) as process:
        assert process.stdout is not None  # noqa: S101 - narrows types
        assert process.stderr is not None  # noqa: S101
        async with anyio.create_task_group() as tg:
            tg.start_soon(_collect, process.stderr, errors)
            if process.stdin is not None:
                with suppress(anyio.BrokenResourceError):  # it may have ended with an error message
                    await process.stdin.send(stdin)
                    await process.stdin.aclose()
            async for chunk in process.stdout:
                output += chunk[: MAX_OUTPUT + 1 - len(output)]
                if is_too_long := len(output) > MAX_OUTPUT:
                    with suppress(ProcessLookupError):
                        process.kill()
                    tg.cancel_scope.cancel()
                    break
        status = await process.wait()
    return CompletedProgram(status, bytes(output[:MAX_OUTPUT]), bytes(errors), is_too_long)


async def _collect(stream: ByteReceiveStream, collected: bytearray) -> None:
    async for chunk in stream:
        collected += chunk[: MAX_OUTPUT - len(collected)]
