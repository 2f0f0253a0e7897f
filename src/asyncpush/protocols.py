"""Every seam of a push, on one page: what a source gives, what the far end takes, what joins them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from asyncpush.errors import AsyncpushError, DigestMismatchError
from asyncpush.manifest import Manifest
from asyncpush.model import Descriptor, Digest, LayerBytes, LeftOut, OpenUpload, PushedLayer, TagMutability, Upload
from asyncpush.settings import Credentials, RepositorySettings


class BlobReader(Protocol):
    """The bytes of a blob, front to back. Its methods block, so they run in a worker thread, one at a time."""

    @property
    def consumed(self) -> int:
        """Bytes of the source that were read so far; more than were given out where it is compressed on the way."""
        ...

    def readinto(self, buffer: memoryview) -> int:
        """Fill *buffer* with the next bytes and return how many there were; fewer than its length only at the end.

        Raises:
            SourceError: the source can't be read, ends early, or is not what it claims to be.
        """
        ...


class RandomAccess(Protocol):
    """Bytes that can be had again, from any place, in any thread."""

    def read_at(self, start: int, buffer: memoryview) -> memoryview:
        """The bytes from *start* on: a view of *buffer*, filled as far as there are bytes, or of memory that has them.

        Raises:
            SourceError: the source can't be read, or has become shorter.
        """
        ...


@runtime_checkable
class SeekableReader(BlobReader, RandomAccess, Protocol):
    """A reader whose bytes can also be had again: nothing need be held of them."""


class Blob(Protocol):
    """A layer or config to push: bytes that can be had again, and are the same each time.

    Each is a ``LocalBlob`` or a ``RemoteBlob``.
    """

    @property
    def name(self) -> str:
        """How to call it in errors and on screens."""
        ...

    @property
    def media_type(self) -> str:
        """The media type that a manifest gives it."""
        ...

    @property
    def descriptor(self) -> Descriptor | None:
        """Its digest and size, as claimed; None while they are unknown, because it is compressed as it is read."""
        ...

    @property
    def source_size(self) -> int:
        """Bytes to read from the source: the descriptor's size where there is one."""
        ...

    @property
    def identity(self) -> str:
        """Equal for blobs whose bytes are equal: the digest, or the diff id with the way it is compressed."""
        ...

    def mismatch(self, expected: Digest | int, actual: Digest | int) -> DigestMismatchError:
        """The error for bytes that are not what was claimed: only the source knows whose fault it is, and what helps.

        Args:
            expected: the digest or size that was claimed.
            actual: the digest or size of the bytes that were read.
        """
        ...


@runtime_checkable
class LocalBlob(Blob, Protocol):
    """A blob on this machine; reading it blocks."""

    def open(self) -> AbstractContextManager[BlobReader]:
        """Open it for reading. Entering and leaving may block: both belong into a worker thread."""
        ...


class BlobStream(Protocol):
    """The bytes of a remote blob, as they arrive; for the event loop, one reader at a time."""

    async def readinto(self, buffer: memoryview) -> int:
        """Fill *buffer* with the next bytes and return how many there were; fewer than its length only at the end.

        A connection that breaks is made good inside, from the byte where it broke. Nothing is hashed here: the engine
        compares the digest with the bytes that it sends.

        Raises:
            SourceError: the registry refuses, or can't be reached in spite of all retries.
        """
        ...


@runtime_checkable
class RemoteBlob(Blob, Protocol):
    """A blob in another registry; its descriptor is known."""

    def stream(self, start: int = 0) -> AbstractAsyncContextManager[BlobStream]:
        """Take a turn at the registry, which lasts to the end, to read it from byte *start* on.

        Nothing is asked before the first ``readinto``. Whoever reads has its turn, so it never waits for those who wait
        for the memory that it holds.
        """
        ...


@dataclass(frozen=True, slots=True)
class ImageNode:
    """One image: its config and layers, and its manifest.

    Attributes:
        config: the config blob; it is pushed like a layer.
        layers: the layers to push, in the manifest's order, foreign ones left out.
        manifest: the manifest; None where it must be built from the layers' digests once they are known.
        build: makes it then, from the config's and the layers' descriptors.
        companions: artifacts that it refers to by their digests (its SOCI index), where no index beside it names them.
    """

    config: Blob
    layers: tuple[Blob, ...]
    manifest: Manifest | None = None
    build: ManifestBuilder | None = None
    companions: tuple[ImageNode, ...] = ()


