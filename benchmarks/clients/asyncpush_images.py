"""Contender: asyncpush's library, all images of some sources.

Each pass makes a connection of its own. With the variant ``connected``, there is one pass, over a connection that was
made before the measured section.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import time
import urllib.request
from contextlib import AbstractAsyncContextManager, AsyncExitStack

from anyio import to_thread
from job import Job, measured, read_job

import asyncpush
from asyncpush import AwsConfiguration, ImageFailure, Settings
from asyncpush.cli.run import prepare_memory
from asyncpush.protocols import Image
from asyncpush.reference import Destination, parse_prefix

Target = tuple[Image, Destination]


async def push(job: Job) -> None:
    """Push the job's images, as often as it says."""
    async with AsyncExitStack() as stack:
        targets = await _open(stack, job)
        if job.create:
            await _create(job, targets)
        if job.variant == "connected":
            registry = await stack.enter_async_context(_connect(job))
            with measured():
                _sent(await asyncpush.push_all(registry, targets))
            return
        with measured() as details:
            details["images"] = len(targets)
            details["passes"] = [await _pass(job, targets) for _ in range(job.passes)]


async def _open(stack: AsyncExitStack, job: Job) -> list[Target]:
    """Open the sources; where two name the same image, the later one gets a repository of its own."""
    prefix = parse_prefix(job.repository)
    targets: dict[str, Target] = {}
    for number, source in enumerate(job.sources):
        opened = await stack.enter_async_context(asyncpush.open_source(source, Settings()))
        for image in await opened.images():
            name = image.repository or "image"
            to = prefix.join(name, image.tag)
            if str(to) in targets:
                to = prefix.join(f"{name}-{number}", image.tag)
            targets[str(to)] = (image, to)
    return list(targets.values())


async def _create(job: Job, targets: list[Target]) -> None:
    async with asyncpush.connect(aws=AwsConfiguration(endpoint_url=job.url)) as registry:
        for name in {to.repository for _, to in targets}:
            await registry.repository(name).create()


def _connect(job: Job) -> AbstractAsyncContextManager[asyncpush.Registry]:
    settings = Settings(max_layers=job.concurrency, create_repository=True, transport=job.transport)
    return asyncpush.connect(aws=AwsConfiguration(endpoint_url=job.url), settings=settings)


async def _pass(job: Job, targets: list[Target]) -> list[dict[str, object]]:
    """Push all images; what each took, or one entry for all of them."""
    groups = [targets] if job.at_once else [[target] for target in targets]
    rows: list[dict[str, object]] = []
    async with _connect(job) as registry:
        before = await to_thread.run_sync(_counts, job.url)
        for group in groups:
            started = time.perf_counter()
            outcomes = await asyncpush.push_all(registry, group)
            seconds = time.perf_counter() - started
            after = await to_thread.run_sync(_counts, job.url)
            asked = {name: after[name] - before.get(name, 0) for name in after if after[name] > before.get(name, 0)}
            rows.append({"image": str(group[0][1]), "seconds": seconds, "requests": asked, "bytes": _sent(outcomes)})
            before = after
    return rows


def _sent(outcomes: list[asyncpush.ImageResult | ImageFailure]) -> int:
    for outcome in outcomes:
        if isinstance(outcome, ImageFailure):
            raise outcome.error
    return sum(outcome.bytes_sent for outcome in outcomes if not isinstance(outcome, ImageFailure))


def _counts(url: str) -> dict[str, int]:
    """The emulator's own count of requests, by operation."""
    bundle = os.environ.get("AWS_CA_BUNDLE")
    tls = ssl.create_default_context(cafile=bundle) if bundle else None
    with urllib.request.urlopen(f"{url}/_emulator/requests", context=tls) as reply:
        counts: dict[str, int] = json.load(reply)["counts"]
    return counts


if __name__ == "__main__":
    prepare_memory()
    asyncio.run(push(read_job()))
