"""The operations on images: put, get, describe, list, delete."""

from __future__ import annotations

import re
from collections.abc import Iterable

from asyncpush.emulator import requests
from asyncpush.emulator.documents import Document, paginate
from asyncpush.emulator.errors import (
    image_digest_mismatch,
    image_exists,
    image_not_found,
    invalid_parameter,
    layers_not_found,
    referenced_images_not_found,
    tag_exists,
)
from asyncpush.emulator.manifests import Manifest, Reference, read_manifest
from asyncpush.emulator.registry import Registry
from asyncpush.emulator.repository import Image, Repository
from asyncpush.emulator.requests import ImageId
from asyncpush.emulator.store import Store, now
from asyncpush.model import Digest

_DIGEST = re.compile(r"[a-zA-Z0-9-_+.]+:[a-fA-F0-9]+")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,299}")


class ImagesApi:
    """ECR's image operations on a store."""

    def __init__(self, store: Store, registry: Registry) -> None:
        self._store = store
        self._registry = registry

    async def put(self, request: requests.PutImage) -> Document:
        """PutImage: the exact bytes, once all that they name is there."""
        name, registry_id = request.repository_name, request.registry_id or self._registry.id
        self._store.repository(name, registry_id)
        raw = request.image_manifest.encode()
        manifest = await self._store.in_thread(read_manifest, raw, request.image_manifest_media_type)
        if request.image_digest not in (None, str(manifest.digest)):
            raise image_digest_mismatch(str(request.image_digest), name, registry_id)
        async with self._store.changing(name, registry_id) as repository:
            _check_references(repository, manifest, registry_id)
            _check_tag(repository, manifest.digest, request.image_tag, registry_id)
            image = Image(manifest, now())
            await self._store.in_thread(repository.put, image, raw, request.image_tag)
        image_id = ImageId(str(manifest.digest), request.image_tag)
        return {"image": _image(request, registry_id, image_id, request.image_manifest, manifest.media_type)}

    async def get(self, request: requests.BatchGetImage) -> Document:
        """BatchGetImage; never converts a manifest, whatever the caller accepts."""
        registry_id = request.registry_id or self._registry.id
        repository = self._store.repository(request.repository_name, registry_id)
        images: list[Document] = []
        failures: list[Document] = []
        for wanted in request.image_ids:
            found = repository.find(digest=wanted.image_digest, tag=wanted.image_tag)
            if found is None:
                failures.append(_failure(repository, wanted))
                continue
            raw = await self._store.in_thread(repository.read_manifest, found)
            image_id = ImageId(str(found.manifest.digest), wanted.image_tag)
            images.append(_image(request, registry_id, image_id, raw.decode(), found.manifest.media_type))
        return {"images": images, "failures": failures}

    async def describe(self, request: requests.DescribeImages) -> Document:
        """DescribeImages: those named, of which none may be missing, or all, page by page."""
        registry_id = request.registry_id or self._registry.id
        repository = self._store.repository(request.repository_name, registry_id)
        if request.image_ids is not None:
            if request.next_token or request.max_results:
                raise invalid_parameter("maxResults", "must not be given with imageIds")
            found = [_must_find(repository, image_id, registry_id) for image_id in request.image_ids]
            return {"imageDetails": _details(repository, found, registry_id)}
        page = paginate(
            _with_status(repository, request.filter.tag_status),
            lambda image: str(image.manifest.digest),
            request.next_token,
            request.max_results,
        )
        return {"imageDetails": _details(repository, page.entries, registry_id), **page.members}

    async def list_ids(self, request: requests.ListImages) -> Document:
        """ListImages: an entry for each tag, and one for each image without."""
        repository = self._store.repository(request.repository_name, request.registry_id or self._registry.id)
        tags = repository.tags_by_image()
        digests = [image.manifest.digest for image in _with_status(repository, request.filter.tag_status)]
        ids = [ImageId(str(digest), tag) for digest in digests for tag in tags.get(digest, (None,))]
        page = paginate(
            ids, lambda entry: f"{entry.image_digest} {entry.image_tag or ''}", request.next_token, request.max_results
        )
        return {"imageIds": page.entries, **page.members}

    async def delete(self, request: requests.BatchDeleteImage) -> Document:
        """BatchDeleteImage: a tag by its name, an image and all its tags by its digest."""
        deleted: list[ImageId] = []
        failures: list[Document] = []
        async with self._store.changing(
            request.repository_name, request.registry_id or self._registry.id
        ) as repository:
            for wanted in request.image_ids:
                found = repository.find(digest=wanted.image_digest, tag=wanted.image_tag)
                if found is None:
                    failures.append(_failure(repository, wanted))
                elif not wanted.image_tag and _is_referenced(repository, found):
                    failures.append(_referenced(wanted))
                else:
                    deleted += await self._delete(repository, found.manifest.digest, wanted.image_tag)
        return {"imageIds": deleted, "failures": failures}

    async def _delete(self, repository: Repository, digest: Digest, tag: str | None) -> list[ImageId]:
        if tag:
            await self._store.in_thread(repository.untag, tag)
            return [ImageId(str(digest), tag)]
        tags = repository.tags_by_image().get(digest, ())
        await self._store.in_thread(repository.remove, digest)
        return [ImageId(str(digest), tag) for tag in tags] or [ImageId(str(digest))]


