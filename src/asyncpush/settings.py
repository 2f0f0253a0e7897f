"""The limits that a push keeps to, each with its reason. The command line's options map to these fields one to one."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from asyncpush.errors import UsageError
from asyncpush.redaction import hide, hide_login, hide_user_of, without_user
from asyncpush.reference import Service

MiB = 1024 * 1024
GiB = 1024 * MiB

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

#: Seconds that a host may be silent which has answered before: a router that restarts, a fail-over, a new lease.
MAX_OUTAGE = 300.0

#: Seconds for which AWS takes a signature (Signature Version 4: five minutes either way).
SIGNATURE_LIFETIME = 300.0

Compression = Literal["gzip", "zstd", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How long a host is waited for, and when a request is sent again; all times in seconds.

    Attributes:
        stall: without a byte from a registry that is read, until its connection counts as broken.
        connect: until a connection to it must be there.
        read: without a byte from ECR, or taken by it, until its connection counts as broken.
        answer: until an answer's headers, and then a document, must be whole, however slowly they come; a blob may
            take as long as it likes.
        note_after: without an answer, until a user is told that it is waited for.
        attempts: failures in a row, without progress in between, that end a request to a registry that is read;
            throttles are none, nor is no answer at all. Of requests to ECR, ``Settings.max_attempts`` says so.
        outage: for how long a host that has answered may give no answer; within ``Settings``, its ``max_outage`` says.
        first_wait: the longest first wait; it doubles with each failure.
        longest_wait: the longest of these waits.
        throttled: what one request may wait in all because it was refused for its rate, or told to wait.
        throttled_wait: what each throttle of a request to ECR adds to its wait: the pace of all requests, not the rest
            of one, keeps to a quota.
        first_throttled_wait: the shortest bound of the first wait where a registry that is read refuses for its rate.
        slowest_rate: requests of an operation of ECR a second, at the least, however many it refuses: a tenth of the
            smallest quota, so that a run goes on even when others take all.
        lag_waits: between tries to put a manifest whose blobs ECR does not see yet: its check of manifests can lag
            behind a completed layer by hundreds of milliseconds.
        helper: until a credential helper must have answered.
    """

    stall: float = 60.0
    connect: float = 30.0
    read: float = 120.0
    answer: float = 90.0
    note_after: float = 10.0
    attempts: int = 6
    outage: float = MAX_OUTAGE
    first_wait: float = 0.2
    longest_wait: float = 20.0
    throttled: float = 600.0
    throttled_wait: float = 0.02
    first_throttled_wait: float = 1.0
    slowest_rate: float = 1.0
    lag_waits: tuple[float, ...] = (0.1, 0.4, 1.0, 2.5)
    helper: float = 30.0

    @classmethod
    def of(cls, settings: Settings) -> RetryPolicy:
        """As *settings* say, for one host."""
        return replace(settings.retry, outage=settings.max_outage)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a push may use and how hard it tries.

    Attributes:
        max_layers: layers in flight at once, over all images, at most. One stream into ECR runs at 24 to 40 MB/s, so
            speed is the number of streams; there are 32 at first, and more as long as that is faster.
        max_memory: bytes of encoded parts held at once, over all layers. Each layer holds the part in
            flight and the next one: 2 x 4/3 x part size.
        part_size: bytes a part; None takes what ECR asks for (10 MiB).
        compression: how uncompressed layers (of a docker-archive) are compressed.
        compression_level: gzip 1 to 9 (1 to 3 by igzip, an order of magnitude faster than zlib's 4 to 9), zstd 1 to
            19; None is gzip 1, zstd 3.
        early_parts: let a layer's next part leave before the one before is answered, where answers come fast compared
            with parts. Off: no public client of ECR does it, and what it gains there is unknown.
        max_attempts: tries of one request before its failure counts; throttles are no failures, and no answer at all
            is an outage.
        max_outage: seconds that an endpoint or registry which has answered may give no answer, until its requests fail.
        retry: the waits and time-outs of requests.
        signature_lifetime: seconds for which ECR takes a signature; parts are sent so that they arrive well within it.
        create_repository: create a missing repository instead of failing.
        max_unpacked: bytes that what is decompressed of one source, or read from a pipe, may take in the temporary
            directory: a small archive can claim to be huge.
        push_foreign_layers: send layers that are marked as non-distributable, too.
        available_platforms: where an archive or layout holds several platforms of an index, and others not, push an
            index of those that are there.
    """

    max_layers: int = 64
    max_memory: int = 160 * MiB
    part_size: int | None = None
    compression: Compression = "gzip"
    compression_level: int | None = None
    early_parts: bool = False
    max_attempts: int = 6
    max_outage: float = MAX_OUTAGE
    retry: RetryPolicy = RetryPolicy()
    signature_lifetime: float = SIGNATURE_LIFETIME
    create_repository: bool = False
    push_foreign_layers: bool = False
    max_unpacked: int = 64 * GiB
    available_platforms: bool = False

    def __post_init__(self) -> None:
        if self.max_layers < 1:
            raise UsageError(f"--max-layers is {self.max_layers}", hint="give 1 or more")
        if self.max_unpacked < 1:
            raise UsageError(f"--max-unpacked is {self.max_unpacked} bytes", hint="give a size, such as 64GiB")
        if self.max_attempts < 1:
            raise UsageError(f"max_attempts is {self.max_attempts}", hint="give 1 or more")
        if not 0 <= self.max_outage < math.inf:
            raise UsageError(f"--max-outage is {self.max_outage:g} seconds", hint="give 0 or more, such as 5m")
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
        credential_timeout: seconds that a profile's credential_process may take; botocore would wait for ever.
    """

    profile: str | None = None
    region: str | None = None
    endpoint_url: str | None = None
    access_key_id: str | None = field(default=None, repr=False)
    secret_access_key: str | None = field(default=None, repr=False)
    credential_timeout: float = field(default=60.0, repr=False)

    def __post_init__(self) -> None:
        hide(self.secret_access_key)
        hide_user_of(self.endpoint_url)

    def __repr__(self) -> str:
        endpoint = None if self.endpoint_url is None else without_user(self.endpoint_url)
        return f"AwsConfiguration(profile={self.profile!r}, region={self.region!r}, endpoint_url={endpoint!r})"


Mutability = Literal["MUTABLE", "IMMUTABLE", "MUTABLE_WITH_EXCLUSION", "IMMUTABLE_WITH_EXCLUSION"]
Encryption = Literal["AES256", "KMS", "KMS_DSSE"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositorySettings:
    """What a repository is created with (CreateRepository, SetRepositoryPolicy, PutLifecyclePolicy).

    Attributes:
        mutability: of its tags; None is ECR's default (MUTABLE).
        exclusions: wildcards of tags that are excluded from *mutability*, five at the most.
        scan_on_push: scan images when they are pushed; None is ECR's default.
        encryption: None is ECR's default (AES256).
        kms_key: of the encryption KMS or KMS_DSSE; None is AWS's own key.
        resource_tags: keys and values.
        policy: the repository policy's JSON text.
        lifecycle_policy: the lifecycle policy's JSON text.
    """

    mutability: Mutability | None = None
    exclusions: tuple[str, ...] = ()
    scan_on_push: bool | None = None
    encryption: Encryption | None = None
    kms_key: str | None = None
    resource_tags: tuple[tuple[str, str], ...] = ()
    policy: str | None = None
    lifecycle_policy: str | None = None


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user and a password for a registry; the password is never printed."""

    username: str
    password: str = field(repr=False)

    def __post_init__(self) -> None:
        hide_login(self.username, self.password)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRegistry:
    """How a registry is reached that images are read from.

    Attributes:
        host: its host, and its port if it has one; ``docker.io`` is Docker Hub.
        plain_http: speak HTTP.
        verify: check its TLS certificate, host name included.
        ca_bundle: authorities to trust beside the system's, as a PEM file.
        client_certificate: what to present when the registry asks, as a PEM file.
        client_key: the key of ``client_certificate``, where that file does not hold it, too.
        credentials: a user and a password; None looks for them as ``docker`` and ``podman`` do.
        credential_helper: the name of the ``docker-credential-NAME`` program to ask instead.
        aws: ask ECR for credentials, with this configuration; None does so only where *host* is ECR's.
        anonymous: use no credentials, whatever is found.
        connections: requests at once, at the most.
    """

    host: str
    plain_http: bool = False
    verify: bool = True
    ca_bundle: Path | None = None
    client_certificate: Path | None = None
    client_key: Path | None = None
    credentials: Credentials | None = None
    credential_helper: str | None = None
    aws: AwsConfiguration | None = None
    anonymous: bool = False
    connections: int = 32
