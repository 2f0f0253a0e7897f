"""``asyncpush report``: a page for browsers of a run, from its journal or from its result."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from anyio import to_thread
from cyclopts import Parameter

from asyncpush.cli.options import command
from asyncpush.cli.report import check_output
from asyncpush.cli.run import DONE
from asyncpush.cli.run import run as run_command
from asyncpush.migrate.report_page import write_report
from asyncpush.migrate.run_document import read_documents
from asyncpush.settings import AwsConfiguration

app = command(
    "report",
    usage="asyncpush report [OPTIONS] JOURNAL|RESULT.json --html FILE",
    epilogue="""
JOURNAL is the journal of a migration, a file or s3://BUCKET/KEY; a run may be
using it. RESULT.json is what asyncpush migrate or push printed with --output
json.

The page is one file that needs no network: a timeline of images and layers,
throughput and throttling, what sharing and mounting saved, failures by cause,
and a table to search and sort.

Examples
  asyncpush report plan.journal --html report.html
  asyncpush journal show --runs plan.journal
  asyncpush report plan.journal --run 12 --html last-week.html
""",
)


@app.default
def report(
    file: Annotated[str, Parameter(show=False)],
    /,
    *,
    html: Annotated[Path, Parameter(metavar="FILE")],
    run: Annotated[int | None, Parameter(metavar="N")] = None,
    region: str | None = None,
    profile: str | None = None,
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"])] = False,
) -> int:
    """Make a page for browsers of a migration's run.

    Args:
        file: The journal or result.
        html: The file to write the page to.
        run: The number of the run in the journal. By default, its last run.
        region: The region of S3.
        profile: The profile of the AWS configuration to use.
        verbose: Print the traceback of an error.
    """

    async def main() -> int:
        await to_thread.run_sync(check_output, html, "--html")
        from asyncpush.journal.remote import at_hand

        async with at_hand(file, AwsConfiguration(profile=profile, region=region)) as path:
            documents = await to_thread.run_sync(read_documents, path, run)
        await to_thread.run_sync(write_report, html, documents)
        return DONE

    return run_command(main, verbose=verbose)
