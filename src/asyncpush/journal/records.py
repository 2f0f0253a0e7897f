"""What the journal tells: runs, images, layers. Frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from asyncpush.model import Digest


@dataclass(frozen=True, slots=True)
class RunState:
    """The run that has begun.

    Attributes:
        id: its number in the journal, from 1 on.
        resumed: an earlier, interrupted run of the same plan goes on.
        started: when it began first, UTC.
        finished: images that it has finished so far; ``SqliteJournal.finished`` has them.
        outdated: when an interrupted run of the same plan had begun that is too old to go on with; None if none is.
    """

    id: int
    resumed: bool
    started: datetime
    finished: int
    outdated: datetime | None = None


@dataclass(frozen=True, slots=True)
class FinishedImage:
    """An image that the run has finished.

    Attributes:
        source_digest: the digest that the source had for it; None where it had none.
        digest: the digest that it has at its destination.
        outcome: the word that was given for how it ended, such as ``pushed``.
    """

    source_digest: Digest | None
    digest: Digest
    outcome: str


@dataclass(frozen=True, slots=True)
class KnownImage:
    """What a tag named when an image was last finished or found there.

    Attributes:
        source_digest: the digest that the source had for it; None where it had none.
        digest: the digest that the tag named.
        choice: which platforms were taken of the source's index; empty for all.
    """

    source_digest: Digest | None
    digest: Digest
    choice: str = ""


@dataclass(frozen=True, slots=True)
class HeldLayer:
    """A layer that a repository holds.

    Attributes:
        repository: the repository's address.
        digest: the layer's digest.
        referenced: an image of that repository refers to it, so that it can be mounted from there.
    """

    repository: str
    digest: Digest
    referenced: bool


@dataclass(frozen=True, slots=True)
class LeftUpload:
    """Bytes of a blob that a repository has, and that no image refers to yet.

    Attributes:
        repository: the repository's address.
        identity: the blob's.
        received: bytes that ECR has acknowledged; all of them, where the upload was completed.
    """

    repository: str
    identity: str
    received: int


def destination_of(copy: str) -> tuple[str, str] | None:
    """The repository's address and the tag that a copy, ``SOURCE -> ADDRESS:TAG``, goes to.

    None where it names no tag (``ADDRESS@DIGEST``).
    """
    repository, _, tag = copy.rpartition(" -> ")[2].rpartition(":")
    if not repository or not tag or "@" in repository or "/" in tag:
        return None
    return repository, tag
