"""``asyncpush migrate``: the images of a plan into ECR."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import msgspec
from anyio import to_thread
from cyclopts import Parameter

from asyncpush.cli import github
from asyncpush.cli.dask import make_job
from asyncpush.cli.forecast import forecast_document, forecast_lines
from asyncpush.cli.options import (
    AwsOptions,
    LayerOptions,
    LimitOptions,
    OutputFormat,
    OutputOptions,
    ShardOptions,
    SourceOptions,
    command,
    make_aws,
    make_settings,
    make_source_registries,
    parse_platforms,
    to_seconds,
)
from asyncpush.cli.places import Places
from asyncpush.cli.report import (
    OUTCOME_WORDS,
    Finally,
    Json,
    Summary,
    error_document,
    is_listed,
    left_out_document,
    print_document,
    say_summary,
    stopped_document,
    write_list,
)
from asyncpush.cli.run import FAILED, run, say_error, say_failures, status_of
from asyncpush.cli.streams import STANDARD_INPUT, say, say_notice, write_lines
from asyncpush.cli.undone import entries_document, gone_error, say_left, undone_document
from asyncpush.errors import (
    CREDENTIALS_LOST,
    AsyncpushError,
    CredentialsError,
    InvalidReferenceError,
    SourceLimitedError,
    TooManyFailuresError,
)
from asyncpush.events import Emit
from asyncpush.migrate.dask.client import Cluster, migrate_on_dask
from asyncpush.migrate.dask.plain import Job
from asyncpush.migrate.journals import open_place
from asyncpush.migrate.ledger import RESUME_WITHIN, Options
from asyncpush.migrate.plan.load import parse_plan, read_text
from asyncpush.migrate.plan.model import Plan, overridden
from asyncpush.migrate.report import UNDONE, Copy, CopyResult, NothingTaken, Report, write_metrics
from asyncpush.migrate.report_page import write_report
from asyncpush.migrate.run import migrate_plan
from asyncpush.migrate.run_document import run_document
from asyncpush.model import Platform
from asyncpush.progress.lines import printable
from asyncpush.reference import Destination, S3Location, parse_destination
from asyncpush.settings import AwsConfiguration, Settings, SourceRegistry
from asyncpush.units import some_text

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
  asyncpush migrate plan.yaml --failed
  echo 'docker.io/library/nginx:1.27 mirror/nginx' | asyncpush migrate - --region eu-west-1
""",
)


