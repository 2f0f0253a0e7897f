"""One registry as a source: tags resolved, manifests read and checked, lists, and blobs to stream."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection
from types import MappingProxyType

import msgspec
from anyio import to_thread

from asyncpush.errors import DigestMismatchError, ManifestError, SourceNotFoundError
from asyncpush.manifest import ACCEPTED_TYPES, DescriptorDocument, Manifest, parse_descriptor, parse_manifest
from asyncpush.model import Descriptor, Digest, Platform
from asyncpush.protocols import ImageNode, IndexNode
from asyncpush.settings import MAX_MANIFEST_SIZE, MiB
from asyncpush.sources.content import MAX_DOCUMENT_SIZE
from asyncpush.sources.loader import ImageLoader
from asyncpush.sources.registry.blob import RegistryBlob
from asyncpush.sources.registry.images import RepositoryImages
from asyncpush.sources.registry.listing import CatalogDocument, TagsDocument, pages
from asyncpush.sources.registry.reference import is_repository, is_tag
from asyncpush.sources.registry.wire import Answer, Ask, NotThereError, RefusedError, Wire, path_of

#: Manifests are a few KiB; those of the biggest indexes some hundred.
_CACHE_SIZE = 32 * MiB
#: Longer ones are hashed and parsed in a worker thread.
_LONG = 64 * 1024

_PAGE = 1000
_ACCEPT = MappingProxyType({"Accept": ", ".join(ACCEPTED_TYPES)})
_ACCEPT_INDEX = MappingProxyType({"Accept": "application/vnd.oci.image.index.v1+json"})

#: How registries answer HEAD or the referrers API where they don't have it.
_UNSUPPORTED = frozenset({400, 405, 406, 415, 501})


class _ReferrersDocument(msgspec.Struct):
    manifests: list[DescriptorDocument] | None = None


class Remote:
    """A registry that images are read from; ``open_remote`` or ``Remotes.at`` make it (``remotes.py``).

    Nothing is asked before the first method is called. ``requests`` counts what was asked, by kind: ``GET blob``,
    ``HEAD manifest``, ``token`` and so on; each try is one.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._manifests: OrderedDict[Digest, Manifest] = OrderedDict()
        self._cached = 0
        self._has_referrers = True

    @property
    def host(self) -> str:
        """The registry's host, as users write it."""
        return self._wire.host

    @property
    def requests(self) -> Counter[str]:
        """How many requests of each kind were sent."""
        return self._wire.requests

    @property
    def lists_referrers(self) -> bool:
        """Whether it has the referrers API, as far as is known; if not, a tag may hold what refers to an image."""
        return self._has_referrers

    async def ping(self) -> None:
        """See that the registry answers, and takes the credentials (``GET /v2/``).

        Raises:
            SourceDeniedError: it does not take them.
            SourceUnavailableError: it can't be reached.
        """
        await self._wire.fetch(Ask("ping", "/v2/", "its API"), MAX_DOCUMENT_SIZE)

    async def resolve(self, repository: str, reference: str | Digest) -> Descriptor:
        """What a tag names now (``HEAD`` of the manifest; ``GET`` where that does not tell).

        Raises:
            SourceNotFoundError: there is no such tag or repository.
            SourceDeniedError: the registry refuses.
            SourceUnavailableError: it can't be reached, or fails too often.
            ManifestError: it is of a type that ECR does not take.
        """
        ask = self._ask_manifest("HEAD manifest", repository, reference, _UNSUPPORTED | {200})
        answer = await self._wire.fetch(ask, 0)
        described = _described(answer, reference)
        return described or (await self.manifest(repository, reference)).descriptor

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
            ask = self._ask_manifest("GET manifest", repository, str(target))
            answer = await self._wire.fetch(ask, MAX_MANIFEST_SIZE)
            if answer.body is None:
                raise ManifestError(
                    f"{ask.what} of {self.host} has more than {MAX_MANIFEST_SIZE} bytes",
                    hint="ECR takes no such manifest",
                )
            media_type = descriptor.media_type if descriptor else _media_type(answer)
            digests = [digest for digest in (wanted, _content_digest(answer)) if digest is not None]
            checked = (answer.body, media_type, digests, f"{ask.what} of {self.host}")
            long = len(answer.body) > _LONG
            manifest = await to_thread.run_sync(_checked, *checked) if long else _checked(*checked)
        if descriptor and descriptor.size != len(manifest.raw):
            raise _mismatch(f"manifest {descriptor.digest.short} of {self.host}", descriptor.size, len(manifest.raw))
        self._remember(manifest)
        return manifest

    async def tags(self, repository: str) -> tuple[str, ...]:
        """All tags of a repository, in the registry's order; what can't be a tag is left out.

        Raises:
            SourceNotFoundError: there is no such repository.
            SourceError: as ``manifest``, or the list has no end.
        """
        path = f"{path_of(repository, 'tags', 'list')}?n={_PAGE}"
        ask = Ask("GET tags", path, f"repository {repository}", repository)
        listed: dict[str, None] = {}
        async for page in pages(self._wire, ask, TagsDocument):
            listed.update(dict.fromkeys(filter(is_tag, page.tags or ())))
        return tuple(listed)

    async def catalog(self) -> tuple[str, ...]:
        """All repositories that the registry lists (``GET /v2/_catalog``); many registries refuse that.

        Raises:
            SourceError: as ``tags``.
        """
        ask = Ask("GET catalog", f"/v2/_catalog?n={_PAGE}", "catalog")
        listed: dict[str, None] = {}
        async for page in pages(self._wire, ask, CatalogDocument):
            listed.update(dict.fromkeys(filter(is_repository, page.repositories or ())))
        return tuple(listed)

    async def referrers(self, repository: str, digest: Digest) -> tuple[Descriptor, ...]:
        """What refers to a manifest: signatures, SBOMs and the like; a registry without that API has a tag for them.

        Raises:
            SourceError: as ``tags``.
            ManifestError: the list is malformed.
        """
        if self._has_referrers:
            path, what = path_of(repository, "referrers", str(digest)), f"referrers of {digest.short} in {repository}"
            try:
                return await self._listed_referrers(Ask("GET referrers", path, what, repository, _ACCEPT_INDEX))
            except NotThereError as error:
                # Where the repository itself is missing, nothing is known of the others.
                self._has_referrers = error.code == "NAME_UNKNOWN"
            except RefusedError as error:
                if error.status not in _UNSUPPORTED:
                    raise
                self._has_referrers = False
        try:
            return (await self.manifest(repository, f"sha256-{digest.hex}")).children
        except SourceNotFoundError:
            return ()

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
        loader = ImageLoader(RepositoryImages(self, repository), push_foreign_layers)
        return await loader.load(descriptor, platforms)

    async def _listed_referrers(self, ask: Ask) -> tuple[Descriptor, ...]:
        found: dict[Digest, Descriptor] = {}
        async for page in pages(self._wire, ask, _ReferrersDocument):
            if page.manifests is None:
                raise ManifestError(f"{ask.what} of {self.host}: the answer is no index")
            for each in page.manifests:
                descriptor = parse_descriptor(each, f"{ask.what} of {self.host}")
                found.setdefault(descriptor.digest, descriptor)
        return tuple(found.values())

    def _ask_manifest(
        self, operation: str, repository: str, reference: str | Digest, expected: frozenset[int] = frozenset({200})
    ) -> Ask:
        joint = "@" if isinstance(reference, Digest) or reference.startswith("sha256:") else ":"
        what = f"manifest {repository}{joint}{reference}"
        return Ask(operation, path_of(repository, "manifests", str(reference)), what, repository, _ACCEPT, expected)

    def _remember(self, manifest: Manifest) -> None:
        replaced = self._manifests.pop(manifest.digest, None)
        self._manifests[manifest.digest] = manifest
        self._cached += len(manifest.raw) - (len(replaced.raw) if replaced else 0)
        while self._cached > _CACHE_SIZE:
            _, oldest = self._manifests.popitem(last=False)
            self._cached -= len(oldest.raw)


