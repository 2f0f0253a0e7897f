"""The emulator's JSON API: protocol, input rules, repositories, both services; botocore's client is the judge."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import pytest
from botocore.exceptions import ClientError

from asyncpush.emulator import Emulator
from support.emulator_client import Ecr, digest_of, image_manifest, part

TARGET = "AmazonEC2ContainerRegistry_V20150921"
UPLOAD_ID = "0cb5cb63-f0ad-4ac5-aadf-ff3a37e1dd4e"
NAME = {"repositoryName": "app"}


@pytest.fixture
def ecr(emulator: Emulator) -> Ecr:
    return Ecr(emulator.endpoint_url)


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """Requests that no AWS client would send, to an emulator that lets everybody in."""
    async with (
        Emulator(tmp_path / "open", fsync=False, verify_signatures=False) as emulator,
        aiohttp.ClientSession(emulator.endpoint_url) as session,
    ):
        yield session


async def post(http: aiohttp.ClientSession, target: str, body: bytes) -> tuple[aiohttp.ClientResponse, dict[str, Any]]:
    async with http.post("/", headers={"X-Amz-Target": target} if target else {}, data=body) as response:
        return response, json.loads(await response.read())


async def test_an_answer_is_aws_json_with_a_request_id_of_its_own(http: aiohttp.ClientSession) -> None:
    responses = [(await post(http, f"{TARGET}.{name}", b"{}"))[0] for name in ("DescribeRepositories", "PutImage")]
    assert [response.status for response in responses] == [200, 400]
    assert {response.content_type for response in responses} == {"application/x-amz-json-1.1"}
    assert len({response.headers["x-amzn-RequestId"] for response in responses}) == 2


@pytest.mark.parametrize(
    ("target", "named"),
    [
        (f"{TARGET}.UploadLayer", "UploadLayer"),
        (f"{TARGET}.", "''"),
        ("AmazonS3.PutImage", "AmazonS3.PutImage"),
        ("", "X-Amz-Target"),
        ("SpencerFrontendService.BatchGetImage", "BatchGetImage"),
        ("SpencerFrontendService.ListImages", "ListImages"),
        ("SpencerFrontendService.GetDownloadUrlForLayer", "GetDownloadUrlForLayer"),
    ],
)
async def test_an_operation_that_is_not_there_is_refused_by_its_name(
    http: aiohttp.ClientSession, target: str, named: str
) -> None:
    response, document = await post(http, target, b"{}")
    assert (response.status, document["__type"]) == (400, "UnknownOperationException")
    assert named in document["message"]


@pytest.mark.parametrize("operation", ["StartImageScan", "PutReplicationConfiguration"])
async def test_an_operation_of_ecr_that_the_emulator_lacks_is_refused_as_such(
    http: aiohttp.ClientSession, operation: str
) -> None:
    response, document = await post(http, f"{TARGET}.{operation}", b"{}")
    assert (response.status, document["__type"]) == (501, "NotImplementedException")
    assert document["message"] == f"Amazon ECR has the operation '{operation}', this emulator does not"


@pytest.mark.parametrize("operation", ["PutImage", "UploadLayerPart", "DescribeRepositories"])
@pytest.mark.parametrize(
    "body", [b"{", b"x", b"\xff", b'{"registryId": "\xff"}', b'{"x": tru}', b"[" * 50_000, b"[]", b"1", b'"x"', b"null"]
)
async def test_a_body_that_is_no_json_object_is_a_serialization_exception(
    http: aiohttp.ClientSession, operation: str, body: bytes
) -> None:
    response, document = await post(http, f"{TARGET}.{operation}", body)
    assert (response.status, document["__type"]) == (400, "SerializationException")


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_that_is_too_long_for_any_part_is_refused(http: aiohttp.ClientSession, announced: bool) -> None:
    body = bytes(32 * 1024 * 1024 + 1)

    async def blocks() -> AsyncIterator[bytes]:
        yield body

    headers = {"X-Amz-Target": f"{TARGET}.UploadLayerPart"}
    async with http.post("/", headers=headers, data=body if announced else blocks()) as response:
        assert response.status == 413
        assert (await response.json(content_type=None))["__type"] == "RequestEntityTooLargeException"


async def test_a_body_without_an_announced_length_is_taken(http: aiohttp.ClientSession) -> None:
    async def blocks() -> AsyncIterator[bytes]:
        yield b'{"repository'
        yield b'Name": "app"}'

    headers = {"X-Amz-Target": f"{TARGET}.CreateRepository"}
    async with http.post("/", headers=headers, data=blocks()) as response:
        assert response.status == 200


PART = {**NAME, "uploadId": UPLOAD_ID, "partFirstByte": 0, "partLastByte": 0, "layerPartBlob": b"x"}


@pytest.mark.parametrize(
    ("operation", "members", "named"),
    [
        ("initiate_layer_upload", {}, "repositoryName"),
        ("initiate_layer_upload", {"repositoryName": "a"}, "repositoryName"),
        ("initiate_layer_upload", {"repositoryName": "a" * 257}, "repositoryName"),
        ("initiate_layer_upload", {"repositoryName": "Upper"}, "repositoryName"),
        ("initiate_layer_upload", {"repositoryName": "../etc"}, "repositoryName"),
        ("initiate_layer_upload", {"repositoryName": "app\n"}, "repositoryName"),
        ("initiate_layer_upload", {"repositoryName": "team//app"}, "repositoryName"),
        ("initiate_layer_upload", {"repositoryName": "_layout"}, "repositoryName"),
        ("initiate_layer_upload", {**NAME, "registryId": "123"}, "registryId"),
        ("initiate_layer_upload", {**NAME, "registryId": "alias"}, "registryId"),
        ("batch_check_layer_availability", NAME, "layerDigests"),
        ("batch_check_layer_availability", {**NAME, "layerDigests": []}, "layerDigests"),
        ("batch_check_layer_availability", {**NAME, "layerDigests": ["x"] * 101}, "layerDigests"),
        ("batch_check_layer_availability", {**NAME, "layerDigests": ["x" * 1001]}, "layerDigests[0]"),
        ("upload_layer_part", {**PART, "registryId": "123"}, "registryId"),
        ("upload_layer_part", {**PART, "uploadId": "x"}, "uploadId"),
        ("upload_layer_part", {**PART, "partFirstByte": -1}, "partFirstByte"),
        ("upload_layer_part", {**PART, "partLastByte": -1}, "partLastByte"),
        ("upload_layer_part", {key: PART[key] for key in PART if key != "layerPartBlob"}, "layerPartBlob"),
        ("complete_layer_upload", {**NAME, "uploadId": UPLOAD_ID}, "layerDigests"),
        ("complete_layer_upload", {**NAME, "uploadId": UPLOAD_ID, "layerDigests": ["x"]}, "layerDigests[0]"),
        ("complete_layer_upload", {**NAME, "uploadId": "x", "layerDigests": ["a:0"]}, "uploadId"),
        ("put_image", NAME, "imageManifest"),
        ("put_image", {**NAME, "imageManifest": ""}, "imageManifest"),
        ("put_image", {**NAME, "imageManifest": "{}", "imageTag": "no/tag"}, "imageTag"),
        ("put_image", {**NAME, "imageManifest": "{}", "imageTag": "t" * 301}, "imageTag"),
        ("batch_get_image", {**NAME, "imageIds": []}, "imageIds"),
        ("batch_get_image", {**NAME, "imageIds": [{"imageTag": "v1"}] * 101}, "imageIds"),
        ("batch_get_image", {**NAME, "imageIds": [{"imageTag": "v1"}], "acceptedMediaTypes": []}, "acceptedMediaTypes"),
        ("describe_images", {**NAME, "maxResults": 1001}, "maxResults"),
        ("describe_images", {**NAME, "maxResults": 0}, "maxResults"),
        ("describe_images", {**NAME, "maxResults": 1, "imageIds": [{"imageTag": "v1"}]}, "maxResults"),
        ("describe_images", {**NAME, "nextToken": "x"}, "nextToken"),
        ("list_images", {**NAME, "filter": {"tagStatus": "SOME"}}, "filter.tagStatus"),
        ("describe_repositories", {"repositoryNames": ["Upper"]}, "repositoryNames[0]"),
        ("create_repository", {"repositoryName": "new", "imageTagMutability": "SOMETIMES"}, "imageTagMutability"),
        (
            "create_repository",
            {
                "repositoryName": "new",
                "imageTagMutabilityExclusionFilters": [{"filterType": "WILDCARD", "filter": "a/b"}],
            },
            "imageTagMutabilityExclusionFilters[0].filter",
        ),
        ("get_authorization_token", {"registryIds": ["1"]}, "registryIds[0]"),
    ],
)
async def test_input_that_breaks_its_shape_is_an_invalid_parameter_by_name(
    ecr: Ecr, operation: str, members: dict[str, Any], named: str
) -> None:
    """Input that breaks a rule of its shape is an InvalidParameterException that names the member."""
    await ecr.call("create_repository", repositoryName="app")
    refusal = await ecr.refused(operation, **members)
    assert (refusal.code, refusal.status) == ("InvalidParameterException", 400)
    assert refusal.message.startswith(f"Invalid parameter at '{named}' failed to satisfy constraint: '")


async def test_a_broken_pattern_is_worded_with_the_pattern(ecr: Ecr) -> None:
    refusal = await ecr.refused("initiate_layer_upload", repositoryName="Upper")
    assert "'must satisfy regular expression '[a-z0-9]+" in refusal.message
    assert refusal.message.endswith("*''")
    assert "\\Z" not in refusal.message


@pytest.mark.parametrize("name", ["ab", "team/app", "a/b/c.d-e_f", "a__b", "a--b", "a" * 255])
async def test_a_repository_is_created_and_described_with_its_address(ecr: Ecr, emulator: Emulator, name: str) -> None:
    created = (await ecr.call("create_repository", repositoryName=name))["repository"]
    described = (await ecr.call("describe_repositories", repositoryNames=[name]))["repositories"]
    assert described == [created]
    assert created.pop("createdAt").year > 2000
    assert created == {
        "repositoryArn": f"arn:aws:ecr:us-east-1:000000000000:repository/{name}",
        "registryId": "000000000000",
        "repositoryName": name,
        "repositoryUri": f"{emulator.host}:{emulator.port}/{name}",
        "imageTagMutability": "MUTABLE",
        "imageScanningConfiguration": {"scanOnPush": False},
        "encryptionConfiguration": {"encryptionType": "AES256"},
    }


async def test_a_repository_keeps_the_settings_that_it_was_created_with(ecr: Ecr) -> None:
    settings = {
        "imageTagMutability": "IMMUTABLE_WITH_EXCLUSION",
        "imageTagMutabilityExclusionFilters": [{"filterType": "WILDCARD", "filter": "dev-*"}],
        "imageScanningConfiguration": {"scanOnPush": True},
    }
    tags = [{"Key": "team", "Value": "core"}]
    await ecr.call("create_repository", repositoryName="app", tags=tags, **settings)
    (described,) = (await ecr.call("describe_repositories"))["repositories"]
    assert {key: described[key] for key in settings} == settings
    refusal = await ecr.refused("create_repository", repositoryName="tagged", tags=tags * 51)
    assert refusal.code == "TooManyTagsException"


async def test_exclusions_need_a_mutability_with_exclusions_and_it_them(ecr: Ecr) -> None:
    """ECR's words for the missing ones are those that aws/aws-cdk#35246 quotes."""
    await ecr.call("create_repository", repositoryName="app")
    filters = {"imageTagMutabilityExclusionFilters": [{"filterType": "WILDCARD", "filter": "dev-*"}]}
    without, needless = {"imageTagMutability": "IMMUTABLE_WITH_EXCLUSION"}, {"imageTagMutability": "MUTABLE", **filters}
    for operation, members in (
        ("create_repository", {"repositoryName": "new"}),
        ("put_image_tag_mutability", {"repositoryName": "app"}),
        ("create_repository_creation_template", {"prefix": "new", "appliedFor": ["REPLICATION"]}),
    ):
        assert (await ecr.refused(operation, **members, **without)).message == (
            "Invalid parameter at 'imageTagMutabilityExclusionFilters' failed to satisfy constraint: "
            "'ImageTagMutabilityExclusionFilters can't be null when imageTagMutability is set as "
            "IMMUTABLE_WITH_EXCLUSION'"
        )
        assert (await ecr.refused(operation, **members, **needless)).code == "InvalidParameterException"


