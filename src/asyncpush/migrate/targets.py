"""The targets of a migration: the registries that it connects to, and the repositories that it creates there."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
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
    SourceError,
    UsageError,
    only_cause,
)
from asyncpush.events import Notice
from asyncpush.journal import SqliteJournal
from asyncpush.migrate.ecr_sources import EcrSources, ForeignKeyError
from asyncpush.migrate.plan.diagnostics import Problems, member
from asyncpush.migrate.plan.load import name_of
from asyncpush.migrate.plan.model import Plan, PlanEntry, PlanTarget
from asyncpush.model import Digest, RepositoryInfo
from asyncpush.protocols import Repository
from asyncpush.reference import Destination
from asyncpush.settings import RepositorySettings
from asyncpush.single_flight import SingleFlight
from asyncpush.units import some_text

#: ``present``; ``new``: this run created it; ``missing`` in a dry run, or where a creation template will create it with
#: the first push.
State = Literal["present", "new", "missing"]


@dataclass(slots=True, eq=False)
class OpenTarget:
    """A registry that images go to, connected.

    Attributes:
        target: the target of the plan.
        registry: the connection.
        ecr_sources: the source registries that are ECR's: new repositories can get the settings of theirs.
        journal: records which of its repositories are half made.
        states: the state of each repository that the plan names.
        failures: why a repository can't be used.
        described: ECR's description of each repository that existed at first.
        completed: makes sure, once for each repository, that one that existed has the policies of the plan.
    """

    target: PlanTarget
    registry: OpenRegistry
    ecr_sources: EcrSources
    journal: SqliteJournal | None = None
    states: dict[str, State] = field(default_factory=dict)
    failures: dict[str, AsyncpushError] = field(default_factory=dict)
    described: dict[str, RepositoryInfo] = field(default_factory=dict)
    completed: SingleFlight[None] = field(default_factory=SingleFlight)
    _repositories: dict[str, Repository] = field(default_factory=dict)

    def repository(self, name: str) -> Repository:
        """The repository called *name*."""
        if name not in self._repositories:
            self._repositories[name] = self.registry.repository(name)
        return self._repositories[name]

    async def settings_for(self, entry: PlanEntry) -> RepositorySettings:
        """The settings of a new repository for *entry*.

        Raises:
            AsyncpushError: it must be like its source, whose settings can't be read, or can't be used here.
        """
        if not entry.like_source:
            return entry.repository_settings
        return await self.ecr_sources.settings_for(entry, self.registry)

    def destination(self, name: str, tag: str | None, *, alone: bool) -> str:
        """The name of a destination for people; unique in the run, even if the target is not *alone*."""
        if self.registry.name.host or alone:
            return str(Destination(self.registry.name, name, tag))
        return f"{self.repository(name).address}:{tag}" if tag else self.repository(name).address


@asynccontextmanager
async def open_targets(
    plan: Plan, push: PushContext, ecr_sources: EcrSources, journal: SqliteJournal | None = None
) -> AsyncIterator[Mapping[PlanTarget, OpenTarget]]:
    """Connect to all registries that *plan* names.

    Args:
        plan: the plan.
        push: what all pushes share.
        ecr_sources: the source registries that are ECR's.
        journal: records which repositories are half made.

    Raises:
        ConfigurationError: there is no region, no such profile, or no credentials.
        RegistryError: a registry refuses, or can't be reached.
    """
    async with AsyncExitStack() as stack:
        targets: dict[PlanTarget, OpenTarget] = {}
        for target in plan.targets:
            transport = target.transport or push.settings.transport
            quotas = target.quotas or push.settings.quotas
            context = replace(push, settings=replace(push.settings, transport=transport, quotas=quotas))
            registry = await stack.enter_async_context(open_registry(target.registry, target.aws, context))
            targets[target] = OpenTarget(target, registry, ecr_sources, journal)
        yield targets


#: CreateRepository calls at once; ECR documents no rate for it.
_CREATED_AT_ONCE = 4

#: Repositories whose settings are read at once.
_READ_AT_ONCE = 16

#: Repositories that a message lists.
_SHOWN_NAMES = 3

_DENIED = "AccessDeniedException"

#: Statuses of requests that ECR refused, so that nothing was done.
_REFUSED = range(400, 500)


async def prepare(
    plan: Plan, targets: Mapping[PlanTarget, OpenTarget], *, dry: bool, reads_settings: bool = True
) -> None:
    """Find out which repositories exist, and create the others, before anything is read or sent.

    A repository that the journal knows as half made is finished: a run that stopped had created it.

    Afterwards, repository addresses name the account, unless there is one registry and no journal.

    Args:
        plan: the plan.
        targets: its registries.
        dry: create nothing.
        reads_settings: find out whether new repositories can be like their sources.

    Raises:
        PlanError: a new repository should be like its source, but the source's key can't be used for it.
        ConfigurationError: there is a journal or there are several registries, and the account of one is unknown.
    """
    purpose = "a plan with several targets" if len(targets) > 1 else None
    if any(opened.registry.context.journal for opened in targets.values()):
        purpose = "a journal"
    wanted: defaultdict[PlanTarget, dict[str, PlanEntry]] = defaultdict(dict)
    for entry in plan.entries:
        for goal in entry.goals:
            wanted[goal.target].setdefault(goal.repository, entry)
    with only_cause():
        async with anyio.create_task_group() as tg:
            for target, names in wanted.items():
                tg.start_soon(_describe, targets[target], names, purpose)
    # Nothing is created before it is known that all repositories can be.
    problems = Problems()
    with only_cause():
        async with anyio.create_task_group() as tg:
            for target, names in wanted.items() if reads_settings else ():
                tg.start_soon(_check_likeness, targets[target], names, problems)
    problems.raise_any(name_of(plan.path))
    with only_cause():
        async with anyio.create_task_group() as tg:
            for target, names in wanted.items():
                tg.start_soon(_make_all, targets[target], names, dry)


async def _describe(opened: OpenTarget, wanted: Mapping[str, PlanEntry], purpose: str | None) -> None:
    """Find out which repositories exist."""
    admin = opened.registry.admin
    try:
        described = await admin.repositories(wanted)
        present: Collection[str] = described
        opened.described.update(described)
    except ServiceError as error:
        if error.code != _DENIED:
            raise
        # Who may push need not be allowed to describe: a missing repository shows when its images are looked up.
        opened.registry.emit(Notice(f"repositories can't be described, so all of them are assumed to exist: {error}"))
        present = wanted
    # Mostly known by now, from describing repositories.
    await (opened.registry.require_account(purpose) if purpose else opened.registry.account())
    opened.states.update(dict.fromkeys(present, "present"))


async def _check_likeness(opened: OpenTarget, wanted: Mapping[str, PlanEntry], problems: Problems) -> None:
    """Read the settings of the sources that new repositories should be like, and tell what can't be the same.

    A source's key that can't be used here is a problem, since the encryption of a repository can't be changed later.
    """
    alike = {name: entry for name, entry in wanted.items() if entry.like_source and entry.create}
    foreign: defaultdict[tuple[str, str, str | None], list[str]] = defaultdict(list)
    naming: defaultdict[str, list[str]] = defaultdict(list)
    at_once = CapacityLimiter(_READ_AT_ONCE)

    async def read(name: str, entry: PlanEntry) -> None:
        async with at_once:
            with _noted(opened, name):
                if await opened.registry.admin.template_for(name) is not None:
                    return  # the template decides
                try:
                    settings = await opened.settings_for(entry)
                except ForeignKeyError as error:
                    foreign[entry.place, error.message, error.hint].append(entry.source)
                    return
                account = await (await opened.ecr_sources.at(entry.host)).account()
                if account and account != await opened.registry.account() and account in (settings.policy or ""):
                    naming[account].append(name)

    with only_cause():
        async with anyio.create_task_group() as tg:
            for name, entry in alike.items():
                if name not in opened.states:
                    tg.start_soon(read, name, entry)
    for (place, message, hint), sources in foreign.items():
        text = f"the key of {_some(sources)} can't be the same: {message}"
        problems.add(member(member(place, "repository"), "like"), text, hint=hint)
    if present := [name for name in alike if name in opened.states]:
        opened.registry.emit(Notice(f"{_some(present)} exist already, and keep their settings (like: source)"))
    for account, names in naming.items():
        text = f"the policies of {_some(names)} name account {account}, as at the source: check that they should"
        opened.registry.emit(Notice(text))


def _some(names: Sequence[str]) -> str:
    return some_text(sorted(names), _SHOWN_NAMES)


async def _make_all(opened: OpenTarget, wanted: Mapping[str, PlanEntry], dry: bool) -> None:
    """Create the repositories that do not exist, and finish those that are half made."""
    present = [name for name in wanted if name in opened.states]
    missing = [name for name in wanted if name not in opened.states and name not in opened.failures]
    at_once = CapacityLimiter(_CREATED_AT_ONCE)

    async def make(name: str) -> None:
        async with at_once:
            await _make(opened, name, wanted[name], dry)

    async def finish(name: str) -> None:
        async with at_once:
            with _noted(opened, name), suppress(RepositoryNotFoundError):
                await _finish(opened, name, await opened.settings_for(wanted[name]))

    half_made = [name for name in present if not dry and _is_half_made(opened, name)]
    with only_cause():
        async with anyio.create_task_group() as tg:
            for name in missing:
                tg.start_soon(make, name)
            for name in half_made:
                tg.start_soon(finish, name)


async def create_by_push(
    opened: OpenTarget, entry: PlanEntry, repository: Repository, error: RepositoryNotFoundError
) -> bool:
    """Create a repository that ECR's layer API does not find: it was left to a template, or was deleted.

    A push through ``/v2/`` applies creation templates; whether one through the layer API does is not documented. So
    this starts such a push: a mount that can't succeed.

    Raises:
        RepositoryNotFoundError: no template applies, and the plan does not allow creating it.
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
    return await _create(opened, repository.name, await opened.settings_for(entry))


