"""What is kept with repositories and accounts comes back as it was put, over restarts; botocore is the judge."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest
from botocore.exceptions import ClientError

from asyncpush.emulator import Emulator
from asyncpush.emulator.registry import RegistryId
from asyncpush.emulator.store.fsck import open_recovered
from asyncpush.emulator.store.state import Store
from support.emulator_client import OCI_CONFIG, OCI_MANIFEST, Ecr, descriptor, digest_of, image_manifest, index_manifest

CONFIG, LAYER = b"{}", b"a layer"
ARN = "arn:aws:ecr:us-east-1:000000000000:repository/app"
POLICY = json.dumps({"Version": "2012-10-17", "Statement": []})
LIFECYCLE = json.dumps({"rules": [], "note": "x" * 100})
NAME = {"repositoryName": "app"}


@pytest.fixture
async def emulator(tmp_path: Path) -> AsyncIterator[Emulator]:
    """An empty local ECR that asks nobody who he is: botocore can't sign what it does not know."""
    async with Emulator(tmp_path / "ecr", fsync=False, verify_signatures=False) as running:
        yield running


@pytest.fixture
async def ecr(emulator: Emulator) -> Ecr:
    client = Ecr(emulator.endpoint_url)
    await client.call("create_repository", **NAME)
    return client


@pytest.fixture
async def public(emulator: Emulator) -> Ecr:
    client = Ecr(emulator.endpoint_url, service="ecr-public")
    await client.call("create_repository", **NAME)
    return client


@pytest.fixture
async def http(emulator: Emulator) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(emulator.endpoint_url) as session:
        yield session


def body_of(answer: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in answer.items() if key != "ResponseMetadata"}


async def test_settings_policies_tags_and_templates_outlive_the_emulator(tmp_path: Path) -> None:
    filters = [{"filterType": "WILDCARD", "filter": "dev-*"}]
    async with Emulator(tmp_path, fsync=False) as emulator:
        ecr = Ecr(emulator.endpoint_url)
        encryption = {"encryptionType": "KMS", "kmsKey": "alias/mine"}
        tags = [{"Key": "team", "Value": "core"}]
        await ecr.call("create_repository", **NAME, encryptionConfiguration=encryption, tags=tags)
        await ecr.call(
            "put_image_tag_mutability",
            **NAME,
            imageTagMutability="IMMUTABLE_WITH_EXCLUSION",
            imageTagMutabilityExclusionFilters=filters,
        )
        await ecr.call("put_image_scanning_configuration", **NAME, imageScanningConfiguration={"scanOnPush": True})
        await ecr.call("set_repository_policy", **NAME, policyText=POLICY)
        await ecr.call("put_lifecycle_policy", **NAME, lifecyclePolicyText=LIFECYCLE)
        await ecr.call("put_account_setting", name="BLOB_MOUNTING", value="ENABLED")
        template = await ecr.call("create_repository_creation_template", prefix="team/", appliedFor=["REPLICATION"])
    async with Emulator(tmp_path, fsync=False) as emulator:
        ecr = Ecr(emulator.endpoint_url)
        (described,) = (await ecr.call("describe_repositories"))["repositories"]
        assert described["imageTagMutability"] == "IMMUTABLE_WITH_EXCLUSION"
        assert described["imageTagMutabilityExclusionFilters"] == filters
        assert described["imageScanningConfiguration"] == {"scanOnPush": True}
        assert described["encryptionConfiguration"] == encryption
        assert (await ecr.call("list_tags_for_resource", resourceArn=ARN))["tags"] == tags
        assert (await ecr.call("get_repository_policy", **NAME))["policyText"] == POLICY
        assert (await ecr.call("get_lifecycle_policy", **NAME))["lifecyclePolicyText"] == LIFECYCLE
        assert (await ecr.call("get_account_setting", name="BLOB_MOUNTING"))["value"] == "ENABLED"
        answer = await ecr.call("describe_repository_creation_templates")
        assert answer["repositoryCreationTemplates"] == [template["repositoryCreationTemplate"]]


