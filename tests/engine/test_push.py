"""What a push promises, seen from both ends: the library in front, the emulator's disk and boto3 behind."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

import asyncpush
from asyncpush import Platform, Registry, RetryPolicy, Settings, SourceError
from asyncpush.emulator import Emulator, FaultConfig
from asyncpush.emulator.faults import parse_fault
from asyncpush.engine.ordering import PipelineEstimator
from asyncpush.errors import DigestMismatchError, RegistryError, RepositoryNotFoundError, TagImmutableError
from asyncpush.events import Event, ImagePlanned, LayerDone, Notice, PartSent
from asyncpush.progress.meter import Meter
from asyncpush.reference import parse_destination
from asyncpush.settings import TransportChoice
from support.aws import REGION, aws, call_new, judge
from support.events import Events
from support.images import DockerSave, Layout, at, digest, layer_tar
from support.relay import NO_WAITS, deleting, passed, refused, relay_to

MiB = 2**20


def noise(seed: int, size: int) -> bytes:
    """Bytes that do not compress."""
    return random.Random(seed).randbytes(size)


def rule(text: str) -> FaultConfig:
    """Fair faults but for one rule."""
    return FaultConfig(faults=(parse_fault(text),))


def stored_image(url: str, repository: str, tag: str) -> dict[str, Any]:
    """The image that boto3 finds under a tag."""
    answer = judge(url).batch_get_image(repositoryName=repository, imageIds=[{"imageTag": tag}])
    assert not answer["failures"]
    return answer["images"][0]


async def test_the_manifest_that_was_read_is_the_manifest_that_is_put(
    emulator: Emulator, registry: Registry, tmp_path: Path
) -> None:
    layout = Layout()
    image = layout.image(layer_tar("base"), layer_tar("app"))
    folder = layout.tag(image, "1.0").write(tmp_path / "app")

    result = await asyncpush.push(registry, f"oci:{folder}:1.0", "team/app:1.0")

    stored = await to_thread.run_sync(stored_image, emulator.endpoint_url, "team/app", "1.0")
    assert stored["imageManifest"].encode() == layout.files[f"blobs/sha256/{str(image['digest'])[7:]}"]
    assert str(result.digest) == image["digest"] == stored["imageId"]["imageDigest"]
    assert (result.outcome, result.layers_sent) == ("pushed", 3)


async def test_an_image_that_ecr_has_archived_is_not_called_present(
    emulator: Emulator, registry: Registry, tmp_path: Path
) -> None:
    layout = Layout()
    folder = layout.tag(layout.image(layer_tar("base")), "1.0").write(tmp_path / "app")
    await asyncpush.push(registry, f"oci:{folder}", "team/app:1.0")
    image = {"repositoryName": "team/app", "imageId": {"imageTag": "1.0"}}
    move = partial(call_new, emulator.endpoint_url, "UpdateImageStorageClass", **image)
    await to_thread.run_sync(partial(move, targetStorageClass="ARCHIVE"))

    with pytest.raises(RegistryError, match=r"team/app:1\.0 is archived") as error:
        await asyncpush.push(registry, f"oci:{folder}", "team/app:1.0")

    assert "--repository-name team/app --image-id imageTag=1.0" in (error.value.hint or "")
    await to_thread.run_sync(partial(move, targetStorageClass="STANDARD"))
    assert (await asyncpush.push(registry, f"oci:{folder}", "team/app:1.0")).outcome == "present"


async def test_a_second_push_asks_one_question_and_sends_nothing(
    emulator: Emulator, registry: Registry, tmp_path: Path
) -> None:
    layout = Layout()
    folder = layout.tag(layout.image(layer_tar("base")), "1.0").write(tmp_path / "app")
    await asyncpush.push(registry, f"oci:{folder}", "team/app:1.0")
    emulator.requests.clear()

    result = await asyncpush.push(registry, f"oci:{folder}", "team/app:1.0")

    assert dict(emulator.requests.counts()) == {"BatchGetImage": 1}
    assert (result.outcome, result.layers_sent, result.bytes_sent) == ("present", 0, 0)


async def test_another_tag_of_an_image_that_is_there_costs_one_manifest(
    emulator: Emulator, registry: Registry, tmp_path: Path
) -> None:
    layout = Layout()
    folder = layout.tag(layout.image(layer_tar("base")), "1.0").write(tmp_path / "app")
    await asyncpush.push(registry, f"oci:{folder}", "team/app:1.0")
    emulator.requests.clear()

    result = await asyncpush.push(registry, f"oci:{folder}", "team/app:2.0")

    assert dict(emulator.requests.counts()) == {"BatchGetImage": 1, "PutImage": 1}
    assert result.outcome == "pushed"


async def test_of_an_index_the_root_alone_is_tagged_and_children_go_by_digest(
    emulator: Emulator, registry: Registry, tmp_path: Path
) -> None:
    layout = Layout()
    children = [
        at(layout.image(layer_tar("amd64"), platform="linux/amd64"), "linux/amd64"),
        at(layout.image(layer_tar("arm64"), platform="linux/arm64"), "linux/arm64"),
    ]
    index = layout.index(*children)
    folder = layout.tag(index, "1.0").write(tmp_path / "app")

    result = await asyncpush.push(registry, f"oci:{folder}", "team/app:1.0")

    ids = judge(emulator.endpoint_url).list_images
    listed = (await to_thread.run_sync(lambda: ids(repositoryName="team/app")))["imageIds"]
    assert {image["imageDigest"]: image.get("imageTag") for image in listed} == {
        index["digest"]: "1.0",
        children[0]["digest"]: None,
        children[1]["digest"]: None,
    }
    assert str(result.digest) == index["digest"]
    puts = [record.operation for record in emulator.requests if record.operation == "PutImage"]
    assert len(puts) == 3


async def test_of_an_index_only_the_children_that_are_missing_are_sent(emulator: Emulator, tmp_path: Path) -> None:
    layout = Layout()
    there, missing = layout.image(layer_tar("there")), layout.image(layer_tar("missing"))
    folder = layout.tag(there, "child").tag(layout.index(there, missing), "index").write(tmp_path / "app")
    settings = Settings(create_repository=True)
    async with asyncpush.connect(aws=aws(emulator.endpoint_url), settings=settings) as registry:
        await asyncpush.push(registry, f"oci:{folder}:child", "team/app:child")
    emulator.requests.clear()

    # A connection of its own: nothing is remembered, the repository is asked.
    async with asyncpush.connect(aws=aws(emulator.endpoint_url), settings=settings) as registry:
        await asyncpush.push(registry, f"oci:{folder}:index", "team/app:index")
        retagged = await asyncpush.push(registry, f"oci:{folder}:child", "team/app:other")

    counts = emulator.requests.counts()
    # The missing child's layer and config; its manifest, the index, and the other tag.
    assert (counts["InitiateLayerUpload"], counts["PutImage"]) == (2, 3)
    assert retagged.layers_sent == 0


async def test_an_index_goes_into_a_repository_of_immutable_tags(
    emulator: Emulator, registry: Registry, tmp_path: Path
) -> None:
    layout = Layout()
    index = layout.index(layout.image(layer_tar("one")), layout.image(layer_tar("two")))
    folder = layout.tag(index, "1.0").write(tmp_path / "app")
    create = judge(emulator.endpoint_url).create_repository
    await to_thread.run_sync(lambda: create(repositoryName="fixed", imageTagMutability="IMMUTABLE"))

    result = await asyncpush.push(registry, f"oci:{folder}", "fixed:1.0")

    # A child under the tag would have kept the root from it.
    assert str(result.digest) == index["digest"]


async def test_a_platform_picks_one_image_of_an_index(registry: Registry, tmp_path: Path) -> None:
    layout = Layout()
    arm = at(layout.image(layer_tar("arm64"), platform="linux/arm64"), "linux/arm64")
    amd = at(layout.image(layer_tar("amd64"), platform="linux/amd64"), "linux/amd64")
    folder = layout.tag(layout.index(amd, arm), "1.0").write(tmp_path / "app")

    result = await asyncpush.push(registry, f"oci:{folder}", "team/app:1.0", platform=Platform.parse("linux/arm64"))

    assert str(result.digest) == arm["digest"]


async def test_layers_that_images_share_go_once(emulator: Emulator, registry: Registry, tmp_path: Path) -> None:
    layout = Layout()
    base = layer_tar("base", 20_000)
    for name in ("a", "b", "c", "d"):
        layout.tag(layout.image(base, layer_tar(name)), name)
    folder = layout.write(tmp_path / "apps")

    async with asyncpush.open_source(f"oci:{folder}", registry.settings) as source:
        images = [(image, parse_destination(f"team/app:{image.tag}")) for image in await source.images()]
        results = await asyncpush.push_all(registry, images)

    assert [getattr(result, "outcome", "failed") for result in results] == ["pushed"] * 4
    # One base, four layers of their own and four configs.
    assert emulator.requests.counts()["CompleteLayerUpload"] == 9
    assert sum(result.layers_sent for result in results) == 9


async def test_a_batch_puts_a_manifest_that_images_share_once(
    emulator: Emulator, registry: Registry, tmp_path: Path
) -> None:
    layout = Layout()
    index = layout.index(layout.image(layer_tar("amd64")), layout.image(layer_tar("arm64")))
    for tag in ("1", "1.2", "latest"):
        layout.tag(index, tag)
    folder = layout.write(tmp_path / "app")

    async with asyncpush.open_source(f"oci:{folder}", registry.settings) as source:
        images = [(image, parse_destination(f"team/app:{image.tag}")) for image in await source.images()]
        results = await asyncpush.push_all(registry, images)

    assert [getattr(result, "outcome", "failed") for result in results] == ["pushed"] * 3
    assert emulator.requests.counts()["PutImage"] == 2 + 3


async def test_a_batch_of_moved_tags_asks_once_for_tag_mutability(
    emulator: Emulator, registry: Registry, tmp_path: Path
) -> None:
    """A batch of moved tags asks once for the mutability of their repository."""
    for text in ("old", "new"):
        layout = Layout()
        for tag in ("1", "2", "3"):
            layout.tag(layout.image(layer_tar(text + tag)), tag)
        folder = layout.write(tmp_path / text)
        async with asyncpush.open_source(f"oci:{folder}", registry.settings) as source:
            images = [(image, parse_destination(f"team/app:{image.tag}")) for image in await source.images()]
            results = await asyncpush.push_all(registry, images)

    assert [getattr(result, "outcome", "failed") for result in results] == ["pushed"] * 3
    assert emulator.requests.counts()["DescribeRepositories"] == 1


async def test_a_manifest_that_was_deleted_in_mid_run_is_put_again(
    emulator: Emulator, registry: Registry, tmp_path: Path
) -> None:
    layout = Layout()
    child = layout.image(layer_tar("amd64"))
    for tag in ("1", "2"):
        layout.tag(layout.index(child, layout.image(layer_tar(tag))), tag)
    folder = layout.write(tmp_path / "app")
    client = judge(emulator.endpoint_url)
    await asyncpush.push(registry, f"oci:{folder}:1", "team/app:1")
    gone = [{"imageTag": "1"}], [{"imageDigest": str(child["digest"])}]
    for ids in gone:
        delete = partial(client.batch_delete_image, repositoryName="team/app", imageIds=ids)
        await to_thread.run_sync(delete)
    emulator.requests.clear()

    await asyncpush.push(registry, f"oci:{folder}:2", "team/app:2")

    assert emulator.requests.counts()["PutImage"] == 3, "at once, not after ECR has refused the index"


async def test_one_image_that_fails_does_not_stop_the_others(registry: Registry, tmp_path: Path) -> None:
    good, bad = Layout(), Layout()
    folder = good.tag(good.image(layer_tar("good")), "1").write(tmp_path / "good")
    bad.tag(bad.image(layer_tar("bad")), "1")
    largest = max((name for name in bad.files if name.startswith("blobs")), key=lambda name: b"bad" in bad.files[name])
    layer = next(name for name, data in bad.files.items() if data[:2] == b"\x1f\x8b")
    assert largest
    bad.files[layer] = bytes(len(bad.files[layer]))
    broken = bad.write(tmp_path / "bad")

    async with (
        asyncpush.open_source(f"oci:{broken}", registry.settings) as one,
        asyncpush.open_source(f"oci:{folder}", registry.settings) as other,
    ):
        pairs = [(await one.image(), parse_destination("bad:1")), (await other.image(), parse_destination("good:1"))]
        failed, pushed = await asyncpush.push_all(registry, pairs)

    assert isinstance(failed, asyncpush.ImageFailure)
    assert isinstance(failed.error, DigestMismatchError)
    assert isinstance(pushed, asyncpush.ImageResult)


@pytest.mark.parametrize("size", [1, 5 * MiB, 10 * MiB, 10 * MiB + 1, 23 * MiB + 7])
async def test_a_layer_of_any_size_arrives_byte_for_byte(
    emulator: Emulator, registry: Registry, tmp_path: Path, size: int
) -> None:
    file = tmp_path / "layer"
    file.write_bytes(noise(size, size))

    [result] = await asyncpush.push_layers(registry, [file], "team/app")

    assert isinstance(result, asyncpush.LayerResult)
    assert str(result.digest) == digest(file.read_bytes())
    [stored] = (tmp_path / "ecr/repositories").rglob(result.digest.hex)
    assert stored.read_bytes() == file.read_bytes()
    parts = emulator.requests.counts()["UploadLayerPart"]
    assert parts == -(-size // (10 * MiB))


async def test_a_damaged_layer_is_never_completed(emulator: Emulator, registry: Registry, tmp_path: Path) -> None:
    layout = Layout()
    layer = noise(1, 11 * MiB)
    descriptor = layout.blob(layer, "application/vnd.oci.image.layer.v1.tar")
    config = layout.blob(b'{"os":"linux","architecture":"amd64"}', "application/vnd.oci.image.config.v1+json")
    layout.tag(layout.manifest(config, [descriptor]), "1.0")
    name = f"blobs/sha256/{str(descriptor['digest'])[7:]}"
    layout.files[name] = layer[:-1] + bytes([layer[-1] ^ 1])
    folder = layout.write(tmp_path / "app")

    with pytest.raises(DigestMismatchError) as caught:
        await asyncpush.push(registry, f"oci:{folder}", "team/app:1.0")

    assert str(caught.value.expected) == descriptor["digest"]
    assert str(caught.value.actual) == digest(layout.files[name])
    assert name in str(caught.value)
    counts = emulator.requests.counts()
    assert counts["PutImage"] == 0
    # ECR has compared the digest, and the source, read once more, is to blame: another upload can't mend it.
    assert counts["InitiateLayerUpload"] == 2
    completed = [record.status for record in emulator.requests if record.operation == "CompleteLayerUpload"]
    assert sorted(completed) == [200, 400]
    check = judge(emulator.endpoint_url).batch_check_layer_availability
    answer = await to_thread.run_sync(lambda: check(repositoryName="team/app", layerDigests=[descriptor["digest"]]))
    assert answer["layers"][0]["layerAvailability"] == "UNAVAILABLE"


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
async def test_a_docker_archive_becomes_the_same_image_on_every_run(
    emulator: Emulator, tmp_path: Path, compression: Any
) -> None:
    layers = [layer_tar("base", 3 * MiB), layer_tar("app", 300_000)]
    archive = tmp_path / "app.tar"
    archive.write_bytes(DockerSave().image(*layers, tags=["app:1"]).archive())
    settings = Settings(create_repository=True, compression=compression)

    results = []
    for repository in ("one", "two"):
        async with asyncpush.connect(aws=aws(emulator.endpoint_url), settings=settings) as registry:
            results.append(await asyncpush.push(registry, str(archive), f"{repository}:1"))

    assert results[0].digest == results[1].digest
    manifest = json.loads((await to_thread.run_sync(stored_image, emulator.endpoint_url, "one", "1"))["imageManifest"])
    blobs = tmp_path / "ecr" / "repositories/ecr/000000000000" / REGION / "one" / "_layout" / "blobs" / "sha256"
    assert [digest(unpack(blobs, layer)) for layer in manifest["layers"]] == [digest(layer) for layer in layers]


def unpack(blobs: Path, layer: dict[str, Any]) -> bytes:
    """A stored layer's uncompressed bytes, by another implementation than the one that compressed it."""
    data = (blobs / layer["digest"][7:]).read_bytes()
    kind = layer["mediaType"].rpartition(".tar")[2]
    if kind in (".gzip", "+gzip"):
        return gzip.decompress(data)
    if kind == "+zstd":
        import zstandard

        return zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return data


