"""What refers to what in an OCI layout: signatures, attestations and SBOMs beside the images that they are about.

Tools write them in five ways: a manifest with a subject (OCI 1.1), an annotation of its entry, an index under the
referrers tag schema's name (``sha256-HEX``), cosign's tags (``sha256-HEX.sig`` and so on), and the kinds of
``cosign save``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from asyncpush.errors import SourceError
from asyncpush.manifest import INDEX_TYPES, Manifest, parse_manifest
from asyncpush.model import Descriptor, Digest
from asyncpush.protocols import FoundReferrers, Image, UnreadReferrer
from asyncpush.reference import subject_of
from asyncpush.settings import MAX_INDEX_DEPTH, MAX_MANIFEST_SIZE, MAX_MANIFESTS
from asyncpush.sources.blobs import BlobStore, read_content
from asyncpush.sources.loader import ImageLoader, named_soci_index
from asyncpush.sources.oci_image import LayoutImages, find_blob

_REF_NAME = "org.opencontainers.image.ref.name"

#: Names of the referrers tag schema (OCI distribution-spec 1.1) and of cosign.

#: What containerd and Docker write beside an image that is saved: the digest that it is about.
_SUBJECT = "io.containerd.manifest.subject"

#: How `cosign save` marks what it writes.
_COSIGN_KIND = "kind"
_COSIGN = "dev.cosignproject.cosign/"
_COSIGN_IMAGES = frozenset({f"{_COSIGN}image", f"{_COSIGN}imageIndex"})
_COSIGN_TAGS = {f"{_COSIGN}sigs": "sig", f"{_COSIGN}atts": "att"}


@dataclass(frozen=True, slots=True)
class Relations:
    """What refers to what.

    Attributes:
        about: of index.json's entries, by their positions, what those are about that are about another one there.
        by_subject: what refers to each manifest, and cosign's tag for it, if it has one.
        unreadable: entries whose manifests can't be read, by their positions.
    """

    about: Mapping[int, Digest]
    by_subject: Mapping[Digest, Sequence[tuple[Descriptor, str | None]]]
    unreadable: Collection[int]


def find_relations(store: BlobStore, entries: Mapping[int, Descriptor]) -> Relations:
    """Find out what refers to what among the *entries* of index.json, by their positions, in a worker thread.

    Manifests that can't be read refer to nothing: what is wrong with them is said when they are pushed.
    """
    return _Finder(store, entries).find()


@dataclass(slots=True)
class _Finder:
    store: BlobStore
    entries: Mapping[int, Descriptor]
    about: dict[int, Digest] = field(default_factory=dict)
    by_subject: defaultdict[Digest, dict[Digest, tuple[Descriptor, str | None]]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    _read: dict[Digest, Manifest | None] = field(default_factory=dict)

    def find(self) -> Relations:
        for position, entry in self.entries.items():
            self._relate(position, entry)
        there = {digest for entry in self.entries.values() for digest in self._tree(entry, 0)}
        subjects = {self.entries[position].digest: subject for position, subject in self.about.items()}
        about = {at: subject for at, subject in self.about.items() if _end(subject, subjects) in there}
        by_subject = {subject: tuple(found.values()) for subject, found in self.by_subject.items()}
        unreadable = {at for at, entry in self.entries.items() if self._manifest(entry) is None}
        return Relations(about, by_subject, unreadable)

    def _relate(self, position: int, entry: Descriptor) -> None:
        name = (entry.annotation(_REF_NAME) or "").rpartition(":")[2]
        kind = _COSIGN_TAGS.get(entry.annotation(_COSIGN_KIND) or "")
        manifest = self._manifest(entry)
        if subject := subject_of(name):
            self.about[position] = subject
            if "." in name:
                self._add(subject, entry, name)
            else:
                for child in manifest.children if manifest else ():
                    self._add(subject, child, None)
        elif kind and (subject := self._cosigned(entry)):
            self.about[position] = subject
            self._add(subject, entry, f"sha256-{subject.hex}.{kind}")
        elif subject := _subject(entry, manifest):
            self.about[position] = subject
            self._add(subject, entry, None)
        elif manifest and (soci := named_soci_index(manifest)):
            # The loader takes it along; it is not an image of its own.
            self.about |= {at: manifest.digest for at, other in self.entries.items() if other.digest == soci}

    def _add(self, subject: Digest, referrer: Descriptor, tag: str | None) -> None:
        self.by_subject[subject].setdefault(referrer.digest, (referrer, tag))

    def _cosigned(self, signatures: Descriptor) -> Digest | None:
        """The image that `cosign save` has written *signatures* for: the one of the same name, or the only one."""
        images = [entry for entry in self.entries.values() if entry.annotation(_COSIGN_KIND) in _COSIGN_IMAGES]
        name = signatures.annotation(_REF_NAME)
        named = [image for image in images if name is not None and image.annotation(_REF_NAME) == name]
        subjects = {image.digest for image in named or images}
        return subjects.pop() if len(subjects) == 1 else None

    def _tree(self, entry: Descriptor, depth: int) -> Iterator[Digest]:
        """The digests of *entry*, and of all that it names."""
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
    """What a manifest says that it is about, or else its entry."""
    if manifest and manifest.subject:
        return manifest.subject
    try:
        return Digest.parse(entry.annotation(_SUBJECT) or "")
    except ValueError:
        return None


def _end(subject: Digest, subjects: Mapping[Digest, Digest]) -> Digest | None:
    """What *subject* is about in the end: itself, if it is about nothing; None if it goes in a circle."""
    for _ in range(len(subjects) + 1):
        if subject not in subjects:
            return subject
        subject = subjects[subject]
    return None


@dataclass(frozen=True, slots=True)
class LayoutReferrers:
    """What refers to the manifests of a layout (``protocols.ReferrerSource``).

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
                root = await ImageLoader(LayoutImages(self.store)).load(descriptor)
            except SourceError as error:
                unread.append(UnreadReferrer(source, tag or str(descriptor.digest), tag, error))
            else:
                found.append(Image(source, None, tag, root))
        return FoundReferrers(tuple(found), tuple(unread))
