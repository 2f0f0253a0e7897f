"""``asyncpush migrate``: many images, from anywhere, into ECR, as a plan says."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated

from anyio import to_thread
from cyclopts import Parameter

from asyncpush import open_files
from asyncpush.cli.migration import failed_lines, print_migration, say_notes, say_summary
from asyncpush.cli.options import (
    AwsOptions,
    LayerOptions,
    Limits,
    OutputOptions,
    SourceOptions,
    command,
    make_aws,
    make_settings,
    make_source_registries,
    parse_platform,
    to_seconds,
)
from asyncpush.cli.run import DONE, FAILED, run, say_error
from asyncpush.cli.streams import STANDARD_INPUT, say, say_notice
from asyncpush.errors import CREDENTIALS_LOST, AsyncpushError, CredentialsError
from asyncpush.files import write_small
from asyncpush.journal import SqliteJournal, open_journal
from asyncpush.migrate.context import RESUME_WITHIN, Options
from asyncpush.migrate.metrics import write_metrics
from asyncpush.migrate.overrides import overridden
from asyncpush.migrate.plan.load import read_plan
from asyncpush.migrate.plan.model import Plan
from asyncpush.migrate.results import Report
from asyncpush.migrate.run import migrate_plan
from asyncpush.progress import progress
from asyncpush.settings import Settings

#: The journal of a plan that came from standard input.
_NAMELESS = Path("asyncpush.journal")

app = command(
    "migrate",
    usage="asyncpush migrate [OPTIONS] PLAN.yaml\n       asyncpush migrate [OPTIONS] LIST|-",
    epilogue="""
PLAN.yaml says what goes where; asyncpush plan check tells what is wrong with it.
LIST has SOURCE DESTINATION in each line; - reads either from standard input.
Interrupted, the same command goes on: what is done is in the journal.

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
    strict: bool = False,
    failed_out: Path | None = None,
    metrics_out: Path | None = None,
    create_repository: bool = False,
    layers: LayerOptions | None = None,
    limits: Limits | None = None,
    aws: AwsOptions | None = None,
    source: SourceOptions | None = None,
    show: OutputOptions | None = None,
) -> int:
    """Migrate images into ECR as a plan says, all at once, and so that it can be interrupted at any time.

    Args:
        plan: The plan or list.
        dry_run: Say what would be sent, what is there already and which tags are left out; send nothing.
        journal: Where it is remembered what is done; beside the plan by default (PLAN.journal).
        no_resume: Remember nothing, and know nothing of earlier runs.
        resume_within: Go on with an interrupted run only if it began this lately: 30m, 6h, 2d.
        recheck: Look again at images that an interrupted run has finished.
        fail_fast: Stop at the first failure.
        strict: Fail an entry that takes no tag, unless the plan gives it min_tags: 0.
        failed_out: Write what failed to this file, as a list that can be migrated again.
        metrics_out: Write figures to this file at the end, in Prometheus's text format.
        create_repository: Create repositories that do not exist, also where the plan does not say so.
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
            platform=parse_platform(layers.platform) if layers else None,
            create_repository=create_repository,
            strict=strict,
        )
        options = Options(
            dry=dry_run,
            recheck=recheck,
            fail_fast=fail_fast,
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
        say_notes(report)
        for result in report.failed:
            assert result.error is not None, "what failed says why"  # noqa: S101
            if not isinstance(result.error, CREDENTIALS_LOST):
                say_error(result.error, about=result.copy.destination)
        if report.stopped is not None:
            say_error(report.stopped, about="the migration has stopped")
        if not show.quiet:
            say_summary(report)
        return FAILED if report.failed or report.stopped else DONE

    return run(main, verbose=show.verbose)


async def _run(plan: Plan, settings: Settings, place: Path | None, options: Options, show: OutputOptions) -> Report:
    async with AsyncExitStack() as stack:
        kept: SqliteJournal | None = None
        # A dry run reads what an earlier run has left, but leaves nothing.
        if place is not None and (not options.dry or await to_thread.run_sync(place.exists)):
            kept = await stack.enter_async_context(open_journal(place))
        emit = await stack.enter_async_context(progress(show.face))
        if show.face == "none" and not show.quiet:
            emit = say_notice  # what is left out is no matter of progress
        return await migrate_plan(plan, settings=settings, journal=kept, emit=emit, options=options)


def _refuse_without_credentials(report: Report) -> None:
    """Say once what all images have failed of, if that is the credentials of ECR registries that they are in."""
    first = report.results[0].error if report.results else None
    if isinstance(first, CredentialsError) and all(isinstance(each.error, CredentialsError) for each in report.results):
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