async def test_a_docker_archive_that_is_there_already_is_not_compressed_again(
    emulator: Emulator, registry: Registry, tmp_path: Path
) -> None:
    archive = tmp_path / "app.tar"
    archive.write_bytes(DockerSave().image(layer_tar("base", 100_000), tags=["app:1"]).archive())
    first = await asyncpush.push(registry, str(archive), "app:1")
    emulator.requests.clear()

    second = await asyncpush.push(registry, str(archive), "app:1")

    assert (second.outcome, second.digest) == ("present", first.digest)
    assert dict(emulator.requests.counts()) == {"BatchGetImage": 1}


async def test_an_immutable_tag_takes_the_same_image_again_and_no_other(
    emulator: Emulator, registry: Registry, tmp_path: Path
) -> None:
    layout = Layout()
    one, two = layout.image(layer_tar("one")), layout.image(layer_tar("two"))
    folder = layout.tag(one, "one").tag(two, "two").write(tmp_path / "apps")
    create = judge(emulator.endpoint_url).create_repository
    await to_thread.run_sync(lambda: create(repositoryName="fixed", imageTagMutability="IMMUTABLE"))

    await asyncpush.push(registry, f"oci:{folder}:one", "fixed:1")
    again = await asyncpush.push(registry, f"oci:{folder}:one", "fixed:1")
    emulator.requests.clear()
    with pytest.raises(TagImmutableError) as caught:
        await asyncpush.push(registry, f"oci:{folder}:two", "fixed:1")

    assert again.outcome == "present"
    assert str(one["digest"]) in str(caught.value)
    assert str(two["digest"]) in str(caught.value)
    assert emulator.requests.counts()["UploadLayerPart"] == 0


