"""``asyncpush migrate``: the images of a plan into ECR."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated

from anyio import to_thread
from cyclopts import Parameter

from asyncpush import open_files
from asyncpush.cli.forecast import forecast_document, forecast_lines
from asyncpush.cli.options import (
    AwsOptions,
    LayerOptions,
    LimitOptions,
    OutputFormat,
    OutputOptions,
    SourceOptions,
    command,
    make_aws,
    make_settings,
    make_source_registries,
    parse_platforms,
    to_seconds,
)
from asyncpush.cli.report import Json, error_document, left_out_document, print_document
from asyncpush.cli.run import run, say_error, say_failures, status_of
from asyncpush.cli.streams import STANDARD_INPUT, say, say_notice, write_lines
from asyncpush.errors import (
    CREDENTIALS_LOST,
    AsyncpushError,
    CredentialsError,
    InvalidReferenceError,
    TooManyFailuresError,
)
from asyncpush.files import write_small
from asyncpush.journal import SqliteJournal, open_journal
from asyncpush.migrate.ledger import RESUME_WITHIN, Options
from asyncpush.migrate.plan.load import read_plan
from asyncpush.migrate.plan.model import Plan, overridden
from asyncpush.migrate.report import Copy, CopyResult, NothingTaken, Report, write_metrics
from asyncpush.migrate.run import migrate_plan
from asyncpush.progress import progress
from asyncpush.progress.lines import printable
from asyncpush.reference import Destination, parse_destination
from asyncpush.settings import Settings
from asyncpush.units import size_text, time_text

#: The journal of a plan that is read from standard input.
_NAMELESS = Path("asyncpush.journal")

#: Repositories that a note lists.
_SHOWN_NAMES = 3

app = command(
    "migrate",
    usage="asyncpush migrate [OPTIONS] PLAN.yaml\n       asyncpush migrate [OPTIONS] LIST|-",
    epilogue="""
PLAN.yaml lists sources and destinations; check it with asyncpush plan check.
LIST has SOURCE DESTINATION on each line; - reads either from standard input.
After an interruption, run the same command again to resume: the journal
records what is done.

Examples
  asyncpush migrate plan.yaml --dry-run
  asyncpush migrate plan.yaml --failed-out failed.txt
  echo 'docker.io/library/nginx:1.27 mirror/nginx' | asyncpush migrate - --region eu-west-1