class ManifestBuilder(Protocol):
    """Makes a manifest for layers whose digests were unknown before they were read."""

    def __call__(self, config: Descriptor, layers: Sequence[Descriptor]) -> Manifest:
        """Build it; *layers* are in the image's order."""
        ...


@dataclass(frozen=True, slots=True)
class IndexNode:
    """An index and the manifests that it names, in its order."""

    manifest: Manifest
    children: tuple[ImageNode | IndexNode, ...]


@dataclass(frozen=True, slots=True)
class Image:
    """An image or index in a source, ready to be pushed.

    Attributes:
        source: where it came from, as the user would write it (``oci:dir:tag``).
        repository: the repository that it names itself, without a registry; None if it names none.
        tag: the tag that it names itself; None if it names none.
        root: its manifest, or its index with all that it names.
        referrers: where to ask what refers to it; None where nothing can.
        left_out: what its index names beside that, where the source holds only a part of it.
    """

    source: str
    repository: str | None
    tag: str | None
    root: ImageNode | IndexNode
    referrers: ReferrerSource | None = None
    left_out: tuple[LeftOut, ...] = ()

    @property
    def content(self) -> object:
        """Equal for the same image, under whatever names."""
        if isinstance(self.root, ImageNode) and self.root.manifest is None:
            return self.root.config.descriptor
        return self.root.manifest and self.root.manifest.digest


@dataclass(frozen=True, slots=True)
class UnreadReferrer:
    """A referrer that the source does not give, and why; without a *reference*, the list of them.

    Attributes:
        source: where it is, as the user would write it.
        reference: its tag or digest there; empty for the list.
        tag: cosign's tag, if it has one.
        error: what is wrong with it.
    """

    source: str
    reference: str
    tag: str | None
    error: AsyncpushError


@dataclass(frozen=True, slots=True)
class FoundReferrers:
    """What refers to a manifest: signatures, attestations, SBOMs; with cosign's tag, or by their subject, without."""

    referrers: tuple[Image, ...] = ()
    unread: tuple[UnreadReferrer, ...] = ()


class ReferrerSource(Protocol):
    """Tells what refers to the manifests of a source."""

    async def of(self, subject: Digest) -> FoundReferrers:
        """What refers to *subject*; what can't be read is named, and keeps nothing else from going."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One part of a layer, hashed and ready to be sent any number of times.

    Attributes:
        first: its first byte in the layer.
        last: its last byte in the layer, inclusive.
        body: the request body, in blocks; without the part's base64 where ``content`` has its bytes.
        content: where the part's bytes are read and encoded again for each time it is sent; None if ``body`` is whole.
            What it gives goes before the last block of ``body``.
        body_size: the length of the whole request body in bytes.
        body_sha256: its sha256, hex, as the signature wants it.
    """

    first: int
    last: int
    body: tuple[bytes, ...]
    content: RandomAccess | None
    body_size: int
    body_sha256: str

    @property
    def size(self) -> int:
        """Bytes of the layer in this part."""
        return self.last - self.first + 1


