"""A network between a client and an endpoint: it forwards bytes at a given rate, and may stall."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest
import trustme

from support.servers import serving_streams

KiB = 1024
MiB = 1024 * KiB


@dataclass
class SlowNetwork:
    """Passes bytes on to an endpoint.

    Attributes:
        target: the endpoint.
        stops_after: the first connection that brings this many bytes is not read any more; 0 stops none.
        slow: each connection begins slowly.
        rate: bytes a second towards the endpoint, which all connections share; None passes all on at once.
        url: where it listens.
        stopped: connections that it has stopped reading.
        carried: bytes that it has passed on.
    """

    target: str
    stops_after: int = 0
    slow: bool = False
    rate: float | None = None
    url: str = ""
    stopped: int = 0
    carried: int = 0
    _free: float = 0.0
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        there = urlsplit(self.target)
        from_target, to_target = await asyncio.open_connection(there.hostname, there.port)
        back = asyncio.create_task(self._answers(from_target, writer))
        try:
            brought = 0
            while data := await reader.read(64 * KiB):
                brought += len(data)
                if self.slow:
                    await asyncio.sleep(0.03 if brought < 2 * MiB else 0)
                elif self.rate:
                    await self._take(len(data), self.rate)
                elif self.stops_after and brought > self.stops_after and not self.stopped:
                    self.stopped += 1
                    await anyio.sleep_forever()
                self.carried += len(data)
                to_target.write(data)
                await to_target.drain()
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            back.cancel()
            to_target.close()
            writer.close()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(64 * KiB):
            writer.write(data)

    async def _take(self, size: int, rate: float) -> None:
        now = asyncio.get_running_loop().time()
        self._free = max(self._free, now) + size / rate
        await asyncio.sleep(self._free - now)

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()


@asynccontextmanager
async def slow_network(
    endpoint: str, stops_after: int = 0, *, slow: bool = False, rate: float | None = None
) -> AsyncIterator[SlowNetwork]:
    """Run a network between a client and *endpoint*."""
    passes = SlowNetwork(endpoint, stops_after, slow, rate)
    # Small, so that little has left before the sender notices.
    received = 256 * KiB if rate else 64 * KiB
    async with serving_streams(passes.serve, limit=64 * KiB, received=received) as port:
        passes.url = f"{urlsplit(endpoint).scheme}://localhost:{port}"
        try:
            yield passes
        finally:
            passes.close()


def trusted_tls(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """TLS for ``localhost``, by an authority that AWS clients trust from now on."""
    authority = trustme.CA()
    bundle = folder / "bundle.pem"
    authority.cert_pem.write_to_path(str(bundle))
    monkeypatch.setenv("AWS_CA_BUNDLE", str(bundle))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    return context
