"""``asyncpush journal``: show, export, prune and merge journals."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import AsyncExitStack
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated

import msgspec
from anyio import from_thread, to_thread
from cyclopts import Parameter

from asyncpush.cli.merged import MergedReport
from asyncpush.cli.options import OutputFormat, command, to_seconds
from asyncpush.cli.report import check_output, print_document, retries_text, write_list
from asyncpush.cli.run import DONE, FAILED, run
from asyncpush.cli.streams import say, write_document, write_lines, write_rows
from asyncpush.errors import UsageError
from asyncpush.journal.export import JournalSummary, RunRow, UploadRow, rows, summarize
from asyncpush.journal.merge import merge
from asyncpush.journal.prune import Pruned, prune
from asyncpush.journal.reports import KeptRun, kept_runs
from asyncpush.migrate.run_document import kept_traffic
from asyncpush.settings import AwsConfiguration
from asyncpush.traffic import Traffic
from asyncpush.units import count_text, size_text, time_text

#: Seconds that a journal keeps runs for by default: 30 days.
_OLD = 30.0 * 24 * 60 * 60

#: Lines that are written at once.
_LINES = 1000

_File = Annotated[Path, Parameter(show=False)]
_Verbose = Annotated[bool, Parameter(name=["--verbose", "-v"])]

app = command(
    "journal",
    usage="asyncpush journal show|export|prune|merge FILE",
    epilogue="""
Examples
  asyncpush journal show migration.journal
  asyncpush journal export migration.journal | jq 'select(.outcome == "failed")'
  asyncpush journal prune migration.journal --older-than 30d
  asyncpush journal merge plan.*.journal --into plan.journal
""",
)
_show = command("show", usage="asyncpush journal show [OPTIONS] FILE|s3://BUCKET/KEY", epilogue="")
_export = command("export", usage="asyncpush journal export [OPTIONS] FILE|s3://BUCKET/KEY", epilogue="")
_prune = command("prune", usage="asyncpush journal prune [OPTIONS] FILE", epilogue="")
_merge = command(
    "merge",
    usage="asyncpush journal merge [OPTIONS] JOURNAL... --into FILE",
    epilogue="""
Examples
  asyncpush journal merge plan.*.journal --into plan.journal
  asyncpush journal merge s3://bucket/plan/ --into plan.journal
""",
)
app.command(_show)
app.command(_export)
app.command(_prune)
app.command(_merge)


class _SummaryDocument(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The summary as JSON; ``version`` goes up when a member changes its name or meaning."""

    version: int = 1
    journal: JournalSummary