class PartEncoder(Protocol):
    """Makes the request body of one part, block by block, in a worker thread."""

    def add(self, block: memoryview) -> None:
        """Take the next bytes. All blocks but the last have a length that 3 divides."""
        ...

    def finish(self) -> Part:
        """Close the body."""
        ...


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image that the repository holds: by which digest, under which of the tags that were asked for."""

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
    def address(self) -> str:
        """What tells it from all others: ``REGISTRY/NAME``, where REGISTRY is a host, or an endpoint and an account."""
        ...

    async def create(self) -> bool:
        """Create the repository (CreateRepository); False if it was there already."""
        ...

    async def delete(self, *, force: bool = False) -> bool:
        """Delete the repository (DeleteRepository), by *force* with all that is in it; False if there was none."""
        ...

    async def tag_mutability(self) -> TagMutability:
        """Which tags can't be moved (DescribeRepositories, asked for once); none if that can't be learnt."""
        ...

    async def available(self, digests: Collection[Digest]) -> frozenset[Digest]:
        """Which of *digests* the repository holds as layers (BatchCheckLayerAvailability, 100 a call)."""
        ...

    async def begin_upload(self) -> Upload:
        """Open an upload (InitiateLayerUpload)."""
        ...

    def encoder(self, upload: Upload, first: int, content: RandomAccess | None) -> PartEncoder:
        """Make the body of the part that begins at byte *first* (UploadLayerPart).

        Args:
            upload: the upload that the part belongs to.
            first: its first byte in the layer.
            content: where its bytes can be read again when it is sent; None to hold them, encoded.
        """
        ...

    async def send_part(self, upload: Upload, part: Part, on_sent: Callable[[], None] | None = None) -> None:
        """Send a part and see that ECR has all of it (UploadLayerPart).

        Args:
            upload: the upload that the part belongs to.
            part: the part.
            on_sent: called each time that the whole part has left.

        Raises:
            InvalidLayerPartError: it does not follow the last one that ECR has.
            UploadNotFoundError: ECR does not know the upload.
        """
        ...

    async def complete_upload(self, upload: Upload, digest: Digest) -> Literal["pushed", "present"]:
        """Close an upload (CompleteLayerUpload); ``present`` if the repository had the layer already.

        Raises:
            UploadNotFoundError: ECR knows neither the upload nor the layer.
        """
        ...

    async def mount(self, digest: Digest, source: str) -> bool:
        """Take over a layer from repository *source* of the same registry (``/v2/``, cross-repository blob mount).

        False if ECR won't: mounting is off, or no image in *source* refers to the layer (yet).
        """
        ...

    async def find_images(self, *, tags: Collection[str], digests: Collection[Digest]) -> tuple[StoredImage, ...]:
        """Which of these images the repository holds (BatchGetImage, 100 a call); the others are left out."""
        ...

    async def put_image(self, manifest: Manifest, tag: str | None) -> Literal["pushed", "present"]:
        """Put a manifest, under *tag* if given (PutImage); ``present`` if nothing had to change.

        Raises:
            LayersNotFoundError: a blob or child manifest is not there (yet).
            TagImmutableError: the tag is immutable and names another digest.
        """
        ...


class Journal(Protocol):
    """What ECR has acknowledged, remembered across runs. Repositories are named by ``Repository.address``.

    What is written would outlive the process by the time that the method returns.
    """

    @property
    def compressed(self) -> Mapping[str, Descriptor]:
        """What blobs became whose digests are unknown before they are read, by identity; of all repositories."""
        ...

    async def completed(self, repository: str, digests: Collection[Digest]) -> Collection[Digest]:
        """Which of *digests* the repository was given."""
        ...

    async def open_upload(self, repository: str, identity: str) -> OpenUpload | None:
        """The upload of a blob that was begun and not completed, if there is one."""
        ...

    async def upload_begun(self, repository: str, identity: str, upload: Upload, part_size: int) -> None:
        """Note that an upload was opened; it takes the place of an earlier one of the same blob."""
        ...

    async def part_acknowledged(self, repository: str, identity: str, upload: Upload, received: int) -> None:
        """Note that ECR has the first *received* bytes."""
        ...

    async def upload_lost(self, repository: str, identity: str) -> None:
        """Forget an upload that ECR does not know any more, or that holds wrong bytes."""
        ...

    async def layer_completed(self, repository: str, identity: str, descriptor: Descriptor) -> None:
        """Note that the repository holds a layer, and which bytes the blob turned out to be; ends its upload."""
        ...

    async def layers_lost(self, repository: str, digests: Collection[Digest]) -> None:
        """Forget layers that the repository turned out not to hold any more."""
        ...

    async def image_put(self, repository: str, manifest: Manifest, tag: str | None) -> None:
        """Note that an image was put: its layers are referenced from now on, so that they can be mounted."""
        ...


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


class LayerSender(Protocol):
    """How a layer gets into a repository that lacks it."""

    async def send(self, repository: Repository, blob: Blob) -> PushedLayer:
        """Put *blob* into *repository*.

        Raises:
            SourceError: the blob can't be read, or is damaged.
            RegistryError: ECR refused, or could not be reached in spite of all retries.
        """
        ...

    def referenced(self, repository: Repository, manifest: Manifest) -> None:
        """Hear that an image of *repository* refers to the blobs of *manifest* now."""
        ...

    def is_awaited(self, repository: Repository, blob: Blob) -> bool:
        """Whether other repositories are being sent *blob* along with *repository*."""
        ...

    def failed(self) -> None:
        """Hear that the image will not be put, though some of its layers may be on their way for others yet."""
        ...
