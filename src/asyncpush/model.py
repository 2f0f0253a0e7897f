"""The data types: digests, platforms, descriptors and uploads; immutable, without I/O or third-party imports."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Literal, Self

_DIGEST = re.compile(r"sha256:([a-f0-9]{64})")
_PLATFORM_WORD = re.compile(r"[A-Za-z0-9._+-]+")

#: Other names of systems and architectures, such as those of `uname`, with the variant that a name implies.
_SYSTEMS = MappingProxyType({"macos": "darwin"})
_ARCHITECTURES = MappingProxyType(
    {
        "x86_64": ("amd64", None),
        "x86-64": ("amd64", None),
        "aarch64": ("arm64", None),
        "armhf": ("arm", "v7"),
        "armel": ("arm", "v6"),
        "i386": ("386", None),
        "i686": ("386", None),
    }
)
_WITH_VARIANT = frozenset(name for name, (_, variant) in _ARCHITECTURES.items() if variant)
_VERSIONED = frozenset({"amd64", "arm", "arm64"})

#: The variants that are usually not written; `arm` without a variant means v7.
_BASE_VARIANTS = MappingProxyType({"amd64": "v1", "arm64": "v8"})


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A sha256 content digest, ``sha256:`` and 64 lower-case hex digits when printed.

    ECR verifies no other algorithm (CompleteLayerUpload).
    """

    hex: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``sha256:<64 hex digits>``.

        Raises:
            ValueError: *text* is anything else.
        """
        match = _DIGEST.fullmatch(text)
        if match is None:
            raise ValueError(f"{text[:100]!r} is not a sha256 digest (sha256: and 64 hex digits)")
        return cls(match[1])

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Hash *data* in the calling thread; for manifests and other small data only."""
        return cls(hashlib.sha256(data).hexdigest())

    @property
    def short(self) -> str:
        """The first 12 hex digits, for screens."""
        return self.hex[:12]

    def __str__(self) -> str:
        return f"sha256:{self.hex}"


@dataclass(frozen=True, slots=True)
class Platform:
    """An operating system, architecture and variant, as in an OCI index's descriptors."""

    os: str
    architecture: str
    variant: str | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``OS/ARCH[/VARIANT]``.

        Raises:
            ValueError: *text* has another form.
        """
        words = text.split("/")
        if len(words) not in (2, 3) or not all(_PLATFORM_WORD.fullmatch(word) for word in words):
            raise ValueError(f"{text!r} is not a platform; write OS/ARCH[/VARIANT], such as linux/arm64/v8")
        return cls(*words)

    @property
    def normalized(self) -> Self:
        """The same platform in the form that containerd and Docker compare: one spelling for each platform."""
        os, named = self.os.lower(), self.architecture.lower()
        architecture, implied = _ARCHITECTURES.get(named, (named, None))
        variant = (self.variant or "").lower() or implied
        if variant and variant.isdecimal() and architecture in _VERSIONED:
            variant = f"v{variant}"
        if architecture == "arm":
            variant = variant or "v7"
        elif variant == _BASE_VARIANTS.get(architecture):
            variant = None
        return type(self)(_SYSTEMS.get(os, os), architecture, variant)

    def satisfies(self, requested: Platform) -> bool:
        """Whether an image for this platform is one that *requested* allows; without a variant, it allows any."""
        own, other = self.normalized, requested.normalized
        return own == other or (
            (own.os, own.architecture) == (other.os, other.architecture)
            and not requested.variant
            and requested.architecture.lower() not in _WITH_VARIANT
        )

    def distance(self, requested: Platform) -> int:
        """How far this is from *requested*, to order images that satisfy it: 0 equal, 1 equivalent, 2 another."""
        return 0 if self == requested else 1 if self.normalized == requested.normalized else 2

    def __str__(self) -> str:
        return "/".join(word for word in (self.os, self.architecture, self.variant) if word)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """The media type, digest and size in bytes of a blob or a manifest (OCI image-spec, descriptor)."""

    media_type: str
    digest: Digest
    size: int
    urls: tuple[str, ...] = ()
    platform: Platform | None = None
    annotations: tuple[tuple[str, str], ...] = ()
    artifact_type: str | None = None

    def annotation(self, key: str) -> str | None:
        """The value of annotation *key*, or None."""
        return dict(self.annotations).get(key)


#: Bytes of UploadLayerPart's body for its other members.
_OTHER_MEMBERS = 2048


def encoded_size(part_size: int) -> int:
    """Return the most bytes that UploadLayerPart's body takes for a part: base64, and some room for other members."""
    return part_size * 4 // 3 + _OTHER_MEMBERS


