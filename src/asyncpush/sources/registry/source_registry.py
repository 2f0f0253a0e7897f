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
from asyncpush.reference import SCHEME, is_repository, is_tag
from asyncpush.settings import MAX_MANIFEST_SIZE, MiB
from asyncpush.sources.loader import ImageLoader, empty_blob
from asyncpush.sources.registry.blob import RegistryBlob
from asyncpush.sources.registry.client import RegistryClient
from asyncpush.sources.registry.errors import INCOMPLETE, RefusedError
from asyncpush.sources.registry.listing import TagListDocument, list_names, list_repositories
from asyncpush.sources.registry.pull_limit import PullLimit
from asyncpush.sources.registry.referrers import ListedReferrers, ReferrerLists
from asyncpush.sources.registry.requests import Request, Response, TransientError, path_of

_SCHEMA_1 = 1

#: Bytes of cached manifests: most have a few KiB, large indexes some hundred.
_CACHE_SIZE = 32 * MiB

#: Longer manifests are hashed and parsed in a worker thread.
_LONG = 64 * 1024

_ACCEPT = MappingProxyType({"Accept": ", ".join(ACCEPTED_TYPES)})

_ACCEPT_DOCKER = MappingProxyType({"Accept": DOCKER_MANIFEST})

#: Statuses by which registries refuse media types that they do not know.
_UNACCEPTABLE = frozenset({400, 406, 415})

#: Consecutive transient failures of HEAD after which no more are sent.
_FAILING_HEADS = 2

_COSIGN = ("sig", "att", "sbom")


