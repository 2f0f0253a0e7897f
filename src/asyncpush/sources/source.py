"""What a source holds, and the choosing among it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from asyncpush.errors import ChoiceError, SourceError
from asyncpush.model import Digest, Platform
from asyncpush.protocols import Image, ImageNode, IndexNode, ReferrerSource
from asyncpush.sources.names import ImageName, Location

Node: TypeAlias = ImageNode | IndexNode

#: Which images to take of an index: all, the one for a platform, or those for several.
Platforms: TypeAlias = Platform | Collection[Platform] | None


@dataclass(frozen=True, slots=True)
class Entry:
    """One name of one image in a source.

    Attributes:
        position: the image's place among the images, from 0; several names may share it.
        load: reads the image; with platforms, only those of it.
        title: how to choose it, if not by its position.
        aliases: other ways to choose it.
        repository: the repository that it names; None if it names none.
        tag: likewise.
        digest: of its manifest, where there is one yet.
        platform: what the source says it is for.
        about: the digest of what it refers to, if that is in the source, too: then it is no image of its own.
        referrers: where to ask what refers to it.
    """

    position: int
    load: Callable[[Collection[Platform]], Awaitable[Node]]
    title: str | None = None
    aliases: frozenset[str] = frozenset()
    repository: str | None = None
    tag: str | None = None
    digest: Digest | None = None
    platform: Platform | None = None
    about: Digest | None = None
    referrers: ReferrerSource | None = None

    def answers(self, choice: str) -> bool:
        """Whether *choice*, as the user wrote it behind the path, means this entry."""
        if choice.startswith("@"):
            return choice in (f"@{self.position}", f"@{self.digest}")
        return choice == self.title or choice in self.aliases or str(ImageName.parse(choice)) in self.aliases


class Source(Protocol):
    """The images of an opened source, until it is closed."""

    async def images(self, *, platform: Platforms = None) -> tuple[Image, ...]:
        """All images, once for each name; only the chosen one where the reference chooses.

        Args:
            platform: of indexes, take the image for this platform alone, or of several the images for them.

        Raises:
            ChoiceError: no image is the chosen one, or none is for *platform*.
            SourceError: an image is incomplete, damaged or malformed, or can't be read.
        """
        ...

    async def image(self, *, platform: Platforms = None) -> Image:
        """The image that the reference chooses, or the only one.

        Args:
            platform: of an index, take the image for this platform alone, or of several the images for them.

        Raises:
            ChoiceError: there are several, or none is the chosen one, or none is for *platform*.
            SourceError: the image is incomplete, damaged or malformed, or can't be read.
        """
        ...


@dataclass(frozen=True, slots=True)
class LocalSource:
    """A source on this machine (``Source``).

    Attributes:
        kind: ``oci``, ``oci-archive`` or ``docker-archive``.
        location: what the user wrote.
        entries: everything it holds, in its order.
    """

    kind: str
    location: Location
    entries: tuple[Entry, ...]

    async def images(self, *, platform: Platforms = None) -> tuple[Image, ...]:
        """See ``Source``."""
        platforms = each_platform(platform)
        return await self._load(self._chosen(platforms), platforms)

    async def image(self, *, platform: Platforms = None) -> Image:
        """See ``Source``."""
        platforms = each_platform(platform)
        entries = self._chosen(platforms)
        entries = _exactly_for(platforms, entries) or entries
        if len({entry.digest or entry.position for entry in entries}) > 1:
            raise ChoiceError(f"{self.location.label} holds {len(entries)} images", self._choices(entries))
        return (await self._load(entries[:1], platforms))[0]

    def _chosen(self, platforms: Collection[Platform]) -> Sequence[Entry]:
        choice = self.location.choice
        entries = [entry for entry in self.entries if (entry.answers(choice) if choice else entry.about is None)]
        if not self.entries:
            raise SourceError(f"{self.location.label} holds no image")
        if not entries:
            raise ChoiceError(f"{self.location.label} holds no image {choice!r}", self._choices(self.entries))
        fitting = [
            entry
            for entry in entries
            if not platforms or not entry.platform or any(map(entry.platform.satisfies, platforms))
        ]
        if not fitting:
            names, there = " or ".join(map(str, platforms)), dict.fromkeys(str(entry.platform) for entry in entries)
            raise ChoiceError(f"{self.location.label} holds no image for {names}", tuple(there))
        return fitting

    async def _load(self, entries: Sequence[Entry], platforms: Collection[Platform]) -> tuple[Image, ...]:
        nodes: dict[int, Node] = {}
        for entry in entries:
            if entry.position not in nodes:
                nodes[entry.position] = await entry.load(platforms)
        return tuple(
            Image(self._written(entry), entry.repository, entry.tag, nodes[entry.position], entry.referrers)
            for entry in entries
        )

    def _choices(self, entries: Sequence[Entry]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._written(entry) for entry in entries))

    def _written(self, entry: Entry) -> str:
        place = f"{self.kind}:{self.location.path}"
        if entry.title is not None and sum(entry.title == other.title for other in self.entries) == 1:
            return f"{place}:{entry.title}"
        return place if len(self.entries) == 1 else f"{place}:@{entry.position}"


def _exactly_for(platforms: Collection[Platform], entries: Sequence[Entry]) -> Sequence[Entry]:
    """The entries that say that they are for just one of *platforms*: in its words, or else in others."""
    found: dict[int, list[Entry]] = {0: [], 1: [], 2: []}
    for entry in entries:
        if entry.platform and platforms:
            found[min(entry.platform.distance(each) for each in platforms)].append(entry)
    return found[0] or found[1]


def each_platform(platform: Platforms) -> tuple[Platform, ...]:
    """The platforms that were asked for, as a tuple; empty for all."""
    if platform is None:
        return ()
    return (platform,) if isinstance(platform, Platform) else tuple(platform)