def _check_references(repository: Repository, manifest: Manifest, registry_id: str) -> None:
    held_layers = (reference.sha256 in repository.layers for reference in manifest.blobs)
    if lost := _missing(manifest.blobs, held_layers):
        raise layers_not_found(lost, repository.name, registry_id)
    held_images = (reference.sha256 in repository.images for reference in manifest.children)
    if lost := _missing(manifest.children, held_images):
        raise referenced_images_not_found(lost, repository.name, registry_id)


def _check_tag(repository: Repository, digest: Digest, tag: str | None, registry_id: str) -> None:
    named = repository.tags.get(tag) if tag else None
    if digest in repository.images and (tag is None or named == digest):
        raise image_exists(digest, tag, repository.name, registry_id)
    if tag and named and repository.is_immutable(tag):
        raise tag_exists(tag, repository.name)


def _missing(references: Iterable[Reference], held: Iterable[bool]) -> list[str]:
    lost = (reference.digest for reference, there in zip(references, held, strict=True) if not there)
    return list(dict.fromkeys(lost))


def _must_find(repository: Repository, wanted: ImageId, registry_id: str) -> Image:
    found = repository.find(digest=wanted.image_digest, tag=wanted.image_tag)
    if found is None:
        raise image_not_found(wanted.image_digest, wanted.image_tag, repository.name, registry_id)
    return found


def _with_status(repository: Repository, status: requests.TagStatus) -> list[Image]:
    tagged = set(repository.tags.values())
    return [
        image
        for digest, image in repository.images.items()
        if status == "ANY" or (digest in tagged) == (status == "TAGGED")
    ]


def _image(
    request: requests.RepositoryRequest, registry_id: str, image_id: ImageId, manifest: str, media_type: str
) -> Document:
    return {
        "registryId": registry_id,
        "repositoryName": request.repository_name,
        "imageId": image_id,
        "imageManifest": manifest,
        "imageManifestMediaType": media_type,
    }


def _details(repository: Repository, images: Iterable[Image], registry_id: str) -> list[Document]:
    tags = repository.tags_by_image()
    return [_detail(repository, image, tags.get(image.manifest.digest), registry_id) for image in images]


def _detail(repository: Repository, image: Image, tags: list[str] | None, registry_id: str) -> Document:
    manifest = image.manifest
    detail: dict[str, object] = {
        "registryId": registry_id,
        "repositoryName": repository.name,
        "imageDigest": str(manifest.digest),
        "imageSizeInBytes": _size(repository, manifest),
        "imagePushedAt": image.pushed_at,
        "imageManifestMediaType": manifest.media_type,
    }
    if tags:
        detail["imageTags"] = tags
    if manifest.artifact_type:
        detail["artifactMediaType"] = manifest.artifact_type
    return detail


def _size(repository: Repository, manifest: Manifest) -> int:
    """An image's blobs together; of an index, its largest image (API reference, ImageDetail)."""
    children = (repository.images.get(child.sha256) for child in manifest.children if child.sha256)
    blobs = {reference.digest: reference.size for reference in manifest.blobs}
    return sum(blobs.values()) or max((_size(repository, child.manifest) for child in children if child), default=0)


def _failure(repository: Repository, wanted: ImageId) -> Document:
    """Why BatchGetImage or BatchDeleteImage found nothing."""
    digest, tag = wanted.image_digest, wanted.image_tag
    if not digest and not tag:
        code, reason = "MissingDigestAndTag", "Invalid request parameters: both tag and digest cannot be null"
    elif digest and not _DIGEST.fullmatch(digest):
        code, reason = "InvalidImageDigest", "Invalid request parameters: image digest should satisfy the regex"
    elif tag and not _TAG.fullmatch(tag):
        code, reason = "InvalidImageTag", "Invalid request parameters: image tag should satisfy the regex"
    elif digest and tag and repository.find(digest=digest) and repository.find(tag=tag):
        code, reason = "ImageTagDoesNotMatchDigest", f"Requested image tag '{tag}' does not match digest '{digest}'"
    else:
        code, reason = "ImageNotFound", "Requested image not found"
    return {"imageId": wanted, "failureCode": code, "failureReason": reason}


def _is_referenced(repository: Repository, image: Image) -> bool:
    digest = image.manifest.digest
    return any(child.sha256 == digest for other in repository.images.values() for child in other.manifest.children)


def _referenced(wanted: ImageId) -> Document:
    return {
        "imageId": wanted,
        "failureCode": "ImageReferencedByManifestList",
        "failureReason": f"Requested image '{wanted.image_digest}' is referenced by a manifest list",
    }