async def test_a_name_is_created_once_however_many_ask(ecr: Ecr) -> None:
    outcomes: list[str] = []

    async def create() -> None:
        try:
            outcomes.append((await ecr.call("create_repository", repositoryName="app"))["repository"]["repositoryName"])
        except ClientError as error:
            outcomes.append(type(error).__name__)

    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(create)
    assert sorted(outcomes) == ["RepositoryAlreadyExistsException"] * 7 + ["app"]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
async def test_pages_of_repositories_give_each_once(ecr: Ecr, size: int) -> None:
    names = ["a1", "a1/b1", "a1/b1/c1", "zz"]
    for name in reversed(names):
        await ecr.call("create_repository", repositoryName=name)
    found: list[str] = []
    token: dict[str, str] = {}
    while True:
        answer = await ecr.call("describe_repositories", maxResults=size, **token)
        found += [repository["repositoryName"] for repository in answer["repositories"]]
        if "nextToken" not in answer:
            break
        token = {"nextToken": answer["nextToken"]}
    assert found == names


async def test_one_missing_repository_fails_the_description_of_all(ecr: Ecr) -> None:
    await ecr.call("create_repository", repositoryName="app")
    refusal = await ecr.refused("describe_repositories", repositoryNames=["app", "absent"])
    assert refusal.code == "RepositoryNotFoundException"
    refusal = await ecr.refused("describe_repositories", repositoryNames=["app"], maxResults=1)
    assert refusal.code == "InvalidParameterException"


