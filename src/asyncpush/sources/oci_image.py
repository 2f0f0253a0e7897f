"""The manifests and blobs of an OCI layout, read and checked in worker threads; and indexes that are incomplete.

Docker's containerd store saves the index of all platforms with the blobs of those that were pulled, and skopeo can copy
an image in the same way. ``available_part`` determines what of such an index can be pushed. A platform whose
manifest is present without its blobs does not count as available.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from anyio import to_thread

from asyncpush.errors import ChoiceError, DigestMismatchError, SourceError, SourceNotFoundError
from asyncpush.manifest import IMAGE_CONFIGS, INDEX_TYPES, Manifest, is_foreign, parse_manifest, with_children
from asyncpush.model import Descriptor, Digest, LeftOut, Platform
from asyncpush.protocols import Blob
from asyncpush.settings import MAX_INDEX_DEPTH, MAX_MANIFEST_SIZE, MAX_MANIFESTS, Settings
from asyncpush.sources.blobs import BlobStore, BytesContent, Content, ContentBlob, read_content
from asyncpush.sources.loader import ATTESTATION, ATTESTED, UNKNOWN, empty_blob, named_soci_index, parse_config
from asyncpush.units import count_text


@dataclass(frozen=True, slots=True)
class LayoutStore:
    """A layout or archive that keeps blobs by digest (``loader.ImageStore``).

    Attributes:
        store: holds the blobs under ``blobs/sha256/``.
    """

    store: BlobStore
    _manifests: dict[Descriptor | Digest, Manifest] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """Its name in errors."""
        return self.store.label

    async def manifest(self, reference: Descriptor | Digest) -> Manifest:
        """See ``loader.ImageStore``."""
        if reference not in self._manifests:
            self._manifests[reference] = await to_thread.run_sync(self._read, reference)
        return self._manifests[reference]

    async def config(self, descriptor: Descriptor) -> bytes:
        """See ``loader.ImageStore``."""
        return await to_thread.run_sync(lambda: read_content(self._present(descriptor, "config")))

    async def blobs(self, named: Sequence[tuple[str, Descriptor]]) -> Sequence[Blob | SourceError]:
        """See ``loader.ImageStore``."""
        return await to_thread.run_sync(lambda: [self._blob(kind, descriptor) for kind, descriptor in named])

    def _read(self, reference: Descriptor | Digest) -> Manifest:
        return read_manifest(self.store, reference, self._present(reference, "manifest"))

    def _blob(self, kind: str, descriptor: Descriptor) -> Blob | SourceError:
        try:
            return ContentBlob(f"{kind} {descriptor.digest.short}", descriptor, self._present(descriptor, kind))
        except SourceError as error:
            return error

    def _present(self, reference: Descriptor | Digest, kind: str) -> Content:
        digest = reference if isinstance(reference, Digest) else reference.digest
        content = find_blob(self.store, digest)
        if content is None:
            raise SourceNotFoundError(
                f"{self.label} lacks {kind} {digest}",
                hint="copy the image with all its platforms and blobs, or choose one with --platform",
            )
        if isinstance(reference, Descriptor) and content.size != reference.size:
            raise DigestMismatchError(f"{kind} {digest.short} in {self.label}", reference.size, content.size)
        if not content.size:
            raise empty_blob(kind, digest, self.label)
        return content


def find_blob(store: BlobStore, digest: Digest) -> Content | None:
    """The blob in a store that keeps blobs by digest; None if it is missing."""
    return store.find(f"blobs/sha256/{digest.hex}")


def read_manifest(store: BlobStore, reference: Descriptor | Digest, content: Content) -> Manifest:
    """Read a manifest of a store that keeps blobs by digest.

    Raises:
        ManifestError: it is malformed, or of a type that ECR does not accept.
        DigestMismatchError: its bytes do not match *reference*.
    """
    digest = reference if isinstance(reference, Digest) else reference.digest
    what = f"manifest {digest.short} in {store.label}"
    raw = read_content(content, MAX_MANIFEST_SIZE)
    if Digest.of(raw) != digest:
        raise DigestMismatchError(what, digest, Digest.of(raw))
    media_type = None if isinstance(reference, Digest) else reference.media_type
    return parse_manifest(raw, media_type=media_type, name=what)


@dataclass(frozen=True, slots=True)
class PartialIndex:
    """The part of an image that is loaded.

    Attributes:
        store: the store to load it from.
        root: the image, or an index of the available images.
        left_out: the parts that the store lacks.
    """

    store: BlobStore
    root: Descriptor
    left_out: tuple[LeftOut, ...] = ()


def configs_in(store: BlobStore, root: Descriptor, *, whole: bool) -> frozenset[Digest]:
    """The configs of the images at or below *root* whose manifests are available; or only of *whole* images."""
    leaves = _Survey(store, Settings()).member(root).leaves()
    return frozenset(
        leaf.config.digest
        for leaf in leaves
        if leaf.config and not leaf.is_attestation and (leaf.is_whole or not whole)
    )


def available_part(
    store: BlobStore,
    root: Descriptor,
    settings: Settings,
    *,
    platforms: Collection[Platform],
    saved: Collection[Digest],
) -> PartialIndex:
    """Determine the part of *root* to load: all of it, unless it is an index that is only partly available.

    An image that is damaged or missing altogether is left to the loader, which names each missing blob.

    Args:
        store: the store that holds the image.
        root: its descriptor.
        settings: whether foreign layers are pushed, and whether an index of the available platforms is.
        platforms: the platforms to take from an index; none takes all.
        saved: configs of the images that the archive's manifest.json lists.

    Raises:
        ChoiceError: several of its platforms are available and others are not, and the user has made no choice.
        SourceError: an image of *saved* is incomplete, or one for *platforms* is not available.
    """
    if root.media_type not in INDEX_TYPES:
        return PartialIndex(store, root)
    tree = _Survey(store, settings).member(root)
    leaves = [leaf for leaf in tree.leaves() if not leaf.is_attestation]
    available = [leaf for leaf in leaves if leaf.is_whole]
    incomplete = [leaf for leaf in leaves if not leaf.is_whole]
    if platforms and available and incomplete:
        return _of_platforms(store, tree, available, incomplete, platforms)
    for leaf in incomplete:
        if leaf.config and leaf.config.digest in saved:
            _refuse_missing(store, leaf)
    if tree.is_whole or not available or platforms:
        return PartialIndex(store, root)
    images = [leaf for leaf in available if leaf.config and leaf.config.media_type in IMAGE_CONFIGS] or available
    if not settings.available_platforms:
        is_listed = any(leaf.config and leaf.config.digest in saved for leaf in available)
        if not is_listed and any(_has_own_layers(leaf, available) for leaf in incomplete):
            return PartialIndex(store, root)  # no tool writes such an index: blobs were lost
        if len(images) > 1:
            raise _choice(store, images, incomplete)
    if len(images) == 1:
        return PartialIndex(store, images[0].descriptor, _left_out(store, tree, {images[0].descriptor.digest}))
    return _reduced(store, tree)


@dataclass(frozen=True, slots=True)
class _Member:
    """A manifest or index as far as it is available; one that can't be read counts as whole: the loader refuses it."""

    descriptor: Descriptor
    manifest: Manifest | None = None
    missing: frozenset[Digest] = frozenset()
    platform: Platform | None = None
    members: tuple[_Member, ...] = ()
    is_absent: bool = False

    @property
    def is_whole(self) -> bool:
        return not self.is_absent and not self.missing and all(member.is_whole for member in self.members)

    @property
    def is_attestation(self) -> bool:
        return self.descriptor.annotation(ATTESTATION) is not None

    @property
    def attested(self) -> str | None:
        return self.descriptor.annotation(ATTESTED) if self.is_attestation else None

    @property
    def config(self) -> Descriptor | None:
        return self.manifest.config if self.manifest else None

    @property
    def name(self) -> str:
        return str(self.platform) if self.platform else f"manifest {self.descriptor.digest.short}"

    def matches(self, platform: Platform) -> bool:
        return self.platform is not None and self.platform.satisfies(platform)

    def leaves(self) -> Iterator[_Member]:
        """The images at or below this one; the members of a missing index are unknown."""
        if self.is_absent or self.descriptor.media_type not in INDEX_TYPES:
            yield self
        for member in self.members:
            yield from member.leaves()


