"""Contender: asyncpush's engine, one ``push_layer`` a file with its digest known; or the library's ``push_layers``."""

from __future__ import annotations

import asyncio
import time
from asyncio.events import Handle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
from job import Job, measured, read_job

import asyncpush
from asyncpush import AwsConfiguration, Settings
from asyncpush.cli.run import prepare_memory
from asyncpush.connection import engine_of
from asyncpush.engine.layer import push_layer
from asyncpush.sources import file_blob

MEDIA_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"


async def push(job: Job) -> None:
    """Push the job's layers."""
    settings = Settings(max_layers=job.concurrency, create_repository=True, transport=job.transport)
    async with asyncpush.connect(aws=AwsConfiguration(endpoint_url=job.url), settings=settings) as registry:
        if job.variant == "library":
            with measured():
                await _push_files(registry, job)
        else:
            await _push_known(registry, job)


async def _push_files(registry: asyncpush.Registry, job: Job) -> None:
    results = await asyncpush.push_layers(registry, [layer.path for layer in job.layers], job.repository)
    results.raise_for_failures()


async def _push_known(registry: asyncpush.Registry, job: Job) -> None:
    repository = registry.repository(job.repository)
    blobs = [await file_blob(Path(layer.path), MEDIA_TYPE) for layer in job.layers]
    with measured() as details, _longest_callback(details if job.watch_loop else None):
        async with anyio.create_task_group() as tg:
            for blob in blobs:
                tg.start_soon(push_layer, repository, blob, engine_of(registry).context)


@contextmanager
def _longest_callback(details: dict[str, object] | None) -> Iterator[None]:
    """Find the longest that one callback kept the loop: in processor seconds, since others may keep it from running."""
    if details is None:
        yield
        return
    run, longest = Handle._run, 0.0  # noqa: SLF001 - there is no public way to see each callback

    def timed(handle: Handle) -> None:
        nonlocal longest
        started = time.thread_time()
        run(handle)
        longest = max(longest, time.thread_time() - started)

    Handle._run = timed  # type: ignore[assignment,method-assign] # noqa: SLF001
    try:
        yield
    finally:
        Handle._run = run  # type: ignore[method-assign] # noqa: SLF001
        details["longest_callback"] = longest


if __name__ == "__main__":
    given = read_job()
    prepare_memory()
    if given.variant == "uvloop":
        import uvloop

        uvloop.run(push(given))
    else:
        asyncio.run(push(given))
