"""What to verify, and the findings: targets, problems and verifications."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from asyncpush.engine.diff import referrer_nodes
from asyncpush.errors import AsyncpushError, InvalidReferenceError, RegistryError
from asyncpush.model import Digest
from asyncpush.protocols import Image, ImageNode, IndexNode
from asyncpush.reference import Destination, parse_destination
from asyncpush.results import Result


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem of an image.

    Attributes:
        kind: ``missing``; ``archived``: ECR has it where nobody can pull it; ``damaged``: the bytes do not match the
            digest; ``unreadable``: ECR does not return it; ``unexpected``: the tag names another image.
        subject: ``manifest``, ``config`` or ``layer``, or the tag.
        digest: its expected digest; None for a tag that names nothing.
        detail: the problem, as text that follows subject and digest.
        stays: whether deleting the image does not help, since ECR keeps the blob and a push does not send it again.
    """

    kind: Literal["missing", "archived", "damaged", "unreadable", "unexpected"]
    subject: str
    digest: Digest | None
    detail: str
    stays: bool = False

    def __str__(self) -> str:
        return " ".join(word for word in (self.subject, str(self.digest or ""), self.detail) if word)


@dataclass(frozen=True, slots=True)
class Verification(Result):
    """The verification of one image.

    Attributes:
        destination: the image, as it was given, without its digest.
        digest: the digest of its manifest or index; None if there is none.
        manifests: the number of manifests and indexes without problems.
        blobs: the number of distinct blobs (configs and layers) without problems.
        size: the bytes of both.
        problems: all problems.
        deep: whether the blobs were read, not only looked up.
        notes: what could not be compared, in words.
        read_at: when an earlier run read the blobs, so that this one did not; None if it did, or none has.
    """

    destination: str
    digest: Digest | None
    manifests: int
    blobs: int
    size: int
    problems: tuple[Problem, ...]
    deep: bool
    notes: tuple[str, ...] = ()
    read_at: datetime | None = None

    @property
    def is_whole(self) -> bool:
        """Whether it is complete, and matches its digests."""
        return not self.problems

    @property
    def failures(self) -> tuple[tuple[str, AsyncpushError], ...]:
        """All problems, as errors."""
        return tuple((self.destination, RegistryError(str(problem))) for problem in self.problems)


@dataclass(frozen=True, slots=True)
class VerificationFailure(Result):
    """An image that could not be verified, and why."""

    destination: str
    error: AsyncpushError

    @property
    def failures(self) -> tuple[tuple[str, AsyncpushError], ...]:
        """The image itself."""
        return ((self.destination, self.error),)


@dataclass(frozen=True, slots=True)
class SettingDifference:
    """A setting of a repository that is not as the plan says, both in words."""

    setting: str
    expected: str
    found: str

    def __str__(self) -> str:
        return f"{self.setting} is {self.found}, and the plan says {self.expected}"


@dataclass(frozen=True, slots=True)
class SettingsVerification(Result):
    """The settings of a repository, compared with those that the plan states.

    Attributes:
        repository: the repository.
        differences: what is not as the plan says.
        unread: settings that could not be compared, each with the reason.
    """

    repository: str
    differences: tuple[SettingDifference, ...] = ()
    unread: tuple[tuple[str, str], ...] = ()

    @property
    def failures(self) -> tuple[tuple[str, AsyncpushError], ...]:
        """All differences, as errors."""
        return tuple((self.repository, RegistryError(str(difference))) for difference in self.differences)


@dataclass(frozen=True, slots=True)
class VerificationTarget:
    """An image to verify.

    Attributes:
        destination: the repository, and the tag, if there is one.
        digest: its expected digest; without a tag, the image to verify.
        config: the expected digest of its config, if its own is unknown because the push compresses its layers.
        layers: how many layers it must have then.
        layer_types: the media types of these layers; empty for any.
        name: its name for people; empty for that of the destination.
    """

    destination: Destination
    digest: Digest | None = None
    config: Digest | None = None
    layers: int = 0
    layer_types: tuple[str, ...] = ()
    name: str = ""

    @property
    def unique_name(self) -> str:
        """Its name, with the digest if it has no tag."""
        return str(self) if self.destination.tag or self.digest is None else f"{self}@{self.digest}"

    @property
    def reference(self) -> str | Digest:
        """What to look up in the repository: the tag, else the digest, else ``latest``."""
        return self.destination.tag or self.digest or "latest"

    def __str__(self) -> str:
        if self.name:
            return self.name
        if self.destination.tag or self.digest:
            return str(self.destination)
        return str(replace(self.destination, tag="latest"))


class VerificationWatcher:
    """Hears what a verification expects, and what it finds, as soon as that is known; this one ignores it.

    Its methods must return soon.
    """

    def expect(self, target: VerificationTarget) -> None:
        """Hear of an image that will be verified."""

    def found(
        self,
        result: Verification | VerificationFailure | SettingsVerification,
        target: VerificationTarget | None = None,
    ) -> None:
        """Hear of a result: that of *target*, or that of a source or repository."""


def parse_target(text: str) -> VerificationTarget:
    """Parse ``[REGISTRY/]REPOSITORY[:TAG][@DIGEST]``.

    Raises:
        InvalidReferenceError: a part of it is not well formed.
    """
    name, at, digest = text.partition("@")
    try:
        return VerificationTarget(parse_destination(name), Digest.parse(digest) if at else None)
    except ValueError as error:
        raise InvalidReferenceError(f"{text[:300]!r}: {error}") from error


def expected_targets(image: Image, destination: Destination) -> Iterator[VerificationTarget]:
    """What *destination* must hold once *image*, as its source has it, was pushed there.

    The image itself comes first, then what goes along with it by its digest alone.
    """
    yield _expected(image.root, destination)
    for companion in referrer_nodes(image.root):
        if companion.manifest:
            yield _expected(companion, replace(destination, tag=None))


def _expected(node: ImageNode | IndexNode, destination: Destination) -> VerificationTarget:
    if node.manifest is not None:
        return VerificationTarget(destination, node.manifest.digest)
    assert isinstance(node, ImageNode), "an index has its manifest"  # noqa: S101 - for the type
    # The push compresses its layers: the config tells which image it is, by the layers' diff ids.
    config = node.config.descriptor
    types = tuple(layer.media_type for layer in node.layers)
    return VerificationTarget(
        destination, config=config.digest if config else None, layers=len(types), layer_types=types
    )
