"""A registry that images are read from: tags resolved, manifests read and checked, referrers found, blobs named.

Referrers (signatures, attestations, SBOMs) are found by the OCI 1.1 referrers API, by the referrers tag schema where a
registry lacks that API, and by cosign's tags (``sha256-HEX.sig``, ``.att``, ``.sbom``).
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import anyio
import msgspec
from anyio import to_thread

from asyncpush.errors import (
    AsyncpushError,
    DigestMismatchError,
    ManifestError,
    SourceDeniedError,
    SourceError,
    SourceNotFoundError,
    SourceUnavailableError,
)
from asyncpush.events import Emit, Notice, ignore
from asyncpush.manifest import (
    ACCEPTED_TYPES,
    DOCKER_MANIFEST,
    Manifest,
    parse_manifest,
)
from asyncpush.model import Descriptor, Digest, Platform
from asyncpush.protocols import Blob, FoundReferrers, Image, ImageNode, IndexNode, UnreadReferrer
from asyncpush.reference import SCHEME, is_tag
from asyncpush.settings import MAX_MANIFEST_SIZE, MiB
from asyncpush.sources.loader import ImageLoader, empty_blob
from asyncpush.sources.registry.blob import RegistryBlob
from asyncpush.sources.registry.client import RegistryClient
from asyncpush.sources.registry.errors import INCOMPLETE, RefusedError
from asyncpush.sources.registry.listing import list_tags
from asyncpush.sources.registry.referrers import ListedReferrers, ReferrerLists
from asyncpush.sources.registry.requests import Request, Response, TransientError, path_of

_SCHEMA_1 = 1

#: Manifests take a few KiB of memory; the biggest indexes some hundred.
_CACHE_SIZE = 32 * MiB

#: Longer ones are hashed and parsed in a worker thread.
_LONG = 64 * 1024

_ACCEPT = MappingProxyType({"Accept": ", ".join(ACCEPTED_TYPES)})

_ACCEPT_DOCKER = MappingProxyType({"Accept": DOCKER_MANIFEST})

#: How registries refuse a request for types that they don't know.
_UNACCEPTABLE = frozenset({400, 406, 415})

#: HEADs that fail in a row for what may pass, before no more are sent.
_FAILING_HEADS = 2

_COSIGN = ("sig", "att", "sbom")


class SourceRegistryReader:
    """A registry that images are read from; ``open_remote`` or ``Remotes.at`` make it (``remotes.py``).

    Nothing is asked before the first method is called. ``requests`` counts what was asked, by kind: ``GET blob``,
    ``HEAD manifest``, ``token`` and so on; each try is one.
    """

    def __init__(self, wire: RegistryClient) -> None:
        self._wire = wire
        self._manifests: OrderedDict[Digest, Manifest] = OrderedDict()
        self._cached = 0
        self._referrers = ReferrerLists(wire, self.manifest)
        self._heads_left = _FAILING_HEADS

    @property
    def host(self) -> str:
        """The registry's host, as users write it."""
        return self._wire.host

    @property
    def emit(self) -> Emit:
        """Hears what a user should know of it."""
        return self._wire.emit

    @property
    def requests(self) -> Counter[str]:
        """How many requests of each kind were sent."""
        return self._wire.requests

    @property
    def lists_referrers(self) -> bool:
        """Whether it may have the referrers API; if not, a tag may hold what refers to an image."""
        return self._referrers.has_api

    async def resolve(self, repository: str, reference: str | Digest, expected: Collection[Digest] = ()) -> Descriptor:
        """What a tag names now (``GET`` of the manifest).

        Args:
            repository: where it is.
            reference: the tag, or a digest.
            expected: what it is likely to name: a ``HEAD`` that says so spares the ``GET``.

        Raises:
            SourceNotFoundError: there is no such tag or repository.
            SourceDeniedError: the registry refuses.
            SourceUnavailableError: it can't be reached, or fails too often.
            ManifestError: it is of a type that ECR does not take.
        """
        described = await self._head(repository, reference) if expected and self._heads_left > 0 else None
        if isinstance(described, Descriptor) and described.digest in expected:
            self._heads_left = _FAILING_HEADS
            return described
        descriptor = (await self.manifest(repository, reference)).descriptor
        # What GET has found, HEAD should have found.
        if isinstance(described, SourceError):
            self._heads_left -= 1 if isinstance(described, SourceUnavailableError) else _FAILING_HEADS
        return descriptor

    async def _head(self, repository: str, reference: str | Digest) -> Descriptor | SourceError | None:
        """What HEAD says that a tag names; None where it says too little. It decides nothing: GET does."""
        try:
            answer = await self._wire.fetch(self._ask_manifest("HEAD manifest", repository, reference), 0, once=True)
        except TransientError as error:
            if error.unanswered:
                raise
            return error
        except SourceError as error:
            return error
        return described(answer, reference)

    async def manifest(self, repository: str, reference: Descriptor | Digest | str) -> Manifest:
        """Read a manifest or index; one that was read by its digest is remembered for a while.

        Args:
            repository: where it is.
            reference: a tag, a digest, or a descriptor, which it must fit.

        Raises:
            SourceNotFoundError: it is not there (any more).
            DigestMismatchError: its bytes are not those that were asked for.
            ManifestError: it is malformed, too large, or of a type that ECR does not take.
            SourceDeniedError: the registry refuses.
            SourceUnavailableError: it can't be reached, or fails too often.
        """
        descriptor = reference if isinstance(reference, Descriptor) else None
        target = descriptor.digest if descriptor else reference
        wanted = target if isinstance(target, Digest) else None
        manifest = self._manifests.get(wanted) if wanted else None
        if wanted is None or manifest is None or (descriptor and descriptor.media_type != manifest.media_type):
            manifest = await self._read_manifest(repository, str(target), wanted, descriptor)
        if descriptor and descriptor.size != len(manifest.raw):
            raise ManifestError(
                f"manifest {repository}@{descriptor.digest} of {self.host} has {len(manifest.raw)} bytes, and what"
                f" points at it says {descriptor.size}",
                hint="the index that names it is wrong; build and push it again",
            )
        self._remember(manifest)
        return manifest

    async def _read_manifest(
        self, repository: str, reference: str, wanted: Digest | None, descriptor: Descriptor | None
    ) -> Manifest:
        """Ask for a manifest, and check what comes: it is *wanted*, or what the registry says that it is."""
        ask = self._ask_manifest("GET manifest", repository, reference)
        what = f"{ask.what} of {self.host}"
        try:
            answer = await self._wire.fetch(ask, MAX_MANIFEST_SIZE)
        except RefusedError as error:
            if error.status not in _UNACCEPTABLE:
                raise
            # Old registries choke on types that are younger than they.
            answer = await self._wire.fetch(replace(ask, headers=_ACCEPT_DOCKER), MAX_MANIFEST_SIZE)
        if answer.body is None:
            raise ManifestError(f"{what} has more than {MAX_MANIFEST_SIZE} bytes", hint="ECR takes no such manifest")
        media_type = descriptor.media_type if descriptor else media_type_of(answer)
        claim = wanted or digest_of(answer)
        checked = (answer.body, media_type, claim, what)
        try:
            if len(answer.body) > _LONG:
                return await to_thread.run_sync(parse_checked, *checked)
            return parse_checked(*checked)
        except DigestMismatchError as error:
            if wanted is not None or claim is None:
                raise
            return await self._one_of_both(repository, claim, error)

    async def _one_of_both(self, repository: str, claim: Digest, error: DigestMismatchError) -> Manifest:
        """What a tag names where the bytes are not what the registry says of them: either may be wrong.

        By their digests the registry gives what it has of both; what it says counts first.
        """
        try:
            return await self.manifest(repository, claim)
        except SourceNotFoundError:
            pass
        except SourceError:
            raise error from None
        try:
            assert isinstance(error.actual, Digest), "digests were compared"  # noqa: S101
            return await self.manifest(repository, error.actual)
        except SourceError:
            raise error from None

    async def tags(self, repository: str) -> tuple[str, ...]:
        """All tags of a repository, in the registry's order; what can't be a tag is left out.

        Raises:
            SourceNotFoundError: there is no such repository.
            SourceError: as ``manifest``, or the list can't be read to its end.
        """
        ask = Request("GET tags", path_of(repository, "tags", "list"), f"repository {repository}", repository)
        return tuple(filter(is_tag, await list_tags(self._wire, ask)))

    async def referrers(self, repository: str, digest: Digest, *, tagged: bool = False) -> ListedReferrers:
        """What refers to a manifest: see ``ReferrerLists.of``."""
        return await self._referrers.of(repository, digest, tagged=tagged)

    def blob(self, repository: str, descriptor: Descriptor, kind: str = "layer") -> RegistryBlob:
        """A blob, to be streamed; nothing is asked yet."""
        return RegistryBlob(f"{kind} {descriptor.digest.short}", descriptor, repository, self._wire)

    async def load(
        self,
        repository: str,
        descriptor: Descriptor,
        platforms: Collection[Platform] = (),
        *,
        push_foreign_layers: bool = False,
    ) -> ImageNode | IndexNode:
        """Read an image or index with all that it names; its blobs are not asked for.

        Args:
            repository: where it is.
            descriptor: of its manifest, as ``resolve`` gives it.
            platforms: which images are taken of an index (``loader.ImageLoader.load``).
            push_foreign_layers: take non-distributable layers, too.

        Raises:
            ChoiceError: there is no image for any of *platforms*.
            ManifestError: a manifest is malformed, or there are too many, or they are nested too deeply.
            DigestMismatchError: a manifest's bytes are not those that were asked for.
            SourceError: a manifest is missing, a blob is empty, or the registry refuses or can't be reached.
        """
        loader = ImageLoader(RepositoryImages(self, repository, descriptor), push_foreign_layers)
        return await loader.load(descriptor, platforms)

    def _ask_manifest(self, operation: str, repository: str, reference: str | Digest) -> Request:
        joint = "@" if isinstance(reference, Digest) or reference.startswith("sha256:") else ":"
        what = f"manifest {repository}{joint}{reference}"
        return Request(operation, path_of(repository, "manifests", str(reference)), what, repository, _ACCEPT)

    def _remember(self, manifest: Manifest) -> None:
        replaced = self._manifests.pop(manifest.digest, None)
        self._manifests[manifest.digest] = manifest
        self._cached += manifest.footprint - (replaced.footprint if replaced else 0)
        while self._cached > _CACHE_SIZE:
            _, oldest = self._manifests.popitem(last=False)
            self._cached -= oldest.footprint


