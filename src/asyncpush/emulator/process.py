"""The emulator in a process of its own, while a command runs, isolated from this machine's AWS configuration."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import DEVNULL

import anyio
from anyio.streams.text import TextReceiveStream

from asyncpush.errors import RegistryError
from asyncpush.settings import AwsConfiguration

#: Seconds that the emulator has to start, and to end; it takes less than one.
_START = 20
_END = 5


@asynccontextmanager
async def local_ecr(data: Path) -> AsyncIterator[AwsConfiguration]:
    """Run the emulator on *data* until the block is left, and yield how to reach it.

    It has a process of its own, as a registry has: its work must not slow down the client's event loop.

    Raises:
        RegistryError: it did not start.
    """
    command = [sys.executable, "-m", "asyncpush", "serve", "--port", "0", "--data", str(data)]
    async with await anyio.open_process(command, stdin=DEVNULL, stderr=DEVNULL) as process:
        try:
            url = await _introduction(process)
            yield AwsConfiguration(
                region="us-east-1",
                endpoint_url=url,
                access_key_id="test",
                secret_access_key="test",  # noqa: S106 - the key of an emulator that was given none
            )
        finally:
            if process.returncode is None:
                process.terminate()
            # Left to itself, a cancelled block would kill it halfway through closing.
            with anyio.move_on_after(_END, shield=True):
                await process.wait()


async def _introduction(process: anyio.abc.Process) -> str:
    """The URL in the first line that it prints."""
    assert process.stdout is not None, "it is a pipe"  # noqa: S101
    text = ""
    with anyio.move_on_after(_START):
        async for piece in TextReceiveStream(process.stdout):
            text += piece
            if "\n" in text:
                break
    url = text.partition("\n")[0].partition("=")[2]
    if not url:
        raise RegistryError("the emulator did not start", hint="run `asyncpush serve` to see why")
    return url


def isolate() -> None:
    """Make this process and its children ignore this machine's AWS configuration and proxies."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        os.environ[name] = os.devnull
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = "127.0.0.1"