async def test_without_leave_to_create_a_missing_repository_is_an_error(emulator: Emulator, tmp_path: Path) -> None:
    layout = Layout()
    folder = layout.tag(layout.image(layer_tar("base")), "1.0").write(tmp_path / "app")

    async with asyncpush.connect(aws=aws(emulator.endpoint_url)) as registry:
        with pytest.raises(RepositoryNotFoundError, match="--create-repository"):
            await asyncpush.push(registry, f"oci:{folder}", "missing:1.0")


async def test_many_images_create_their_repository_once(emulator: Emulator, registry: Registry, tmp_path: Path) -> None:
    layout = Layout()
    for name in "abcdefgh":
        layout.tag(layout.image(layer_tar(name)), name)
    folder = layout.write(tmp_path / "apps")

    async with asyncpush.open_source(f"oci:{folder}", registry.settings) as source:
        images = [(image, parse_destination(f"new/app:{image.tag}")) for image in await source.images()]
        results = await asyncpush.push_all(registry, images)

    assert all(isinstance(result, asyncpush.ImageResult) for result in results)
    assert emulator.requests.counts()["CreateRepository"] == 1


async def test_a_dry_run_changes_nothing_and_tells_what_a_push_then_does(
    emulator: Emulator, registry: Registry, tmp_path: Path
) -> None:
    layout = Layout()
    folder = layout.tag(layout.image(layer_tar("base"), layer_tar("app")), "1.0").write(tmp_path / "app")

    planned = await asyncpush.push(registry, f"oci:{folder}", "team/app:1.0", dry=True)
    asked = set(emulator.requests.counts())
    pushed = await asyncpush.push(registry, f"oci:{folder}", "team/app:1.0")

    assert asked <= {"BatchGetImage", "BatchCheckLayerAvailability"}
    assert (planned.outcome, planned.digest) == ("planned", pushed.digest)
    assert (planned.layers_sent, planned.bytes_sent) == (pushed.layers_sent, pushed.bytes_sent)


