"""Lists of a registry that come in pages: tags, repositories and referrers.

Sources: OCI distribution-spec 1.1, "listing tags", "listing referrers"; Docker's API for "listing repositories".
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from urllib.parse import quote

import msgspec
from anyio import to_thread
from yarl import URL

from asyncpush.errors import ManifestError, SourceDeniedError, SourceError, SourceNotFoundError
from asyncpush.settings import MiB
from asyncpush.sources.blobs import Document, decode_document
from asyncpush.sources.registry.client import RegistryClient
from asyncpush.sources.registry.errors import DeniedError, NotThereError, RefusedError
from asyncpush.sources.registry.http import LATER
from asyncpush.sources.registry.requests import CATALOG, Request, Response, TransientError

#: Some registries ignore the requested page size: a hundred thousand tags take a few MiB.
MAX_PAGE_SIZE = 32 * MiB
#: More than any list has: at a thousand a page, ten million entries.
_MAX_PAGES = 10_000
#: Equal pages in a row, such as empty ones: more than a registry has that hides names after it has divided them.
_MAX_EQUAL_PAGES = 200
#: All pages of a list together: two million of the longest tags.
MAX_LIST_SIZE = 256 * MiB
#: Longer documents are decoded in a worker thread.
_LONG = 128 * 1024
#: The requested page size.
_PAGE = 1000

_UNAUTHORIZED, _BROKEN = 401, 500


class CutShortError(SourceError):
    """Raised when a list can't be read to its end."""

    @classmethod
    def at(cls, label: str, error: SourceError) -> CutShortError:
        """The error for an *error* behind the first page of the list named *label*."""
        message = f"{label} can't be listed to the end: {error.message}"
        return cls(message, hint=LATER)


class TagListDocument(msgspec.Struct):
    """A page of tags."""

    name: str | None = None
    tags: list[str] | msgspec.UnsetType | None = msgspec.UNSET

    @property
    def entries(self) -> Sequence[str] | None:
        """The tags; None if this is not a page of tags. An empty repository's may be null or missing."""
        if self.tags is msgspec.UNSET:
            return None if self.name is None else ()
        return self.tags or ()


class CatalogDocument(msgspec.Struct):
    """A page of repositories."""

    repositories: list[str] | msgspec.UnsetType | None = msgspec.UNSET

    @property
    def entries(self) -> Sequence[str] | None:
        """The names; None if this is not a page of repositories. An empty registry's may be null."""
        return None if self.repositories is msgspec.UNSET else self.repositories or ()


async def list_repositories(client: RegistryClient) -> tuple[str, ...]:
    """All repositories of a registry that its catalog has (``GET /v2/_catalog``), in the registry's order, each once.

    Raises:
        SourceError: the registry has no catalog or refuses it, or its list can't be read to its end.
    """
    request = Request("GET catalog", CATALOG, "the list of repositories")
    try:
        return await list_names(client, request, CatalogDocument)
    except (SourceDeniedError, SourceNotFoundError, RefusedError, ManifestError) as error:
        hint = "write an entry for each repository in the plan"
        if isinstance(error, SourceDeniedError) and error.hint:
            hint = f"{error.hint}, or {hint}"
        kind = SourceDeniedError if isinstance(error, SourceDeniedError) else SourceError
        raise kind(f"{client.host} does not list its repositories: {error.message}", hint=hint) from error


async def list_names(
    client: RegistryClient, request: Request, kind: type[TagListDocument | CatalogDocument]
) -> tuple[str, ...]:
    """All names of a list, in the registry's order, each once.

    If a page may have been cut although it has no link to the next one, the names after its last one are requested.

    Args:
        client: the registry.
        request: the list, without a query.
        kind: what its pages are.

    Raises:
        SourceError: the registry refuses, or its list can't be read to its end.
    """
    found: dict[str, None] = {}
    pages = Pages(client, request)
    response, query = await _first(pages)
    longest, probes_work, is_probe = 0, False, False
    while True:
        page = (await pages.decode(response, kind)).entries
        if page is None:
            raise ManifestError(f"{pages.label} can't be listed: the response is not a list", hint="check the address")
        before = len(found)
        found.update(dict.fromkeys(page))
        next_path = pages.next_path(response)
        if len(found) == before:
            if is_probe and next_path is None:
                break  # the list is complete; or the registry ignores `last`, and has sent all of it before
            if page and pages.count > 1:
                raise SourceError(f"{pages.label}: the list repeats itself", hint=LATER)
        probes_work, is_probe = probes_work or is_probe, next_path is None
        if next_path is not None:
            longest = max(longest, len(page))
            response = await pages.follow(next_path)
        elif page and (probes_work or _may_be_cut(len(page), longest)):
            after = await _probe(
                pages, f"{request.path}?{query}last={quote(page[-1], safe='')}", probes_work=probes_work
            )
            if after is None:
                break
            response = after
        else:
            break
    return tuple(found)


