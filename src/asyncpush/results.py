"""Results of images, referrers and layers: what was pushed, what failed, and how to raise the failures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeVar

from asyncpush.errors import AsyncpushError, FailuresError
from asyncpush.model import Digest, LeftOut


class Result:
    """The result of a request; some or all of it may have failed."""

    __slots__ = ()

    @property
    def failures(self) -> tuple[tuple[str, AsyncpushError], ...]:
        """Each failure: what failed, by the name that the user knows, and the error."""
        raise NotImplementedError

    def raise_for_failures(self) -> None:
        """Raise an error if anything failed.

        Raises:
            FailuresError: something failed; the error lists all failures.
        """
        if failures := self.failures:
            raise FailuresError(failures)


ResultT = TypeVar("ResultT", bound=Result)


class Results(list[ResultT], Result):
    """The results of many requests, in the order of the requests."""

    __slots__ = ()

    def __init__(self, results: Iterable[ResultT] = ()) -> None:
        super().__init__(results)

    @property
    def failures(self) -> tuple[tuple[str, AsyncpushError], ...]:
        """The failures of all results."""
        return tuple(failure for result in self for failure in result.failures)


@dataclass(frozen=True, slots=True)
class ReferrerResult:
    """The result of one referrer of an image: a signature, an attestation, an SBOM.

    Attributes:
        subject: the digest of the manifest that it refers to.
        source: where it came from.
        destination: where it went; None if it could not be read.
        outcome: as of an image; ``refused`` if ECR does not accept such a referrer, ``failed`` if it was not pushed for
            any other reason, or if the source can't list its referrers.
        digest: its manifest's digest.
        layers_sent: blobs that were sent, or would be.
        bytes_sent: their bytes.
        error: why it was not pushed.
    """

    subject: Digest
    source: str
    destination: str | None
    outcome: Literal["pushed", "present", "planned", "refused", "failed"]
    digest: Digest | None = None
    layers_sent: int = 0
    bytes_sent: int = 0
    error: AsyncpushError | None = None


@dataclass(frozen=True, slots=True)
class ImageResult(Result):
    """The result of one image.

    Attributes:
        source: where it came from.
        destination: where it went, with its tag.
        digest: the digest of its manifest or index; None in a dry run of an image whose layers are still uncompressed.
        media_type: its manifest's media type; None likewise.
        outcome: ``pushed``; ``present`` if the repository had it already; ``planned`` in a dry run.
        layers_sent: blobs (layers and configs) that were sent, or would be.
        bytes_sent: bytes of layers that were sent (before base64); in a dry run, bytes to read.
        layers_present: blobs that the repository had before the run.
        bytes_present: their bytes.
        seconds: how long it took.
        layers_mounted: blobs that were mounted from another repository of the registry.
        bytes_mounted: their bytes.
        referrers: the results of its referrers.
        left_out: what the image's index names and the source does not hold.
        reference: what to pull: ``HOST/REPOSITORY:TAG@DIGEST``; None in a dry run, and if ECR has named no account.
        layers_shared: blobs that another image of the run sends, or has sent; over one connection, all pushes are one.
        bytes_shared: their bytes.
    """

    source: str
    destination: str
    digest: Digest | None
    media_type: str | None
    outcome: Literal["pushed", "present", "planned"]
    layers_sent: int = 0
    bytes_sent: int = 0
    layers_present: int = 0
    bytes_present: int = 0
    seconds: float = 0.0
    layers_mounted: int = 0
    bytes_mounted: int = 0
    referrers: tuple[ReferrerResult, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    reference: str | None = None
    layers_shared: int = 0
    bytes_shared: int = 0

    @property
    def failures(self) -> tuple[tuple[str, AsyncpushError], ...]:
        """The referrers that failed; those that ECR refuses did not."""
        return tuple(
            (referrer.source, referrer.error)
            for referrer in self.referrers
            if referrer.outcome == "failed" and referrer.error
        )


@dataclass(frozen=True, slots=True)
class ImageFailure(Result):
    """An image that was not pushed, and why."""

    source: str
    destination: str
    error: AsyncpushError

    @property
    def failures(self) -> tuple[tuple[str, AsyncpushError], ...]:
        """The image itself."""
        return ((self.destination or self.source, self.error),)


@dataclass(frozen=True, slots=True)
class LayerResult(Result):
    """The result of one file that was pushed as a layer.

    Attributes:
        file: the file.
        digest: its sha256.
        size: its bytes.
        media_type: the media type to give it in a manifest.
        outcome: ``pushed``; ``present`` if the repository had it already; ``planned`` in a dry run.
    """

    file: str
    digest: Digest
    size: int
    media_type: str
    outcome: Literal["pushed", "present", "planned"]

    @property
    def failures(self) -> tuple[tuple[str, AsyncpushError], ...]:
        """Nothing."""
        return ()


@dataclass(frozen=True, slots=True)
class LayerFailure(Result):
    """A file that was not pushed, and why."""

    file: str
    error: AsyncpushError

    @property
    def failures(self) -> tuple[tuple[str, AsyncpushError], ...]:
        """The file itself."""
        return ((self.file, self.error),)
