"""load: do memory and descriptors stay flat, in one run of many images and with many clients at one emulator?

    python benchmarks/load.py [--images 3000] [--layers 5000] [--clients 300] [--waves 2] [--quick]

First one command, ``asyncpush push``, brings all images, of so many layers in all, into one emulator. Then so many
processes at a time push an image each to the same emulator, wave after wave. Memory and descriptors of the client and
of the emulator are looked at all the while; the table has them at the start, in the middle and at the end. Where more
than ``--growth`` MiB are added from the middle to the end, or descriptors are left open, the exit status is 1.
Everything is on 127.0.0.1, and ends by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from data import MiB, Plan, oci_layout
from endpoints import Endpoint, emulator
from harness import ContenderError, progress
from report import scratch, table

#: Seconds between two looks, and those that all clients of a wave have.
_EVERY = 0.2
_WAVE = 600

#: Descriptors that may be open at one time and not at another: files, and connections that are about to close.
_SPARE_DESCRIPTORS = 32

#: Shares of the time at which it is past what a start and an end need.
_START, _END = 0.1, 0.95

#: Bytes of a layer, and tags of a repository.
_LAYER = 2000
_TAGS = 100


@dataclass(frozen=True, slots=True)
class Look:
    """What a process held at one time."""

    at: float
    resident: int
    descriptors: int


@dataclass(slots=True)
class Watch:
    """A process that is looked at; what it holds, in order."""

    name: str
    looks: list[Look] = field(default_factory=list)

    def look(self, process: int) -> None:
        """Note what a process holds now, if it is still there."""
        try:
            pages = int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
            descriptors = len(os.listdir(f"/proc/{process}/fd"))  # noqa: PTH208 - their number is all
        except OSError:
            return
        if pages:  # of a process that has ended, nothing is left
            self.looks.append(Look(time.monotonic(), pages * os.sysconf("SC_PAGE_SIZE"), descriptors))

    def at(self, share: float) -> Look:
        """What it held after this share of the time."""
        first, last = self.looks[0].at, self.looks[-1].at
        return next(look for look in self.looks if look.at >= first + share * (last - first))

    def row(self) -> list[str]:
        """The table's: soon after the start, in the middle, and shortly before the end."""
        looks = [self.at(_START), self.at(0.5), self.at(_END)]
        memory = [f"{look.resident / MiB:.0f}" for look in looks]
        peak = max(look.resident for look in self.looks)
        return [self.name, *memory, f"{peak / MiB:.0f}", *(str(look.descriptors) for look in looks)]

    def growth(self, limit: int) -> str | None:
        """What grew from the middle to the end, and must not; None if nothing did."""
        middle, end = self.at(0.5), self.at(_END)
        if end.resident > middle.resident + limit:
            return f"{self.name}: {(end.resident - middle.resident) / MiB:.0f} MiB more at the end than in the middle"
        if end.descriptors > middle.descriptors + _SPARE_DESCRIPTORS:
            return f"{self.name}: {end.descriptors} descriptors at the end, {middle.descriptors} in the middle"
        return None