@dataclass(frozen=True, slots=True)
class RepositoryImages:
    """A repository of a registry (``loader.ImageStore``).

    Attributes:
        remote: the registry.
        repository: its name there.
        root: of the image that is read: what else is read is named by it.
    """

    remote: SourceRegistryReader
    repository: str
    root: Descriptor

    @property
    def label(self) -> str:
        """How to call it in errors."""
        return f"{SCHEME}{self.remote.host}/{self.repository}"

    async def manifest(self, reference: Descriptor | Digest) -> Manifest:
        """See ``loader.ImageStore``."""
        try:
            return await self.remote.manifest(self.repository, reference)
        except SourceNotFoundError as error:
            digest = reference.digest if isinstance(reference, Descriptor) else reference
            if digest != self.root.digest:
                error.hint = f"{INCOMPLETE}, or take what is there: --platform, or platforms in a plan"
            raise

    async def config(self, descriptor: Descriptor) -> bytes:
        """See ``loader.ImageStore``."""
        data = bytearray(descriptor.size)
        async with self.remote.blob(self.repository, descriptor, "config").stream() as stream:
            await stream.readinto(memoryview(data))
        return bytes(data)

    async def blobs(self, named: Sequence[tuple[str, Descriptor]]) -> Sequence[Blob | SourceError]:
        """See ``loader.ImageStore``."""
        return [
            self.remote.blob(self.repository, descriptor, kind)
            if descriptor.size
            else empty_blob(kind, descriptor.digest, self.label)
            for kind, descriptor in named
        ]