async def test_an_upload_that_ecr_has_lost_is_begun_anew(emulator: Emulator, tmp_path: Path) -> None:
    file = tmp_path / "layer"
    file.write_bytes(noise(2, 12 * MiB))
    events = Events()
    emulator.fault_config = rule("UploadLayerPart:nth=2:upload-expired")
    settings = Settings(create_repository=True)
    async with asyncpush.connect(aws=aws(emulator.endpoint_url), settings=settings, emit=events) as registry:
        [result] = await asyncpush.push_layers(registry, [file], "team/app")

    assert isinstance(result, asyncpush.LayerResult)
    assert emulator.requests.counts()["UploadLayerPart"] == 2 + 2
    # What was read of the first upload is taken back, so that progress ends at the layer's size.
    assert sum(event.read for event in events.of(PartSent)) == 12 * MiB


async def test_a_part_size_that_ecr_refuses_gives_way_to_the_one_it_asks_for(
    emulator: Emulator, tmp_path: Path
) -> None:
    file = tmp_path / "layer"
    file.write_bytes(noise(3, 21 * MiB))
    async with relay_to(emulator.endpoint_url) as relay:
        relay.plan("UploadLayerPart", refused("InvalidLayerPartException", lastValidByteReceived=0))
        settings = Settings(create_repository=True, part_size=20 * MiB)
        async with asyncpush.connect(aws=aws(relay.url), settings=settings) as registry:
            [result] = await asyncpush.push_layers(registry, [file], "team/app")

        assert isinstance(result, asyncpush.LayerResult)
        assert relay.seen["UploadLayerPart"] == 1 + 3


