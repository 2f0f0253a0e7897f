"""The numbers and addresses that the emulator answers by: part sizes, ECR's quotas, and the chosen quirks."""

from __future__ import annotations

from dataclasses import dataclass

from asyncpush.emulator.quirks import Quirks
from asyncpush.emulator.registry import RegistryId

MiB = 1024 * 1024

#: ECR's minimum for all parts but the last.
MIN_PART = 5 * MiB

#: The longest manifest, in bytes (ECR's model counts the characters of PutImage's imageManifest).
MAX_MANIFEST = 4 * MiB


@dataclass(frozen=True, slots=True)
class Quotas:
    """How much of everything there may be (ECR's service quotas; sizes in bytes). 0 is no limit."""

    parts: int
    layer_size: int
    layers: int
    images: int
    tags: int
    repositories: int


_PRIVATE = Quotas(parts=4_200, layer_size=52_000 * MiB, layers=0, images=100_000, tags=1_000, repositories=100_000)
_PUBLIC = Quotas(parts=1_000, layer_size=10_000 * MiB, layers=0, images=100_000, tags=1_000, repositories=10_000)


@dataclass(frozen=True, slots=True)
class Limits:
    """What holds for all registries of one emulator.

    Attributes:
        endpoint_url: ``http://HOST:PORT``, or ``https``.
        part_size: bytes, as InitiateLayerUpload answers them.
        quirks: the readings of open questions.
    """

    endpoint_url: str
    part_size: int
    quirks: Quirks

    @property
    def authority(self) -> str:
        """``HOST:PORT``."""
        return self.endpoint_url.partition("://")[2]

    @property
    def min_part(self) -> int:
        """Bytes that all parts but the last must have: ECR's 5 MiB, or less where less is asked for."""
        return min(MIN_PART, self.part_size)

    def quotas(self, registry: RegistryId) -> Quotas:
        """The quotas of a registry: its service's, or lower ones that were asked for."""
        base, chosen = _PUBLIC if registry.is_public else _PRIVATE, self.quirks
        return Quotas(
            parts=chosen.max_parts or base.parts,
            layer_size=chosen.max_layer_size or base.layer_size,
            layers=chosen.max_layers,
            images=chosen.max_images or base.images,
            tags=chosen.max_tags or base.tags,
            repositories=chosen.max_repositories or base.repositories,
        )
