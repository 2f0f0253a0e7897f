"""The interfaces between the parts of asyncpush: what sources provide, what ECR accepts, what connects them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol, Self, runtime_checkable

from asyncpush.errors import AsyncpushError, DigestMismatchError
from asyncpush.manifest import Manifest
from asyncpush.model import (
    ArchivedImage,
    Descriptor,
    Digest,
    LayerBytes,
    LeftOut,
    OpenUpload,
    PushedLayer,
    RepositoryInfo,
    TagMutability,
    Upload,
)
from asyncpush.reference import S3Location
from asyncpush.settings import Credentials, RepositorySettings


class BlobReader(Protocol):
    """Reads the bytes of a blob from start to end. Its methods block: they run in a worker thread, one at a time."""

    @property
    def consumed(self) -> int:
        """Bytes of the source that have been read; they differ from the bytes returned if the blob is compressed."""
        ...

    def readinto(self, buffer: memoryview) -> int:
        """Fill *buffer* with the next bytes and return how many there were; fewer than its length only at the end.

        Raises:
            SourceError: the source can't be read, ends early, or does not match its description.
        """
        ...


class RandomAccess(Protocol):
    """Bytes that can be read again, from any position, in any thread."""

    def read_at(self, start: int, buffer: memoryview) -> memoryview:
        """Return the bytes from *start* on: a view of *buffer*, filled as far as possible, or of memory that has them.

        Raises:
            SourceError: the source can't be read, or is shorter than before.
        """
        ...


@runtime_checkable
class SeekableReader(BlobReader, RandomAccess, Protocol):
    """A reader whose bytes can be read again, so that none need to be held."""


@runtime_checkable
class FileRange(RandomAccess, Protocol):
    """Bytes of a file, in one piece, which the kernel can send without a copy."""

    def file_at(self, start: int) -> AbstractContextManager[tuple[int, int]]:
        """Keep the file open for the block, for any thread.

        Args:
            start: a byte's position.

        Yields:
            The file's descriptor, and the position of that byte in the file.

        Raises:
            SourceError: the file can't be opened again.
        """
        ...


@runtime_checkable
class HeldRange(RandomAccess, Protocol):
    """Bytes in memory."""

    def view(self, start: int, size: int) -> memoryview:
        """Return *size* bytes from *start* on, without a copy."""
        ...


class Blob(Protocol):
    """A layer or config to push; its bytes can be read again, and are the same each time.

    Each blob is a ``LocalBlob`` or a ``RemoteBlob``.
    """

    @property
    def name(self) -> str:
        """Its name in errors and on screens."""
        ...

    @property
    def media_type(self) -> str:
        """Its media type in a manifest."""
        ...

    @property
    def descriptor(self) -> Descriptor | None:
        """Its digest and size according to the source; None if unknown because it is compressed as it is read."""
        ...

    @property
    def source_size(self) -> int:
        """Bytes to read from the source: the size in the descriptor, if there is one."""
        ...

    @property
    def identity(self) -> str:
        """Equal for blobs with the same bytes: the digest, or the diff id with the codec and level of compression."""
        ...

    def mismatch(self, expected: Digest | int, actual: Digest | int) -> DigestMismatchError:
        """Return the error for bytes that do not match: only the source knows the cause and what to do about it.

        Args:
            expected: the digest or size that was claimed.
            actual: the digest or size of the bytes that were read.
        """
        ...


@runtime_checkable
class LocalBlob(Blob, Protocol):
    """A blob on this machine, whose reader blocks."""

    def open(self) -> AbstractContextManager[BlobReader]:
        """Open it for reading. Entering and leaving the context may block: do both in a worker thread."""
        ...


class BlobStream(Protocol):
    """Reads the bytes of a remote blob as they arrive, in the event loop; one call at a time."""

    async def readinto(self, buffer: memoryview) -> int:
        """Fill *buffer* with the next bytes and return how many there were; fewer than its length only at the end.

        After a lost connection it resumes at the byte where the connection was lost. It does not hash: the engine
        checks the digest of the bytes that it sends.

        Raises:
            SourceError: the registry refuses the request, or can't be reached in spite of all retries.
        """
        ...


@runtime_checkable
class RemoteBlob(Blob, Protocol):
    """A blob in another registry, whose descriptor is known."""

    def stream(self, start: int = 0) -> AbstractAsyncContextManager[BlobStream]:
        """Take one of the registry's connections for the block, to read the blob from byte *start* on.

        The first ``readinto`` sends the first request. A reader has its connection from the beginning, so a reader that
        holds memory never waits for readers that wait for memory.
        """
        ...


class ObjectStore(Protocol):
    """S3, as sources see it."""

    def open(self, location: S3Location) -> AbstractAsyncContextManager[BlobStream]:
        """Open an object for the block, to read it from start to end.

        Raises:
            SourceNotFoundError: there is no such bucket or object.
            SourceDeniedError: S3 denies access; it may do so for objects that do not exist.
            SourceError: S3 can't be reached, or refuses for another reason.
            ConfigurationError: there is no region, no such profile, or no credentials.
        """
        ...


@dataclass(frozen=True, slots=True)
class ImageNode:
    """One image: its config and layers, and its manifest.

    Attributes:
        config: the config blob; it is pushed like a layer.
        layers: the layers to push, in the order of the manifest, without foreign ones.
        manifest: the manifest; None if it must be built from the layers' digests once they are known.
        build: builds the manifest then, from the descriptors of the config and the layers.
        companions: artifacts that it refers to by digest (its SOCI index), if no index names them beside it.
    """

    config: Blob
    layers: tuple[Blob, ...]
    manifest: Manifest | None = None
    build: ManifestBuilder | None = None
    companions: tuple[ImageNode, ...] = ()


class ManifestBuilder(Protocol):
    """Builds a manifest for layers whose digests are unknown until they are read."""

    def __call__(self, config: Descriptor, layers: Sequence[Descriptor]) -> Manifest:
        """Build the manifest; *layers* are in the order of the image."""
        ...


@dataclass(frozen=True, slots=True)
class IndexNode:
    """An index and the manifests that it names, in the order of the index."""

    manifest: Manifest
    children: tuple[ImageNode | IndexNode, ...]


@dataclass(frozen=True, slots=True)
class Image:
    """An image or index in a source, ready to be pushed.

    Attributes:
        source: where it came from, as the user would write it (``oci:dir:tag``).
        repository: the repository that the source names for it, without a registry; None if it names none.
        tag: the tag that the source names for it; None if it names none.
        root: the image, or the index with everything that it names.
        referrers: lists the image's referrers; None if the source can have none.
        left_out: what its index names besides, if the source holds only a part of the index.
    """

    source: str
    repository: str | None
    tag: str | None
    root: ImageNode | IndexNode
    referrers: ReferrerSource | None = None
    left_out: tuple[LeftOut, ...] = ()

    @property
    def content(self) -> object:
        """Equal for the same image under different names."""
        if isinstance(self.root, ImageNode) and self.root.manifest is None:
            return self.root.config.descriptor
        return self.root.manifest and self.root.manifest.digest


@dataclass(frozen=True, slots=True)
class UnreadReferrer:
    """A referrer that can't be read from the source, or a list of referrers that can't be.

    Attributes:
        source: where it is, as the user would write it.
        reference: its tag or digest in the source; empty for the list.
        tag: cosign's tag, if it has one.
        error: why it can't be read.
    """

    source: str
    reference: str
    tag: str | None
    error: AsyncpushError


@dataclass(frozen=True, slots=True)
class FoundReferrers:
    """The referrers of a manifest: signatures, attestations, SBOMs; with cosign's tags, or without a tag."""

    referrers: tuple[Image, ...] = ()
    unread: tuple[UnreadReferrer, ...] = ()


