"""How much of a migration waits in memory between discovery and push: images are found faster than they are sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from asyncpush.engine.diff import ImageDiff, leaves, nodes
from asyncpush.engine.memory import MemoryBudget
from asyncpush.manifest import Manifest
from asyncpush.migrate.copies import Copy
from asyncpush.protocols import Image

#: Manifests and blobs of images that are found and not pushed yet, about 2 KiB each. Among so many that image is looked
#: for that helps the others most: 500 images of 15 layers, or 120 for 8 platforms.
MAX_WAITING = 8192


@dataclass(frozen=True, slots=True, eq=False)
class Ready:
    """An image that can go.

    Attributes:
        image: the image.
        copies: where it goes, and what is missing there.
    """

    image: Image
    copies: tuple[tuple[Copy, ImageDiff], ...]

    @property
    def identities(self) -> frozenset[str]:
        """The blobs that are to be sent."""
        return frozenset(blob.identity for _, plan in self.copies for blob in plan.to_send)

    @property
    def weight(self) -> int:
        """Its manifests and blobs."""
        return weight(self.image)


@dataclass(frozen=True, slots=True, eq=False)
class Present:
    """An image that is there already.

    Attributes:
        copy: where it is.
        manifest: its manifest or index, as the repository has it.
    """

    copy: Copy
    manifest: Manifest

    @property
    def weight(self) -> int:
        """Its manifest, and what that names."""
        return 1 + len(self.manifest.layers) + len(self.manifest.children)


Discovered = Ready | Present


class Room:
    """Room for what waits.

    Args:
        on_full: called when something has to wait for room.
    """

    def __init__(self, on_full: Callable[[], None]) -> None:
        self._budget = MemoryBudget(MAX_WAITING, window=0)
        self._on_full = on_full

    async def take(self, found: Discovered) -> None:
        """Wait until there is room for *found*; one that is larger than all of it has it alone."""
        if self._budget.held + found.weight > self._budget.limit:
            self._on_full()
        await self._budget.take(found.weight)

    def give_back(self, found: Discovered) -> None:
        """Hear that *found* is done with."""
        self._budget.give_back(found.weight)


def weight(image: Image) -> int:
    """The manifests and blobs of an image."""
    return sum(1 for _ in nodes(image.root)) + sum(1 + len(leaf.layers) for leaf in leaves(image.root))
