"""How sources and the images in them are written: kinds, paths, choices, image names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from asyncpush.errors import InvalidReferenceError, SourceError

Kind = Literal["oci", "oci-archive", "docker-archive"]

KINDS: tuple[Kind, ...] = ("oci", "oci-archive", "docker-archive")

_HINT = (
    "write oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:REF], docker://HOST/REPOSITORY[:TAG|@DIGEST], "
    "a path, or - for standard input"
)

_SCHEME = re.compile(r"[a-z][a-z-]*")
_REPOSITORY = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*")
_ENDINGS = re.compile(r"(\.(tar|tgz|txz|tzst|tbz|tbz2|gz|xz|zst|zstd|bz2|oci|docker))+$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Location:
    """Where a source lies, and which of its images was chosen.

    Attributes:
        kind: None where the content must tell.
        path: of the directory or file; ``-`` is standard input.
        choice: what was written behind it; None if nothing was.
    """

    kind: Kind | None
    path: str
    choice: str | None

    @property
    def label(self) -> str:
        """How to call it in errors."""
        return "standard input" if self.path == "-" else self.path

    @property
    def stem(self) -> str | None:
        """The directory's or file's name without its endings, where it can be a repository's name; else None."""
        stem = _ENDINGS.sub("", Path(self.path).resolve().name).lower()
        return stem if _REPOSITORY.fullmatch(stem) else None


@dataclass(frozen=True, slots=True)
class ImageName:
    """An image's name in its parts, as ``docker.io/library/app:1.0`` has them: registry, repository, tag."""

    registry: str | None
    repository: str
    tag: str | None

    @classmethod
    def parse(cls, text: str) -> ImageName:
        """Take a name apart; Docker's own registry and its ``library/`` are left out, as Docker does."""
        name = text.partition("@")[0]
        first, slash, rest = name.partition("/")
        registry = first if slash and ("." in first or ":" in first or first == "localhost") else None
        repository, _, tag = (rest if registry else name).partition(":")
        if registry in (None, "docker.io", "index.docker.io"):
            return cls(None, repository.removeprefix("library/"), tag or None)
        return cls(registry, repository, tag or None)

    def __str__(self) -> str:
        """The name in full; without a tag it means ``latest``."""
        prefix = f"{self.registry}/" if self.registry else ""
        return f"{prefix}{self.repository}:{self.tag or 'latest'}"


def locate(reference: str | Path) -> Location:
    """Read a source as the user wrote it; blocks, because a path that exists wins over a split at a colon.

    A ``Path`` is a path, whatever its name looks like.

    Raises:
        InvalidReferenceError: it is of no known kind, or lacks a path.
        SourceError: there is nothing at its path.
    """
    if isinstance(reference, Path):
        path = f"./{reference}" if str(reference) == "-" else str(reference)
        if not _exists(path):
            raise SourceError(f"{path} does not exist", hint="check the path")
        return Location(None, path, None)
    scheme, colon, rest = reference.partition(":")
    kind = next((kind for kind in KINDS if colon and kind == scheme), None)
    target = rest if kind else reference
    for path, choice in _splits(target):
        if path == "-" or _exists(path):
            return Location(kind, path, choice)
    if not target or (kind is None and colon and _SCHEME.fullmatch(scheme)):
        raise InvalidReferenceError(
            f"{reference!r} is neither a path that exists nor a source of a known kind", hint=_HINT
        )
    raise SourceError(f"{target.partition(':')[0]} does not exist", hint="check the path")


def _splits(target: str) -> Iterator[tuple[str, str | None]]:
    if target:
        yield target, None
    for at in reversed([at for at, letter in enumerate(target) if letter == ":" and at]):
        yield target[:at], target[at + 1 :] or None


def _exists(path: str) -> bool:
    try:
        os.stat(path)  # noqa: PTH116 - the text as it was written: Path would drop a trailing slash
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError:
        return True  # what is wrong with it is said when it is opened
    return True