async def complete_repository(opened: OpenTarget, entry: PlanEntry, name: str) -> None:
    """Before the first push into a repository that existed, give it the policies of the plan if it lacks them.

    A run without a journal, or with another one, may have stopped between creating it and setting its policies. Such a
    repository looks like one that someone else created without policies, but it is empty and has the settings of the
    plan. Then a policy can only affect what the plan pushes.

    Raises:
        RegistryError: ECR refuses a policy.
    """
    described, admin = opened.described.get(name), opened.registry.admin
    may_lack = entry.like_source or _has_policies(entry.repository_settings)
    if not entry.create or not may_lack or described is None or opened.states.get(name) != "present":
        return

    async def once() -> None:
        if entry.like_source and not await admin.is_empty(name):
            return
        settings = await opened.settings_for(entry)
        if _has_settings(described, settings) and (entry.like_source or await admin.is_empty(name)):
            with _noted(opened, name):
                await _finish(opened, name, settings)

    await opened.completed.do(name, once)
    if failure := opened.failures.get(name):
        raise failure


async def _make(opened: OpenTarget, name: str, entry: PlanEntry, dry: bool) -> None:
    """Create a missing repository, or leave it to a creation template."""
    admin = opened.registry.admin
    with _noted(opened, name):
        template = await admin.template_for(name)
        if template is not None:
            opened.registry.emit(Notice(f"{name} is left to the creation template for {template!r}"))
            opened.states[name] = "missing"
        elif not entry.create:
            opened.failures[name] = UsageError(
                f"repository {name} does not exist",
                hint="create it, give --create-repository, or write `repository: {create: true}` in the plan",
            )
        elif dry:
            opened.states[name] = "missing"
        else:
            created = await _create(opened, name, await opened.settings_for(entry))
            opened.states[name] = "new" if created else "present"


