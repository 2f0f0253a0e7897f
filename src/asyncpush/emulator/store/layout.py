"""A repository's files: an OCI image layout, its index.json a view of the catalog."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from asyncpush.emulator.store.disk import Disk, is_shell
from asyncpush.emulator.store.records import ImageRecord
from asyncpush.model import Digest

#: A name that no component of a repository's name can be, since those begin with a letter or digit.
LAYOUT = "_layout"

_LOG = logging.getLogger(__name__)

_MARK = b'{"imageLayoutVersion":"1.0.0"}'
_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
_REF_NAME = "org.opencontainers.image.ref.name"
_HEX = re.compile(r"[a-f0-9]{64}")


class _Entry(msgspec.Struct, rename="camel", omit_defaults=True):
    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = {}


class _Index(msgspec.Struct, rename="camel"):
    schema_version: int = 2
    media_type: str = _INDEX_TYPE
    manifests: list[_Entry] = []


class Layout:
    """The files of one repository; its methods block and raise OSError.

    Args:
        path: the layout's directory.
        disk: how to write.
    """

    def __init__(self, path: Path, disk: Disk) -> None:
        self.path = path
        self.blobs = path / "blobs" / "sha256"
        self._disk = disk

    @property
    def mark_path(self) -> Path:
        """The file that says that this is a layout."""
        return self.path / "oci-layout"

    @property
    def index_path(self) -> Path:
        """``index.json``."""
        return self.path / "index.json"

    def blob_path(self, digest: Digest) -> Path:
        """Where a blob or manifest lies."""
        return self.blobs / digest.hex

    def create(self) -> None:
        """Lay it out, empty; what a killed emulator left of it goes."""
        self.delete()
        self._disk.make_directory(self.blobs)
        self.mark()
        self._disk.replace(self.index_path, index_bytes({}, {}))

    def mark(self) -> None:
        """Write the file that says that this is a layout."""
        self._disk.replace(self.mark_path, _MARK)

    def is_marked(self) -> bool:
        """Whether that file is there and right."""
        return _content(self.mark_path) == _MARK

    def delete(self) -> None:
        """Remove all of it; what can't be removed now is removed when an emulator starts."""
        shutil.rmtree(self.path, ignore_errors=True)

    def adopt(self, source: Path, digest: Digest) -> None:
        """Take over a file that was written and synced elsewhere in the data directory."""
        self._disk.move(source, self.blob_path(digest))

    def link(self, source: Path, digest: Digest) -> bool:
        """Give another layout's blob a second name here; False where the file system can't, or the blob is gone."""
        try:
            self._disk.link(source, self.blob_path(digest))
        except OSError:
            return False
        return True

    def give_back(self, digest: Digest, source: Path) -> None:
        """Undo ``adopt``."""
        self._disk.move(self.blob_path(digest), source)

    def is_shell(self, digest: Digest) -> bool:
        """Whether a blob has a length and no bytes, where layers are discarded."""
        return self._disk.discard and is_shell(self.blob_path(digest))

    def write(self, digest: Digest, raw: bytes) -> None:
        """Put a manifest's bytes in their place."""
        self._disk.replace(self.blob_path(digest), raw)

    def remove(self, digest: Digest) -> None:
        """Remove a blob, if it is there."""
        self.blob_path(digest).unlink(missing_ok=True)

    def has_index(self, index: bytes) -> bool:
        """Whether index.json says this."""
        return _content(self.index_path) == index

    def show(self, index: bytes) -> None:
        """Write index.json again; where the disk is full it stays behind, until the next change or start."""
        try:
            Disk(fsync=False).replace(self.index_path, index)
        except OSError as error:
            _LOG.warning("%s is out of date: %s", self.index_path, error)


def index_bytes(images: Mapping[Digest, ImageRecord], tags: Mapping[str, Digest]) -> bytes:
    """index.json of a repository: an entry for each tag, and one for each image without."""
    return msgspec.json.encode(_Index(manifests=list(_entries(images, tags))))


def tags_by_image(tags: Mapping[str, Digest]) -> dict[Digest, list[str]]:
    """The tags that name each image, sorted; images without are left out."""
    names: dict[Digest, list[str]] = {}
    for tag in sorted(tags):
        names.setdefault(tags[tag], []).append(tag)
    return names


def is_blob_name(name: str) -> bool:
    """Whether a file of this name, among blobs, is one."""
    return _HEX.fullmatch(name) is not None


def _entries(images: Mapping[Digest, ImageRecord], tags: Mapping[str, Digest]) -> Iterator[_Entry]:
    names = tags_by_image(tags)
    for digest, image in images.items():
        manifest = image.manifest
        for labels in [{_REF_NAME: tag} for tag in names.get(digest, ())] or [{}]:
            yield _Entry(manifest.media_type, str(digest), manifest.size, labels)


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