@pytest.mark.parametrize(
    ("kind", "put", "text"),
    [
        ("repository_policy", "set_repository_policy", {"policyText": POLICY}),
        ("lifecycle_policy", "put_lifecycle_policy", {"lifecyclePolicyText": LIFECYCLE}),
    ],
)
async def test_a_policy_is_put_given_and_deleted(ecr: Ecr, kind: str, put: str, text: dict[str, str]) -> None:
    code = "".join(word.title() for word in kind.split("_")) + "NotFoundException"
    assert (await ecr.refused(f"get_{kind}", **NAME)).code == code
    expected = {"registryId": "000000000000", **NAME, **text}
    assert body_of(await ecr.call(put, **NAME, **text)) == expected
    assert body_of(await ecr.call(f"get_{kind}", **NAME)) == expected
    assert body_of(await ecr.call(f"delete_{kind}", **NAME)) == expected
    assert (await ecr.refused(f"delete_{kind}", **NAME)).code == code
    for operation, members in ((put, text), (f"get_{kind}", {}), (f"delete_{kind}", {})):
        assert (await ecr.refused(operation, repositoryName="absent", **members)).code == "RepositoryNotFoundException"
    (member,) = text
    for wrong in ("no JSON" * 20, "[" * 3000):
        assert (await ecr.refused(put, **NAME, **{member: wrong})).code == "InvalidParameterException"


async def test_resource_tags_are_put_replaced_and_taken_off(ecr: Ecr) -> None:
    await ecr.call("tag_resource", resourceArn=ARN, tags=[{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}])
    await ecr.call("tag_resource", resourceArn=ARN, tags=[{"Key": "a", "Value": "3"}])
    await ecr.call("untag_resource", resourceArn=ARN, tagKeys=["b", "absent"])
    assert (await ecr.call("list_tags_for_resource", resourceArn=ARN))["tags"] == [{"Key": "a", "Value": "3"}]


@pytest.mark.parametrize(
    ("tags", "code"),
    [
        ([{"Key": f"k{number}", "Value": ""} for number in range(51)], "TooManyTagsException"),
        ([{"Key": "", "Value": ""}], "InvalidTagParameterException"),
        ([{"Key": "k" * 129, "Value": ""}], "InvalidTagParameterException"),
        ([{"Key": "k", "Value": "v" * 257}], "InvalidTagParameterException"),
        ([{"Key": "aws:k", "Value": ""}], "InvalidTagParameterException"),
    ],
)
async def test_resource_tags_have_rules(ecr: Ecr, tags: list[dict[str, str]], code: str) -> None:
    assert (await ecr.refused("tag_resource", resourceArn=ARN, tags=tags)).code == code
    assert (await ecr.refused("create_repository", repositoryName="other", tags=tags)).code == code


@pytest.mark.parametrize(
    ("arn", "code"),
    [
        ("app", "InvalidParameterException"),
        ("arn:aws:ecr-public::000000000000:repository/app", "InvalidParameterException"),
        (ARN + "2", "RepositoryNotFoundException"),
        (ARN.replace("us-east-1", "eu-west-1"), "RepositoryNotFoundException"),
    ],
)
async def test_an_arn_must_be_that_of_a_repository(ecr: Ecr, arn: str, code: str) -> None:
    assert (await ecr.refused("list_tags_for_resource", resourceArn=arn)).code == code


async def test_an_account_setting_has_a_default_and_takes_its_values_only(ecr: Ecr) -> None:
    assert body_of(await ecr.call("get_account_setting", name="BLOB_MOUNTING")) == {
        "name": "BLOB_MOUNTING",
        "value": "DISABLED",
    }
    assert (await ecr.refused("put_account_setting", name="BLOB_MOUNTING", value="maybe")).code == (
        "ValidationException"
    )
    assert (await ecr.refused("get_account_setting", name="ABSENT")).code == "ValidationException"


