"""uplink: does a push come to its end over a slow line, and how much of the line does it use?

    python benchmarks/uplink.py [--rate 600] [--layers 16] [--layer-size 10MiB] [--before PYTHON]

All connections to the emulator share one line of so many bytes a second. A signature is good for five minutes, so
parts that all leave at once come too late together: the emulator verifies them. What a push needs on the line is its
layers in base64; the share of the line is that, by what the line could carry in the time that the push took.
``--before`` is the interpreter of another installation of asyncpush, which is measured after this one.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from endpoints import emulator
from report import parse_size

from asyncpush.bench.trials import size_word

_CHUNK = 16 * 1024


@dataclass
class Line:
    """A line of *rate* bytes a second to a port of this machine, which all connections share.

    Attributes:
        rate: bytes a second towards the port; what comes back is not held up.
        target: the port.
        carried: bytes that it has carried so far.
    """

    rate: float
    target: int
    carried: int = 0
    _free: float = 0.0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass a connection on."""
        answers, requests = await asyncio.open_connection("127.0.0.1", self.target)
        back = asyncio.create_task(_copy(answers, writer))
        try:
            while data := await reader.read(_CHUNK):
                await self._take(len(data))
                requests.write(data)
                await requests.drain()
        except ConnectionError:
            pass
        finally:
            back.cancel()
            requests.close()
            writer.close()

    async def _take(self, size: int) -> None:
        now = asyncio.get_running_loop().time()
        self._free = max(self._free, now) + size / self.rate
        self.carried += size
        await asyncio.sleep(self._free - now)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()


@contextmanager
def listening(line: Line) -> Iterator[str]:
    """Run *line* in a thread; its URL."""
    loop, started = asyncio.new_event_loop(), threading.Event()
    urls = []

    async def run() -> None:
        server = await asyncio.start_server(line.serve, "127.0.0.1", 0, limit=_CHUNK)
        urls.append(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        started.set()
        async with server:
            await server.serve_forever()

    def forever() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(serving)

    serving = loop.create_task(run())
    thread = threading.Thread(target=forever, daemon=True)
    thread.start()
    started.wait()
    try:
        yield urls[0]
    finally:
        loop.call_soon_threadsafe(serving.cancel)
        thread.join(10)


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=600, metavar="KBPS", help="kilobytes a second of the line (600)")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--layer-size", type=parse_size, default=10 * 1024 * 1024, help="bytes of each (10MiB)")
    parser.add_argument("--before", metavar="PYTHON", help="an interpreter that has another asyncpush")
    given = parser.parse_args()
    interpreters = {"after": sys.executable} | ({"before": given.before} if given.before else {})
    print(f"{given.layers} layers of {size_word(given.layer_size)} over a line of {given.rate:g} kB/s")
    print(f"{'':<8} {'status':>6} {'seconds':>8} {'of the line':>12} {'sent/needed':>12}")
    for name, python in interpreters.items():
        measure(name, python, given)


def measure(name: str, python: str, given: argparse.Namespace) -> None:
    """Push once, and print how that went."""
    needed = given.layers * given.layer_size * 4 / 3
    with tempfile.TemporaryDirectory() as scratch, emulator(Path(scratch, "ecr"), options=()) as target:
        layers = [Path(scratch, f"layer-{number}") for number in range(given.layers)]
        for layer in layers:
            layer.write_bytes(os.urandom(given.layer_size))
        line = Line(1000 * given.rate, int(target.host.rpartition(":")[2]))
        with listening(line) as url:
            command = [python, "-m", "asyncpush", "layers", *map(str, layers), "--repository-name=uplink"]
            command += ["--create-repository", "--progress=none"]
            began = time.monotonic()
            done = subprocess.run(
                command,
                env={**target.environment(), "AWS_ENDPOINT_URL_ECR": url},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
            seconds = time.monotonic() - began
        share = needed / (1000 * given.rate * seconds)
        print(
            f"{name:<8} {done.returncode:>6} {seconds:>8.1f} {share:>12.2f} {line.carried / needed:>12.2f}", flush=True
        )
        if done.returncode:
            print(done.stderr.strip()[-600:])


if __name__ == "__main__":
    main()
