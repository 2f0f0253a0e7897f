"""The referrers that a registry lists for a manifest: by the referrers API, and by the referrers tag.

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

#: Statuses by which a registry shows that it has no referrers API at all.
_NO_REFERRERS = frozenset({204, 405, 406, 410, 415, 501})
#: Codes of a 404 about the repository or the image, which does not rule out the API.
_OF_ONE_IMAGE = frozenset({"NAME_UNKNOWN", "MANIFEST_UNKNOWN", "BLOB_UNKNOWN"})


class _ReferrersDocument(msgspec.Struct):
    manifests: list[msgspec.Raw] | None = None
    layers: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


@dataclass(frozen=True, slots=True)
class ListedReferrers:
    """The referrers that a registry lists for a manifest.

    Attributes:
        descriptors: the referrers.
        problems: the entries of the list that can't be read.
    """

    descriptors: tuple[Descriptor, ...] = ()
    problems: tuple[SourceError, ...] = ()


async def list_referrers(client: RegistryClient, request: Request) -> ListedReferrers:
    """Request the referrers of a manifest (``GET .../referrers/DIGEST``).

    Raises:
        ManifestError: the response is not a list of referrers.
        SourceError: the registry refuses, or its list can't be read to its end.
    """
    found: dict[Digest, Descriptor] = {}
    problems: list[SourceError] = []
    label = f"{request.what} of {client.host}"
    first = True
    try:
        async for page in pages(client, request, _ReferrersDocument):
            if page.manifests is None or page.layers is not msgspec.UNSET:
                raise ManifestError(f"{label}: the response is not an index")
            before = len(found) + len(problems)
            for entry in page.manifests:
                try:
                    descriptor = parse_descriptor(decode_document(bytes(entry), DescriptorDocument, label), label)
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
    """Finds the referrers of one registry's manifests.

    Args:
        client: the registry.
        read_manifest: reads a manifest by its tag.

    Attributes:
        has_api: whether it may have the referrers API.
    """

    def __init__(self, client: RegistryClient, read_manifest: ReadManifest) -> None:
        self._client = client
        self._read = read_manifest
        self.has_api = True
        self._refused = False

    async def of(self, repository: str, digest: Digest, *, tagged: bool = False) -> ListedReferrers:
        """The referrers of a manifest: signatures, SBOMs and the like.

        A registry without the API, or whose response is not a list, may have the referrers tag.

        Args:
            repository: the manifest's repository.
            digest: the manifest's digest.
            tagged: whether the tag exists: it counts beside the list, since its client may not have used the API.

        Raises:
            SourceError: neither can be read, or the list can't be read to its end.
        """
        listed = ListedReferrers()
        if self.has_api:
            path, what = path_of(repository, "referrers", str(digest)), f"referrers of {digest.short} in {repository}"
            try:
                listed = await list_referrers(
                    self._client, Request("GET referrers", path, what, repository, _ACCEPT_INDEX)
                )
                if not tagged:
                    return listed
            except CutShortError:
                raise
            except NotThereError as error:
                self.has_api = error.code in _OF_ONE_IMAGE
            except SourceDeniedError as error:
                self._note_missing_list(error)
            except RefusedError as error:
                self.has_api = error.status not in _NO_REFERRERS
            except SourceUnavailableError as error:
                listed = ListedReferrers(problems=(error,))
            except SourceError as error:
                self._note_missing_list(error)  # a web page, redirects in a circle, or anything else but a list
        return await self._with_tagged(repository, digest, listed, tagged=tagged)

    async def _with_tagged(
        self, repository: str, digest: Digest, listed: ListedReferrers, *, tagged: bool
    ) -> ListedReferrers:
        """*listed*, and the manifests that the referrers tag names."""
        tag = f"sha256-{digest.hex}"
        try:
            manifest = await self._read(repository, tag)
        except SourceNotFoundError as error:
            if tagged:
                self._client.notify(
                    f"{tag}, which lists the referrers of {digest.short}, is gone at its source: {error}"
                )
            return listed
        except SourceDeniedError as error:
            # Some registries deny access to missing tags: the image itself could be read.
            self._note_missing_list(error)
            return listed
        except SourceError as error:
            if not listed.descriptors:
                raise
            return replace(listed, problems=(*listed.problems, error))
        # GitLab serves the index itself for this tag: its own images do not refer to it.
        children = () if manifest.digest == digest else manifest.children
        known = {entry.digest for entry in listed.descriptors}
        more = tuple(entry for entry in children if entry.digest not in known)
        return replace(listed, descriptors=listed.descriptors + more)

    def _note_missing_list(self, error: SourceError) -> None:
        if not self._refused:
            self._refused = True
            self._client.notify(
                f"of the referrers of images in {self._client.host}, only those with tags are copied: {error}"
            )