async def test_a_template_is_created_changed_described_and_deleted(ecr: Ecr) -> None:
    members = {
        "prefix": "team",
        "appliedFor": ["PULL_THROUGH_CACHE", "CREATE_ON_PUSH"],
        "description": "ours",
        "imageTagMutability": "IMMUTABLE",
        "resourceTags": [{"Key": "a", "Value": "1"}],
        "repositoryPolicy": POLICY,
        "lifecyclePolicy": LIFECYCLE,
        "encryptionConfiguration": {"encryptionType": "AES256"},
        "customRoleArn": "arn:aws:iam::000000000000:role/ecr",
    }
    created = (await ecr.call("create_repository_creation_template", **members))["repositoryCreationTemplate"]
    assert {key: created[key] for key in members} == members
    assert (await ecr.refused("create_repository_creation_template", **members)).code == (
        "TemplateAlreadyExistsException"
    )
    changed = await ecr.call("update_repository_creation_template", prefix="team/", description="theirs")
    assert {key: changed["repositoryCreationTemplate"][key] for key in members} == {**members, "description": "theirs"}
    await ecr.call("create_repository_creation_template", prefix="ROOT", appliedFor=["REPLICATION"])
    answer = await ecr.call("describe_repository_creation_templates", maxResults=1)
    assert [each["prefix"] for each in answer["repositoryCreationTemplates"]] == ["ROOT"]
    answer = await ecr.call("describe_repository_creation_templates", nextToken=answer["nextToken"])
    assert [each["prefix"] for each in answer["repositoryCreationTemplates"]] == ["team"]
    answer = await ecr.call("describe_repository_creation_templates", prefixes=["team", "absent"])
    assert [each["prefix"] for each in answer["repositoryCreationTemplates"]] == ["team"]
    await ecr.call("delete_repository_creation_template", prefix="team")
    for operation in ("delete", "update"):
        refusal = await ecr.refused(f"{operation}_repository_creation_template", prefix="team")
        assert refusal.code == "TemplateNotFoundException"


async def test_a_template_is_created_once_however_many_ask(ecr: Ecr) -> None:
    outcomes: list[str] = []

    async def create() -> None:
        try:
            await ecr.call("create_repository_creation_template", prefix="team", appliedFor=["REPLICATION"])
            outcomes.append("")
        except ClientError as error:
            outcomes.append(type(error).__name__)

    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(create)
    assert sorted(outcomes) == ["", *["TemplateAlreadyExistsException"] * 7]


async def test_a_push_creates_a_repository_by_the_template_of_its_longest_prefix(tmp_path: Path) -> None:
    async with Emulator(tmp_path, fsync=False) as emulator:
        ecr = Ecr(emulator.endpoint_url)
        for prefix, applied in {
            "ROOT": "CREATE_ON_PUSH",
            "team": "CREATE_ON_PUSH",
            "team/web": "CREATE_ON_PUSH",
            "team/web/app": "REPLICATION",
        }.items():
            await ecr.call(
                "create_repository_creation_template",
                prefix=prefix,
                appliedFor=[applied],
                imageTagMutability="IMMUTABLE",
                resourceTags=[{"Key": "by", "Value": prefix}],
                repositoryPolicy=POLICY,
            )
    store = Store(tmp_path, fsync=False)
    await store.in_thread(open_recovered, store)
    for name, prefix in {
        "team/web/app": "team/web",
        "team/web2": "team",
        "team": "team",
        "teams/web": "ROOT",
    }.items():
        created = await store.create_on_push(RegistryId(), name)
        assert created is not None
        assert (created.record.tags, created.record.mutability) == ({"by": prefix}, "IMMUTABLE")
        assert created.record.policy == POLICY
        assert await store.create_on_push(RegistryId(), name) is created
    assert await store.create_on_push(RegistryId(region="eu-west-1"), "team/app") is None
    await store.in_thread(store.close)


