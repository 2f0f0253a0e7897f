"""What a migration copies, and the outcome: copies, their results, the report, and its metrics for Prometheus."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from anyio import to_thread

from asyncpush import open_files
from asyncpush.errors import (
    CREDENTIALS_LOST,
    AsyncpushError,
    ChoiceError,
    ConnectionFailedError,
    EmptyLayerError,
    InvalidReferenceError,
    ManifestError,
    ServiceError,
    SourceArchivedError,
    SourceDeniedError,
    SourceLimitedError,
    SourceNotFoundError,
    SourceUnavailableError,
    TagImmutableError,
    TooManyFailuresError,
    UnforeseenError,
    UsageError,
    is_throttled,
)
from asyncpush.migrate.forecast import Forecast
from asyncpush.migrate.plan.model import Goal, PlanEntry
from asyncpush.model import Digest, LeftOut
from asyncpush.protocols import Repository
from asyncpush.reference import Destination, parse_destination, pull_reference
from asyncpush.results import ImageResult, Result
from asyncpush.timeline import Timeline
from asyncpush.traffic import Traffic
from asyncpush.units import count_text

#: ``planned`` in a dry run; ``finished`` by an interrupted run of the same migration, and not checked again;
#: ``refused``: a referrer that ECR does not accept, which is no failure of its image; ``left``: its source's limit is
#: used up until a time that is too far (``SourceLimitedError``).
Outcome = Literal["pushed", "present", "finished", "planned", "refused", "left", "failed"]

#: The outcomes of what is not in ECR, and should be.
UNDONE: frozenset[Outcome] = frozenset({"left", "failed"})


@dataclass(frozen=True, slots=True, eq=False)
class Copy:
    """One image to one tag of one repository.

    Attributes:
        entry: the entry of the plan.
        goal: the goal of the entry that it goes to.
        source: the image, as ``push`` would take it (``docker://HOST/REPOSITORY:TAG``).
        reference: its tag or digest at the source; empty for an untagged image in an archive.
        repository: the repository that it goes to.
        tag: the tag that it gets; None to put it without a tag.
        destination: the name of its destination on screens and in reports; unique in the run.
        is_placeholder: whether it stands for all images of its entry, while they are unknown.
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
        """The platforms that are selected from an index, as text; empty for all."""
        return ",".join(map(str, self.entry.platforms))

    @property
    def key(self) -> str:
        """Its name in the journal; equal only for copies of the same image to the same destination."""
        source = f"{self.source} ({self.choice})" if self.choice else self.source
        if self.is_placeholder:
            return f"{source} -> {self.repository.address}@{self.entry.place}"
        suffix = f":{self.tag}" if self.tag else f"@{self.reference}"
        return f"{source} -> {self.repository.address}{suffix}"


_CHOICE = re.compile(r"(.+) \(([A-Za-z0-9._+/,-]+/[A-Za-z0-9._+/,-]+)\)")


@dataclass(frozen=True, slots=True)
class CopyName:
    """What a copy's key in the journal tells (``Copy.key``).

    Attributes:
        source: the image, as ``push`` would take it.
        choice: the platforms that were selected; empty for all.
        address: the repository's address.
        tag: the tag that it gets; None for an image without one.
        is_placeholder: whether it stands for images that are unknown.
    """

    source: str
    choice: str
    address: str
    tag: str | None
    is_placeholder: bool

    @classmethod
    def parse(cls, key: str) -> Self:
        """Take a key apart."""
        source, _, destination = key.rpartition(" -> ")
        chosen = _CHOICE.fullmatch(source)
        source, choice = (chosen[1], chosen[2]) if chosen else (source, "")
        address, at, reference = destination.partition("@")
        if at:
            is_placeholder = bool(reference) and not reference.startswith("sha256:")
            return cls(source, choice, address, None, is_placeholder)
        address, _, tag = destination.rpartition(":")
        return cls(source, choice, address, tag, is_placeholder=False)

    @property
    def destination(self) -> str:
        """Where it goes, as a list names it: without the address of an endpoint that is not AWS's."""
        name = self.address if self._known else self.repository
        return f"{name}:{self.tag}" if self.tag else name

    @property
    def repository(self) -> str:
        """The repository's name."""
        # ENDPOINT/REGION/ACCOUNT/REPOSITORY
        return self._known.repository if self._known else self.address.split("/", 3)[-1]

    @property
    def _known(self) -> Destination | None:
        """The repository, if its address is AWS's."""
        try:
            parsed = parse_destination(self.address)
        except InvalidReferenceError:
            return None
        return parsed if parsed.registry.host else None


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyResult:
    """The result of a copy.

    Attributes:
        copy: the copy.
        outcome: the outcome.
        digest: what the tag names now; None if it failed, or in a dry run if its layers are not compressed yet.
        layers_sent: blobs that were sent; in a dry run, would be.
        bytes_sent: bytes of layers that were sent (before base64); in a dry run, would be.
        layers_mounted: blobs that were mounted from another repository of the registry; in a dry run, would be.
        bytes_mounted: their bytes.
        layers_present: blobs that the repository had before the run.
        bytes_present: their bytes.
        seconds: how long the last try took, from the moment that its layers could be sent.
        attempts: how often it was tried.
        error: why it failed.
        subject: of a signature, attestation or SBOM, the digest of the manifest that it refers to.
        left_out: what the image's index names but the source does not have.
        manifests: in a dry run, manifests and tags that would be put.
        parts: in a dry run, parts that its blobs would be sent in.
        layers_shared: blobs that another image of the run sends, or has sent, to the same repository.
        bytes_shared: their bytes.
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
    manifests: int = 0
    parts: int = 0
    layers_shared: int = 0
    bytes_shared: int = 0

    @property
    def reference(self) -> str | None:
        """What to pull, ``HOST/REPOSITORY:TAG@DIGEST``; None if it is not there, or its registry's host is unknown."""
        if self.digest is None or self.outcome not in ("pushed", "present", "finished"):
            return None
        return pull_reference(self.copy.repository.pull_name, self.copy.tag, self.digest)


@dataclass(frozen=True, slots=True)
class LeftOutTag:
    """A tag of a source that the plan does not select, or a whole repository that a pattern does not.

    Attributes:
        source: the repository, as the plan names it.
        tag: the tag; None for the repository.
        reason: why not.
    """

    source: str
    tag: str | None
    reason: str

    @property
    def name(self) -> str:
        """The tag or repository, as a source is written."""
        return self.source if self.tag is None else f"{self.source}:{self.tag}"


@dataclass(frozen=True, slots=True)
class NothingTaken:
    """An entry that selects no tag.

    Attributes:
        entry: the plan's entry.
        tags: how many tags its source has; for an archive, how many images.
    """

    entry: PlanEntry
    tags: int

    def __str__(self) -> str:
        return taken_text(self.entry, 0, self.tags)


def taken_text(entry: PlanEntry, taken: int, total: int) -> str:
    """How many of its source's tags an entry selects, and by which rules."""
    unit = "image" if entry.kind == "local" else "tag"
    has = count_text(total, unit) if total else f"no {unit}s"
    rest = f", of which the plan takes {taken or 'none'}" if total else ""
    return f"{entry.place}: {entry.source} has {has}{rest} ({entry.tags})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report(Result):
    """The result of a migration.

    Attributes:
        results: the result of each copy, and of each signature, attestation and SBOM, in the order of their first end.
        left_out: tags that the plan does not select.
        nothing_taken: entries that select no tag, and need not.
        traffic: its requests.
        sent: bytes of layers that were sent (before base64), including those of copies that failed.
        seconds: how long it took.
        resumed: whether the run resumed an interrupted one.
        stopped: the error that ended the run early: credentials were lost, or too many images failed
            (``Options.max_failures``). With a journal, the next run resumes.
        forecast: what the run would take; None unless it was a dry one.
        timeline: when images and layers were under way; None if it is unknown.
        gone: the source and the destination of each image that an earlier run failed (``Options.failed``), and that the
            plan does not ask for any more.
    """

    results: tuple[CopyResult, ...]
    left_out: tuple[LeftOutTag, ...]
    traffic: Traffic
    sent: int
    seconds: float
    resumed: bool
    stopped: AsyncpushError | None = None
    nothing_taken: tuple[NothingTaken, ...] = ()
    forecast: Forecast | None = None
    timeline: Timeline | None = None
    gone: tuple[tuple[str, str], ...] = ()

    @property
    def requests(self) -> Mapping[str, int]:
        """How many requests were sent, by operation: ``PutImage``, or ``GET blob`` at a source."""
        return self.traffic.requests

    @property
    def failed(self) -> tuple[CopyResult, ...]:
        """The copies that failed, or were left for the limit of their source."""
        return tuple(result for result in self.results if result.outcome in UNDONE)

    @property
    def not_tried(self) -> tuple[CopyResult, ...]:
        """Those of the failed that were not tried, since too many others had failed."""
        return tuple(result for result in self.failed if isinstance(result.error, TooManyFailuresError))

    @property
    def failures(self) -> tuple[tuple[str, AsyncpushError], ...]:
        """What failed, and why; if nothing was tried, why the run stopped."""
        failed = tuple((result.copy.destination, result.error) for result in self.failed if result.error)
        failed += tuple(
            (destination, UsageError(f"{source} failed before, and the plan does not ask for it any more"))
            for source, destination in self.gone
        )
        return failed or ((("", self.stopped),) if self.stopped else ())


def pushed_result(copy: Copy, image: ImageResult) -> CopyResult:
    """The result of a copy whose image was pushed, or existed already."""
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
        layers_shared=image.layers_shared,
        bytes_shared=image.bytes_shared,
    )


