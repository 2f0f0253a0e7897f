"""``asyncpush doctor``: check what a push, a migration or a verification needs, and say what to do."""

from __future__ import annotations

import sys
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from shutil import get_terminal_size
from typing import Annotated, get_args

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
from asyncpush.cli.report import print_document
from asyncpush.cli.run import DONE, FAILED, run
from asyncpush.cli.streams import STANDARD_INPUT, say, write_document, write_lines
from asyncpush.doctor.findings import CHECK_LIMIT, Finding, Section, Status
from asyncpush.doctor.permissions import Feature, Task
from asyncpush.doctor.policy import AWS_TASKS, Scope, make_policy, policy_of
from asyncpush.doctor.run import Subject, examine
from asyncpush.errors import UsageError
from asyncpush.migrate.plan.load import read_plan
from asyncpush.migrate.plan.model import Plan, overridden
from asyncpush.redaction import shown_line
from asyncpush.reference import Destination, parse_destination
from asyncpush.settings import AwsConfiguration, TransportChoice

#: Seconds for the credentials where somebody may type an MFA code at the terminal.
_PATIENCE = 300.0

#: The columns of a status, with the space behind it; the narrowest and the widest text.
_INDENT, _NARROWEST, _WIDEST = 9, 40, 120

_STATUSES: tuple[Status, ...] = get_args(Status)

#: Names of files that are plans, even if they do not exist.
_PLAN_SUFFIXES = frozenset({".yaml", ".yml", ".json", ".txt"})

app = command(
    "doctor",
    usage="asyncpush doctor [OPTIONS] [DESTINATION|PLAN]",
    epilogue="""
DESTINATION is what asyncpush push takes, PLAN is the file of a migration.
Without either, the command checks your own registry and this machine.

Nothing that it does changes a registry. A line for each check says
  ok       it works
  note     it works, with a restriction
  unknown  no harmless call tells
  problem  the task fails; what to do is said
The exit status is 1 if there is a problem.

Examples
  asyncpush doctor
  asyncpush doctor 123456789012.dkr.ecr.eu-west-1.amazonaws.com/team/app
  asyncpush doctor plan.yaml --output json
  asyncpush doctor team/app --policy --for push
""",
)


@app.default
def doctor(
    subject: Annotated[str | None, Parameter(show=False)] = None,
    /,
    *,
    task: Annotated[Task | None, Parameter(name="--for")] = None,
    policy: bool = False,
    create_repository: bool = False,
    transport: TransportChoice | None = None,
    journal: Path | None = None,
    output: OutputFormat = "text",
    verbose: Annotated[bool, Parameter(name=["--verbose", "-v"])] = False,
    aws: AwsOptions | None = None,
    source: SourceOptions | None = None,
) -> int:
    """Check credentials, permissions, network and this machine, and say what to do about each problem.

    Args:
        subject: The destination or plan.
        task: What to check for: by default, migrate with a PLAN, and push otherwise.
        policy: Print the least IAM policy instead, without using the network; without --for, that of all tasks.
        create_repository: Missing repositories will be created, as with the same option of the task.
        transport: The transport of the push.
        journal: The journal of the migration. By default, PLAN.journal beside the plan.
        output: Format of the result: lines, or one JSON document.
        verbose: Print the traceback of an error.
    """

    async def main() -> int:
        path = "-" if subject == STANDARD_INPUT else subject
        overrides = make_aws(aws)
        plan = await _read_plan(path, overrides, source, create_repository=create_repository)
        destination = parse_destination(path) if path is not None and plan is None else None
        if policy:
            await to_thread.run_sync(_print_policy, plan, destination, task, overrides, create_repository)
            return DONE
        examined = _subject_of(plan, destination, task, overrides, journal, create_repository=create_repository)
        if transport is not None:
            registries = tuple(replace(each, transport=transport) for each in examined.registries)
            examined = replace(examined, registries=registries)
        patience = _PATIENCE if sys.stderr.isatty() else CHECK_LIMIT
        sections = await examine(examined, credentials_limit=patience)
        counts = Counter(finding.status for section in sections for finding in section.findings)
        if output == "json":
            _print_json(sections, counts)
        else:
            _print_text(sections, counts)
        return FAILED if counts["problem"] else DONE

    return run(main, verbose=verbose)