async def test_a_registry_is_described(ecr: Ecr, public: Ecr) -> None:
    assert body_of(await ecr.call("describe_registry")) == {
        "registryId": "000000000000",
        "replicationConfiguration": {"rules": []},
    }
    (registry,) = (await public.call("describe_registries"))["registries"]
    assert (registry["registryId"], registry["aliases"]) == ("000000000000", [])
    assert (await public.call("get_registry_catalog_data"))["registryCatalogData"] == {}
    await public.call("put_registry_catalog_data", displayName="Ours")
    assert (await public.call("get_registry_catalog_data"))["registryCatalogData"] == {"displayName": "Ours"}


async def test_a_public_repository_keeps_its_catalog_data_and_its_tags(public: Ecr) -> None:
    refusal = await public.refused("get_repository_catalog_data", **NAME)
    assert refusal.code == "RepositoryCatalogDataNotFoundException"
    data = {"description": "An app", "architectures": ["ARM 64"], "operatingSystems": ["Linux"]}
    for answer in (
        await public.call("put_repository_catalog_data", **NAME, catalogData={**data, "logoImageBlob": b"png"}),
        await public.call("get_repository_catalog_data", **NAME),
        await public.call("create_repository", repositoryName="other", catalogData=data),
    ):
        assert answer["catalogData"] == data
    arn = "arn:aws:ecr-public::000000000000:repository/app"
    await public.call("tag_resource", resourceArn=arn, tags=[{"Key": "a", "Value": "1"}])
    assert (await public.call("list_tags_for_resource", resourceArn=arn))["tags"] == [{"Key": "a", "Value": "1"}]
    await public.call("set_repository_policy", **NAME, policyText=POLICY)
    assert (await public.call("get_repository_policy", **NAME))["policyText"] == POLICY


@pytest.mark.parametrize("size", [1, 2, 100])
async def test_tags_of_public_images_are_described_page_by_page(public: Ecr, size: int) -> None:
    manifest = await public.push_image("app", "b", CONFIG, LAYER)
    for tag in ("c", "a"):
        await public.put("app", manifest, tag)
    found: list[dict[str, Any]] = []
    token: dict[str, str] = {}
    while True:
        answer = await public.call("describe_image_tags", **NAME, maxResults=size, **token)
        found += answer["imageTagDetails"]
        if "nextToken" not in answer:
            break
        token = {"nextToken": answer["nextToken"]}
    assert [each["imageTag"] for each in found] == ["a", "b", "c"]
    assert {each["imageDetail"]["imageDigest"] for each in found} == {digest_of(manifest)}


async def test_a_layer_of_an_image_can_be_downloaded_by_its_address_and_no_other(
    ecr: Ecr, http: aiohttp.ClientSession
) -> None:
    await ecr.push_image("app", "v1", CONFIG, LAYER)
    asked = {**NAME, "layerDigest": digest_of(LAYER)}
    answer = await ecr.call("get_download_url_for_layer", **asked)
    assert answer["layerDigest"] == digest_of(LAYER)
    url = answer["downloadUrl"]
    async with http.get(url) as response:
        assert await response.read() == LAYER
    async with http.get(url, headers={"Range": "bytes=2-"}) as response:
        assert (response.status, await response.read()) == (206, LAYER[2:])
    for forged in (url[:-1] + ("0" if url[-1] != "0" else "1"), url.rpartition("/")[0] + "/x", url.rpartition(".")[0]):
        async with http.get(forged) as response:
            assert response.status in (403, 404)
    await ecr.call("delete_repository", **NAME, force=True)
    async with http.get(url) as response:
        assert response.status == 403


