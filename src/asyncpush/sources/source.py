"""Sources: how users write them, what they hold, and which of their images are chosen."""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from asyncpush.errors import (
    ChoiceError,
    InvalidReferenceError,
    ManifestError,
    PathNotFoundError,
    SourceError,
    UnforeseenError,
    foreseen,
)
from asyncpush.events import Emit, Notice, ignore
from asyncpush.model import Descriptor, Digest, LeftOut, Platform
from asyncpush.protocols import Image, ImageNode, IndexNode, ReferrerSource

Node: TypeAlias = ImageNode | IndexNode

#: Which images of an index to take: all, the one for a platform, or those for several.
Platforms: TypeAlias = Platform | Collection[Platform] | None

Kind = Literal["oci", "oci-archive", "docker-archive"]

KINDS: tuple[Kind, ...] = ("oci", "oci-archive", "docker-archive")

#: The list of images in the output of docker save.
MANIFEST = "manifest.json"

NO_IMAGE_HINT = "ECR takes OCI and Docker v2 manifests and indexes"

#: Names of images in one source.
MAX_NAMES = 10_000

_HINT = (
    "write oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:REF], docker://HOST/REPOSITORY[:TAG|@DIGEST], "
    "docker-daemon:NAME, containers-storage:NAME, s3://BUCKET/KEY[:TAG], a path, or - for standard input"
)

_CHECK_PATH = "check the path"

#: Kinds of skopeo's that asyncpush does not read.
_OTHER_KINDS = frozenset({"dir", "docker", "ostree", "sif", "tarball"})

#: An image in a registry, without the scheme.
_IMAGE_NAME = re.compile(
    r"(?:(?P<host>localhost(?::[0-9]+)?|[\w-]+(?:\.[\w-]+)+(?::[0-9]+)?|[\w-]+:[0-9]+)/)?"
    r"(?P<repository>[a-z0-9]+(?:[._/-]+[a-z0-9]+)*)(?P<choice>:[\w][\w.-]{0,127}|@sha256:[0-9a-f]{64})?"
)

_SCHEME = re.compile(r"[a-z][a-z-]*")

_REPOSITORY = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*")