#: Characters of a reason that the journal keeps.
_LONGEST = 8000

_FINAL = (
    UsageError,
    ManifestError,
    EmptyLayerError,
    ChoiceError,
    TagImmutableError,
    UnforeseenError,
    SourceNotFoundError,
    SourceArchivedError,
    SourceDeniedError,
    *CREDENTIALS_LOST,
)
_SERVER_ERROR = 500
_FINAL_CODES = frozenset({"AccessDeniedException", "LimitExceededException", "InvalidParameterException"})


def waiting_may_help(error: AsyncpushError | None) -> bool:
    """Whether waiting before another try can help: the server did not respond, or it is overloaded or broken."""
    if isinstance(error, ServiceError):
        return is_throttled(error) or error.status >= _SERVER_ERROR
    if isinstance(error, SourceLimitedError):
        return False  # the time is known, and far away
    return isinstance(error, (ConnectionFailedError, SourceUnavailableError))


def retry_may_succeed(error: AsyncpushError | None) -> bool:
    """Whether another try may succeed."""
    if isinstance(error, ServiceError) and error.code in _FINAL_CODES:
        return False
    return not isinstance(error, _FINAL)


def outcome_of(error: AsyncpushError) -> Outcome:
    """The outcome of a copy that *error* has ended."""
    return "left" if isinstance(error, SourceLimitedError) else "failed"