@dataclass(slots=True)
class _Survey:
    store: BlobStore
    settings: Settings
    _known: dict[Descriptor, _Member] = field(default_factory=dict)

    def member(self, descriptor: Descriptor, depth: int = 0) -> _Member:
        if descriptor not in self._known:
            self._known[descriptor] = self._member(descriptor, depth)
        return self._known[descriptor]

    def _member(self, descriptor: Descriptor, depth: int) -> _Member:
        platform = descriptor.platform if descriptor.platform != UNKNOWN else None
        if depth > MAX_INDEX_DEPTH or len(self._known) > MAX_MANIFESTS:
            return _Member(descriptor, platform=platform)
        try:
            content = find_blob(self.store, descriptor.digest)
            if content is None:
                return _Member(descriptor, platform=platform, is_absent=True)
            manifest = read_manifest(self.store, descriptor, content)
            if manifest.config is None:
                members = tuple(self.member(child, depth + 1) for child in manifest.children)
                return _Member(descriptor, manifest, platform=platform, members=members)
            missing = frozenset(
                blob.digest for blob in self._blobs(manifest) if find_blob(self.store, blob.digest) is None
            )
            platform = platform or self._platform(manifest.config)
        except SourceError:
            return _Member(descriptor, platform=platform)
        return _Member(descriptor, manifest, missing, platform)

    def _blobs(self, manifest: Manifest) -> Iterator[Descriptor]:
        for blob in manifest.blobs():
            if self.settings.push_foreign_layers or not is_foreign(blob):
                yield blob

    def _platform(self, config: Descriptor) -> Platform | None:
        content = find_blob(self.store, config.digest)
        return parse_config(read_content(content), f"config {config.digest.short}").platform if content else None


