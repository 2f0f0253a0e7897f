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
from asyncpush.sources.blobs import BlobStore, Content, ContentBlob, read_content
from asyncpush.sources.loader import empty_blob


def find_blob(store: BlobStore, digest: Digest) -> Content | None:
    """The blob in a store that keeps them by digest; None if it isn't there."""
    return store.find(f"blobs/sha256/{digest.hex}")


def read_manifest(store: BlobStore, reference: Descriptor | Digest, content: Content) -> Manifest:
    """Read a manifest of a store that keeps blobs by digest.

    Raises:
        ManifestError: it is malformed, or of a type that ECR does not take.
        DigestMismatchError: its bytes are not those that *reference* points at.
    """
    digest = reference if isinstance(reference, Digest) else reference.digest
    what = f"manifest {digest.short} in {store.label}"
    raw = read_content(content, MAX_MANIFEST_SIZE)
    if Digest.of(raw) != digest:
        raise DigestMismatchError(what, digest, Digest.of(raw))
    media_type = None if isinstance(reference, Digest) else reference.media_type
    return parse_manifest(raw, media_type=media_type, name=what)


@dataclass(frozen=True, slots=True)
class LayoutImages:
    """A layout or archive that keeps blobs by digest (``loader.ImageStore``).

    Attributes:
        store: where blobs lie, under ``blobs/sha256/``.
    """

    store: BlobStore
    _manifests: dict[Descriptor | Digest, Manifest] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """How to call it in errors."""
        return self.store.label

    async def manifest(self, reference: Descriptor | Digest) -> Manifest:
        """See ``loader.ImageStore``."""
        if reference not in self._manifests:
            self._manifests[reference] = await to_thread.run_sync(self._read, reference)
        return self._manifests[reference]

    async def config(self, descriptor: Descriptor) -> bytes:
        """See ``loader.ImageStore``."""
        return await to_thread.run_sync(lambda: read_content(self._present(descriptor, "config")))

    async def blobs(self, named: Sequence[tuple[str, Descriptor]]) -> Sequence[Blob | SourceError]:
        """See ``loader.ImageStore``."""
        return await to_thread.run_sync(lambda: [self._blob(kind, descriptor) for kind, descriptor in named])

    def _read(self, reference: Descriptor | Digest) -> Manifest:
        return read_manifest(self.store, reference, self._present(reference, "manifest"))

    def _blob(self, kind: str, descriptor: Descriptor) -> Blob | SourceError:
        try:
            return ContentBlob(f"{kind} {descriptor.digest.short}", descriptor, self._present(descriptor, kind))
        except SourceError as error:
            return error

    def _present(self, reference: Descriptor | Digest, kind: str) -> Content:
        digest = reference if isinstance(reference, Digest) else reference.digest
        content = find_blob(self.store, digest)
        if content is None:
            raise SourceNotFoundError(
                f"{self.label} lacks {kind} {digest}",
                hint="copy the image with all its platforms and blobs, or choose one with --platform",
            )
        if isinstance(reference, Descriptor) and content.size != reference.size:
            raise DigestMismatchError(f"{kind} {digest.short} in {self.label}", reference.size, content.size)
        if not content.size:
            raise empty_blob(kind, digest, self.label)
        return content
