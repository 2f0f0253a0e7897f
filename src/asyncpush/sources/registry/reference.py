"""How an image in a remote registry is written: ``docker://HOST/REPO[:TAG][@DIGEST]``.

Sources: OCI distribution-spec 1.1, "pulling manifests"; Docker's rules for names without a host.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv6Address

from asyncpush.errors import InvalidReferenceError
from asyncpush.model import Digest

SCHEME = "docker://"

#: Docker Hub as users write it; its API is elsewhere.
HUB = "docker.io"
HUB_API = "registry-1.docker.io"
_HUB_NAMES = frozenset({HUB, "index.docker.io", HUB_API})

_HOST_WORD = r"(?:[a-z0-9]|[a-z0-9][a-z0-9-]*[a-z0-9])"
_HOST = re.compile(rf"(?:{_HOST_WORD}(?:\.{_HOST_WORD})*|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{{1,5}}))?")
_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_LONGEST_NAME = 255

_HINT = "write docker://HOST/REPOSITORY[:TAG|@DIGEST], such as docker://quay.io/team/app:1.4"


@dataclass(frozen=True, slots=True)
class RemoteReference:
    """An image in a registry.

    Attributes:
        host: the registry's host, with its port if one was written, in lower case; ``docker.io`` for Docker Hub.
        repository: the repository as the registry knows it: with ``library/`` where Docker Hub wants that.
        tag: None where only a digest was written.
        digest: None where none was written; it counts more than the tag.
    """

    host: str
    repository: str
    tag: str | None
    digest: Digest | None

    @property
    def target(self) -> Digest | str:
        """What to ask the registry for: the digest, or else the tag."""
        return self.digest or self.tag or "latest"

    @property
    def name(self) -> str:
        """The repository as people call it: without Docker Hub's ``library/``, where one word follows."""
        word = self.repository.removeprefix("library/")
        return word if self.host == HUB and "/" not in word else self.repository

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        # A host of one word is told from a namespace by its upper-case letters alone.
        host = self.host if _looks_like_a_host(self.host) else self.host.upper()
        return f"{SCHEME}{host}/{self.name}{tag}{digest}"


def is_tag(text: str) -> bool:
    """Whether *text* can be a tag."""
    return _TAG.fullmatch(text) is not None


def is_repository(text: str) -> bool:
    """Whether *text* can be a repository's name."""
    return len(text) <= _LONGEST_NAME and _REPOSITORY.fullmatch(text) is not None


def is_remote(source: str) -> bool:
    """Whether *source* is written as an image in a registry."""
    return source.startswith(SCHEME)


def parse_remote(text: str) -> RemoteReference:
    """Read ``docker://[HOST[:PORT]/]REPO[:TAG][@DIGEST]``.

    A first word is a host as Docker takes it: with a dot, a colon or an upper-case letter, or ``localhost``. Without a
    host it is Docker Hub's, and there a name of one word is below ``library/``. Without tag and digest it is
    ``latest``.

    Raises:
        InvalidReferenceError: a part of it is not well formed; the message says which.
    """
    if not is_remote(text):
        raise InvalidReferenceError(f"{text[:300]!r} does not begin with {SCHEME}", hint=_HINT)
    rest, at, digest_text = text.removeprefix(SCHEME).partition("@")
    is_user = bool(at) and ":" in rest and "/" not in rest and not digest_text.startswith("sha256:")
    if "/" in digest_text or is_user:
        # It is not shown: it holds a password, or half of one.
        raise InvalidReferenceError(
            f"a source that begins with {SCHEME} names no user", hint="set ASYNCPUSH_SRC_CREDS to USER:PASSWORD"
        )
    first, slash, path = rest.partition("/")
    if slash and _looks_like_a_host(first):
        host = canonical_host(first)
    else:
        host, path = HUB, rest
    name, colon, tag = path.partition(":")
    if host == HUB and "/" not in name:
        name = f"library/{name}" if name else ""
    _check_name(name, text)
    if colon and not is_tag(tag):
        raise InvalidReferenceError(
            f"{tag[:140]!r} in {text[:300]!r} is not a tag",
            hint="a tag has up to 128 letters, digits, '.', '_' and '-', and begins with none of '.-'",
        )
    digest = _parse_digest(digest_text, text) if at else None
    return RemoteReference(host, name, tag or (None if digest else "latest"), digest)


def canonical_host(text: str) -> str:
    """A registry's host in the one form that it is known by: lower case, and ``docker.io`` for Docker Hub.

    Raises:
        InvalidReferenceError: *text* is no host.
    """
    host = text.lower()
    match = _HOST.fullmatch(host)
    if match is None or not 0 < int(match["port"] or 443) < 65536 or not _is_address(host):
        raise InvalidReferenceError(f"{text[:300]!r} is no registry's host", hint="write HOST or HOST:PORT")
    return HUB if host in _HUB_NAMES else host


def _is_address(host: str) -> bool:
    """Whether what stands between brackets, if anything does, is an IPv6 address."""
    if not host.startswith("["):
        return True
    try:
        IPv6Address(host[1 : host.index("]")])
    except ValueError:
        return False
    return True


def api_host(host: str) -> str:
    """Where the API of *host* is."""
    return HUB_API if host == HUB else host


def _looks_like_a_host(word: str) -> bool:
    return word == "localhost" or "." in word or ":" in word or word != word.lower()


def _check_name(name: str, text: str) -> None:
    if not name:
        raise InvalidReferenceError(f"{text[:300]!r} names no repository", hint=_HINT)
    if not is_repository(name):
        raise InvalidReferenceError(
            f"{name[:300]!r} is not a repository name",
            hint="a registry takes lower-case letters and digits, joined by '.', '_', '__', '-' or '/'",
        )


def _parse_digest(digest: str, text: str) -> Digest:
    try:
        return Digest.parse(digest)
    except ValueError as error:
        raise InvalidReferenceError(f"{text[:300]!r}: {error}", hint="ECR knows images by sha256 alone") from error
