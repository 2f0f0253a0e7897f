"""The document of a run that its report is made from: what was asked, every image's result, and the timeline.

``migrate`` keeps it in the journal; of older runs, and from the JSON that commands print, as much of it is made as is
known.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import anyio
import msgspec
from anyio import to_thread

from asyncpush import open_files
from asyncpush.errors import AsyncpushError, InterruptedRunError, JournalError, UsageError, origin_of
from asyncpush.files import read_small
from asyncpush.journal import SqliteJournal
from asyncpush.journal.export import ImageRow, RunRow
from asyncpush.journal.reports import kept_reports
from asyncpush.migrate.plan.model import Plan
from asyncpush.migrate.report import CopyName, CopyResult, Report
from asyncpush.redaction import shown
from asyncpush.timeline import Timeline
from asyncpush.traffic import Traffic, total

T = TypeVar("T")

#: Bytes of the longest document that is read: a run of a million images.
_LONGEST = 1024 * 1024 * 1024

#: Entries of a plan that a document lists.
_ENTRIES = 1_000

#: Seconds that an interrupted run may take to keep its document.
_ENDING = 5.0

#: How a SQLite file begins.
_SQLITE = b"SQLite format 3\0"


class ErrorEntry(msgspec.Struct, frozen=True, rename="camel"):
    """An error, as ``--output json`` prints it."""

    message: str
    origin: str = ""
    code: str | None = None
    hint: str | None = None


class ImageEntry(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """The result of an image, as ``--output json`` prints it; and when it was under way, in seconds from the start."""

    source: str = ""
    destination: str | None = ""
    outcome: str = ""
    entry: str = ""
    digest: str | None = None
    subject: str | None = None
    layers_sent: int = 0
    bytes_sent: int = 0
    layers_mounted: int = 0
    bytes_mounted: int = 0
    layers_present: int = 0
    bytes_present: int = 0
    layers_shared: int = 0
    bytes_shared: int = 0
    seconds: float = 0.0
    attempts: int = 0
    begin: float | None = None
    end: float | None = None
    error: ErrorEntry | None = None


class RunDocument(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A run.

    Attributes:
        state: ``finished``, ``failed``, ``stopped`` (credentials were lost), ``interrupted``, or ``dry run``.
        targets: the registries that images went to.
        entries: what the plan asked for, a line each.
        entries_left: entries that are not in *entries*.
        images: the results of images and of their referrers.
        sent: bytes of layers that were sent, those of failed images included; None if it is unknown.
        requests: requests by operation, those to sources included.
        retries: those that were sent again, likewise.
        throttled: those that came too soon, likewise.
        pace: requests a second at the end of the run, of operations that a limit held.
        left_out: how many tags the plan did not select.
        nothing_taken: entries that selected no tag.
        stopped: why the run stopped early.
        timeline: the course of the run; None if it is unknown.
        note: what a reader must know of where the document comes from.
    """

    version: int = 1
    state: str
    started: float | None = None
    seconds: float | None = None
    resumed: bool = False
    targets: list[str] = []
    entries: list[str] = []
    entries_left: int = 0
    images: list[ImageEntry] = []
    sent: int | None = None
    requests: dict[str, int] = {}
    retries: dict[str, int] = {}
    throttled: dict[str, int] = {}
    pace: dict[str, float] = {}
    left_out: int = 0
    nothing_taken: list[str] = []
    stopped: ErrorEntry | None = None
    timeline: Timeline | None = None
    note: str = ""


def run_document(report: Report, plan: Plan, *, dry: bool = False, interrupted: bool = False) -> RunDocument:
    """The document of a run that this process has made."""
    timeline = report.timeline
    state = "stopped" if report.stopped else "interrupted" if interrupted else "failed" if report.failed else "finished"
    return RunDocument(
        state="dry run" if dry else state,
        started=timeline.started if timeline else None,
        seconds=round(report.seconds, 3),
        resumed=report.resumed,
        targets=sorted({_text(result.copy.repository.registry) for result in report.results}),
        entries=[_text(f"{entry.place}: {entry.source} ({entry.tags})") for entry in plan.entries[:_ENTRIES]],
        entries_left=max(len(plan.entries) - _ENTRIES, 0),
        images=[_image(result, timeline) for result in report.results],
        sent=report.sent,
        requests=dict(report.traffic.requests),
        retries=dict(report.traffic.retries),
        throttled=dict(report.traffic.throttled),
        pace=dict(report.traffic.pace),
        left_out=len(report.left_out),
        nothing_taken=[_text(str(nothing)) for nothing in report.nothing_taken],
        stopped=_error(report.stopped) if report.stopped else None,
        timeline=_presentable(timeline) if timeline else None,
        note=_note(report),
    )


