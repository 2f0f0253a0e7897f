"""An OCI image layout, in a directory or an archive: the images that its index.json names (OCI image-spec)."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec
from anyio import to_thread

from asyncpush.errors import ManifestError, SourceError
from asyncpush.manifest import ACCEPTED_TYPES, DescriptorDocument, parse_descriptor
from asyncpush.model import Descriptor, Digest, Platform
from asyncpush.settings import Settings
from asyncpush.sources.blobs import BlobStore, Content, decode_document, find_file, read_content
from asyncpush.sources.document_memory import DocumentMemory
from asyncpush.sources.loader import ImageLoader
from asyncpush.sources.names import ImageName
from asyncpush.sources.oci_image import LayoutImages
from asyncpush.sources.oci_referrers import LayoutReferrers, find_relations
from asyncpush.sources.partial_index import part_that_is_there
from asyncpush.sources.source import NO_IMAGE_HINT, Loaded, SourceEntry, refuse_many_images

INDEX = "index.json"
LAYOUT = "oci-layout"

#: A tag, or, as Podman and others write it, a full name (OCI image-spec, annotations).
_REF_NAME = "org.opencontainers.image.ref.name"

#: The full name, as containerd and BuildKit write it.
_IMAGE_NAME = "io.containerd.image.name"


class _Layout(msgspec.Struct, rename={"version": "imageLayoutVersion"}):
    version: str | None = None


class _Index(msgspec.Struct):
    """index.json; each entry is decoded alone, since a bad one costs itself only."""

    manifests: list[msgspec.Raw] | None


class _Annotated(msgspec.Struct):
    annotations: dict[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory as a store; no name leads out of it.

    A link must stay below the directory, or below the one where index.json really lies: build systems make layouts of
    links into such a one. Any other would read, and push, what whoever made the layout could not read himself.
    """

    path: Path
    label: str
    memory: DocumentMemory | None = None

    def find(self, name: str) -> Content | None:
        """The file called *name* below the directory.

        Raises:
            SourceError: see ``content.Store``; or a link leads out of the directory.
        """
        inside = posixpath.normpath(f"/{name}").lstrip("/")
        path = self.path / inside
        label = f"{name[:200]} in {self.label}"
        try:
            real = Path(os.path.realpath(path))
            if not real.is_relative_to(self.path.resolve()) and not real.is_relative_to(self._home()):
                raise SourceError(f"{label} is a link that leads out of it", hint="copy what it leads to")
            return find_file(path, label, self.memory)
        except ValueError:
            return None  # no file has such a name

    def _home(self) -> Path:
        return Path(os.path.realpath(self.path / INDEX)).parent


def is_oci_layout(store: BlobStore) -> bool:
    """Whether *store* says that it is a layout; without oci-layout, as some tools write it, index.json must tell."""
    content = store.find(INDEX)
    if content is None:
        return False
    if store.find(LAYOUT) is not None:
        return True
    try:
        entries = decode_document(read_content(content), _Index, INDEX).manifests or ()
    except SourceError:
        return False
    return not entries or any(map(_is_descriptor, entries))


def read_oci_layout(
    store: BlobStore, settings: Settings, stem: str | None, saved: Collection[Digest] = ()
) -> tuple[SourceEntry, ...]:
    """List what index.json names, in a worker thread.

    Args:
        store: what holds the layout.
        settings: whether foreign layers are pushed.
        stem: the repository of images that name none themselves: their tag is all that most tools write.
        saved: configs of the images that an archive's manifest.json says are there.

    Raises:
        SourceError: index.json is missing or malformed, or oci-layout is malformed or of another version.
    """
    content = store.find(INDEX)
    if content is None:
        raise SourceError(f"{store.label} is not an OCI layout: it has no {INDEX}")
    _check_version(store)
    index = decode_document(read_content(content), _Index, f"{INDEX} in {store.label}")
    refuse_many_images(len(index.manifests or ()), f"{INDEX} in {store.label}")
    opened = _Opened(store, settings, stem, saved)
    entries = [opened.entry(at, child) for at, child in enumerate(index.manifests or ())]
    relations = find_relations(store, {entry.position: entry.descriptor for entry in entries if entry.descriptor})
    referrers = LayoutReferrers(store, relations.by_subject)
    return tuple(
        replace(
            entry,
            about=relations.about.get(entry.position),
            is_unreadable=entry.is_unreadable or entry.position in relations.unreadable,
            referrers=referrers,
        )
        for entry in entries
    )


