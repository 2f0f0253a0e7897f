"""The units of a migration: one image of a source to one tag of one repository, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from asyncpush.errors import AsyncpushError
from asyncpush.migrate.plan.model import Goal, PlanEntry
from asyncpush.model import Digest, LeftOut
from asyncpush.protocols import Repository

#: ``planned`` in a dry run; ``finished`` by an earlier run of the same migration, so that nobody looked at it again;
#: ``refused``: a referrer that ECR does not take, which is not a failure of its image.
Outcome = Literal["pushed", "present", "finished", "planned", "refused", "failed"]


@dataclass(frozen=True, slots=True, eq=False)
class Copy:
    """One image to one place.

    Attributes:
        entry: the plan's entry that asks for it.
        goal: the entry's goal that it goes to.
        source: the image, as ``push`` would take it (``docker://HOST/REPOSITORY:TAG``).
        reference: its tag or digest at the source, empty for an image of an archive that has none.
        repository: the repository that it goes to.
        tag: the tag that it gets; None to put it by its digest only.
        destination: how to call the place on screens and in reports; unique in the run.
        stands_in: it stands for all that its entry asks for, while nobody knows what that is.
    """

    entry: PlanEntry
    goal: Goal
    source: str
    reference: str
    repository: Repository
    tag: str | None
    destination: str
    stands_in: bool = False

    @property
    def choice(self) -> str:
        """The platforms that are taken of an index, in words; empty for all."""
        return ",".join(map(str, self.entry.platforms))

    @property
    def key(self) -> str:
        """How the journal calls it; no two of a run have the same, unless they ask for the same."""
        source = f"{self.source} ({self.choice})" if self.choice else self.source
        if self.stands_in:
            return f"{source} -> {self.repository.address}@{self.entry.place}"
        place = f":{self.tag}" if self.tag else f"@{self.reference}"
        return f"{source} -> {self.repository.address}{place}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyResult:
    """What became of one copy.

    Attributes:
        copy: the copy.
        outcome: how it ended.
        digest: what the tag names now; None if it failed, or in a dry run of an image that is yet to be compressed.
        layers_sent: blobs that were sent, or would be.
        bytes_sent: bytes of layers that went over the wire (before base64); in a dry run, bytes to send.
        layers_mounted: blobs that were taken over from another repository of the registry, or would be.
        bytes_mounted: their bytes.
        layers_present: blobs that the repository had already, or that went with another image.
        bytes_present: their bytes.
        seconds: how long the last try took, from the moment that its layers could go.
        attempts: tries.
        error: why it failed.
        subject: for a signature, attestation or SBOM, the digest of the manifest that it is about.
        left_out: what the image's index names and the source does not hold.
    """

    copy: Copy
    outcome: Outcome
    digest: Digest | None = None
    layers_sent: int = 0
    bytes_sent: int = 0
    layers_mounted: int = 0
    bytes_mounted: int = 0
    layers_present: int = 0
    bytes_present: int = 0
    seconds: float = 0.0
    attempts: int = 0
    error: AsyncpushError | None = None
    subject: Digest | None = None
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True, slots=True)
class LeftOutTag:
    """A tag of a source that the plan does not take.

    Attributes:
        source: the repository, as the plan has it.
        tag: the tag.
        reason: why not.
    """

    source: str
    tag: str
    reason: str


@dataclass(frozen=True, slots=True)
class NothingTaken:
    """An entry that takes no tag.

    Attributes:
        entry: the plan's entry.
        tags: how many tags its source has; of an archive, how many images.
    """

    entry: PlanEntry
    tags: int

    def __str__(self) -> str:
        return taken_text(self.entry, 0, self.tags)


def taken_text(entry: PlanEntry, taken: int, there: int) -> str:
    """How many tags an entry takes of those that are there, and by which rules."""
    unit = "image" if entry.kind == "local" else "tag"
    has = f"{there or 'no'} {unit}{'s' if there != 1 else ''}"
    rest = f", of which the plan takes {taken or 'none'}" if there else ""
    return f"{entry.place}: {entry.source} has {has}{rest} ({entry.tags})"
