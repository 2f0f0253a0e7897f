"""Sources: how users write them, what they hold, and which of their images are chosen."""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from asyncpush.errors import ChoiceError, InvalidReferenceError, ManifestError, SourceError, UnforeseenError, foreseen
from asyncpush.events import Emit, Notice, ignore
from asyncpush.model import Descriptor, Digest, LeftOut, Platform
from asyncpush.protocols import Image, ImageNode, IndexNode, ReferrerSource

Node: TypeAlias = ImageNode | IndexNode

#: Which images to take of an index: all, the one for a platform, or those for several.
Platforms: TypeAlias = Platform | Collection[Platform] | None

Kind = Literal["oci", "oci-archive", "docker-archive"]

KINDS: tuple[Kind, ...] = ("oci", "oci-archive", "docker-archive")

NO_IMAGE_HINT = "ECR takes OCI and Docker v2 manifests and indexes"

#: Names of images in one source.
MAX_NAMES = 10_000

_HINT = (
    "write oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:REF], docker://HOST/REPOSITORY[:TAG|@DIGEST], "
    "a path, or - for standard input"
)

_SCHEME = re.compile(r"[a-z][a-z-]*")

_REPOSITORY = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*")

_ENDINGS = re.compile(r"(\.(tar|tgz|txz|tzst|tbz|tbz2|gz|xz|zst|zstd|bz2|oci|docker))+$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Location:
    """Where a source lies, and which of its images was chosen.

    Attributes:
        kind: None where the content must tell.
        path: of the directory or file; ``-`` is standard input.
        choice: what was written behind it; None if nothing was.
    """

    kind: Kind | None
    path: str
    choice: str | None

    @property
    def label(self) -> str:
        """How to call it in errors."""
        return "standard input" if self.path == "-" else self.path

    @property
    def stem(self) -> str | None:
        """The directory's or file's name without its endings, where it can be a repository's name; else None."""
        stem = _ENDINGS.sub("", Path(self.path).resolve().name).lower()
        return stem if _REPOSITORY.fullmatch(stem) else None


@dataclass(frozen=True, slots=True)
class ImageName:
    """An image's name in its parts, as ``docker.io/library/app:1.0`` has them: registry, repository, tag."""

    registry: str | None
    repository: str
    tag: str | None

    @classmethod
    def parse(cls, text: str) -> ImageName:
        """Take a name apart; Docker's own registry and its ``library/`` are left out, as Docker does."""
        name = text.partition("@")[0]
        first, slash, rest = name.partition("/")
        registry = first if slash and ("." in first or ":" in first or first == "localhost") else None
        repository, _, tag = (rest if registry else name).partition(":")
        if registry in (None, "docker.io", "index.docker.io"):
            return cls(None, repository.removeprefix("library/"), tag or None)
        return cls(registry, repository, tag or None)

    def __str__(self) -> str:
        """The name in full; without a tag it means ``latest``."""
        prefix = f"{self.registry}/" if self.registry else ""
        return f"{prefix}{self.repository}:{self.tag or 'latest'}"


def locate(reference: str | Path) -> Location:
    """Read a source as the user wrote it; blocks, because a path that exists wins over a split at a colon.

    A ``Path`` is a path, whatever its name looks like.

    Raises:
        InvalidReferenceError: it is of no known kind, or lacks a path.
        SourceError: there is nothing at its path.
    """
    if isinstance(reference, Path):
        path = f"./{reference}" if str(reference) == "-" else str(reference)
        if not _exists(path):
            raise SourceError(f"{path} does not exist", hint="check the path")
        return Location(None, path, None)
    scheme, colon, rest = reference.partition(":")
    kind = next((kind for kind in KINDS if colon and kind == scheme), None)
    target = rest if kind else reference
    for path, choice in _splits(target):
        if path == "-" or _exists(path):
            return Location(kind, path, choice)
    if not target or (kind is None and colon and _SCHEME.fullmatch(scheme)):
        raise InvalidReferenceError(
            f"{reference!r} is neither a path that exists nor a source of a known kind", hint=_HINT
        )
    raise SourceError(f"{target.partition(':')[0]} does not exist", hint="check the path")


def _splits(target: str) -> Iterator[tuple[str, str | None]]:
    if target:
        yield target, None
    for at in reversed([at for at, letter in enumerate(target) if letter == ":" and at]):
        yield target[:at], target[at + 1 :] or None


def _exists(path: str) -> bool:
    try:
        os.stat(path)  # noqa: PTH116 - the text as it was written: Path would drop a trailing slash
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError:
        return True  # what is wrong with it is said when it is opened
    return True


class Source(Protocol):
    """The images of an opened source, until it is closed."""

    async def all_images(self, *, platform: Platforms = None) -> tuple[Image | UnreadImage, ...]:
        """All that is in it, once for each name, or what the reference chooses; one that can't be read is named so.

        Args:
            platform: of indexes, take the image for this platform alone, or of several the images for them.

        Raises:
            ChoiceError: nothing is the chosen one.
            SourceError: the source holds no image, or can't be read at all.
        """
        ...

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
class UnreadImage:
    """An image of a source that can't be pushed, and why.

    Attributes:
        source: as the user would write it.
        repository: the repository that it names itself; None if it names none.
        tag: likewise.
        error: what is wrong with it.
    """

    source: str
    repository: str | None
    tag: str | None
    error: SourceError | ChoiceError | UnforeseenError


@dataclass(frozen=True, slots=True)
class SourceEntry:
    """One name of one image in a source.

    Attributes:
        position: the image's place in the source's own list, from 0; several names may share it.
        load: reads the image; with platforms, only those of it.
        title: how to choose it, if not by its position.
        aliases: other ways to choose it.
        repository: the repository that it names; None if it names none.
        tag: likewise.
        digest: of its manifest, where there is one yet.
        platform: what the source says it is for.
        descriptor: what points at its manifest, where there is one yet.
        other_type: the media type of what is not an image at all: it is chosen only where no image is meant.
        is_unreadable: whether nobody can tell what it is: its manifest, or what points at it, is malformed or lost.
        about: the digest of what it refers to, if that is in the source, too: then it is not an image of its own.
        referrers: where to ask what refers to it.
        needs_both: it takes both descriptions of an archive to find it; a path with a kind reads one of them.
    """

    position: int
    load: Callable[[Collection[Platform]], Awaitable[Loaded]]
    title: str | None = None
    aliases: frozenset[str] = frozenset()
    repository: str | None = None
    tag: str | None = None
    digest: Digest | None = None
    platform: Platform | None = None
    descriptor: Descriptor | None = None
    other_type: str | None = None
    is_unreadable: bool = False
    about: Digest | None = None
    referrers: ReferrerSource | None = None
    needs_both: bool = False

    @property
    def is_rubbish(self) -> bool:
        """Whether it can't be read, and nothing says that anybody wants it."""
        return self.is_unreadable and self.title is None and self.platform is None

    def answers(self, choice: str) -> bool:
        """Whether *choice*, as the user wrote it behind the path, means this entry."""
        if choice.startswith("@"):
            return choice in (f"@{self.position}", f"@{self.digest or self.position}")
        return choice == self.title or choice in self.aliases or str(ImageName.parse(choice)) in self.aliases


@dataclass(frozen=True, slots=True)
class Loaded:
    """An image as it was read, and what of it the source does not hold."""

    root: Node
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True, slots=True)
class LocalSource:
    """A source on this machine (``Source``).

    Attributes:
        kind: ``oci``, ``oci-archive`` or ``docker-archive``.
        location: what the user wrote.
        entries: everything it holds, in its order.
        notes: what a user should know of it, whatever is chosen.
        emit: hears what of an image is not there.
    """

    kind: str
    location: Location
    entries: tuple[SourceEntry, ...]
    notes: tuple[str, ...] = ()
    emit: Emit = ignore

    async def all_images(self, *, platform: Platforms = None) -> tuple[Image | UnreadImage, ...]:
        """See ``Source``."""
        entries = self._answering() if self.location.choice else self._any()
        rubbish = [] if self.location.choice else [entry for entry in entries if entry.is_rubbish]
        if len(rubbish) == len(entries):
            rubbish = []
        wanted = [entry for entry in entries if entry not in rubbish]
        images = self._told(await self._read(wanted, each_platform(platform)))
        left_out = self._left_out(rubbish)
        first = next((image for image in images if isinstance(image, Image)), None)
        return tuple(_without(image, left_out) if image is first else image for image in images)

    async def images(self, *, platform: Platforms = None) -> tuple[Image, ...]:
        """See ``Source``."""
        images = []
        for image in await self.all_images(platform=platform):
            if isinstance(image, UnreadImage):
                raise image.error
            images.append(image)
        return tuple(images)

    async def image(self, *, platform: Platforms = None) -> Image:
        """See ``Source``."""
        platforms = each_platform(platform)
        entries = self._fitting(self._answering(), platforms)
        entries = _exactly_for(platforms, entries) or entries
        if platforms and _are_several(entries):
            entries = await self._really_for(entries, platforms)
        if _are_several(entries):
            raise ChoiceError(f"{self.location.label} holds {len(entries)} images", self._choices(entries))
        [image] = self._told(await self._read(entries[:1], platforms))
        if isinstance(image, UnreadImage):
            raise image.error
        if self.location.choice is not None:
            return image
        return _without(image, self._left_out([each for each in self.entries if each.other_type or each.is_rubbish]))

    def _any(self) -> Sequence[SourceEntry]:
        """All but what refers to another one: that goes along with it."""
        if not self.entries:
            raise SourceError(f"{self.location.label} holds no image")
        return [entry for entry in self.entries if entry.about is None]

    def _answering(self) -> Sequence[SourceEntry]:
        """The images that are meant; where none is, what else answers to the choice."""
        choice = self.location.choice
        answering = [entry for entry in self.entries if entry.answers(choice)] if choice else self._any()
        if not answering:
            raise ChoiceError(f"{self.location.label} holds no image {choice!r}", self._choices(self.entries))
        images = [entry for entry in answering if entry.other_type is None]
        if not images and choice is None:
            kind = str(answering[0].other_type)[:100]
            raise ManifestError(f"{self.location.label} holds no image, but {kind!r}", hint=NO_IMAGE_HINT)
        if choice is None:
            images = [entry for entry in images if not entry.is_rubbish] or images
        return images or answering

    def _fitting(self, entries: Sequence[SourceEntry], platforms: Collection[Platform]) -> Sequence[SourceEntry]:
        fitting = [
            entry
            for entry in entries
            if not platforms or not entry.platform or any(map(entry.platform.satisfies, platforms))
        ]
        if not fitting:
            names, there = " or ".join(map(str, platforms)), dict.fromkeys(str(entry.platform) for entry in entries)
            raise ChoiceError(f"{self.location.label} holds no image for {names}", tuple(there))
        return fitting

    async def _really_for(
        self, entries: Sequence[SourceEntry], platforms: Collection[Platform]
    ) -> Sequence[SourceEntry]:
        """Those of *entries* that are for *platforms* by their configs, where the list doesn't tell."""
        kept, there = [], dict[str, None]()
        for entry in entries:
            found = await _load(entry, platforms)
            if isinstance(found, ChoiceError):
                there |= dict.fromkeys(found.choices)
            else:
                kept.append(entry)
        if not kept:
            names = " or ".join(map(str, platforms))
            raise ChoiceError(f"{self.location.label} holds no image for {names}", tuple(there))
        return kept

    async def _read(
        self, entries: Sequence[SourceEntry], platforms: Collection[Platform]
    ) -> tuple[Image | UnreadImage, ...]:
        loaded: dict[int, Loaded | SourceError | ChoiceError | UnforeseenError] = {}
        images: list[Image | UnreadImage] = []
        for alike in _by_name(entries):
            try:
                fitting = self._fitting(alike, platforms)
            except ChoiceError as error:
                images.append(UnreadImage(self._written(alike[0]), alike[0].repository, alike[0].tag, error))
                continue
            for entry in fitting:
                if entry.position not in loaded:
                    loaded[entry.position] = await _load(entry, platforms)
                images.append(self._named(entry, loaded[entry.position]))
        return tuple(images)

    def _named(
        self, entry: SourceEntry, found: Loaded | SourceError | ChoiceError | UnforeseenError
    ) -> Image | UnreadImage:
        name = self._written(entry), entry.repository, entry.tag
        if isinstance(found, Loaded):
            return Image(*name, found.root, entry.referrers, found.left_out)
        return UnreadImage(*name, found)

    def _told(self, images: tuple[Image | UnreadImage, ...]) -> tuple[Image | UnreadImage, ...]:
        told = set()
        for image in images:
            if isinstance(image, Image) and image.left_out and image.left_out not in told:
                told.add(image.left_out)
                self.emit(Notice(f"{image.source} is pushed without {_in_words(image.left_out)}"))
        return images

    def _left_out(self, entries: Sequence[SourceEntry]) -> tuple[LeftOut, ...]:
        """Say that *entries*, which are no images that anybody could want, are left out."""
        left_out = []
        for entry in entries:
            reason = "its manifest is malformed, or not there"
            if entry.other_type:
                reason = f"it is {entry.other_type[:100]!r}, no image"
            left_out.append(LeftOut(self._written(entry), entry.digest, reason))
            self.emit(Notice(f"{left_out[-1].name} is left out: {reason}"))
        return tuple(left_out)

    def _choices(self, entries: Sequence[SourceEntry]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._written(entry) for entry in entries))

    def _written(self, entry: SourceEntry) -> str:
        place = self.location.path if entry.needs_both else f"{self.kind}:{self.location.path}"
        if entry.title is not None and sum(entry.title == other.title for other in self.entries) == 1:
            return f"{place}:{entry.title}"
        return place if len(self.entries) == 1 else f"{place}:@{entry.position}"


