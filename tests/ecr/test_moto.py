"""moto's ECR, written by others, takes what asyncpush sends; boto3 finds the same there as in the emulator."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from anyio import to_thread

import asyncpush
from asyncpush import LayerResult, Registry, Settings
from asyncpush.emulator import Emulator
from asyncpush.events import PartSent
from asyncpush.settings import MIN_PART_SIZE
from support.aws import aws, judge
from support.events import Events
from support.images import CONFIG, LAYER, Layout, digest
from support.s3 import moto_server

SETTINGS = Settings(create_repository=True, part_size=MIN_PART_SIZE)
LARGE, SMALL = random.Random(1).randbytes(MIN_PART_SIZE + 1), b"a small layer"
CONFIG_BYTES = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'


@pytest.fixture
def moto(need: Callable[[str], str]) -> Iterator[str]:
    """The URL of a moto server in a thread of its own, with nothing in it."""
    need("moto")
    from moto.core import DEFAULT_ACCOUNT_ID
    from moto.ecr import ecr_backends

    try:
        with moto_server() as url:
            yield url
    finally:
        for backend in ecr_backends[DEFAULT_ACCOUNT_ID].values():
            backend.reset()


@pytest.fixture(params=["moto", "emulator"])
def endpoint(request: pytest.FixtureRequest) -> str:
    """Both ends that are not AWS's."""
    found = request.getfixturevalue(request.param)
    return found.endpoint_url if isinstance(found, Emulator) else found


@pytest.fixture
def layout(tmp_path: Path) -> str:
    layout = Layout()
    config, layers = layout.blob(CONFIG_BYTES, CONFIG), [layout.blob(data, LAYER) for data in (LARGE, SMALL)]
    layout.tag(layout.manifest(config, layers), "1")
    return f"oci:{layout.write(tmp_path / 'layout')}:1"


@asynccontextmanager
async def connected(endpoint: str, emit: Events) -> AsyncIterator[Registry]:
    async with asyncpush.connect(aws=aws(endpoint), settings=SETTINGS, emit=emit) as registry:
        yield registry


@dataclass(frozen=True)
class Seen:
    """What boto3 says of a repository."""

    layers: dict[str, tuple[str, int]]
    manifest: str
    media_type: str
    digest: str
    tags: list[str]


def look(endpoint: str, repository: str, manifest_digest: str) -> Seen:
    client = judge(endpoint)
    blobs = [digest(data) for data in (LARGE, SMALL, CONFIG_BYTES)]
    there = client.batch_check_layer_availability(repositoryName=repository, layerDigests=blobs)["layers"]
    [image] = client.batch_get_image(repositoryName=repository, imageIds=[{"imageTag": "1"}])["images"]
    [details] = client.describe_images(repositoryName=repository, imageIds=[{"imageDigest": manifest_digest}])[
        "imageDetails"
    ]
    client.close()
    return Seen(
        {layer["layerDigest"]: (layer["layerAvailability"], layer["layerSize"]) for layer in there},
        image["imageManifest"],
        image["imageManifestMediaType"],
        image["imageId"]["imageDigest"],
        details["imageTags"],
    )


async def test_moto_and_the_emulator_hold_the_image_and_nothing_goes_twice(endpoint: str, layout: str) -> None:
    """Moto and the emulator hold the pushed image, and nothing is sent twice."""
    events = Events()
    async with connected(endpoint, events) as registry:
        first = await asyncpush.push(registry, layout, "team/app:1")
        parts = len(events.of(PartSent))
        second = await asyncpush.push(registry, layout, "team/app:1")
    assert (first.outcome, first.layers_sent, first.bytes_sent) == (
        "pushed", 3, len(LARGE) + len(SMALL) + len(CONFIG_BYTES),
    )  # fmt: skip
    assert parts == 2 + 1 + 1
    assert (second.outcome, second.layers_sent) == ("present", 0)
    assert len(events.of(PartSent)) == parts

    folder = Path(layout.removeprefix("oci:").removesuffix(":1"))
    raw = (folder / "blobs" / "sha256" / str(first.digest)[7:]).read_text()
    assert await to_thread.run_sync(look, endpoint, "team/app", str(first.digest)) == Seen(
        {digest(data): ("AVAILABLE", len(data)) for data in (LARGE, SMALL, CONFIG_BYTES)},
        raw,
        json.loads(raw)["mediaType"],
        str(first.digest),
        ["1"],
    )


async def test_both_ends_take_files_as_layers(endpoint: str, tmp_path: Path) -> None:
    files = [tmp_path / "large", tmp_path / "small"]
    for file, data in zip(files, (LARGE, SMALL), strict=True):
        file.write_bytes(data)
    async with connected(endpoint, Events()) as registry:
        pushed = await asyncpush.push_layers(registry, files, "team/layers")
        again = await asyncpush.push_layers(registry, files, "team/layers")
    for results, outcome in ((pushed, "pushed"), (again, "present")):
        assert all(isinstance(result, LayerResult) for result in results)
        assert [(result.outcome, str(result.digest), result.size) for result in results] == [
            (outcome, digest(LARGE), len(LARGE)),
            (outcome, digest(SMALL), len(SMALL)),
        ]


def push_by_boto3(endpoint: str, repository: str, layout: Path) -> None:
    """Push as a script with boto3 would, in one upload a blob."""
    client = judge(endpoint)
    client.create_repository(repositoryName=repository)
    for data in (LARGE, SMALL, CONFIG_BYTES):
        upload: dict[str, Any] = client.initiate_layer_upload(repositoryName=repository)
        named = {"repositoryName": repository, "uploadId": upload["uploadId"]}
        for first in range(0, len(data), upload["partSize"]):
            part = data[first : first + upload["partSize"]]
            client.upload_layer_part(
                **named, partFirstByte=first, partLastByte=first + len(part) - 1, layerPartBlob=part
            )
        client.complete_layer_upload(**named, layerDigests=[digest(data)])
    index = json.loads((layout / "index.json").read_bytes())
    raw = (layout / "blobs" / "sha256" / index["manifests"][0]["digest"][7:]).read_bytes()
    # moto takes an image's digest as given and makes one up otherwise.
    put = {"imageManifest": raw.decode(), "imageDigest": digest(raw)}
    client.put_image(repositoryName=repository, imageTag="1", **put)
    client.close()


async def test_at_both_ends_an_image_that_boto3_has_pushed_is_present(endpoint: str, layout: str) -> None:
    folder = Path(layout.removeprefix("oci:").removesuffix(":1"))
    await to_thread.run_sync(push_by_boto3, endpoint, "team/boto", folder)
    events = Events()
    async with connected(endpoint, events) as registry:
        result = await asyncpush.push(registry, layout, "team/boto:1")
        other = await asyncpush.push(registry, layout, "team/boto:2")
    assert (result.outcome, result.layers_sent) == ("present", 0)
    assert (other.outcome, other.layers_sent, other.digest) == ("pushed", 0, result.digest)
    assert events.of(PartSent) == []