def _has_own_layers(leaf: _Member, available: Collection[_Member]) -> bool:
    """Whether the store holds a layer that belongs to *leaf* alone."""
    if leaf.manifest is None:
        return False
    shared = {blob.digest for other in available if other.manifest for blob in other.manifest.layers}
    own = {layer.digest for layer in leaf.manifest.layers} - shared
    return bool(own - leaf.missing)


def _of_platforms(
    store: BlobStore,
    tree: _Member,
    available: Collection[_Member],
    incomplete: Collection[_Member],
    platforms: Collection[Platform],
) -> PartialIndex:
    for platform in platforms:
        if any(leaf.matches(platform) for leaf in incomplete) and not any(leaf.matches(platform) for leaf in available):
            names = ", ".join(leaf.name for leaf in available)
            raise SourceError(
                f"{store.label} names an image for {platform}, but does not hold all of it; it holds {names}",
                hint=f"save or copy it with that platform: --platform {platform}",
            )
    kept = {member.descriptor.digest for member in tree.members if any(leaf.is_whole for leaf in member.leaves())}
    return PartialIndex(*_with_members(store, tree, kept))


def _reduced(store: BlobStore, tree: _Member) -> PartialIndex:
    kept = {member.descriptor.digest for member in tree.members if member.is_whole and not member.is_attestation}
    kept |= {member.descriptor.digest for member in tree.members if member.is_whole and _is_about(member, kept)}
    reduced, root = _with_members(store, tree, kept)
    return PartialIndex(reduced, root, _left_out(store, tree, kept))


def _is_about(attestation: _Member, images: Collection[Digest]) -> bool:
    return attestation.attested in {str(digest) for digest in images}


def _with_members(store: BlobStore, tree: _Member, kept: Collection[Digest]) -> tuple[BlobStore, Descriptor]:
    assert tree.manifest is not None, "an index that was read"  # noqa: S101
    manifest = with_children(tree.manifest, kept)
    return _ExtendedStore(store, manifest), manifest.descriptor


@dataclass(frozen=True, slots=True)
class _ExtendedStore:
    """A store with one more manifest."""

    store: BlobStore
    manifest: Manifest

    @property
    def label(self) -> str:
        return self.store.label

    def find(self, name: str) -> Content | None:
        if name == f"blobs/sha256/{self.manifest.digest.hex}":
            return BytesContent(self.manifest.raw, f"index {self.manifest.digest.short}")
        return self.store.find(name)


def _left_out(store: BlobStore, tree: _Member, kept: Collection[Digest]) -> tuple[LeftOut, ...]:
    """The parts that are left out; attestations of an image that is missing are not counted separately."""
    images = {str(leaf.descriptor.digest): leaf for leaf in tree.leaves()}
    available = [leaf for leaf in images.values() if leaf.is_whole and not leaf.is_attestation]
    # The loader adds an image's SOCI index.
    companions = {
        named_soci_index(leaf.manifest) for leaf in available if leaf.manifest and leaf.descriptor.digest in kept
    }
    platforms, attestations = [], []
    for leaf in _left_out_members(tree, {*kept, *companions}):
        about = images.get(leaf.attested or "")
        if not leaf.is_attestation:
            platforms.append(LeftOut(_name(leaf, available), leaf.descriptor.digest, _reason(store, leaf)))
        elif about is not None and about.is_whole:
            attestations.append(LeftOut(f"attestation of {about.name}", leaf.descriptor.digest, _reason(store, leaf)))
    return (*platforms, *attestations)


def _name(leaf: _Member, available: Collection[_Member]) -> str:
    """The platform; or the digest if its image is available, since this is then another manifest for it."""
    if any(leaf.platform == other.platform for other in available):
        return f"manifest {leaf.descriptor.digest.short}"
    return leaf.name


def _left_out_members(tree: _Member, kept: Collection[Digest | None]) -> Iterator[_Member]:
    for member in tree.members:
        if member.descriptor.digest not in kept:
            if member.descriptor.media_type in INDEX_TYPES and member.members:
                yield from _left_out_members(member, kept)
            else:
                yield member


def _reason(store: BlobStore, leaf: _Member) -> str:
    if leaf.is_absent:
        return f"not in {store.label}"
    return f"incomplete in {store.label}" if leaf.missing else "has no place beside a single image"


def _choice(store: BlobStore, available: Collection[_Member], incomplete: Collection[_Member]) -> ChoiceError:
    platforms = list(dict.fromkeys(leaf.name for leaf in available))
    missing = ", ".join(dict.fromkeys(_name(leaf, available) for leaf in incomplete)) or "their attestations"
    return ChoiceError(
        f"{store.label} holds {', '.join(platforms)} of an image, but not {missing}",
        [*(f"--platform {platform}" for platform in platforms), "--available-platforms"],
    )


def _refuse_missing(store: BlobStore, leaf: _Member) -> None:
    assert leaf.manifest is not None, "a manifest that names blobs"  # noqa: S101
    first, *others = [blob.digest for blob in leaf.manifest.blobs() if blob.digest in leaf.missing]
    more = f" and {count_text(len(others), 'more blob')}" if others else ""
    raise SourceError(
        f"{store.label} lacks {first}{more} of {leaf.name}, which its manifest.json names",
        hint="save the image again",
    )