class SourceRegistryReader:
    """Reads from one registry; ``RegistryPool.at`` creates it.

    No request is sent before the first method is called.
    """

    def __init__(self, client: RegistryClient) -> None:
        self._client = client
        self._manifests: OrderedDict[Digest, Manifest] = OrderedDict()
        self._cached = 0
        self._referrers = ReferrerLists(client, self.manifest)
        self._heads_left = _FAILING_HEADS

    @property
    def host(self) -> str:
        """The registry's host, as users write it."""
        return self._client.host

    @property
    def emit(self) -> Emit:
        """Receives the events of this registry."""
        return self._client.emit

    @property
    def requests(self) -> Counter[str]:
        """How many requests were sent, by kind (``GET blob``, ``HEAD manifest``, ``token``, ...); each try counts."""
        return self._client.requests

    @property
    def pull_limit(self) -> PullLimit | None:
        """The limit on pulls that the registry's answers have told; None if they have told none."""
        return self._client.pull_limit

    @property
    def lists_referrers(self) -> bool:
        """Whether it may have the referrers API; without it, the referrers tag is looked up."""
        return self._referrers.has_api

    async def resolve(self, repository: str, reference: str | Digest, expected: Collection[Digest] = ()) -> Descriptor:
        """Find out what a tag names now (``GET`` of the manifest; ``HEAD`` where only that is no pull).

        Args:
            repository: the repository.
            reference: the tag, or a digest.
            expected: the digests that it is likely to name: if a ``HEAD`` confirms one, no ``GET`` is needed.

        Raises:
            SourceNotFoundError: there is no such tag or repository.
            SourceDeniedError: the registry denies access.
            SourceUnavailableError: it can't be reached, or fails too often.
            ManifestError: it is of a type that ECR does not accept.
        """
        counts_pulls = self._client.counts_pulls
        asks_first = (expected or counts_pulls) and self._heads_left > 0
        described = await self._head(repository, reference) if asks_first else None
        # What counts pulls reads each manifest once, by its digest, however many tags name it.
        if isinstance(described, Descriptor) and (counts_pulls or described.digest in expected):
            self._heads_left = _FAILING_HEADS
            return described
        descriptor = (await self.manifest(repository, reference)).descriptor
        # HEAD should have found what GET has found.
        if isinstance(described, SourceError):
            self._heads_left -= 1 if isinstance(described, SourceUnavailableError) else _FAILING_HEADS
        return descriptor

    async def _head(self, repository: str, reference: str | Digest) -> Descriptor | SourceError | None:
        """What a tag names according to HEAD; None if that says too little. The result is a hint only: GET decides."""
        try:
            response = await self._client.fetch(
                self._manifest_request("HEAD manifest", repository, reference), 0, once=True
            )
        except TransientError as error:
            if error.unanswered:
                raise
            return error
        except SourceError as error:
            return error
        return descriptor_of(response, reference)

    async def manifest(self, repository: str, reference: Descriptor | Digest | str) -> Manifest:
        """Read a manifest or index; it is cached by its digest.

        Args:
            repository: the repository.
            reference: a tag, a digest, or a descriptor, which it must match.

        Raises:
            SourceNotFoundError: the registry does not have it.
            DigestMismatchError: its bytes have another digest than requested.
            ManifestError: it is malformed, too large, or of a type that ECR does not accept.
            SourceDeniedError: the registry denies access.
            SourceUnavailableError: it can't be reached, or fails too often.
        """
        descriptor = reference if isinstance(reference, Descriptor) else None
        target = descriptor.digest if descriptor else reference
        expected_digest = target if isinstance(target, Digest) else None
        manifest = self._manifests.get(expected_digest) if expected_digest else None
        if expected_digest is None or manifest is None or (descriptor and descriptor.media_type != manifest.media_type):
            manifest = await self._read_manifest(repository, str(target), expected_digest, descriptor)
        if descriptor and descriptor.size != len(manifest.raw):
            raise ManifestError(
                f"manifest {repository}@{descriptor.digest} of {self.host} has {len(manifest.raw)} bytes, but its"
                f" descriptor says {descriptor.size}",
                hint="the index that names it is wrong; build and push it again",
            )
        self._remember(manifest)
        return manifest

    async def _read_manifest(
        self, repository: str, reference: str, expected_digest: Digest | None, descriptor: Descriptor | None
    ) -> Manifest:
        """Request a manifest and check that it has the *expected_digest*, or else the one that the registry claims."""
        request = self._manifest_request("GET manifest", repository, reference)
        what = f"{request.what} of {self.host}"
        try:
            response = await self._client.fetch(request, MAX_MANIFEST_SIZE)
        except RefusedError as error:
            if error.status not in _UNACCEPTABLE:
                raise
            # Old registries reject requests that name newer media types.
            response = await self._client.fetch(replace(request, headers=_ACCEPT_DOCKER), MAX_MANIFEST_SIZE)
        if response.body is None:
            raise ManifestError(f"{what} has more than {MAX_MANIFEST_SIZE} bytes", hint="ECR takes no such manifest")
        media_type = descriptor.media_type if descriptor else media_type_of(response)
        claim = expected_digest or digest_of(response)
        # A descriptor may have been made from the headers of HEAD.
        typed_by = "the registry's Content-Type" if media_type == media_type_of(response) else "its descriptor"
        checked = (response.body, media_type, claim, what, typed_by)
        try:
            if len(response.body) > _LONG:
                return await to_thread.run_sync(parse_checked, *checked)
            return parse_checked(*checked)
        except DigestMismatchError as error:
            if expected_digest is not None or claim is None:
                raise
            return await self._resolve_mismatch(repository, claim, error)

    async def _resolve_mismatch(self, repository: str, claim: Digest, error: DigestMismatchError) -> Manifest:
        """Read what a tag names if the bytes do not match the digest that the registry claims: either may be wrong.

        The registry is asked for both by digest; the claimed one comes first.
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
        """All tags of a repository, in the registry's order; invalid ones are left out.

        Raises:
            SourceNotFoundError: there is no such repository.
            SourceError: as ``manifest``, or the list can't be read to its end.
        """
        request = Request("GET tags", path_of(repository, "tags", "list"), f"repository {repository}", repository)
        return tuple(filter(is_tag, await list_names(self._client, request, TagListDocument)))

    async def repositories(self) -> tuple[str, ...]:
        """All repositories that the registry's catalog has, in the registry's order; invalid names are left out.

        Raises:
            SourceError: the registry has no catalog or refuses it, or its list can't be read to its end.
        """
        return tuple(filter(is_repository, await list_repositories(self._client)))

    async def referrers(self, repository: str, digest: Digest, *, tagged: bool = False) -> ListedReferrers:
        """The referrers of a manifest; see ``ReferrerLists.of``."""
        return await self._referrers.of(repository, digest, tagged=tagged)

    def blob(self, repository: str, descriptor: Descriptor, kind: str = "layer") -> RegistryBlob:
        """A blob, to be streamed; no request is sent yet."""
        return RegistryBlob(f"{kind} {descriptor.digest.short}", descriptor, repository, self._client)

    async def load(
        self,
        repository: str,
        descriptor: Descriptor,
        platforms: Collection[Platform] = (),
        *,
        push_foreign_layers: bool = False,
    ) -> ImageNode | IndexNode:
        """Read an image or index with all the manifests that it names; its blobs are not requested.

        Args:
            repository: the repository.
            descriptor: its manifest's descriptor, from ``resolve``.
            platforms: the images to take from an index (``loader.ImageLoader.load``).
            push_foreign_layers: whether non-distributable layers are pushed, too.

        Raises:
            ChoiceError: there is no image for any of *platforms*.
            ManifestError: a manifest is malformed, or there are too many, or they are nested too deeply.
            DigestMismatchError: a manifest's bytes have another digest than requested.
            SourceError: a manifest is missing, a blob is empty, or the registry refuses or can't be reached.
        """
        loader = ImageLoader(RepositoryImages(self, repository, descriptor), push_foreign_layers)
        return await loader.load(descriptor, platforms)

    def _manifest_request(self, operation: str, repository: str, reference: str | Digest) -> Request:
        separator = "@" if isinstance(reference, Digest) or reference.startswith("sha256:") else ":"
        what = f"manifest {repository}{separator}{reference}"
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
    """A repository of a registry as a store of images (``loader.ImageStore``).

    Attributes:
        reader: the registry.
        repository: the repository's name.
        root: the root of the image that is read, which names all other manifests.
    """

    reader: SourceRegistryReader
    repository: str
    root: Descriptor

    @property
    def label(self) -> str:
        """Its name in errors."""
        return f"{SCHEME}{self.reader.host}/{self.repository}"

    async def manifest(self, reference: Descriptor | Digest) -> Manifest:
        """See ``loader.ImageStore``."""
        try:
            return await self.reader.manifest(self.repository, reference)
        except SourceNotFoundError as error:
            digest = reference.digest if isinstance(reference, Descriptor) else reference
            if digest != self.root.digest:
                error.hint = f"{INCOMPLETE}, or choose the platforms that it has: --platform, or platforms in a plan"
            raise

    async def config(self, descriptor: Descriptor) -> bytes:
        """See ``loader.ImageStore``."""
        data = bytearray(descriptor.size)
        async with self.reader.blob(self.repository, descriptor, "config").stream() as stream:
            await stream.readinto(memoryview(data))
        return bytes(data)

    async def blobs(self, named: Sequence[tuple[str, Descriptor]]) -> Sequence[Blob | SourceError]:
        """See ``loader.ImageStore``."""
        return [
            self.reader.blob(self.repository, descriptor, kind)
            if descriptor.size
            else empty_blob(kind, descriptor.digest, self.label)
            for kind, descriptor in named
        ]


@dataclass(slots=True)
class RepositoryReferrers:
    """The referrers of a repository's manifests (``protocols.ReferrerSource``).

    Attributes:
        reader: the registry.
        repository: the repository's name.
        list_tags: lists its tags; called once.
        emit: receives a notice if the tags can't be listed.
    """

    reader: SourceRegistryReader
    repository: str
    list_tags: Callable[[], Awaitable[Collection[str]]]
    emit: Emit = ignore
    _listing: anyio.Lock = field(default_factory=anyio.Lock)
    _listed: bool = False
    _tags: frozenset[str] | None = None

    @property
    def source(self) -> str:
        """The repository, as users write it."""
        return f"{SCHEME}{self.reader.host}/{self.repository}"

    async def of(self, subject: Digest) -> FoundReferrers:
        """See ``protocols.ReferrerSource``."""
        tags = await self._all_tags()
        reading, tagged = _ReferrerReading(self, subject), f"sha256-{subject.hex}"
        if self.reader.lists_referrers or tags is None or tagged in tags:
            await reading.add_listed(tagged=tags is not None and tagged in tags)
        for tag in (f"{tagged}.{kind}" for kind in _COSIGN):
            if tags is None or tag in tags:
                await reading.add(tag, tag, is_guess=tags is None)
        return FoundReferrers(tuple(reading.found), tuple(reading.unread))

    async def _all_tags(self) -> frozenset[str] | None:
        """The repository's tags, cosign's among them; None if they can't be listed and each must be tried."""
        async with self._listing:
            if not self._listed:
                self._listed = True
                try:
                    self._tags = frozenset(await self.list_tags())
                except AsyncpushError as error:
                    text = f"the tags of {self.source} can't be listed, so cosign's are tried one by one: {error}"
                    self.emit(Notice(text))
            return self._tags


