"""botocore's own client, called in threads, for the emulator's tests: an independent reading of ECR's protocol."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import aiohttp
import botocore.session
import pytest
from anyio import to_thread
from botocore.config import Config
from botocore.exceptions import ClientError

from asyncpush.emulator import Emulator

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"

_SESSION = botocore.session.Session()


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def head(operation: str, length: int) -> bytes:
    """The head of a request that claims to be signed, as all can who know the id of a key; the signature is wrong."""
    now = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    scope = f"test/{now[:8]}/us-east-1/ecr/aws4_request"
    claim = f"Credential={scope}, SignedHeaders=host;x-amz-date;x-amz-target, Signature={'0' * 64}"
    target = f"AmazonEC2ContainerRegistry_V20150921.{operation}"
    named = {"X-Amz-Date": now, "Authorization": f"AWS4-HMAC-SHA256 {claim}", "X-Amz-Target": target}
    lines = [f"{name}: {value}" for name, value in {"Host": "ecr", **named, "Content-Length": length}.items()]
    return "\r\n".join(["POST / HTTP/1.1", *lines, "", ""]).encode()


def descriptor(media_type: str, data: bytes, **members: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data), **members}


def image_manifest(config_bytes: bytes, /, *layer_bytes: bytes, **members: Any) -> bytes:
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(OCI_CONFIG, config_bytes),
            "layers": [descriptor(OCI_LAYER, layer) for layer in layer_bytes],
            **members,
        }
    ).encode()


def index_manifest(*children: bytes, child_type: str = OCI_MANIFEST) -> bytes:
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX}
    return json.dumps(document | {"manifests": [descriptor(child_type, child) for child in children]}).encode()


@dataclass
class Refusal:
    """An error as botocore parsed it: its code, message, members and HTTP status."""

    code: str
    message: str
    members: dict[str, Any]
    status: int


class Ecr:
    """An ECR client without retries and without checks of its own."""

    def __init__(
        self,
        url: str,
        *,
        service: str = "ecr",
        verify: str | bool = True,
        region: str = "us-east-1",
        keys: tuple[str, str, str | None] = ("test", "test", None),
        **config: Any,
    ) -> None:
        key_id, secret, token = keys
        self._client = _SESSION.create_client(
            service,
            region_name=region,
            endpoint_url=url,
            aws_access_key_id=key_id,
            aws_secret_access_key=secret,
            aws_session_token=token,
            verify=verify,
            config=Config(parameter_validation=False, retries={"total_max_attempts": 1}, proxies={}, **config),
        )

    async def call(self, operation: str, **members: Any) -> dict[str, Any]:
        return await to_thread.run_sync(partial(getattr(self._client, operation), **members))

    async def refused(self, operation: str, **members: Any) -> Refusal:
        with pytest.raises(ClientError) as caught:
            await self.call(operation, **members)
        response = caught.value.response
        assert caught.type.__name__ in (response["Error"]["Code"], "ClientError")
        return Refusal(
            response["Error"]["Code"],
            response["Error"]["Message"],
            {key: value for key, value in response.items() if key not in ("Error", "ResponseMetadata")},
            response["ResponseMetadata"]["HTTPStatusCode"],
        )

    async def begin(self, repository: str) -> str:
        return (await self.call("initiate_layer_upload", repositoryName=repository))["uploadId"]

    async def send(self, repository: str, upload_id: str, first: int, data: bytes) -> int:
        return (await self.call("upload_layer_part", **part(repository, upload_id, first, data)))["lastByteReceived"]

    async def complete(self, repository: str, upload_id: str, *digests: str) -> str:
        answer = await self.call(
            "complete_layer_upload", repositoryName=repository, uploadId=upload_id, layerDigests=list(digests)
        )
        return answer["layerDigest"]

    async def push_layer(self, repository: str, data: bytes) -> str:
        upload_id = await self.begin(repository)
        await self.send(repository, upload_id, 0, data)
        return await self.complete(repository, upload_id, digest_of(data))

    async def push_image(self, repository: str, tag: str | None, config: bytes, *layers: bytes) -> bytes:
        """Push blobs that are not there yet and a manifest; return the manifest."""
        available = await self.available(repository, *map(digest_of, (config, *layers)))
        for blob in {config, *layers}:
            if digest_of(blob) not in available:
                await self.push_layer(repository, blob)
        manifest = image_manifest(config, *layers)
        await self.put(repository, manifest, tag)
        return manifest

    async def put(self, repository: str, manifest: bytes, tag: str | None = None, **members: Any) -> dict[str, Any]:
        named = {"imageTag": tag} if tag else {}
        answer = await self.call(
            "put_image", repositoryName=repository, imageManifest=manifest.decode(), **named, **members
        )
        return answer["image"]

    async def available(self, repository: str, *digests: str) -> set[str]:
        answer = await self.call(
            "batch_check_layer_availability", repositoryName=repository, layerDigests=list(digests)
        )
        return {layer["layerDigest"] for layer in answer["layers"] if layer["layerAvailability"] == "AVAILABLE"}

    async def tags(self, repository: str) -> dict[str, list[str]]:
        """Each image's digest, and its tags."""
        details = (await self.call("describe_images", repositoryName=repository))["imageDetails"]
        return {detail["imageDigest"]: detail.get("imageTags", []) for detail in details}


def part(repository: str, upload_id: str, first: int, data: bytes) -> dict[str, Any]:
    return {
        "repositoryName": repository,
        "uploadId": upload_id,
        "partFirstByte": first,
        "partLastByte": first + len(data) - 1,
        "layerPartBlob": data,
    }


async def request_log(emulator: Emulator) -> dict[str, dict[str, Any]]:
    async with aiohttp.ClientSession() as session, session.get(f"{emulator.endpoint_url}/_emulator/received") as answer:
        return await answer.json()


async def received(emulator: Emulator) -> dict[str, dict[str, int]]:
    return (await request_log(emulator))["received"]
