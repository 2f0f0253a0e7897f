"""Contender: asyncpush's library, a batch of images by ``push`` calls in a task group, or by one ``push_all``."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

import anyio
from job import Job, measured, read_job

import asyncpush
from asyncpush import AwsConfiguration, Settings, SourceRegistry
from asyncpush.cli.run import prepare_memory
from asyncpush.engine.concurrency import AdaptiveLimiter
from asyncpush.reference import parse_destination
from asyncpush.sources import open_source
from asyncpush.sources.registry import open_pool


async def push(job: Job) -> None:
    """Push the job's sources, each a reference, into repositories of their own."""
    how, _, first = job.variant.partition(":")
    if first:
        defaults: dict[str, object] = getattr(AdaptiveLimiter.__init__, "__kwdefaults__")  # noqa: B009 - mypy does not know it
        defaults["first"] = int(first)
    settings = Settings(create_repository=True)
    hosts = {source.split("/")[2] for source in job.sources if source.startswith("docker://")}
    sources = {host: SourceRegistry(host=host, plain_http=True) for host in hosts}
    async with asyncpush.connect(aws=AwsConfiguration(endpoint_url=job.url), settings=settings) as registry:
        with measured() as details:
            details["images"] = len(job.sources)
            await (_calls if how == "push" else _together)(registry, job, sources)


async def _calls(registry: asyncpush.Registry, job: Job, sources: dict[str, SourceRegistry]) -> None:
    async def one(number: int, source: str) -> None:
        await asyncpush.push(registry, source, f"{job.repository}/{number}", sources=sources)

    async with anyio.create_task_group() as tg:
        for number, source in enumerate(job.sources):
            tg.start_soon(one, number, source)


async def _together(registry: asyncpush.Registry, job: Job, sources: dict[str, SourceRegistry]) -> None:
    async with AsyncExitStack() as stack:
        remotes = await stack.enter_async_context(open_pool(sources))
        images = []
        for number, source in enumerate(job.sources):
            opening = open_source(source, registry.settings, remotes=remotes)
            opened = await stack.enter_async_context(opening)
            images.append((await opened.image(), parse_destination(f"{job.repository}/{number}:latest")))
        for result in await asyncpush.push_all(registry, images):
            if isinstance(result, asyncpush.ImageFailure):
                raise result.error


if __name__ == "__main__":
    prepare_memory()
    asyncio.run(push(read_job()))