@dataclass(slots=True)
class _ReferrerReading:
    """Reads the referrers of one manifest; one that can't be read does not affect the others."""

    referrers: RepositoryReferrers
    subject: Digest
    found: list[Image] = field(default_factory=list)
    unread: list[UnreadReferrer] = field(default_factory=list)

    async def add_listed(self, *, tagged: bool) -> None:
        """Read the referrers that the registry lists, and those of the referrers tag if it exists."""
        source = f"referrers of {self.subject} in {self.referrers.source}"
        try:
            listed = await self.referrers.reader.referrers(self.referrers.repository, self.subject, tagged=tagged)
        except AsyncpushError as error:
            self.unread.append(UnreadReferrer(source, "", None, error))
            return
        if listed.problems:
            self.unread.append(UnreadReferrer(source, "", None, listed.problems[0]))
        for descriptor in listed.descriptors:
            await self.add(descriptor, None)

    async def add(self, reference: Descriptor | str, tag: str | None, *, is_guess: bool = False) -> None:
        """Read one referrer; if it *is_guess*, it need not exist."""
        reader, repository = self.referrers.reader, self.referrers.repository
        name = reference if isinstance(reference, str) else str(reference.digest)
        source = f"{self.referrers.source}{':' if tag else '@'}{name}"
        try:
            manifest = await reader.manifest(repository, reference)
        except SourceNotFoundError as error:
            if not is_guess:
                text = f"{name}, which refers to {self.subject.short}, is gone at its source: {error.message}"
                self.referrers.emit(Notice(text))
            return
        except AsyncpushError as error:
            if not (is_guess and isinstance(error, SourceDeniedError)):  # some registries deny access to missing tags
                self.unread.append(UnreadReferrer(source, name, tag, error))
            return
        try:
            root = await reader.load(repository, manifest.descriptor)
        except AsyncpushError as error:
            self.unread.append(UnreadReferrer(source, name, tag, error))
        else:
            self.found.append(Image(source, None, tag, root))