""",
)


@app.default
def migrate(
    plan: Annotated[str, Parameter(show=False)],
    /,
    *,
    dry_run: bool = False,
    journal: Path | None = None,
    no_resume: Annotated[bool, Parameter(name="--no-resume")] = False,
    resume_within: Annotated[
        float, Parameter(converter=to_seconds, metavar="AGE", show_default=lambda seconds: f"{seconds / 3600:g}h")
    ] = RESUME_WITHIN,
    recheck: bool = False,
    fail_fast: bool = False,
    max_failures: int | None = None,
    strict: bool = False,
    failed_out: Path | None = None,
    metrics_out: Path | None = None,
    create_repository: bool = False,
    layers: LayerOptions | None = None,
    limits: LimitOptions | None = None,
    aws: AwsOptions | None = None,
    source: SourceOptions | None = None,
    show: OutputOptions | None = None,
) -> int:
    """Migrate the images of a plan into ECR, many at once; an interrupted run resumes where it stopped.

    Args:
        plan: The plan or list.
        dry_run: Show what would be sent, what exists already and which tags are left out, but send nothing.
        journal: The file that records what is done. By default, PLAN.journal beside the plan.
        no_resume: Use no journal: ignore earlier runs, and record nothing.
        resume_within: Resume an interrupted run only if it started within this time: 30m, 6h, 2d.
        recheck: Check all images again, including those that an interrupted run finished.
        fail_fast: Stop at the first failure.
        max_failures: Begin no other image after this many have failed; finish those that are under way.
        strict: Fail entries that match no tag, unless the plan sets min_tags: 0 for them.
        failed_out: Write the images that failed to this file, as a LIST to migrate again.
        metrics_out: Write metrics to this file at the end, in the Prometheus text format.
        create_repository: Create repositories that do not exist, even if the plan does not say so.
    """
    show = show or OutputOptions()
    path = "-" if plan == STANDARD_INPUT else plan

    async def main() -> int:
        settings = make_settings(limits, layers, create_repository=create_repository)
        read = await read_plan(path)
        for notice in read.notices:
            say(f"asyncpush: note: {notice}")
        hosts = [entry.host for entry in read.entries if entry.host]
        ready = overridden(
            read,
            make_aws(aws),
            make_source_registries(source, hosts),
            platforms=parse_platforms(layers.platform) if layers else (),
            create_repository=create_repository,
            strict=strict,
        )
        options = Options(
            dry=dry_run,
            recheck=recheck,
            fail_fast=fail_fast,
            max_failures=max_failures,
            resume_within=resume_within,
        )
        place = None if no_resume else journal or _beside(path)
        report = await _run(ready, settings, place, options, show)
        _refuse_without_credentials(report)
        print_migration(report, show.output)
        if failed_out is not None:
            await to_thread.run_sync(_write_list, failed_out, failed_lines(report))
        if metrics_out is not None:
            await write_metrics(report, metrics_out)
        say_notes(report.nothing_taken)
        silent = (*CREDENTIALS_LOST, TooManyFailuresError)  # told as what stopped the run
        failed = [(result.error, str(result.copy.destination)) for result in report.failed if result.error]
        told = [(error, name, name) for error, name in failed if not isinstance(error, silent)]
        say_failures(told, len(report.results), undone="copied", each=show.verbose)
        if report.stopped is not None:
            say_error(report.stopped, about="the migration stopped")
        if not show.quiet:
            # If all images have failed, what the run would take is unknown.
            planned = any(result.outcome != "failed" for result in report.results)
            for line in forecast_lines(report.forecast) if report.forecast and planned else ():
                say(f"asyncpush: {line}")
            say_summary(report)
        errors = [result.error for result in report.failed if result.error and result not in report.not_tried]
        return status_of([report.stopped] if report.stopped else errors)

    return run(main, verbose=show.verbose)


async def _run(plan: Plan, settings: Settings, place: Path | None, options: Options, show: OutputOptions) -> Report:
    async with AsyncExitStack() as stack:
        kept: SqliteJournal | None = None
        # A dry run reads an existing journal, but creates none.
        if place is not None and (not options.dry or await to_thread.run_sync(place.exists)):
            kept = await stack.enter_async_context(open_journal(place))
        emit = await stack.enter_async_context(progress(show.display))
        if show.display == "none" and not show.quiet:
            emit = say_notice  # notices are not progress
        return await migrate_plan(plan, settings=settings, journal=kept, emit=emit, options=options)


def _refuse_without_credentials(report: Report) -> None:
    """Raise the error that all images have in common, if ECR credentials are missing."""
    first = report.results[0].error if report.results else None
    if isinstance(first, CredentialsError) and all(
        isinstance(result.error, CredentialsError) for result in report.results
    ):
        raise first


def _beside(path: str) -> Path:
    if path == "-":
        return _NAMELESS
    return Path(path).with_suffix(".journal")


def _write_list(path: Path, lines: list[str]) -> None:
    try:
        write_small(path, "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace"))
    except OSError as error:
        raise AsyncpushError(
            f"{path} can't be written: {open_files.reason(error)}", hint="give --failed-out another file"
        ) from error


_WORDS = {
    "pushed": "pushed",
    "present": "already there",
    "finished": "finished before",
    "planned": "to be sent",
    "refused": "refused by ECR",
    "failed": "failed",
}


def print_migration(report: Report, output: OutputFormat) -> None:
    """Print the results: ``DESTINATION@DIGEST`` a line for each image that did not fail; or everything as JSON."""
    if output == "json":
        print_document(_document(report))
        return
    lines = [_line(result) for result in report.results if result.outcome not in ("failed", "refused")]
    if any(result.outcome == "planned" for result in report.results):
        lines += [f"{tag.name}  left out: {tag.reason}" for tag in report.left_out]
    write_lines(lines)


def nothing_document(nothing: NothingTaken) -> Json:
    """An entry that matches no tag, for a JSON report."""
    return {
        "entry": nothing.entry.place,
        "source": nothing.entry.source,
        "rules": str(nothing.entry.tags),
        "tags": nothing.tags,
    }


def say_notes(nothing_taken: Iterable[NothingTaken]) -> None:
    """Write to standard error which entries match no tag; many repositories of one pattern share a line."""
    by_place: dict[str, list[NothingTaken]] = {}
    for nothing in nothing_taken:
        by_place.setdefault(nothing.entry.place, []).append(nothing)
    for place, found in by_place.items():
        text = str(found[0])
        if len(found) > 1:
            names = ", ".join(sorted(nothing.entry.source for nothing in found)[:_SHOWN_NAMES])
            more = f" and {len(found) - _SHOWN_NAMES} more" if len(found) > _SHOWN_NAMES else ""
            text = f"{place}: {len(found)} repositories have no tag that the plan takes: {names}{more}"
        say(f"asyncpush: note: {printable(text)}")


def say_summary(report: Report) -> None:
    """Write the totals to standard error."""
    images = [result for result in report.results if result.subject is None]
    counts = Counter(result.outcome for result in images)
    counts["failed"] -= len(report.not_tried)
    words = [f"{count} {_WORDS[outcome]}" for outcome, count in counts.items() if count]
    if report.not_tried:
        words.append(f"{len(report.not_tried)} not tried")
    referrers = Counter(result.outcome for result in report.results if result.subject is not None)
    if referrers:
        inner = ", ".join(f"{count} {_WORDS[outcome]}" for outcome, count in referrers.items())
        words.append(f"{referrers.total()} referrers ({inner})")
    sent = "to send" if counts["planned"] else "sent"
    planned = sum(result.bytes_sent for result in report.results)
    sizes = [
        f"{size_text(planned if counts['planned'] else report.sent)} {sent}",
        f"{size_text(sum(result.bytes_mounted for result in report.results))} mounted",
        f"{size_text(sum(result.bytes_present for result in report.results))} already there",
    ]
    head = f"{len(images)} image{'s' if len(images) != 1 else ''}"
    requests = sum(report.requests.values())
    say(
        f"asyncpush: {head}: {', '.join(words) or 'nothing to do'}; {', '.join(sizes)}; "
        f"{requests} requests in {time_text(report.seconds)}"
    )


def failed_lines(report: Report) -> list[str]:
    """What failed, as ``SOURCE DESTINATION``; as a comment where a list can't express it."""
    lines = []
    for result in report.failed:
        copy = result.copy
        if result.subject is None and copy.reference and not copy.choice:
            lines.append(f"{copy.source} {in_list(copy)}")
        else:
            # The images of an entry whose tags can't be read are unknown; a referrer goes with its image; and a list
            # can't choose platforms: all of an index would be pushed.
            lines.append(f"# {copy.source} to {copy.destination}: {' '.join(str(result.error).split())}")
    return lines


