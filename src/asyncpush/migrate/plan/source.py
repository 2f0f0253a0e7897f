"""Where an entry's images come from, read from text: a repository in a registry, or a layout or archive here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from asyncpush.errors import InvalidReferenceError, SourceError
from asyncpush.reference import SCHEME, parse_remote
from asyncpush.sources.source import KINDS, locate

_ARCHIVE = re.compile(r"\.(?:tar|tgz|txz|tzst|tar\.(?:gz|xz|zst|zstd))(?::|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class ImageSource:
    """A source, taken apart.

    Attributes:
        kind: ``registry`` or ``local``.
        location: what ``open_source`` takes.
        host: the registry's; empty for local sources.
        repository: as the registry knows it; empty for local sources.
        name: the repository's name where none is given; empty for local sources.
        tag: the tag that was written; None if none was.
        reference: the digest that was written, or else the tag.
        is_chosen: whether one image was chosen: by tag, by digest, or by what is behind a path.
    """

    kind: Literal["registry", "local"]
    location: str
    host: str = ""
    repository: str = ""
    name: str = ""
    tag: str | None = None
    reference: str | None = None
    is_chosen: bool = False


def read_origin(text: str, base: Path) -> ImageSource:
    """Read a source; blocks, since a path that exists is one.

    ``docker://`` may be left out: what begins with a host is a repository. Without a host it is a path if it says so
    (``oci:``, ``./``, ``.tar``) or exists, and else Docker Hub's.

    Args:
        text: the source.
        base: the directory that paths are relative to.

    Raises:
        InvalidReferenceError: it is not well formed.
        SourceError: there is nothing at its path.
    """
    if not text.strip() or text != text.strip():
        raise InvalidReferenceError(f"{text[:300]!r} is not a source", hint="write HOST/REPOSITORY[:TAG], or a path")
    if text == "-":
        raise InvalidReferenceError("standard input can be no source of a plan", hint="give the archive's path")
    if text.startswith(SCHEME) or not _is_local(text, base):
        return _remote(text.removeprefix(SCHEME))
    return _local(text, base)


def _remote(text: str) -> ImageSource:
    found = parse_remote(SCHEME + text)
    digest = str(found.digest) if found.digest else None
    # Without a tag it means `latest` elsewhere; here it may mean them all.
    tag = found.tag if ":" in text.partition("@")[0].rpartition("/")[2] else None
    reference = digest or tag
    suffix = f"@{digest}" if digest else f":{tag}" if tag else ""
    location = f"{SCHEME}{found.host}/{found.repository}{suffix}"
    return ImageSource("registry", location, found.host, found.repository, found.name, tag, reference, bool(reference))


def _local(text: str, base: Path) -> ImageSource:
    kind, colon, rest = text.partition(":")
    if colon and kind in KINDS:
        if rest in ("", "-"):
            raise InvalidReferenceError(f"{text!r} names no file", hint=f"write {kind}:PATH")
        location = f"{kind}:{base / rest}"
    else:
        location = str(base / text)
    try:
        found = locate(location)
    except SourceError as error:
        raise SourceError(f"{text[:300]} does not exist", hint="check the path; it is relative to the plan") from error
    return ImageSource("local", location, is_chosen=found.choice is not None)


def _is_local(text: str, base: Path) -> bool:
    if text.partition(":")[0] in KINDS or text.startswith(("/", "./", "../")) or _ARCHIVE.search(text):
        return True
    first, slash, _ = text.partition("/")
    if slash and (first == "localhost" or "." in first or ":" in first):
        return False
    return _exists(str(base / text))


def _exists(text: str) -> bool:
    try:
        locate(text)
    except (SourceError, InvalidReferenceError):
        return False
    return True
