"""The image operations: put, get, delete, describe and list."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import msgspec

from asyncpush.emulator.api import requests
from asyncpush.emulator.api.requests import Document, ImageId, paginate
from asyncpush.emulator.errors import (
    image_digest_mismatch,
    image_exists,
    image_not_found,
    invalid_parameter,
    layers_not_found,
    limit_exceeded,
    referenced_images_not_found,
    tag_exists,
)
from asyncpush.emulator.limits import Limits
from asyncpush.emulator.registry import RequestTarget
from asyncpush.emulator.store.records import ImageRecord, ParsedManifest, Reference, read_manifest
from asyncpush.emulator.store.repository import RepositoryState
from asyncpush.emulator.store.state import Store, now
from asyncpush.model import Digest

_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,299}")


class ImagesApi:
    """ECR's image operations on a store."""

    def __init__(self, store: Store, limits: Limits) -> None:
        self._store = store
        self._limits = limits
        self._quirks = limits.quirks

    async def put(self, request: requests.PutImage, target: RequestTarget) -> Document:
        """PutImage: stores the exact bytes, if everything that they refer to exists."""
        name, registry_id = request.repository_name, target.id
        self._store.repository(target, name)
        raw = request.image_manifest.encode()
        manifest = await self._store.in_thread(read_manifest, raw, request.image_manifest_media_type)
        if request.image_digest not in (None, str(manifest.digest)):
            raise image_digest_mismatch(str(request.image_digest), name, registry_id)
        async with self._store.changing(target, name) as repository:
            self._check_quotas(repository, manifest, request.image_tag)
            self._check_references(repository, manifest, registry_id)
            self._check_tag(repository, manifest.digest, request.image_tag, registry_id)
            image = ImageRecord(manifest, now())
            await self._store.in_thread(repository.put, image, raw, request.image_tag)
        image_id = ImageId(str(manifest.digest), request.image_tag)
        return {"image": _image(request, registry_id, image_id, request.image_manifest, manifest.media_type)}

    async def get(self, request: requests.BatchGetImage, target: RequestTarget) -> Document:
        """BatchGetImage; never converts a manifest, whatever media types are accepted."""
        registry_id = target.id
        repository = self._store.repository(target, request.repository_name)
        images: list[Document] = []
        failures: list[Document] = []
        for requested in request.image_ids:
            found = repository.find(digest=requested.image_digest, tag=requested.image_tag)
            if found is None or not self._is_accepted(found, request.accepted_media_types):
                failures.append(_failure(repository, requested))
                continue
            if repository.status(found) == "ARCHIVED":
                failures.append(_inaccessible(requested))
                continue
            raw = await self._store.in_thread(repository.read_manifest, found)
            tags = repository.tags_by_image().get(found.manifest.digest, ())
            image_id = ImageId(str(found.manifest.digest), requested.image_tag or next(iter(tags), None))
            images.append(_image(request, registry_id, image_id, raw.decode(), found.manifest.media_type))
        return {"images": images, "failures": failures}

    async def update_storage_class(self, request: requests.UpdateImageStorageClass, target: RequestTarget) -> Document:
        """UpdateImageStorageClass; an image is restored at once."""
        async with self._store.changing(target, request.repository_name) as repository:
            image = must_find(repository, request.image_id, target.id)
            archived = dict(repository.record.archived)
            archived.pop(digest := str(image.manifest.digest), None)
            if request.target_storage_class == "ARCHIVE":
                archived[digest] = repository.record.archived.get(digest, now())
            record = msgspec.structs.replace(repository.record, archived=archived)
            await self._store.in_thread(repository.change, record)
        return {
            "registryId": target.id,
            "repositoryName": request.repository_name,
            "imageId": request.image_id,
            "imageStatus": repository.status(image),
        }

    async def delete(self, request: requests.BatchDeleteImage, target: RequestTarget) -> Document:
        """BatchDeleteImage: a tag by its name, an image with all its tags by its digest."""
        deleted: list[ImageId] = []
        failures: list[Document] = []
        async with self._store.changing(target, request.repository_name) as repository:
            for requested in request.image_ids:
                found = repository.find(digest=requested.image_digest, tag=requested.image_tag)
                if found is None:
                    failures.append(_failure(repository, requested))
                elif not requested.image_tag and repository.is_child(found.manifest.digest):
                    failures.append(_referenced(requested))
                else:
                    deleted += await self._delete(repository, found.manifest.digest, requested.image_tag)
        return {"imageIds": deleted, "failures": failures}

    async def _delete(self, repository: RepositoryState, digest: Digest, tag: str | None) -> list[ImageId]:
        if tag:
            await self._store.in_thread(repository.untag, tag)
            return [ImageId(str(digest), tag)]
        tags = repository.tags_by_image().get(digest, ())
        await self._store.in_thread(repository.remove, [digest])
        return [ImageId(str(digest), tag) for tag in tags] or [ImageId(str(digest))]

    def _check_quotas(self, repository: RepositoryState, manifest: ParsedManifest, tag: str | None) -> None:
        quotas, digest = self._limits.quotas(repository.registry), manifest.digest
        if not manifest.layer_count and manifest.blobs and self._quirks.oci_conformance == "no":
            raise invalid_parameter("ImageManifest", "Image has to have at least 1 layer")
        if quotas.layers and manifest.layer_count > quotas.layers:
            raise invalid_parameter("ImageManifest", "Limit on number of layers per image exceeded")
        if digest not in repository.images and len(repository.images) >= quotas.images:
            raise limit_exceeded(f"The maximum number of images in a repository, {quotas.images}, has been reached")
        others = sum(1 for name, named in repository.tags.items() if named == digest and name != tag)
        if tag and others >= quotas.tags:
            raise limit_exceeded(f"The maximum number of tags of an image, {quotas.tags}, has been reached")

    def _check_references(self, repository: RepositoryState, manifest: ParsedManifest, registry_id: str) -> None:
        layers_present = (reference.sha256 in repository.layers for reference in manifest.blobs)
        if missing := _missing(manifest.blobs, layers_present):
            raise layers_not_found(missing, repository.name, registry_id)
        images_present = (reference.sha256 in repository.images for reference in manifest.children)
        missing = _missing(manifest.children, images_present)
        if manifest.subject and self._quirks.missing_subject == "refused":
            missing += [] if repository.find(digest=manifest.subject) else [manifest.subject]
        if missing:
            raise referenced_images_not_found(missing, repository.name, registry_id)

    def _check_tag(self, repository: RepositoryState, digest: Digest, tag: str | None, registry_id: str) -> None:
        named = repository.tags.get(tag) if tag else None
        guarded = tag is not None and named is not None and repository.is_immutable(tag)
        if digest in repository.images and (tag is None or named == digest):
            if tag and guarded and self._quirks.same_immutable_tag == "image-tag-already-exists":
                raise tag_exists(tag, repository.name)
            raise image_exists(digest, tag, repository.name, registry_id)
        if tag and guarded:
            raise tag_exists(tag, repository.name)

    def _is_accepted(self, image: ImageRecord, accepted: Sequence[str] | None) -> bool:
        given = self._quirks.unaccepted_manifest == "given" or accepted is None
        return given or image.manifest.media_type in (accepted or ())