@dataclass(slots=True)
class RepositoryReferrers:
    """What refers to the manifests of a repository (``protocols.ReferrerSource``).

    Attributes:
        remote: the registry.
        repository: its name there.
        list_tags: lists its tags; asked once.
        emit: hears of tags that can't be listed.
    """

    remote: SourceRegistryReader
    repository: str
    list_tags: Callable[[], Awaitable[Collection[str]]]
    emit: Emit = ignore
    _listing: anyio.Lock = field(default_factory=anyio.Lock)
    _listed: bool = False
    _tags: frozenset[str] | None = None

    @property
    def place(self) -> str:
        """The repository, as users write it."""
        return f"{SCHEME}{self.remote.host}/{self.repository}"

    async def of(self, subject: Digest) -> FoundReferrers:
        """See ``protocols.ReferrerSource``."""
        tags = await self._all_tags()
        reading, tagged = _Reading(self, subject), f"sha256-{subject.hex}"
        if self.remote.lists_referrers or tags is None or tagged in tags:
            await reading.listed(tagged=tags is not None and tagged in tags)
        for tag in (f"{tagged}.{kind}" for kind in _COSIGN):
            if tags is None or tag in tags:
                await reading.one(tag, tag, guessed=tags is None)
        return FoundReferrers(tuple(reading.found), tuple(reading.unread))

    async def _all_tags(self) -> frozenset[str] | None:
        """The repository's tags; cosign's are among them. None if they can't be listed: then each is asked for."""
        async with self._listing:
            if not self._listed:
                self._listed = True
                try:
                    self._tags = frozenset(await self.list_tags())
                except AsyncpushError as error:
                    text = f"the tags of {self.place} can't be listed, so cosign's are asked for one by one: {error}"
                    self.emit(Notice(text))
            return self._tags


