"""``asyncpush verify``: whether images in ECR are complete."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

from anyio import to_thread
from cyclopts import Parameter

from asyncpush.api import connect
from asyncpush.cli.options import (
    AwsOptions,
    LayerOptions,
    OutputOptions,
    SourceOptions,
    command,
    make_aws,
    make_settings,
    make_source_registries,
    to_seconds,
    without_endpoint,
)
from asyncpush.cli.run import FAILED, run, say_error
from asyncpush.cli.verify_report import VerifyReport
from asyncpush.errors import AsyncpushError, JournalError, UsageError, only_cause
from asyncpush.events import Emit
from asyncpush.journal import SqliteJournal
from asyncpush.progress import progress
from asyncpush.reference import RegistryName
from asyncpush.settings import AwsConfiguration, Compression, Settings
from asyncpush.verify import Proofs, VerificationFailure, VerificationTarget, parse_target, verify_all

if TYPE_CHECKING:
    from asyncpush.migrate.journals import KeptJournal

app = command(
    "verify",
    usage="asyncpush verify [OPTIONS] DESTINATION...\n       asyncpush verify [OPTIONS] PLAN.yaml",
    epilogue="""
DESTINATION is one of
  ACCOUNT.dkr.ecr.REGION.amazonaws.com/REPOSITORY[:TAG][@DIGEST]
  REPOSITORY[:TAG][@DIGEST]  in your own registry
Without a TAG and a DIGEST, the tag is latest; with both, the tag must name that
digest. Images in ECR Public can't be verified: its API returns no manifests.

An argument that names a file is a plan or list, as for asyncpush migrate: ECR
must have all its images, and their signatures, attestations and SBOMs, as the
sources have them now, and the repositories the settings that the plan states.

Examples
  asyncpush verify team/app:1.4
  asyncpush verify plan.yaml
  asyncpush verify plan.yaml --deep --journal plan.journal --proved-within 24h