async def _create(opened: OpenTarget, name: str, settings: RepositorySettings) -> bool:
    """Create a repository with its policies; until it has them, the journal records it as half made."""
    journal = opened.journal if _has_policies(settings) else None
    address = opened.repository(name).address
    if journal is not None:
        await journal.repository_begun(address)
    try:
        created = await opened.registry.admin.create(name, settings)
    except ServiceError as error:
        if journal is not None and error.operation == "CreateRepository" and error.status in _REFUSED:
            await journal.repository_made(address)
        raise
    if journal is not None:
        await journal.repository_made(address)
    return created


async def _finish(opened: OpenTarget, name: str, settings: RepositorySettings) -> None:
    if await opened.registry.admin.finish(name, settings):
        opened.registry.emit(Notice(f"{name} was created by a run that stopped; it has its policies now"))
    if opened.journal is not None:
        await opened.journal.repository_made(opened.repository(name).address)


@contextmanager
def _noted(opened: OpenTarget, name: str) -> Iterator[None]:
    """Note what ECR refuses for one repository, so that others go on."""
    try:
        yield
    except CREDENTIALS_LOST:
        raise
    except (ServiceError, SourceError, UsageError) as error:
        opened.failures[name] = error


def _is_half_made(opened: OpenTarget, name: str) -> bool:
    return opened.journal is not None and opened.journal.is_half_made(opened.repository(name).address)


def _has_policies(settings: RepositorySettings) -> bool:
    return settings.policy is not None or settings.lifecycle_policy is not None


def _has_settings(described: RepositoryInfo, settings: RepositorySettings) -> bool:
    """Whether a repository has *settings*, as far as its description tells."""
    wanted = (settings.mutability or "MUTABLE", frozenset(settings.exclusions))
    return (described.mutability, frozenset(described.exclusions)) == wanted