_ENDINGS = re.compile(r"(\.(tar|tgz|txz|tzst|tbz|tbz2|gz|xz|zst|zstd|bz2|oci|docker))+$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Location:
    """The place of a source, and the choice among its images.

    Attributes:
        kind: the kind; None if it is to be detected.
        path: the path of the directory or file; ``-`` is standard input, and a reference that is no path the source.
        choice: the image chosen behind the path; None without a choice.
        form: what *path* is: of a file or directory, of an object in S3, or the name of one image in an engine.
    """

    kind: Kind | None
    path: str
    choice: str | None
    form: Literal["path", "object", "image"] = "path"

    @property
    def label(self) -> str:
        """Its name in errors."""
        return "standard input" if self.path == "-" else self.path

    @property
    def stem(self) -> str | None:
        """The directory's or file's name without extensions, if it is a valid repository name; else None."""
        stem = _ENDINGS.sub("", Path(self.path).resolve().name).lower()
        return stem if _REPOSITORY.fullmatch(stem) else None


@dataclass(frozen=True, slots=True)
class ImageName:
    """The parts of an image's name, such as ``docker.io/library/app:1.0``: registry, repository, tag."""

    registry: str | None
    repository: str
    tag: str | None

    @classmethod
    def parse(cls, text: str) -> ImageName:
        """Parse a name; Docker Hub and its ``library/`` are left out, as in Docker."""
        name = text.partition("@")[0]
        first, slash, rest = name.partition("/")
        registry = first if slash and ("." in first or ":" in first or first == "localhost") else None
        repository, _, tag = (rest if registry else name).partition(":")
        if registry in (None, "docker.io", "index.docker.io"):
            return cls(None, repository.removeprefix("library/"), tag or None)
        return cls(registry, repository, tag or None)

    def __str__(self) -> str:
        """The full name; the tag defaults to ``latest``."""
        prefix = f"{self.registry}/" if self.registry else ""
        return f"{prefix}{self.repository}:{self.tag or 'latest'}"


def locate(reference: str | Path) -> Location:
    """Parse a source as the user wrote it; blocks, since a path that exists takes precedence over a split at a colon.

    A ``Path`` is a path, whatever its name looks like.

    Raises:
        InvalidReferenceError: it is of no known kind, or has no path.
        PathNotFoundError: its path does not exist.
    """
    if isinstance(reference, Path):
        path = f"./{reference}" if str(reference) == "-" else str(reference)
        if not _exists(path):
            raise PathNotFoundError(f"{path} does not exist", hint=_CHECK_PATH)
        return Location(None, path, None)
    scheme, colon, rest = reference.partition(":")
    kind = next((kind for kind in KINDS if colon and kind == scheme), None)
    target = rest if kind else reference
    for path, choice in splits(target):
        if path == "-" or _exists(path):
            return Location(kind, path, choice)
    if not target or (kind is None and colon and _SCHEME.fullmatch(scheme)):
        raise InvalidReferenceError(
            f"{reference!r} is neither a path that exists nor a source of a known kind",
            hint=f"{suggestion} Otherwise {_HINT}" if (suggestion := _suggestion(reference)) else _HINT,
        )
    path = target.partition(":")[0]
    raise PathNotFoundError(
        f"{path} does not exist", hint=(_suggestion(reference) if kind is None else None) or _CHECK_PATH
    )


def _suggestion(reference: str) -> str | None:
    """What the user may have meant by a reference to no file; None if it looks like a path."""
    scheme = reference.partition(":")[0]
    name = _IMAGE_NAME.fullmatch(reference)
    if name is None or not (name["host"] or name["choice"]) or scheme in _OTHER_KINDS or _ENDINGS.search(scheme):
        return None
    library = "" if "/" in name["repository"] else "library/"
    return f"did you mean docker://{reference if name['host'] else f'docker.io/{library}{reference}'}?"


def splits(target: str) -> Iterator[tuple[str, str | None]]:
    """The paths that *target* may begin with, each with the choice behind it; the longest first."""
    if target:
        yield target, None
    for at in reversed([at for at, letter in enumerate(target) if letter == ":" and at]):
        yield target[:at], target[at + 1 :] or None


def _exists(path: str) -> bool:
    try:
        os.stat(path)  # noqa: PTH116 - Path would drop a trailing slash
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError:
        return True  # opening it raises the error
    return True


class Source(Protocol):
    """The images of an opened source, until it is closed."""

    async def all_images(self, *, platform: Platforms = None) -> tuple[Image | UnreadImage, ...]:
        """All images, once for each name, or those that the reference chooses; with those that can't be read.

        Args:
            platform: of indexes, take only the image for this platform, or those for several.

        Raises:
            ChoiceError: the choice matches nothing.
            SourceError: the source holds no image, or can't be read at all.
        """
        ...

    async def images(self, *, platform: Platforms = None) -> tuple[Image, ...]:
        """All images, once for each name, or those that the reference chooses.

        Args:
            platform: of indexes, take only the image for this platform, or those for several.

        Raises:
            ChoiceError: the choice matches no image, or there is none for *platform*.
            SourceError: an image is incomplete, damaged or malformed, or can't be read.
        """
        ...

    async def image(self, *, platform: Platforms = None) -> Image:
        """The image that the reference chooses, or the only one.

        Args:
            platform: of an index, take only the image for this platform, or those for several.

        Raises:
            ChoiceError: there are several, the choice matches none, or there is none for *platform*.
            SourceError: the image is incomplete, damaged or malformed, or can't be read.
        """
        ...


@dataclass(frozen=True, slots=True)
class UnreadImage:
    """An image of a source that can't be pushed, and why.

    Attributes:
        source: its reference, as the user would write it.
        repository: the repository in its own name; None without one.
        tag: the tag in its own name; None without one.
        error: the reason.
    """

    source: str
    repository: str | None
    tag: str | None
    error: SourceError | ChoiceError | UnforeseenError


@dataclass(frozen=True, slots=True)
class SourceEntry:
    """One name of one image in a source.

    Attributes:
        position: the image's position in the source's own list, from 0; several names may share it.
        load: reads the image, or only those of its platforms that are given.
        title: the name that chooses it, if its position need not.
        aliases: other names that choose it.
        repository: the repository in its name; None without one.
        tag: the tag in its name; None without one.
        digest: its manifest's digest, if it has a manifest already.
        platform: its platform according to the source.
        descriptor: its manifest's descriptor, if it has a manifest already.
        other_type: the media type of an entry that is not an image; it is chosen only if no image matches.
        is_unreadable: whether its manifest or its descriptor is malformed or missing.
        subject: the digest of the image that it refers to, if the source holds that, too; else None.
        referrers: finds the manifests that refer to it.
        needs_both: whether only both descriptions of an archive together name it; a path with a kind reads one of them.
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
    subject: Digest | None = None
    referrers: ReferrerSource | None = None
    needs_both: bool = False

    @property
    def is_unusable(self) -> bool:
        """Whether it can't be read, and nothing suggests that it is an image."""
        return self.is_unreadable and self.title is None and self.platform is None

    def matches(self, choice: str) -> bool:
        """Whether *choice*, which the user wrote behind the path, matches this entry."""
        if choice.startswith("@"):
            return choice in (f"@{self.position}", f"@{self.digest or self.position}")
        return choice == self.title or choice in self.aliases or str(ImageName.parse(choice)) in self.aliases


@dataclass(frozen=True, slots=True)
class Loaded:
    """An image that was read, and the parts of it that the source lacks."""

    root: Node
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True, slots=True)
class LocalSource:
    """A source on this machine (``Source``).

    Attributes:
        kind: ``oci``, ``oci-archive`` or ``docker-archive``.
        location: where it lies, and the choice.
        entries: everything that it holds, in its order.
        notes: notices about it, whatever is chosen.
        emit: receives notices about missing parts of images.
    """

    kind: str
    location: Location
    entries: tuple[SourceEntry, ...]
    notes: tuple[str, ...] = ()
    emit: Emit = ignore

    async def all_images(self, *, platform: Platforms = None) -> tuple[Image | UnreadImage, ...]:
        """See ``Source``."""
        entries = self._chosen() if self.location.choice else self._standalone()
        unusable = [] if self.location.choice else [entry for entry in entries if entry.is_unusable]
        if len(unusable) == len(entries):
            unusable = []
        entries_to_read = [entry for entry in entries if entry not in unusable]
        images = self._report_left_out(await self._read(entries_to_read, each_platform(platform)))
        left_out = self._note_unusable(unusable)
        first = next((image for image in images if isinstance(image, Image)), None)
        return tuple(_with_left_out(image, left_out) if image is first else image for image in images)

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
        entries = self._for_platforms(self._chosen(), platforms)
        entries = _exact_matches(platforms, entries) or entries
        if platforms and _are_several(entries):
            entries = await self._for_platforms_by_config(entries, platforms)
        if _are_several(entries):
            raise ChoiceError(f"{self.location.label} holds {len(entries)} images", self._choices(entries))
        [image] = self._report_left_out(await self._read(entries[:1], platforms))
        if isinstance(image, UnreadImage):
            raise image.error
        if self.location.choice is not None:
            return image
        return _with_left_out(
            image, self._note_unusable([entry for entry in self.entries if entry.other_type or entry.is_unusable])
        )

    def _standalone(self) -> Sequence[SourceEntry]:
        """All entries except those that refer to another one, which are pushed along with it."""
        if not self.entries:
            raise SourceError(f"{self.location.label} holds no image")
        return [entry for entry in self.entries if entry.subject is None]

    def _chosen(self) -> Sequence[SourceEntry]:
        """The images that match the choice; without one, other entries that do."""
        choice = self.location.choice
        matches = [entry for entry in self.entries if entry.matches(choice)] if choice else self._standalone()
        if not matches:
            raise ChoiceError(f"{self.location.label} holds no image {choice!r}", self._choices(self.entries))
        images = [entry for entry in matches if entry.other_type is None]
        if not images and choice is None:
            kind = str(matches[0].other_type)[:100]
            raise ManifestError(f"{self.location.label} holds no image, but {kind!r}", hint=NO_IMAGE_HINT)
        if choice is None:
            images = [entry for entry in images if not entry.is_unusable] or images
        return images or matches

    def _for_platforms(self, entries: Sequence[SourceEntry], platforms: Collection[Platform]) -> Sequence[SourceEntry]:
        suitable = [
            entry
            for entry in entries
            if not platforms or not entry.platform or any(map(entry.platform.satisfies, platforms))
        ]
        if not suitable:
            names, present = " or ".join(map(str, platforms)), dict.fromkeys(str(entry.platform) for entry in entries)
            raise ChoiceError(f"{self.location.label} holds no image for {names}", tuple(present))
        return suitable

    async def _for_platforms_by_config(
        self, entries: Sequence[SourceEntry], platforms: Collection[Platform]
    ) -> Sequence[SourceEntry]:
        """Those of *entries* whose configs name one of *platforms*, since the list does not say."""
        kept, present = [], dict[str, None]()
        for entry in entries:
            found = await _load(entry, platforms)
            if isinstance(found, ChoiceError):
                present |= dict.fromkeys(found.choices)
            else:
                kept.append(entry)
        if not kept:
            names = " or ".join(map(str, platforms))
            raise ChoiceError(f"{self.location.label} holds no image for {names}", tuple(present))
        return kept

    async def _read(
        self, entries: Sequence[SourceEntry], platforms: Collection[Platform]
    ) -> tuple[Image | UnreadImage, ...]:
        loaded: dict[int, Loaded | SourceError | ChoiceError | UnforeseenError] = {}
        images: list[Image | UnreadImage] = []
        for group in _group_by_name(entries):
            try:
                suitable = self._for_platforms(group, platforms)
            except ChoiceError as error:
                images.append(UnreadImage(self._reference_to(group[0]), group[0].repository, group[0].tag, error))
                continue
            for entry in suitable:
                if entry.position not in loaded:
                    loaded[entry.position] = await _load(entry, platforms)
                images.append(self._as_image(entry, loaded[entry.position]))
        return tuple(images)

    def _as_image(
        self, entry: SourceEntry, found: Loaded | SourceError | ChoiceError | UnforeseenError
    ) -> Image | UnreadImage:
        name = self._reference_to(entry), entry.repository, entry.tag
        if isinstance(found, Loaded):
            return Image(*name, found.root, entry.referrers, found.left_out)
        return UnreadImage(*name, found)

    def _report_left_out(self, images: tuple[Image | UnreadImage, ...]) -> tuple[Image | UnreadImage, ...]:
        reported = set()
        for image in images:
            if isinstance(image, Image) and image.left_out and image.left_out not in reported:
                reported.add(image.left_out)
                self.emit(Notice(f"{image.source} is pushed without {_describe(image.left_out)}"))
        return images

    def _note_unusable(self, entries: Sequence[SourceEntry]) -> tuple[LeftOut, ...]:
        """Emit that *entries*, which can't be images, are left out."""
        left_out = []
        for entry in entries:
            reason = "its manifest is malformed, or not there"
            if entry.other_type:
                reason = f"it is {entry.other_type[:100]!r}, no image"
            left_out.append(LeftOut(self._reference_to(entry), entry.digest, reason))
            self.emit(Notice(f"{left_out[-1].name} is left out: {reason}"))
        return tuple(left_out)

    def _choices(self, entries: Sequence[SourceEntry]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self._reference_to(entry) for entry in entries))

    def _reference_to(self, entry: SourceEntry) -> str:
        if self.location.form == "image":
            return self.location.path
        prefix = (
            self.location.path
            if entry.needs_both or self.location.form == "object"
            else f"{self.kind}:{self.location.path}"
        )
        if entry.title is not None and sum(entry.title == other.title for other in self.entries) == 1:
            return f"{prefix}:{entry.title}"
        return prefix if len(self.entries) == 1 else f"{prefix}:@{entry.position}"


