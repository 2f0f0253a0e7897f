"""The operations that list what a repository's images are: details, ids, tags, referrers."""

from __future__ import annotations

from asyncpush.emulator import requests
from asyncpush.emulator.documents import Document, paginate
from asyncpush.emulator.errors import image_not_found, invalid_parameter
from asyncpush.emulator.image_details import common_detail, image_details
from asyncpush.emulator.manifests import Manifest
from asyncpush.emulator.records import Image
from asyncpush.emulator.registry import Target
from asyncpush.emulator.repository import Repository
from asyncpush.emulator.requests import ImageId
from asyncpush.emulator.store import Store

#: Referrers of a page where a request names no number: the most that it can name.
_REFERRERS = 50


class ImageListsApi:
    """ECR's lists of images on a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def describe(self, request: requests.DescribeImages, target: Target) -> Document:
        """DescribeImages: those named, of which none may be missing, or all, page by page."""
        registry_id = target.id
        repository = self._store.repository(target, request.repository_name)
        if request.image_ids is not None:
            if request.next_token or request.max_results:
                raise invalid_parameter("maxResults", "must not be given with imageIds")
            found = [_must_find(repository, image_id, registry_id) for image_id in request.image_ids]
            return {"imageDetails": image_details(repository, found, registry_id)}
        page = paginate(
            _filtered(repository, request.filter),
            lambda image: str(image.manifest.digest),
            request.next_token,
            request.max_results,
        )
        return {"imageDetails": image_details(repository, page.entries, registry_id), **page.members}

    async def list_ids(self, request: requests.ListImages, target: Target) -> Document:
        """ListImages: an entry for each tag, and one for each image without."""
        repository = self._store.repository(target, request.repository_name)
        tags = repository.tags_by_image()
        digests = [image.manifest.digest for image in _filtered(repository, request.filter)]
        ids = [ImageId(str(digest), tag) for digest in digests for tag in tags.get(digest, (None,))]
        page = paginate(
            ids, lambda entry: f"{entry.image_digest} {entry.image_tag or ''}", request.next_token, request.max_results
        )
        return {"imageIds": page.entries, **page.members}

    async def describe_tags(self, request: requests.DescribeImageTags, target: Target) -> Document:
        """DescribeImageTags (public); a tag's date is its image's, since no other is kept."""
        repository = self._store.repository(target, request.repository_name)
        page = paginate(list(repository.tags), str, request.next_token, request.max_results)
        found = [(tag, repository.find(tag=tag)) for tag in page.entries]
        details = [
            {"imageTag": tag, "createdAt": image.pushed_at, "imageDetail": common_detail(repository, image)}
            for tag, image in found
            if image
        ]
        return {"imageTagDetails": details, **page.members}

    async def referrers(self, request: requests.ListImageReferrers, target: Target) -> Document:
        """ListImageReferrers: the manifests whose subject is this digest, whether that is there or not."""
        repository = self._store.repository(target, request.repository_name)
        wanted = request.filter
        found = [
            manifest
            for manifest in repository.referrers(request.subject_id.image_digest)
            if not wanted.artifact_types or manifest.artifact_type in wanted.artifact_types
        ]
        shown = found if wanted.artifact_status in ("ACTIVE", "ANY") else []  # nothing is ever archived here
        size = request.max_results or _REFERRERS
        page = paginate(shown, lambda manifest: str(manifest.digest), request.next_token, size)
        return {"referrers": [_referrer(manifest) for manifest in page.entries], **page.members}


def _referrer(manifest: Manifest) -> Document:
    found: dict[str, object] = {
        "digest": str(manifest.digest),
        "mediaType": manifest.media_type,
        "size": manifest.size,
        "artifactStatus": "ACTIVE",
    }
    if manifest.artifact_type:
        found["artifactType"] = manifest.artifact_type
    return {**found, "annotations": manifest.annotations} if manifest.annotations else found


def _must_find(repository: Repository, wanted: ImageId, registry_id: str) -> Image:
    found = repository.find(digest=wanted.image_digest, tag=wanted.image_tag)
    if found is None:
        raise image_not_found(wanted.image_digest, wanted.image_tag, repository.name, registry_id)
    return found


def _filtered(repository: Repository, wanted: requests.ImageFilter) -> list[Image]:
    if wanted.image_status not in ("ACTIVE", "ANY"):
        return []  # nothing is ever archived here
    status = wanted.tag_status
    tagged = set(repository.tags.values())
    return [
        image
        for digest, image in repository.images.items()
        if status == "ANY" or (digest in tagged) == (status == "TAGGED")
    ]
