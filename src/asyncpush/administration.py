"""The seams beside a push: repositories described and created, logins, and images read back from the registry."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol

from asyncpush.model import Digest, LayerBytes
from asyncpush.settings import Credentials, RepositorySettings


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """A manifest as a repository gives it.

    Attributes:
        digest: what ECR calls it; whether its bytes have that digest is for the reader to see.
        raw: its bytes.
        media_type: what ECR says that it is, if it does.
    """

    digest: Digest
    raw: bytes
    media_type: str | None


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob that a repository says it holds: its bytes, None if it does not tell how many."""

    size: int | None


@dataclass(frozen=True, slots=True)
class NotHeld:
    """What a repository does not hold, or does not give: ECR's code, such as ``ImageNotFound``, and its reason."""

    code: str
    reason: str = ""


class RepositoryReader(Protocol):
    """One ECR repository, as who reads it back sees it. Transient failures are retried inside, all others raised."""

    async def manifests(self, references: Collection[str | Digest]) -> Mapping[str | Digest, StoredManifest | NotHeld]:
        """The manifests that these tags and digests name (BatchGetImage, 100 a call).

        Raises:
            UsageError: it is a repository of ECR Public, whose API gives none.
        """
        ...

    async def blobs(self, digests: Collection[Digest]) -> Mapping[Digest, StoredBlob | NotHeld]:
        """What ECR says of these blobs (BatchCheckLayerAvailability, 100 a call)."""
        ...

    async def read_blob(self, digest: Digest, also: Callable[[bytes], None] | None = None) -> LayerBytes:
        """Read all bytes of a blob (GetDownloadUrlForLayer), and hash them; none are held.

        Args:
            digest: the blob.
            also: is given its bytes, too, in order and each once, in worker threads of anyio.

        Raises:
            ServiceError: ECR does not give it.
            ConnectionFailedError: it can't be read in spite of all retries.
        """
        ...


@dataclass(frozen=True, slots=True)
class RepositoryInfo:
    """A repository of a registry, as DescribeRepositories has it.

    Attributes:
        name: its name.
        registry_id: the account that it belongs to.
        mutability: ``MUTABLE``, ``IMMUTABLE``, ``MUTABLE_WITH_EXCLUSION`` or ``IMMUTABLE_WITH_EXCLUSION``.
        exclusions: the wildcards of its exclusion filters.
    """

    name: str
    registry_id: str
    mutability: str = "MUTABLE"
    exclusions: tuple[str, ...] = ()


class RegistryAdmin(Protocol):
    """What concerns a whole registry: its repositories and its settings."""

    async def repositories(self, names: Collection[str]) -> Mapping[str, RepositoryInfo]:
        """Those of *names* that exist (DescribeRepositories), in as few requests as can be."""
        ...

    async def create(self, name: str, settings: RepositorySettings) -> bool:
        """Create a repository (CreateRepository, then its policies); False if somebody else was faster."""
        ...

    async def finish(self, name: str, settings: RepositorySettings) -> bool:
        """Give a repository those of its policies that it lacks; False if it lacks none."""
        ...

    async def is_empty(self, name: str) -> bool | None:
        """Whether no image is in a repository (DescribeImages); None if that can't be learnt."""
        ...

    async def template_for(self, name: str) -> str | None:
        """The prefix of the creation template that would create *name* when it is pushed to (CREATE_ON_PUSH).

        None if there is none, or if that can't be learnt.
        """
        ...

    async def mounts_blobs(self) -> bool | None:
        """Whether the account setting BLOB_MOUNTING is on (GetAccountSetting); None if that can't be learnt."""
        ...


class Login(Protocol):
    """Where the credentials of a registry come from that the AWS credentials open (GetAuthorizationToken)."""

    async def __call__(self) -> Credentials:
        """Credentials that are good for a while yet; cheap to ask for again and again.

        Raises:
            RegistryError: ECR refuses, or can't be reached.
            ConfigurationError: there are no AWS credentials.
        """
        ...