class _KeptRunDocument(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A run as JSON; without reports, what its processes took and sent is not known."""

    run: RunRow
    reports: int
    seconds: float | None
    bytes_sent: int | None
    retries: dict[str, int] | None
    throttled: dict[str, int] | None
    pace: dict[str, float] | None


class _RunsDocument(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The runs as JSON."""

    version: int = 1
    runs: list[_KeptRunDocument]


class _PruneDocument(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What was deleted, as JSON."""

    version: int = 1
    runs: int
    images: int
    tags: int
    uploads: int
    bytes_freed: int


@_show.default
def show(
    file: Annotated[str, Parameter(show=False)],
    /,
    *,
    runs: Annotated[bool, Parameter(negative=())] = False,
    region: str | None = None,
    profile: str | None = None,
    output: OutputFormat = "text",
    verbose: _Verbose = False,
) -> int:
    """Summarize a journal: its runs, layers and open uploads. A run may be using it.

    Args:
        file: The journal: a file, or s3://BUCKET/KEY.
        runs: Show its runs only, how much each of them sent, and how many requests it sent again.
        region: The region of S3.
        profile: The profile of the AWS configuration to use.
        output: Format of the result: lines, or one JSON document.
        verbose: Print the traceback of an error.
    """

    async def main() -> int:
        from asyncpush.journal.remote import at_hand

        async with at_hand(file, AwsConfiguration(profile=profile, region=region)) as path:
            if runs:
                kept = await to_thread.run_sync(_runs, path)
                if output == "json":
                    write_document(msgspec.to_builtins(_RunsDocument(runs=[_kept_run(*each) for each in kept])))
                else:
                    write_lines([_kept_line(*each) for each in kept] or ["no runs"])
                return DONE
            summary = await to_thread.run_sync(summarize, path)
        if output == "json":
            write_document(msgspec.to_builtins(_SummaryDocument(journal=summary)))
        else:
            write_lines(_lines(summary))
        return DONE

    return run(main, verbose=verbose)


@_export.default
def export(
    file: Annotated[str, Parameter(show=False)],
    /,
    *,
    region: str | None = None,
    profile: str | None = None,
    verbose: _Verbose = False,
) -> int:
    """Print everything in a journal as JSON lines. A run may be using it.

    Args:
        file: The journal: a file, or s3://BUCKET/KEY.
        region: The region of S3.
        profile: The profile of the AWS configuration to use.
        verbose: Print the traceback of an error.
    """

    async def main() -> int:
        from asyncpush.journal.remote import at_hand

        async with at_hand(file, AwsConfiguration(profile=profile, region=region)) as path:
            await to_thread.run_sync(_write_rows, path)
        return DONE

    return run(main, verbose=verbose)


@_prune.default
def prune_old(
    file: _File,
    /,
    *,
    older_than: Annotated[
        float, Parameter(converter=to_seconds, metavar="AGE", show_default=lambda seconds: f"{seconds / 86400:g}d")
    ] = _OLD,
    all: bool = False,  # noqa: A002 - the option's name
    output: OutputFormat = "text",
    verbose: _Verbose = False,
) -> int:
    """Delete old runs, their results and old open uploads from a journal. No run may be using it.

    Args:
        file: The journal.
        older_than: Delete what is older than this: 12h, 30d, 8w.
        all: Also delete old unfinished runs, which the same command would resume.
        output: Format of the result: a line, or one JSON document.
        verbose: Print the traceback of an error.
    """

    async def main() -> int:
        done = await to_thread.run_sync(partial(prune, file, older_than, unfinished=all))
        if output == "json":
            write_document(_pruned_document(done))
        else:
            write_lines([_pruned_line(done)])
        return DONE

    return run(main, verbose=verbose)


@_merge.default
def merge_all(
    *journals: Annotated[str, Parameter(show=False)],
    into: Path,
    failed_out: Path | None = None,
    region: str | None = None,
    profile: str | None = None,
    output: OutputFormat = "text",
    verbose: _Verbose = False,
) -> int:
    """Merge the journals of shards into one, and report the latest run of each. Runs may be using them.

    Args:
        journals: The journals: files, s3://BUCKET/KEY, or s3://BUCKET/PREFIX/ for all below it.
        into: The journal to add everything to; it is created if it does not exist.
        failed_out: Write the images that failed to this file, as a LIST to migrate again.
        region: The region of S3.
        profile: The profile of the AWS configuration to use.
        output: Format of the result: lines, or one JSON document.
        verbose: Print the traceback of an error.
    """

    async def main() -> int:
        if not journals:
            raise UsageError("no journal is named", hint="name those of all shards")
        from asyncpush.journal.remote import fetched
        from asyncpush.reference import S3Location

        if failed_out is not None:
            await to_thread.run_sync(check_output, failed_out, "--failed-out")
        aws = AwsConfiguration(profile=profile, region=region)
        async with AsyncExitStack() as stack:
            files: list[tuple[str, Path]] = []
            for name in journals:
                location = S3Location.parse(name)
                if location is None:
                    files.append((name, Path(name)))
                else:
                    files += await stack.enter_async_context(fetched(location, aws))
            results = await to_thread.run_sync(merge, files, into)
        merged = MergedReport.of(results)
        if output == "json":
            print_document(merged.document())
        else:
            write_lines(merged.lines())
        if failed_out is not None:
            await to_thread.run_sync(write_list, failed_out, merged.failed_lines())
        for problem in merged.problems():
            say(f"asyncpush: {problem}")
        say(f"asyncpush: {merged.summary()}")
        return DONE if merged.is_complete else FAILED

    return run(main, verbose=verbose)


def _write_rows(file: Path) -> None:
    found = rows(file)
    while some := list(itertools.islice(found, _LINES)):
        from_thread.check_cancelled()
        write_rows(map(msgspec.to_builtins, some))


def _lines(summary: JournalSummary) -> Iterator[str]:
    yield from (_run_line(run) for run in summary.runs)
    if not summary.runs:
        yield "no runs"
    yield (
        f"{count_text(summary.layers, 'layer')} in {count_text(summary.repositories, 'repository', 'repositories')}, "
        f"{size_text(summary.layer_bytes)}; {summary.layers_referenced} referenced by images"
    )
    yield f"{count_text(summary.tags, 'tag')} known, {count_text(summary.compressed, 'compressed layer')} known"
    if summary.last_proof:
        yield (
            f"{count_text(summary.proofs, 'image')} proved whole, {summary.deep_proofs} of them byte for byte; "
            f"last {_time(summary.last_proof)}"
        )
    received = sum(upload.received for upload in summary.uploads)
    yield f"{count_text(len(summary.uploads), 'open upload')}, {size_text(received)} received"
    yield from (_upload_line(upload) for upload in summary.uploads)


def _run_line(run: RunRow) -> str:
    began = f"started {_time(run.started)}" + (f", resumed {_time(run.resumed)}" if run.resumed else "")
    ended = f", ended {_time(run.ended)}" if run.ended else ""
    counts = f"{count_text(run.finished, 'image')} finished, {run.failed} failed"
    return f"run {run.id}: {run.state}, {counts}; {began}{ended}"


def _runs(file: Path) -> list[tuple[KeptRun, Traffic]]:
    return [(kept, kept_traffic(file, kept.run.id) if kept.reports else Traffic()) for kept in kept_runs(file)]


def _kept_run(kept: KeptRun, traffic: Traffic) -> _KeptRunDocument:
    known = bool(kept.reports)
    return _KeptRunDocument(
        run=kept.run,
        reports=kept.reports,
        seconds=round(kept.seconds, 3) if known else None,
        bytes_sent=kept.sent if known else None,
        retries=dict(traffic.retries) if known else None,
        throttled=dict(traffic.throttled) if known else None,
        pace=dict(traffic.pace) if known else None,
    )


def _kept_line(kept: KeptRun, traffic: Traffic) -> str:
    course = f"{size_text(kept.sent)} sent in {time_text(kept.seconds)}" if kept.reports else "no report kept"
    if retries := retries_text(traffic):
        course += f", {retries}"
    return f"{_run_line(kept.run)}; {course}"


def _upload_line(upload: UploadRow) -> str:
    name = f"{upload.repository} {upload.identity}"
    return f"  {name}: {size_text(upload.received)} received, last {_time(upload.heard)}"


def _time(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"


def _pruned_line(done: Pruned) -> str:
    counts = [count_text(done.runs, "run"), count_text(done.images, "image"), count_text(done.tags, "tag")]
    uploads = count_text(done.uploads, "open upload")
    return f"deleted {', '.join(counts)} and {uploads}; {size_text(done.freed)} of disk space freed"


def _pruned_document(done: Pruned) -> dict[str, object]:
    document: dict[str, object] = msgspec.to_builtins(
        _PruneDocument(runs=done.runs, images=done.images, tags=done.tags, uploads=done.uploads, bytes_freed=done.freed)
    )
    return document
