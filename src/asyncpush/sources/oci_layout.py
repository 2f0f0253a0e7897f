"""An OCI image layout, in a directory or an archive: the images that its index.json names (OCI image-spec)."""

from __future__ import annotations

import os
import posixpath
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import msgspec
from anyio import to_thread

from asyncpush import open_files
from asyncpush.errors import ManifestError, SourceError
from asyncpush.manifest import (
    ACCEPTED_TYPES,
    INDEX_TYPES,
    DescriptorDocument,
    Manifest,
    parse_descriptor,
    parse_manifest,
)
from asyncpush.model import Descriptor, Digest, Platform
from asyncpush.protocols import FoundReferrers, Image, UnreadReferrer
from asyncpush.reference import subject_of
from asyncpush.settings import MAX_INDEX_DEPTH, MAX_MANIFEST_SIZE, MAX_MANIFESTS, Settings
from asyncpush.sources.blobs import BlobStore, Content, DocumentMemory, decode_document, find_file, read_content
from asyncpush.sources.loader import ImageLoader, named_soci_index
from asyncpush.sources.oci_image import LayoutStore, available_part, find_blob
from asyncpush.sources.source import NO_IMAGE_HINT, ImageName, Loaded, SourceEntry, refuse_many_images

INDEX = "index.json"

_NO_LAYOUT = "name the directory that `skopeo copy docker://... oci:DIR` has written, or an archive of `docker save`"
LAYOUT = "oci-layout"

#: A tag or, as Podman and others write it, a full name (OCI image-spec, annotations).
_REF_NAME = "org.opencontainers.image.ref.name"

#: The full name that containerd and BuildKit write.
_IMAGE_NAME = "io.containerd.image.name"


class _Layout(msgspec.Struct, rename={"version": "imageLayoutVersion"}):
    version: str | None = None


class _Index(msgspec.Struct):
    """index.json; each entry is decoded separately, so that a malformed one affects only itself."""

    manifests: list[msgspec.Raw] | None