async def test_a_repository_with_images_is_deleted_by_force_only(ecr: Ecr) -> None:
    for name in ("app", "app/inner"):
        await ecr.call("create_repository", repositoryName=name)
        await ecr.push_image(name, "v1", b"{}", b"layer")
    upload_id = await ecr.begin("app")
    refusal = await ecr.refused("delete_repository", repositoryName="app")
    assert refusal.code == "RepositoryNotEmptyException"
    answer = await ecr.call("delete_repository", repositoryName="app", force=True)
    assert answer["repository"]["repositoryName"] == "app"
    assert (await ecr.refused("list_images", repositoryName="app")).code == "RepositoryNotFoundException"
    assert len(await ecr.tags("app/inner")) == 1

    await ecr.call("create_repository", repositoryName="app")
    assert await ecr.tags("app") == {}
    assert await ecr.available("app", digest_of(b"layer")) == set()
    refusal = await ecr.refused("upload_layer_part", **part("app", upload_id, 0, b"layer"))
    assert refusal.code == "UploadNotFoundException"


async def test_a_repository_without_images_is_deleted_layers_and_all(ecr: Ecr) -> None:
    await ecr.call("create_repository", repositoryName="app")
    await ecr.push_layer("app", b"layer")
    await ecr.call("delete_repository", repositoryName="app")
    assert (await ecr.call("describe_repositories"))["repositories"] == []


