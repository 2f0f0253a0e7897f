"""``asyncpush bench``: how fast pushes into an endpoint are, and which limits suit it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import anyio
from anyio import to_thread
from cyclopts import Group, Parameter

from asyncpush.api import connect
from asyncpush.bench.plot import check_plot, draw
from asyncpush.bench.report import document, table
from asyncpush.bench.sweep import Outcome, Sweep
from asyncpush.bench.target import BenchEndpoint, BenchTarget, local_target
from asyncpush.bench.trials import TrialPlan, make_plan
from asyncpush.cli.options import AwsOptions, LimitOptions, OutputOptions, command, make_aws
from asyncpush.cli.run import DONE, FAILED, run, say_error
from asyncpush.cli.streams import say, write_as_it_is, write_document
from asyncpush.emulator.process import isolate
from asyncpush.errors import AsyncpushError, UsageError
from asyncpush.progress import progress
from asyncpush.redaction import without_secrets
from asyncpush.reference import RegistryName, parse_registry
from asyncpush.units import count_text, parse_size

T = TypeVar("T")

_SWEEP = Group("Sweep", sort_key=0)
_LIST = "N,..."
_SIZES = "SIZE,..."

#: Where the AWS configuration's environment names an endpoint.
_ENDPOINTS = ("AWS_ENDPOINT_URL_ECR", "AWS_ENDPOINT_URL_ECR_PUBLIC", "AWS_ENDPOINT_URL")

app = command(
    "bench",
    usage="asyncpush bench [OPTIONS] [REGISTRY]",
    epilogue="""
The benchmark pushes layers of random bytes into temporary repositories, whose
names begin with asyncpush-bench-. It measures each combination of the values in
lists. REGISTRY is ACCOUNT.dkr.ecr.REGION.amazonaws.com or public.ecr.aws/ALIAS;
with --region, --profile or an endpoint, it is your own registry. Without any of
these, the benchmark measures the emulator, which then shares this machine.

Examples
  asyncpush bench --max-layers 4,16,64 --part-size 5MiB,10MiB,20MiB
  asyncpush bench --region eu-west-1 --max-layers 4,16 --plot ecr.png
