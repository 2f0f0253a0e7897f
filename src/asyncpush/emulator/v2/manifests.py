"""Manifests through ``/v2/``, by the rules of PutImage, BatchGetImage and BatchDeleteImage."""

from __future__ import annotations

import re
from functools import partial

from aiohttp import web

from asyncpush.emulator.api.images import ImagesApi
from asyncpush.emulator.api.requests import BatchDeleteImage, ImageId, PutImage
from asyncpush.emulator.connections import read_body
from asyncpush.emulator.errors import AwsError
from asyncpush.emulator.limits import MAX_MANIFEST
from asyncpush.emulator.registry import RegistryId, RequestTarget
from asyncpush.emulator.store.records import ImageRecord, ParsedManifest, sha256_digest
from asyncpush.emulator.store.repository import RepositoryState
from asyncpush.emulator.store.state import BackgroundTasks, Store
from asyncpush.emulator.v2.answers import VERSION, V2Error, digest_invalid, empty, json_answer, page, translated
from asyncpush.model import Digest

_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")


class ManifestHandlers:
    """The manifests of a store's repositories.

    Args:
        store: the repositories.
        images: ECR's operations on them.
        background: runs what changes data to its end.
    """

    def __init__(self, store: Store, images: ImagesApi, background: BackgroundTasks) -> None:
        self._store = store
        self._images = images
        self._background = background

    async def get(self, repository: RepositoryState, reference: str) -> web.Response:
        """GET and HEAD (Pulling manifests); a manifest is never converted."""
        image = _find(repository, reference)
        if repository.status(image) == "ARCHIVED":
            raise V2Error(403, "DENIED", f"the image {reference} is archived, and can't be pulled")
        raw = await self._store.in_thread(repository.read_manifest, image)
        digest = str(image.manifest.digest)
        headers = {**VERSION, "Docker-Content-Digest": digest, "Content-Type": image.manifest.media_type}
        return web.Response(body=raw, headers=headers)

    async def put(self, request: web.Request, repository: RepositoryState, reference: str) -> web.Response:
        """PUT (Pushing Manifests): PutImage under a tag or a digest; an existing image is a success here."""
        is_digest = ":" in reference
        if is_digest and sha256_digest(reference) is None:
            raise digest_invalid(reference)
        if not is_digest and not _TAG.fullmatch(reference):
            raise V2Error(400, "TAG_INVALID", f"{reference!r} is not a tag (128 letters, digits, '_', '.' and '-')")
        raw = bytes(await read_body(request))
        put = PutImage(
            repository_name=repository.name,
            image_manifest=_text(raw),
            image_manifest_media_type=_media_type(request),
            image_digest=reference if is_digest else None,
            image_tag=None if is_digest else reference,
        )
        await self._background.finish(partial(self._put, put, repository.target))
        digest = await self._store.in_thread(Digest.of, raw)
        headers = {"Location": f"/v2/{repository.name}/manifests/{digest}", "Docker-Content-Digest": str(digest)}
        image = repository.images.get(digest)  # another request may have deleted it meanwhile
        if image and image.manifest.subject:
            headers["OCI-Subject"] = image.manifest.subject
        return empty(201, headers)

    async def delete(self, repository: RepositoryState, reference: str) -> web.Response:
        """DELETE (Deleting tags; Deleting Manifests): BatchDeleteImage of a tag, or of an image with all its tags."""
        _find(repository, reference)
        image_id = ImageId(reference) if ":" in reference else ImageId(None, reference)
        delete = BatchDeleteImage(repository_name=repository.name, image_ids=[image_id])
        done = await self._background.finish(partial(self._images.delete, delete, repository.target))
        if done["failures"]:
            raise V2Error(403, "DENIED", f"an index in {repository.name} names {reference}")
        return empty(202, {})

    async def _put(self, request: PutImage, target: RequestTarget) -> None:
        try:
            await self._images.put(request, target)
        except AwsError as error:
            if error.code != "ImageAlreadyExistsException":
                raise translated(error) from error


def _find(repository: RepositoryState, reference: str) -> ImageRecord:
    image = repository.find(digest=reference) if ":" in reference else repository.find(tag=reference)
    if image is None:
        raise V2Error(404, "MANIFEST_UNKNOWN", "Requested image not found")
    return image


def _media_type(request: web.Request) -> str | None:
    return request.headers.get("Content-Type", "").partition(";")[0].strip() or None


def _text(raw: bytes) -> str:
    if len(raw) > MAX_MANIFEST:
        raise V2Error(413, "MANIFEST_INVALID", f"a manifest can have up to {MAX_MANIFEST} bytes")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise V2Error(400, "MANIFEST_INVALID", "the manifest is not UTF-8") from error


_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"


def tags(request: web.Request, repository: RepositoryState) -> web.Response:
    """The tags in order (Listing Tags)."""
    active = [
        tag for tag, digest in repository.tags.items() if repository.status(repository.images[digest]) == "ACTIVE"
    ]
    shown, headers = page(request, active)
    return json_answer({"name": repository.name, "tags": shown}, headers=headers)


def catalog(request: web.Request, store: Store, registry: RegistryId | None) -> web.Response:
    """The names of the repositories of one registry or of all (Docker's API, not in the specification)."""
    registries = store.repositories.values() if registry is None else [store.repositories_of(registry)]
    shown, headers = page(request, tuple({name for repositories in registries for name in repositories}))
    return json_answer({"repositories": shown}, headers=headers)


def referrers(request: web.Request, repository: RepositoryState, subject: str) -> web.Response:
    """An index of the manifests whose subject is this digest, whether or not that exists (Listing Referrers)."""
    if sha256_digest(subject) is None:
        raise digest_invalid(subject)
    artifact_type = request.query.get("artifactType")
    found = [each for each in repository.referrers(subject) if not artifact_type or each.artifact_type == artifact_type]
    index = {"schemaVersion": 2, "mediaType": _INDEX_TYPE, "manifests": [_descriptor(each) for each in found]}
    headers = {"OCI-Filters-Applied": "artifactType"} if artifact_type else {}
    return json_answer(index, headers=headers, media_type=_INDEX_TYPE)


def _descriptor(manifest: ParsedManifest) -> dict[str, object]:
    members: dict[str, object] = {
        "mediaType": manifest.media_type,
        "digest": str(manifest.digest),
        "size": manifest.size,
    }
    if manifest.artifact_type:
        members["artifactType"] = manifest.artifact_type
    if manifest.annotations:
        members["annotations"] = manifest.annotations
    return members
