"""An image in a registry, as a source to push from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from asyncpush.protocols import Image
from asyncpush.sources.registry.reference import RemoteReference
from asyncpush.sources.registry.referrers import RepositoryReferrers
from asyncpush.sources.registry.remote import Remote
from asyncpush.sources.source import Platforms, each_platform


@dataclass(frozen=True, slots=True)
class RemoteSource:
    """The one image that a reference names.

    Attributes:
        remote: its registry.
        reference: what the user wrote.
        push_foreign_layers: take non-distributable layers, too.
    """

    remote: Remote
    reference: RemoteReference
    push_foreign_layers: bool = False

    async def all_images(self, *, platform: Platforms = None) -> tuple[Image, ...]:
        """The image, as the only one; see ``image``."""
        return (await self.image(platform=platform),)

    async def images(self, *, platform: Platforms = None) -> tuple[Image, ...]:
        """The image, as the only one; see ``image``."""
        return (await self.image(platform=platform),)

    async def image(self, *, platform: Platforms = None) -> Image:
        """Read the image; what its tag names now counts.

        Args:
            platform: of an index, take the image for this platform alone, or of several the images for them.

        Raises:
            ChoiceError: none is for *platform*.
            SourceError: the registry refuses or can't be reached, or the image is incomplete or malformed.
        """
        reference = self.reference
        descriptor = (await self.remote.manifest(reference.repository, reference.target)).descriptor
        root = await self.remote.load(
            reference.repository,
            descriptor,
            each_platform(platform),
            push_foreign_layers=self.push_foreign_layers,
        )
        tags = partial(self.remote.tags, reference.repository)
        referrers = RepositoryReferrers(self.remote, reference.repository, tags, self.remote.emit)
        return Image(str(reference), reference.name, reference.tag, root, referrers)