class _Version(msgspec.Struct, rename={"schema_version": "schemaVersion"}):
    schema_version: int = 0


def descriptor_of(response: Response, reference: str | Digest) -> Descriptor | None:
    """The descriptor in the headers of a response to HEAD; None if they are incomplete or implausible."""
    length = response.headers.get("Content-Length", "")
    digest, media_type = digest_of(response), media_type_of(response)
    if response.status != 200 or digest is None or media_type is None or not (length.isascii() and length.isdecimal()):
        return None
    if not int(length[:12]):
        return None  # some registries report the length of HEAD's own body
    if isinstance(reference, Digest) and reference != digest:
        return None
    return Descriptor(media_type, digest, int(length[:12]))


def media_type_of(response: Response) -> str | None:
    """The manifest type of a response; None if its Content-Type is another."""
    media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return media_type if media_type in ACCEPTED_TYPES else None


def digest_of(response: Response) -> Digest | None:
    """The digest that a response claims; None if it claims none."""
    try:
        return Digest.parse(response.headers.get("Docker-Content-Digest", "").strip())
    except ValueError:
        return None  # missing, or of another algorithm


def parse_checked(raw: bytes, media_type: str | None, claim: Digest | None, what: str, typed_by: str) -> Manifest:
    """Parse a manifest and check its digest; *what* is its name in errors, *typed_by* what gives its type.

    Raises:
        DigestMismatchError: its bytes have another digest.
        ManifestError: it is malformed, or of a type that ECR does not accept.
    """
    # First, since the digest of a signed schema 1 image does not cover its signatures.
    _refuse_schema_1(raw, what)
    digest = Digest.of(raw)
    if claim is not None and claim != digest:
        raise _mismatch(what, claim, digest)
    return parse_manifest(raw, media_type=media_type, name=what, typed_by=typed_by)


def _refuse_schema_1(raw: bytes, what: str) -> None:
    try:
        version = msgspec.json.decode(raw, type=_Version).schema_version
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    if version == _SCHEMA_1:
        raise ManifestError(
            f"{what} is a schema 1 image (schema version 1), which ECR refuses (405 UNSUPPORTED)",
            hint="convert it: copy it with a current tool, such as skopeo copy --format v2s2",
        )


def _mismatch(what: str, expected: Digest | int, actual: Digest | int) -> DigestMismatchError:
    hint = "the registry, or a proxy in front of it, returns other bytes than requested"
    return DigestMismatchError(what, expected, actual, hint=hint)