def decoded_size(body_size: int) -> int:
    """Return the most bytes of a part that UploadLayerPart's body takes in *body_size* bytes."""
    return (body_size - _OTHER_MEMBERS) * 3 // 4


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload that ECR has opened, by InitiateLayerUpload or at ``/v2/``.

    Attributes:
        id: the upload id, which is opaque; at ``/v2/`` the path of its Location.
        part_size: bytes of a part that ECR asks for.
        max_parts: the most parts of one layer (ECR's quota: 4,200; ECR Public's: 1,000).
    """

    id: str
    part_size: int
    max_parts: int

    @property
    def is_v2(self) -> bool:
        """Whether it was opened at ``/v2/``."""
        return self.id.startswith("/")

    def body_size(self, part_size: int) -> int:
        """Return the most bytes that the request body of a part takes: its own, or as base64 if not at ``/v2/``."""
        return part_size if self.is_v2 else encoded_size(part_size)


@dataclass(frozen=True, slots=True)
class LayerBytes:
    """The digest and size in bytes of a layer whose bytes have all been read."""

    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class OpenUpload:
    """An upload that an earlier run has begun and not completed.

    Attributes:
        upload: the upload.
        part_size: the size of its parts in bytes.
        received: bytes that ECR has acknowledged.
    """

    upload: Upload
    part_size: int
    received: int


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An image that an index or the list of a source names, and that is not pushed: it is missing, or not an image.

    Attributes:
        name: its platform, or another description.
        digest: the digest of its manifest; None if that can't be read.
        reason: why it is not pushed.
    """

    name: str
    digest: Digest | None
    reason: str


@dataclass(frozen=True, slots=True)
class TagMutability:
    """Which tags of a repository are immutable.

    Attributes:
        setting: ``MUTABLE``, ``IMMUTABLE``, or one of them ``_WITH_EXCLUSION``.
        exclusions: wildcards of tags for which the opposite holds, if the setting has exclusions.
    """

    setting: str = "MUTABLE"
    exclusions: tuple[str, ...] = ()

    def is_immutable(self, tag: str) -> bool:
        """Whether *tag* can't be moved to another image."""
        is_excluded = self.setting.endswith("_WITH_EXCLUSION") and any(
            fnmatchcase(tag, pattern) for pattern in self.exclusions
        )
        return self.setting.startswith("IMMUTABLE") != is_excluded


@dataclass(frozen=True, slots=True)
class PushedLayer:
    """A layer that a repository holds now.

    Attributes:
        descriptor: its descriptor.
        sent: bytes that were sent, before base64; bytes that were sent twice count twice.
        outcome: ``pushed``; ``present`` if the repository had it already; ``mounted`` from another repository.
    """

    descriptor: Descriptor
    sent: int
    outcome: Literal["pushed", "present", "mounted"]


@dataclass(frozen=True, slots=True)
class RepositoryInfo:
    """A repository of a registry, as DescribeRepositories returns it.

    Attributes:
        name: its name.
        registry_id: the account that owns it.
        mutability: ``MUTABLE``, ``IMMUTABLE``, ``MUTABLE_WITH_EXCLUSION`` or ``IMMUTABLE_WITH_EXCLUSION``.
        exclusions: the wildcards of its exclusion filters.
        arn: its ARN; empty if ECR does not tell.
        scan_on_push: whether images are scanned when they are pushed; None if ECR does not tell.
        encryption: ``AES256``, ``KMS`` or ``KMS_DSSE``; None if ECR does not tell.
        kms_key: the key of the encryption, usually its ARN.
    """

    name: str
    registry_id: str
    mutability: str = "MUTABLE"
    exclusions: tuple[str, ...] = ()
    arn: str = ""
    scan_on_push: bool | None = None
    encryption: str | None = None
    kms_key: str | None = None


#: BatchGetImage's failure code for an image that is archived: nobody can pull it until it is restored.
ARCHIVED = "ImageInaccessible"


def restoring(repository: str, name: str) -> str:
    """The command that restores the archived image *name*, a tag or digest, of a repository."""
    kind = "imageDigest" if name.startswith("sha256:") else "imageTag"
    return (
        f"aws ecr update-image-storage-class --repository-name {repository} --image-id {kind}={name} "
        "--target-storage-class STANDARD"
    )


@dataclass(frozen=True, slots=True)
class ArchivedImage:
    """An image in ECR's archive.

    Attributes:
        digest: its digest.
        tags: its tags.
        status: ``ARCHIVED``, or ``ACTIVATING`` while it is being restored.
    """

    digest: str
    tags: tuple[str, ...]
    status: str
