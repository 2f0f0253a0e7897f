"""The limits that a push keeps to, each with its reason. The command line's options map to these fields one to one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from asyncpush.errors import UsageError
from asyncpush.reference import Service

MiB = 1024 * 1024

#: ECR's documented part size limits (quotas page: 5 to 10 MiB; UploadLayerPart's model takes up to 20 MiB).
MIN_PART_SIZE = 5 * MiB
MAX_PART_SIZE = 20 * MiB

#: What InitiateLayerUpload answers in every sample; used when it answers none.
DEFAULT_PART_SIZE = 10 * MiB

#: Parts of one layer (quotas page; not adjustable).
MAX_PARTS: dict[Service, int] = {"ecr": 4200, "ecr-public": 1000}

#: The longest manifest that PutImage takes (its model's maximum).
MAX_MANIFEST_SIZE = 4 * MiB

#: Indexes in indexes: real ones have one level, two at the most.
MAX_INDEX_DEPTH = 4

#: Manifests below one root; an index of many more is a mistake or an attack.
MAX_MANIFESTS = 1000

Compression = Literal["gzip", "zstd", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a push may use and how hard it tries.

    Attributes:
        max_layers: layers in flight at once, over all images, at most. One stream into ECR runs at 24 to 40 MB/s, so
            speed is the number of streams; there are 16 at first, and more as long as that is faster.
        max_memory: bytes of encoded parts held at once, over all layers. Each layer holds the part in
            flight and the next one: 2 x 4/3 x part size.
        part_size: bytes a part; None takes what ECR asks for (10 MiB).
        compression: how uncompressed layers (of a docker-archive) are compressed.
        compression_level: gzip 1 to 9 (1 to 3 by igzip, an order of magnitude faster than zlib's 4 to 9), zstd 1 to
            19; None is gzip 1, zstd 3.
        max_attempts: tries of one request before its failure counts; throttles are no failures.
        create_repository: create a missing repository instead of failing.
        push_foreign_layers: send layers that are marked as non-distributable, too.
    """

    max_layers: int = 64
    max_memory: int = 256 * MiB
    part_size: int | None = None
    compression: Compression = "gzip"
    compression_level: int | None = None
    max_attempts: int = 6
    create_repository: bool = False
    push_foreign_layers: bool = False

    def __post_init__(self) -> None:
        if self.max_layers < 1:
            raise UsageError(f"--max-layers is {self.max_layers}", hint="give 1 or more")
        if self.max_attempts < 1:
            raise UsageError(f"max_attempts is {self.max_attempts}", hint="give 1 or more")
        if self.max_memory < 2 * MAX_PART_SIZE:
            raise UsageError(
                f"--max-memory is {self.max_memory} bytes", hint=f"give {2 * MAX_PART_SIZE // MiB}MiB or more"
            )
        if self.part_size is not None and not MIN_PART_SIZE <= self.part_size <= MAX_PART_SIZE:
            raise UsageError(
                f"--part-size is {self.part_size} bytes",
                hint="ECR takes parts of 5MiB to 20MiB; leave it out for ECR's own",
            )
        levels = {"gzip": (1, 9), "zstd": (1, 19), "none": (0, 0)}
        low, high = levels[self.compression]
        if self.compression_level is not None and not low <= self.compression_level <= high:
            raise UsageError(
                f"--compression-level is {self.compression_level}", hint=f"{self.compression} takes {low} to {high}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class AwsConfiguration:
    """What a caller may set over the AWS configuration of the environment.

    Attributes:
        profile: a profile of the shared configuration.
        region: the region, where the registry's host names none.
        endpoint_url: the endpoint, instead of AWS's own.
        access_key_id: explicit credentials, with ``secret_access_key``; nothing is then read from the environment.
        secret_access_key: see above.
    """

    profile: str | None = None
    region: str | None = None
    endpoint_url: str | None = None
    access_key_id: str | None = None
    secret_access_key: str | None = None
