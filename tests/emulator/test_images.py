"""The emulator's image operations keep ECR's rules; botocore's client is the judge."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from anyio import to_thread

from asyncpush.emulator import Emulator
from support.aws import call_new, token
from support.emulator_client import (
    OCI_INDEX,
    OCI_LAYER,
    OCI_MANIFEST,
    Ecr,
    descriptor,
    digest_of,
    image_manifest,
    index_manifest,
)

CONFIG = b'{"architecture":"amd64","os":"linux"}'
LAYER = b"a layer"
SYNTAX = "Invalid parameter at 'ImageManifest' failed to satisfy constraint: 'Invalid JSON syntax'"


@pytest.fixture
async def ecr(emulator: Emulator) -> Ecr:
    client = Ecr(emulator.endpoint_url)
    await client.call("create_repository", repositoryName="app")
    return client


@pytest.fixture
async def blobs(ecr: Ecr) -> None:
    for blob in (CONFIG, LAYER):
        await ecr.push_layer("app", blob)


def putting(manifest: bytes, **members: Any) -> dict[str, Any]:
    return {"repositoryName": "app", "imageManifest": manifest.decode(), **members}


async def test_an_image_comes_back_byte_for_byte_by_tag_and_by_digest(ecr: Ecr, blobs: None) -> None:
    manifest = b" \n" + image_manifest(CONFIG, LAYER, annotations={"name": "caf\u00e9 \\u00e9"}) + b"\n\n"
    put = await ecr.put("app", manifest, "v1", imageDigest=digest_of(manifest), imageManifestMediaType=OCI_MANIFEST)
    assert put["imageId"] == {"imageDigest": digest_of(manifest), "imageTag": "v1"}
    for wanted in ({"imageTag": "v1"}, {"imageDigest": digest_of(manifest)}, put["imageId"]):
        answer = await ecr.call("batch_get_image", repositoryName="app", imageIds=[wanted])
        assert answer["failures"] == []
        assert answer["images"][0]["imageManifest"].encode() == manifest
        assert answer["images"][0]["imageManifestMediaType"] == OCI_MANIFEST
        assert answer["images"][0]["imageId"]["imageDigest"] == digest_of(manifest)


async def test_a_manifest_without_a_media_type_takes_the_one_it_is_put_with(ecr: Ecr, blobs: None) -> None:
    document = json.loads(image_manifest(CONFIG, LAYER))
    del document["mediaType"]
    manifest = json.dumps(document).encode()
    assert (await ecr.refused("put_image", **putting(manifest))).message == SYNTAX
    put = await ecr.put("app", manifest, imageManifestMediaType=OCI_MANIFEST)
    assert put["imageManifestMediaType"] == OCI_MANIFEST


@pytest.mark.parametrize(
    ("manifest", "members"),
    [
        (b"no JSON", {}),
        (b"[]", {}),
        (image_manifest(CONFIG, LAYER), {"imageManifestMediaType": OCI_INDEX}),
        (image_manifest(CONFIG, LAYER, mediaType="application/vnd.oci.artifact.manifest.v1+json"), {}),
        (image_manifest(CONFIG, LAYER, schemaVersion=1), {}),
        (image_manifest(CONFIG, LAYER, config=None), {}),
        (image_manifest(CONFIG, LAYER, layers=None), {}),
        (image_manifest(CONFIG, LAYER, layers=[{"digest": digest_of(LAYER)}]), {}),
        (image_manifest(CONFIG, LAYER, mediaType=OCI_INDEX), {}),
        (index_manifest(LAYER, child_type=OCI_LAYER), {}),
        (image_manifest(CONFIG, LAYER, layers=[{**descriptor(OCI_LAYER, LAYER), "size": -1}]), {}),
        (image_manifest(CONFIG, LAYER, layers=[{**descriptor(OCI_LAYER, LAYER), "size": 2**63}]), {}),
        (b'{"schemaVersion":2,"deep":' + b"[" * 5000, {}),
    ],
)
async def test_a_manifest_that_ecr_does_not_take_is_an_invalid_parameter(
    ecr: Ecr, blobs: None, manifest: bytes, members: dict[str, str]
) -> None:
    refusal = await ecr.refused("put_image", **putting(manifest, **members))
    assert (refusal.code, refusal.message) == ("InvalidParameterException", SYNTAX)


async def test_schema_one_is_refused(ecr: Ecr) -> None:
    media_type = "application/vnd.docker.distribution.manifest.v1+json"
    refusal = await ecr.refused("put_image", **putting(b'{"schemaVersion":1}', imageManifestMediaType=media_type))
    assert (refusal.code, refusal.message) == ("InvalidParameterException", SYNTAX)


async def test_an_image_without_layers_is_refused(ecr: Ecr, blobs: None) -> None:
    refusal = await ecr.refused("put_image", **putting(image_manifest(CONFIG)))
    assert (refusal.code, refusal.message) == (
        "InvalidParameterException",
        "Invalid parameter at 'ImageManifest' failed to satisfy constraint: 'Image has to have at least 1 layer'",
    )


@pytest.mark.parametrize("letter", ["x", "\u00e9"])
async def test_a_manifest_may_have_four_mebibytes(ecr: Ecr, blobs: None, letter: str) -> None:
    empty = image_manifest(CONFIG, LAYER, annotations={"a": ""}).decode()
    filling = (4 * 1024 * 1024 - len(empty)) // len(letter.encode())
    longest = empty.replace('"a": ""', f'"a": "{letter * filling}"')
    await ecr.put("app", longest.encode())
    refusal = await ecr.refused("put_image", **putting(longest.encode() + b"   "))
    assert refusal.code == "InvalidParameterException"
    assert "'imageManifest'" in refusal.message


async def test_a_digest_that_is_not_the_manifests_is_refused(ecr: Ecr, blobs: None) -> None:
    wrong = digest_of(b"another")
    refusal = await ecr.refused("put_image", **putting(image_manifest(CONFIG, LAYER), imageDigest=wrong))
    assert refusal.code == "ImageDigestDoesNotMatchException"
    assert refusal.message == (
        f"The image with digest '{wrong}' in repository 'app' and registry ID '000000000000' does not match the image "
        "digest that Amazon ECR has calculated."
    )
    assert await ecr.tags("app") == {}


async def test_an_image_needs_its_config_and_its_layers(ecr: Ecr) -> None:
    await ecr.push_layer("app", LAYER)
    refusal = await ecr.refused("put_image", **putting(image_manifest(CONFIG, LAYER, b"other", b"other")))
    assert refusal.code == "LayersNotFoundException"
    assert f"[{digest_of(CONFIG)}, {digest_of(b'other')}]" in refusal.message
    assert await ecr.tags("app") == {}


@pytest.mark.parametrize(
    "media_type",
    [
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    ],
)
async def test_a_foreign_layer_with_addresses_may_be_missing(ecr: Ecr, blobs: None, media_type: str) -> None:
    urls = ["https://example.com/layer"]
    without = image_manifest(CONFIG, layers=[descriptor(media_type, b"absent")])
    with_urls = image_manifest(CONFIG, layers=[descriptor(media_type, b"absent", urls=urls)])
    ordinary = image_manifest(CONFIG, layers=[descriptor(OCI_LAYER, b"absent", urls=urls)])
    await ecr.put("app", with_urls)
    for manifest in (without, ordinary):
        assert (await ecr.refused("put_image", **putting(manifest))).code == "LayersNotFoundException"


async def test_a_foreign_layer_that_was_pushed_can_be_downloaded_as_others_can(ecr: Ecr, blobs: None) -> None:
    layer = b"not to be distributed"
    named = descriptor("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", layer, urls=["https://example.com"])
    wanted = {"repositoryName": "app", "layerDigest": await ecr.push_layer("app", layer)}
    assert (await ecr.refused("get_download_url_for_layer", **wanted)).code == "LayerInaccessibleException"
    image = (await ecr.put("app", image_manifest(CONFIG, layers=[named])))["imageId"]
    assert (await ecr.call("get_download_url_for_layer", **wanted))["downloadUrl"]
    await ecr.call("batch_delete_image", repositoryName="app", imageIds=[image])
    assert (await ecr.refused("get_download_url_for_layer", **wanted)).code == "LayerInaccessibleException"


async def test_an_index_needs_its_images(ecr: Ecr, blobs: None) -> None:
    child = image_manifest(CONFIG, LAYER)
    index = index_manifest(child)
    refusal = await ecr.refused("put_image", **putting(index, imageTag="multi"))
    assert refusal.code == "ReferencedImagesNotFoundException"
    assert digest_of(child) in refusal.message
    await ecr.put("app", child)
    await ecr.put("app", index, "multi")
    assert await ecr.tags("app") == {digest_of(child): [], digest_of(index): ["multi"]}


async def test_a_manifest_can_not_be_a_layer_nor_a_layer_an_image(ecr: Ecr, blobs: None) -> None:
    child = image_manifest(CONFIG, LAYER)
    await ecr.put("app", child)
    assert await ecr.available("app", digest_of(child)) == set()
    assert (await ecr.refused("put_image", **putting(index_manifest(LAYER)))).code == (
        "ReferencedImagesNotFoundException"
    )


async def test_putting_what_is_there_is_refused_with_tag_and_without(ecr: Ecr) -> None:
    manifest = await ecr.push_image("app", "v1", CONFIG, LAYER)
    tagged = await ecr.refused("put_image", **putting(manifest, imageTag="v1"))
    untagged = await ecr.refused("put_image", **putting(manifest))
    assert (tagged.code, untagged.code) == ("ImageAlreadyExistsException", "ImageAlreadyExistsException")
    assert tagged.message == (
        f"Image with digest '{digest_of(manifest)}' and tag 'v1' already exists in the repository with name 'app' in "
        "registry with id '000000000000'"
    )


async def test_another_tag_for_an_existing_image_leaves_its_date(ecr: Ecr) -> None:
    """Another tag for an existing image is accepted and leaves its date."""
    manifest = await ecr.push_image("app", "v1", CONFIG, LAYER)
    (before,) = (await ecr.call("describe_images", repositoryName="app"))["imageDetails"]
    await ecr.put("app", manifest, "latest")
    (after,) = (await ecr.call("describe_images", repositoryName="app"))["imageDetails"]
    assert after["imagePushedAt"] == before["imagePushedAt"]
    assert await ecr.tags("app") == {digest_of(manifest): ["latest", "v1"]}


async def test_a_tag_that_moves_leaves_its_old_image_untagged(ecr: Ecr) -> None:
    old = await ecr.push_image("app", "v1", CONFIG, LAYER)
    new = await ecr.push_image("app", "v1", CONFIG, b"newer")
    assert await ecr.tags("app") == {digest_of(old): [], digest_of(new): ["v1"]}


@pytest.mark.parametrize(
    ("mutability", "filters", "immutable"),
    [
        ("MUTABLE", [], {"v1": False, "latest": False}),
        ("IMMUTABLE", [], {"v1": True, "latest": True}),
        ("IMMUTABLE_WITH_EXCLUSION", ["late*", "dev"], {"v1": True, "latest": False, "dev": False, "dev2": True}),
        ("MUTABLE_WITH_EXCLUSION", ["v*.*"], {"v1": False, "v1.0": True, "latest": False}),
    ],
)
async def test_an_immutable_tag_stays_with_its_image(
    ecr: Ecr, mutability: str, filters: list[str], immutable: dict[str, bool]
) -> None:
    members = {"imageTagMutabilityExclusionFilters": [{"filterType": "WILDCARD", "filter": one} for one in filters]}
    await ecr.call(
        "create_repository",
        repositoryName="guarded",
        imageTagMutability=mutability,
        **(members if filters else {}),
    )
    for blob in (CONFIG, LAYER, b"newer"):
        await ecr.push_layer("guarded", blob)
    first, second = image_manifest(CONFIG, LAYER), image_manifest(CONFIG, b"newer")
    for tag, stays in immutable.items():
        await ecr.put("guarded", first, tag)
        putting_again = {"repositoryName": "guarded", "imageManifest": second.decode(), "imageTag": tag}
        if stays:
            refusal = await ecr.refused("put_image", **putting_again)
            assert refusal.code == "ImageTagAlreadyExistsException"
            assert refusal.message == (
                f"The image tag '{tag}' already exists in the 'guarded' repository and cannot be overwritten because "
                "the repository is immutable."
            )
            same = await ecr.refused("put_image", **{**putting_again, "imageManifest": first.decode()})
            assert same.code == "ImageAlreadyExistsException"
        else:
            await ecr.call("put_image", **putting_again)


async def test_images_that_can_not_be_given_are_failures_with_their_codes(ecr: Ecr) -> None:
    first = await ecr.push_image("app", "v1", CONFIG, LAYER)
    second = await ecr.push_image("app", "v2", CONFIG, b"newer")
    absent = digest_of(b"absent")
    wanted = [
        ({"imageTag": "v3"}, "ImageNotFound"),
        ({"imageDigest": absent}, "ImageNotFound"),
        ({"imageDigest": digest_of(second), "imageTag": "v3"}, "ImageNotFound"),
        ({"imageDigest": digest_of(second), "imageTag": "v1"}, "ImageTagDoesNotMatchDigest"),
        ({}, "MissingDigestAndTag"),
        ({"imageDigest": "x"}, "InvalidImageDigest"),
        ({"imageTag": "no/tag"}, "InvalidImageTag"),
    ]
    child = image_manifest(CONFIG, LAYER, annotations={"a": "child"})
    await ecr.put("app", child)
    ids = [*(image_id for image_id, _ in wanted), *({"imageDigest": digest_of(each)} for each in (first, child))]
    answer = await ecr.call("batch_get_image", repositoryName="app", imageIds=ids)
    assert [(failure["imageId"], failure["failureCode"]) for failure in answer["failures"]] == wanted
    reasons = {failure["failureReason"] for failure in answer["failures"] if failure["failureCode"] == "ImageNotFound"}
    assert reasons == {"Requested image not found"}
    assert [image["imageId"] for image in answer["images"]] == [
        {"imageDigest": digest_of(first), "imageTag": "v1"},
        {"imageDigest": digest_of(child)},
    ]


async def test_a_layer_takes_the_media_type_that_an_image_gives_it(ecr: Ecr) -> None:
    await ecr.push_image("app", "v1", CONFIG, LAYER)
    answer = await ecr.call(
        "batch_check_layer_availability", repositoryName="app", layerDigests=[digest_of(CONFIG), digest_of(LAYER)]
    )
    assert [layer["mediaType"] for layer in answer["layers"]] == ["application/vnd.oci.image.config.v1+json", OCI_LAYER]


async def test_an_image_is_described_with_its_size_and_types(ecr: Ecr) -> None:
    manifest = await ecr.push_image("app", "v1", CONFIG, LAYER, LAYER)
    index = index_manifest(manifest)
    await ecr.put("app", index)
    answer = await ecr.call(
        "describe_images", repositoryName="app", imageIds=[{"imageTag": "v1"}, {"imageDigest": digest_of(index)}]
    )
    image, multi = answer["imageDetails"]
    assert image["imageSizeInBytes"] == len(CONFIG) + len(LAYER) == multi["imageSizeInBytes"]
    assert image["imageTags"] == ["v1"]
    assert image["imageManifestMediaType"] == OCI_MANIFEST
    assert image["artifactMediaType"] == "application/vnd.oci.image.config.v1+json"
    assert image["imagePushedAt"].year > 2000
    assert (multi["imageManifestMediaType"], "artifactMediaType" in multi, "imageTags" in multi) == (
        OCI_INDEX,
        False,
        False,
    )


async def test_one_missing_image_fails_the_description_of_all(ecr: Ecr) -> None:
    await ecr.push_image("app", "v1", CONFIG, LAYER)
    refusal = await ecr.refused(
        "describe_images", repositoryName="app", imageIds=[{"imageTag": "v1"}, {"imageTag": "v2"}]
    )
    assert refusal.code == "ImageNotFoundException"
    assert refusal.message == (
        "The image with imageId {imageDigest:'null', imageTag:'v2'} does not exist within the repository with name "
        "'app' in the registry with id '000000000000'"
    )


@pytest.mark.parametrize("size", [1, 2, 5, 100])
async def test_pages_of_images_and_of_their_ids_give_each_once(ecr: Ecr, size: int) -> None:
    for number in range(5):
        await ecr.push_image("app", f"v{number}" if number else None, CONFIG, b"layer %d" % number)
    await ecr.put("app", image_manifest(CONFIG, b"layer 1"), "latest")
    details = await all_pages(ecr, "describe_images", "imageDetails", size)
    assert sorted(detail["imageDigest"] for detail in details) == sorted(await ecr.tags("app"))
    ids = await all_pages(ecr, "list_images", "imageIds", size)
    assert sorted(image_id.get("imageTag", "") for image_id in ids) == ["", "latest", "v1", "v2", "v3", "v4"]


async def all_pages(ecr: Ecr, operation: str, member: str, size: int) -> list[dict[str, Any]]:
    entries: list[dict[str, Any]] = []
    token: dict[str, str] = {}
    while True:
        answer = await ecr.call(operation, repositoryName="app", maxResults=size, **token)
        assert 0 < len(answer[member]) <= size
        entries += answer[member]
        if "nextToken" not in answer:
            return entries
        token = {"nextToken": answer["nextToken"]}


async def test_images_are_filtered_by_whether_they_have_a_tag(ecr: Ecr) -> None:
    tagged = digest_of(await ecr.push_image("app", "v1", CONFIG, LAYER))
    untagged = digest_of(await ecr.push_image("app", None, CONFIG, b"other"))
    for status, expected in {"TAGGED": {tagged}, "UNTAGGED": {untagged}, "ANY": {tagged, untagged}}.items():
        filtered = {"repositoryName": "app", "filter": {"tagStatus": status}}
        details = (await ecr.call("describe_images", **filtered))["imageDetails"]
        ids = (await ecr.call("list_images", **filtered))["imageIds"]
        assert {detail["imageDigest"] for detail in details} == expected
        assert {image_id["imageDigest"] for image_id in ids} == expected


async def test_deleting_the_last_tag_deletes_the_image_and_keeps_its_layers(ecr: Ecr) -> None:
    manifest = await ecr.push_image("app", "v1", CONFIG, LAYER)
    await ecr.put("app", manifest, "v2")
    for tag, left in (("v1", {digest_of(manifest): ["v2"]}), ("v2", {})):
        answer = await ecr.call("batch_delete_image", repositoryName="app", imageIds=[{"imageTag": tag}])
        assert answer["imageIds"] == [{"imageDigest": digest_of(manifest), "imageTag": tag}]
        assert await ecr.tags("app") == left
    assert await ecr.available("app", digest_of(LAYER)) == {digest_of(LAYER)}
    await ecr.put("app", manifest, "v1")


async def test_deleting_by_digest_takes_all_tags_but_not_an_index_its_image(ecr: Ecr) -> None:
    child = await ecr.push_image("app", "child", CONFIG, LAYER)
    index = index_manifest(child)
    await ecr.put("app", index, "a")
    await ecr.put("app", index, "b")
    by_digest = [{"imageDigest": digest_of(child)}]
    answer = await ecr.call("batch_delete_image", repositoryName="app", imageIds=by_digest)
    assert answer["failures"][0]["failureCode"] == "ImageReferencedByManifestList"
    answer = await ecr.call(
        "batch_delete_image", repositoryName="app", imageIds=[{"imageDigest": digest_of(index)}, {"imageTag": "a"}]
    )
    assert [image_id["imageTag"] for image_id in answer["imageIds"]] == ["a", "b"]
    assert [failure["failureCode"] for failure in answer["failures"]] == ["ImageNotFound"]
    assert (await ecr.call("batch_delete_image", repositoryName="app", imageIds=by_digest))["failures"] == []
    assert await ecr.tags("app") == {}


async def test_every_image_operation_needs_its_repository(ecr: Ecr) -> None:
    ids = {"imageIds": [{"imageTag": "v1"}]}
    for operation, members in {
        "put_image": {"imageManifest": "{}"},
        "batch_get_image": ids,
        "batch_delete_image": ids,
        "describe_images": {},
        "list_images": {},
    }.items():
        refusal = await ecr.refused(operation, repositoryName="absent", **members)
        assert refusal.code == "RepositoryNotFoundException"


async def test_an_archived_image_is_described_and_not_served(
    tmp_path: Path,
) -> None:
    """Nor listed where nobody asks for archived ones; a restart and a new image of the same bytes change that right."""
    image = {"repositoryName": "app", "imageId": {"imageTag": "v1"}}

    async def move(url: str, storage_class: str) -> Any:
        ask = partial(call_new, url, "UpdateImageStorageClass", "us-east-1", **image, targetStorageClass=storage_class)
        return await to_thread.run_sync(ask)

    async def seen(url: str) -> list[Any]:
        """Tags by default, by status, what is served, and the tags of /v2/."""
        ecr, http = Ecr(url), {"Authorization": f"Basic {await to_thread.run_sync(token, url)}"}
        lists = []
        for status in ({}, {"filter": {"imageStatus": "ARCHIVED"}}):
            ask = partial(call_new, url, "DescribeImages", "us-east-1", repositoryName="app", **status)
            details = (await to_thread.run_sync(ask))["imageDetails"]
            lists.append(sorted(tag for detail in details for tag in detail["imageTags"]))
        wanted = [{"imageTag": "v1"}, {"imageTag": "v2"}]
        answer = await ecr.call("batch_get_image", repositoryName="app", imageIds=wanted)
        codes = [failure["failureCode"] for failure in answer["failures"]]
        async with (
            aiohttp.ClientSession(url, headers=http) as session,
            session.get("/v2/app/tags/list") as listed,
            session.get("/v2/app/manifests/v1") as pulled,
        ):
            return [*lists, codes, (await listed.json())["tags"], pulled.status]

    archived = [["v2"], ["v1"], ["ImageInaccessible"], ["v2"], 403]
    active = [["v1", "v2"], [], [], ["v1", "v2"], 200]
    async with Emulator(tmp_path / "ecr", fsync=False) as emulator:
        client = Ecr(emulator.endpoint_url)
        await client.call("create_repository", repositoryName="app")
        manifest = await client.push_image("app", "v1", CONFIG, LAYER)
        await client.push_image("app", "v2", CONFIG, LAYER + b"2")
        assert (await move(emulator.endpoint_url, "ARCHIVE"))["imageStatus"] == "ARCHIVED"
        assert await seen(emulator.endpoint_url) == archived
        assert await move(emulator.endpoint_url, "COLD") == "InvalidParameterException"
    async with Emulator(tmp_path / "ecr", fsync=False) as again:
        assert await seen(again.endpoint_url) == archived
        assert (await move(again.endpoint_url, "STANDARD"))["imageStatus"] == "ACTIVE"
        assert await seen(again.endpoint_url) == active
        await move(again.endpoint_url, "ARCHIVE")
        client = Ecr(again.endpoint_url)
        await client.call("batch_delete_image", repositoryName="app", imageIds=[{"imageDigest": digest_of(manifest)}])
        assert await move(again.endpoint_url, "STANDARD") == "ImageNotFoundException"
        await client.put("app", manifest, "v1")
        assert await seen(again.endpoint_url) == active
    async with Emulator(tmp_path / "ecr", fsync=False) as last:
        assert await seen(last.endpoint_url) == active