class _Annotated(msgspec.Struct):
    annotations: dict[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory as a store; no name leads out of it.

    A link must stay below the directory, or below the directory where index.json really lies: build systems create
    layouts of links into one. Any other link could push files that the layout's creator had no access to.
    """

    path: Path
    label: str
    memory: DocumentMemory | None = None

    def find(self, name: str) -> Content | None:
        """The file called *name* below the directory.

        Raises:
            SourceError: see ``blobs.BlobStore``; or a link leads out of the directory.
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
            return None  # no file can have this name
        except OSError as error:  # such as a relative path in a working directory that was deleted
            raise SourceError(f"{label} can't be read: {open_files.reason(error)}") from error

    def _home(self) -> Path:
        return Path(os.path.realpath(self.path / INDEX)).parent


def is_oci_layout(store: BlobStore) -> bool:
    """Whether *store* is a layout: it has oci-layout or, since some tools omit that, a plausible index.json."""
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
    """List the images that index.json names, in a worker thread.

    Args:
        store: holds the layout.
        settings: whether foreign layers are pushed.
        stem: the repository of images that name none: most tools write only a tag.
        saved: configs of the images that an archive's manifest.json lists.

    Raises:
        SourceError: index.json is missing or malformed, or oci-layout is malformed or of another version.
    """
    content = store.find(INDEX)
    if content is None:
        raise SourceError(f"{store.label} is not an OCI layout: it has no {INDEX}", hint=_NO_LAYOUT)
    _check_version(store)
    index = decode_document(read_content(content), _Index, f"{INDEX} in {store.label}")
    refuse_many_images(len(index.manifests or ()), f"{INDEX} in {store.label}")
    reader = _LayoutReader(store, settings, stem, saved)
    entries = [reader.entry(position, child) for position, child in enumerate(index.manifests or ())]
    relations = find_relations(store, {entry.position: entry.descriptor for entry in entries if entry.descriptor})
    referrers = LayoutReferrers(store, relations.by_subject)
    return tuple(
        replace(
            entry,
            subject=relations.subjects.get(entry.position),
            is_unreadable=entry.is_unreadable or entry.position in relations.unreadable,
            referrers=referrers,
        )
        for entry in entries
    )


def _check_version(store: BlobStore) -> None:
    """Refuse a layout of another version; an oci-layout without a version counts as missing."""
    content = store.find(LAYOUT)
    raw = read_content(content) if content else b""
    if not raw.strip():
        return
    version = decode_document(raw, _Layout, f"{LAYOUT} in {store.label}").version
    if version is not None and not version.startswith("1."):
        raise ManifestError(f"{store.label} is an OCI layout of version {version[:20]!r}; only 1.x is supported")


def names_alone(root: Descriptor) -> bool:
    """Whether an entry of index.json has no annotations but names."""
    return {key for key, _ in root.annotations} <= {_REF_NAME, _IMAGE_NAME}


@dataclass(frozen=True, slots=True)
class _LayoutReader:
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
        find = partial(available_part, self.store, root, self.settings, platforms=platforms, saved=self.saved)
        part = await to_thread.run_sync(find)
        loader = ImageLoader(LayoutStore(part.store), self.settings.push_foreign_layers)
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
    """The full name, if one of the two is a full name: a tag has neither slash nor colon."""
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
    """The annotations of an entry, so that an otherwise malformed entry can still be named."""
    with suppress(msgspec.DecodeError, RecursionError):
        return msgspec.json.decode(raw, type=_Annotated).annotations or {}
    return {}


def _printable(text: object) -> str | None:
    return text if isinstance(text, str) and text and text.isprintable() else None


#: The digest of the subject, which containerd and Docker write beside a saved image.
_SUBJECT = "io.containerd.manifest.subject"

#: The marks of `cosign save`.
_COSIGN_KIND = "kind"
_COSIGN = "dev.cosignproject.cosign/"
_COSIGN_IMAGES = frozenset({f"{_COSIGN}image", f"{_COSIGN}imageIndex"})
_COSIGN_TAGS = {f"{_COSIGN}sigs": "sig", f"{_COSIGN}atts": "att"}


@dataclass(frozen=True, slots=True)
class Relations:
    """The references between the manifests of a layout.

    Attributes:
        subjects: the subjects of those entries of index.json that refer to another one, by position.
        by_subject: the referrers of each manifest, with cosign's tags for them.
        unreadable: the positions of entries whose manifests can't be read.
    """

    subjects: Mapping[int, Digest]
    by_subject: Mapping[Digest, Sequence[tuple[Descriptor, str | None]]]
    unreadable: Collection[int]


def find_relations(store: BlobStore, entries: Mapping[int, Descriptor]) -> Relations:
    """Find the references between the *entries* of index.json, by position, in a worker thread.

    Manifests that can't be read refer to nothing here; pushing them reports the error.
    """
    return _Finder(store, entries).find()


@dataclass(slots=True)
class _Finder:
    store: BlobStore
    entries: Mapping[int, Descriptor]
    subjects: dict[int, Digest] = field(default_factory=dict)
    by_subject: defaultdict[Digest, dict[Digest, tuple[Descriptor, str | None]]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    _read: dict[Digest, Manifest | None] = field(default_factory=dict)

    def find(self) -> Relations:
        for position, entry in self.entries.items():
            self._relate(position, entry)
        present = {digest for entry in self.entries.values() for digest in self._tree(entry, 0)}
        subjects_by_digest = {self.entries[position].digest: subject for position, subject in self.subjects.items()}
        subjects = {
            position: subject
            for position, subject in self.subjects.items()
            if _final_subject(subject, subjects_by_digest) in present
        }
        by_subject = {subject: tuple(found.values()) for subject, found in self.by_subject.items()}
        unreadable = {position for position, entry in self.entries.items() if self._manifest(entry) is None}
        return Relations(subjects, by_subject, unreadable)

    def _relate(self, position: int, entry: Descriptor) -> None:
        name = (entry.annotation(_REF_NAME) or "").rpartition(":")[2]
        kind = _COSIGN_TAGS.get(entry.annotation(_COSIGN_KIND) or "")
        manifest = self._manifest(entry)
        if subject := subject_of(name):
            self.subjects[position] = subject
            if "." in name:
                self._add(subject, entry, name)
            else:
                for child in manifest.children if manifest else ():
                    self._add(subject, child, None)
        elif kind and (subject := self._cosigned(entry)):
            self.subjects[position] = subject
            self._add(subject, entry, f"sha256-{subject.hex}.{kind}")
        elif subject := _subject(entry, manifest):
            self.subjects[position] = subject
            self._add(subject, entry, None)
        elif manifest and (soci := named_soci_index(manifest)):
            # The loader adds it to its image; it is not an image itself.
            self.subjects |= {
                position: manifest.digest for position, other in self.entries.items() if other.digest == soci
            }

    def _add(self, subject: Digest, referrer: Descriptor, tag: str | None) -> None:
        self.by_subject[subject].setdefault(referrer.digest, (referrer, tag))

    def _cosigned(self, signatures: Descriptor) -> Digest | None:
        """The image to which `cosign save` has added *signatures*: the one of the same name, or the only one."""
        images = [entry for entry in self.entries.values() if entry.annotation(_COSIGN_KIND) in _COSIGN_IMAGES]
        name = signatures.annotation(_REF_NAME)
        named = [image for image in images if name is not None and image.annotation(_REF_NAME) == name]
        subjects = {image.digest for image in named or images}
        return subjects.pop() if len(subjects) == 1 else None

    def _tree(self, entry: Descriptor, depth: int) -> Iterator[Digest]:
        """The digests of *entry* and of everything that it names."""
        yield entry.digest
        if entry.media_type in INDEX_TYPES and depth < MAX_INDEX_DEPTH and len(self._read) < MAX_MANIFESTS:
            manifest = self._manifest(entry)
            for child in manifest.children if manifest else ():
                yield from self._tree(child, depth + 1)

    def _manifest(self, entry: Descriptor) -> Manifest | None:
        if entry.digest not in self._read:
            try:
                content = find_blob(self.store, entry.digest)
                raw = read_content(content, MAX_MANIFEST_SIZE) if content else b""
                self._read[entry.digest] = parse_manifest(raw, media_type=entry.media_type)
            except SourceError:
                self._read[entry.digest] = None
        return self._read[entry.digest]


def _subject(entry: Descriptor, manifest: Manifest | None) -> Digest | None:
    """The subject in a manifest, or else in its entry."""
    if manifest and manifest.subject:
        return manifest.subject
    try:
        return Digest.parse(entry.annotation(_SUBJECT) or "")
    except ValueError:
        return None


def _final_subject(subject: Digest, subjects: Mapping[Digest, Digest]) -> Digest | None:
    """The last subject in a chain that begins with *subject*; None if the chain is circular."""
    for _ in range(len(subjects) + 1):
        if subject not in subjects:
            return subject
        subject = subjects[subject]
    return None


@dataclass(frozen=True, slots=True)
class LayoutReferrers:
    """The referrers of a layout's manifests (``protocols.ReferrerSource``).

    Attributes:
        store: the layout.
        by_subject: see ``Relations``.
    """

    store: BlobStore
    by_subject: Mapping[Digest, Sequence[tuple[Descriptor, str | None]]]

    async def of(self, subject: Digest) -> FoundReferrers:
        """See ``protocols.ReferrerSource``."""
        found: list[Image] = []
        unread: list[UnreadReferrer] = []
        for descriptor, tag in self.by_subject.get(subject, ()):
            source = f"{self.store.label}:@{descriptor.digest}"
            try:
                root = await ImageLoader(LayoutStore(self.store)).load(descriptor)
            except SourceError as error:
                unread.append(UnreadReferrer(source, tag or str(descriptor.digest), tag, error))
            else:
                found.append(Image(source, None, tag, root))
        return FoundReferrers(tuple(found), tuple(unread))
