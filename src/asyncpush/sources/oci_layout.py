"""An OCI image layout, in a directory or an archive: the images that its index.json names (OCI image-spec)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec

from asyncpush.errors import ManifestError, SourceError
from asyncpush.manifest import ACCEPTED_TYPES, DescriptorDocument, parse_descriptor
from asyncpush.model import Descriptor, Platform
from asyncpush.protocols import ImageNode, IndexNode
from asyncpush.settings import Settings
from asyncpush.sources.content import Content, Store, decode_document, find_file, read_content
from asyncpush.sources.loader import ImageLoader
from asyncpush.sources.names import ImageName
from asyncpush.sources.oci_image import LayoutImages
from asyncpush.sources.oci_referrers import LayoutReferrers, find_relations
from asyncpush.sources.source import Entry

INDEX = "index.json"
LAYOUT = "oci-layout"

#: A tag, or, as Podman and others write it, a full name (OCI image-spec, annotations).
_REF_NAME = "org.opencontainers.image.ref.name"

#: The full name, as containerd and BuildKit write it.
_IMAGE_NAME = "io.containerd.image.name"


class _Layout(msgspec.Struct, rename={"version": "imageLayoutVersion"}):
    version: str


class _Index(msgspec.Struct):
    manifests: list[DescriptorDocument]


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory as a store; a layout's names are fixed words and hex digests, so none leads out of it."""

    path: Path
    label: str

    def find(self, name: str) -> Content | None:
        """The file called *name* below the directory."""
        return find_file(self.path / name, f"{name} in {self.label}")


def read_oci_layout(store: Store, settings: Settings, stem: str | None) -> tuple[Entry, ...]:
    """List the images of a layout, in a worker thread.

    Args:
        store: what holds the layout.
        settings: whether foreign layers are pushed.
        stem: the repository of images that name none themselves: their tag is all that most tools write.

    Raises:
        ManifestError: index.json or oci-layout is missing, malformed or of another version.
    """
    layout = decode_document(read_content(_required(store, LAYOUT)), _Layout, f"{LAYOUT} in {store.label}")
    if not layout.version.startswith("1."):
        raise ManifestError(f"{store.label} is an OCI layout of version {layout.version[:20]!r}; 1.x is read")
    index = decode_document(read_content(_required(store, INDEX)), _Index, f"{INDEX} in {store.label}")
    images = [child for child in index.manifests if child.media_type in ACCEPTED_TYPES]
    if index.manifests and not images:
        kind = str(index.manifests[0].media_type)[:100]
        raise ManifestError(
            f"{store.label} holds no image, but {kind!r}", hint="ECR takes OCI and Docker v2 manifests and indexes"
        )
    entries = [_entry(at, child, store, settings, stem) for at, child in enumerate(images)]
    descriptors = [parse_descriptor(child, f"{INDEX} in {store.label}") for child in images]
    relations = find_relations(store, descriptors)
    referrers = LayoutReferrers(store, relations.by_subject)
    return tuple(replace(entry, about=relations.about.get(entry.position), referrers=referrers) for entry in entries)


def _required(store: Store, name: str) -> Content:
    content = store.find(name)
    if content is None:
        raise SourceError(f"{store.label} is not an OCI layout: it has no {name}")
    return content


def _entry(position: int, parsed: DescriptorDocument, store: Store, settings: Settings, stem: str | None) -> Entry:
    descriptor = parse_descriptor(parsed, f"{INDEX} in {store.label}")
    ref_name, image_name = (_printable(descriptor.annotation(key)) for key in (_REF_NAME, _IMAGE_NAME))
    name = _name(image_name, ref_name)
    aliases = {image_name, name and str(name), name and name.tag} - {None}
    return Entry(
        position,
        partial(_load, store, settings, descriptor),
        ref_name or image_name,
        frozenset(alias for alias in aliases if alias),
        (name and name.repository) or stem,
        name.tag if name else ref_name,
        descriptor.digest,
        descriptor.platform,
    )


async def _load(
    store: Store, settings: Settings, root: Descriptor, platforms: Collection[Platform]
) -> ImageNode | IndexNode:
    return await ImageLoader(LayoutImages(store), settings.push_foreign_layers).load(root, platforms)


def _name(image_name: str | None, ref_name: str | None) -> ImageName | None:
    """The full name, if one of the two is one: a tag has neither slash nor colon."""
    for text in (image_name, ref_name):
        if text and ("/" in text or ":" in text):
            return ImageName.parse(text)
    return None


def _printable(text: str | None) -> str | None:
    return text if text and text.isprintable() else None