""",
)


@Parameter(name="*")
@dataclass(frozen=True, slots=True, kw_only=True)
class SweepOptions:
    """What to push, and how often."""

    layers: Annotated[str, Parameter(group=_SWEEP, metavar=_LIST, show_default=True)] = "1,4,16"
    """Layers to push at once."""

    size: Annotated[str, Parameter(group=_SWEEP, metavar=_SIZES, show_default=True)] = "64MiB"
    """Size of a layer."""

    max_layers: Annotated[str, Parameter(group=_SWEEP, metavar=_LIST, show_default=True)] = str(
        LimitOptions().max_layers
    )
    """Upload at most this many layers at once."""

    part_size: Annotated[str | None, Parameter(group=_SWEEP, metavar=_SIZES)] = None
    """Size of a part, from 5MiB to 20MiB. By default, the size that the endpoint asks for."""

    max_memory: Annotated[str, Parameter(group=_SWEEP, metavar="SIZE", show_default=True)] = (
        f"{LimitOptions().max_memory >> 20}MiB"
    )
    """Memory for parts that are in flight or being prepared."""

    rounds: Annotated[int, Parameter(group=_SWEEP, show_default=True)] = 3
    """Measured pushes of each combination; the combinations take turns."""

    warm_up: Annotated[int, Parameter(group=_SWEEP, show_default=True)] = 1
    """Pushes of each combination before the measured ones."""

    @property
    def plan(self) -> TrialPlan:
        """What they ask for.

        Raises:
            UsageError: one of them is out of range, or no list.
        """
        return make_plan(
            layers=_listed("--layers", self.layers, _count),
            sizes=_listed("--size", self.size, parse_size),
            max_layers=_listed("--max-layers", self.max_layers, _count),
            part_sizes=[None] if self.part_size is None else _listed("--part-size", self.part_size, parse_size),
            warm_up=self.warm_up,
            rounds=self.rounds,
            max_memory=parse_size(self.max_memory),
        )


@app.default
def bench(
    registry: Annotated[str | None, Parameter(show=False)] = None,
    /,
    *,
    plot: Annotated[Path | None, Parameter(metavar="FILE.png")] = None,
    yes: bool = False,
    sweep: SweepOptions | None = None,
    aws: AwsOptions | None = None,
    show: OutputOptions | None = None,
) -> int:
    """Measure pushes with different numbers of layers, sizes and limits.

    Args:
        registry: The registry to push to.
        plot: Plot the result (needs matplotlib).
        yes: Write to an AWS account without asking for confirmation.
    """
    show = show or OutputOptions()

    async def main() -> int:
        plan = (sweep or SweepOptions()).plan
        name = parse_registry(registry) if registry else RegistryName()
        if plot:
            await to_thread.run_sync(check_plot, plot)
        async with AsyncExitStack() as stack:
            if registry or _names_endpoint(aws):
                target = BenchTarget(name, make_aws(aws))
            else:
                isolate()
                target = await stack.enter_async_context(local_target())
            home = await stack.enter_async_context(connect(target.registry, aws=target.aws))
            await _agree(plan, BenchEndpoint.of(target, home), yes=yes, quiet=show.quiet)
            emit = await stack.enter_async_context(progress(show.display))
            outcome = await Sweep(plan, target, home, emit=emit, say=say).run()
        return await _conclude(outcome, plot, show)

    return run(main, verbose=show.verbose)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise UsageError(f"{text!r} is not a number", hint="write 1,4,16")
    return int(text)


def _listed(option: str, text: str, parse: Callable[[str], T]) -> list[T]:
    try:
        return [parse(word.strip()) for word in text.split(",")]
    except UsageError as error:
        raise UsageError(f"{option}: {error.message}", hint=error.hint) from error


def _names_endpoint(aws: AwsOptions | None) -> bool:
    """Whether an option or a variable names an endpoint, so that the emulator is not meant."""
    return aws not in (None, AwsOptions()) or any(os.environ.get(name) for name in _ENDPOINTS)


async def _agree(plan: TrialPlan, endpoint: BenchEndpoint, *, yes: bool, quiet: bool) -> None:
    """Say what will be sent, and ask for confirmation if it goes to an AWS account.

    Raises:
        UsageError: there is no terminal to ask on, or the answer is no.
    """
    pushes = (plan.warm_up + plan.rounds) * len(plan.combinations)
    whole = (
        f"{count_text(pushes, 'push', 'pushes')}, {plan.total / 2**30:.2f} GiB of layers in all "
        f"({plan.total * 4 / 3 / 2**30:.2f} GiB over the wire), to {endpoint}"
    )
    if not endpoint.is_aws or yes:
        if not quiet:
            say(f"asyncpush: {whole}")
        return
    if sys.stdin is None or not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(f"this would send {whole}", hint="there is no terminal to confirm on: add --yes")
    say(
        f"asyncpush: {whole}.\nEach push goes to a temporary repository, which is deleted afterwards.\n"
        "AWS does not charge for incoming data and hardly anything for minutes of storage; "
        "a NAT gateway on the way does cost."
    )
    sys.stderr.write("Continue? [y/N] ")
    sys.stderr.flush()
    # A thread that waits for a line could not be ended by Ctrl-C; once there is one, reading it takes no time.
    await anyio.wait_readable(sys.stdin)
    answer = await to_thread.run_sync(sys.stdin.readline)
    if answer.strip().lower() not in ("y", "yes"):
        raise UsageError("nothing was sent", hint="answer y, or add --yes")


async def _conclude(outcome: Outcome, plot: Path | None, show: OutputOptions) -> int:
    if show.output == "json":
        write_document(await to_thread.run_sync(document, outcome))
    else:
        write_as_it_is(without_secrets(await to_thread.run_sync(table, outcome)))
    if plot:
        await to_thread.run_sync(draw, plot, outcome)
    if outcome.failure:
        say_error(AsyncpushError(outcome.failure))
    return FAILED if outcome.failure else DONE
