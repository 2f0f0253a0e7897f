"""What a migration copies, and what became of it: copies, their results, the report, and its figures for Prometheus."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from anyio import to_thread

from asyncpush import open_files
from asyncpush.engine.image import ImageResult
from asyncpush.errors import (
    CREDENTIALS_LOST,
    AsyncpushError,
    ChoiceError,
    ConnectionFailedError,
    ManifestError,
    ServiceError,
    SourceDeniedError,
    SourceNotFoundError,
    SourceUnavailableError,
    TagImmutableError,
    UnforeseenError,
    UsageError,
)
from asyncpush.migrate.plan.model import Goal, PlanEntry
from asyncpush.model import Digest, LeftOut
from asyncpush.protocols import Repository
from asyncpush.results import Result

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
        is_placeholder: it stands for all that its entry asks for, while nobody knows what that is.
    """

    entry: PlanEntry
    goal: Goal
    source: str
    reference: str
    repository: Repository
    tag: str | None
    destination: str
    is_placeholder: bool = False

    @property
    def choice(self) -> str:
        """The platforms that are taken of an index, in words; empty for all."""
        return ",".join(map(str, self.entry.platforms))

    @property
    def key(self) -> str:
        """How the journal calls it; no two of a run have the same, unless they ask for the same."""
        source = f"{self.source} ({self.choice})" if self.choice else self.source
        if self.is_placeholder:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Report(Result):
    """What became of a migration.

    Attributes:
        results: of each copy, and of each signature, attestation and SBOM, in the order in which they ended first.
        left_out: tags that the plan does not take.
        nothing_taken: entries that take no tag, and need not.
        requests: how many requests were sent, by operation: ``PutImage``, and ``GET blob`` and the like at the sources.
        sent: bytes of layers that went over the wire (before base64), also for what failed in the end.
        seconds: how long it took.
        resumed: an interrupted run went on.
        stopped: why the run ended before all was tried: credentials were lost. With a journal, the next one goes on.
    """

    results: tuple[CopyResult, ...]
    left_out: tuple[LeftOutTag, ...]
    requests: Mapping[str, int]
    sent: int
    seconds: float
    resumed: bool
    stopped: AsyncpushError | None = None
    nothing_taken: tuple[NothingTaken, ...] = ()

    @property
    def failed(self) -> tuple[CopyResult, ...]:
        """What has failed."""
        return tuple(result for result in self.results if result.outcome == "failed")

    @property
    def failures(self) -> tuple[tuple[str, AsyncpushError], ...]:
        """What has failed, and why; where nothing was tried any more, what has stopped the run."""
        failed = tuple((result.copy.destination, result.error) for result in self.failed if result.error)
        return failed or ((("", self.stopped),) if self.stopped else ())


def pushed_result(copy: Copy, image: ImageResult) -> CopyResult:
    """The result of a copy whose image was pushed, or was there already."""
    return CopyResult(
        copy=copy,
        outcome="pushed" if image.outcome == "pushed" else "present",
        digest=image.digest,
        layers_sent=image.layers_sent,
        bytes_sent=image.bytes_sent,
        layers_mounted=image.layers_mounted,
        bytes_mounted=image.bytes_mounted,
        layers_present=image.layers_present,
        bytes_present=image.bytes_present,
        seconds=image.seconds,
        left_out=image.left_out,
    )


#: Characters of a reason that a journal keeps.
_LONGEST = 8000

_FINAL = (
    UsageError,
    ManifestError,
    ChoiceError,
    TagImmutableError,
    UnforeseenError,
    SourceNotFoundError,
    SourceDeniedError,
    *CREDENTIALS_LOST,
)
_THROTTLES = frozenset({"ThrottlingException", "TooManyRequestsException", "RequestLimitExceeded"})
_TOO_MANY_REQUESTS, _ILL = 429, 500
_FINAL_CODES = frozenset({"AccessDeniedException", "LimitExceededException", "InvalidParameterException"})


def time_may_mend(error: AsyncpushError | None) -> bool:
    """Whether another try may end better for having been made later: nobody has answered, or an ill server has."""
    if isinstance(error, ServiceError):
        return error.status == _TOO_MANY_REQUESTS or error.status >= _ILL or error.code in _THROTTLES
    return isinstance(error, (ConnectionFailedError, SourceUnavailableError))


def may_succeed(error: AsyncpushError | None) -> bool:
    """Whether another try may end better."""
    if isinstance(error, ServiceError) and error.code in _FINAL_CODES:
        return False
    return not isinstance(error, _FINAL)


def journaled(error: AsyncpushError | None) -> str:
    """What a journal keeps of *error*, in one line: with the traceback, if nobody has foreseen it."""
    trace = f" | {' | '.join(error.traceback.split(chr(10)))}" if isinstance(error, UnforeseenError) else ""
    return f"{error}{trace}"[:_LONGEST]


async def write_metrics(report: Report, path: Path) -> None:
    """Write the figures of *report* to *path*, in one step, so that nobody reads half of them.

    Raises:
        AsyncpushError: the file can't be written.
    """
    await to_thread.run_sync(_write, render(report), path)


def render(report: Report) -> str:
    """The figures as text (Prometheus exposition formats, text format 0.0.4)."""
    images = Counter[str](result.outcome for result in report.results if result.subject is None)
    referrers = Counter[str](result.outcome for result in report.results if result.subject is not None)
    families = (
        ("images", "Images by how they ended.", _labelled("outcome", images)),
        ("referrers", "Signatures, attestations and SBOMs by how they ended.", _labelled("outcome", referrers)),
        ("sent_bytes", "Bytes of layers that were sent.", [("", report.sent)]),
        ("entries_without_tags", "Entries of the plan that take no tag.", [("", len(report.nothing_taken))]),
        (
            "mounted_bytes",
            "Bytes of layers that were taken over from another repository.",
            [("", sum(each.bytes_mounted for each in report.results))],
        ),
        (
            "present_bytes",
            "Bytes of layers that were there already.",
            [("", sum(each.bytes_present for each in report.results))],
        ),
        ("requests", "Requests by operation.", _labelled("operation", report.requests)),
        ("duration_seconds", "How long the run took.", [("", report.seconds)]),
    )
    return "".join(_family(name, text, samples) for name, text, samples in families)


def _labelled(label: str, counts: Mapping[str, int]) -> list[tuple[str, float]]:
    return [(f'{{{label}="{key}"}}', value) for key, value in sorted(counts.items())]


def _family(name: str, text: str, samples: Iterable[tuple[str, float]]) -> str:
    def lines() -> Iterator[str]:
        yield f"# HELP asyncpush_migration_{name} {text}"
        yield f"# TYPE asyncpush_migration_{name} gauge"
        for labels, value in samples:
            yield f"asyncpush_migration_{name}{labels} {value:.10g}"

    return "\n".join(lines()) + "\n"


def _write(text: str, path: Path) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        raise AsyncpushError(f"the metrics can't be written to {path}: {open_files.reason(error)}") from error