class ReferrerSource(Protocol):
    """Lists the referrers of the manifests of a source."""

    async def of(self, subject: Digest) -> FoundReferrers:
        """Return the referrers of *subject*; those that can't be read are in ``unread``, and stop no other."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One part of a layer, hashed, which can be sent any number of times.

    Attributes:
        first: its first byte in the layer.
        last: its last byte in the layer, inclusive.
        body: the request body, in blocks; without the part itself if ``content`` has its bytes.
        content: where the part's bytes are read and encoded each time that it is sent, before the last block of
            ``body``; None if ``body`` is complete.
        body_size: the length of the whole request body in bytes.
        body_sha256: the sha256 of the whole request body in hex, for the signature; empty at ``/v2/``, which has none.
    """

    first: int
    last: int
    body: tuple[bytes, ...]
    content: RandomAccess | None
    body_size: int
    body_sha256: str

    @classmethod
    def raw(cls, first: int, size: int, content: RandomAccess | None, blocks: tuple[bytes, ...] = ()) -> Self:
        """Make a part for ``/v2/`` of *size* bytes from byte *first* on, which are in *content* or in *blocks*."""
        return cls(first, first + size - 1, blocks, content, size, "")

    @property
    def size(self) -> int:
        """Bytes of the layer in this part."""
        return self.last - self.first + 1


