"""The layer operations: availability, uploads in parts, and the presigned addresses of downloads."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Sequence
from pathlib import Path

import pybase64

from asyncpush.emulator.api import requests
from asyncpush.emulator.api.part_body import ReceivedPart
from asyncpush.emulator.api.requests import DIGEST_FORM, Document
from asyncpush.emulator.errors import (
    AwsError,
    invalid_layer,
    invalid_parameter,
    layer_discarded,
    layer_exists,
    layer_inaccessible,
    layer_missing,
    limit_exceeded,
)
from asyncpush.emulator.limits import Limits
from asyncpush.emulator.registry import RegistryId, RequestTarget
from asyncpush.emulator.store.records import sha256_digest
from asyncpush.emulator.store.repository import RepositoryState
from asyncpush.emulator.store.state import Store, now
from asyncpush.emulator.store.uploads import StagedUpload, check_parts
from asyncpush.model import Digest


class LayersApi:
    """ECR's layer operations on a store."""

    def __init__(self, store: Store, limits: Limits, downloads: Downloads) -> None:
        self._store = store
        self._limits = limits
        self._quirks = limits.quirks
        self._downloads = downloads

    async def check(self, request: requests.BatchCheckLayerAvailability, target: RequestTarget) -> Document:
        """BatchCheckLayerAvailability: a missing layer is UNAVAILABLE, not a failure."""
        repository = self._store.repository(target, request.repository_name)
        valid = [digest for digest in request.layer_digests if _is_digest(digest)]
        invalid = [digest for digest in request.layer_digests if not _is_digest(digest)]
        return {
            "layers": [self._availability(repository, digest) for digest in valid],
            "failures": [_failure(digest) for digest in invalid],
        }

    async def initiate(self, request: requests.InitiateLayerUpload, target: RequestTarget) -> Document:
        """InitiateLayerUpload."""
        if self._quirks.create_on_initiate == "template":
            await self._store.create_on_push(target.registry, request.repository_name)
        async with self._store.changing(target, request.repository_name) as repository:
            upload = await self._store.create_upload(repository)
        return {"uploadId": upload.id, "partSize": self._limits.part_size}

    async def upload_part(self, part: ReceivedPart, target: RequestTarget) -> Document:
        """UploadLayerPart: accepts only the next part."""
        request = part.request
        async with self._store.uploading(request.upload_id, target, request.repository_name) as upload:
            if not self._is_repeated(upload, part):
                if problem := self._part_problem(upload, part):
                    members = {**_named(request, target), **self._cursor(upload)}
                    raise AwsError("InvalidLayerPartException", problem, members=members)
                self._check_quotas(upload, part, target.registry)
                await self._store.in_thread(upload.append, part.blob, self._limits.min_part, self._store.disk)
        return {**_named(request, target), "lastByteReceived": request.part_last_byte}

    async def complete(self, request: requests.CompleteLayerUpload, target: RequestTarget) -> Document:
        """CompleteLayerUpload: check the digest, then add the layer. A refusal leaves the upload unchanged."""
        name = request.repository_name
        self._check_algorithms(request.layer_digests)
        if done := await self._completed(request, target):
            if self._quirks.retried_complete == "layer-already-exists":
                raise layer_exists(done, name, target.id)
            return {**_named(request, target), "layerDigest": str(done)}
        async with self._store.uploading(request.upload_id, target, name) as upload:
            check_parts(upload, name, target.id)
            digest = await self._store.in_thread(upload.finish, self._store.disk)
            self._check_digests(request.layer_digests, digest)
            await self._keep(upload, digest, target, name)
        return {**_named(request, target), "layerDigest": str(digest)}

    async def download_url(self, request: requests.GetDownloadUrlForLayer, target: RequestTarget) -> Document:
        """GetDownloadUrlForLayer: an address of this emulator's that is valid for an hour."""
        repository = self._store.repository(target, request.repository_name)
        digest = sha256_digest(request.layer_digest)
        if digest is None or digest not in repository.layers:
            raise layer_missing(request.layer_digest, repository.name, target.id)
        if not repository.is_referenced(digest):
            raise layer_inaccessible(request.layer_digest, repository.name, target.id)
        if await self._store.in_thread(repository.is_discarded, digest):
            raise layer_discarded(digest)
        url = f"{self._limits.endpoint_url}{self._downloads.path(repository, digest)}"
        return {"downloadUrl": url, "layerDigest": str(digest)}

    async def _keep(self, upload: StagedUpload, digest: Digest, target: RequestTarget, name: str) -> None:
        remember = self._quirks.retried_complete != "upload-not-found"
        async with self._store.changing(target, name) as repository:
            if digest not in repository.layers:
                await self._store.in_thread(lambda: repository.add_layer(upload, digest, remember=remember))
                del self._store.uploads[upload.id]
                return
        await self._store.remove_upload(upload)
        raise layer_exists(digest, name, target.id)

    async def _completed(self, request: requests.CompleteLayerUpload, target: RequestTarget) -> Digest | None:
        """The layer that an earlier call made of this upload, if the quirks have it remembered."""
        upload_id = request.upload_id.lower()
        if self._quirks.retried_complete == "upload-not-found" or upload_id in self._store.uploads:
            return None
        repository = self._store.repository(target, request.repository_name)
        return await self._store.in_thread(self._store.catalog.completed, upload_id, repository.key)

    def _availability(self, repository: RepositoryState, text: str) -> Document:
        digest = sha256_digest(text)
        hidden = self._quirks.unreferenced_layers == "unavailable"
        if digest is None or digest not in repository.layers or (hidden and not repository.is_referenced(digest)):
            return {"layerDigest": text, "layerAvailability": "UNAVAILABLE"}
        found: dict[str, object] = {
            "layerDigest": text,
            "layerAvailability": "AVAILABLE",
            "layerSize": repository.layers[digest],
        }
        if media_type := repository.media_types.get(digest):
            found["mediaType"] = media_type
        return found

    def _is_repeated(self, upload: StagedUpload, part: ReceivedPart) -> bool:
        """Whether this is the last part again, and the quirks ignore that."""
        if self._quirks.repeated_part == "refused" or not upload.record.parts:
            return False
        received, length = upload.record.received, upload.record.last_part
        first, last = part.request.part_first_byte, part.request.part_last_byte
        return (first, last, len(part.blob)) == (received - length, received - 1, length)

    def _part_problem(self, upload: StagedUpload, part: ReceivedPart) -> str | None:
        first, last = part.request.part_first_byte, part.request.part_last_byte
        if first != upload.record.received:
            return f"First byte of the layer part is {first} instead of {upload.record.received}"
        if last < first or last - first + 1 != len(part.blob):
            return f"Size of the layer part is {len(part.blob)} instead of {max(last - first + 1, 0)}"
        if self._quirks.large_parts == "refused" and len(part.blob) > self._limits.part_size:
            return f"Size of the layer part is {len(part.blob)}, more than {self._limits.part_size}"
        return None

    def _cursor(self, upload: StagedUpload) -> dict[str, int]:
        """``lastValidByteReceived``; before any part, as the quirks say."""
        if upload.record.received:
            return {"lastValidByteReceived": upload.record.received - 1}
        first = self._quirks.first_cursor
        return {} if first == "absent" else {"lastValidByteReceived": int(first)}

    def _check_quotas(self, upload: StagedUpload, part: ReceivedPart, registry: RegistryId) -> None:
        quotas = self._limits.quotas(registry)
        if upload.record.parts >= quotas.parts:
            raise limit_exceeded(f"The maximum number of layer parts, {quotas.parts}, has been reached")
        if upload.record.received + len(part.blob) > quotas.layer_size:
            raise limit_exceeded(f"The maximum size of a layer, {quotas.layer_size} bytes, has been reached")

    def _check_algorithms(self, claimed: Sequence[str]) -> None:
        if self._quirks.other_digests == "refused" and not all(each.startswith("sha256:") for each in claimed):
            raise invalid_parameter("layerDigests", "must be a sha256 digest")

    def _check_digests(self, claimed: Sequence[str], digest: Digest) -> None:
        # Only sha256 is computed: ECR accepts other algorithms unchecked, and answers its own digest.
        wrong = [each for each in claimed if each.startswith("sha256:") and each != str(digest)]
        enough = self._quirks.several_digests == "any" and len(wrong) < len(claimed)
        if wrong and not enough:
            raise invalid_layer(wrong[0], digest)


