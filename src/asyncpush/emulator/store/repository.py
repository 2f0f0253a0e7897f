"""A repository: its state in memory, which changes only after the catalog and the disk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

import anyio
import msgspec

from asyncpush.emulator.registry import RegistryId, RequestTarget
from asyncpush.emulator.store.catalog import Catalog
from asyncpush.emulator.store.disk import Layout, index_bytes, tags_by_image
from asyncpush.emulator.store.records import ImageRecord, ParsedManifest, RepositoryRecord, sha256_digest
from asyncpush.emulator.store.uploads import StagedUpload
from asyncpush.model import Digest


class RepositoryState:
    """A repository's state. Methods that read never block; methods that change it block, and are called under ``lock``.

    ``record``, ``images`` and ``tags`` are replaced as a whole, after the disk has them: readers see one state.

    Args:
        registry: the registry that it is in.
        record: its name and settings.
        layout: its files.
        catalog: the catalog that it is in.
        key: its key there; 0 until it is created.

    Attributes:
        images: by digest, oldest first.
        tags: the digest that each tag names.
        layers: the size in bytes of each blob that was completed as a layer.
        media_types: what the images call their blobs.
    """

    def __init__(
        self, registry: RegistryId, record: RepositoryRecord, layout: Layout, catalog: Catalog, *, key: int = 0
    ) -> None:
        self.registry = registry
        self.record = record
        self.layout = layout
        self.key = key
        self.lock = anyio.Lock()
        self.images: dict[Digest, ImageRecord] = {}
        self.tags: dict[str, Digest] = {}
        self.layers: dict[Digest, int] = {}
        self.media_types: dict[Digest, str] = {}
        self._catalog = catalog
        self._references: Counter[Digest] = Counter()

    @property
    def name(self) -> str:
        """Its name, with slashes."""
        return self.record.name

    @property
    def target(self) -> RequestTarget:
        """Its registry, as requests without a registry id name it."""
        return RequestTarget(self.registry, self.registry.account)

    @property
    def index(self) -> bytes:
        """The content that its index.json should have."""
        return index_bytes(self.images, self.tags)

    def create(self) -> None:
        """Create it on disk, and then in the catalog."""
        self.layout.create()
        try:
            with self._catalog.writing() as writes:
                key = writes.add_repository(self.registry, self.record)
        except OSError:
            self.layout.delete()
            raise
        self.key = key

    def restore(self, image: ImageRecord) -> None:
        """Load an image from the catalog."""
        self.images[image.manifest.digest] = image
        self._note(image.manifest)

    def blob_path(self, digest: Digest) -> Path:
        """Where a blob or manifest lies."""
        return self.layout.blob_path(digest)

    def is_discarded(self, digest: Digest) -> bool:
        """Whether the bytes of a layer were discarded; blocks."""
        return self.layout.is_shell(digest)

    def read_manifest(self, image: ImageRecord) -> bytes:
        """An image's exact bytes; blocks."""
        return self.blob_path(image.manifest.digest).read_bytes()

    def find(self, *, digest: str | None = None, tag: str | None = None) -> ImageRecord | None:
        """The image of a digest or tag; given both, only if they agree."""
        named = self.tags.get(tag) if tag else None
        if digest:
            parsed = sha256_digest(digest)
            return self.images.get(parsed) if parsed and (not tag or named == parsed) else None
        return self.images.get(named) if named else None

    def tags_by_image(self) -> dict[Digest, list[str]]:
        """The sorted tags of each tagged image."""
        return tags_by_image(self.tags)

    def is_immutable(self, tag: str) -> bool:
        """Whether *tag* must stay with its image (imageTagMutability and its exclusion filters)."""
        mutability = self.record.mutability
        excluded = mutability.endswith("_WITH_EXCLUSION") and any(
            fnmatchcase(tag, exclusion.filter) for exclusion in self.record.exclusion_filters
        )
        return mutability.startswith("IMMUTABLE") != excluded

    def is_referenced(self, layer: Digest) -> bool:
        """Whether an image of the repository refers to this layer."""
        return self._references[layer] > 0

    def status(self, image: ImageRecord) -> str:
        """The imageStatus of an image: ``ACTIVE`` or ``ARCHIVED``."""
        return "ARCHIVED" if str(image.manifest.digest) in self.record.archived else "ACTIVE"

    def is_child(self, digest: Digest) -> bool:
        """Whether an index of the repository refers to this image."""
        return any(child.sha256 == digest for image in self.images.values() for child in image.manifest.children)

    def referrers(self, subject: str) -> list[ParsedManifest]:
        """The manifests whose subject has this digest, oldest first."""
        return [image.manifest for image in self.images.values() if image.manifest.subject == subject]

    def change(self, record: RepositoryRecord) -> None:
        """Replace its settings."""
        with self._catalog.writing() as writes:
            writes.save_repository(self.key, record)
        self.record = record

    def add_layer(self, upload: StagedUpload, digest: Digest, *, remember: bool = False) -> None:
        """Turn a finished upload into a layer.

        Args:
            upload: the upload; synced to the disk.
            digest: of its bytes.
            remember: whether the catalog remembers which layer the upload became.
        """
        size = upload.record.received
        is_stored = digest in self.images  # a layer can have the bytes of a manifest
        if not is_stored:
            self.layout.adopt(upload.path, digest)
        try:
            with self._catalog.writing() as writes:
                writes.add_layer(self.key, digest, size)
                writes.remove_upload(upload.id)
                if remember:
                    writes.remember(upload.id, self.key, digest)
        except OSError:
            if not is_stored:
                self.layout.give_back(digest, upload.path)
            raise
        self.layers[digest] = size
        upload.discard()

    def mount(self, source: RepositoryState, digest: Digest) -> bool:
        """Add a layer of another repository; returns False where the file system has no hard links."""
        is_stored = digest in self.images
        if not is_stored and not self.layout.link(source.blob_path(digest), digest):
            return False
        size = source.layers[digest]
        try:
            with self._catalog.writing() as writes:
                writes.add_layer(self.key, digest, size)
        except OSError:
            self._forget(digest)
            raise
        self.layers[digest] = size
        return True

    def put(self, image: ImageRecord, raw: bytes, tag: str | None) -> None:
        """Add an image, under *tag* if given, which moves from the image that had it."""
        digest = image.manifest.digest
        new = digest not in self.images
        if new:
            self.layout.write(digest, raw)
        try:
            with self._catalog.writing() as writes:
                if new:
                    writes.add_image(self.key, image)
                if tag:
                    writes.set_tag(self.key, tag, digest)
        except OSError:
            self._forget(digest)
            raise
        images = {**self.images, digest: image} if new else self.images
        self._show(images, {**self.tags, tag: digest} if tag else self.tags)
        if new:
            self._note(image.manifest)

    def untag(self, tag: str) -> None:
        """Remove a tag, and its image if that was its last tag and no index refers to it."""
        digest = self.tags[tag]
        tags = {name: named for name, named in self.tags.items() if name != tag}
        if digest not in tags.values() and not self.is_child(digest):
            self.remove([digest])
            return
        with self._catalog.writing() as writes:
            writes.remove_tag(self.key, tag)
        self._show(self.images, tags)

    def remove(self, digests: Iterable[Digest]) -> None:
        """Remove images and their tags; their layers stay, as ECR keeps them for a while."""
        removed = set(digests)
        names = set(map(str, removed))
        archived = {name: since for name, since in self.record.archived.items() if name not in names}
        record = msgspec.structs.replace(self.record, archived=archived)
        with self._catalog.writing() as writes:
            for digest in removed:
                writes.remove_image(self.key, digest)
            if record != self.record:
                writes.save_repository(self.key, record)
        self.record = record
        for image in (image for key, image in self.images.items() if key in removed):
            self._references.subtract(image.manifest.named.keys())
        images = {key: image for key, image in self.images.items() if key not in removed}
        self._show(images, {tag: named for tag, named in self.tags.items() if named not in removed})
        for digest in removed:
            self._forget(digest)

    def delete(self) -> None:
        """Remove it from the catalog, and then from the disk."""
        with self._catalog.writing() as writes:
            writes.remove_repository(self.key)
        self.layout.delete()

    def _show(self, images: dict[Digest, ImageRecord], tags: dict[str, Digest]) -> None:
        self.images, self.tags = images, tags
        self.layout.show(self.index)

    def _forget(self, digest: Digest) -> None:
        """Remove a manifest's file, unless an image or layer needs it."""
        if digest not in self.images and digest not in self.layers:
            self.layout.remove(digest)

    def _note(self, manifest: ParsedManifest) -> None:
        named = manifest.named
        self.media_types.update(named)
        self._references.update(named.keys())
