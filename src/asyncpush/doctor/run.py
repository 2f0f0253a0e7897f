"""All checks for one subject: the registries of a destination or plan, its sources, and this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio

from asyncpush.doctor.findings import CHECK_LIMIT, Section, run_checks
from asyncpush.doctor.machine import Host, host_checks, machine_checks
from asyncpush.doctor.permissions import Feature, Task
from asyncpush.doctor.policy import entries_at, features_of
from asyncpush.doctor.registry import RegistryReport, RegistrySubject, check_registry
from asyncpush.doctor.sources import SourceSubject, source_check
from asyncpush.migrate.plan.model import Plan, PlanEntry, PlanTarget
from asyncpush.migrate.plan.wildcards import has_placeholder
from asyncpush.reference import Destination, RegistryName
from asyncpush.settings import AwsConfiguration, SourceRegistry


@dataclass(frozen=True, slots=True)
class Subject:
    """What is checked.

    Attributes:
        registries: the registries of ECR.
        sources: the registries that images are read from.
        journal: where a journal will be; None without one.
    """

    registries: tuple[RegistrySubject, ...] = ()
    sources: tuple[SourceSubject, ...] = ()
    journal: Path | None = None

    @classmethod
    def of_registry(cls, task: Task, aws: AwsConfiguration, destination: Destination | None) -> Subject:
        """A destination; None for the caller's own registry."""
        if task == "serve":
            return cls()
        registry = destination.registry if destination else RegistryName()
        title = registry.host or "your own registry"
        if registry.service == "ecr-public":
            title = f"{registry.host}/{registry.id}"
        names = (destination.repository,) if destination else ()
        features: frozenset[Feature] = frozenset({"create"}) if task == "migrate" else frozenset()
        return cls(
            (
                RegistrySubject(
                    title=title, registry=registry, aws=aws, task=task, repositories=names, features=features
                ),
            )
        )

    @classmethod
    def of_plan(cls, plan: Plan, task: Task, journal: Path | None) -> Subject:
        """The registries of a plan: those that images go to, and those that they come from."""
        registries = tuple(_of_target(plan, target, task) for target in plan.targets)
        sources: dict[str, SourceSubject] = {}
        for entry in plan.entries:
            if entry.kind == "registry" and entry.host not in sources:
                sources[entry.host] = _of_source(entry, plan.source_registries)
        return cls(registries if task != "serve" else (), tuple(sources.values()), journal)


def _of_target(plan: Plan, target: PlanTarget, task: Task) -> RegistrySubject:
    entries = entries_at(plan, target)
    where = target.registry.host or "your own registry"
    if target.registry.service == "ecr-public":
        where += f"/{target.registry.id}"
    return RegistrySubject(
        title=where if target.name in (where, "own") else f"{target.name}: {where}",
        registry=target.registry,
        aws=target.aws,
        task=task,
        # Which names stand for a placeholder is known only once the sources have listed their repositories.
        repositories=tuple(name for name in entries if not has_placeholder(name)),
        creates=frozenset(name for name, entry in entries.items() if entry.create),
        features=features_of(entries.values()),
        transport=target.transport or "api",
    )


def _of_source(entry: PlanEntry, registries: Mapping[str, SourceRegistry]) -> SourceSubject:
    registry = registries.get(entry.host) or SourceRegistry(host=entry.host)
    names = (entry.reference, *entry.tags.names)
    return SourceSubject(registry, entry.repository, next(filter(None, names), None), entry.pattern)


async def examine(
    subject: Subject, *, limit: float = CHECK_LIMIT, credentials_limit: float = CHECK_LIMIT
) -> list[Section]:
    """Run all checks of *subject* at once; nothing that they do changes a registry.

    Args:
        subject: what to check.
        limit: seconds that each check may take.
        credentials_limit: seconds that finding the credentials may take.
    """
    reports: dict[int, RegistryReport] = {}
    sections: dict[str, Section] = {}

    async def registry(position: int, each: RegistrySubject) -> None:
        reports[position] = await check_registry(each, limit, credentials_limit)

    async def others() -> None:
        sections["sources"] = Section(
            "Sources", tuple(await run_checks([source_check(each, limit) for each in subject.sources], limit))
        )

    async def machine() -> None:
        sections["machine"] = Section("This machine", tuple(await run_checks(machine_checks(subject.journal), limit)))

    async with anyio.create_task_group() as tg:
        for position, each in enumerate(subject.registries):
            tg.start_soon(registry, position, each)
        tg.start_soon(others)
        tg.start_soon(machine)
    found = [reports[position] for position in sorted(reports)]
    hosts: Sequence[Host | None] = [host for report in found for host in report.hosts]
    hosts = [*hosts, *(host for each in subject.sources for host in each.hosts())]
    allowed = Section("Hosts that a firewall must allow", tuple(await run_checks(host_checks(hosts), limit)))
    every = [*(report.section for report in found), sections["sources"], sections["machine"], allowed]
    return [section for section in every if section.findings]
