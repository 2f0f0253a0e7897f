"""``asyncpush layers``: raw files into ECR as layers, many at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from asyncpush.api import connect, push_layers
from asyncpush.cli.options import AwsOptions, LimitOptions, OutputOptions, command, make_aws, make_settings
from asyncpush.cli.report import print_layers
from asyncpush.cli.run import DONE, FAILED, run, say_error, say_lost
from asyncpush.errors import CREDENTIALS_LOST, UsageError
from asyncpush.progress import progress
from asyncpush.reference import registry_of
from asyncpush.results import LayerFailure

layers_app = command(
    "layers",
    usage="asyncpush layers [OPTIONS] FILE... --repository-name NAME",
    epilogue="""
Example
  asyncpush layers base.tar.gz app.tar.gz --repository-name team/app
""",
)


@layers_app.default
def layers(
    *files: Annotated[Path, Parameter(show=False)],
    repository_name: str,
    registry_id: str | None = None,
    create_repository: bool = False,
    dry_run: bool = False,
    limits: LimitOptions | None = None,
    aws: AwsOptions | None = None,
    show: OutputOptions | None = None,
) -> int:
    """Push files as layers, as they are, and print their digests.

    Args:
        files: The layers, usually tar archives, compressed or not.
        repository_name: The repository that they go to.
        registry_id: The account whose registry it is; the caller's own by default.
        create_repository: Create the repository if it does not exist.
        dry_run: Say which are missing there, and send nothing.
    """
    show = show or OutputOptions()

    async def main() -> int:
        if not files:
            raise UsageError("there is nothing to push", hint="asyncpush layers FILE... --repository-name NAME")
        settings = make_settings(limits, create_repository=create_repository)
        async with (
            progress(show.face) as emit,
            connect(registry_of(registry_id), aws=make_aws(aws), settings=settings, emit=emit) as registry,
        ):
            results = await push_layers(registry, files, repository_name, dry=dry_run)
        print_layers(results, show.output)
        failures = [result for result in results if isinstance(result, LayerFailure)]
        for failure in failures:
            if not isinstance(failure.error, CREDENTIALS_LOST):
                say_error(failure.error, about=failure.file)
        say_lost([(failure.error, failure.file) for failure in failures], len(results))
        return FAILED if failures else DONE

    return run(main, verbose=show.verbose)
