"""A bucket that moto's server keeps, as boto3 sees it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import boto3
import pytest

from support.migrations import keys


class Bucket:
    """The bucket called ``bucket``; its methods block."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = boto3.client(
            "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="test", aws_secret_access_key="test"
        )
        self._client.create_bucket(Bucket="bucket")

    def get(self, key: str) -> bytes:
        data: bytes = self._client.get_object(Bucket="bucket", Key=key)["Body"].read()
        return data

    def put(self, key: str, data: bytes) -> None:
        self._client.put_object(Bucket="bucket", Key=key, Body=data)

    def remove(self, key: str) -> None:
        """Delete the bucket, and its only object."""
        self._client.delete_object(Bucket="bucket", Key=key)
        self._client.delete_bucket(Bucket="bucket")

    def keys(self) -> list[str]:
        return [item["Key"] for item in self._client.list_objects_v2(Bucket="bucket").get("Contents", [])]


@contextmanager
def moto_server() -> Iterator[str]:
    """The URL of a moto server in a thread of its own."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@contextmanager
def new_bucket(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """An empty bucket in a moto server, to which the environment leads."""
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    keys(monkeypatch)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    try:
        yield Bucket(url)
    finally:
        for backend in s3_backends[DEFAULT_ACCOUNT_ID].values():
            backend.reset()