async def _read_plan(
    path: str | None, aws: AwsConfiguration, source: SourceOptions | None, *, create_repository: bool
) -> Plan | None:
    """The plan at *path*; None if that is a destination."""
    if path is None or (path != "-" and not await to_thread.run_sync(Path(path).is_file)):
        if path is not None and Path(path).suffix in _PLAN_SUFFIXES:
            raise UsageError(f"{path} is not a file", hint="name a plan, or a destination without such an ending")
        return None
    plan = await read_plan(path)
    for notice in plan.notices:
        say(f"asyncpush: note: {notice}")
    hosts = [entry.host for entry in plan.entries if entry.host]
    return overridden(plan, aws, make_source_registries(source, hosts), create_repository=create_repository)


def _subject_of(
    plan: Plan | None,
    destination: Destination | None,
    task: Task | None,
    aws: AwsConfiguration,
    journal: Path | None,
    *,
    create_repository: bool,
) -> Subject:
    if plan is not None:
        beside = plan.path.with_suffix(".journal") if plan.path else Path("asyncpush.journal")
        return Subject.of_plan(plan, task or "migrate", journal or beside)
    subject = replace(Subject.of_registry(task or "push", aws, destination), journal=journal)
    if not create_repository:
        return subject
    return replace(
        subject,
        registries=tuple(replace(each, creates=frozenset(each.repositories)) for each in subject.registries),
    )


def _print_policy(
    plan: Plan | None, destination: Destination | None, task: Task | None, aws: AwsConfiguration, creates: bool
) -> None:
    """Print the policy; blocks while botocore's list of regions is read."""
    if task == "serve":
        say("asyncpush: note: serve needs no permissions: it never calls AWS")
        return
    features: frozenset[Feature] = frozenset({"create"}) if creates or not plan else frozenset()
    tasks = (task,) if task else AWS_TASKS
    if plan:
        write_document(policy_of(plan, tasks, features))
        return
    scope = Scope(region=aws.region)
    if destination:
        scope = Scope(destination.registry, aws.region, frozenset({destination.repository}))
    write_document(make_policy([scope], tasks, features))


def _print_json(sections: Sequence[Section], counts: Counter[Status]) -> None:
    print_document(
        {
            "sections": [
                {
                    "title": section.title,
                    "checks": [
                        {
                            "name": finding.name,
                            "status": finding.status,
                            "message": finding.text,
                            "hint": finding.advice,
                        }
                        for finding in section.findings
                    ],
                }
                for section in sections
            ],
            "totals": {status: counts[status] for status in _STATUSES},
        }
    )


def _print_text(sections: Sequence[Section], counts: Counter[Status]) -> None:
    width = min(max(get_terminal_size().columns, _NARROWEST), _WIDEST) if sys.stdout.isatty() else None
    lines: list[str] = []
    for section in sections:
        lines += [*([""] if lines else []), section.title]
        for finding in section.findings:
            first, *more = _lines_of(finding, width)
            lines += [f"{finding.status:<{_INDENT}}{first}", *(f"{'':{_INDENT}}{line}" for line in more)]
    write_lines(lines)
    total = ", ".join(f"{counts[status]} {status}" for status in _STATUSES if counts[status])
    say(f"asyncpush: {total}")


def _lines_of(finding: Finding, width: int | None) -> Iterator[str]:
    """The text of a finding: in one line for programs, in lines of *width* columns on a terminal."""
    text = shown_line(f"{finding.name}: {finding.text}")
    advice = shown_line(finding.advice) if finding.advice else ""
    if width is None:
        yield f"{text}; {advice}" if advice else text
        return
    yield from textwrap.wrap(text, width - _INDENT, break_long_words=False, break_on_hyphens=False)
    if advice:
        yield from textwrap.wrap(
            f"-> {advice}", width - _INDENT, subsequent_indent="   ", break_long_words=False, break_on_hyphens=False
        )
