"""The emulator's layer operations keep ECR's rules; botocore's client is the judge."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from botocore.exceptions import ClientError

from asyncpush.emulator import Emulator
from support.emulator_client import Ecr, digest_of, part

MiB = 1024 * 1024
ABSENT = "sha256:" + "0" * 64


@pytest.fixture
async def ecr(emulator: Emulator) -> Ecr:
    client = Ecr(emulator.endpoint_url)
    await client.call("create_repository", repositoryName="app")
    return client


@pytest.fixture
async def small_parts(tmp_path: Path) -> AsyncIterator[Ecr]:
    async with Emulator(tmp_path / "small", part_size=4, fsync=False) as emulator:
        client = Ecr(emulator.endpoint_url)
        await client.call("create_repository", repositoryName="app")
        yield client


async def test_an_upload_has_an_id_and_asks_for_parts_of_ten_mebibytes(ecr: Ecr) -> None:
    answer = await ecr.call("initiate_layer_upload", repositoryName="app")
    assert answer["partSize"] == 10485760
    assert len(answer["uploadId"]) == 36


async def test_a_layer_pushed_part_by_part_is_available_with_its_size(small_parts: Ecr) -> None:
    upload_id = await small_parts.begin("app")
    assert await small_parts.send("app", upload_id, 0, b"0123") == 3
    assert await small_parts.send("app", upload_id, 4, b"4567") == 7
    assert await small_parts.send("app", upload_id, 8, b"8") == 8
    digest = digest_of(b"012345678")
    assert await small_parts.available("app", digest) == set()
    assert await small_parts.complete("app", upload_id, digest) == digest
    answer = await small_parts.call("batch_check_layer_availability", repositoryName="app", layerDigests=[digest])
    assert answer["layers"] == [{"layerDigest": digest, "layerAvailability": "AVAILABLE", "layerSize": 9}]
    assert answer["failures"] == []


async def test_a_layer_that_is_not_held_is_unavailable_and_no_failure(ecr: Ecr) -> None:
    sha512 = "sha512:" + "0" * 128
    answer = await ecr.call("batch_check_layer_availability", repositoryName="app", layerDigests=[ABSENT, sha512])
    assert answer["failures"] == []
    assert [(layer["layerDigest"], layer["layerAvailability"]) for layer in answer["layers"]] == [
        (ABSENT, "UNAVAILABLE"),
        (sha512, "UNAVAILABLE"),
    ]


async def test_what_is_no_digest_is_a_failure_with_its_code(ecr: Ecr) -> None:
    answer = await ecr.call(
        "batch_check_layer_availability", repositoryName="app", layerDigests=["", "x", "sha256:abc", ABSENT]
    )
    assert [(failure["layerDigest"], failure["failureCode"]) for failure in answer["failures"]] == [
        ("", "MissingLayerDigest"),
        ("x", "InvalidLayerDigest"),
        ("sha256:abc", "InvalidLayerDigest"),
    ]
    assert [layer["layerDigest"] for layer in answer["layers"]] == [ABSENT]


async def test_a_layer_belongs_to_one_repository(ecr: Ecr) -> None:
    await ecr.call("create_repository", repositoryName="other")
    digest = await ecr.push_layer("app", b"layer")
    assert await ecr.available("app", digest) == {digest}
    assert await ecr.available("other", digest) == set()


@pytest.mark.parametrize(("sent", "first", "cursor"), [(0, 1, 0), (5, 0, 4), (5, 4, 4), (5, 6, 4)])
async def test_a_part_out_of_order_is_refused_with_the_last_valid_byte(
    ecr: Ecr, sent: int, first: int, cursor: int
) -> None:
    """A part that does not follow the last one is refused with lastValidByteReceived."""
    upload_id = await ecr.begin("app")
    if sent:
        await ecr.send("app", upload_id, 0, bytes(sent))
    refusal = await ecr.refused("upload_layer_part", **part("app", upload_id, first, b"xxxxx"))
    assert (refusal.code, refusal.status) == ("InvalidLayerPartException", 400)
    assert refusal.message == f"First byte of the layer part is {first} instead of {sent}"
    assert {key: value for key, value in refusal.members.items() if key != "message"} == {
        "registryId": "000000000000",
        "repositoryName": "app",
        "uploadId": upload_id,
        "lastValidByteReceived": cursor,
    }


async def test_a_refused_part_adds_nothing(ecr: Ecr) -> None:
    upload_id = await ecr.begin("app")
    await ecr.send("app", upload_id, 0, b"once")
    for first in (0, 3, 9):
        await ecr.refused("upload_layer_part", **part("app", upload_id, first, b"again"))
    assert await ecr.complete("app", upload_id, digest_of(b"once")) == digest_of(b"once")


@pytest.mark.parametrize("last", [-1, 1, 3])
async def test_a_part_whose_range_has_another_length_is_refused(ecr: Ecr, last: int) -> None:
    upload_id = await ecr.begin("app")
    await ecr.send("app", upload_id, 0, b"0123456789")
    members = {**part("app", upload_id, 10, b"abc"), "partLastByte": 10 + last}
    refusal = await ecr.refused("upload_layer_part", **members)
    assert refusal.code == "InvalidLayerPartException"
    assert refusal.members["lastValidByteReceived"] == 9


async def test_a_part_of_no_bytes_is_refused(ecr: Ecr) -> None:
    upload_id = await ecr.begin("app")
    await ecr.send("app", upload_id, 0, b"0123456789")
    refusal = await ecr.refused("upload_layer_part", **part("app", upload_id, 10, b""))
    assert refusal.code == "InvalidLayerPartException"


async def test_a_part_of_more_than_twenty_mebibytes_is_refused(ecr: Ecr) -> None:
    """A part of more than 20 MiB is refused; one of 20 MiB is accepted."""
    upload_id = await ecr.begin("app")
    refusal = await ecr.refused("upload_layer_part", **part("app", upload_id, 0, bytes(20 * MiB + 1)))
    assert refusal.code == "InvalidParameterException"
    assert "20971520" in refusal.message
    assert await ecr.send("app", upload_id, 0, bytes(20 * MiB)) == 20 * MiB - 1


async def test_one_part_sent_twice_at_once_is_taken_once(ecr: Ecr) -> None:
    upload_id = await ecr.begin("app")
    results: list[str] = []

    async def send() -> None:
        try:
            results.append(str(await ecr.send("app", upload_id, 0, bytes(MiB))))
        except ClientError as error:
            results.append(type(error).__name__)

    async with anyio.create_task_group() as group:
        for _ in range(6):
            group.start_soon(send)
    assert sorted(results) == sorted(["InvalidLayerPartException"] * 5 + [str(MiB - 1)])
    assert await ecr.complete("app", upload_id, digest_of(bytes(MiB))) == digest_of(bytes(MiB))


async def test_a_short_part_before_the_last_is_refused_on_completion(ecr: Ecr) -> None:
    """A short part before the last is accepted, and refused when the upload is completed."""
    upload_id = await ecr.begin("app")
    await ecr.send("app", upload_id, 0, bytes(5 * MiB - 1))
    await ecr.send("app", upload_id, 5 * MiB - 1, b"\0")
    refusal = await ecr.refused(
        "complete_layer_upload", repositoryName="app", uploadId=upload_id, layerDigests=[digest_of(bytes(5 * MiB))]
    )
    assert refusal.code == "LayerPartTooSmallException"
    assert refusal.message == "All layer parts except the last part should be at least 5MB"


async def test_a_part_of_five_mebibytes_before_the_last_is_long_enough(ecr: Ecr) -> None:
    upload_id = await ecr.begin("app")
    await ecr.send("app", upload_id, 0, bytes(5 * MiB))
    await ecr.send("app", upload_id, 5 * MiB, b"\0")
    digest = digest_of(bytes(5 * MiB + 1))
    assert await ecr.complete("app", upload_id, digest) == digest


async def test_an_upload_without_parts_can_not_be_completed(ecr: Ecr) -> None:
    upload_id = await ecr.begin("app")
    refusal = await ecr.refused(
        "complete_layer_upload", repositoryName="app", uploadId=upload_id, layerDigests=[digest_of(b"")]
    )
    assert refusal.code == "EmptyUploadException"
    assert refusal.message == (
        f"The upload with id '{upload_id}' in the repository with name 'app' in registry with id '000000000000' "
        "cannot be completed because it does not have any parts"
    )


async def test_a_wrong_digest_is_refused_and_the_upload_stays(ecr: Ecr) -> None:
    upload_id = await ecr.begin("app")
    await ecr.send("app", upload_id, 0, b"layer")
    for wrong in ([ABSENT], [digest_of(b"layer"), ABSENT]):
        refusal = await ecr.refused(
            "complete_layer_upload", repositoryName="app", uploadId=upload_id, layerDigests=wrong
        )
        assert refusal.code == "InvalidLayerException"
    assert await ecr.available("app", ABSENT, digest_of(b"layer")) == set()
    assert await ecr.complete("app", upload_id, digest_of(b"layer")) == digest_of(b"layer")


async def test_a_digest_of_another_algorithm_is_taken_unseen(ecr: Ecr) -> None:
    upload_id = await ecr.begin("app")
    await ecr.send("app", upload_id, 0, b"layer")
    assert await ecr.complete("app", upload_id, "tarsum.v1+md5:00ff") == digest_of(b"layer")


async def test_a_layer_that_is_there_already_is_refused_and_its_upload_ends(ecr: Ecr) -> None:
    digest = await ecr.push_layer("app", b"layer")
    upload_id = await ecr.begin("app")
    await ecr.send("app", upload_id, 0, b"layer")
    named = {"repositoryName": "app", "uploadId": upload_id, "layerDigests": [digest]}
    assert (await ecr.refused("complete_layer_upload", **named)).code == "LayerAlreadyExistsException"
    assert (await ecr.refused("complete_layer_upload", **named)).code == "UploadNotFoundException"
    assert await ecr.available("app", digest) == {digest}


async def test_one_layer_completed_by_many_uploads_at_once_is_new_once(ecr: Ecr) -> None:
    outcomes: list[str] = []

    async def push() -> None:
        try:
            outcomes.append(await ecr.push_layer("app", b"layer"))
        except ClientError as error:
            outcomes.append(type(error).__name__)

    async with anyio.create_task_group() as group:
        for _ in range(8):
            group.start_soon(push)
    assert sorted(outcomes) == sorted(["LayerAlreadyExistsException"] * 7 + [digest_of(b"layer")])


async def test_an_upload_that_is_unknown_finished_or_anothers_is_not_found(ecr: Ecr) -> None:
    await ecr.call("create_repository", repositoryName="other")
    finished = await ecr.begin("app")
    await ecr.send("app", finished, 0, b"layer")
    await ecr.complete("app", finished, digest_of(b"layer"))
    anothers = await ecr.begin("other")
    for upload_id in (finished, anothers, "0cb5cb63-f0ad-4ac5-aadf-ff3a37e1dd4e"):
        sending = await ecr.refused("upload_layer_part", **part("app", upload_id, 0, b"layer"))
        completing = await ecr.refused(
            "complete_layer_upload", repositoryName="app", uploadId=upload_id, layerDigests=[ABSENT]
        )
        assert (sending.code, completing.code) == ("UploadNotFoundException", "UploadNotFoundException")


async def test_every_layer_operation_needs_its_repository(ecr: Ecr) -> None:
    upload_id = await ecr.begin("app")
    for operation, members in {
        "batch_check_layer_availability": {"repositoryName": "absent", "layerDigests": [ABSENT]},
        "initiate_layer_upload": {"repositoryName": "absent"},
        "upload_layer_part": part("absent", upload_id, 0, b"layer"),
        "complete_layer_upload": {"repositoryName": "absent", "uploadId": upload_id, "layerDigests": [ABSENT]},
    }.items():
        refusal = await ecr.refused(operation, **members)
        assert refusal.code == "RepositoryNotFoundException"
        assert refusal.message == (
            "The repository with name 'absent' does not exist in the registry with id '000000000000'"
        )


async def test_a_registry_id_is_echoed(ecr: Ecr) -> None:
    upload_id = await ecr.begin("app")
    answer = await ecr.call("upload_layer_part", registryId="000000000000", **part("app", upload_id, 0, b"layer"))
    assert answer["registryId"] == "000000000000"
    assert answer["repositoryName"] == "app"
    assert answer["uploadId"] == upload_id