def _described(answer: Answer, reference: str | Digest) -> Descriptor | None:
    """What a HEAD tells; None where it tells too little, or what can't be."""
    length = answer.headers.get("Content-Length", "")
    digest, media_type = _content_digest(answer), _media_type(answer)
    if answer.status != 200 or digest is None or media_type is None or not (length.isascii() and length.isdecimal()):
        return None
    if not int(length[:12]):
        return None  # some say so of HEAD's own body
    if isinstance(reference, Digest) and reference != digest:
        return None
    return Descriptor(media_type, digest, int(length[:12]))


def _media_type(answer: Answer) -> str | None:
    media_type = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    return media_type if media_type in ACCEPTED_TYPES else None


def _content_digest(answer: Answer) -> Digest | None:
    try:
        return Digest.parse(answer.headers.get("Docker-Content-Digest", "").strip())
    except ValueError:
        return None  # missing, or of another algorithm


def _checked(raw: bytes, media_type: str | None, claims: Collection[Digest], what: str) -> Manifest:
    digest = Digest.of(raw)
    for claim in claims:
        if claim != digest:
            raise _mismatch(what, claim, digest)
    return parse_manifest(raw, media_type=media_type, name=what)


def _mismatch(what: str, expected: Digest | int, actual: Digest | int) -> DigestMismatchError:
    hint = "the registry, or a proxy before it, gives other bytes than were asked for"
    return DigestMismatchError(what, expected, actual, hint=hint)
