"""lists: what does it cost to plan a long list into repositories that the journal knows to be large?

    python benchmarks/lists.py [--lines 20000] [--repositories 50] [--layers 20000]

A list has a line for each image; all of its layers are in the journal, as an earlier run has brought them. The source
is a small registry in a process of its own, which makes its manifests as they are asked for, and the target an
emulator; ``asyncpush migrate --dry-run`` reads the manifests, and asks the target and the journal. Printed is what that
process used.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web
from endpoints import Endpoint, ecr_client, emulator

from asyncpush.journal.database import open_database

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
#: Where the emulator puts what is not signed.
_ACCOUNT, _REGION = "000000000000", "us-east-1"
_SIZE = 1_000_000


@dataclass(frozen=True, slots=True)
class Shape:
    """How many lines, repositories, layers of each repository, and layers of each image."""

    lines: int
    repositories: int
    layers: int
    image: int

    @property
    def tags(self) -> int:
        """Images of a repository."""
        return self.lines // self.repositories

    def digests(self, repository: int, tag: int) -> Iterator[str]:
        """The layers of an image."""
        for number in range(tag * self.image, (tag + 1) * self.image):
            yield _digest(repository, number % self.layers)

    def manifest(self, repository: int, tag: int) -> bytes:
        """An image's manifest."""
        config, *layers = (
            {"mediaType": _MANIFEST.replace("manifest", "layer"), "digest": f"sha256:{digest}", "size": _SIZE}
            for digest in self.digests(repository, tag)
        )
        config["mediaType"] = _MANIFEST.replace("manifest", "config")
        return json.dumps({"schemaVersion": 2, "mediaType": _MANIFEST, "config": config, "layers": layers}).encode()


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=20_000)
    parser.add_argument("--repositories", type=int, default=50)
    parser.add_argument("--layers", type=int, default=20_000, help="layers of each repository")
    parser.add_argument("--image", type=int, default=50, help="layers of each image, its config among them")
    given = parser.parse_args()
    shape = Shape(given.lines, given.repositories, given.layers, given.image)
    with (
        tempfile.TemporaryDirectory() as folder,
        _source(shape) as port,
        emulator(Path(folder, "ecr")) as target,
    ):
        client = ecr_client(target)
        for repository in range(shape.repositories):
            client.create_repository(repositoryName=_name(repository))
        journal = Path(folder, "list.journal")
        _fill(journal, target, shape)
        listed = Path(folder, "list")
        listed.write_text(
            "".join(
                f"127.0.0.1:{port}/{_name(repository)}:{tag} {_name(repository)}:{tag}\n"
                for tag in range(shape.tags)
                for repository in range(shape.repositories)
            )
        )
        cpu, seconds, peak = _plan(listed, journal, target, shape)
    print(
        f"{shape.lines} lines into {shape.repositories} repositories of {shape.layers} layers: "
        f"{cpu:.1f} CPU seconds, {seconds:.1f} seconds, {peak / 2**20:.0f} MiB at the most"
    )


def _digest(repository: int, number: int) -> str:
    return hashlib.sha256(f"{repository}/{number}".encode()).hexdigest()


def _name(repository: int) -> str:
    return f"team/app-{repository}"


def _plan(listed: Path, journal: Path, target: Endpoint, shape: Shape) -> tuple[float, float, int]:
    command = [sys.executable, "-m", "asyncpush", "migrate", str(listed), "--dry-run", "--journal", str(journal)]
    began = time.monotonic()
    with Path(os.devnull).open("w") as nowhere:
        process = subprocess.Popen(
            [*command, "--src-plain-http", "--output", "json", "--progress", "none"],
            env={**target.environment(), "AWS_REGION": _REGION},
            stdout=subprocess.PIPE,
            stderr=nowhere,
        )
        assert process.stdout is not None
        report = json.loads(process.stdout.read())
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    totals = report["totals"]
    if process.returncode or totals["planned"] != shape.lines or totals["bytesSent"]:
        raise SystemExit(f"it ended with {process.returncode}, and planned {totals}")
    return usage.ru_utime + usage.ru_stime, seconds, usage.ru_maxrss * 1024


def _fill(journal: Path, target: Endpoint, shape: Shape) -> None:
    """Let the journal know all layers of all repositories."""
    with open_database(journal) as connection:
        connection.execute("BEGIN")
        for repository in range(shape.repositories):
            address = f"{target.host}/{_REGION}/{_ACCOUNT}/{_name(repository)}"
            key = connection.execute("INSERT INTO repository (address) VALUES (?)", (address,)).lastrowid
            connection.executemany("INSERT INTO layer VALUES (?, ?, ?, 1)", _rows(shape, repository, key))
        connection.execute("COMMIT")


def _rows(shape: Shape, repository: int, key: int | None) -> Iterator[tuple[int | None, bytes, int]]:
    for number in range(shape.layers):
        yield key, bytes.fromhex(_digest(repository, number)), _SIZE


@contextmanager
def _source(shape: Shape) -> Iterator[int]:
    """Run the registry; its port."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.Process(target=_serve, args=(shape, theirs), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


def _serve(shape: Shape, port: multiprocessing.connection.Connection) -> None:
    by_digest: dict[str, bytes] = {}

    async def answer(request: web.Request) -> web.Response:
        head, _, reference = request.path.rpartition("/")
        repository = head.removeprefix("/v2/").rpartition("/")[0]
        if head.endswith("/tags"):
            return web.json_response({"name": repository, "tags": [str(tag) for tag in range(shape.tags)]})
        if not head.endswith("/manifests"):
            return web.json_response({}, status=200 if request.path == "/v2/" else 404)
        raw = by_digest.get(reference)
        if raw is None and reference.isdecimal():
            raw = shape.manifest(int(repository.rpartition("-")[2]), int(reference))
        if raw is None:
            return web.json_response({"errors": [{"code": "MANIFEST_UNKNOWN"}]}, status=404)
        digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
        by_digest[digest] = raw
        return web.Response(body=raw, headers={"Content-Type": _MANIFEST, "Docker-Content-Digest": digest})

    async def start(application: web.Application) -> None:
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        port.send(runner.addresses[0][1])

    async def serve() -> None:
        application = web.Application()
        application.router.add_get("/{path:.*}", answer)
        await start(application)
        await asyncio.Event().wait()

    asyncio.run(serve())


if __name__ == "__main__":
    main()
