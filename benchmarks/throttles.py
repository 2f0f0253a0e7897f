"""throttles: how much of what an endpoint lets through is used, where it refuses a share of the parts, or has a quota?

    python benchmarks/throttles.py [--before PYTHON]

Layers of one part each are pushed to the emulator, 40 ms a request away: at first it refuses nothing, then a share of
UploadLayerPart at random, as a quota that is shared with others does, then all above a rate. Goodput is layers a second
of the run that refused nothing, times the share that is not refused; or the quota. ``--before`` is the interpreter of
another installation of asyncpush, which is measured in the same run, one after the other.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

SHARES = (0.03, 0.1, 0.2, 0.4)
SIZE = 16 * 1024


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", metavar="PYTHON", help="an interpreter that has another asyncpush")
    parser.add_argument("--layers", type=int, default=1000)
    parser.add_argument("--quota", type=int, default=40, help="parts a second of the hard quota (40)")
    parser.add_argument("--limit", type=float, default=120, help="seconds after which a run is cut short (120)")
    parser.add_argument("--client", metavar="URL", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.client:
        asyncio.run(push(given.client, given.layers, given.limit))
        return
    interpreters = {"after": sys.executable} | ({"before": given.before} if given.before else {})
    print(f"{'':<8} {'refused':<12} {'layers/s':>9} {'of what is let through':>23} {'refused/passed':>15}")
    for name, python in interpreters.items():
        free = run(python, given, [])
        print(f"{name:<8} {'nothing':<12} {free['rate']:>9.1f}")
        for share in SHARES:
            one = run(python, given, ["--fault", f"UploadLayerPart:probability={share}:throttle"])
            report(name, f"{share:.0%}", one, free["rate"] * (1 - share))
        quota = given.quota
        one = run(python, given, ["--throttle", f"UploadLayerPart={quota}:{quota}"])
        report(name, f"above {quota}/s", one, min(quota, free["rate"]))


def report(name: str, what: str, one: dict[str, float], most: float) -> None:
    """Print one line."""
    refused = one["refused"] / max(1, one["done"])
    print(f"{name:<8} {what:<12} {one['rate']:>9.1f} {one['rate'] / most:>23.2f} {refused:>15.2f}", flush=True)


def run(python: str, given: argparse.Namespace, fault_config: list[str]) -> dict[str, float]:
    """Push once to an emulator of this installation, with a client of *python*'s."""
    with tempfile.TemporaryDirectory() as data:
        serve = [sys.executable, "-m", "asyncpush", "serve", "--port", "0", "--data", data, "--discard"]
        serve += ["--latency", "40ms", "--seed", "1", *fault_config]
        with subprocess.Popen(serve, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
            try:
                assert server.stdout is not None
                url = next(line.split("=", 1)[1].strip() for line in server.stdout if "AWS_ENDPOINT_URL_ECR=" in line)
                client = [python, __file__, "--client", url, "--layers", str(given.layers), "--limit", str(given.limit)]
                done = subprocess.run(client, stdout=subprocess.PIPE, text=True, check=True)
                return json.loads(done.stdout)  # type: ignore[no-any-return]
            finally:
                server.terminate()


async def push(url: str, layers: int, limit: float) -> None:
    """Push random layers, and print how fast that went."""
    import anyio

    import asyncpush
    from asyncpush.events import Event, RequestDone

    aws = asyncpush.AwsConfiguration(
        region="us-east-1", endpoint_url=url, access_key_id="test", secret_access_key="test"
    )
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / str(number) for number in range(layers)]
        for file in files:
            file.write_bytes(os.urandom(SIZE))
        settings = asyncpush.Settings(create_repository=True)
        ended = Counter[tuple[str, str]]()

        def count(event: Event) -> None:
            if isinstance(event, RequestDone):
                ended[event.operation, event.outcome] += 1

        async with asyncpush.connect(aws=aws, settings=settings, emit=count) as registry:
            await registry.repository("bench").create()
            began = time.perf_counter()
            with anyio.move_on_after(limit):
                await asyncpush.push_layers(registry, files, "bench")
            seconds = time.perf_counter() - began
    done = ended["CompleteLayerUpload", "succeeded"]
    refused = ended["UploadLayerPart", "throttled"]
    print(json.dumps({"rate": done / seconds, "refused": refused, "done": done, "seconds": seconds}))


if __name__ == "__main__":
    main()