@pytest.mark.parametrize("times", [1, 2, 3])
async def test_a_layer_that_arrived_wrong_is_sent_again_in_order_and_bounded(
    emulator: Emulator, tmp_path: Path, times: int
) -> None:
    """A layer that arrived wrong at ECR is sent again in strict order, a bounded number of times."""
    file = tmp_path / "layer"
    file.write_bytes(noise(4, MiB))
    async with relay_to(emulator.endpoint_url) as relay:
        relay.plan("CompleteLayerUpload", *[refused("InvalidLayerException")] * times)
        settings = Settings(create_repository=True)
        async with asyncpush.connect(aws=aws(relay.url), settings=settings) as registry:
            [result] = await asyncpush.push_layers(registry, [file], "team/app")
            overlap = registry.context.pipeline
            overlap.answered(0.01)
            assert not overlap.worthwhile(transfer=10, size=MiB, next_size=MiB)

        assert relay.seen["UploadLayerPart"] == min(times + 1, 3)
        if times < 3:
            assert isinstance(result, asyncpush.LayerResult)
        else:
            assert isinstance(result, asyncpush.LayerFailure)
            assert "InvalidLayerException" in str(result.error)


def that_waits(
    emulator: Emulator, *lag_waits: float, transport: TransportChoice = "api"
) -> AbstractAsyncContextManager[Registry]:
    """A connection that waits so long before it puts a manifest again."""
    settings = Settings(create_repository=True, transport=transport, retry=RetryPolicy(lag_waits=lag_waits))
    return asyncpush.connect(aws=aws(emulator.endpoint_url), settings=settings)