async def test_a_token_is_for_the_docker_client(ecr: Ecr, emulator: Emulator) -> None:
    (grant,) = (await ecr.call("get_authorization_token"))["authorizationData"]
    assert base64.b64decode(grant["authorizationToken"]).startswith(b"AWS:")
    assert grant["proxyEndpoint"] == emulator.endpoint_url
    assert grant["expiresAt"].year > 2000


async def test_ecr_public_takes_a_push_under_an_alias(emulator: Emulator) -> None:
    public = Ecr(emulator.endpoint_url, service="ecr-public")
    created = (await public.call("create_repository", repositoryName="app"))["repository"]
    assert sorted(created) == ["createdAt", "registryId", "repositoryArn", "repositoryName", "repositoryUri"]
    assert created["repositoryArn"] == "arn:aws:ecr-public::000000000000:repository/app"
    for blob in (b"{}", b"layer"):
        await public.push_layer("app", blob)
    put = await public.put("app", image_manifest(b"{}", b"layer"), "v1", registryId="my-alias")
    assert put["registryId"] == "my-alias"
    assert await public.tags("app") == {digest_of(image_manifest(b"{}", b"layer")): ["v1"]}
    grant = (await public.call("get_authorization_token"))["authorizationData"]
    assert sorted(grant) == ["authorizationToken", "expiresAt"]


@pytest.mark.parametrize(
    "members",
    [
        {"repositoryName": "a" * 206},
        {"repositoryName": "a__b"},
        {**NAME, "registryId": "x"},
        {**NAME, "registryId": "-a"},
    ],
)
async def test_ecr_public_has_narrower_names(emulator: Emulator, members: dict[str, str]) -> None:
    public = Ecr(emulator.endpoint_url, service="ecr-public")
    assert (await public.refused("initiate_layer_upload", **members)).code == "InvalidParameterException"
