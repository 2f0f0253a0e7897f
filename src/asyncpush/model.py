"""The nouns: digests, platforms, descriptors and uploads. Frozen, without I/O and without third-party imports."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Literal, Self

_DIGEST = re.compile(r"sha256:([a-f0-9]{64})")
_PLATFORM_WORD = re.compile(r"[A-Za-z0-9._+-]+")

#: How else systems and architectures are called, by people and by `uname`; with the variant that a name implies.
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

#: The variants that go without saying; of `arm`, it is v7 that is meant where nothing is said.
_BASE_VARIANTS = MappingProxyType({"amd64": "v1", "arm64": "v8"})


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A sha256 content digest, ``sha256:`` and 64 lower-case hex digits when printed.

    Only sha256 exists here: ECR verifies no other algorithm (CompleteLayerUpload).
    """

    hex: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``sha256:<64 hex digits>``.

        Raises:
            ValueError: *text* is anything else.
        """
        match = _DIGEST.fullmatch(text)
        if match is None:
            raise ValueError(f"{text[:100]!r} is not a sha256 digest (sha256: and 64 hex digits)")
        return cls(match[1])

    @classmethod
    def of(cls, data: bytes) -> Self:
        """Hash *data*; for manifests and other small bytes only, since it runs where it is called."""
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
        """Read ``OS/ARCH[/VARIANT]``.

        Raises:
            ValueError: *text* has another form.
        """
        words = text.split("/")
        if len(words) not in (2, 3) or not all(_PLATFORM_WORD.fullmatch(word) for word in words):
            raise ValueError(f"{text!r} is not a platform; write OS/ARCH[/VARIANT], such as linux/arm64/v8")
        return cls(*words)

    @property
    def normalized(self) -> Self:
        """The same platform in the words that containerd and Docker compare: one way to write each."""
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

    def satisfies(self, wanted: Platform) -> bool:
        """Whether an image for this platform is one that *wanted* asks for; without a variant, any will do."""
        own, asked = self.normalized, wanted.normalized
        return own == asked or (
            (own.os, own.architecture) == (asked.os, asked.architecture)
            and not wanted.variant
            and wanted.architecture.lower() not in _WITH_VARIANT
        )

    def distance(self, wanted: Platform) -> int:
        """How far this is from *wanted*, to order images that satisfy it: 0 written alike, 1 the same, 2 another."""
        return 0 if self == wanted else 1 if self.normalized == wanted.normalized else 2

    def __str__(self) -> str:
        return "/".join(word for word in (self.os, self.architecture, self.variant) if word)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What points at a blob or a manifest: its media type, digest and size in bytes (OCI image-spec, descriptor)."""

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


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload that ECR has opened (InitiateLayerUpload).

    Attributes:
        id: the upload id; opaque.
        part_size: bytes that ECR wants a part to have.
        max_parts: parts that ECR takes of one layer (its quota: 4,200; ECR Public's 1,000).
    """

    id: str
    part_size: int
    max_parts: int


@dataclass(frozen=True, slots=True)
class LayerBytes:
    """What a layer turned out to be once all its bytes were read: its digest and its size in bytes."""

    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class OpenUpload:
    """An upload that an earlier run has left.

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
    """What an index or a source's list names and a push leaves out: it is not there, or no image.

    Attributes:
        name: the platform, or other words for it.
        digest: of its manifest; None where that can't be read.
        reason: why.
    """

    name: str
    digest: Digest | None
    reason: str


@dataclass(frozen=True, slots=True)
class TagMutability:
    """Which tags of a repository may not move to another image.

    Attributes:
        setting: ``MUTABLE``, ``IMMUTABLE``, or one of them ``_WITH_EXCLUSION``.
        exclusions: wildcards of tags for which the opposite holds, where the setting has them.
    """

    setting: str = "MUTABLE"
    exclusions: tuple[str, ...] = ()

    def is_immutable(self, tag: str) -> bool:
        """Whether *tag* can't be moved."""
        excluded = self.setting.endswith("_WITH_EXCLUSION") and any(fnmatchcase(tag, each) for each in self.exclusions)
        return self.setting.startswith("IMMUTABLE") != excluded


@dataclass(frozen=True, slots=True)
class PushedLayer:
    """A layer that a repository holds now.

    Attributes:
        descriptor: what points at it.
        sent: bytes of it that went over the wire, before base64; what was sent again counts again.
        outcome: ``pushed``; ``present`` if the repository had it already; ``mounted`` from another repository.
    """

    descriptor: Descriptor
    sent: int
    outcome: Literal["pushed", "present", "mounted"]