async def _probe(pages: Pages, path: str, *, probes_work: bool) -> Response | None:
    """The page behind the last one that the registry has linked to; None if there is none.

    Args:
        pages: the list.
        path: the page's path.
        probes_work: whether an earlier probe has found a page.

    Raises:
        SourceError: the registry fails, or refuses although probes work.
    """
    try:
        return await pages.get(path)
    except (SourceDeniedError, NotThereError, RefusedError, TransientError) as error:
        if isinstance(error, TransientError) and (probes_work or error.status != _BROKEN):
            raise
        if probes_work:
            raise CutShortError.at(pages.label, error) from error
        # Its pages have tokens, as ECR's have: it would have linked to the next one.
        return None


async def _first(pages: Pages) -> tuple[Response, str]:
    """The first page, and the query for its page size; empty if the registry accepts none."""
    path, query = pages.request.path, f"n={_PAGE}"
    try:
        return await pages.get(f"{path}?{query}"), f"{query}&"
    except NotThereError as error:
        if error.code:
            raise
    except (DeniedError, RefusedError) as error:
        if error.status == _UNAUTHORIZED:
            raise
    except TransientError as error:
        if error.status != _BROKEN:
            raise
    return await pages.get(path), ""


def _may_be_cut(length: int, longest: int) -> bool:
    """Whether a page of *length* names may not be the last one, although it has no link to the next.

    Args:
        length: the number of names on it.
        longest: the most names on a page with such a link; 0 without one.
    """
    if longest:
        return length >= longest
    # Registries choose round numbers as page sizes.
    return length == _PAGE or length % 5 == 0 or (length >= 16 and length & (length - 1) == 0)


class Pages:
    """The pages of one list, requested one after the other, never in a circle, and not without end.

    Args:
        client: the registry.
        request: the list; its next pages differ in the query only.
    """

    def __init__(self, client: RegistryClient, request: Request) -> None:
        self.request = request
        self._client = client
        self._seen: set[str] = set()
        self._size = 0
        self._last, self._equal = 0, 0

    @property
    def label(self) -> str:
        """The name of the list in errors."""
        return f"{self.request.what} of {self._client.host}"

    @property
    def count(self) -> int:
        """How many pages were requested."""
        return len(self._seen)

    async def get(self, path: str) -> Response:
        """Request a page.

        Raises:
            SourceError: the registry refuses, or its list forms a circle, or has no end.
        """
        request, client = self.request, self._client
        if path in self._seen or len(self._seen) == _MAX_PAGES:
            raise SourceError(f"{request.what}: the list of {client.host} forms a circle, or has no end")
        self._seen.add(path)
        response = await client.fetch(replace(request, path=path), MAX_PAGE_SIZE)
        if response.body is None:
            raise SourceError(f"{request.what}: a page of {client.host} has more than {MAX_PAGE_SIZE // MiB} MiB")
        self._size += len(response.body)
        if self._size > MAX_LIST_SIZE:
            raise SourceError(f"{request.what}: the list of {client.host} has more than {MAX_LIST_SIZE // MiB} MiB")
        last, self._last = self._last, hash(response.body)
        self._equal = self._equal + 1 if self._last == last else 0
        if self._equal == _MAX_EQUAL_PAGES:
            raise SourceError(
                f"{request.what}: {client.host} sends one page again and again, each with a link to the next",
                hint="its operators must fix that",
            )
        return response

    async def follow(self, path: str) -> Response:
        """Request a page that the registry has linked to.

        Raises:
            CutShortError: it refuses.
            SourceUnavailableError: it can't be reached, or fails too often.
            SourceError: as ``get``.
        """
        try:
            return await self.get(path)
        except (SourceDeniedError, SourceNotFoundError, RefusedError) as error:
            raise CutShortError.at(self.label, error) from error

    async def decode(self, response: Response, kind: type[Document]) -> Document:
        """Decode a page without blocking the event loop.

        Raises:
            ManifestError: it is malformed.
        """
        body = response.body or b""
        if len(body) < _LONG:
            return decode_document(body, kind, self.label)
        return await to_thread.run_sync(decode_document, body, kind, self.label)

    def next_path(self, response: Response) -> str | None:
        """The path of the page behind *response*; None if that is the last one.

        Raises:
            SourceError: a link leads to another host, or is malformed.
        """
        own = self.request.path
        for url in self._targets(response, relation=True):
            if _is_same_list(url.raw_path, own):
                # Registries behind proxies may write a wrong host, port and prefix: only the query counts.
                return f"{own}?{url.raw_query_string}" if url.raw_query_string else own
            if url.host != response.url.host or not url.raw_path.startswith("/"):
                raise SourceError(
                    f"{self.request.what}: {self._client.host} links to its next page on another host ({url.host})",
                    hint="its operators must fix that; other hosts are sent no requests",
                )
            return url.raw_path_qs
        for url in self._targets(response, relation=False):
            # A link without a relation that stays in the list leads to its next page.
            if url.raw_query_string and _is_same_list(url.raw_path, own):
                return f"{own}?{url.raw_query_string}"
        return None

    def _targets(self, response: Response, *, relation: bool) -> Iterable[URL]:
        """The targets of links to the next page, or of those without a relation."""
        for link in parse_links(response.links):
            if "next" not in link.relations if relation else link.relations:
                continue
            try:
                yield response.url.join(URL(link.target, encoded=True))
            except ValueError as error:
                if relation:
                    raise SourceError(
                        f"{self.request.what}: {self._client.host} has a malformed link to its next page"
                    ) from error