def _missing(references: Iterable[Reference], present: Iterable[bool]) -> list[str]:
    missing = (reference.digest for reference, is_present in zip(references, present, strict=True) if not is_present)
    return list(dict.fromkeys(missing))


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


def _failure(repository: RepositoryState, requested: ImageId) -> Document:
    """The failure of BatchGetImage or BatchDeleteImage for an image that was not found."""
    digest, tag = requested.image_digest, requested.image_tag
    if not digest and not tag:
        code, reason = "MissingDigestAndTag", "Invalid request parameters: both tag and digest cannot be null"
    elif digest and not requests.DIGEST_FORM.fullmatch(digest):
        code, reason = "InvalidImageDigest", "Invalid request parameters: image digest should satisfy the regex"
    elif tag and not _TAG.fullmatch(tag):
        code, reason = "InvalidImageTag", "Invalid request parameters: image tag should satisfy the regex"
    elif digest and tag and repository.find(digest=digest) and repository.find(tag=tag):
        code, reason = "ImageTagDoesNotMatchDigest", f"Requested image tag '{tag}' does not match digest '{digest}'"
    else:
        code, reason = "ImageNotFound", "Requested image not found"
    return {"imageId": requested, "failureCode": code, "failureReason": reason}


def _referenced(requested: ImageId) -> Document:
    return {
        "imageId": requested,
        "failureCode": "ImageReferencedByManifestList",
        "failureReason": f"Requested image '{requested.image_digest}' is referenced by a manifest list",
    }


def _inaccessible(requested: ImageId) -> Document:
    return {
        "imageId": requested,
        "failureCode": "ImageInaccessible",
        "failureReason": "Requested image is archived",
    }


#: Referrers of a page where a request gives no maximum: the largest one allowed.
_REFERRERS = 50


