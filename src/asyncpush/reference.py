"""The grammars of references: ECR's hosts, repositories, tags, destinations, images in other registries, S3's objects.

Sources: ECR's service model; OCI distribution-spec 1.1, "pulling manifests"; Docker's rules for names without a host.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from ipaddress import IPv6Address
from typing import Literal, Self

from asyncpush.errors import InvalidReferenceError, UsageError
from asyncpush.model import Digest

Service = Literal["ecr", "ecr-public"]

# The private registry's hosts in every partition; ECR user guide, "making requests to Amazon ECR registries".
_PRIVATE_HOST = re.compile(
    r"(?P<id>[0-9]{12})\.dkr\.ecr(?P<fips>-fips)?\.(?P<region>[a-z]{2,}(?:-[a-z0-9]+)+)\."
    r"(?:amazonaws\.com(?:\.cn)?|amazonaws\.eu|c2s\.ic\.gov|sc2s\.sgov\.gov|cloud\.adc-e\.uk|csp\.hci\.ic\.gov)"
)
_DUAL_STACK_HOST = re.compile(
    r"(?P<id>[0-9]{12})\.dkr-ecr(?P<fips>-fips)?\.(?P<region>[a-z]{2,}(?:-[a-z0-9]+)+)\."
    r"on\.(?:aws|amazonwebservices\.com\.cn|amazonwebservices\.eu)"
)
#: The host of ECR Public.
ECR_PUBLIC = "public.ecr.aws"

# registryId in ECR's service model.
_ACCOUNT = re.compile(r"[0-9]{12}")

# CreateRepository's pattern and lengths in ECR's and ECR Public's service models.
_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_REPOSITORY_MAX: dict[Service, int] = {"ecr": 256, "ecr-public": 205}

# OCI distribution-spec 1.1, "pulling manifests": <reference> as a tag.
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_TAG_HINT = "a tag has up to 128 letters, digits, '.', '_' and '-', and does not begin with '.' or '-'"


@dataclass(frozen=True, slots=True)
class RegistryName:
    """The name of an ECR registry.

    Attributes:
        service: ``ecr``, or ``ecr-public`` for ECR Public.
        id: the account id, or ECR Public's alias; None for the caller's own account.
        region: the region in the host; None for the configured region.
        fips: whether the host requires FIPS endpoints.
        dual_stack: whether the host requires dual-stack endpoints.
        host: the host as written; empty for the caller's own registry.
    """

    service: Service = "ecr"
    id: str | None = None
    region: str | None = None
    fips: bool = False
    dual_stack: bool = False
    host: str = ""


@dataclass(frozen=True, slots=True)
class Destination:
    """A repository in a registry, and the tag for the image, if any."""

    registry: RegistryName
    repository: str
    tag: str | None

    def __str__(self) -> str:
        name = f"{self.registry.host}/{self.repository}" if self.registry.host else self.repository
        if self.registry.service == "ecr-public":
            name = f"{self.registry.host}/{self.registry.id}/{self.repository}"
        return f"{name}:{self.tag}" if self.tag else name


def parse_registry(text: str) -> RegistryName:
    """Parse the host of a registry: a private one of any partition, or ``public.ecr.aws/ALIAS``.

    Raises:
        InvalidReferenceError: *text* is not an ECR registry.
    """
    host, _, rest = text.partition("/")
    if host == ECR_PUBLIC:
        if not rest or "/" in rest:
            raise InvalidReferenceError(f"{text!r} names no registry of ECR Public", hint="write public.ecr.aws/ALIAS")
        return RegistryName("ecr-public", rest, "us-east-1", host=host)
    for pattern, dual_stack in ((_PRIVATE_HOST, False), (_DUAL_STACK_HOST, True)):
        if not rest and (match := pattern.fullmatch(host)):
            return RegistryName("ecr", match["id"], match["region"], bool(match["fips"]), dual_stack, host)
    raise InvalidReferenceError(
        f"{text!r} is not an ECR registry",
        hint="write ACCOUNT.dkr.ecr.REGION.amazonaws.com, public.ecr.aws/ALIAS, or leave it out for your own registry "
        "(--endpoint-url sets another endpoint)",
    )


def parse_destination(text: str) -> Destination:
    """Parse ``[REGISTRY/]REPOSITORY[:TAG]``.

    Raises:
        InvalidReferenceError: a part of it is not well formed; the message says which.
    """
    if "@" in text:
        raise InvalidReferenceError(f"{text!r} names a digest", hint="a push goes to a tag: write REPOSITORY[:TAG]")
    prefix = parse_prefix(text)
    name, colon, tag = prefix.path.rpartition(":")
    if not colon:
        name, tag = prefix.path, ""
    if not name:
        raise InvalidReferenceError(f"{text!r} names no repository", hint="write [REGISTRY/]REPOSITORY[:TAG]")
    if colon and not tag:
        raise InvalidReferenceError(f"{text!r} ends in a colon", hint="write REPOSITORY:TAG, or no colon")
    return destination(prefix.registry, name, tag or None)


def destination(registry: RegistryName, repository: str, tag: str | None) -> Destination:
    """Make a destination, and check its repository and tag.

    Raises:
        InvalidReferenceError: ECR does not accept the name of the repository or the tag.
    """
    check_repository(repository, registry.service)
    if tag is not None:
        check_tag(tag)
    return Destination(registry, repository, tag)


def check_tag(tag: str) -> None:
    """Check that *tag* can be a tag.

    Raises:
        InvalidReferenceError: it can't.
    """
    if not is_tag(tag):
        raise InvalidReferenceError(f"{tag[:140]!r} is not a tag", hint=_TAG_HINT)


@dataclass(frozen=True, slots=True)
class Prefix:
    """A registry, and a prefix of the names of its repositories, which may be empty."""

    registry: RegistryName
    path: str

    def join(self, repository: str, tag: str | None) -> Destination:
        """Return the destination of an image that its source names *repository* and *tag*.

        Raises:
            InvalidReferenceError: prefix and *repository* together, or the tag, are not well formed.
        """
        path = self.path.strip("/")
        return destination(self.registry, f"{path}/{repository}" if path else repository, tag)


def parse_prefix(text: str) -> Prefix:
    """Parse ``[REGISTRY][/PREFIX]``.

    Raises:
        InvalidReferenceError: the registry is not an ECR registry.
    """
    scheme, mark, rest = text.partition("://")
    if mark:
        raise InvalidReferenceError(f"{text[:300]!r} begins with {scheme[:20]}://", hint="leave that out")
    first, slash, rest = text.partition("/")
    if first == ECR_PUBLIC:
        alias, _, path = rest.partition("/")
        return Prefix(parse_registry(f"{first}/{alias}"), path)
    is_host = first == "localhost" or "." in first or ":" in first
    if is_host and (slash or _PRIVATE_HOST.fullmatch(first) or _DUAL_STACK_HOST.fullmatch(first)):
        return Prefix(parse_registry(first), rest)
    # Else a repository could be named like a registry, and read back as one.
    if not first and text.strip("/") and parse_prefix(text.lstrip("/")).registry != RegistryName():
        raise InvalidReferenceError(f"{text[:300]!r} begins with a slash", hint="leave that out")
    return Prefix(RegistryName(), text)


def registry_of(account: str | None) -> RegistryName:
    """Return the registry of an account; None is the caller's own account.

    Raises:
        InvalidReferenceError: *account* is not an account id.
    """
    if account is not None and not _ACCOUNT.fullmatch(account):
        raise InvalidReferenceError(f"{account[:60]!r} is not an account id", hint="write its 12 digits")
    return RegistryName(id=account)


def check_repository(name: str, service: Service = "ecr") -> None:
    """Check that ECR accepts *name* as the name of a repository.

    Raises:
        InvalidReferenceError: it does not.
    """
    max_length = _REPOSITORY_MAX[service]
    if not 2 <= len(name) <= max_length or not _REPOSITORY.fullmatch(name):
        raise InvalidReferenceError(
            f"{name[:300]!r} is not a repository name",
            hint=f"ECR takes 2 to {max_length} lower-case letters and digits, joined by '.', '_', '__', '-' or '/'",
        )


def in_registry(destination: Destination, registry: RegistryName) -> Destination:
    """Return *destination*, with *registry* filled in if it names no registry.

    Raises:
        InvalidReferenceError: *destination* names another registry.
    """
    if destination.registry == RegistryName():
        check_repository(destination.repository, registry.service)
        return replace(destination, registry=registry)
    if destination.registry != registry:
        raise InvalidReferenceError(
            f"{destination} is not in {registry.host or 'your own registry'}", hint="connect to its registry"
        )
    return destination


def pull_reference(name: str | None, tag: str | None, digest: Digest) -> str | None:
    """What every tool can pull, ``HOST/REPOSITORY:TAG@DIGEST``; None if the *name*, ``HOST/REPOSITORY``, is unknown."""
    if name is None:
        return None
    return f"{name}:{tag}@{digest}" if tag else f"{name}@{digest}"


SCHEME = "docker://"

#: Docker Hub as users write it; its API has another host.
HUB = "docker.io"
HUB_API = "registry-1.docker.io"
_HUB_NAMES = frozenset({HUB, "index.docker.io", HUB_API})

_HOST_WORD = r"(?:[a-z0-9]|[a-z0-9][a-z0-9-]*[a-z0-9])"
_HOST = re.compile(rf"(?:{_HOST_WORD}(?:\.{_HOST_WORD})*|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{{1,5}}))?")
_MAX_NAME_LENGTH = 255

_HINT = "write docker://HOST/REPOSITORY[:TAG|@DIGEST], such as docker://quay.io/team/app:1.4"


@dataclass(frozen=True, slots=True)
class RemoteReference:
    """An image in a registry.

    Attributes:
        host: the registry's host in lower case, with its port if it has one; ``docker.io`` for Docker Hub.
        repository: the repository's name in the registry's API: with ``library/`` if Docker Hub requires it.
        tag: the tag; None if only a digest was written.
        digest: the digest, which takes precedence over the tag; None if none was written.
    """

    host: str
    repository: str
    tag: str | None
    digest: Digest | None

    @property
    def target(self) -> Digest | str:
        """The reference for the registry's API: the digest, or else the tag."""
        return self.digest or self.tag or "latest"

    @property
    def name(self) -> str:
        """The repository's usual name: without ``library/`` for the official images of Docker Hub."""
        short = self.repository.removeprefix("library/")
        return short if self.host == HUB and "/" not in short else self.repository

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        # Only upper-case letters distinguish a host of one word from a namespace.
        host = self.host if _looks_like_host(self.host) else self.host.upper()
        return f"{SCHEME}{host}/{self.name}{tag}{digest}"