""",
)


@app.default
def verify(
    *destinations: Annotated[str, Parameter(show=False)],
    deep: bool = False,
    journal: Annotated[str | None, Parameter(metavar="PATH")] = None,
    proved_within: Annotated[float | None, Parameter(converter=to_seconds, metavar="AGE")] = None,
    no_settings: Annotated[bool, Parameter(name="--no-settings")] = False,
    available_platforms: Annotated[bool, Parameter(negative="")] = False,
    compression: Compression = "gzip",
    aws: AwsOptions | None = None,
    source: SourceOptions | None = None,
    show: OutputOptions | None = None,
) -> int:
    """Verify that images in ECR are complete: each manifest has its digest, and each blob exists with its size.

    Args:
        destinations: The images.
        deep: Also read all blobs, and compare their digests, and the uncompressed layers with the config's diff ids.
        journal: Record in this file, or s3://BUCKET/KEY, which images are whole. It may be that of the migration.
        proved_within: With --deep, do not read images again whose bytes the journal has as read in this time: 12h, 7d.
            By default, read all.
        no_settings: Do not compare the settings of repositories with the plan.
        available_platforms: Set this if the plan was migrated with --available-platforms.
        compression: Set this to the --compression that the plan was migrated with.
    """
    show = show or OutputOptions()
    settings = make_settings(None, LayerOptions(available_platforms=available_platforms, compression=compression))

    options = _Options(deep, journal, proved_within, not no_settings)
    report = VerifyReport(show, deep=deep)

    async def main() -> int:
        if not destinations:
            raise UsageError("no image was given", hint="write asyncpush verify DESTINATION...")
        if proved_within is not None and not (deep and journal):
            raise UsageError("--proved-within needs --deep and --journal", hint="give both, or leave it out")
        plan = await to_thread.run_sync(_plan_among, destinations)
        only_plan = {"--available-platforms": available_platforms, "--no-settings": no_settings}
        only_plan["--compression"] = compression != "gzip"
        if not plan and (given := [option for option, is_given in only_plan.items() if is_given]):
            raise UsageError(f"{given[0]} applies only to a plan")
        if plan:
            return await _report(partial(_verify_plan, plan, aws, source, settings, options), options, aws, report)
        targets = dict.fromkeys(parse_target(without_endpoint(destination, aws)) for destination in destinations)
        for target in targets:
            report.expect(target)
        return await _report(partial(_verify, list(targets), make_aws(aws), options), options, aws, report)

    state = "nothing was changed; run the same command again"
    return run(main, verbose=show.verbose, end_early=report.end_early, state=state)


@dataclass(frozen=True, slots=True)
class _Options:
    """How to verify; see ``verify_plan``."""

    deep: bool
    journal: str | None
    proved_within: float | None
    repository_settings: bool


#: Verifies images with a journal, if there is one, and tells the report what it finds.
_Work: TypeAlias = Callable[[SqliteJournal | None, VerifyReport, Emit], Awaitable[None]]


async def _report(work: _Work, options: _Options, aws: AwsOptions | None, report: VerifyReport) -> int:
    """Do *work*, and print what it finds."""
    kept: KeptJournal | None = None
    with only_cause():
        async with AsyncExitStack() as stack:
            emit = report.listener(await stack.enter_async_context(progress(report.show.display, summarized=True)))
            await stack.enter_async_context(report.printing())
            if options.journal:
                kept = await _open(options.journal, make_aws(aws), emit, stack)
            await work(kept.journal if kept else None, report, emit)
    status = report.conclude()
    if kept and kept.failure:
        say_error(kept.failure)
        return status or FAILED
    return status


def _plan_among(words: Sequence[str]) -> str | None:
    """The one of *words* that is a file, if there is one; it must be alone."""
    plan = next((word for word in words if Path(word).is_file()), None)
    if plan is not None and len(words) > 1:
        raise UsageError(f"{plan} is a file, but not the only argument", hint="verify a plan alone")
    return plan


async def _open(place: str, aws: AwsConfiguration, emit: Emit, stack: AsyncExitStack) -> KeptJournal:
    # Only a journal needs these, and they take a while to import.
    from asyncpush.migrate.journals import open_place, read_place

    return await stack.enter_async_context(open_place(read_place(place), aws, emit, dry=False))


async def _verify_plan(
    path: str,
    aws: AwsOptions | None,
    source: SourceOptions | None,
    settings: Settings,
    options: _Options,
    journal: SqliteJournal | None,
    report: VerifyReport,
    emit: Emit,
) -> None:
    # Only a plan needs these, and they take a while to import.
    from asyncpush.migrate.plan.load import read_plan
    from asyncpush.migrate.plan.model import overridden
    from asyncpush.migrate.verify import verify_plan

    plan = await read_plan(path)
    hosts = [entry.host for entry in plan.entries if entry.host]
    ready = overridden(plan, make_aws(aws), make_source_registries(source, hosts))
    await verify_plan(
        ready,
        settings=settings,
        emit=emit,
        deep=options.deep,
        repository_settings=options.repository_settings,
        journal=journal,
        proved_within=options.proved_within,
        watcher=report,
    )


async def _verify(
    targets: Sequence[VerificationTarget],
    aws: AwsConfiguration,
    options: _Options,
    journal: SqliteJournal | None,
    report: VerifyReport,
    emit: Emit,
) -> None:
    """Verify all *targets*, one registry after the other; a registry that fails does not stop the others."""
    proofs = Proofs(journal, options.proved_within) if journal else None
    by_registry: defaultdict[RegistryName, list[VerificationTarget]] = defaultdict(list)
    for target in targets:
        by_registry[target.destination.registry].append(target)
    for name, wanted in by_registry.items():
        try:
            async with connect(name, aws=aws, emit=emit) as registry:
                await verify_all(registry, wanted, deep=options.deep, watcher=report, proofs=proofs)
        except JournalError:
            raise
        except AsyncpushError as error:
            for target in wanted:
                report.found(VerificationFailure(str(target), error), target)