def in_list(copy: Copy) -> Destination:
    """Where a copy goes, with the registry's host if it has one: the next run may use another account or region."""
    try:
        registry = parse_destination(copy.repository.address).registry
    except InvalidReferenceError:  # it is known by its endpoint
        registry = copy.goal.target.registry
    if not registry.host:
        registry = copy.goal.target.registry
    return Destination(registry, copy.repository.name, copy.tag)


def _line(result: CopyResult) -> str:
    name = result.copy.destination
    if result.digest and not name.endswith(str(result.digest)):
        name = f"{name}@{result.digest}"
    if result.outcome != "planned":
        return name
    parts = [f"would send {result.layers_sent} blobs, {result.bytes_sent} bytes"]
    if result.layers_mounted:
        parts.append(f"mount {result.layers_mounted}, {result.bytes_mounted} bytes")
    return f"{name}  {', '.join(parts)}; {result.layers_present} are already there, {result.bytes_present} bytes"


def _document(report: Report) -> Json:
    counts = Counter[str](result.outcome for result in report.results if result.subject is None)
    return {
        "images": [_image(result) for result in report.results if result.subject is None],
        "referrers": [_image(result) for result in report.results if result.subject is not None],
        "nothingTaken": [nothing_document(nothing) for nothing in report.nothing_taken],
        "leftOut": [{"source": tag.source, "tag": tag.tag, "reason": tag.reason} for tag in report.left_out],
        "totals": {
            "images": counts.total(),
            **{outcome: counts[outcome] for outcome in _WORDS},
            "notTried": len(report.not_tried),
            "bytesSent": sum(result.bytes_sent for result in report.results),
            "bytesMounted": sum(result.bytes_mounted for result in report.results),
            "bytesPresent": sum(result.bytes_present for result in report.results),
            "requests": dict(sorted(report.requests.items())),
            "seconds": round(report.seconds, 3),
            "resumed": report.resumed,
        },
        **({"forecast": forecast_document(report.forecast)} if report.forecast else {}),
        **({"stopped": error_document(report.stopped)} if report.stopped else {}),
    }


def _image(result: CopyResult) -> Json:
    return {
        "source": result.copy.source,
        "destination": result.copy.destination,
        "entry": result.copy.entry.place,
        "outcome": result.outcome,
        "digest": str(result.digest) if result.digest else None,
        **({"subject": str(result.subject)} if result.subject else {}),
        "layersSent": result.layers_sent,
        "bytesSent": result.bytes_sent,
        "layersMounted": result.layers_mounted,
        "bytesMounted": result.bytes_mounted,
        "layersPresent": result.layers_present,
        "bytesPresent": result.bytes_present,
        "seconds": round(result.seconds, 3),
        "attempts": result.attempts,
        "leftOut": left_out_document(result.left_out),
        **({"error": error_document(result.error)} if result.error else {}),
    }
