"""``asyncpush plan``: check and show a plan, import one, run it as an array job, print the schema."""

from __future__ import annotations

import os
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Annotated

from anyio import to_thread
from cyclopts import Parameter

from asyncpush.cli.options import (
    AwsOptions,
    OutputFormat,
    SourceOptions,
    command,
    make_aws,
    make_source_registries,
)
from asyncpush.cli.run import DONE, run
from asyncpush.cli.streams import STANDARD_INPUT, say, say_notice, write_document, write_lines
from asyncpush.events import ignore
from asyncpush.migrate.array_jobs import ArrayJob, Engine, array_job, batch_script, kubernetes_yaml
from asyncpush.migrate.plan.load import name_of, parse_plan, read_plan, read_text
from asyncpush.migrate.plan.model import Plan, overridden
from asyncpush.migrate.plan_import import Format
from asyncpush.reference import S3_SCHEME
from asyncpush.units import count_text

app = command(
    "plan",
    usage="asyncpush plan check|show|import|batch|schema",
    epilogue="""
Examples
  asyncpush plan check plan.yaml
  asyncpush plan show plan.yaml
  asyncpush plan import sync.yaml --to mirror > plan.yaml
  asyncpush plan batch plan.yaml --shards 64 > batch.sh
  asyncpush plan schema > plan.schema.json
""",
)


@app.command(usage="asyncpush plan check [--env] FILE", help_epilogue="")
def check(
    file: Annotated[Path, Parameter(show=False)],
    /,
    *,
    env: bool = False,
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"])] = False,
) -> int:
    """Check a plan or a list without using the network, and summarize it.

    Environment variables that are not set are warnings, since where a plan is
    checked need not be where its secrets are.

    Args:
        file: The plan, in YAML or JSON, or a list with SOURCE DESTINATION on each line; - is standard input.
        env: Fail if an environment variable is not set.
        verbose: Print the traceback of an error.
    """

    async def main() -> int:
        unset: list[str] | None = None if env else []
        plan = await read_plan(_written(file), unset=unset)
        for line in unset or ():
            say(f"asyncpush: warning: {line}")
        for notice in plan.notices:
            say(f"asyncpush: note: {notice}")
        write_lines(_summary(plan))
        return DONE

    return run(main, verbose=verbose)


@app.command(usage="asyncpush plan show [OPTIONS] FILE", help_epilogue="")
def show(
    file: Annotated[Path, Parameter(show=False)],
    /,
    *,
    aws: AwsOptions | None = None,
    source: SourceOptions | None = None,
    output: Annotated[OutputFormat, Parameter(show_default=True)] = "text",
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"])] = False,
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"])] = False,
) -> int:
    """Look up the patterns and tags of a plan, and print every image with its destination.

    The output is a list that asyncpush migrate takes, with SOURCE DESTINATION on
    each line. Comments tell which tags and repositories are left out, and why.

    Args:
        file: The plan or list; - is standard input.
        output: Format of the result on standard output: lines, or one JSON document.
        quiet: Print only the result and errors.
        verbose: Print the traceback of an error.
    """

    async def main() -> int:
        # Only this command connects to registries.
        from asyncpush.cli.plan_show import print_resolution
        from asyncpush.migrate.resolution import resolve_plan

        plan = await read_plan(_written(file))
        for notice in () if quiet else plan.notices:
            say(f"asyncpush: note: {notice}")
        hosts = [entry.host for entry in plan.entries if entry.host]
        ready = overridden(plan, make_aws(aws), make_source_registries(source, hosts))
        resolution = await resolve_plan(ready, emit=ignore if quiet else say_notice)
        return print_resolution(resolution, output)

    return run(main, verbose=verbose)