def main() -> int:
    """Run, report, and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3000, help="images of the one run (3,000)")
    parser.add_argument("--layers", type=int, default=5000, help="layers that they have in all (5,000)")
    parser.add_argument("--clients", type=int, default=300, help="processes at a time (300)")
    parser.add_argument("--waves", type=int, default=2, help="times that so many begin (2)")
    parser.add_argument("--growth", type=int, default=32, help="MiB more at the end than in the middle (32)")
    parser.add_argument("--quick", action="store_true", help="small numbers, not judged: does it work at all?")
    given = parser.parse_args()
    if not Path("/proc/self/statm").exists():
        sys.exit("load reads /proc, which only Linux has")
    if given.quick:
        given.images, given.layers, given.clients, given.waves = 20, 30, 4, 2
    with scratch() as folder, emulator(folder / "ecr") as endpoint:
        alone = Watch("the emulator, nobody there")
        alone.look(endpoint.pid)
        watches = _one_run(given, folder, endpoint)
        alone.look(endpoint.pid)
        watches += [_many_clients(given, folder, endpoint, alone), alone]
    columns = ["process", *(f"MiB {when}" for when in ("start", "middle", "end", "peak"))]
    columns += [f"descriptors {when}" for when in ("start", "middle", "end")]
    table("load", columns, [watch.row() for watch in watches])
    # Clients come in waves: what the emulator holds while they are there goes up and down.
    even = [] if given.quick else [watch for watch in watches if "clients" not in watch.name]
    grown = [text for watch in even if (text := watch.growth(given.growth * MiB))]
    print("\n".join(grown) or "Nothing grew.")
    return int(bool(grown))


def _one_run(given: argparse.Namespace, folder: Path, endpoint: Endpoint) -> list[Watch]:
    """Push all images with one command."""
    two = max(0, given.layers - given.images)
    plans = [
        Plan(f"app-{number // _TAGS}", f"t{number}", (_LAYER,) * (2 if number < two else 1))
        for number in range(given.images)
    ]
    progress.print(f"{given.images} images with {sum(len(plan.layers) for plan in plans)} layers: making them")
    source = oci_layout(folder / "images", plans)
    command = [sys.executable, "-m", "asyncpush", "push", source, "--to", "load", "--create-repository"]
    client, server = Watch("push of all images"), Watch("the emulator meanwhile")
    with subprocess.Popen(
        [*command, "--progress", "none", "-q"], stdout=subprocess.DEVNULL, env=endpoint.environment()
    ) as process:
        while process.poll() is None:
            client.look(process.pid)
            server.look(endpoint.pid)
            time.sleep(_EVERY)
    status = process.returncode
    if status:
        raise ContenderError(f"asyncpush push ended with {status}")
    took = client.looks[-1].at - client.looks[0].at
    progress.print(f"pushed in {took:.0f} s, with {endpoint.count_requests()} requests")
    return [client, server]


def _many_clients(given: argparse.Namespace, folder: Path, endpoint: Endpoint, alone: Watch) -> Watch:
    """Let many processes push at a time, wave after wave; between waves nobody is there."""
    source = oci_layout(folder / "small", [Plan("small", "1", (_LAYER, _LAYER))])
    busy = Watch(f"the emulator with {given.clients} clients")
    for name, value in endpoint.environment().items():
        os.environ[name] = value
    for wave in range(given.waves):
        started = time.monotonic()
        _wave(given.clients, source, endpoint.url, wave, lambda: busy.look(endpoint.pid))
        progress.print(f"wave {wave + 1} of {given.clients} clients: {time.monotonic() - started:.0f} s")
        time.sleep(1)  # connections that were closed are seen to be
        alone.look(endpoint.pid)
    return busy


def _wave(clients: int, source: str, url: str, wave: int, look: Callable[[], None]) -> None:
    """Begin all clients at once, and look on until the last is done."""
    # A child of this process shares the modules with it: a hundred interpreters would take the machine's memory.
    import asyncpush  # noqa: F401 - before the children, who need it

    forked = multiprocessing.get_context("fork")
    children = [
        forked.Process(target=_client, args=(source, url, f"load/wave-{wave}-{number}")) for number in range(clients)
    ]
    for child in children:
        child.start()
    until = time.monotonic() + _WAVE
    while any(child.is_alive() for child in children) and time.monotonic() < until:
        look()
        time.sleep(_EVERY)
    failed = [child for child in children if child.exitcode != 0]
    for child in failed:
        child.kill()
        child.join()
    if failed:
        raise ContenderError(f"{len(failed)} of {clients} clients did not push their image")


def _client(source: str, url: str, name: str) -> None:
    """Push one image into a repository of its own, over connections of its own."""
    import asyncpush

    async def push() -> None:
        aws = asyncpush.AwsConfiguration(endpoint_url=url)
        settings = asyncpush.Settings(create_repository=True)
        async with asyncpush.connect(aws=aws, settings=settings) as registry:
            await asyncpush.push(registry, source, f"{name}:1")

    asyncio.run(push())


if __name__ == "__main__":
    sys.exit(main())
