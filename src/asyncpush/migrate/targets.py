"""The registries that a migration goes to: connected to, their repositories described, the missing ones created."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

import anyio
from anyio import CapacityLimiter

from asyncpush.api import open_registry
from asyncpush.connection import OpenRegistry
from asyncpush.errors import (
    AsyncpushError,
    RegistryError,
    RepositoryNotFoundError,
    ServiceError,
    UsageError,
    only_cause,
)
from asyncpush.events import Notice
from asyncpush.image import Run
from asyncpush.migrate.plan.model import Entry, Plan, Target
from asyncpush.model import Digest
from asyncpush.protocols import Repository
from asyncpush.reference import Destination

#: CreateRepository calls at once; ECR documents no rate for it.
_CREATED_AT_ONCE = 4

_DENIED = "AccessDeniedException"

#: ``there``; ``new``, because this run has created it; ``missing`` in a dry run, or because a creation template will
#: create it when it is pushed to.
State = Literal["there", "new", "missing"]


@dataclass(slots=True, eq=False)
class OpenTarget:
    """A registry that is connected to.

    Attributes:
        target: what the plan says of it.
        registry: the connection.
        states: its repositories that the plan names, by name.
        failures: those that can't be used, and why.
    """

    target: Target
    registry: OpenRegistry
    states: dict[str, State] = field(default_factory=dict)
    failures: dict[str, AsyncpushError] = field(default_factory=dict)
    _repositories: dict[str, Repository] = field(default_factory=dict)

    def repository(self, name: str) -> Repository:
        """The repository called *name*."""
        if name not in self._repositories:
            self._repositories[name] = self.registry.repository(name)
        return self._repositories[name]

    def destination(self, name: str, tag: str | None, *, alone: bool) -> str:
        """How to call a place in it, for people: unique in the run, also where it is not *alone*."""
        if self.registry.name.host or alone:
            return str(Destination(self.registry.name, name, tag))
        return f"{self.repository(name).address}:{tag}" if tag else self.repository(name).address


@asynccontextmanager
async def open_targets(plan: Plan, run: Run) -> AsyncIterator[Mapping[Target, OpenTarget]]:
    """Connect to all registries that *plan* names.

    Raises:
        ConfigurationError: there is no region, no such profile, or no credentials.
        RegistryError: a registry refuses, or can't be reached.
    """
    async with AsyncExitStack() as stack:
        targets: dict[Target, OpenTarget] = {}
        for target in plan.targets:
            registry = await stack.enter_async_context(open_registry(target.registry, target.aws, run))
            targets[target] = OpenTarget(target, registry)
        yield targets


async def prepare(plan: Plan, targets: Mapping[Target, OpenTarget], *, dry: bool) -> None:
    """See which repositories are there, and create the others, before anything is read or sent.

    From then on the repositories' addresses are complete.

    Args:
        plan: the plan.
        targets: its registries.
        dry: create nothing.
    """
    with only_cause():
        async with anyio.create_task_group() as tg:
            for opened in targets.values():
                entries = [
                    (goal.repository, entry)
                    for entry in plan.entries
                    for goal in entry.goals
                    if goal.target == opened.target
                ]
                tg.start_soon(_prepare_one, opened, entries, dry)


async def _prepare_one(opened: OpenTarget, entries: Iterable[tuple[str, Entry]], dry: bool) -> None:
    wanted: dict[str, Entry] = {}
    for name, entry in entries:
        wanted.setdefault(name, entry)
    if not wanted:
        return
    admin = opened.registry.admin
    try:
        there: Collection[str] = await admin.repositories(wanted)
    except ServiceError as error:
        if error.code != _DENIED:
            raise
        # Who may push need not be allowed to describe: what is missing then shows when it is asked for its images.
        opened.registry.emit(Notice(f"repositories can't be described, and are taken to be there: {error}"))
        there = wanted
    await opened.registry.account()
    missing = [name for name in wanted if name not in there]
    opened.states.update(dict.fromkeys(there, "there"))
    at_once = CapacityLimiter(_CREATED_AT_ONCE)

    async def make(name: str) -> None:
        async with at_once:
            await _make(opened, name, wanted[name], dry)

    with only_cause():
        async with anyio.create_task_group() as tg:
            for name in missing:
                tg.start_soon(make, name)


async def create_by_push(
    opened: OpenTarget, entry: Entry, repository: Repository, error: RepositoryNotFoundError
) -> bool:
    """Create a repository that ECR's layer API does not find: it was left to a template, or somebody has deleted it.

    A push through ``/v2/`` heeds templates; whether one through the layer API does is not documented. So a push is
    begun there: a mount that can't succeed.

    Raises:
        RepositoryNotFoundError: there is no template, and the plan does not say that it may be created.
        RegistryError: ECR refuses.
    """
    with suppress(RegistryError):
        await repository.mount(Digest.of(b""), repository.name)
    admin = opened.registry.admin
    try:
        if await admin.repositories([repository.name]):
            return True
    except ServiceError as refusal:
        if refusal.code != _DENIED:
            raise
    if not entry.create:
        raise error
    return await admin.create(repository.name, entry.repository_settings)


async def _make(opened: OpenTarget, name: str, entry: Entry, dry: bool) -> None:
    """Create a missing repository, or leave it to a creation template."""
    admin = opened.registry.admin
    try:
        template = await admin.template_for(name)
        if template is not None:
            opened.registry.emit(Notice(f"{name} is left to the creation template of {template!r}"))
            opened.states[name] = "missing"
        elif not entry.create:
            opened.failures[name] = UsageError(
                f"repository {name} does not exist", hint="create it, or write `repository: {create: true}` in the plan"
            )
        elif dry:
            opened.states[name] = "missing"
        else:
            is_ours = await admin.create(name, entry.repository_settings)
            opened.states[name] = "new" if is_ours else "there"
    except ServiceError as error:
        opened.failures[name] = error