async def pages(client: RegistryClient, request: Request, kind: type[Document]) -> AsyncIterator[Document]:
    """The pages of a list, by their links, one after the other.

    Raises:
        SourceError: the registry refuses, or its list forms a circle, leads to another host, or has no end.
    """
    list_pages = Pages(client, request)
    path: str | None = request.path
    while path is not None:
        response = await list_pages.get(path)
        yield await list_pages.decode(response, kind)
        path = list_pages.next_path(response)


def _is_same_list(path: str, own: str) -> bool:
    """Whether *path* is the path *own* of a list, perhaps as a server behind a proxy sees it."""
    return path.split("/")[-2:] == own.split("/")[-2:]


_SEPARATORS = re.compile(r"[\s,;]*")
#: A target in angle brackets, or without them up to whitespace, a comma or a semicolon.
_TARGET = re.compile(r"<([^>]*)>?|([^\s,;<]+)")
_PARAMETER = re.compile(
    r"""[\s;]+([A-Za-z0-9!#$%&'*+.^_`|~-]+)(?:\s*=\s*(?:"((?:[^"\\]|\\.)*)"?|'([^']*)'?|([^\s,;]*)))?"""
)
_ESCAPED = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Link:
    """A link.

    Attributes:
        target: the target, as written.
        relations: its relations to the response, in lower case; empty if it has none.
    """

    target: str
    relations: frozenset[str]


def parse_links(values: Iterable[str]) -> tuple[Link, ...]:
    """Read all links of a response, from each of its Link headers."""
    return tuple(link for value in values for link in _parse(value))


def _parse(text: str) -> Iterator[Link]:
    position = 0
    while True:
        position = _end(_SEPARATORS, text, position)
        target = _TARGET.match(text, position)
        if target is None:
            return
        position = target.end()
        relations: str | None = None
        while parameter := _PARAMETER.match(text, position):
            position = parameter.end()
            quoted, single, word = parameter.group(2, 3, 4)
            if parameter[1].lower() == "rel" and relations is None:
                relations = _ESCAPED.sub(r"\1", quoted) if quoted is not None else single or word
        yield Link((target[1] if target[1] is not None else target[2]).strip(), _split_relations(relations))


def _split_relations(relations: str | None) -> frozenset[str]:
    return frozenset((relations or "").lower().split())


def _end(pattern: re.Pattern[str], text: str, position: int) -> int:
    match = pattern.match(text, position)
    return match.end() if match else position
