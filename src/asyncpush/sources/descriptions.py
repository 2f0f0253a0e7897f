"""Archives with two descriptions of the same blobs: index.json (OCI) and manifest.json (Docker).

A directory into which such an archive was unpacked is read in the same way.

index.json takes precedence for the images that it names: their manifests and digests are pushed as they are.
manifest.json adds the images and names that index.json lacks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from asyncpush.errors import ManifestError, SourceError
from asyncpush.manifest import INDEX_TYPES
from asyncpush.model import Descriptor, Digest
from asyncpush.settings import Settings
from asyncpush.sources.blobs import BlobStore
from asyncpush.sources.docker_archive import SavedImage, is_uncompressed, read_docker_archive, saved_images
from asyncpush.sources.oci_image import configs_in, find_blob, read_manifest
from asyncpush.sources.oci_layout import INDEX, is_oci_layout, names_alone, read_oci_layout
from asyncpush.sources.source import MANIFEST, ImageName, LocalSource, Location, SourceEntry
from asyncpush.sources.spool import Scratch
from asyncpush.sources.tar_index import TarIndex

_SHOWN_NAMES = 10

#: The suffixes of media types of compressed layers.
_COMPRESSED = ("gzip", "zstd")


def read_archive(archive: TarIndex, location: Location, settings: Settings, scratch: Scratch) -> LocalSource:
    """List the images of an archive of either kind, or of both, in a worker thread.

    Args:
        archive: the archive.
        location: the reference that the user wrote.
        settings: how uncompressed layers are compressed, and whether foreign layers are pushed.
        scratch: holds layers that must be decompressed first.

    Raises:
        SourceError: it holds no images, or its descriptions are malformed.
    """
    opened = _OpenedStore(archive, location, settings, scratch)
    is_oci, is_docker = is_oci_layout(archive), archive.find(MANIFEST) is not None
    if location.kind is None and not is_oci and not is_docker:
        raise SourceError(
            f"{archive.label} holds no image: neither {INDEX} nor {MANIFEST}",
            hint=archive.advice() or "push a single layer with `asyncpush layers`",
        )
    return _read(opened, is_oci=is_oci, is_docker=is_docker)


def read_directory(directory: BlobStore, location: Location, settings: Settings, scratch: Scratch) -> LocalSource:
    """List the images of a directory with both descriptions; see ``read_archive``."""
    opened = _OpenedStore(directory, location, settings, scratch, is_directory=True)
    return _read(opened, is_oci=location.kind == "oci" or is_oci_layout(directory), is_docker=True)


def _read(opened: _OpenedStore, *, is_oci: bool, is_docker: bool) -> LocalSource:
    archive, location = opened.files, opened.location
    saved = _saved_images(archive) if is_oci and is_docker else None
    match location.kind:
        case "docker-archive":
            return opened.docker(_only_in_index(opened, saved))
        case None if not is_oci:
            return opened.docker()
        case None if saved is None and is_docker:
            note = f"{MANIFEST} in {archive.label} is not a list of images, and is not read"
            return replace(opened.oci(), notes=(note,))
    if saved is None:
        return opened.oci()
    try:
        descriptions = _BothDescriptions(opened, saved)
    except ManifestError as error:
        if location.kind is None and _is_uncompressed(archive):
            return opened.docker((f"{error}; {MANIFEST} is read instead",))
        raise
    return descriptions.source() if location.kind is None else descriptions.index()


@dataclass(frozen=True, slots=True)
class _OpenedStore:
    """An open archive or directory, and how to read it."""

    files: BlobStore
    location: Location
    settings: Settings
    scratch: Scratch
    is_directory: bool = False

    @property
    def oci_kind(self) -> str:
        """The prefix that selects index.json alone."""
        return "oci:" if self.is_directory else "oci-archive:"

    @property
    def docker_kind(self) -> str:
        """The prefix that selects manifest.json alone; a directory has none."""
        return "" if self.is_directory else "docker-archive:"

    def docker(self, notes: tuple[str, ...] = ()) -> LocalSource:
        """The images that manifest.json lists."""
        return LocalSource("docker-archive", self.location, self.saved_entries(), notes)

    def saved_entries(self) -> tuple[SourceEntry, ...]:
        entries = read_docker_archive(self.files, self.settings, self.scratch)
        return tuple(replace(entry, needs_both=self.is_directory) for entry in entries)

    def oci(self) -> LocalSource:
        """The images that index.json names."""
        return self.oci_source(self.named_entries())

    def oci_source(self, entries: tuple[SourceEntry, ...], notes: tuple[str, ...] = ()) -> LocalSource:
        return LocalSource(self.oci_kind.removesuffix(":"), self.location, entries, notes)

    def named_entries(self, saved: Collection[Digest] = ()) -> tuple[SourceEntry, ...]:
        return read_oci_layout(self.files, self.settings, self.location.stem, saved)


def _only_in_index(opened: _OpenedStore, saved: Sequence[SavedImage] | None) -> tuple[str, ...]:
    """A note on the images that only index.json names; none if index.json is malformed."""
    with suppress(SourceError):
        return _BothDescriptions(opened, saved).only_in_index() if saved else ()
    return ()


def _is_uncompressed(archive: BlobStore) -> bool:
    try:
        return is_uncompressed(archive)
    except SourceError:
        return False


def _saved_images(archive: BlobStore) -> tuple[SavedImage, ...] | None:
    try:
        return saved_images(archive)
    except ManifestError:
        return None  # it may be a manifest.json of another program


class _BothDescriptions:
    """Both descriptions of one archive or directory, compared: images with the same config are the same."""

    def __init__(self, opened: _OpenedStore, saved: Sequence[SavedImage]) -> None:
        self._opened = opened
        self._archive = opened.files
        self._saved = saved
        self.entries = opened.named_entries({image.config for image in saved if image.config})
        self._configs = [_configs(self._archive, entry) for entry in self.entries]

    def source(self) -> LocalSource:
        """All images, each once."""
        # The index.json of a directory has always been read, so its digests are established.
        if not self._opened.is_directory and self._is_byproduct():
            return self._opened.docker()
        return self._opened.oci_source((*self._named(), *self._only_in_manifest()))

    def index(self) -> LocalSource:
        """The images that index.json names, and a note on those that it lacks."""
        omitted = [image for image in self._saved if not self._positions_of(image)]
        notes = self._note(MANIFEST, INDEX, self._opened.docker_kind, map(_display_name, omitted))
        return self._opened.oci_source(self.entries, notes)

    def only_in_index(self) -> tuple[str, ...]:
        """A note on the images that manifest.json lacks."""
        saved = {image.config for image in self._saved}
        omitted = [entry for entry in self.entries if _configs(self._archive, entry, whole=True) - saved]
        return self._note(
            INDEX, MANIFEST, self._opened.oci_kind, (entry.title or f"@{entry.position}" for entry in omitted)
        )

    def _note(self, description: str, other: str, kind: str, images: Iterable[str]) -> tuple[str, ...]:
        names = list(dict.fromkeys(images))
        if not names:
            return ()
        shown = ", ".join(names[:_SHOWN_NAMES]) + (", ..." if len(names) > _SHOWN_NAMES else "")
        label = self._archive.label
        return (f"{description} in {label} names images that {other} lacks ({shown}): {kind}{label} reads them",)

    def _is_byproduct(self) -> bool:
        """Whether index.json was generated when the image was saved, as Docker's classic store does.

        Its manifests then name uncompressed layers, and no registry knows their digests: manifest.json is read, and
        the layers are compressed. Any further annotation of an entry (its origin, its build time) and any index is an
        identity to preserve.
        """
        if self._opened.settings.compression == "none" or not self.entries:
            return False
        saved = {image.config for image in self._saved}
        for entry, configs in zip(self.entries, self._configs, strict=True):
            root = entry.descriptor
            if root is None or root.media_type in INDEX_TYPES or not names_alone(root) or not configs <= saved:
                return False
            if _is_compressed(self._archive, root):
                return False
        return _is_uncompressed(self._archive)

    def _positions_of(self, image: SavedImage) -> list[int]:
        """The positions of *image* in index.json."""
        return [position for position, configs in enumerate(self._configs) if image.config in configs]

    def _named(self) -> list[SourceEntry]:
        """The entries of index.json, with their own names and those that only manifest.json has for them."""
        entries, further = list(self.entries), []
        for image in self._saved:
            positions = self._positions_of(image)
            for name in image.names if positions else ():
                if any(str(name) in entries[position].aliases for position in positions):
                    continue
                unnamed = [
                    position
                    for position in positions
                    if not entries[position].aliases and entries[position].title in (name.tag, None)
                ]
                if unnamed:
                    best = max(unnamed, key=lambda position: entries[position].title is not None)
                    entries[best] = _renamed(entries[best], name, entries[best].title)
                else:
                    further.append(_renamed(entries[positions[0]], name, None))
        return entries + further

    def _only_in_manifest(self) -> Iterator[SourceEntry]:
        """The images that only manifest.json names."""
        covered = {image.position for image in self._saved if self._positions_of(image)}
        positions: dict[int, int] = {}
        for entry in self._opened.saved_entries():
            if entry.position not in covered:
                position = positions.setdefault(entry.position, len(self.entries) + len(positions))
                yield replace(entry, position=position, needs_both=True)


def _configs(archive: BlobStore, entry: SourceEntry, *, whole: bool = False) -> frozenset[Digest]:
    return configs_in(archive, entry.descriptor, whole=whole) if entry.descriptor else frozenset()


def _is_compressed(archive: BlobStore, root: Descriptor) -> bool:
    """Whether a manifest names compressed layers: a registry may then know it."""
    try:
        content = find_blob(archive, root.digest)
        layers = read_manifest(archive, root, content).layers if content else ()
    except SourceError:
        return False
    return any(layer.media_type.endswith(_COMPRESSED) for layer in layers)


def _renamed(entry: SourceEntry, name: ImageName, title: str | None) -> SourceEntry:
    """*entry* under *name*; without a *title*, only both descriptions together name it."""
    tag = name.tag or "latest"
    return replace(
        entry,
        title=title or str(name),
        aliases=frozenset({str(name)}),
        repository=name.repository,
        tag=tag,
        needs_both=title is None,
    )


def _display_name(image: SavedImage) -> str:
    return str(image.names[0]) if image.names else f"@{image.position}"
