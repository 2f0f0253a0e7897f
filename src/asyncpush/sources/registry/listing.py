"""Lists of a registry that come in pages: tags and referrers.

Sources: OCI distribution-spec 1.1, "listing tags", "listing referrers".
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
from asyncpush.sources.registry.requests import Request, Response, TransientError

#: Some registries ignore the length of a page: a hundred thousand tags are a few MiB.
MAX_PAGE_SIZE = 32 * MiB
#: Longer than any list: at a thousand a page, ten million entries.
_MAX_PAGES = 10_000
#: All pages of a list together: two million of the longest tags.
MAX_LIST_SIZE = 256 * MiB
#: Documents longer than that are decoded in a worker thread.
_LONG = 128 * 1024
#: Entries of a page, as they are asked for.
_PAGE = 1000

_UNAUTHORIZED, _BROKEN = 401, 500


class CutShortError(SourceError):
    """Raised for a list that can't be read to its end."""

    @classmethod
    def at(cls, label: str, error: SourceError) -> CutShortError:
        """What *error* means behind the first page of the list that is called *label*."""
        message = f"{label} can't be listed to the end: {error.message}"
        return cls(message, hint="run the same command again later to resume")


class TagListDocument(msgspec.Struct):
    """A page of tags."""

    name: str | None = None
    tags: list[str] | msgspec.UnsetType | None = msgspec.UNSET

    @property
    def entries(self) -> Sequence[str] | None:
        """The tags; None if this is not a page of tags. Those of an empty repository may be null, or left out."""
        if self.tags is msgspec.UNSET:
            return None if self.name is None else ()
        return self.tags or ()


async def list_tags(wire: RegistryClient, ask: Request) -> tuple[str, ...]:
    """All tags of a repository (``GET .../tags/list``), in the registry's order, each once.

    Where a page may have been cut though no link leads on from it, what comes after its last name is asked for.

    Args:
        wire: the registry.
        ask: the list, without a query.

    Raises:
        SourceError: the registry refuses, or its list can't be read to its end.
    """
    found: dict[str, None] = {}
    pages = Pages(wire, ask)
    answer, query = await _first(pages)
    longest, goes_on, probing = 0, False, False
    while True:
        page = (await pages.decode(answer, TagListDocument)).entries
        if page is None:
            raise ManifestError(f"{pages.label} can't be listed: the answer is not a list", hint="check the address")
        before = len(found)
        found.update(dict.fromkeys(page))
        following = pages.next_path(answer)
        if len(found) == before:
            if probing and following is None:
                break  # that was all; or the registry knows no `last`, and has given all of it before
            if page and pages.count > 1:
                raise SourceError(f"{pages.label}: the list repeats itself", hint="go on later")
        goes_on, probing = goes_on or probing, following is None
        if following is not None:
            longest = max(longest, len(page))
            answer = await pages.follow(following)
        elif page and (goes_on or _may_be_cut(len(page), longest)):
            after = await _probe(pages, f"{ask.path}?{query}last={quote(page[-1], safe='')}", sure=goes_on)
            if after is None:
                break
            answer = after
        else:
            break
    return tuple(found)


async def _probe(pages: Pages, path: str, *, sure: bool) -> Response | None:
    """The page behind the last one that the registry has spoken of; None if there is none.

    Args:
        pages: the list.
        path: what is asked for.
        sure: the registry has gone on so before.

    Raises:
        SourceError: the registry fails; or refuses what it has granted before.
    """
    try:
        return await pages.get(path)
    except (SourceDeniedError, NotThereError, RefusedError, TransientError) as error:
        if isinstance(error, TransientError) and (sure or error.status != _BROKEN):
            raise
        if sure:
            raise CutShortError.at(pages.label, error) from error
        # Its pages have names of their own, as ECR's have: it would have named the next one.
        return None


async def _first(pages: Pages) -> tuple[Response, str]:
    """The first page, and the query that gave it its length; empty where the registry takes none."""
    path, query = pages.ask.path, f"n={_PAGE}"
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
    """Whether a page of *length* names may not be the last one, though no link leads on from it.

    Args:
        length: names on it.
        longest: names on the longest page that a link led on from; 0 if there was none.
    """
    if longest:
        return length >= longest
    # A registry's own page size is a round number.
    return length == _PAGE or length % 5 == 0 or (length >= 16 and length & (length - 1) == 0)


