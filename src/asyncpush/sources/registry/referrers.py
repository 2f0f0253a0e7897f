"""What a registry lists as referring to a manifest: by the referrers API, and by the tag that stands in for it.

Source: OCI distribution-spec 1.1, "listing referrers", "referrers tag schema".
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TypeAlias

import msgspec

from asyncpush.errors import ManifestError, SourceDeniedError, SourceError, SourceNotFoundError, SourceUnavailableError
from asyncpush.manifest import DescriptorDocument, Manifest, parse_descriptor
from asyncpush.model import Descriptor, Digest
from asyncpush.sources.blobs import decode_document
from asyncpush.sources.registry.client import RegistryClient
from asyncpush.sources.registry.errors import NotThereError, RefusedError
from asyncpush.sources.registry.listing import CutShortError, pages
from asyncpush.sources.registry.requests import Request, path_of

#: Reads a manifest of a repository, by its tag or digest.
ReadManifest: TypeAlias = Callable[[str, str], Awaitable[Manifest]]

_ACCEPT_INDEX = MappingProxyType({"Accept": "application/vnd.oci.image.index.v1+json"})

#: Answers of the referrers API that hold for the whole registry: it has none.
_NO_REFERRERS = frozenset({204, 405, 406, 410, 415, 501})
#: Codes of a 404 that says nothing of the API: it is about the repository or the image.
_OF_ONE_IMAGE = frozenset({"NAME_UNKNOWN", "MANIFEST_UNKNOWN", "BLOB_UNKNOWN"})


class _ReferrersDocument(msgspec.Struct):
    manifests: list[msgspec.Raw] | None = None
    layers: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


@dataclass(frozen=True, slots=True)
class ListedReferrers:
    """What a registry lists as referring to a manifest.

    Attributes:
        descriptors: the manifests that do.
        problems: entries of the list that can't be read.
    """

    descriptors: tuple[Descriptor, ...] = ()
    problems: tuple[SourceError, ...] = ()


async def list_referrers(wire: RegistryClient, ask: Request) -> ListedReferrers:
    """What a registry lists as referring to a manifest (``GET .../referrers/DIGEST``).

    Raises:
        ManifestError: what it gives is no such list.
        SourceError: it refuses, or its list can't be read to its end.
    """
    found: dict[Digest, Descriptor] = {}
    problems: list[SourceError] = []
    label = f"{ask.what} of {wire.host}"
    first = True
    try:
        async for page in pages(wire, ask, _ReferrersDocument):
            if page.manifests is None or page.layers is not msgspec.UNSET:
                raise ManifestError(f"{label}: the answer is not an index")
            before = len(found) + len(problems)
            for each in page.manifests:
                try:
                    descriptor = parse_descriptor(decode_document(bytes(each), DescriptorDocument, label), label)
                except ManifestError as error:
                    problems.append(error)
                else:
                    found.setdefault(descriptor.digest, descriptor)
            if page.manifests and not first and len(found) + len(problems) == before:
                raise SourceError(f"{label}: the list repeats itself")
            first = False
    except SourceError as error:
        if first:
            raise
        raise CutShortError.at(label, error) from error
    return ListedReferrers(tuple(found.values()), tuple(problems))


class ReferrerLists:
    """Finds what refers to the manifests of one registry.

    Args:
        wire: the registry.
        read_manifest: reads what a tag names.

    Attributes:
        has_api: whether it may have the referrers API.
    """

    def __init__(self, wire: RegistryClient, read_manifest: ReadManifest) -> None:
        self._wire = wire
        self._read = read_manifest
        self.has_api = True
        self._refused = False

    async def of(self, repository: str, digest: Digest, *, tagged: bool = False) -> ListedReferrers:
        """What refers to a manifest: signatures, SBOMs and the like.

        A registry without that API, and one whose answer is no such list, may have a tag for them.

        Args:
            repository: where the manifest is.
            digest: of the manifest.
            tagged: that tag is there: it counts beside a list, for who has pushed it may not have known of the API.

        Raises:
            SourceError: neither can be read, or the list not to its end.
        """
        listed = ListedReferrers()
        if self.has_api:
            path, what = path_of(repository, "referrers", str(digest)), f"referrers of {digest.short} in {repository}"
            try:
                listed = await list_referrers(
                    self._wire, Request("GET referrers", path, what, repository, _ACCEPT_INDEX)
                )
                if not tagged:
                    return listed
            except CutShortError:
                raise
            except NotThereError as error:
                self.has_api = error.code in _OF_ONE_IMAGE
            except SourceDeniedError as error:
                self._note_refused_referrers(error)
            except RefusedError as error:
                self.has_api = error.status not in _NO_REFERRERS
            except SourceUnavailableError as error:
                listed = ListedReferrers(problems=(error,))
            except SourceError:
                pass  # a web page, redirects in a circle, or what else is not a list
        return await self._with_tagged(repository, digest, listed, tagged=tagged)

    async def _with_tagged(
        self, repository: str, digest: Digest, listed: ListedReferrers, *, tagged: bool
    ) -> ListedReferrers:
        """*listed*, and what the tag for referrers names."""
        tag = f"sha256-{digest.hex}"
        try:
            manifest = await self._read(repository, tag)
        except SourceNotFoundError as error:
            if tagged:
                self._wire.notice(f"{tag}, which lists what refers to {digest.short}, is gone at its source: {error}")
            return listed
        except SourceDeniedError as error:
            # Some refuse what is not there: the image itself could be read.
            self._note_refused_referrers(error)
            return listed
        except SourceError as error:
            if not listed.descriptors:
                raise
            return replace(listed, problems=(*listed.problems, error))
        # GitLab takes the tag for the digest: an index's own images do not refer to it.
        children = () if manifest.digest == digest else manifest.children
        known = {each.digest for each in listed.descriptors}
        more = tuple(each for each in children if each.digest not in known)
        return replace(listed, descriptors=listed.descriptors + more)

    def _note_refused_referrers(self, error: SourceDeniedError) -> None:
        if not self._refused:
            self._refused = True
            self._wire.notice(
                f"what refers to images of {self._wire.host} is carried along as far as tags name it: {error}"
            )
