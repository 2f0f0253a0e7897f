"""The nouns: digests, platforms, descriptors and uploads. Frozen, without I/O and without third-party imports."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Self

_DIGEST = re.compile(r"sha256:([a-f0-9]{64})")
_PLATFORM_WORD = re.compile(r"[A-Za-z0-9._+-]+")


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

    def satisfies(self, wanted: Platform) -> bool:
        """Whether an image for this platform is one that *wanted* asks for; without a variant, any will do."""
        return (self.os, self.architecture) == (wanted.os, wanted.architecture) and (
            wanted.variant is None or wanted.variant == self.variant
        )

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