@app.command(name="import", usage="asyncpush plan import [OPTIONS] FILE", help_epilogue="")
def import_(
    file: Annotated[Path, Parameter(show=False)],
    /,
    *,
    form: Annotated[Format | None, Parameter(name="--format")] = None,
    to: str | None = None,
    scoped: bool = False,
    auth: Path | None = None,
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"])] = False,
) -> int:
    """Convert another tool's configuration to a plan, and print it.

    Whatever can't be converted is reported, and noted in the plan as a comment.
    So are the environment variables that replace passwords.

    Args:
        file: The configuration; - is standard input.
        form: The tool that it is for. By default, it is detected from the content.
        to: Send all images to this REGISTRY[/PREFIX]. By default, they go where the configuration says.
        scoped: skopeo only: name repositories after the source's full path, as skopeo sync --scoped does.
        auth: image-syncer only: its credentials file.
        verbose: Print the traceback of an error.
    """

    async def main() -> int:
        from asyncpush.migrate.plan_import import import_plan
        from asyncpush.reference import parse_prefix

        prefix = parse_prefix(to) if to is not None else None
        written = _written(file)
        text = await read_text(written)
        logins = await read_text(auth) if auth else None
        label = name_of(None if written == "-" else Path(written))
        make = partial(import_plan, text, label, form=form, to=prefix, scoped=scoped, auth=logins)
        imported = await to_thread.run_sync(make)
        for note in imported.notes:
            say(f"note: {note}")
        write_lines(imported.text.removesuffix("\n").split("\n"))
        return DONE

    return run(main, verbose=verbose)


@app.command(usage="asyncpush plan schema", help_epilogue="")
def schema() -> int:
    """Print the JSON Schema of plans, for editors and programs."""
    from asyncpush.migrate.plan.document import plan_schema

    write_document(plan_schema())
    return DONE


@app.command(usage="asyncpush plan batch [OPTIONS] PLAN --shards N", help_epilogue="")
def batch(
    file: Annotated[Path, Parameter(show=False)],
    /,
    *,
    shards: int,
    engine: Engine = "batch",
    at_once: int | None = None,
    journals: Annotated[str | None, Parameter(metavar="s3://BUCKET/PREFIX")] = None,
    image: str | None = None,
    name: str | None = None,
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"])] = False,
) -> int:
    """Print what runs a plan as an array job: for AWS Batch a script, for Kubernetes one YAML.

    The script has the recipe of the image, the least IAM policy, the job definition and the command that submits it.

    Args:
        file: The plan; - is standard input.
        shards: How many shards to divide the plan into.
        engine: The engine: AWS Batch, or a Kubernetes Indexed Job.
        at_once: How many shards run at once; each gets that part of ECR's quotas. By default, all.
        journals: Where the journals of the shards are.
        image: The container image. By default, one in your own registry.
        name: The name of the job and its role. By default, the plan's.
        verbose: Print the traceback of an error.
    """

    async def main() -> int:
        written = _written(file)
        text = await read_text(written)

        def make() -> str:
            plan = parse_plan(text, None if written == "-" else file, os.environ)
            job = array_job(
                plan, text, engine, shards=shards, at_once=at_once, journals=journals, image=image, name=name
            )
            return _script(job) if engine == "batch" else kubernetes_yaml(job)

        printed = await to_thread.run_sync(make)
        write_lines(printed.removesuffix("\n").split("\n"))
        return DONE

    return run(main, verbose=verbose)


def _script(job: ArrayJob) -> str:
    from asyncpush.doctor.policy import Unknown, policy_of  # checking a plan must not pay for its import

    in_ecr = policy_of(job.plan, ("migrate",), frozenset(), unknown=Unknown("ACCOUNT", "REGION"))
    return batch_script(job, in_ecr["Statement"])


def _written(file: Path) -> str:
    return "-" if str(file) == STANDARD_INPUT else str(file)


def _summary(plan: Plan) -> list[str]:
    sources = Counter(
        entry.host or ("S3" if entry.location.startswith(S3_SCHEME) else "this machine") for entry in plan.entries
    )
    targets = Counter(goal.target.name for entry in plan.entries for goal in entry.goals)
    by_name = sum(not entry.tags.needs_listing for entry in plan.entries)
    patterns = sum(entry.pattern is not None for entry in plan.entries)
    head = f"{name_of(plan.path)}: {count_text(len(plan.entries), 'entry', 'entries')}, {by_name} of them by name"
    lines = [f"{head}, {patterns} for a pattern of repositories" if patterns else head]
    lines += [f"  from {host}: {count_text(number, 'entry', 'entries')}" for host, number in sorted(sources.items())]
    for target in plan.targets:
        if target.name in targets:
            where = target.registry.host or "your own registry"
            where += f"/{target.registry.id}" if target.registry.service == "ecr-public" else ""
            where += f"/{target.prefix}" if target.prefix else ""
            lines.append(f"  to {target.name} ({where}): {count_text(targets[target.name], 'entry', 'entries')}")
    return lines
