"""Servers in processes of their own, and raw connections to them."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