class PartEncoder(Protocol):
    """Encodes the request body of one part, block by block, in a worker thread."""

    def add(self, block: memoryview) -> None:
        """Add the next bytes. The length of each block but the last is a multiple of 3."""
        ...

    def finish(self) -> Part:
        """Complete the body, and return the part."""
        ...


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image that the repository holds: its digest, and the requested tag that names it, if any."""

    digest: Digest
    tag: str | None
    manifest: Manifest | None


class Repository(Protocol):
    """One ECR repository, as the engine sees it. Transient failures are retried inside, all others raised."""

    @property
    def name(self) -> str:
        """The repository's name, without its registry."""
        ...

    @property
    def registry(self) -> str:
        """The address of its registry: a host, or an endpoint and an account."""
        ...

    @property
    def address(self) -> str:
        """Its unique address: ``REGISTRY/NAME``."""
        ...

    @property
    def pull_name(self) -> str | None:
        """Its name for tools that pull: ``HOST/NAME``; None while no answer has told whose registry it is in."""
        ...

    async def create(self) -> bool:
        """Create the repository (CreateRepository); False if it exists already."""
        ...

    async def delete(self, *, force: bool = False) -> bool:
        """Delete the repository (DeleteRepository), with *force* also its images; False if it does not exist."""
        ...

    async def tag_mutability(self) -> TagMutability:
        """Return which tags are immutable (DescribeRepositories, sent once); none if ECR does not tell."""
        ...

    async def available(self, digests: Collection[Digest]) -> frozenset[Digest]:
        """Return those of *digests* that the repository holds as layers (BatchCheckLayerAvailability, 100 per call)."""
        ...

    async def begin_upload(self) -> Upload:
        """Open an upload (InitiateLayerUpload, or ``/v2/``: ``Settings.transport``)."""
        ...

    async def find_received(self, upload: Upload, acknowledged: int, size: int) -> int:
        """Find how many bytes ECR has of an upload, of a layer of *size* bytes, that an earlier run has begun.

        Returns:
            *acknowledged* if ECR does not tell.

        Raises:
            UploadNotFoundError: ECR does not know the upload, or has fewer bytes than it had acknowledged.
        """
        ...

    def encoder(self, upload: Upload, first: int, content: RandomAccess | None) -> PartEncoder:
        """Make the encoder of the part that begins at byte *first*.

        Args:
            upload: the upload that the part belongs to.
            first: its first byte in the layer.
            content: where its bytes are read again when it is sent; None to hold them encoded.
        """
        ...

    async def send_part(self, upload: Upload, part: Part, on_sent: Callable[[], None] | None = None) -> None:
        """Send a part, and check that ECR has stored all of it (UploadLayerPart; PATCH at ``/v2/``).

        Args:
            upload: the upload that the part belongs to.
            part: the part.
            on_sent: called each time that the whole part has left.

        Raises:
            InvalidLayerPartError: the part does not follow the bytes that ECR has.
            UploadNotFoundError: ECR does not know the upload.
        """
        ...

    async def complete_upload(self, upload: Upload, digest: Digest) -> Literal["pushed", "present"]:
        """Complete an upload (CompleteLayerUpload; PUT at ``/v2/``); ``present`` if the repository has the layer.

        Raises:
            UploadNotFoundError: ECR knows neither the upload nor the layer.
        """
        ...

    async def mount(self, digest: Digest, source: str) -> bool:
        """Mount a layer from repository *source* of the same registry (``/v2/``, cross-repository blob mount).

        Returns:
            False if ECR does not mount it: mounting is off, or no image in *source* refers to the layer (yet).
        """
        ...

    async def find_images(self, *, tags: Collection[str], digests: Collection[Digest]) -> tuple[StoredImage, ...]:
        """Return those of these images that the repository holds (BatchGetImage, 100 per call)."""
        ...

    async def put_image(self, manifest: Manifest, tag: str | None) -> Literal["pushed", "present"]:
        """Put a manifest, under *tag* if given (PutImage); ``present`` if the repository has both already.

        Raises:
            LayersNotFoundError: the repository lacks a blob or child manifest (still).
            TagImmutableError: the tag is immutable and names another digest.
        """
        ...


