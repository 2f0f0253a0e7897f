"""``asyncpush verify``: whether images in ECR are complete."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from anyio import to_thread
from cyclopts import Parameter

from asyncpush.api import connect
from asyncpush.cli.options import (
    AwsOptions,
    LayerOptions,
    OutputFormat,
    OutputOptions,
    SourceOptions,
    command,
    make_aws,
    make_settings,
    make_source_registries,
    without_endpoint,
)
from asyncpush.cli.report import Json, error_document, print_document
from asyncpush.cli.run import FAILED, run, say_failures, status_of
from asyncpush.cli.streams import say, write_lines
from asyncpush.errors import AsyncpushError, UsageError
from asyncpush.events import Emit
from asyncpush.progress import progress
from asyncpush.reference import RegistryName
from asyncpush.settings import AwsConfiguration, Compression, Settings
from asyncpush.verify import Problem, Verification, VerificationFailure, VerificationTarget, parse_target, verify_all

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
sources have them now.

Examples
  asyncpush verify team/app:1.4
  asyncpush verify plan.yaml
  asyncpush verify plan.yaml --deep
""",
)


@app.default
def verify(
    *destinations: Annotated[str, Parameter(show=False)],
    deep: bool = False,
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
        available_platforms: Set this if the plan was migrated with --available-platforms.
        compression: Set this to the --compression that the plan was migrated with.
    """
    show = show or OutputOptions()
    settings = make_settings(None, LayerOptions(available_platforms=available_platforms, compression=compression))

    async def main() -> int:
        if not destinations:
            raise UsageError("no image was given", hint="write asyncpush verify DESTINATION...")
        plan = await to_thread.run_sync(_plan_among, destinations)
        if available_platforms and not plan:
            raise UsageError("--available-platforms applies only to a plan")
        if compression != "gzip" and not plan:
            raise UsageError("--compression applies only to a plan")
        targets = [] if plan else [parse_target(without_endpoint(destination, aws)) for destination in destinations]
        async with progress(show.display) as emit:
            if plan:
                results = await _verify_plan(plan, aws, source, settings, emit, deep=deep)
            else:
                results = await _verify(targets, make_aws(aws), emit, deep=deep)
        return _conclude(results, show)

    return run(main, verbose=show.verbose)


def _plan_among(words: Sequence[str]) -> str | None:
    """The one of *words* that is a file, if there is one; it must be alone."""
    plan = next((word for word in words if Path(word).is_file()), None)
    if plan is not None and len(words) > 1:
        raise UsageError(f"{plan} is a file, but not the only argument", hint="verify a plan alone")
    return plan


async def _verify_plan(
    path: str, aws: AwsOptions | None, source: SourceOptions | None, settings: Settings, emit: Emit, *, deep: bool
) -> list[Verification | VerificationFailure]:
    # Only a plan needs these, and they take a while to import.
    from asyncpush.migrate.plan.load import read_plan
    from asyncpush.migrate.plan.model import overridden
    from asyncpush.migrate.verify import verify_plan

    plan = await read_plan(path)
    hosts = [entry.host for entry in plan.entries if entry.host]
    ready = overridden(plan, make_aws(aws), make_source_registries(source, hosts))
    return await verify_plan(ready, settings=settings, emit=emit, deep=deep)


async def _verify(
    targets: Sequence[VerificationTarget], aws: AwsConfiguration, emit: Emit, *, deep: bool
) -> list[Verification | VerificationFailure]:
    """Verify all *targets*, one registry after the other; a registry that fails does not stop the others."""
    by_registry: dict[RegistryName, dict[int, VerificationTarget]] = {}
    for position, target in enumerate(targets):
        by_registry.setdefault(target.destination.registry, {})[position] = target
    outcomes: dict[int, Verification | VerificationFailure] = {}
    for name, wanted in by_registry.items():
        try:
            async with connect(name, aws=aws, emit=emit) as registry:
                results = await verify_all(registry, list(wanted.values()), deep=deep)
        except AsyncpushError as error:
            results = [VerificationFailure(str(target), error) for target in wanted.values()]
        outcomes.update(zip(wanted, results, strict=True))
    return [outcomes[position] for position in range(len(targets))]


def _advice(damaged: Sequence[Problem]) -> str:
    """What to do about damage; a push leaves an image and a layer alone that is there."""
    if any(problem.stays for problem in damaged):
        return (
            "ECR keeps a layer beyond its image, and takes it only once: push from a good source into another"
            " repository, or into this one once it is deleted (aws ecr delete-repository --force) and made again"
        )
    return "delete the image in ECR, and push it again from a good source"


def _conclude(results: Sequence[Verification | VerificationFailure], show: OutputOptions) -> int:
    errors = [result.error for result in results if isinstance(result, VerificationFailure)]
    if errors and len(errors) == len(results) and all(isinstance(error, UsageError) for error in errors):
        raise errors[0]
    _print_verifications(results, show.output)
    failed = [(result.error, result.destination) for result in results if isinstance(result, VerificationFailure)]
    told = [(error, name, name) for error, name in failed]
    say_failures(told, len(results), undone="verified", each=show.verbose)
    for result in results:
        if isinstance(result, VerificationFailure):
            continue
        for problem in result.problems:
            say(f"asyncpush: error: {result.destination}: {problem}")
        damaged = [problem for problem in result.problems if problem.kind == "damaged"]
        if damaged:
            say(f"asyncpush: note: {result.destination}: {_advice(damaged)}")
        for note in result.notes:
            say(f"asyncpush: note: {result.destination}: {note}")
    if all(result.is_whole for result in results if isinstance(result, Verification)):
        return status_of(errors)
    return FAILED


def _print_verifications(results: Sequence[Verification | VerificationFailure], output: OutputFormat) -> None:
    """Print verifications: ``DESTINATION@DIGEST  whole: ...`` a line for each whole image; or everything as JSON."""
    looked_at = [result for result in results if isinstance(result, Verification)]
    whole = [result for result in looked_at if result.is_whole]
    if output == "json":
        print_document(
            {
                "images": [_document(result) for result in results],
                "totals": {
                    "images": len(results),
                    "whole": len(whole),
                    "broken": len(looked_at) - len(whole),
                    "failed": len(results) - len(looked_at),
                },
            }
        )
        return
    write_lines(map(_line, whole))


def _line(result: Verification) -> str:
    counts = f"{_plural(result.manifests, 'manifest')}, {_plural(result.blobs, 'blob')}, {result.size} bytes"
    return f"{result.destination}@{result.digest}  whole: {counts}"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _document(result: Verification | VerificationFailure) -> Json:
    if isinstance(result, VerificationFailure):
        return {"destination": result.destination, "outcome": "failed", "error": error_document(result.error)}
    problems = [
        {
            "kind": problem.kind,
            "subject": problem.subject,
            "digest": str(problem.digest) if problem.digest else None,
            "message": str(problem),
        }
        for problem in result.problems
    ]
    return {
        "destination": result.destination,
        "outcome": "whole" if result.is_whole else "broken",
        "digest": str(result.digest) if result.digest else None,
        "deep": result.deep,
        "manifests": result.manifests,
        "blobs": result.blobs,
        "bytes": result.size,
        "problems": problems,
        "notes": list(result.notes),
    }