def _note(report: Report) -> str:
    if report.timeline is None:
        return "Several processes made this run: there is no timeline."
    if report.requests and not report.timeline.operations:
        return "Workers of a cluster made this run: it is not known how long requests took, and which were throttled."
    return ""


def packed_document(document: RunDocument) -> bytes:
    """A document as the journal keeps it; blocks for a moment if it is long."""
    return zlib.compress(msgspec.json.encode(document))


async def keep(journal: SqliteJournal, plan: Plan, report: Report, *, interrupted: bool = False) -> None:
    """Write the document of a run into its journal.

    Raises:
        JournalError: the journal can't be written.
    """
    started = report.timeline.started if report.timeline else 0.0
    document = await to_thread.run_sync(lambda: packed_document(run_document(report, plan, interrupted=interrupted)))
    await journal.report_run(started, report.seconds, report.sent, document)


@asynccontextmanager
async def kept_if_interrupted(
    journal: SqliteJournal | None, plan: Plan, report: Callable[[], Report]
) -> AsyncIterator[None]:
    """Write the document of a run that an exception or Ctrl-C ends within the block; without a journal, do nothing."""
    try:
        yield
    except BaseException:
        if journal is not None:
            with anyio.move_on_after(_ENDING, shield=True), suppress(JournalError):
                await keep(journal, plan, report(), interrupted=True)
        raise


def read_documents(path: Path, run: int | None = None) -> list[RunDocument]:
    """The documents of a run in a journal, or of the run whose result a command has printed as JSON; blocks.

    Args:
        path: a journal, or the output of a command with ``--output json``.
        run: the run of the journal; None for its last one.

    Raises:
        UsageError: the file is neither, or the journal has no such run.
        JournalError: the journal is damaged.
    """
    try:
        if not _is_journal(path):
            if run is not None:
                raise UsageError(f"--run is for journals, and {path} is none")
            return [_from_result(msgspec.json.decode(read_small(path, _LONGEST)))]
    except OSError as error:
        raise UsageError(
            f"{path} can't be read: {open_files.reason(error)}", hint="name a journal or a result"
        ) from error
    except (msgspec.MsgspecError, UnicodeDecodeError, TypeError) as error:
        raise UsageError(
            f"{path} is neither a journal nor a result of asyncpush: {' '.join(str(error).split())}",
            hint="name the journal of a migration, or what `--output json` has printed",
        ) from error
    kept = kept_reports(path, run)
    if kept.reports:
        return [_unpacked(path, report, RunDocument) for report in kept.reports]
    return [_from_rows(kept.run, kept.images)]


class _KeptTraffic(msgspec.Struct, frozen=True):
    """The requests of a document; of older ones, they are not known."""

    retries: dict[str, int] = {}
    throttled: dict[str, int] = {}
    pace: dict[str, float] = {}


def kept_traffic(path: Path, run: int) -> Traffic:
    """What the reports of a run in a journal tell of its retries, throttles and pace; blocks.

    Raises:
        JournalError: the journal is damaged.
    """
    found = [_unpacked(path, report, _KeptTraffic) for report in kept_reports(path, run).reports]
    return total([Traffic(retries=kept.retries, throttled=kept.throttled, pace=kept.pace) for kept in found])


def _is_journal(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_SQLITE)) == _SQLITE


