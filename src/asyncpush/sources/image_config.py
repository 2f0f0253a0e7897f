"""What an image's config says: its platform, and its uncompressed layers' digests (OCI image-spec, config)."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from asyncpush.model import Platform
from asyncpush.sources.blobs import decode_document


class _RootFs(msgspec.Struct):
    diff_ids: list[str] | None = None


class _Config(msgspec.Struct):
    os: str | None = None
    architecture: str | None = None
    variant: str | None = None
    rootfs: _RootFs | None = None


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """The parts of a config that a push looks at.

    Attributes:
        platform: None if it names none, as an artifact's config does.
        diff_ids: the uncompressed layers' digests, in order, as they are written there.
    """

    platform: Platform | None
    diff_ids: tuple[str, ...]


def parse_config(raw: bytes, label: str) -> ImageConfig:
    """Read a config.

    Raises:
        ManifestError: it is malformed.
    """
    parsed = decode_document(raw, _Config, label)
    platform = Platform(parsed.os, parsed.architecture, parsed.variant) if parsed.os and parsed.architecture else None
    return ImageConfig(platform, tuple((parsed.rootfs.diff_ids if parsed.rootfs else None) or ()))