async def test_a_manifest_whose_blobs_ecr_does_not_see_yet_is_put_again(emulator: Emulator, tmp_path: Path) -> None:
    layout = Layout()
    folder = layout.tag(layout.image(layer_tar("base")), "1.0").write(tmp_path / "app")
    emulator.fault_config = rule("PutImage:first=2:layers-not-found")

    async with that_waits(emulator, 0.01, 0.01, 0.01, 0.01) as registry:
        result = await asyncpush.push(registry, f"oci:{folder}", "team/app:1.0")

    assert result.outcome == "pushed"
    counts = emulator.requests.counts()
    assert (counts["PutImage"], counts["UploadLayerPart"]) == (3, 2)


@pytest.mark.parametrize(
    ("lies", "waits", "transport"), [("nth=1:", 2, "api"), ("nth=1:", 2, "v2"), ("", 1, "api"), ("", 3, "v2")]
)
async def test_a_swept_layer_is_sent_again_even_if_ecr_says_that_it_has_it(
    emulator: Emulator, tmp_path: Path, lies: str, waits: int, transport: TransportChoice
) -> None:
    layout = Layout()
    folder = layout.tag(layout.image(layer_tar("base")), "1.0").write(tmp_path / "app")
    sent = "UploadLayerPart" if transport == "api" else "POST /v2/team/app/blobs/uploads/"
    async with that_waits(emulator, *(0.01 + wait / 1000 for wait in range(waits)), transport=transport) as registry:
        await registry.repository("team/app").create()
        emulator.fault_config = rule(f"BatchCheckLayerAvailability:{lies}availability=AVAILABLE")

        result = await asyncpush.push(registry, f"oci:{folder}", "team/app:1.0")

    assert result.outcome == "pushed"
    counts = emulator.requests.counts()
    assert (counts["PutImage"], counts[sent]) == (2 if lies else 1 + waits, 2)


@pytest.mark.parametrize("transport", ["api", "v2"])
async def test_a_repository_deleted_in_mid_run_is_created_again_once(
    emulator: Emulator, tmp_path: Path, transport: TransportChoice
) -> None:
    """It gets what was lost, also of images that were put before; if it is deleted again, the push fails."""
    layout = Layout()
    for tag in ("1", "2"):
        image = layout.image(layer_tar("base"), layer_tar(tag))
        layout.tag(layout.index(image) if tag == "1" else image, tag)
    folder, events = layout.write(tmp_path / "app"), Events()
    settings = Settings(create_repository=True, transport=transport, retry=replace(NO_WAITS, lag_waits=(0.0, 0.0)))
    async with (
        relay_to(emulator.endpoint_url) as relay,
        asyncpush.connect(aws=aws(relay.url), settings=settings, emit=events) as registry,
        asyncpush.open_source(f"oci:{folder}", registry.settings) as source,
    ):
        images = [(image, parse_destination(f"team/app:{image.tag}")) for image in await source.images()]
        delete = deleting("team/app")
        relay.plan("PutImage", passed, passed, delete)  # the last one is the other image's, or the index's
        results = await asyncpush.push_all(registry, images)

        client = judge(emulator.endpoint_url)
        found = await to_thread.run_sync(lambda: client.describe_images(repositoryName="team/app"))
        assert [getattr(result, "outcome", result) for result in results] == ["pushed", "pushed"]
        assert sorted(tag for each in found["imageDetails"] for tag in each.get("imageTags", ())) == ["1", "2"]
        assert relay.seen["CreateRepository"] == 2
        assert ["deleted during the run" in notice.text for notice in events.of(Notice)] == [True]

        relay.plan("PutImage", *[delete] * 3)
        [failure] = await asyncpush.push_all(registry, [(images[0][0], parse_destination("team/app:3"))])
        assert isinstance(failure, asyncpush.ImageFailure)
        assert "deleted again after 2 creations" in str(failure.error)
        assert relay.seen["CreateRepository"] == 4


