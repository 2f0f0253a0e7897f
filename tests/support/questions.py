"""Open questions about ECR, each with a probe that asks a registry."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyio import to_thread
from botocore.exceptions import ClientError

from asyncpush import AwsConfiguration, LayerResult, Settings, connect, push_layers
from asyncpush.events import Event, RequestDone
from support.emulator_client import OCI_CONFIG, OCI_LAYER, OCI_MANIFEST


@dataclass(frozen=True)
class Question:
    """A question about the registry.

    Attributes:
        quirks: the emulator's switch for it; empty where the answer is for reading only.
        text: the question.
        ask: finds the answer: one of the switch's values, or words.
    """

    quirks: str
    text: str
    ask: Callable[[Ecr], str]


class Ecr:
    """A repository, through boto3's client; every probe sends fresh random bytes."""

    def __init__(self, client: Any, repository: str) -> None:
        self.client = client
        self.repository = repository
        begun = self.call("initiate_layer_upload")
        self.part_size: int = begun["partSize"] or 10 * 2**20

    def call(self, operation: str, **members: Any) -> dict[str, Any]:
        return getattr(self.client, operation)(**{"repositoryName": self.repository} | members)

    def attempt(self, operation: str, **members: Any) -> ClientError | dict[str, Any]:
        try:
            return self.call(operation, **members)
        except ClientError as error:
            return error

    def begin(self) -> str:
        return self.call("initiate_layer_upload")["uploadId"]

    def part(self, upload_id: str, first: int, data: bytes) -> dict[str, Any]:
        last = first + len(data) - 1
        return {"uploadId": upload_id, "partFirstByte": first, "partLastByte": last, "layerPartBlob": data}

    def sent(self, *parts: bytes) -> str:
        """An upload that has these parts."""
        upload_id, first = self.begin(), 0
        for data in parts:
            self.call("upload_layer_part", **self.part(upload_id, first, data))
            first += len(data)
        return upload_id

    def stored(self, data: bytes) -> tuple[str, str]:
        """The upload id and digest of a layer that is complete."""
        upload_id, digest = self.sent(data), sha256(data)
        self.call("complete_layer_upload", uploadId=upload_id, layerDigests=[digest])
        return upload_id, digest


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def fresh(size: int = 1000) -> bytes:
    return os.urandom(size)


def code(outcome: ClientError | dict[str, Any]) -> str:
    return outcome.response["Error"]["Code"] if isinstance(outcome, ClientError) else ""


def words(outcome: ClientError | dict[str, Any]) -> str:
    if not isinstance(outcome, ClientError):
        return "taken"
    response = outcome.response
    status = response["ResponseMetadata"]["HTTPStatusCode"]
    return f"{response['Error']['Code']} ({status}): {response['Error']['Message']}"


def large_parts(ecr: Ecr) -> str:
    outcome = ecr.attempt("upload_layer_part", **ecr.part(ecr.begin(), 0, fresh(2 * ecr.part_size)))
    return "refused" if code(outcome) == "InvalidLayerPartException" else words(outcome)


def repeated_part(ecr: Ecr) -> str:
    data = fresh(ecr.part_size)
    outcome = ecr.attempt("upload_layer_part", **ecr.part(ecr.sent(data), 0, data))
    return {"": "ignored", "InvalidLayerPartException": "refused"}.get(code(outcome), words(outcome))


def first_cursor(ecr: Ecr) -> str:
    outcome = ecr.attempt("upload_layer_part", **ecr.part(ecr.begin(), 1, fresh()))
    if not isinstance(outcome, ClientError):
        return words(outcome)
    return str(outcome.response.get("lastValidByteReceived", "absent"))


def far_off_byte(ecr: Ecr) -> str:
    """What tells an interrupted push how far ECR has come, for next to nothing."""
    data = fresh(ecr.part_size)
    outcome = ecr.attempt("upload_layer_part", **ecr.part(ecr.sent(data), 10 * ecr.part_size, b"0"))
    if not isinstance(outcome, ClientError):
        return words(outcome)
    last = outcome.response.get("lastValidByteReceived", "absent")
    return f"{words(outcome)}; lastValidByteReceived {last} after {len(data)} bytes"


def retried_complete(ecr: Ecr) -> str:
    upload_id, digest = ecr.stored(fresh())
    outcome = ecr.attempt("complete_layer_upload", uploadId=upload_id, layerDigests=[digest])
    answers = {
        "": "success",
        "UploadNotFoundException": "upload-not-found",
        "LayerAlreadyExistsException": "layer-already-exists",
    }
    return answers.get(code(outcome), words(outcome))


def other_digests(ecr: Ecr) -> str:
    data = fresh()
    digest = "sha512:" + hashlib.sha512(fresh()).hexdigest()
    outcome = ecr.attempt("complete_layer_upload", uploadId=ecr.sent(data), layerDigests=[digest])
    return {"InvalidParameterException": "refused"}.get(code(outcome), words(outcome))


def several_digests(ecr: Ecr) -> str:
    data = fresh()
    outcome = ecr.attempt("complete_layer_upload", uploadId=ecr.sent(data), layerDigests=[sha256(b""), sha256(data)])
    return {"": "any", "InvalidLayerException": "all"}.get(code(outcome), words(outcome))


