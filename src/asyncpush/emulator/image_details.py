"""What DescribeImages and DescribeImageTags say of an image."""

from __future__ import annotations

from collections.abc import Iterable

from asyncpush.emulator.documents import Document
from asyncpush.emulator.manifests import Manifest
from asyncpush.emulator.records import Image
from asyncpush.emulator.repository import Repository


def image_details(repository: Repository, images: Iterable[Image], registry_id: str) -> list[Document]:
    """ImageDetail of each of *images*."""
    tags = repository.tags_by_image()
    return [_detail(repository, image, tags.get(image.manifest.digest), registry_id) for image in images]


def common_detail(repository: Repository, image: Image) -> dict[str, object]:
    """What a detail says wherever it stands."""
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


def _detail(repository: Repository, image: Image, tags: list[str] | None, registry_id: str) -> Document:
    detail = {"registryId": registry_id, "repositoryName": repository.name, **common_detail(repository, image)}
    if tags:
        detail["imageTags"] = tags
    if repository.registry.is_public:
        return detail
    if image.manifest.subject:
        detail["subjectManifestDigest"] = image.manifest.subject
    return {**detail, "imageStatus": "ACTIVE"}


def _size(repository: Repository, manifest: Manifest) -> int:
    """An image's blobs together; of an index, its largest image (API reference, ImageDetail)."""
    children = (repository.images.get(child.sha256) for child in manifest.children if child.sha256)
    blobs = {reference.digest: reference.size for reference in manifest.blobs}
    return sum(blobs.values()) or max((_size(repository, child.manifest) for child in children if child), default=0)