class Journal(Protocol):
    """Records what ECR has acknowledged, for later runs. Repositories are named by ``Repository.address``.

    When a method that writes returns, the record survives a crash of the process.
    """

    @property
    def compressed(self) -> Mapping[str, Descriptor]:
        """The descriptors of blobs that were compressed as they were read, by identity; for all repositories."""
        ...

    async def completed(self, repository: str, digests: Collection[Digest]) -> Collection[Digest]:
        """Return those of *digests* that were put into the repository."""
        ...

    async def open_upload(self, repository: str, identity: str) -> OpenUpload | None:
        """Return the upload of a blob that was begun and not completed, if there is one."""
        ...

    async def upload_begun(self, repository: str, identity: str, upload: Upload, part_size: int) -> None:
        """Record an opened upload; it replaces an earlier one of the same blob."""
        ...

    async def part_acknowledged(self, repository: str, identity: str, upload: Upload, received: int) -> None:
        """Record that ECR has the first *received* bytes."""
        ...

    async def upload_lost(self, repository: str, identity: str) -> None:
        """Delete the record of an upload that ECR no longer knows, or that holds wrong bytes."""
        ...

    async def layer_completed(self, repository: str, identity: str, descriptor: Descriptor) -> None:
        """Record that the repository holds a layer, and the descriptor of the blob; its upload has ended."""
        ...

    async def layers_lost(self, repository: str, digests: Collection[Digest]) -> None:
        """Delete the records of layers that the repository no longer holds."""
        ...

    async def image_put(self, repository: str, manifest: Manifest, tag: str | None) -> None:
        """Record that an image was put: it refers to its layers, so they can be mounted from now on."""
        ...


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """A manifest as a repository returns it.

    Attributes:
        digest: its digest according to ECR; the caller compares it with the bytes.
        raw: its bytes.
        media_type: its media type according to ECR, if ECR names one.
    """

    digest: Digest
    raw: bytes
    media_type: str | None


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob that a repository holds, according to ECR; its size in bytes is None if ECR does not name it."""

    size: int | None


@dataclass(frozen=True, slots=True)
class NotHeld:
    """An image or blob that a repository does not have or return: ECR's code, such as ``ImageNotFound``, and reason."""

    code: str
    reason: str = ""