def unreferenced_layers(ecr: Ecr) -> str:
    _, digest = ecr.stored(fresh())
    answer = ecr.call("batch_check_layer_availability", layerDigests=[digest])
    return str(answer["layers"][0]["layerAvailability"]).lower()


def create_on_initiate(ecr: Ecr) -> str:
    outcome = ecr.attempt("initiate_layer_upload", repositoryName=f"{ecr.repository}-that-is-not-there")
    return {"RepositoryNotFoundException": "no", "": "template"}.get(code(outcome), words(outcome))


def manifest(ecr: Ecr, **members: Any) -> str:
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": {"Labels": {"n": fresh().hex()}}}).encode()
    _, digest = ecr.stored(config)
    data = fresh()
    _, layer_digest = ecr.stored(data)
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": digest, "size": len(config)},
        "layers": [{"mediaType": OCI_LAYER, "digest": layer_digest, "size": len(data)}],
        **members,
    }
    return json.dumps(document, indent=1)


def missing_subject(ecr: Ecr) -> str:
    subject = {"mediaType": OCI_MANIFEST, "digest": sha256(fresh()), "size": 1000}
    outcome = ecr.attempt("put_image", imageManifest=manifest(ecr, subject=subject))
    return {"ReferencedImagesNotFoundException": "refused"}.get(code(outcome), words(outcome))


def parts_at_once(ecr: Ecr) -> str:
    """Two consecutive parts whose requests travel together, the first one ahead by a little."""
    upload_id, half = ecr.begin(), ecr.part_size
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(ecr.attempt, "upload_layer_part", **ecr.part(upload_id, 0, fresh(half)))
        second = threads.submit(ecr.attempt, "upload_layer_part", **ecr.part(upload_id, half, fresh(half)))
        return f"first: {words(first.result())}; second: {words(second.result())}"


def text_of(operation: str, **members: Any) -> Callable[[Ecr], str]:
    def ask(ecr: Ecr) -> str:
        given = {key: value(ecr) if callable(value) else value for key, value in members.items()}
        return words(ecr.attempt(operation, **given))

    return ask


def existing_layer(ecr: Ecr) -> str:
    data = fresh()
    ecr.stored(data)
    return words(ecr.attempt("complete_layer_upload", uploadId=ecr.sent(data), layerDigests=[sha256(data)]))


def missing_layer(ecr: Ecr) -> str:
    layer = {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": sha256(fresh()), "size": 1}
    return words(ecr.attempt("put_image", imageManifest=manifest(ecr, layers=[layer])))


UNKNOWN_UPLOAD = "0cb5cb63-f0ad-4ac5-aadf-ff3a37e1dd4e"

QUESTIONS = (
    Question("large_parts", "A part of twice the partSize that InitiateLayerUpload gave", large_parts),
    Question("repeated_part", "The last part, sent again", repeated_part),
    Question("first_cursor", "lastValidByteReceived before any part", first_cursor),
    Question("retried_complete", "CompleteLayerUpload again, after it succeeded", retried_complete),
    Question("other_digests", "Completing with a wrong sha512", other_digests),
    Question("several_digests", "Completing with a wrong and a right sha256", several_digests),
    Question("unreferenced_layers", "Availability of a layer that no image names", unreferenced_layers),
    Question("create_on_initiate", "InitiateLayerUpload into a repository that is not there", create_on_initiate),
    Question("missing_subject", "A referrer whose subject is not there", missing_subject),
    Question("", "Two parts on their way at once", parts_at_once),
    Question("", "A byte far behind the last part", far_off_byte),
    Question("", "An upload that is unknown", text_of(
        "complete_layer_upload", uploadId=UNKNOWN_UPLOAD, layerDigests=[sha256(b"")])),
    Question("", "A wrong digest", text_of(
        "complete_layer_upload", uploadId=lambda ecr: ecr.sent(fresh()), layerDigests=[sha256(b"")])),
    Question("", "An upload without parts", text_of(
        "complete_layer_upload", uploadId=lambda ecr: ecr.begin(), layerDigests=[sha256(b"")])),
    Question("", "A layer that is there already", existing_layer),
    Question("", "An image whose layer is not there", missing_layer),
)  # fmt: skip


async def measured_parts(
    repository: str, file: Path, *, early: bool, size: int = 200 * 2**20, aws: AwsConfiguration | None = None
) -> str:
    """Push a layer that nobody has sent before; its speed, and how many of its parts were refused, in a line."""
    await to_thread.run_sync(lambda: file.write_bytes(fresh(size)))
    ended: list[RequestDone] = []

    def note(event: Event) -> None:
        if isinstance(event, RequestDone) and event.operation == "UploadLayerPart":
            ended.append(event)

    settings = Settings(early_parts=early)
    async with connect(aws=aws, settings=settings, emit=note) as registry:
        began = time.monotonic()
        [result] = await push_layers(registry, [file], repository)
        seconds = time.monotonic() - began
    assert isinstance(result, LayerResult), result
    refused = sum(each.outcome == "refused" for each in ended)
    return f"early parts {'on' if early else 'off'}: {size / seconds / 1e6:.1f} MB/s, {refused} of {len(ended)} refused"