def is_tag(text: str) -> bool:
    """Whether *text* can be a tag."""
    return _TAG.fullmatch(text) is not None


def is_repository(text: str) -> bool:
    """Whether *text* can be a repository's name."""
    return len(text) <= _MAX_NAME_LENGTH and _REPOSITORY.fullmatch(text) is not None


def is_remote(source: str) -> bool:
    """Whether *source* is a reference to an image in a registry."""
    return source.startswith(SCHEME)


def parse_remote(text: str) -> RemoteReference:
    """Parse ``docker://[HOST[:PORT]/]REPO[:TAG][@DIGEST]``.

    The first word is a host by Docker's rule: with a dot, a colon or an upper-case letter, or ``localhost``. The
    default host is Docker Hub, where a name of one word is below ``library/``. The default tag is ``latest``, unless
    there is a digest.

    Raises:
        InvalidReferenceError: a part of it is not well formed; the message says which.
    """
    if not is_remote(text):
        raise InvalidReferenceError(f"{text[:300]!r} does not begin with {SCHEME}", hint=_HINT)
    rest, at, digest_text = text.removeprefix(SCHEME).partition("@")
    is_user = bool(at) and ":" in rest and "/" not in rest and not digest_text.startswith("sha256:")
    if "/" in digest_text or is_user:
        # The message does not quote it: it contains a password, or half of one.
        raise InvalidReferenceError(
            f"a source that begins with {SCHEME} names no user", hint="set ASYNCPUSH_SRC_CREDS to USER:PASSWORD"
        )
    first, slash, path = rest.partition("/")
    if slash and _looks_like_host(first):
        host = canonical_host(first)
    else:
        host, path = HUB, rest
    name, colon, tag = path.partition(":")
    if host == HUB and "/" not in name:
        name = f"library/{name}" if name else ""
    _check_name(name, text)
    if colon and not is_tag(tag):
        raise InvalidReferenceError(f"{tag[:140]!r} in {text[:300]!r} is not a tag", hint=_TAG_HINT)
    digest = _parse_digest(digest_text, text) if at else None
    return RemoteReference(host, name, tag or (None if digest else "latest"), digest)


