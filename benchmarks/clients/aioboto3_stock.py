"""Contender: aioboto3 as it comes, one layer a task; files are read and hashed in worker threads."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any, BinaryIO

import aioboto3
from aiobotocore.config import AioConfig
from job import Job, Layer, measured, read_job


async def push(job: Job) -> None:
    """Push the job's layers."""
    config = AioConfig(max_pool_connections=job.concurrency)
    async with aioboto3.Session().client("ecr", endpoint_url=job.url, config=config) as client:
        slots = asyncio.Semaphore(job.concurrency)

        async def one(layer: Layer) -> None:
            async with slots:
                await push_layer(client, job.repository, layer)

        with measured():
            async with asyncio.TaskGroup() as group:
                for layer in job.layers:
                    group.create_task(one(layer))


async def push_layer(client: Any, repository: str, layer: Layer) -> None:  # noqa: ANN401 - its clients have no type
    """Push one file."""
    upload = await client.initiate_layer_upload(repositoryName=repository)
    sha256, first = hashlib.sha256(), 0

    def next_part(file: BinaryIO) -> bytes:
        part = file.read(upload["partSize"])
        sha256.update(part)
        return part

    with await asyncio.to_thread(Path(layer.path).open, "rb") as file:
        while part := await asyncio.to_thread(next_part, file):
            last = first + len(part) - 1
            answer = await client.upload_layer_part(
                repositoryName=repository,
                uploadId=upload["uploadId"],
                partFirstByte=first,
                partLastByte=last,
                layerPartBlob=part,
            )
            if answer["lastByteReceived"] != last:
                raise RuntimeError(f"{last} was sent, {answer['lastByteReceived']} received")
            first = last + 1
    digest = f"sha256:{sha256.hexdigest()}"
    await client.complete_layer_upload(repositoryName=repository, uploadId=upload["uploadId"], layerDigests=[digest])


if __name__ == "__main__":
    asyncio.run(push(read_job()))