def _check_version(store: BlobStore) -> None:
    """Refuse a layout of another version; one that says none, or nothing, is read as one without oci-layout."""
    content = store.find(LAYOUT)
    raw = read_content(content) if content else b""
    if not raw.strip():
        return
    version = decode_document(raw, _Layout, f"{LAYOUT} in {store.label}").version
    if version is not None and not version.startswith("1."):
        raise ManifestError(f"{store.label} is an OCI layout of version {version[:20]!r}; 1.x is read")


def names_alone(root: Descriptor) -> bool:
    """Whether an entry of index.json says nothing of its image but its names."""
    return {key for key, _ in root.annotations} <= {_REF_NAME, _IMAGE_NAME}


@dataclass(frozen=True, slots=True)
class _Opened:
    store: BlobStore
    settings: Settings
    stem: str | None
    saved: Collection[Digest]

    def entry(self, position: int, raw: msgspec.Raw) -> SourceEntry:
        annotations = _annotations(raw)
        ref_name, image_name = (_printable(annotations.get(key)) for key in (_REF_NAME, _IMAGE_NAME))
        name = _name(image_name, ref_name)
        aliases = {image_name, name and str(name), name and name.tag} - {None}
        title = ref_name or image_name
        entry = SourceEntry(
            position,
            partial(self._refuse, position, raw),
            title,
            frozenset(alias for alias in aliases if alias),
            (name and name.repository) or self.stem,
            name.tag if name else ref_name,
        )
        try:
            parsed = self._parsed(position, raw)
            if parsed.media_type not in ACCEPTED_TYPES:
                return replace(entry, other_type=parsed.media_type)
            descriptor = parse_descriptor(parsed, f"{INDEX} in {self.store.label}")
        except ManifestError:
            return replace(entry, is_unreadable=True)
        return replace(
            entry,
            load=partial(self._load, descriptor),
            digest=descriptor.digest,
            platform=descriptor.platform,
            descriptor=descriptor,
        )

    async def _load(self, root: Descriptor, platforms: Collection[Platform]) -> Loaded:
        find = partial(part_that_is_there, self.store, root, self.settings, platforms=platforms, saved=self.saved)
        part = await to_thread.run_sync(find)
        loader = ImageLoader(LayoutImages(part.store), self.settings.push_foreign_layers)
        return Loaded(await loader.load(part.root, platforms), part.left_out)

    def _parsed(self, position: int, raw: msgspec.Raw) -> DescriptorDocument:
        return decode_document(bytes(raw), DescriptorDocument, f"entry {position} of {INDEX} in {self.store.label}")

    async def _refuse(self, position: int, raw: msgspec.Raw, _: Collection[Platform]) -> Loaded:
        where = f"{INDEX} in {self.store.label}"
        parsed = self._parsed(position, raw)
        if parsed.media_type in ACCEPTED_TYPES:
            parse_descriptor(parsed, where)
        raise ManifestError(f"entry {position} of {where} is {parsed.media_type[:200]!r}, no image", hint=NO_IMAGE_HINT)


def _name(image_name: str | None, ref_name: str | None) -> ImageName | None:
    """The full name, if one of the two is one: a tag has neither slash nor colon."""
    for text in (image_name, ref_name):
        if text and ("/" in text or ":" in text):
            return ImageName.parse(text)
    return None


def _is_descriptor(raw: msgspec.Raw) -> bool:
    with suppress(ManifestError):
        decode_document(bytes(raw), DescriptorDocument, INDEX)
        return True
    return False


def _annotations(raw: msgspec.Raw) -> dict[str, object]:
    """The annotations of an entry, so that one that is malformed elsewhere can still be named."""
    with suppress(msgspec.DecodeError, RecursionError):
        return msgspec.json.decode(raw, type=_Annotated).annotations or {}
    return {}


def _printable(text: object) -> str | None:
    return text if isinstance(text, str) and text and text.isprintable() else None
