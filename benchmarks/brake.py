"""brake: how exactly does a push keep to ``--bandwidth``, over each transport, with and without TLS?

    python benchmarks/brake.py [--rates 2MB/s 50MB/s] [--seconds 30] [--quick]

``asyncpush layers`` pushes eight files of zeros into the sink, through a relay on this machine that counts the bytes
on their way, as they are on the wire. The count begins two seconds after the first byte. Besides the mean, the table
has the slowest and the fastest second: the rate is smooth, not a burst for each part.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from endpoints import Endpoint, make_certificate, sink
from report import options, scratch, table

from asyncpush.units import format_rate, parse_rate

_CHUNK = 256 * 1024
_LAYERS = 8
_SETTLE = 2.0
#: What the mean may differ from the rate, in per cent.
_TOLERANCE = 5.0


@dataclass
class Relay:
    """Passes connections on to *target*, and counts the bytes towards it."""

    target: int
    carried: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass a connection on."""
        answers, requests = await asyncio.open_connection("127.0.0.1", self.target)
        back = asyncio.create_task(self._copy(answers, writer))
        try:
            while data := await reader.read(_CHUNK):
                self.carried += len(data)
                requests.write(data)
                await requests.drain()
        except ConnectionError:
            pass
        finally:
            back.cancel()
            requests.close()
            writer.close()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(_CHUNK):
                writer.write(data)
                await writer.drain()


@contextmanager
def relayed(endpoint: Endpoint) -> Iterator[tuple[Relay, str]]:
    """Run a relay to *endpoint* in a thread; yield it and its URL."""
    scheme, _, host = endpoint.url.partition("://")
    relay, loop = Relay(int(host.rpartition(":")[2])), asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(relay.serve, "127.0.0.1", 0, limit=_CHUNK))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield relay, f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


@dataclass(frozen=True, slots=True)
class Measured:
    """What passed: the rate that was asked for, the mean, and the slowest and fastest second; bytes a second."""

    transport: str
    scheme: str
    rate: float
    mean: float
    slowest: float
    fastest: float

    @property
    def deviation(self) -> float:
        """By how many per cent the mean differs from the rate."""
        return 100 * (self.mean / self.rate - 1)

    @property
    def row(self) -> list[str]:
        """For a table."""
        means = (f"{value / 1e6:.2f}" for value in (self.mean, self.slowest, self.fastest))
        met = "yes" if abs(self.deviation) <= _TOLERANCE else "NO"
        return [f"{self.transport}, {self.scheme}, {format_rate(self.rate)}", *means, f"{self.deviation:+.1f}", met]


def main() -> None:
    """Measure and report."""
    given = _parse()
    with scratch() as folder:
        certificate = make_certificate(folder)
        measured = []
        for rate in map(parse_rate, given.rates):
            files = _files(folder, int(rate * (given.seconds + 3 * _SETTLE)))
            for scheme in given.schemes:
                for transport in given.transports:
                    with sink(certificate if scheme == "https" else None) as endpoint:
                        measured.append(_measure(endpoint, files, transport, scheme, rate, given.seconds))
    title = f"bytes on the wire over {given.seconds:g} s, MB/s; at most {_TOLERANCE:g} per cent from the rate"
    table(title, ["push", "mean", "slowest second", "fastest", "per cent off", "met"], [each.row for each in measured])
    given.out.mkdir(parents=True, exist_ok=True)
    document = {"benchmark": "brake", "seconds": given.seconds, "measured": [asdict(each) for each in measured]}
    (given.out / "brake.json").write_text(json.dumps(document, indent=2) + "\n", encoding="ascii")
    if not given.quick and any(abs(each.deviation) > _TOLERANCE for each in measured):
        sys.exit(1)


def _parse() -> argparse.Namespace:
    parser = options(__doc__)
    parser.add_argument("--rates", nargs="+", default=["2MB/s", "50MB/s"], metavar="RATE", help="2MB/s and 50MB/s")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long bytes are counted (30)")
    parser.add_argument("--transports", nargs="+", choices=["api", "v2"], default=["api", "v2"], help="both")
    parser.add_argument("--schemes", nargs="+", choices=["http", "https"], default=["http", "https"], help="both")
    given = parser.parse_args()
    if given.quick:
        given.rates, given.seconds, given.schemes = ["5MB/s"], 2.0, ["http"]
    return given


def _files(folder: Path, size: int) -> list[Path]:
    """Sparse files with *size* bytes in all; each has another length, and so another digest."""
    files = [folder / f"layer-{number}" for number in range(_LAYERS)]
    for number, file in enumerate(files):
        with file.open("wb") as made:
            made.truncate(size // _LAYERS + number)
    return files


def _measure(
    endpoint: Endpoint, files: list[Path], transport: str, scheme: str, rate: float, seconds: float
) -> Measured:
    with relayed(endpoint) as (relay, url):
        command = [sys.executable, "-m", "asyncpush", "layers", *map(str, files), "--repository-name", "bench/brake"]
        command += ["--create-repository", "--quiet", "--endpoint-url", url, "--transport", transport]
        command += ["--bandwidth", format_rate(rate)]
        process = subprocess.Popen(
            command, env=endpoint.environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        try:
            while relay.carried < _CHUNK:
                time.sleep(0.01)
                if process.poll() is not None:
                    sys.exit(f"asyncpush ended before it sent anything: {process.communicate()[1]}")
            time.sleep(_SETTLE)
            steps = [_mean(relay, 1.0) for _ in range(round(seconds))]
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=30)
    sent, took = sum(sent for sent, _ in steps), sum(took for _, took in steps)
    each = [sent / took for sent, took in steps]
    return Measured(transport, scheme, rate, sent / took, min(each), max(each))


def _mean(relay: Relay, seconds: float) -> tuple[int, float]:
    before, began = relay.carried, time.monotonic()
    time.sleep(seconds)
    return relay.carried - before, time.monotonic() - began


if __name__ == "__main__":
    main()
