"""One repository: an OCI image layout on disk, and an index of it in memory."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import anyio
import msgspec

from asyncpush.emulator.disk import Disk
from asyncpush.emulator.manifests import Manifest, read_manifest, sha256_digest
from asyncpush.emulator.requests import ExclusionFilter, Mutability
from asyncpush.model import Digest

#: Names that no component of a repository's name can be, since those begin with a letter or digit.
LAYOUT = "_layout"
RECORD = "_repository.json"

_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
_REF_NAME = "org.opencontainers.image.ref.name"
_HEX = re.compile(r"[a-f0-9]{64}")


class RepositoryRecord(msgspec.Struct, rename="camel", frozen=True):
    """What a repository is beside its images (``_repository.json``)."""

    name: str
    created_at: float
    image_tag_mutability: Mutability = "MUTABLE"
    exclusion_filters: tuple[ExclusionFilter, ...] = ()
    scan_on_push: bool = False


class _Entry(msgspec.Struct, rename="camel", omit_defaults=True):
    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = {}


class _Index(msgspec.Struct, rename="camel"):
    schema_version: int = 2
    media_type: str = _INDEX_TYPE
    manifests: list[_Entry] = []


@dataclass(frozen=True, slots=True)
class Image:
    """A manifest that the repository holds, and when it came, in seconds since 1970."""

    manifest: Manifest
    pushed_at: float


class Repository:
    """A repository's state. What reads it never blocks; what changes it blocks, and is called under ``lock``.

    ``images`` and ``tags`` are replaced as a whole, after the disk has them: whoever reads sees one state of both.

    Args:
        directory: ``<data>/repositories/<name>``.
        record: its name and settings.
        disk: how to write.

    Attributes:
        images: by digest, oldest first.
        tags: the digest that each names.
        layers: the size in bytes of each blob that was completed as a layer.
        media_types: what the images call their blobs.
    """

    def __init__(self, directory: Path, record: RepositoryRecord, disk: Disk) -> None:
        self.record = record
        self.lock = anyio.Lock()
        self.images: dict[Digest, Image] = {}
        self.tags: dict[str, Digest] = {}
        self.layers: dict[Digest, int] = {}
        self.media_types: dict[Digest, str] = {}
        self._directory = directory
        self._layout = directory / LAYOUT
        self._blobs = self._layout / "blobs" / "sha256"
        self._disk = disk

    @property
    def name(self) -> str:
        """Its name, with slashes."""
        return self.record.name

    def create(self) -> None:
        """Lay it out on disk; it exists once its record does."""
        if self._layout.exists():
            shutil.rmtree(self._layout)
        self._blobs.mkdir(parents=True)
        self._disk.replace(self._layout / "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        self._write_index({}, {})
        self._disk.replace(self._directory / RECORD, msgspec.json.encode(self.record))

    def load(self) -> None:
        """Read it from disk.

        Raises:
            OSError: a file can't be read.
            ValueError: index.json or a manifest is damaged.
        """
        index = msgspec.json.decode((self._layout / "index.json").read_bytes(), type=_Index)
        for entry in index.manifests:
            digest = Digest.parse(entry.digest)
            if digest not in self.images:
                self.images[digest] = self._load_image(digest, entry.media_type)
            if tag := entry.annotations.get(_REF_NAME):
                self.tags[tag] = digest
        named = {reference.sha256 for image in self.images.values() for reference in image.manifest.blobs}
        for file in self._blobs.iterdir():
            if not _HEX.fullmatch(file.name):
                file.unlink()
            elif (digest := Digest(file.name)) not in self.images or digest in named:
                self.layers[digest] = file.stat().st_size
        for image in self.images.values():
            self._note_media_types(image.manifest)

    def blob_path(self, digest: Digest) -> Path:
        """Where a blob or manifest lies."""
        return self._blobs / digest.hex

    def read_manifest(self, image: Image) -> bytes:
        """An image's exact bytes; blocks."""
        return self.blob_path(image.manifest.digest).read_bytes()

    def find(self, *, digest: str | None = None, tag: str | None = None) -> Image | None:
        """The image of a digest or tag; of both, only if they agree."""
        named = self.tags.get(tag) if tag else None
        if digest:
            wanted = sha256_digest(digest)
            return self.images.get(wanted) if wanted and (not tag or named == wanted) else None
        return self.images.get(named) if named else None

    def tags_by_image(self) -> dict[Digest, list[str]]:
        """The tags that name each image, sorted; images without are left out."""
        return _tags_by_image(self.tags)

    def is_immutable(self, tag: str) -> bool:
        """Whether *tag*, once given, must stay with its image (imageTagMutability and its exclusion filters)."""
        mutability = self.record.image_tag_mutability
        excluded = mutability.endswith("_WITH_EXCLUSION") and any(
            fnmatchcase(tag, exclusion.filter) for exclusion in self.record.exclusion_filters
        )
        return mutability.startswith("IMMUTABLE") != excluded

    def add_layer(self, source: Path, digest: Digest) -> None:
        """Take over the file of a completed upload."""
        size = source.stat().st_size
        self._disk.move(source, self.blob_path(digest))
        self.layers[digest] = size

    def put(self, image: Image, raw: bytes, tag: str | None) -> None:
        """Hold an image, under *tag* if given; the tag leaves the image that had it."""
        digest = image.manifest.digest
        if digest not in self.images:
            self._disk.replace(self.blob_path(digest), raw)
        images = {**self.images, digest: self.images.get(digest, image)}
        tags = {**self.tags, tag: digest} if tag else self.tags
        self._write_index(images, tags)
        self.images, self.tags = images, tags
        self._note_media_types(image.manifest)

    def untag(self, tag: str) -> None:
        """Take a tag off its image, and the image with it if it was its last."""
        digest = self.tags[tag]
        tags = {name: named for name, named in self.tags.items() if name != tag}
        if digest in tags.values():
            self._write_index(self.images, tags)
            self.tags = tags
        else:
            self.remove(digest)

    def remove(self, digest: Digest) -> None:
        """Remove an image and its tags; its layers stay, as ECR keeps them for a while."""
        images = {key: image for key, image in self.images.items() if key != digest}
        tags = {tag: named for tag, named in self.tags.items() if named != digest}
        self._write_index(images, tags)
        self.images, self.tags = images, tags
        if digest not in self.layers:
            self.blob_path(digest).unlink()

    def delete(self) -> None:
        """Remove it from the disk; it is gone once its record is."""
        (self._directory / RECORD).unlink()
        shutil.rmtree(self._layout)

    def _load_image(self, digest: Digest, media_type: str) -> Image:
        path = self.blob_path(digest)
        raw = path.read_bytes()
        manifest = read_manifest(raw, media_type)
        if manifest.digest != digest:
            raise ValueError(f"{digest} has other bytes than it should")
        return Image(manifest, path.stat().st_mtime)

    def _note_media_types(self, manifest: Manifest) -> None:
        for reference in manifest.blobs:
            if digest := reference.sha256:
                self.media_types[digest] = reference.media_type

    def _write_index(self, images: dict[Digest, Image], tags: dict[str, Digest]) -> None:
        index = _Index(manifests=list(_entries(images, tags)))
        self._disk.replace(self._layout / "index.json", msgspec.json.encode(index))


def _tags_by_image(tags: dict[str, Digest]) -> dict[Digest, list[str]]:
    names: dict[Digest, list[str]] = {}
    for tag in sorted(tags):
        names.setdefault(tags[tag], []).append(tag)
    return names


def _entries(images: dict[Digest, Image], tags: dict[str, Digest]) -> Iterator[_Entry]:
    names = _tags_by_image(tags)
    for digest, image in images.items():
        manifest = image.manifest
        for labels in [{_REF_NAME: tag} for tag in names.get(digest, ())] or [{}]:
            yield _Entry(manifest.media_type, str(digest), manifest.size, labels)