async def test_a_layer_that_is_missing_or_no_images_has_no_address(ecr: Ecr) -> None:
    await ecr.push_layer("app", LAYER)
    asked = {**NAME, "layerDigest": digest_of(LAYER)}
    assert (await ecr.refused("get_download_url_for_layer", **asked)).code == "LayerInaccessibleException"
    refusal = await ecr.refused("get_download_url_for_layer", **NAME, layerDigest=digest_of(b"absent"))
    assert refusal.code == "LayersNotFoundException"
    assert refusal.message == (
        f"The layer with digest '{digest_of(b'absent')}' does not exist within the repository with name 'app' in the "
        "registry with id '000000000000'"
    )
    await ecr.push_image("app", "v1", CONFIG, LAYER)
    await ecr.call("get_download_url_for_layer", **asked)
    await ecr.call("batch_delete_image", **NAME, imageIds=[{"imageTag": "v1"}])
    assert (await ecr.refused("get_download_url_for_layer", **asked)).code == "LayerInaccessibleException"


async def list_referrers(http: aiohttp.ClientSession, subject: str, **members: Any) -> dict[str, Any]:
    """ListImageReferrers, which the pinned botocore does not know."""
    body = json.dumps({**NAME, "subjectId": {"imageDigest": subject}, **members})
    headers = {"X-Amz-Target": "AmazonEC2ContainerRegistry_V20150921.ListImageReferrers"}
    async with http.post("/", headers=headers, data=body) as response:
        return json.loads(await response.read())


async def test_referrers_of_an_image_are_listed_with_what_they_say_of_themselves(
    ecr: Ecr, http: aiohttp.ClientSession
) -> None:
    subject = await ecr.push_image("app", "v1", CONFIG, LAYER)
    named = descriptor(OCI_MANIFEST, subject)
    plain = image_manifest(CONFIG, LAYER, subject=named)
    sbom = image_manifest(CONFIG, LAYER, subject=named, artifactType="text/sbom", annotations={"by": "tool"})
    for manifest in (plain, sbom):
        await ecr.put("app", manifest)
    common = {"mediaType": OCI_MANIFEST, "artifactStatus": "ACTIVE"}
    expected = {
        digest_of(plain): {**common, "digest": digest_of(plain), "size": len(plain), "artifactType": OCI_CONFIG},
        digest_of(sbom): {
            **common,
            "digest": digest_of(sbom),
            "size": len(sbom),
            "artifactType": "text/sbom",
            "annotations": {"by": "tool"},
        },
    }
    answer = await list_referrers(http, digest_of(subject))
    assert {each["digest"]: each for each in answer["referrers"]} == expected
    only = await list_referrers(http, digest_of(subject), filter={"artifactTypes": ["text/sbom"]})
    assert [each["digest"] for each in only["referrers"]] == [digest_of(sbom)]
    first = await list_referrers(http, digest_of(subject), maxResults=1)
    second = await list_referrers(http, digest_of(subject), maxResults=1, nextToken=first["nextToken"])
    assert [each["digest"] for page in (first, second) for each in page["referrers"]] == sorted(expected)
    assert (await list_referrers(http, digest_of(b"absent")))["referrers"] == []


async def test_the_last_tag_of_an_indexs_image_goes_and_the_image_stays(ecr: Ecr) -> None:
    child = await ecr.push_image("app", "child", CONFIG, LAYER)
    index = index_manifest(child)
    await ecr.put("app", index, "multi")
    await ecr.call("batch_delete_image", **NAME, imageIds=[{"imageTag": "child"}])
    assert await ecr.tags("app") == {digest_of(child): [], digest_of(index): ["multi"]}


async def test_a_manifest_that_is_a_layer_too_is_held_as_both(ecr: Ecr) -> None:
    manifest = await ecr.push_image("app", "v1", CONFIG, LAYER)
    await ecr.push_layer("app", manifest)
    await ecr.call("batch_delete_image", **NAME, imageIds=[{"imageTag": "v1"}])
    assert await ecr.available("app", digest_of(manifest)) == {digest_of(manifest)}
    await ecr.put("app", manifest, "v2")
    answer = await ecr.call("batch_get_image", **NAME, imageIds=[{"imageTag": "v2"}])
    assert answer["images"][0]["imageManifest"].encode() == manifest