def _without(image: Image, left_out: Sequence[LeftOut]) -> Image:
    """*image*, with what is left out beside it."""
    return replace(image, left_out=(*image.left_out, *left_out)) if left_out else image


def _are_several(entries: Sequence[SourceEntry]) -> bool:
    return len({entry.digest or entry.position for entry in entries}) > 1


def _by_name(entries: Sequence[SourceEntry]) -> list[list[SourceEntry]]:
    """*entries*, those with one name together: where a list tells images apart by their platforms, one is to be had."""
    groups: dict[object, list[SourceEntry]] = {}
    for place, entry in enumerate(entries):
        key = (entry.repository, entry.tag) if entry.platform else place
        groups.setdefault(key, []).append(entry)
    return list(groups.values())


async def _load(
    entry: SourceEntry, platforms: Collection[Platform]
) -> Loaded | SourceError | ChoiceError | UnforeseenError:
    try:
        with foreseen():
            return await entry.load(platforms)
    except (SourceError, ChoiceError, UnforeseenError) as error:
        return error


def _in_words(left_out: Sequence[LeftOut]) -> str:
    reasons: dict[str, list[str]] = {}
    for each in left_out:
        reasons.setdefault(each.reason, []).append(each.name)
    return "; ".join(f"{', '.join(names)} ({reason})" for reason, names in reasons.items())


def _exactly_for(platforms: Collection[Platform], entries: Sequence[SourceEntry]) -> Sequence[SourceEntry]:
    """The entries that say that they are for just one of *platforms*: in its words, or else in others."""
    found: dict[int, list[SourceEntry]] = {0: [], 1: [], 2: []}
    for entry in entries:
        if entry.platform and platforms:
            found[min(entry.platform.distance(each) for each in platforms)].append(entry)
    return found[0] or found[1]


def each_platform(platform: Platforms) -> tuple[Platform, ...]:
    """The platforms that were asked for, as a tuple; empty for all."""
    if platform is None:
        return ()
    return (platform,) if isinstance(platform, Platform) else tuple(platform)


def refuse_many_images(count: int, label: str) -> None:
    """See that a list names no more images than one source may have.

    Raises:
        ManifestError: it does.
    """
    if count > MAX_NAMES:
        raise ManifestError(f"{label} names {count} images; at most {MAX_NAMES} are read", hint="split it")