#: What a pattern of repositories consists of: the characters of names, and shell wildcards.
_PATTERN = re.compile(r"[a-z0-9._/*?\[\]!^-]{1,256}")
_WILDCARD = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class RemotePattern:
    """Repositories of a registry, by shell wildcards; ``*`` also matches slashes.

    Attributes:
        host: the registry's host, as in ``RemoteReference``.
        glob: the pattern of their names in the registry's API.
    """

    host: str
    glob: str


def is_remote_pattern(text: str) -> bool:
    """Whether *text* names repositories of a registry by a pattern: its path contains a wildcard."""
    first, slash, path = text.removeprefix(SCHEME).partition("/")
    return _WILDCARD.search(path if slash and _looks_like_host(first) else f"{first}{slash}{path}") is not None


def parse_remote_pattern(text: str) -> RemotePattern:
    """Parse ``[docker://][HOST[:PORT]/]PATTERN``.

    Raises:
        InvalidReferenceError: a part of it is not well formed; the message says which.
    """
    first, slash, glob = text.removeprefix(SCHEME).partition("/")
    if slash and _looks_like_host(first):
        host = canonical_host(first)
    else:
        host, glob = HUB, f"{first}{slash}{glob}"
    if ":" in glob or "@" in glob:
        raise InvalidReferenceError(
            f"{text[:300]!r} names a tag or digest behind a pattern",
            hint="write HOST/PATTERN, and choose tags by rules",
        )
    check_repository_pattern(glob)
    return RemotePattern(host, glob)