def journal_reason(error: AsyncpushError | None) -> str:
    """*error* as the journal keeps it, in one line; with the traceback if it is unforeseen."""
    trace = f" | {' | '.join(error.traceback.split(chr(10)))}" if isinstance(error, UnforeseenError) else ""
    return f"{error}{trace}"[:_LONGEST]


async def write_metrics(report: Report, path: Path) -> None:
    """Write the metrics of *report* to *path* atomically, so that no reader sees half of them.

    Raises:
        AsyncpushError: the file can't be written.
    """
    await to_thread.run_sync(_write, render(report), path)


def render(report: Report) -> str:
    """The metrics as text (Prometheus exposition formats, text format 0.0.4)."""
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
            [("", sum(result.bytes_mounted for result in report.results))],
        ),
        (
            "present_bytes",
            "Bytes of layers that were there before the run.",
            [("", sum(result.bytes_present for result in report.results))],
        ),
        (
            "shared_bytes",
            "Bytes of layers that another image sent to the same repository.",
            [("", sum(result.bytes_shared for result in report.results))],
        ),
        ("requests", "Requests by operation.", _labelled("operation", report.traffic.requests)),
        ("retries", "Requests that were sent again.", _labelled("operation", report.traffic.retries)),
        ("throttled_requests", "Requests that came too soon.", _labelled("operation", report.traffic.throttled)),
        ("requests_per_second", "The pace at the end, where held.", _labelled("operation", report.traffic.pace)),
        ("duration_seconds", "How long the run took.", [("", report.seconds)]),
    )
    return "".join(_family(name, text, samples) for name, text, samples in families)


def _labelled(label: str, counts: Mapping[str, float]) -> list[tuple[str, float]]:
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