class RepositoryReader(Protocol):
    """Reads one ECR repository back. Transient failures are retried inside, all others raised."""

    async def manifests(self, references: Collection[str | Digest]) -> Mapping[str | Digest, StoredManifest | NotHeld]:
        """Return the manifests that these tags and digests name (BatchGetImage, 100 per call).

        Raises:
            UsageError: it is a repository of ECR Public, whose API returns no manifests.
        """
        ...

    async def blobs(self, digests: Collection[Digest]) -> Mapping[Digest, StoredBlob | NotHeld]:
        """Return what ECR says about these blobs (BatchCheckLayerAvailability, 100 per call)."""
        ...

    async def read_blob(
        self,
        digest: Digest,
        also: Callable[[bytes], None] | None = None,
        arrived: Callable[[int], None] | None = None,
    ) -> LayerBytes:
        """Read and hash all bytes of a blob (GetDownloadUrlForLayer), without holding them.

        Args:
            digest: the blob.
            also: called with its bytes, in order and each once, in worker threads of anyio.
            arrived: called with the number of bytes that were read and hashed since the last call.

        Raises:
            ServiceError: ECR does not return it.
            ConnectionFailedError: the blob can't be read in spite of all retries.
        """
        ...


class RegistryAdmin(Protocol):
    """The repositories and the settings of a registry."""

    async def repositories(self, names: Collection[str]) -> Mapping[str, RepositoryInfo]:
        """Return those of *names* that exist (DescribeRepositories), with as few requests as possible."""
        ...

    async def all_repositories(self) -> Sequence[RepositoryInfo]:
        """Return all repositories of the registry (DescribeRepositories)."""
        ...

    async def settings_of(self, repository: RepositoryInfo, given: RepositorySettings) -> RepositorySettings:
        """Return the settings of a repository; those that are *given* replace its own, which are not read then."""
        ...

    async def stored_settings(
        self, repository: RepositoryInfo, members: Collection[str]
    ) -> tuple[RepositorySettings, Mapping[str, AsyncpushError]]:
        """Return the settings of a repository as they are, and why some were not read.

        Args:
            repository: its description.
            members: which of ``policy``, ``lifecycle_policy`` and ``resource_tags`` to read.
        """
        ...

    async def archived_images(self, name: str) -> Collection[ArchivedImage] | None:
        """Return the images of a repository that can't be pulled, since they are archived; None if ECR does not tell.

        Raises:
            RegistryError: ECR can't be reached.
        """
        ...

    async def create(self, name: str, settings: RepositorySettings) -> bool:
        """Create a repository (CreateRepository, then its policies); False if it exists by now."""
        ...

    async def finish(self, name: str, settings: RepositorySettings) -> bool:
        """Set those policies that a repository still lacks; False if it lacks none."""
        ...

    async def is_empty(self, name: str) -> bool | None:
        """Return whether a repository has no images (DescribeImages); None if ECR does not tell."""
        ...

    async def template_for(self, name: str) -> str | None:
        """Return the prefix of the creation template that creates *name* on the first push (CREATE_ON_PUSH).

        Returns:
            None if there is none, or if ECR does not tell.
        """
        ...

    async def mounts_blobs(self) -> bool | None:
        """Return whether the account setting BLOB_MOUNTING is on (GetAccountSetting); None if ECR does not tell."""
        ...


class Login(Protocol):
    """Gets the credentials of a registry with the AWS credentials (GetAuthorizationToken)."""

    async def __call__(self) -> Credentials:
        """Return credentials that stay valid for a while; they are cached, so the call is cheap.

        Raises:
            RegistryError: ECR refuses, or can't be reached.
            ConfigurationError: there are no AWS credentials.
        """
        ...


class LayerSender(Protocol):
    """Sends layers to repositories that lack them."""

    async def send(self, repository: Repository, blob: Blob) -> PushedLayer:
        """Put *blob* into *repository*.

        Raises:
            SourceError: the blob can't be read, or is damaged.
            RegistryError: ECR refused, or could not be reached in spite of all retries.
        """
        ...

    def note_manifest(self, repository: Repository, manifest: Manifest) -> None:
        """Record that an image of *repository* refers to the blobs of *manifest* from now on."""
        ...

    def is_awaited(self, repository: Repository, blob: Blob) -> bool:
        """Return whether *blob* is being sent to other repositories along with *repository*."""
        ...

    def note_failure(self) -> None:
        """Record that the image will not be put; some of its layers may still be sent for other images."""
        ...