class Pages:
    """The pages of one list: asked for one after the other, never in a circle, and not without end.

    Args:
        wire: the registry.
        ask: the list; what leads to its next page changes the query only.
    """

    def __init__(self, wire: RegistryClient, ask: Request) -> None:
        self.ask = ask
        self._wire = wire
        self._seen: set[str] = set()
        self._size = 0

    @property
    def label(self) -> str:
        """How to call the list in errors."""
        return f"{self.ask.what} of {self._wire.host}"

    @property
    def count(self) -> int:
        """How many pages were asked for."""
        return len(self._seen)

    async def get(self, path: str) -> Response:
        """Ask for a page.

        Raises:
            SourceError: the registry refuses, or its list leads in a circle, or has no end.
        """
        ask, wire = self.ask, self._wire
        if path in self._seen or len(self._seen) == _MAX_PAGES:
            raise SourceError(f"{ask.what}: the list of {wire.host} leads in a circle, or has no end")
        self._seen.add(path)
        answer = await wire.fetch(replace(ask, path=path), MAX_PAGE_SIZE)
        if answer.body is None:
            raise SourceError(f"{ask.what}: a page of {wire.host} has more than {MAX_PAGE_SIZE // MiB} MiB")
        self._size += len(answer.body)
        if self._size > MAX_LIST_SIZE:
            raise SourceError(f"{ask.what}: the list of {wire.host} has more than {MAX_LIST_SIZE // MiB} MiB")
        return answer

    async def follow(self, path: str) -> Response:
        """Ask for a page that the registry has spoken of.

        Raises:
            CutShortError: it refuses.
            SourceUnavailableError: it can't be reached, or fails too often.
            SourceError: as ``get``.
        """
        try:
            return await self.get(path)
        except (SourceDeniedError, SourceNotFoundError, RefusedError) as error:
            raise CutShortError.at(self.label, error) from error

    async def decode(self, answer: Response, kind: type[Document]) -> Document:
        """Read a page where that does not hold up the event loop.

        Raises:
            ManifestError: it is malformed.
        """
        body = answer.body or b""
        if len(body) < _LONG:
            return decode_document(body, kind, self.label)
        return await to_thread.run_sync(decode_document, body, kind, self.label)

    def next_path(self, answer: Response) -> str | None:
        """The path of the page that *answer* leads to; None if it is the last one.

        Raises:
            SourceError: a link leads elsewhere, or can't be read.
        """
        own = self.ask.path
        for url in self._targets(answer, relation=True):
            if _is_same_list(url.raw_path, own):
                # Registries behind proxies get their own host, port and prefix wrong: the query alone counts.
                return f"{own}?{url.raw_query_string}" if url.raw_query_string else own
            if url.host != answer.url.host or not url.raw_path.startswith("/"):
                raise SourceError(
                    f"{self.ask.what}: {self._wire.host} has its next page on another host ({url.host})",
                    hint="its operators must mend that; nothing is asked of other hosts",
                )
            return url.raw_path_qs
        for url in self._targets(answer, relation=False):
            # It does not say what it is: but what leads on in the same list is its next page.
            if url.raw_query_string and _is_same_list(url.raw_path, own):
                return f"{own}?{url.raw_query_string}"
        return None

    def _targets(self, answer: Response, *, relation: bool) -> Iterable[URL]:
        """Where links lead that are the next page, or do not say what they are."""
        for link in parse_links(answer.links):
            if "next" not in link.relations if relation else link.relations:
                continue
            try:
                yield answer.url.join(URL(link.target, encoded=True))
            except ValueError as error:
                if relation:
                    raise SourceError(
                        f"{self.ask.what}: {self._wire.host} names no next page that can be read"
                    ) from error


async def pages(wire: RegistryClient, ask: Request, kind: type[Document]) -> AsyncIterator[Document]:
    """The pages of a list that links lead through, one after the other.

    Raises:
        SourceError: the registry refuses, or its list leads in a circle, to another host, or has no end.
    """
    walk = Pages(wire, ask)
    path: str | None = ask.path
    while path is not None:
        answer = await walk.get(path)
        yield await walk.decode(answer, kind)
        path = walk.next_path(answer)


def _is_same_list(path: str, own: str) -> bool:
    """Whether *path* is that of a list, perhaps as a server behind a proxy sees it: ``.../tags/list``, say."""
    return path.split("/")[-2:] == own.split("/")[-2:]


_SEPARATORS = re.compile(r"[\s,;]*")
#: A target in brackets, or without them: up to a blank, comma or semicolon.
_TARGET = re.compile(r"<([^>]*)>?|([^\s,;<]+)")
_PARAMETER = re.compile(
    r"""[\s;]+([A-Za-z0-9!#$%&'*+.^_`|~-]+)(?:\s*=\s*(?:"((?:[^"\\]|\\.)*)"?|'([^']*)'?|([^\s,;]*)))?"""
)
_ESCAPED = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Link:
    """A link.

    Attributes:
        target: what it leads to, as it is written.
        relations: what that is to the answer, in lower case; empty if the link does not say.
    """

    target: str
    relations: frozenset[str]


def parse_links(values: Iterable[str]) -> tuple[Link, ...]:
    """Read all links of an answer, from each of its Link headers."""
    return tuple(link for value in values for link in _parse(value))


def _parse(text: str) -> Iterator[Link]:
    at = 0
    while True:
        at = _end(_SEPARATORS, text, at)
        target = _TARGET.match(text, at)
        if target is None:
            return
        at = target.end()
        relations: str | None = None
        while parameter := _PARAMETER.match(text, at):
            at = parameter.end()
            quoted, single, word = parameter.group(2, 3, 4)
            if parameter[1].lower() == "rel" and relations is None:
                relations = _ESCAPED.sub(r"\1", quoted) if quoted is not None else single or word
        yield Link((target[1] if target[1] is not None else target[2]).strip(), _words(relations))


def _words(relations: str | None) -> frozenset[str]:
    return frozenset((relations or "").lower().split())


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at
