"""What travels between the client and the workers of a cluster: plain data, without a secret, an object or code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, TypeVar, cast

import msgspec

from asyncpush import errors, events
from asyncpush.errors import AsyncpushError
from asyncpush.events import Event
from asyncpush.migrate.ledger import Options
from asyncpush.migrate.plan.model import Goal, Plan, PlanEntry, PlanTarget
from asyncpush.migrate.report import Copy, CopyResult, LeftOutTag, NothingTaken, Outcome, Report
from asyncpush.model import Digest, LeftOut, Platform
from asyncpush.protocols import Repository
from asyncpush.settings import AwsConfiguration, Settings, SourceRegistry
from asyncpush.traffic import Traffic

#: JSON-like data: what msgspec makes of the types of this module.
Plain: TypeAlias = Mapping[str, Any]

T = TypeVar("T")


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """What all shards of a run have in common.

    Attributes:
        version: the client's version of asyncpush.
        text: the plan's text; each worker resolves its variables in its own environment.
        path: the plan's file, as an absolute path; None for standard input.
        shards: how many shards there are.
        settings: the limits of each worker.
        options: how each shard runs.
        aws: overrides of the AWS configuration of each worker.
        sources: how to reach source registries that the plan does not describe; without credentials.
        has_login: whether each worker's ASYNCPUSH_SRC_CREDS is the login to ``sources``.
        platforms: the platforms to migrate where the plan names none.
        create_repository: create missing repositories, whatever the plan says.
        strict: an entry must match a tag.
        journal: where the journals are, with ``{shard}`` in it; None for none.
        local_paths: the layouts and archives that the plan names, as the client sees them.
    """

    version: str
    text: str
    path: str | None
    shards: int
    settings: Settings
    options: Options
    aws: AwsConfiguration
    sources: dict[str, SourceRegistry]
    has_login: bool
    platforms: tuple[Platform, ...]
    create_repository: bool
    strict: bool
    journal: str | None
    local_paths: tuple[str, ...]


class ShardTask(msgspec.Struct, frozen=True, kw_only=True):
    """A task: one shard of a job.

    Attributes:
        job: the job.
        index: the shard, from 0.
        topic: the topic to which its events are logged.
    """

    job: Job
    index: int
    topic: str


class PlainError(msgspec.Struct, frozen=True, kw_only=True):
    """An error of asyncpush; ``members`` are those of its attributes that are plain."""

    kind: str
    message: str
    hint: str | None
    members: dict[str, Any]


class PlainResult(msgspec.Struct, frozen=True, kw_only=True):
    """The result of a copy, with the names of what it belongs to."""

    place: str
    entry_source: str
    location: str
    target: str
    goal: tuple[str, str | None]
    source: str
    reference: str
    registry: str
    pull_name: str | None
    repository: str
    tag: str | None
    destination: str
    is_placeholder: bool
    outcome: str
    digest: str | None
    counts: dict[str, int]
    seconds: float
    error: PlainError | None
    subject: str | None
    left_out: tuple[LeftOut, ...]


class PlainNothing(msgspec.Struct, frozen=True, kw_only=True):
    """An entry that selects no tag, of *tags* that there are."""

    place: str
    source: str
    location: str
    tags: int


class ShardOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """The report of a shard; if it could not run at all, only ``error``."""

    results: tuple[PlainResult, ...] = ()
    left_out: tuple[LeftOutTag, ...] = ()
    nothing_taken: tuple[PlainNothing, ...] = ()
    traffic: Traffic = Traffic()
    sent: int = 0
    resumed: bool = False
    stopped: PlainError | None = None
    journal_failure: PlainError | None = None
    error: PlainError | None = None


def to_plain(value: msgspec.Struct) -> Plain:
    """*value* as JSON-like data."""
    document: Plain = msgspec.to_builtins(value, enc_hook=str)
    return document


def from_plain(document: Plain, kind: type[T]) -> T:
    """The value that ``to_plain`` made *document* of."""
    return msgspec.convert(document, kind, dec_hook=lambda wanted, text: wanted(text))


# Errors

_MEMBERS = (str, int, float, bool, type(None))


def plain_error(error: AsyncpushError) -> PlainError:
    """*error* as plain data; attributes that are not plain are left out."""
    members = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in vars(error).items()
        if name not in ("message", "hint") and isinstance(value, (*_MEMBERS, tuple))
        if not isinstance(value, tuple) or all(isinstance(item, str) for item in value)
    }
    return PlainError(kind=type(error).__name__, message=error.message, hint=error.hint, members=members)


def error_of(plain: PlainError) -> AsyncpushError:
    """The error that ``plain_error`` made *plain* of, of the same class."""
    kind = getattr(errors, plain.kind, None)
    if not (isinstance(kind, type) and issubclass(kind, AsyncpushError)):
        kind = AsyncpushError
    error: AsyncpushError = kind.__new__(kind)
    AsyncpushError.__init__(error, plain.message, hint=plain.hint)
    for name, value in plain.members.items():
        setattr(error, name, tuple(value) if isinstance(value, list) else value)
    return error


# Events

_EVENTS: dict[str, type[Event]] = {
    kind.__name__: kind
    for kind in (
        events.ImageStarted,
        events.ImagePlanned,
        events.LayerStarted,
        events.PartSent,
        events.LayerDone,
        events.LayerFailed,
        events.ImageDone,
        events.ImageFailed,
        events.Retrying,
        events.Unanswered,
        events.Notice,
    )
}


def plain_event(event: Event) -> tuple[str, Plain] | None:
    """The name and members of *event*; None for those that no display shows."""
    name = type(event).__name__
    return (name, msgspec.to_builtins(event)) if name in _EVENTS else None


def event_of(name: str, members: Plain) -> Event:
    """The event that ``plain_event`` took apart."""
    event: Event = msgspec.convert(members, _EVENTS[name])
    return event


# Reports

_COUNTS = (
    "layers_sent",
    "bytes_sent",
    "layers_mounted",
    "bytes_mounted",
    "layers_present",
    "bytes_present",
    "layers_shared",
    "bytes_shared",
    "attempts",
)


@dataclass(frozen=True, slots=True)
class RemoteRepository:
    """A repository that only workers have a connection to."""

    registry: str
    name: str
    pull_name: str | None = None

    @property
    def address(self) -> str:
        """Its unique address."""
        return f"{self.registry}/{self.name}"


def plain_result(result: CopyResult) -> PlainResult:
    """The result of a copy as plain data."""
    copy = result.copy
    return PlainResult(
        place=copy.entry.place,
        entry_source=copy.entry.source,
        location=copy.entry.location,
        target=copy.goal.target.name,
        goal=(copy.goal.repository, copy.goal.tag),
        source=copy.source,
        reference=copy.reference,
        registry=copy.repository.registry,
        pull_name=copy.repository.pull_name,
        repository=copy.repository.name,
        tag=copy.tag,
        destination=copy.destination,
        is_placeholder=copy.is_placeholder,
        outcome=result.outcome,
        digest=str(result.digest) if result.digest else None,
        counts={name: getattr(result, name) for name in _COUNTS},
        seconds=result.seconds,
        error=plain_error(result.error) if result.error else None,
        subject=str(result.subject) if result.subject else None,
        left_out=result.left_out,
    )


def plain_report(report: Report, journal_failure: AsyncpushError | None) -> ShardOutcome:
    """The report of a shard as plain data."""
    return ShardOutcome(
        results=tuple(map(plain_result, report.results)),
        left_out=report.left_out,
        nothing_taken=tuple(
            PlainNothing(place=entry.place, source=entry.source, location=entry.location, tags=nothing.tags)
            for nothing in report.nothing_taken
            if (entry := nothing.entry)
        ),
        traffic=report.traffic,
        sent=report.sent,
        resumed=report.resumed,
        stopped=plain_error(report.stopped) if report.stopped else None,
        journal_failure=plain_error(journal_failure) if journal_failure else None,
    )


class Results:
    """Makes results of plain data again, with the entries and targets of the client's plan.

    Args:
        plan: the plan.
    """

    def __init__(self, plan: Plan) -> None:
        self._entries = {entry.place: entry for entry in plan.entries}
        self._targets = {target.name: target for target in plan.targets}

    def nothing_taken(self, plain: PlainNothing) -> NothingTaken:
        """The note of an entry that selects no tag."""
        return NothingTaken(self._entry(plain.place, plain.source, plain.location, ()), plain.tags)

    def result(self, plain: PlainResult) -> CopyResult:
        """The result of a copy."""
        target = self._targets.get(plain.target) or PlanTarget(plain.target)
        goal = Goal(target, *plain.goal)
        entry = self._entry(plain.place, plain.entry_source, plain.location, (goal,))
        copy = Copy(
            entry,
            goal,
            plain.source,
            plain.reference,
            cast("Repository", RemoteRepository(plain.registry, plain.repository, plain.pull_name)),
            plain.tag,
            plain.destination,
            plain.is_placeholder,
        )
        return CopyResult(
            copy=copy,
            outcome=cast("Outcome", plain.outcome),
            digest=Digest.parse(plain.digest) if plain.digest else None,
            seconds=plain.seconds,
            error=error_of(plain.error) if plain.error else None,
            subject=Digest.parse(plain.subject) if plain.subject else None,
            left_out=plain.left_out,
            **plain.counts,
        )

    def _entry(self, place: str, source: str, location: str, goals: tuple[Goal, ...]) -> PlanEntry:
        entry = self._entries.get(place)
        if entry is None:
            return PlanEntry(place=place, source=source, kind="registry", location=location, goals=goals)
        # A worker may have made several entries of one.
        return entry if entry.location == location else replace(entry, source=source, location=location)

    def failed(self, entries: Iterable[PlanEntry], error: AsyncpushError) -> list[CopyResult]:
        """Results of all that *entries* ask for, as far as that is known, since their shard did not run."""
        results = []
        for entry in entries:
            for goal in entry.goals:
                tag = goal.tag or (None if (entry.reference or "").startswith("sha256:") else entry.reference)
                name = f"{goal.repository}:{tag}" if tag else goal.repository
                repository = cast("Repository", RemoteRepository(goal.target.name, goal.repository))
                reference, is_placeholder = entry.reference or "", not entry.reference
                copy = Copy(entry, goal, entry.location, reference, repository, tag, name, is_placeholder)
                results.append(CopyResult(copy=copy, outcome="failed", error=error))
        return results
