"""``asyncpush verify``: whether images are whole in ECR."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter

from asyncpush.api import connect
from asyncpush.cli.options import AwsOptions, OutputOptions, command, make_aws
from asyncpush.cli.report import print_verifications
from asyncpush.cli.run import DONE, FAILED, run, say_error
from asyncpush.cli.streams import say
from asyncpush.errors import AsyncpushError, UsageError
from asyncpush.events import Emit
from asyncpush.progress import progress
from asyncpush.reference import RegistryName
from asyncpush.settings import AwsConfiguration
from asyncpush.verify import Target, Verification, VerificationFailure, parse_target, verify_all

app = command(
    "verify",
    usage="asyncpush verify [OPTIONS] DESTINATION...",
    epilogue="""
DESTINATION is one of
  ACCOUNT.dkr.ecr.REGION.amazonaws.com/REPOSITORY[:TAG][@DIGEST]
  REPOSITORY[:TAG][@DIGEST]  in your own registry
Without a TAG or a DIGEST the tag is latest; with both, the tag must name that digest.
ECR Public's API gives no manifests, so that its images can't be verified.

Examples
  asyncpush verify team/app:1.4
  asyncpush verify --deep 123456789012.dkr.ecr.eu-west-1.amazonaws.com/team/app:1.4
""",
)


@app.default
def verify(
    *destinations: Annotated[str, Parameter(show=False)],
    deep: bool = False,
    aws: AwsOptions | None = None,
    show: OutputOptions | None = None,
) -> int:
    """Prove that images are whole in ECR: each manifest has its digest, and each blob is there, with its size.

    Args:
        destinations: The images.
        deep: Read all blobs, too, and compare their digests.
    """
    show = show or OutputOptions()

    async def main() -> int:
        if not destinations:
            raise UsageError("there is nothing to verify", hint="asyncpush verify DESTINATION...")
        targets = [parse_target(destination) for destination in destinations]
        async with progress(show.face) as emit:
            results = await _verify(targets, make_aws(aws), emit, deep=deep)
        return _conclude(results, show)

    return run(main, verbose=show.verbose)


async def _verify(
    targets: Sequence[Target], aws: AwsConfiguration, emit: Emit, *, deep: bool
) -> list[Verification | VerificationFailure]:
    """Verify all *targets*, one registry after the other; a registry that fails does not stop the others."""
    by_registry: dict[RegistryName, dict[int, Target]] = {}
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


def _conclude(results: Sequence[Verification | VerificationFailure], show: OutputOptions) -> int:
    failures = [result for result in results if isinstance(result, VerificationFailure)]
    if len(failures) == len(results) and all(isinstance(failure.error, UsageError) for failure in failures):
        raise failures[0].error
    print_verifications(results, show.output)
    for result in results:
        if isinstance(result, VerificationFailure):
            say_error(result.error, about=result.destination)
            continue
        for problem in result.problems:
            say(f"asyncpush: error: {result.destination}: {problem}")
    whole = all(isinstance(result, Verification) and result.is_whole for result in results)
    return DONE if whole else FAILED
