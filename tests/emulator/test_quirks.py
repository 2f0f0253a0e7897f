"""Every question that ECR leaves open can be answered in each way, and every quota holds; botocore is the judge."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from asyncpush.emulator import Emulator, Quirks
from asyncpush.emulator.limits import Limits, MiB, Quotas
from asyncpush.emulator.registry import PRIVATE, PUBLIC, RegistryId
from asyncpush.errors import UsageError
from support.emulator_client import OCI_CONFIG, Ecr, descriptor, digest_of, image_manifest, part

CONFIG, LAYER = b"{}", b"a layer"


@asynccontextmanager
async def behaving(data: Path, **chosen: Any) -> AsyncIterator[Ecr]:
    async with Emulator(data, part_size=4, fsync=False, quirks=Quirks(**chosen)) as emulator:
        ecr = Ecr(emulator.endpoint_url)
        await ecr.call("create_repository", repositoryName="app")
        yield ecr


async def test_a_part_above_the_part_size_can_be_refused(tmp_path: Path) -> None:
    async with behaving(tmp_path, large_parts="refused") as ecr:
        upload_id = await ecr.begin("app")
        await ecr.send("app", upload_id, 0, b"0123")
        refusal = await ecr.refused("upload_layer_part", **part("app", upload_id, 4, b"45678"))
        assert (refusal.code, refusal.members["lastValidByteReceived"]) == ("InvalidLayerPartException", 3)


async def test_the_last_part_again_can_be_ignored_and_no_other(tmp_path: Path) -> None:
    async with behaving(tmp_path, repeated_part="ignored") as ecr:
        upload_id = await ecr.begin("app")
        await ecr.send("app", upload_id, 0, b"0123")
        await ecr.send("app", upload_id, 4, b"4567")
        assert await ecr.send("app", upload_id, 4, b"4567") == 7
        for first, data in ((0, b"0123"), (4, b"456"), (5, b"567"), (0, b"01234567")):
            refusal = await ecr.refused("upload_layer_part", **part("app", upload_id, first, data))
            assert refusal.code == "InvalidLayerPartException"
        assert await ecr.complete("app", upload_id, digest_of(b"01234567")) == digest_of(b"01234567")


@pytest.mark.parametrize(("cursor", "expected"), [("0", 0), ("-1", -1), ("absent", None)])
async def test_the_cursor_before_any_part_can_be_chosen(tmp_path: Path, cursor: str, expected: int | None) -> None:
    async with behaving(tmp_path, first_cursor=cursor) as ecr:
        upload_id = await ecr.begin("app")
        refusal = await ecr.refused("upload_layer_part", **part("app", upload_id, 1, b"x"))
        assert refusal.members.get("lastValidByteReceived") == expected


@pytest.mark.parametrize("chosen", ["layer-already-exists", "success"])
async def test_a_completion_that_is_retried_can_be_known_across_restarts(tmp_path: Path, chosen: str) -> None:
    async with behaving(tmp_path, retried_complete=chosen) as ecr:
        upload_id = await ecr.begin("app")
        await ecr.send("app", upload_id, 0, LAYER)
        await ecr.complete("app", upload_id, digest_of(LAYER))
    quirks = Quirks(retried_complete=chosen)  # type: ignore[arg-type]
    async with Emulator(tmp_path, fsync=False, quirks=quirks) as emulator:
        ecr = Ecr(emulator.endpoint_url)
        if chosen == "success":
            assert await ecr.complete("app", upload_id, digest_of(LAYER)) == digest_of(LAYER)
        else:
            named = {"repositoryName": "app", "uploadId": upload_id, "layerDigests": [digest_of(LAYER)]}
            assert (await ecr.refused("complete_layer_upload", **named)).code == "LayerAlreadyExistsException"
        unknown = {"uploadId": "0cb5cb63-f0ad-4ac5-aadf-ff3a37e1dd4e", "layerDigests": [digest_of(LAYER)]}
        refusal = await ecr.refused("complete_layer_upload", repositoryName="app", **unknown)
        assert refusal.code == "UploadNotFoundException"


async def test_a_digest_of_another_algorithm_can_be_refused(tmp_path: Path) -> None:
    async with behaving(tmp_path, other_digests="refused") as ecr:
        upload_id = await ecr.begin("app")
        await ecr.send("app", upload_id, 0, LAYER)
        named = {"repositoryName": "app", "uploadId": upload_id, "layerDigests": ["sha512:00ff"]}
        assert (await ecr.refused("complete_layer_upload", **named)).code == "InvalidParameterException"


async def test_of_several_digests_one_that_is_right_can_be_enough(tmp_path: Path) -> None:
    async with behaving(tmp_path, several_digests="any") as ecr:
        upload_id = await ecr.begin("app")
        await ecr.send("app", upload_id, 0, LAYER)
        wrong = {"repositoryName": "app", "uploadId": upload_id, "layerDigests": [digest_of(b"x"), digest_of(b"y")]}
        assert (await ecr.refused("complete_layer_upload", **wrong)).code == "InvalidLayerException"
        assert await ecr.complete("app", upload_id, digest_of(b"x"), digest_of(LAYER)) == digest_of(LAYER)


async def test_layers_that_no_image_names_can_be_unavailable(tmp_path: Path) -> None:
    async with behaving(tmp_path, unreferenced_layers="unavailable") as ecr:
        for blob in (CONFIG, LAYER):
            await ecr.push_layer("app", blob)
        assert await ecr.available("app", digest_of(LAYER)) == set()
        await ecr.put("app", image_manifest(CONFIG, LAYER), "v1")
        assert await ecr.available("app", digest_of(LAYER)) == {digest_of(LAYER)}
        await ecr.call("batch_delete_image", repositoryName="app", imageIds=[{"imageTag": "v1"}])
        assert await ecr.available("app", digest_of(LAYER)) == set()


async def test_an_upload_can_expire(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with behaving(tmp_path, upload_lifetime=3600) as ecr:
        upload_id = await ecr.begin("app")
        await ecr.send("app", upload_id, 0, b"0123")
        moment = 4102444800.0
        monkeypatch.setattr("asyncpush.emulator.store.state.now", lambda: moment)
        refusal = await ecr.refused("upload_layer_part", **part("app", upload_id, 4, b"4567"))
        assert refusal.code == "UploadNotFoundException"
        assert list((tmp_path / "uploads").iterdir()) == []


async def test_an_upload_can_create_its_repository_by_a_template(tmp_path: Path) -> None:
    async with behaving(tmp_path, create_on_initiate="template") as ecr:
        await ecr.call(
            "create_repository_creation_template",
            prefix="team",
            appliedFor=["CREATE_ON_PUSH"],
            imageTagMutability="IMMUTABLE",
        )
        assert (await ecr.refused("initiate_layer_upload", repositoryName="other/app")).code == (
            "RepositoryNotFoundException"
        )
        await ecr.push_layer("team/app", LAYER)
        (created,) = (await ecr.call("describe_repositories", repositoryNames=["team/app"]))["repositories"]
        assert created["imageTagMutability"] == "IMMUTABLE"


@pytest.mark.parametrize("chosen", ["taken", "refused"])
async def test_a_referrer_without_its_subject_can_be_refused(tmp_path: Path, chosen: str) -> None:
    async with behaving(tmp_path, missing_subject=chosen) as ecr:
        subject = await ecr.push_image("app", None, CONFIG, LAYER)
        there, absent = (
            image_manifest(CONFIG, LAYER, subject=descriptor(OCI_CONFIG, each)) for each in (subject, b"absent")
        )
        await ecr.put("app", there)
        if chosen == "taken":
            await ecr.put("app", absent)
        else:
            refusal = await ecr.refused("put_image", repositoryName="app", imageManifest=absent.decode())
            assert refusal.code == "ReferencedImagesNotFoundException"


async def test_an_immutable_tag_put_again_can_be_a_tag_that_exists(tmp_path: Path) -> None:
    async with behaving(tmp_path, same_immutable_tag="image-tag-already-exists") as ecr:
        manifest = await ecr.push_image("app", "v1", CONFIG, LAYER)
        again = {"repositoryName": "app", "imageManifest": manifest.decode(), "imageTag": "v1"}
        assert (await ecr.refused("put_image", **again)).code == "ImageAlreadyExistsException"
        await ecr.call("put_image_tag_mutability", repositoryName="app", imageTagMutability="IMMUTABLE")
        assert (await ecr.refused("put_image", **again)).code == "ImageTagAlreadyExistsException"


async def test_a_manifest_of_a_type_that_is_not_accepted_can_be_not_found(tmp_path: Path) -> None:
    async with behaving(tmp_path, unaccepted_manifest="image-not-found") as ecr:
        await ecr.push_image("app", "v1", CONFIG, LAYER)
        asked = {"repositoryName": "app", "imageIds": [{"imageTag": "v1"}]}
        answer = await ecr.call("batch_get_image", **asked, acceptedMediaTypes=["application/json"])
        assert ([each["failureCode"] for each in answer["failures"]], answer["images"]) == (["ImageNotFound"], [])
        assert len((await ecr.call("batch_get_image", **asked))["images"]) == 1


async def test_parts_and_bytes_of_a_layer_have_a_quota(tmp_path: Path) -> None:
    async with behaving(tmp_path, max_parts=2, max_layer_size=10) as ecr:
        long, many = await ecr.begin("app"), await ecr.begin("app")
        await ecr.send("app", long, 0, b"0123456789")
        for first in (0, 4):
            await ecr.send("app", many, first, b"0123")
        for upload_id, first in ((long, 10), (many, 8)):
            refusal = await ecr.refused("upload_layer_part", **part("app", upload_id, first, b"x"))
            assert refusal.code == "LimitExceededException"
        assert await ecr.complete("app", long, digest_of(b"0123456789"))


async def test_images_tags_layers_and_repositories_have_a_quota(tmp_path: Path) -> None:
    async with behaving(tmp_path, max_images=2, max_tags=2, max_layers=1, max_repositories=1) as ecr:
        first = await ecr.push_image("app", "a", CONFIG, LAYER)
        await ecr.put("app", first, "b")
        tagging = {"repositoryName": "app", "imageManifest": first.decode()}
        assert (await ecr.refused("put_image", **tagging, imageTag="c")).code == "LimitExceededException"
        assert (await ecr.refused("put_image", **tagging, imageTag="b")).code == "ImageAlreadyExistsException"
        layers = image_manifest(CONFIG, LAYER, LAYER).decode()
        refusal = await ecr.refused("put_image", repositoryName="app", imageManifest=layers)
        assert refusal.message.endswith("'Limit on number of layers per image exceeded'")
        await ecr.push_image("app", None, CONFIG, b"second")
        await ecr.push_layer("app", b"third")
        third = image_manifest(CONFIG, b"third").decode()
        refusal = await ecr.refused("put_image", repositoryName="app", imageManifest=third)
        assert refusal.code == "LimitExceededException"
        assert (await ecr.refused("create_repository", repositoryName="other")).code == "LimitExceededException"


def test_the_quotas_are_the_documented_ones() -> None:
    rules = Limits("", 10 * MiB, Quirks())
    assert rules.quotas(RegistryId(PRIVATE)) == Quotas(4_200, 52_000 * MiB, 0, 100_000, 1_000, 100_000)
    assert rules.quotas(RegistryId(PUBLIC, region="")) == Quotas(1_000, 10_000 * MiB, 0, 100_000, 1_000, 10_000)


def test_quirks_are_read_from_words() -> None:
    words = ["large-parts=refused", "first_cursor=-1", "first-cursor=0"]
    assert Quirks.parse(words, ["max-parts=7"]) == Quirks(large_parts="refused", first_cursor="0", max_parts=7)


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("large-parts", "NAME=VALUE"),
        ("=x", "NAME=VALUE"),
        ("nothing=1", "retried-complete"),
        ("large-parts=maybe", "taken or refused"),
        ("max-parts=7", "unknown quirk"),
    ],
)
def test_an_unknown_quirk_is_refused_and_the_known_ones_are_listed(word: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        Quirks.parse([word])


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("max-parts", "NAME=VALUE"),
        ("large-parts=taken", "max-layer-size"),
        ("max-parts=-1", "max-parts"),
        ("max-parts=many", "whole number"),
        ("max-parts=", "whole number"),
    ],
)
def test_an_unknown_quota_is_refused_and_the_known_are_named(word: str, named: str) -> None:
    with pytest.raises(UsageError, match=named):
        Quirks.parse([], [word])


def test_every_quirk_is_documented() -> None:
    text = inspect.getdoc(Quirks) or ""
    assert [field.name for field in fields(Quirks) if f"\n    {field.name}: " not in text] == []
