"""The limits of a push, each with its reason. Each option of the command line sets one of these fields."""

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

#: The part size limits of ECR (quotas page: 5 to 10 MiB; the model of UploadLayerPart: up to 20 MiB).
MIN_PART_SIZE = 5 * MiB
MAX_PART_SIZE = 20 * MiB

#: The part size in all sample answers of InitiateLayerUpload; used if an answer has none.
DEFAULT_PART_SIZE = 10 * MiB

#: Parts of one layer (quotas page; not adjustable).
MAX_PARTS: dict[Service, int] = {"ecr": 4200, "ecr-public": 1000}

#: The largest manifest that PutImage accepts (the maximum in its model).
MAX_MANIFEST_SIZE = 4 * MiB

#: Levels of nested indexes: real ones have one level, two at most.
MAX_INDEX_DEPTH = 4

#: Manifests of one image; an index of many more is a mistake or an attack.
MAX_MANIFESTS = 1000

#: Seconds that a host which has answered before may be silent: while a router restarts, say, or a fail-over happens.
MAX_OUTAGE = 300.0

#: Seconds for which AWS accepts a signature (Signature Version 4: five minutes before and after its time).
SIGNATURE_LIFETIME = 300.0

Compression = Literal["gzip", "zstd", "none"]

#: How layers are sent: ``api`` is ECR's UploadLayerPart, ``v2`` the registry API (OCI distribution-spec).
TransportChoice = Literal["api", "v2", "auto"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Time-outs, and when failed requests are sent again; all times are in seconds.

    Attributes:
        stall: time without a byte from a source registry after which its connection counts as lost.
        connect: time to connect to a source registry.
        read: time without a byte to or from ECR after which its connection counts as lost.
        answer: time for the headers of an answer, and for a whole document; a blob may take any time.
        note_after: time without an answer after which the user is told what is waited for.
        attempts: consecutive failures that end a request to a source registry; throttles and unanswered requests do not
            count. ``Settings.max_attempts`` is the same for ECR.
        outage: time that a host which has answered before may be silent; ``Settings.max_outage`` overrides it.
        first_wait: the longest wait after the first failure; it doubles with each failure.
        longest_wait: the longest wait after any failure.
        throttled: total time that one request may wait because it was throttled, or because an answer asks to wait.
        throttled_wait: time that each throttle of a request to ECR adds to its wait; it is short, because the rate
            limit of the operation slows all requests down.
        first_throttled_wait: the least upper limit of the wait after the first throttle by a source registry.
        slowest_rate: the lowest rate of an operation of ECR, in requests per second, however many are throttled: a
            tenth of the smallest quota, so that a run proceeds even while other clients use up the quota.
        lag_waits: the waits between attempts to put a manifest whose blobs ECR does not find: its check of manifests
            can lag hundreds of milliseconds behind a completed layer.
        helper: time for the answer of a credential helper.
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
        """Return the policy of *settings* for one host."""
        return replace(settings.retry, outage=settings.max_outage)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The resources that a push may use, and how it handles failures.

    Attributes:
        max_layers: the most layers in flight at once, over all images. One stream into ECR reaches 24 to 40 MB/s, so
            throughput depends on how many layers are in flight: 32 at first, then more for as long as that is faster.
        max_memory: the most bytes of encoded parts held at once, over all layers. Each layer holds the part in flight
            and the next one: 2 x 4/3 x part size.
        part_size: bytes of a part; None uses the size that ECR asks for (10 MiB).
        compression: how uncompressed layers (of a docker-archive) are compressed.
        compression_level: gzip 1 to 9 (1 to 3 by igzip, an order of magnitude faster than 4 to 9 by zlib), zstd 1 to
            19; None is gzip 1, zstd 3.
        transport: how layers are sent. ``api``: by UploadLayerPart, as base64. ``v2``: as they are, to the registry's
            ``/v2/``, on another host than the API's. ``auto``: ``v2`` where ``/v2/`` answers, else ``api``.
        early_parts: send the next part of a layer before the one before it is answered, if answers are fast compared
            with parts. Off by default: no public client of ECR does it, and its benefit there is unknown.
        max_attempts: consecutive failures that end a request to ECR; throttles and unanswered requests do not count.
        max_outage: seconds that an endpoint or registry which has answered before may be silent until requests fail.
        retry: the waits and time-outs of requests.
        signature_lifetime: seconds for which ECR accepts a signature; parts arrive well within it.
        quota_share: the part of ECR's request quotas to keep to, because other clients have the rest; None uses them
            all, and more if ECR accepts it.
        assumes_quotas: keep to the documented quotas from the start at any endpoint, and not only at AWS's.
        create_repository: create a missing repository instead of failing.
        push_foreign_layers: also send layers that are marked as non-distributable.
        max_unpacked: the most bytes that one source may take in the temporary directory, decompressed or read from a
            pipe: a small archive can expand to any size.
        available_platforms: if an archive or layout holds only some platforms of an index, push an index of those.
    """

    max_layers: int = 64
    max_memory: int = 256 * MiB
    part_size: int | None = None
    compression: Compression = "gzip"
    compression_level: int | None = None
    transport: TransportChoice = "api"
    early_parts: bool = False
    max_attempts: int = 6
    max_outage: float = MAX_OUTAGE
    retry: RetryPolicy = RetryPolicy()
    signature_lifetime: float = SIGNATURE_LIFETIME
    quota_share: float | None = None
    assumes_quotas: bool = False
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
        if self.quota_share is not None and not 0 < self.quota_share <= 1:
            raise UsageError(f"quota_share is {self.quota_share:g}", hint="give more than 0, and 1 at most")
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
    """Overrides of the AWS configuration of the environment.

    Attributes:
        profile: a profile of the shared configuration files.
        region: the region, if the registry's host names none.
        endpoint_url: the endpoint, instead of AWS's own.
        access_key_id: explicit credentials, with ``secret_access_key``; none are then read from the environment.
        secret_access_key: see above.
        credential_timeout: seconds that a profile's credential_process may take; botocore has no limit.
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
    """The settings of a new repository (CreateRepository, SetRepositoryPolicy, PutLifecyclePolicy).

    Attributes:
        mutability: the mutability of its tags; None is ECR's default (MUTABLE).
        exclusions: wildcards of tags that are excluded from *mutability*, at most five.
        scan_on_push: scan images when they are pushed; None is ECR's default.
        encryption: None is ECR's default (AES256).
        kms_key: the key for KMS or KMS_DSSE; None is AWS's own key.
        resource_tags: pairs of key and value.
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
    """How to reach a registry that images are read from.

    Attributes:
        host: its host, and its port if it has one; ``docker.io`` is Docker Hub.
        plain_http: use HTTP instead of HTTPS.
        verify: check its TLS certificate, host name included.
        ca_bundle: a PEM file of certificate authorities to trust besides the system's.
        client_certificate: a PEM file of the certificate to present when the registry asks for one.
        client_key: the key of ``client_certificate``, if that file does not hold it.
        credentials: a user and a password; None looks for them as ``docker`` and ``podman`` do.
        credential_helper: the name of the ``docker-credential-NAME`` program to ask instead.
        aws: ask ECR for credentials with this configuration; None does so only if *host* is ECR's.
        anonymous: use no credentials, even if there are any.
        connections: the most requests at once.
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