def check_repository_pattern(glob: str) -> None:
    """Check that *glob* can match the name of a repository.

    Raises:
        InvalidReferenceError: it can't.
    """
    if not _PATTERN.fullmatch(glob):
        raise InvalidReferenceError(
            f"{glob[:300]!r} matches no repository",
            hint="names have lower-case letters, digits and '.', '_', '-', '/'; wildcards are *, ? and [...]",
        )


def canonical_host(text: str) -> str:
    """Return the canonical form of a registry's host: lower case, and ``docker.io`` for Docker Hub.

    Raises:
        InvalidReferenceError: *text* is not a host.
    """
    host = text.lower()
    match = _HOST.fullmatch(host)
    if match is None or not 0 < int(match["port"] or 443) < 65536 or not _is_address(host):
        raise InvalidReferenceError(f"{text[:300]!r} is not a registry host", hint="write HOST or HOST:PORT")
    return HUB if host in _HUB_NAMES else host


def _is_address(host: str) -> bool:
    """Whether the text between brackets, if there are any, is an IPv6 address."""
    if not host.startswith("["):
        return True
    try:
        IPv6Address(host[1 : host.index("]")])
    except ValueError:
        return False
    return True


def api_host(host: str) -> str:
    """Return the host of the API of *host*."""
    return HUB_API if host == HUB else host


def _looks_like_host(word: str) -> bool:
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
        raise InvalidReferenceError(
            f"{text[:300]!r}: {error}", hint="write a sha256 digest; ECR supports no other"
        ) from error


_SUBJECT = re.compile(r"sha256-(?P<hex>[a-f0-9]{64})(?:\.(?:sig|att|sbom))?")


def subject_of(tag: str) -> Digest | None:
    """Return the digest of the image whose signature or referrers have *tag*; None for other tags.

    The tags of cosign end in ``.sig``, ``.att`` or ``.sbom``; those of the OCI referrers tag schema have no suffix.
    """
    match = _SUBJECT.fullmatch(tag)
    return Digest(match["hex"]) if match else None


S3_SCHEME = "s3://"


@dataclass(frozen=True, slots=True)
class S3Location:
    """An object in S3, ``s3://BUCKET/KEY``; or with a key that ends with a slash or is empty, all below it."""

    bucket: str
    key: str

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read ``s3://BUCKET/KEY``; None for anything that is not a URL of S3.

        Raises:
            UsageError: it names no bucket.
        """
        if not text.startswith(S3_SCHEME):
            return None
        bucket, _, key = text.removeprefix(S3_SCHEME).partition("/")
        if not bucket:
            raise UsageError(f"{text!r} names no bucket", hint="write s3://BUCKET/KEY")
        return cls(bucket, key)

    @property
    def is_prefix(self) -> bool:
        """Whether it stands for all objects below it."""
        return not self.key or self.key.endswith("/")

    def __str__(self) -> str:
        return f"{S3_SCHEME}{self.bucket}/{self.key}"