def _unpacked(path: Path, packed: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(zlib.decompressobj().decompress(packed, _LONGEST), type=kind)
    except (zlib.error, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise JournalError(f"the journal {path} has a report that can't be read: {error}") from error


def _from_result(document: Any) -> RunDocument:  # noqa: ANN401 - what a file holds
    """What ``migrate`` or ``push`` has printed: its totals say of a migration how long it took."""
    if not isinstance(document, dict) or "images" not in document:
        raise TypeError("it has no images")
    totals = document.get("totals", {})
    images = msgspec.convert([*document["images"], *document.get("referrers", [])], list[ImageEntry], strict=False)
    timeline = msgspec.convert(document.get("timeline"), Timeline | None)
    if timeline is not None:
        images = [_timed(image, timeline) for image in images]
    stopped = msgspec.convert(document.get("stopped"), ErrorEntry | None)
    planned = any(image.outcome == "planned" for image in images)
    failed = any(image.outcome == "failed" for image in images)
    state = "dry run" if planned else "failed" if failed else "finished"
    if stopped is not None:
        state = "interrupted" if stopped.code == InterruptedRunError.code else "stopped"
    return RunDocument(
        state=state,
        started=timeline.started if timeline else None,
        seconds=totals.get("seconds"),
        resumed=bool(totals.get("resumed")),
        images=images,
        sent=totals.get("bytesSent"),
        requests=msgspec.convert(totals.get("requests", {}), dict[str, int]),
        retries=msgspec.convert(totals.get("retries", {}), dict[str, int]),
        throttled=msgspec.convert(totals.get("throttled", {}), dict[str, int]),
        pace=msgspec.convert(totals.get("pace", {}), dict[str, float]),
        left_out=len(document.get("leftOut", [])),
        nothing_taken=[
            f"{nothing.get('entry')}: {nothing.get('source')}" for nothing in document.get("nothingTaken", [])
        ],
        stopped=stopped,
        timeline=timeline,
        note="" if timeline else "The result tells no times: there is no timeline.",
    )


def _from_rows(run: RunRow, rows: Sequence[ImageRow]) -> RunDocument:
    """What a journal tells of a run without a report: the process was killed, or older."""
    images = []
    for row in rows:
        name = CopyName.parse(row.copy)
        error = None if row.reason is None else ErrorEntry(row.reason)
        images.append(
            ImageEntry(
                source=name.source,
                destination=name.destination,
                outcome=row.outcome,
                digest=row.digest,
                end=max((row.at - run.started).total_seconds(), 0.0),
                error=error,
            )
        )
    end = run.ended or max((row.at for row in rows), default=run.started)
    counted = run.finished + run.failed - len(images)
    note = "The journal has no report of this run: it tells how images ended, but not when layers were under way."
    if counted > 0:
        note += f" A later run has replaced the results of {counted} images."
    return RunDocument(
        state="interrupted" if run.state == "unfinished" else run.state,
        started=run.started.timestamp(),
        seconds=(end - run.started).total_seconds(),
        resumed=run.resumed is not None,
        images=images,
        note=note,
    )


def _image(result: CopyResult, timeline: Timeline | None) -> ImageEntry:
    copy = result.copy
    begin, end = timeline.images.get(copy.destination, (None, None)) if timeline else (None, None)
    return ImageEntry(
        source=_text(copy.source),
        destination=_text(copy.destination),
        outcome=result.outcome,
        entry=_text(copy.entry.place),
        digest=str(result.digest) if result.digest else None,
        subject=str(result.subject) if result.subject else None,
        layers_sent=result.layers_sent,
        bytes_sent=result.bytes_sent,
        layers_mounted=result.layers_mounted,
        bytes_mounted=result.bytes_mounted,
        layers_present=result.layers_present,
        bytes_present=result.bytes_present,
        layers_shared=result.layers_shared,
        bytes_shared=result.bytes_shared,
        seconds=round(result.seconds, 3),
        attempts=result.attempts,
        begin=begin,
        end=end,
        error=_error(result.error) if result.error else None,
    )


def _timed(image: ImageEntry, timeline: Timeline) -> ImageEntry:
    begin, end = timeline.images.get(image.destination or "", (None, None))
    return msgspec.structs.replace(image, begin=begin, end=end)


def _error(error: AsyncpushError) -> ErrorEntry:
    code: str | None = getattr(error, "code", None)
    return ErrorEntry(_text(error.message), origin_of(error), code and _text(code), error.hint and _text(error.hint))


def _presentable(timeline: Timeline) -> Timeline:
    """The timeline without what images tell themselves, and without secrets."""
    layers = [
        msgspec.structs.replace(layer, title=_text(layer.title), destination=_text(layer.destination))
        for layer in timeline.layers
    ]
    return msgspec.structs.replace(
        timeline, images={}, layers=layers, notices=[_text(each) for each in timeline.notices]
    )


def _text(text: str) -> str:
    """Text without secrets and control characters, and as UTF-8: the name of a file may be any bytes."""
    return shown(text).encode(errors="replace").decode()
