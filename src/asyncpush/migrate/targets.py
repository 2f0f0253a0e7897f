"""The registries that a migration goes to, connected to; and what is known of their repositories."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

from asyncpush.api import open_registry
from asyncpush.connection import OpenRegistry
from asyncpush.engine.context import PushContext
from asyncpush.errors import AsyncpushError
from asyncpush.journal import SqliteJournal
from asyncpush.migrate.plan.model import Plan, PlanTarget
from asyncpush.protocols import Repository, RepositoryInfo
from asyncpush.reference import Destination
from asyncpush.single_flight import SingleFlight

#: ``there``; ``new``, because this run has created it; ``missing`` in a dry run, or because a creation template will
#: create it when it is pushed to.
State = Literal["there", "new", "missing"]


@dataclass(slots=True, eq=False)
class OpenTarget:
    """A registry that is connected to.

    Attributes:
        target: what the plan says of it.
        registry: the connection.
        journal: remembers which of its repositories are half made.
        states: its repositories that the plan names, by name.
        failures: those that can't be used, and why.
        described: what ECR says of those that were there at first.
        whole: makes sure, once each, that repositories that were there have what the plan would have given them.
    """

    target: PlanTarget
    registry: OpenRegistry
    journal: SqliteJournal | None = None
    states: dict[str, State] = field(default_factory=dict)
    failures: dict[str, AsyncpushError] = field(default_factory=dict)
    described: dict[str, RepositoryInfo] = field(default_factory=dict)
    whole: SingleFlight[None] = field(default_factory=SingleFlight)
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
async def open_targets(
    plan: Plan, run: PushContext, journal: SqliteJournal | None = None
) -> AsyncIterator[Mapping[PlanTarget, OpenTarget]]:
    """Connect to all registries that *plan* names.

    Args:
        plan: the plan.
        run: what all pushes share.
        journal: remembers which repositories are half made.

    Raises:
        ConfigurationError: there is no region, no such profile, or no credentials.
        RegistryError: a registry refuses, or can't be reached.
    """
    async with AsyncExitStack() as stack:
        targets: dict[PlanTarget, OpenTarget] = {}
        for target in plan.targets:
            registry = await stack.enter_async_context(open_registry(target.registry, target.aws, run))
            targets[target] = OpenTarget(target, registry, journal)
        yield targets
