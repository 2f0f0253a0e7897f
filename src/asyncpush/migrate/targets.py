"""The migration's targets: their registries connected to, and their repositories described, created and finished."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Literal

import anyio
from anyio import CapacityLimiter

from asyncpush.api import open_registry
from asyncpush.connection import OpenRegistry
from asyncpush.engine.context import PushContext
from asyncpush.errors import (
    CREDENTIALS_LOST,
    AsyncpushError,
    RegistryError,
    RepositoryNotFoundError,
    ServiceError,
    UsageError,
    only_cause,
)
from asyncpush.events import Notice
from asyncpush.journal import SqliteJournal
from asyncpush.migrate.plan.model import Plan, PlanEntry, PlanTarget
from asyncpush.model import Digest
from asyncpush.protocols import Repository, RepositoryInfo
from asyncpush.reference import Destination
from asyncpush.settings import RepositorySettings
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


#: CreateRepository calls at once; ECR documents no rate for it.
_CREATED_AT_ONCE = 4

_DENIED = "AccessDeniedException"

#: The statuses of what ECR refuses, and has not done.
_REFUSED = range(400, 500)


async def prepare(plan: Plan, targets: Mapping[PlanTarget, OpenTarget], *, dry: bool) -> None:
    """See which repositories are there, and create the others, before anything is read or sent.

    What the journal knows to be half made is finished: a run that was stopped had created it.

    From then on the repositories' addresses are complete; or, without a journal, there is only one registry.

    Args:
        plan: the plan.
        targets: its registries.
        dry: create nothing.

    Raises:
        ConfigurationError: there is a journal, or there are several registries, and of one nobody tells whose it is.
    """
    purpose = "a plan with several targets" if len(targets) > 1 else None
    if any(opened.registry.context.journal for opened in targets.values()):
        purpose = "a journal"
    with only_cause():
        async with anyio.create_task_group() as tg:
            for opened in targets.values():
                entries = [
                    (goal.repository, entry)
                    for entry in plan.entries
                    for goal in entry.goals
                    if goal.target == opened.target
                ]
                tg.start_soon(_prepare_one, opened, entries, dry, purpose)


async def _prepare_one(
    opened: OpenTarget, entries: Iterable[tuple[str, PlanEntry]], dry: bool, purpose: str | None
) -> None:
    wanted: dict[str, PlanEntry] = {}
    for name, entry in entries:
        wanted.setdefault(name, entry)
    if not wanted:
        return
    admin = opened.registry.admin
    try:
        described = await admin.repositories(wanted)
        there: Collection[str] = described
        opened.described.update(described)
    except ServiceError as error:
        if error.code != _DENIED:
            raise
        # Who may push need not be allowed to describe: what is missing then shows when it is asked for its images.
        opened.registry.emit(Notice(f"repositories can't be described, and are taken to be there: {error}"))
        there = wanted
    # The repositories have mostly told it by now.
    await (opened.registry.require_account(purpose) if purpose else opened.registry.account())
    missing = [name for name in wanted if name not in there]
    opened.states.update(dict.fromkeys(there, "there"))
    at_once = CapacityLimiter(_CREATED_AT_ONCE)

    async def make(name: str) -> None:
        async with at_once:
            await _make(opened, name, wanted[name], dry)

    async def finish(name: str) -> None:
        async with at_once:
            with _noted(opened, name), suppress(RepositoryNotFoundError):
                await _finish(opened, name, wanted[name].repository_settings)

    half_made = [name for name in there if not dry and _is_half_made(opened, name)]
    with only_cause():
        async with anyio.create_task_group() as tg:
            for name in missing:
                tg.start_soon(make, name)
            for name in half_made:
                tg.start_soon(finish, name)


async def create_by_push(
    opened: OpenTarget, entry: PlanEntry, repository: Repository, error: RepositoryNotFoundError
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
    return await _create(opened, repository.name, entry.repository_settings)


async def complete_repository(opened: OpenTarget, entry: PlanEntry, name: str) -> None:
    """Before something is put into a repository that was there, see that it has what the plan would have given it.

    A run without a journal, or with another one, may have been stopped between creating it and giving it its policies.
    Nobody can tell that from a repository that somebody else made and left without policies, but for this: it is
    empty, and otherwise as the plan would have made it. A policy then has nothing to act on but what the plan brings.

    Raises:
        RegistryError: ECR refuses a policy.
    """
    settings, described = entry.repository_settings, opened.described.get(name)
    if not entry.create or not _has_policies(settings) or described is None or opened.states.get(name) != "there":
        return

    async def once() -> None:
        if _is_made_so(described, settings) and await opened.registry.admin.is_empty(name):
            with _noted(opened, name):
                await _finish(opened, name, settings)

    await opened.whole.do(name, once)
    if failure := opened.failures.get(name):
        raise failure


async def _make(opened: OpenTarget, name: str, entry: PlanEntry, dry: bool) -> None:
    """Create a missing repository, or leave it to a creation template."""
    admin = opened.registry.admin
    with _noted(opened, name):
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
            is_ours = await _create(opened, name, entry.repository_settings)
            opened.states[name] = "new" if is_ours else "there"


async def _create(opened: OpenTarget, name: str, settings: RepositorySettings) -> bool:
    """Create a repository with its policies: one thing, which the journal calls half made until it is done."""
    journal = opened.journal if _has_policies(settings) else None
    address = opened.repository(name).address
    if journal is not None:
        await journal.repository_begun(address)
    try:
        is_ours = await opened.registry.admin.create(name, settings)
    except ServiceError as error:
        if journal is not None and error.operation == "CreateRepository" and error.status in _REFUSED:
            await journal.repository_made(address)
        raise
    if journal is not None:
        await journal.repository_made(address)
    return is_ours


async def _finish(opened: OpenTarget, name: str, settings: RepositorySettings) -> None:
    if await opened.registry.admin.finish(name, settings):
        opened.registry.emit(Notice(f"{name} was created by a run that stopped; it has got its policies now"))
    if opened.journal is not None:
        await opened.journal.repository_made(opened.repository(name).address)


@contextmanager
def _noted(opened: OpenTarget, name: str) -> Iterator[None]:
    """What ECR refuses of one repository is noted, and keeps no other from going."""
    try:
        yield
    except CREDENTIALS_LOST:
        raise
    except ServiceError as error:
        opened.failures[name] = error


def _is_half_made(opened: OpenTarget, name: str) -> bool:
    return opened.journal is not None and opened.journal.is_half_made(opened.repository(name).address)


def _has_policies(settings: RepositorySettings) -> bool:
    return settings.policy is not None or settings.lifecycle_policy is not None


def _is_made_so(described: RepositoryInfo, settings: RepositorySettings) -> bool:
    """Whether a repository is as one with *settings* is, as far as that was asked."""
    wanted = (settings.mutability or "MUTABLE", frozenset(settings.exclusions))
    return (described.mutability, frozenset(described.exclusions)) == wanted