@app.default
def migrate(
    plan: Annotated[str, Parameter(show=False)],
    /,
    *,
    dry_run: bool = False,
    journal: Annotated[str | None, Parameter(metavar="PATH")] = None,
    no_resume: Annotated[bool, Parameter(name="--no-resume")] = False,
    resume_within: Annotated[
        float, Parameter(converter=to_seconds, metavar="AGE", show_default=lambda seconds: f"{seconds / 3600:g}h")
    ] = RESUME_WITHIN,
    recheck: bool = False,
    failed: bool = False,
    wait: bool = False,
    fail_fast: bool = False,
    max_failures: int | None = None,
    strict: bool = False,
    failed_out: Annotated[str | None, Parameter(metavar="PATH")] = None,
    metrics_out: Annotated[str | None, Parameter(metavar="PATH")] = None,
    report_out: Annotated[str | None, Parameter(name="--report", metavar="PATH")] = None,
    create_repository: bool = False,
    shards: ShardOptions | None = None,
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
        journal: The file that records what is done, or s3://BUCKET/KEY; {shard} in it stands for the shard. By default,
            PLAN.journal beside the plan.
        no_resume: Use no journal: ignore earlier runs, and record nothing.
        resume_within: Resume an interrupted run only if it started within this time: 30m, 6h, 2d.
        recheck: Check all images again, including those that an interrupted run finished.
        failed: Migrate only what the last run did not: images that failed, or were left or not tried.
        wait: Stay for images of sources whose pull limits are used up, until these are renewed.
        fail_fast: Stop at the first failure.
        max_failures: Begin no other image after this many have failed; finish those that are under way.
        strict: Fail entries that match no tag, unless the plan sets min_tags: 0 for them.
        failed_out: Write the images that failed to this file, as a LIST to migrate again.
        metrics_out: Write metrics to this file at the end, in the Prometheus text format.
        report_out: Write a report of the run to this file at the end, as a page for browsers.
        create_repository: Create repositories that do not exist, even if the plan does not say so.
    """
    show = show or OutputOptions()
    path = "-" if plan == STANDARD_INPUT else plan
    plans: list[Plan] = []  # what was read
    reports: list[Report] = []  # of the whole run, or of what was done when it ended early

    def so_far(cause: AsyncpushError) -> None:
        document = _document(reports[-1]) if reports else entries_document(plans, cause)
        print_document({**document, **stopped_document(cause)})

    ending = Finally(show.output, so_far)

    async def main() -> int:
        parts = shards or ShardOptions()
        where = Places.of(parts, journal, path, dry=dry_run, no_resume=no_resume, failed=failed)
        failed_file = await where.output(failed_out, "--failed-out")
        metrics_file = await where.output(metrics_out, "--metrics-out")
        report_file = await where.output(report_out, "--report")
        settings = make_settings(limits, layers, create_repository=create_repository, quota_share=where.share)
        text = await read_text(path)
        read = await to_thread.run_sync(parse_plan, text, None if path == "-" else Path(path), os.environ)
        for notice in read.notices:
            say(f"asyncpush: note: {notice}")
        hosts = [entry.host for entry in read.entries if entry.host]
        chosen = _Overrides(
            make_aws(aws),
            make_source_registries(source, hosts),
            parse_platforms(layers.platform) if layers else (),
            create_repository,
            strict,
        )
        options = Options(
            dry=dry_run,
            recheck=recheck,
            fail_fast=fail_fast,
            max_failures=max_failures,
            resume_within=resume_within,
            shard=where.shard,
            wait=wait,
            failed=failed,
        )
        ready = chosen.of(read)
        plans.append(ready)
        if where.cluster is None:
            report, failures = await _run(ready, settings, where.journal, options, show, chosen.aws, reports.append)
        else:
            make = partial(
                make_job,
                text,
                ready,
                parts,
                journal=where.journals,
                settings=settings,
                options=options,
                aws=chosen.aws,
                sources=chosen.sources,
                platforms=chosen.platforms,
                create_repository=create_repository,
                strict=strict,
            )
            job = await to_thread.run_sync(make)
            report, failures = await _run_on_dask(job, ready, where.cluster, show)
        reports.append(report)
        _refuse_without_credentials(report)
        ending.is_printing()
        print_migration(report, show.output, each=show.verbose)
        if failed_file is not None:
            await to_thread.run_sync(write_list, failed_file, failed_lines(report))
        if metrics_file is not None:
            await write_metrics(report, metrics_file)
        if report_file is not None:
            await to_thread.run_sync(write_report, report_file, [run_document(report, ready, dry=dry_run)])
        await to_thread.run_sync(github.report, [_row(result) for result in report.results])
        return _conclude(report, failures, show)

    return run(main, verbose=show.verbose, end_early=ending.end_early)


def _conclude(report: Report, journal_failures: Sequence[AsyncpushError], show: OutputOptions) -> int:
    """Say on standard error how the migration ended, and return the exit status."""
    say_notes(report.nothing_taken)
    _say_failures(report, journal_failures, show)
    say_left(report)
    if not show.quiet:
        # If all images have failed, what the run would take is unknown.
        planned = any(result.outcome not in UNDONE for result in report.results)
        for line in forecast_lines(report.forecast) if report.forecast and planned else ():
            say(f"asyncpush: {line}")
        say_summary(_summary(report), each=show.verbose)
    errors = [error for _, error in report.failures if not isinstance(error, TooManyFailuresError)]
    status = status_of([report.stopped] if report.stopped else errors)
    return FAILED if journal_failures and not status else status


def _row(result: CopyResult) -> github.Row:
    digest = str(result.digest) if result.digest and result.outcome not in ("planned", *UNDONE) else ""
    note = str(result.error) if result.error else ""
    return github.Row(
        result.copy.destination, OUTCOME_WORDS[result.outcome], digest, result.bytes_sent, note, result.reference
    )


def _say_failures(report: Report, journal_failures: Sequence[AsyncpushError], show: OutputOptions) -> None:
    silent = (*CREDENTIALS_LOST, TooManyFailuresError, SourceLimitedError)  # told once for all
    failed = [(result.error, str(result.copy.destination)) for result in report.failed if result.error]
    told = [(error, name, name) for error, name in failed if not isinstance(error, silent)]
    say_failures(told, len(report.results), undone="copied", each=show.verbose)
    if report.gone:
        say_error(gone_error(report.gone))
    if report.stopped is not None:
        say_error(report.stopped, about="the migration stopped")
    for failure in journal_failures:
        say_error(failure)


@dataclass(frozen=True, slots=True)
class _Overrides:
    """What the options set where the plan does not."""

    aws: AwsConfiguration
    sources: Mapping[str, SourceRegistry]
    platforms: tuple[Platform, ...]
    create_repository: bool
    strict: bool

    def of(self, plan: Plan) -> Plan:
        return overridden(
            plan,
            self.aws,
            self.sources,
            platforms=self.platforms,
            create_repository=self.create_repository,
            strict=self.strict,
        )


async def _run_on_dask(
    job: Job, plan: Plan, cluster: Cluster, show: OutputOptions
) -> tuple[Report, Sequence[AsyncpushError]]:
    """The report of all shards, and why journals could not be put back in the end."""
    async with AsyncExitStack() as stack:
        result = await migrate_on_dask(job, plan, cluster, await _shown(stack, show))
    return result.report, result.journal_failures


async def _run(
    plan: Plan,
    settings: Settings,
    place: Path | S3Location | None,
    options: Options,
    show: OutputOptions,
    aws: AwsConfiguration,
    on_early_end: Callable[[Report], None],
) -> tuple[Report, Sequence[AsyncpushError]]:
    """The report, and why the journal could not be put back in the end."""
    async with AsyncExitStack() as stack:
        emit = await _shown(stack, show)
        opening = open_place(place, aws, emit, dry=options.dry, is_needed=options.failed)
        kept = await stack.enter_async_context(opening)
        report = await migrate_plan(
            plan, settings=settings, journal=kept.journal, emit=emit, options=options, on_early_end=on_early_end
        )
    return report, [kept.failure] if kept.failure else []


async def _shown(stack: AsyncExitStack, show: OutputOptions) -> Emit:
    showing = github.grouped_progress(show.display, each=show.shows_each, summarized=not show.quiet)
    emit = await stack.enter_async_context(showing)
    return say_notice if show.display == "none" and not show.quiet else emit  # notices are not progress


def _refuse_without_credentials(report: Report) -> None:
    """Raise the error that all images have in common, if ECR credentials are missing."""
    first = report.results[0].error if report.results else None
    if isinstance(first, CredentialsError) and all(
        isinstance(result.error, CredentialsError) for result in report.results
    ):
        raise first


def print_migration(report: Report, output: OutputFormat, *, each: bool) -> None:
    """Print the results: ``HOST/REPOSITORY:TAG@DIGEST`` for each image that did not fail, or everything as JSON.

    Args:
        report: the results.
        output: the format.
        each: whether a person wants to see each line, also of images that were there already.
    """
    if output == "json":
        print_document(_document(report))
        return
    done = [result for result in report.results if result.outcome not in ("refused", *UNDONE)]
    lines = [_line(result) for result in done if is_listed(result.outcome, len(report.results), each=each)]
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
            names = some_text(sorted(nothing.entry.source for nothing in found), _SHOWN_NAMES)
            text = f"{place}: {len(found)} repositories have no tag that the plan takes: {names}"
        say(f"asyncpush: note: {printable(text)}")


def _summary(report: Report) -> Summary:
    counts = Counter(result.outcome for result in report.results if result.subject is None)
    counts["failed"] -= len(report.not_tried)
    planned = counts["planned"] > 0
    sent = sum(result.bytes_sent for result in report.results) if planned else report.sent
    images = {OUTCOME_WORDS[outcome]: count for outcome, count in counts.items()}
    return Summary(
        images={**images, "not tried": len(report.not_tried)},
        referrers=Counter(OUTCOME_WORDS[result.outcome] for result in report.results if result.subject is not None),
        sizes={
            "to send" if planned else "sent": sent,
            "mounted": sum(result.bytes_mounted for result in report.results),
            "already there": sum(result.bytes_present for result in report.results),
            "shared": sum(result.bytes_shared for result in report.results),
        },
        traffic=report.traffic,
        seconds=report.seconds,
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
    name = result.reference or result.copy.destination
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
            **{outcome: counts[outcome] for outcome in OUTCOME_WORDS},
            "notTried": len(report.not_tried),
            "bytesSent": sum(result.bytes_sent for result in report.results),
            "bytesMounted": sum(result.bytes_mounted for result in report.results),
            "bytesPresent": sum(result.bytes_present for result in report.results),
            "bytesShared": sum(result.bytes_shared for result in report.results),
            **report.traffic.document(),
            "seconds": round(report.seconds, 3),
            "resumed": report.resumed,
        },
        **undone_document(report),
        **({"forecast": forecast_document(report.forecast)} if report.forecast else {}),
        **({"timeline": msgspec.to_builtins(report.timeline)} if report.timeline else {}),
        **({"stopped": error_document(report.stopped)} if report.stopped else {}),
    }


def _image(result: CopyResult) -> Json:
    return {
        "source": result.copy.source,
        "destination": result.copy.destination,
        "entry": result.copy.entry.place,
        "outcome": result.outcome,
        "digest": str(result.digest) if result.digest else None,
        "reference": result.reference,
        **({"subject": str(result.subject)} if result.subject else {}),
        "layersSent": result.layers_sent,
        "bytesSent": result.bytes_sent,
        "layersMounted": result.layers_mounted,
        "bytesMounted": result.bytes_mounted,
        "layersPresent": result.layers_present,
        "bytesPresent": result.bytes_present,
        "layersShared": result.layers_shared,
        "bytesShared": result.bytes_shared,
        "seconds": round(result.seconds, 3),
        "attempts": result.attempts,
        "leftOut": left_out_document(result.left_out),
        **({"error": error_document(result.error)} if result.error else {}),
    }
