"""The layer operations: is it there, begin, add a part, complete."""

from __future__ import annotations

import re

from asyncpush.emulator import requests
from asyncpush.emulator.documents import Document
from asyncpush.emulator.errors import (
    AwsError,
    empty_upload,
    invalid_layer,
    layer_exists,
    part_too_small,
)
from asyncpush.emulator.manifests import sha256_digest
from asyncpush.emulator.part_body import PartBody
from asyncpush.emulator.registry import Registry
from asyncpush.emulator.repository import Repository
from asyncpush.emulator.store import Store
from asyncpush.emulator.uploads import Upload
from asyncpush.model import Digest

_DIGEST = re.compile(r"[a-zA-Z0-9-_+.]+:[a-fA-F0-9]+")


class LayersApi:
    """ECR's layer operations on a store."""

    def __init__(self, store: Store, registry: Registry) -> None:
        self._store = store
        self._registry = registry

    async def check(self, request: requests.BatchCheckLayerAvailability) -> Document:
        """BatchCheckLayerAvailability: a layer that is not held is UNAVAILABLE, not a failure."""
        repository = self._store.repository(request.repository_name, request.registry_id or self._registry.id)
        valid = [digest for digest in request.layer_digests if _is_digest(digest)]
        invalid = [digest for digest in request.layer_digests if not _is_digest(digest)]
        return {
            "layers": [_availability(repository, digest) for digest in valid],
            "failures": [_failure(digest) for digest in invalid],
        }

    async def initiate(self, request: requests.InitiateLayerUpload) -> Document:
        """InitiateLayerUpload."""
        registry_id = request.registry_id or self._registry.id
        async with self._store.changing(request.repository_name, registry_id):
            upload = await self._store.create_upload(request.repository_name)
        return {"uploadId": upload.id, "partSize": self._registry.part_size}

    async def upload_part(self, part: PartBody) -> Document:
        """UploadLayerPart: the part that follows the last one, and no other."""
        request = part.request
        target = _target(request, self._registry)
        async with self._store.uploading(
            request.upload_id, request.repository_name, request.registry_id or self._registry.id
        ) as upload:
            if problem := _part_problem(upload, part):
                members = {**target, "lastValidByteReceived": upload.last_valid_byte}
                raise AwsError("InvalidLayerPartException", problem, members=members)
            await self._store.in_thread(upload.append, part.blob, self._registry.min_part)
        return {**target, "lastByteReceived": request.part_last_byte}

    async def complete(self, request: requests.CompleteLayerUpload) -> Document:
        """CompleteLayerUpload: prove the digest, then hold the layer. A refusal leaves the upload as it is."""
        name, registry_id = request.repository_name, request.registry_id or self._registry.id
        async with self._store.uploading(request.upload_id, name, registry_id) as upload:
            if upload.record.received == 0:
                raise empty_upload(upload.id, name, registry_id)
            if upload.record.short_part:
                raise part_too_small()
            digest = await self._store.in_thread(upload.finish)
            for claimed in request.layer_digests:
                # Only sha256 is computed: ECR takes other algorithms unseen and answers its own digest.
                if claimed.startswith("sha256:") and claimed != str(digest):
                    raise invalid_layer(claimed, digest)
            await self._keep(upload, digest, name, registry_id)
        return {**_target(request, self._registry), "layerDigest": str(digest)}

    async def _keep(self, upload: Upload, digest: Digest, name: str, registry_id: str) -> None:
        async with self._store.changing(name, registry_id) as repository:
            known = digest in repository.layers
            if not known:
                await self._store.in_thread(repository.add_layer, upload.bytes_path, digest)
        await self._store.remove_upload(upload)
        if known:
            raise layer_exists(digest, name, registry_id)


def _is_digest(text: str) -> bool:
    if not _DIGEST.fullmatch(text):
        return False
    return not text.startswith("sha256:") or sha256_digest(text.lower()) is not None


def _availability(repository: Repository, text: str) -> Document:
    digest = sha256_digest(text)
    if digest is None or digest not in repository.layers:
        return {"layerDigest": text, "layerAvailability": "UNAVAILABLE"}
    found: dict[str, object] = {
        "layerDigest": text,
        "layerAvailability": "AVAILABLE",
        "layerSize": repository.layers[digest],
    }
    if media_type := repository.media_types.get(digest):
        found["mediaType"] = media_type
    return found


def _failure(digest: str) -> Document:
    code, reason = (
        ("InvalidLayerDigest", "Invalid layer digest") if digest else ("MissingLayerDigest", "Missing layer digest")
    )
    return {"layerDigest": digest, "failureCode": code, "failureReason": reason}


def _target(
    request: requests.UploadLayerPart | requests.CompleteLayerUpload, registry: Registry
) -> dict[str, str | int]:
    return {
        "registryId": request.registry_id or registry.id,
        "repositoryName": request.repository_name,
        "uploadId": request.upload_id,
    }


def _part_problem(upload: Upload, part: PartBody) -> str | None:
    first, last = part.request.part_first_byte, part.request.part_last_byte
    if first != upload.record.received:
        return f"First byte of the layer part is {first} instead of {upload.record.received}"
    if last < first or last - first + 1 != len(part.blob):
        return f"Size of the layer part is {len(part.blob)} instead of {max(last - first + 1, 0)}"
    return None
