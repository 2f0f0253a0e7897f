"""Contender: boto3 as its documentation shows it, one layer a thread, the digest by hashlib in that thread."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]
from botocore.config import Config
from job import Job, Layer, measured, read_job


def push(job: Job) -> None:
    """Push the job's layers."""
    client = boto3.client("ecr", endpoint_url=job.url, config=Config(max_pool_connections=job.concurrency))
    with ThreadPoolExecutor(job.concurrency) as threads, measured():
        list(threads.map(lambda layer: push_layer(client, job.repository, layer), job.layers))


def push_layer(client: Any, repository: str, layer: Layer) -> None:  # noqa: ANN401 - boto3's clients have no type
    """Push one file."""
    upload = client.initiate_layer_upload(repositoryName=repository)
    sha256, first = hashlib.sha256(), 0
    with Path(layer.path).open("rb", buffering=0) as file:
        while part := file.read(upload["partSize"]):
            sha256.update(part)
            last = first + len(part) - 1
            answer = client.upload_layer_part(
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
    client.complete_layer_upload(repositoryName=repository, uploadId=upload["uploadId"], layerDigests=[digest])


if __name__ == "__main__":
    push(read_job())