class ImageListsApi:
    """ECR's lists of images on a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def describe(self, request: requests.DescribeImages, target: RequestTarget) -> Document:
        """DescribeImages: the named images, all of which must exist, or all images page by page."""
        registry_id = target.id
        repository = self._store.repository(target, request.repository_name)
        if request.image_ids is not None:
            if request.next_token or request.max_results:
                raise invalid_parameter("maxResults", "must not be given with imageIds")
            found = [must_find(repository, image_id, registry_id) for image_id in request.image_ids]
            return {"imageDetails": image_details(repository, found, registry_id)}
        page = paginate(
            _filtered(repository, request.filter),
            lambda image: str(image.manifest.digest),
            request.next_token,
            request.max_results,
        )
        return {"imageDetails": image_details(repository, page.entries, registry_id), **page.members}

    async def list_ids(self, request: requests.ListImages, target: RequestTarget) -> Document:
        """ListImages: an entry for each tag, and one for each untagged image."""
        repository = self._store.repository(target, request.repository_name)
        tags = repository.tags_by_image()
        digests = [image.manifest.digest for image in _filtered(repository, request.filter)]
        ids = [ImageId(str(digest), tag) for digest in digests for tag in tags.get(digest, (None,))]
        page = paginate(
            ids, lambda entry: f"{entry.image_digest} {entry.image_tag or ''}", request.next_token, request.max_results
        )
        return {"imageIds": page.entries, **page.members}

    async def describe_tags(self, request: requests.DescribeImageTags, target: RequestTarget) -> Document:
        """DescribeImageTags (public); a tag has its image's date, since no other is stored."""
        repository = self._store.repository(target, request.repository_name)
        page = paginate(list(repository.tags), str, request.next_token, request.max_results)
        found = [(tag, repository.find(tag=tag)) for tag in page.entries]
        details = [
            {"imageTag": tag, "createdAt": image.pushed_at, "imageDetail": common_detail(repository, image)}
            for tag, image in found
            if image
        ]
        return {"imageTagDetails": details, **page.members}

    async def referrers(self, request: requests.ListImageReferrers, target: RequestTarget) -> Document:
        """ListImageReferrers: the manifests whose subject is this digest, whether or not that exists."""
        repository = self._store.repository(target, request.repository_name)
        requested = request.filter
        found = [
            manifest
            for manifest in repository.referrers(request.subject_id.image_digest)
            if not requested.artifact_types or manifest.artifact_type in requested.artifact_types
        ]
        status = requested.artifact_status
        shown = [manifest for manifest in found if status in ("ANY", _artifact_status(repository, manifest))]
        size = request.max_results or _REFERRERS
        page = paginate(shown, lambda manifest: str(manifest.digest), request.next_token, size)
        return {"referrers": [_referrer(repository, manifest) for manifest in page.entries], **page.members}


def _artifact_status(repository: RepositoryState, manifest: ParsedManifest) -> str:
    return repository.status(repository.images[manifest.digest])


def _referrer(repository: RepositoryState, manifest: ParsedManifest) -> Document:
    found: dict[str, object] = {
        "digest": str(manifest.digest),
        "mediaType": manifest.media_type,
        "size": manifest.size,
        "artifactStatus": _artifact_status(repository, manifest),
    }
    if manifest.artifact_type:
        found["artifactType"] = manifest.artifact_type
    return {**found, "annotations": manifest.annotations} if manifest.annotations else found


def must_find(repository: RepositoryState, requested: ImageId, registry_id: str) -> ImageRecord:
    """The image that a request names.

    Raises:
        AwsError: ImageNotFoundException.
    """
    found = repository.find(digest=requested.image_digest, tag=requested.image_tag)
    if found is None:
        raise image_not_found(requested.image_digest, requested.image_tag, repository.name, registry_id)
    return found


def _filtered(repository: RepositoryState, requested: requests.ImageFilter) -> list[ImageRecord]:
    status = requested.tag_status
    tagged = set(repository.tags.values())
    return [
        image
        for digest, image in repository.images.items()
        if (status == "ANY" or (digest in tagged) == (status == "TAGGED"))
        and requested.image_status in ("ANY", repository.status(image))
    ]


def image_details(repository: RepositoryState, images: Iterable[ImageRecord], registry_id: str) -> list[Document]:
    """ImageDetail of each of *images*."""
    tags = repository.tags_by_image()
    return [_detail(repository, image, tags.get(image.manifest.digest), registry_id) for image in images]


def common_detail(repository: RepositoryState, image: ImageRecord) -> dict[str, object]:
    """The members of an image's details that all operations share."""
    manifest = image.manifest
    detail: dict[str, object] = {
        "imageDigest": str(manifest.digest),
        "imageSizeInBytes": _size(repository, manifest),
        "imagePushedAt": image.pushed_at,
        "imageManifestMediaType": manifest.media_type,
    }
    if manifest.artifact_type:
        detail["artifactMediaType"] = manifest.artifact_type
    return detail


def _detail(repository: RepositoryState, image: ImageRecord, tags: list[str] | None, registry_id: str) -> Document:
    detail = {"registryId": registry_id, "repositoryName": repository.name, **common_detail(repository, image)}
    if tags:
        detail["imageTags"] = tags
    if repository.registry.is_public:
        return detail
    if image.manifest.subject:
        detail["subjectManifestDigest"] = image.manifest.subject
    archived_at = repository.record.archived.get(str(image.manifest.digest))
    if archived_at is not None:
        detail["lastArchivedAt"] = archived_at
    return {**detail, "imageStatus": repository.status(image)}


def _size(repository: RepositoryState, manifest: ParsedManifest) -> int:
    """The size of an image's blobs; of an index, that of its largest image (API reference, ImageDetail)."""
    children = (repository.images.get(child.sha256) for child in manifest.children if child.sha256)
    blobs = {reference.digest: reference.size for reference in manifest.blobs}
    return sum(blobs.values()) or max((_size(repository, child.manifest) for child in children if child), default=0)