@dataclass(slots=True)
class _Reading:
    """Reads what refers to one manifest; what can't be read costs itself only."""

    source: RepositoryReferrers
    subject: Digest
    found: list[Image] = field(default_factory=list)
    unread: list[UnreadReferrer] = field(default_factory=list)

    async def listed(self, *, tagged: bool) -> None:
        """Read what the registry lists, and what the tag for it names if that is there."""
        place = f"referrers of {self.subject} in {self.source.place}"
        try:
            listed = await self.source.remote.referrers(self.source.repository, self.subject, tagged=tagged)
        except AsyncpushError as error:
            self.unread.append(UnreadReferrer(place, "", None, error))
            return
        if listed.problems:
            self.unread.append(UnreadReferrer(place, "", None, listed.problems[0]))
        for descriptor in listed.descriptors:
            await self.one(descriptor, None)

    async def one(self, reference: Descriptor | str, tag: str | None, *, guessed: bool = False) -> None:
        """Read one; if it is *guessed*, nothing says that it is there."""
        remote, repository = self.source.remote, self.source.repository
        name = reference if isinstance(reference, str) else str(reference.digest)
        place = f"{self.source.place}{':' if tag else '@'}{name}"
        try:
            manifest = await remote.manifest(repository, reference)
        except SourceNotFoundError as error:
            if not guessed:
                text = f"{name}, which refers to {self.subject.short}, is gone at its source: {error.message}"
                self.source.emit(Notice(text))
            return
        except AsyncpushError as error:
            if not (guessed and isinstance(error, SourceDeniedError)):  # some refuse what is not there
                self.unread.append(UnreadReferrer(place, name, tag, error))
            return
        try:
            root = await remote.load(repository, manifest.descriptor)
        except AsyncpushError as error:
            self.unread.append(UnreadReferrer(place, name, tag, error))
        else:
            self.found.append(Image(place, None, tag, root))


class _Version(msgspec.Struct, rename={"schema_version": "schemaVersion"}):
    schema_version: int = 0


def described(answer: Response, reference: str | Digest) -> Descriptor | None:
    """What a HEAD tells; None where it tells too little, or what can't be."""
    length = answer.headers.get("Content-Length", "")
    digest, media_type = digest_of(answer), media_type_of(answer)
    if answer.status != 200 or digest is None or media_type is None or not (length.isascii() and length.isdecimal()):
        return None
    if not int(length[:12]):
        return None  # some say so of HEAD's own body
    if isinstance(reference, Digest) and reference != digest:
        return None
    return Descriptor(media_type, digest, int(length[:12]))


def media_type_of(answer: Response) -> str | None:
    """The type of manifest that an answer says it is; None if it says something else."""
    media_type = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return media_type if media_type in ACCEPTED_TYPES else None


def digest_of(answer: Response) -> Digest | None:
    """The digest that an answer claims; None if it claims none."""
    try:
        return Digest.parse(answer.headers.get("Docker-Content-Digest", "").strip())
    except ValueError:
        return None  # missing, or of another algorithm


def parse_checked(raw: bytes, media_type: str | None, claim: Digest | None, what: str) -> Manifest:
    """Parse a manifest, and see that it is what is claimed; *what* is how to call it in errors.

    Raises:
        DigestMismatchError: its bytes are others.
        ManifestError: it is malformed, or of a type that ECR does not take.
    """
    # First, since the digest of a signed schema 1 image leaves out its signatures.
    _refuse_schema_1(raw, what)
    digest = Digest.of(raw)
    if claim is not None and claim != digest:
        raise _mismatch(what, claim, digest)
    return parse_manifest(raw, media_type=media_type, name=what)


def _refuse_schema_1(raw: bytes, what: str) -> None:
    try:
        version = msgspec.json.decode(raw, type=_Version).schema_version
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    if version == _SCHEMA_1:
        raise ManifestError(
            f"{what} is a schema 1 image (schema version 1), which ECR refuses (405 UNSUPPORTED)",
            hint="convert it: pull it and push it again with a tool of today, such as skopeo copy --format v2s2",
        )


def _mismatch(what: str, expected: Digest | int, actual: Digest | int) -> DigestMismatchError:
    hint = "the registry, or a proxy before it, gives other bytes than were asked for"
    return DigestMismatchError(what, expected, actual, hint=hint)
