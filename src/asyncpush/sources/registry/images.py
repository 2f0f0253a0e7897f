"""The manifests and blobs of one repository of a registry; no blob is asked for before it is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from asyncpush.errors import SourceError, SourceNotFoundError
from asyncpush.manifest import Manifest
from asyncpush.model import Descriptor, Digest
from asyncpush.protocols import Blob
from asyncpush.sources.loader import empty_blob
from asyncpush.sources.registry.blob import RegistryBlob
from asyncpush.sources.registry.reference import SCHEME
from asyncpush.sources.registry.refusals import INCOMPLETE


class Manifests(Protocol):
    """Where manifests and blobs are read: a ``Remote``."""

    @property
    def host(self) -> str:
        """The registry."""
        ...

    async def manifest(self, repository: str, reference: Descriptor | Digest | str) -> Manifest:
        """Read a manifest."""
        ...

    def blob(self, repository: str, descriptor: Descriptor, kind: str = "layer") -> RegistryBlob:
        """A blob, to be read."""
        ...


@dataclass(frozen=True, slots=True)
class RepositoryImages:
    """A repository of a registry (``loader.ImageStore``).

    Attributes:
        remote: the registry.
        repository: its name there.
        root: of the image that is read: what else is read is named by it.
    """

    remote: Manifests
    repository: str
    root: Descriptor

    @property
    def label(self) -> str:
        """How to call it in errors."""
        return f"{SCHEME}{self.remote.host}/{self.repository}"

    async def manifest(self, reference: Descriptor | Digest) -> Manifest:
        """See ``loader.ImageStore``."""
        try:
            return await self.remote.manifest(self.repository, reference)
        except SourceNotFoundError as error:
            digest = reference.digest if isinstance(reference, Descriptor) else reference
            if digest != self.root.digest:
                error.hint = f"{INCOMPLETE}, or take what is there: --platform, or platforms in a plan"
            raise

    async def config(self, descriptor: Descriptor) -> bytes:
        """See ``loader.ImageStore``."""
        data = bytearray(descriptor.size)
        async with self.remote.blob(self.repository, descriptor, "config").stream() as stream:
            await stream.readinto(memoryview(data))
        return bytes(data)

    async def blobs(self, named: Sequence[tuple[str, Descriptor]]) -> Sequence[Blob | SourceError]:
        """See ``loader.ImageStore``."""
        return [
            self.remote.blob(self.repository, descriptor, kind)
            if descriptor.size
            else empty_blob(kind, descriptor.digest, self.label)
            for kind, descriptor in named
        ]
