"""Lists of a registry that come in pages: tags, repositories, referrers.

Sources: OCI distribution-spec 1.1, "listing tags", "listing referrers"; the distribution project's catalog.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

import msgspec
from anyio import to_thread
from yarl import URL

from asyncpush.errors import SourceError
from asyncpush.settings import MiB
from asyncpush.sources.content import Document, decode_document
from asyncpush.sources.registry.wire import Answer, Ask, Wire

#: Some registries ignore the length of a page: a hundred thousand tags are a few MiB.
MAX_PAGE_SIZE = 32 * MiB
#: Longer than any list: at a thousand a page, ten million entries.
_MAX_PAGES = 10_000
#: All pages of a list together: two million of the longest tags.
MAX_LIST_SIZE = 256 * MiB
#: Documents longer than that are decoded in a worker thread.
_LONG = 128 * 1024

_LINK = re.compile(r'<([^>]*)>((?:\s*;\s*[A-Za-z*]+\s*=\s*(?:"[^"]*"|[^\s;,"]+))*)')
_NEXT = re.compile(r';\s*rel\s*=\s*(?:"(?:[^"]*\s)?next(?:\s[^"]*)?"|next(?=\s|;|$))', re.IGNORECASE)


class TagsDocument(msgspec.Struct):
    """A page of tags."""

    tags: list[str] | None = None


class CatalogDocument(msgspec.Struct):
    """A page of repositories."""

    repositories: list[str] | None = None


async def pages(wire: Wire, ask: Ask, kind: type[Document]) -> AsyncIterator[Document]:
    """The pages of a list, one after the other.

    Raises:
        SourceError: the registry refuses, or its list leads in a circle, to another host, or has no end.
    """
    seen: set[str] = set()
    path: str | None = ask.path
    size = 0
    while path is not None:
        if path in seen or len(seen) == _MAX_PAGES:
            raise SourceError(f"{ask.what}: the list of {wire.host} leads in a circle, or has no end")
        seen.add(path)
        answer = await wire.fetch(replace(ask, path=path), MAX_PAGE_SIZE)
        if answer.body is None:
            raise SourceError(f"{ask.what}: a page of {wire.host} has more than {MAX_PAGE_SIZE // MiB} MiB")
        size += len(answer.body)
        if size > MAX_LIST_SIZE:
            raise SourceError(f"{ask.what}: the list of {wire.host} has more than {MAX_LIST_SIZE // MiB} MiB")
        yield await decode(answer.body, kind, f"{ask.what} of {wire.host}")
        path = _next_path(wire, ask, answer)


async def decode(body: bytes, kind: type[Document], label: str) -> Document:
    """Decode a document where that does not hold up the event loop.

    Raises:
        ManifestError: it is malformed.
    """
    if len(body) < _LONG:
        return decode_document(body, kind, label)
    return await to_thread.run_sync(decode_document, body, kind, label)


def _next_path(wire: Wire, ask: Ask, answer: Answer) -> str | None:
    """The path of the next page; None after the last."""
    target = next_link(answer.headers)
    if target is None:
        return None
    try:
        url = answer.url.join(URL(target, encoded=True))
    except ValueError as error:
        raise SourceError(f"{ask.what}: {wire.host} names no next page that can be read") from error
    # Registries behind proxies get their own scheme and port wrong: the path alone counts.
    if url.host != answer.url.host or not url.raw_path.startswith("/"):
        raise SourceError(f"{ask.what}: {wire.host} has its next page on another host ({url.host})")
    return url.raw_path_qs


def next_link(headers: Mapping[str, str]) -> str | None:
    """The target of the Link header with ``rel=next`` (RFC 8288); None if there is none."""
    for match in _LINK.finditer(headers.get("Link", "")):
        if _NEXT.search(match[2]):
            return match[1]
    return None