def _with_left_out(image: Image, left_out: Sequence[LeftOut]) -> Image:
    """*image*, with more parts that are left out."""
    return replace(image, left_out=(*image.left_out, *left_out)) if left_out else image


def _are_several(entries: Sequence[SourceEntry]) -> bool:
    return len({entry.digest or entry.position for entry in entries}) > 1


def _group_by_name(entries: Sequence[SourceEntry]) -> list[list[SourceEntry]]:
    """*entries*, grouped by name: a list may distinguish images of one name by their platforms."""
    groups: dict[object, list[SourceEntry]] = {}
    for index, entry in enumerate(entries):
        key = (entry.repository, entry.tag) if entry.platform else index
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


def _describe(left_out: Sequence[LeftOut]) -> str:
    reasons: dict[str, list[str]] = {}
    for part in left_out:
        reasons.setdefault(part.reason, []).append(part.name)
    return "; ".join(f"{', '.join(names)} ({reason})" for reason, names in reasons.items())


def _exact_matches(platforms: Collection[Platform], entries: Sequence[SourceEntry]) -> Sequence[SourceEntry]:
    """The entries for exactly one of *platforms*: in the same spelling, or else in another."""
    found: dict[int, list[SourceEntry]] = {0: [], 1: [], 2: []}
    for entry in entries:
        if entry.platform and platforms:
            found[min(entry.platform.distance(platform) for platform in platforms)].append(entry)
    return found[0] or found[1]


def each_platform(platform: Platforms) -> tuple[Platform, ...]:
    """The requested platforms as a tuple; empty for all."""
    if platform is None:
        return ()
    return (platform,) if isinstance(platform, Platform) else tuple(platform)


def refuse_many_images(count: int, label: str) -> None:
    """Refuse a list of more images than a source may have.

    Raises:
        ManifestError: it names more.
    """
    if count > MAX_NAMES:
        raise ManifestError(f"{label} names {count} images; at most {MAX_NAMES} are read", hint="split it")