async def test_memory_stays_in_its_budget_however_many_layers_fly(
    emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = []
    for number in range(12):
        files.append(tmp_path / f"layer-{number}")
        files[-1].write_bytes(noise(number, 11 * MiB))
    settings = Settings(create_repository=True, max_memory=40 * MiB, max_layers=12)
    most = 0
    async with asyncpush.connect(aws=aws(emulator.endpoint_url), settings=settings) as registry:
        budget = registry.context.memory
        window = budget.window

        @asynccontextmanager
        async def watched() -> AsyncIterator[Callable[[], None]]:
            nonlocal most
            async with window() as close:
                most = max(most, budget.held)
                yield close

        monkeypatch.setattr(budget, "window", watched)
        results = await asyncpush.push_layers(registry, files, "team/app")

        assert all(isinstance(result, asyncpush.LayerResult) for result in results)
        assert 0 < most <= 40 * MiB
        assert budget.held == 0


async def test_parts_overlap_on_a_slow_network_and_the_layer_arrives_whole(
    emulator: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout()
    source = f"oci:{layout.tag(layout.image(noise(1, MiB) * 35), '1').write(tmp_path / 'app')}"
    early = []
    worthwhile = PipelineEstimator.worthwhile
    monkeypatch.setattr(PipelineEstimator, "worthwhile", lambda *given: early.append(worthwhile(*given)) or early[-1])
    emulator.fault_config = FaultConfig(latency=0.02, bandwidth=50e6)

    settings = Settings(create_repository=True, early_parts=True)
    async with asyncpush.connect(aws=aws(emulator.endpoint_url), settings=settings) as registry:
        result = await asyncpush.push(registry, source, "team/app:1")

    emulator.fault_config = FaultConfig()
    assert any(early)
    statuses = [record.status for record in emulator.requests if record.operation == "UploadLayerPart"]
    assert statuses.count(200) == 5
    assert len(statuses) <= 6  # on a machine that is busy enough, one may overtake
    stored = await to_thread.run_sync(stored_image, emulator.endpoint_url, "team/app", "1")
    assert stored["imageId"]["imageDigest"] == str(result.digest)


@pytest.mark.parametrize("seed", range(6))
async def test_a_push_can_be_cancelled_at_any_moment_and_leaves_nothing_behind(
    emulator: Emulator, tmp_path: Path, seed: int
) -> None:
    layout = Layout()
    layers = [noise(number, 6 * MiB) for number in range(4)]
    folder = layout.tag(layout.image(*layers), "1.0").write(tmp_path / "app")
    settings = Settings(create_repository=True)
    async with asyncpush.connect(aws=aws(emulator.endpoint_url), settings=settings) as registry:
        events = Events()
        stop_after = random.Random(seed).randrange(1, 12)
        with anyio.CancelScope() as scope:

            def stop(event: Any) -> None:
                events.append(event)
                if len(events) >= stop_after:
                    scope.cancel()

            context = registry.context
            object.__setattr__(context, "emit", stop)
            await asyncpush.push(registry, f"oci:{folder}", "team/app:1.0")

        assert context.memory.held == 0
        assert context.limiter.taken == context.threads.borrowed_tokens == 0
        object.__setattr__(context, "emit", events)
        result = await asyncpush.push(registry, f"oci:{folder}", "team/app:1.0")
    stored = await to_thread.run_sync(stored_image, emulator.endpoint_url, "team/app", "1.0")
    assert stored["imageId"]["imageDigest"] == str(result.digest)


async def test_events_add_up_to_what_the_result_says(emulator: Emulator, tmp_path: Path) -> None:
    layout = Layout()
    folder = layout.tag(layout.image(layer_tar("base", 50_000), layer_tar("app")), "1.0").write(tmp_path / "app")
    events = Events()
    settings = Settings(create_repository=True)
    async with asyncpush.connect(aws=aws(emulator.endpoint_url), settings=settings, emit=events) as registry:
        result = await asyncpush.push(registry, f"oci:{folder}", "team/app:1.0")

    [planned] = events.of(ImagePlanned)
    assert planned.layers == len(events.of(LayerDone)) == result.layers_sent
    assert planned.size == sum(event.read for event in events.of(PartSent)) == result.bytes_sent


async def test_what_images_share_is_told_from_what_was_there(emulator: Emulator, tmp_path: Path) -> None:
    """Also where the diff of a later image finds a layer in the repository that the run itself has sent."""
    layout = Layout()
    old, base = layer_tar("old", 30_000), layer_tar("base", 50_000)
    layout.tag(layout.image(old), "0")
    for tag in "123":
        layout.tag(layout.image(old, base, layer_tar(tag)), tag)
    folder = layout.write(tmp_path / "app")
    events, settings = Events(), Settings(create_repository=True)
    async with asyncpush.connect(aws=aws(emulator.endpoint_url), settings=settings) as registry:
        await asyncpush.push(registry, f"oci:{folder}:0", "team/app:0")
    async with asyncpush.connect(aws=aws(emulator.endpoint_url), settings=settings, emit=events) as registry:
        results = []
        async with asyncpush.open_source(f"oci:{folder}", registry=registry) as source:
            images = [image for image in await source.all_images() if image.tag in ("1", "2")]
            to = [(image, parse_destination(f"team/app:{image.tag}")) for image in images]
            results += await asyncpush.push_all(registry, to)
        results.append(await asyncpush.push(registry, f"oci:{folder}:3", "team/app:3"))

    assert [result.layers_present for result in results] == [1, 1, 1]
    assert sorted(result.layers_shared for result in results[:2]) == [0, 1]
    assert (results[2].layers_shared, results[2].layers_sent) == (1, 2)
    assert len({result.bytes_shared for result in results if result.layers_shared}) == 1
    planned = {event.destination: (event.present_layers, event.shared_layers) for event in events.of(ImagePlanned)}
    assert planned == {result.destination: (1, result.layers_shared) for result in results}


async def test_what_an_image_sent_before_it_failed_is_not_shared(
    emulator: Emulator, registry: Registry, tmp_path: Path
) -> None:
    layout = Layout()
    folder = layout.tag(layout.image(layer_tar("base"), layer_tar("app")), "1.0").write(tmp_path / "app")
    emulator.fault_config = rule("PutImage:nth=1:access-denied")
    with pytest.raises(asyncpush.ServiceError, match="AccessDenied"):
        await asyncpush.push(registry, f"oci:{folder}", "team/app:1.0")
    result = await asyncpush.push(registry, f"oci:{folder}", "team/app:1.0")

    assert (result.layers_sent, result.layers_shared, result.layers_present) == (3, 0, 0)
    assert emulator.requests.counts()["CompleteLayerUpload"] == 3


async def test_the_progress_of_a_push_counts_each_byte_once(emulator: Emulator, tmp_path: Path) -> None:
    layout = Layout()
    folder = layout.tag(layout.image(layer_tar("base", 50_000), layer_tar("app")), "1.0").write(tmp_path / "app")
    meter = Meter(lambda: 0.0)
    sizes: list[int] = []

    def emit(event: Event) -> None:
        meter.take(event)
        sizes.append(meter.totals().size)

    settings = Settings(create_repository=True)
    async with asyncpush.connect(aws=aws(emulator.endpoint_url), settings=settings, emit=emit) as registry:
        result = await asyncpush.push(registry, f"oci:{folder}", "team/app:1.0")

    assert max(sizes) == sizes[-1] == result.bytes_sent


async def test_a_file_that_changes_after_it_was_hashed_is_found_out(registry: Registry, tmp_path: Path) -> None:
    file = tmp_path / "layer"
    file.write_bytes(noise(1, 100_000))
    blob = await asyncpush.sources.file_blob(file, "application/octet-stream")
    file.write_bytes(noise(2, 100_000))

    repository = registry.repository("team/app")
    await repository.create()
    from asyncpush.engine.layer import push_layer

    with pytest.raises(SourceError):
        await push_layer(repository, blob, registry.context)
