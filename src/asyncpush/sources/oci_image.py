"""The manifests and blobs of an OCI layout: read and checked in worker threads, every blob seen to be there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from anyio import to_thread

from asyncpush.errors import DigestMismatchError, SourceError, SourceNotFoundError
from asyncpush.manifest import Manifest, parse_manifest
from asyncpush.model import Descriptor, Digest
from asyncpush.protocols import Blob
from asyncpush.settings import MAX_MANIFEST_SIZE
from asyncpush.sources.content import Content, ContentBlob, Store, read_content
from asyncpush.sources.loader import empty_blob


@dataclass(frozen=True, slots=True)
class LayoutImages:
    """A layout or archive that keeps blobs by digest (``loader.ImageStore``).

    Attributes:
        store: where blobs lie, under ``blobs/sha256/``.
    """

    store: Store
    _manifests: dict[Descriptor, Manifest] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """How to call it in errors."""
        return self.store.label

    async def manifest(self, descriptor: Descriptor) -> Manifest:
        """See ``loader.ImageStore``."""
        if descriptor not in self._manifests:
            self._manifests[descriptor] = await to_thread.run_sync(self._read, descriptor)
        return self._manifests[descriptor]

    async def config(self, descriptor: Descriptor) -> bytes:
        """See ``loader.ImageStore``."""
        return await to_thread.run_sync(lambda: read_content(self._present(descriptor, "config")))

    async def blobs(self, named: Sequence[tuple[str, Descriptor]]) -> Sequence[Blob | SourceError]:
        """See ``loader.ImageStore``."""
        return await to_thread.run_sync(lambda: [self._blob(kind, descriptor) for kind, descriptor in named])

    def _read(self, descriptor: Descriptor) -> Manifest:
        what = f"manifest {descriptor.digest.short} in {self.label}"
        raw = read_content(self._present(descriptor, "manifest"), MAX_MANIFEST_SIZE)
        if Digest.of(raw) != descriptor.digest:
            raise DigestMismatchError(what, descriptor.digest, Digest.of(raw))
        return parse_manifest(raw, media_type=descriptor.media_type, name=what)

    def _blob(self, kind: str, descriptor: Descriptor) -> Blob | SourceError:
        try:
            return ContentBlob(f"{kind} {descriptor.digest.short}", descriptor, self._present(descriptor, kind))
        except SourceError as error:
            return error

    def _present(self, descriptor: Descriptor, what: str) -> Content:
        content = self.store.find(f"blobs/sha256/{descriptor.digest.hex}")
        if content is None:
            raise SourceNotFoundError(
                f"{self.label} lacks {what} {descriptor.digest}",
                hint="copy the image with all its platforms and blobs, or choose one with --platform",
            )
        if content.size != descriptor.size:
            raise DigestMismatchError(
                f"{what} {descriptor.digest.short} in {self.label}", descriptor.size, content.size
            )
        if not content.size:
            raise empty_blob(what, descriptor, self.label)
        return content