def _is_digest(text: str) -> bool:
    if not DIGEST_FORM.fullmatch(text):
        return False
    return not text.startswith("sha256:") or sha256_digest(text.lower()) is not None


def _failure(digest: str) -> Document:
    code, reason = (
        ("InvalidLayerDigest", "Invalid layer digest") if digest else ("MissingLayerDigest", "Missing layer digest")
    )
    return {"layerDigest": digest, "failureCode": code, "failureReason": reason}


def _named(
    request: requests.UploadLayerPart | requests.CompleteLayerUpload, target: RequestTarget
) -> dict[str, str | int]:
    return {"registryId": target.id, "repositoryName": request.repository_name, "uploadId": request.upload_id}


#: The path below which layers are downloaded.
DOWNLOAD_PATH = "/_emulator/layers/"

#: Seconds for which an address is valid.
_LIFETIME = 3600


class Downloads:
    """Makes and checks the addresses; those of an earlier run are not valid."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._secret = secrets.token_bytes(32)

    def path(self, repository: RepositoryState, digest: Digest) -> str:
        """The path of a layer's address."""
        registry = repository.registry
        named = [
            registry.service,
            registry.account,
            registry.region,
            repository.name,
            digest.hex,
            now() + _LIFETIME,
        ]
        text = pybase64.urlsafe_b64encode(json.dumps(named).encode()).decode()
        return f"{DOWNLOAD_PATH}{text}.{self._proof(text)}"

    def open(self, token: str) -> Path | None:
        """The file of a token's layer; None if the token is forged or expired, or the layer was removed."""
        text, _, proof = token.partition(".")
        if not hmac.compare_digest(proof.encode(), self._proof(text).encode()):
            return None
        service, account, region, name, layer, expires = json.loads(pybase64.urlsafe_b64decode(text))
        repository = self._store.repositories_of(RegistryId(service, account, region)).get(name)
        digest = Digest(layer)
        if repository is None or digest not in repository.layers or expires < now():
            return None
        return repository.blob_path(digest)

    def _proof(self, text: str) -> str:
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()
