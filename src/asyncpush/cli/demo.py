"""``asyncpush demo``: push and verify, end to end, with nothing to set up."""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractAsyncContextManager
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from asyncpush.cli.options import command
from asyncpush.cli.run import DONE, run
from asyncpush.cli.streams import say, write_as_it_is
from asyncpush.demo.run import DemoReport, demonstrate
from asyncpush.emulator.process import isolate
from asyncpush.events import Emit
from asyncpush.progress import ProgressKind, progress
from asyncpush.units import count_text

MiB = 1024 * 1024

app = command(
    "demo",
    usage="asyncpush demo",
    epilogue="""
The demonstration creates images in a temporary directory, starts the emulator
on a free port, pushes the images twice, reads them back, verifies every digest,
and cleans up. It needs no AWS account and no configuration.
""",
)


@app.default
def demo(
    *,
    progress_: Annotated[ProgressKind, Parameter(name="--progress")] = "auto",
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"])] = False,
) -> int:
    """Push sample images into the emulator, push them again, and verify them.

    Args:
        progress_: Format of the progress on standard error. auto shows bars on a terminal and lines elsewhere.
        verbose: Print the traceback of an error.
    """
    isolate()

    def display(images: int) -> AbstractAsyncContextManager[Emit]:
        return progress(progress_, images=images)

    async def main() -> int:
        _show(await demonstrate(display, say))
        return DONE

    return run(main, verbose=verbose)


def _show(report: DemoReport) -> None:
    table = Table(title=None, box=None, pad_edge=False, header_style="bold", collapse_padding=True)
    for heading in ("image", "digest", "first push", "second push", "read back"):
        table.add_column(heading, no_wrap=heading != "image", overflow="fold")
    for image in report.images:
        first, second = image.first, image.second
        sent = f"{count_text(first.layers_sent, 'blob')}, {first.bytes_sent / MiB:.1f} MiB"
        again = "already there" if second.outcome == "present" else f"{second.bytes_sent / MiB:.1f} MiB"
        verified = f"{image.verification.manifests + image.verification.blobs} digests ok"
        table.add_row(image.name, first.digest.short if first.digest else "", sent, again, verified)
    size = sum(image.first.bytes_sent for image in report.images)
    resent = sum(image.second.bytes_sent for image in report.images)
    console = Console(highlight=False)
    with console.capture() as captured:
        console.print()
        console.print(table)
        console.print(
            f"\nFirst push: {size / MiB:.1f} MiB in {report.first_seconds:.1f} s, {_count(report.first_requests)}.\n"
            f"Second push: {resent} bytes in {report.second_seconds:.1f} s, {_count(report.second_requests)}.\n"
            "ECR stores layers by repository: into each repository, a layer was sent once, even if images share it."
        )
    write_as_it_is(captured.get())


def _count(requests: Counter[str]) -> str:
    named = ", ".join(f"{count} {name}" for name, count in sorted(requests.items()))
    return f"{count_text(requests.total(), 'request')} ({named})"
