"""Who the emulator says it is: account, region, addresses."""

from __future__ import annotations

from dataclasses import dataclass

MiB = 1024 * 1024

#: ECR's minimum for all parts but the last.
MIN_PART = 5 * MiB


@dataclass(frozen=True, slots=True)
class Registry:
    """The one registry that is served.

    Attributes:
        endpoint_url: ``http://HOST:PORT``, or ``https``.
        part_size: bytes, as InitiateLayerUpload answers them.
        id: the account's id, where a request names none.
        region: the region in ARNs.
    """

    endpoint_url: str
    part_size: int
    id: str = "000000000000"
    region: str = "us-east-1"

    @property
    def authority(self) -> str:
        """``HOST:PORT``."""
        return self.endpoint_url.partition("://")[2]

    @property
    def min_part(self) -> int:
        """Bytes that all parts but the last must have: ECR's 5 MiB, or less where less is asked for."""
        return min(MIN_PART, self.part_size)
