"""Servers in processes of their own, and raw connections to them."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import pytest
from anyio.abc import ByteStream

from support.commands import cli_environment


async def connected(url: str) -> ByteStream:
    address = urlsplit(url)
    return await anyio.connect_tcp(address.hostname or "", address.port or 0)


@contextmanager
def served(data: Path) -> Iterator[tuple[str, int]]:
    """An emulator's address, and its process id."""
    command = [sys.executable, "-m", "asyncpush", "serve", "--port", "0", "--data", str(data)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=cli_environment()) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().decode().strip().partition("=")[2], process.pid
        finally:
            process.terminate()


def wait_until_it_listens(address: str) -> None:
    host, port = address.split(":")
    for _ in range(500):
        try:
            socket.create_connection((host, int(port))).close()
        except ConnectionRefusedError:
            time.sleep(0.02)
        else:
            return
    pytest.fail(f"nothing listens on {address}")


@asynccontextmanager
async def started(*words: str, env: dict[str, str]) -> AsyncIterator[anyio.abc.Process]:
    """Run Python with these words; the process does not outlive the block."""
    async with await anyio.open_process([sys.executable, *words], stdin=subprocess.PIPE, env=env) as process:
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()


async def ended(process: anyio.abc.Process) -> tuple[int, str, str]:
    assert process.stdout is not None
    assert process.stderr is not None
    texts = {process.stdout: b"", process.stderr: b""}

    async def drain(stream: anyio.abc.ByteReceiveStream) -> None:
        async for data in stream:
            texts[stream] += data

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tg:
            for stream in texts:
                tg.start_soon(drain, stream)
            status = await process.wait()
    return status, texts[process.stdout].decode(), texts[process.stderr].decode()
