"""The checked plan: repositories and archives to migrate, which of their tags, and where they go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from asyncpush.migrate.plan.tags import TagRules
from asyncpush.migrate.plan.wildcards import RepositoryPattern
from asyncpush.model import Platform
from asyncpush.reference import RegistryName
from asyncpush.settings import AwsConfiguration, RepositorySettings, SourceRegistry, TransportChoice


@dataclass(frozen=True, slots=True)
class PlanTarget:
    """A registry that images go to.

    Attributes:
        name: its name in the plan.
        registry: the registry.
        prefix: the prefix of repository names, without slashes at its ends; may be empty.
        aws: overrides of the AWS configuration to reach it.
        transport: how layers are sent; None if the plan does not say (``Settings.transport``).
        quotas: its account's quotas in requests a second, by operation, where the plan states them.
    """

    name: str
    registry: RegistryName = field(default_factory=RegistryName)
    prefix: str = ""
    aws: AwsConfiguration = field(default_factory=AwsConfiguration)
    transport: TransportChoice | None = None
    # A run resumes under other quotas: its fingerprint is a text of its targets.
    quotas: tuple[tuple[str, int], ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True)
class Goal:
    """Where the images of an entry go.

    Attributes:
        target: the registry.
        repository: the repository's name in it, prefix included; of a pattern's entry, with placeholders.
        tag: the tag that the image gets; None keeps its tag at the source, if it has one.
    """

    target: PlanTarget
    repository: str
    tag: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanEntry:
    """Images of one repository or archive, and where they go.

    Attributes:
        place: where the entry is in the plan: ``images[3]``, or ``line 12``.
        source: the source, as the plan names it.
        kind: ``registry``, or ``local`` for a layout or archive, which is opened as a whole: on this machine, in an
            engine on it, or in S3.
        location: what ``open_source`` takes: a path is absolute or relative to the working directory, a repository
            begins with ``docker://``, and has no tag unless the plan gives one.
        host: the registry's host, ``docker.io`` for Docker Hub; empty for local sources.
        repository: the repository's name there (``library/nginx``); empty for local sources.
        pattern: which repositories it stands for, until ``expansion.expand`` replaces it with an entry for each; None
            for a single source.
        reference: the tag or digest (``sha256:...``) in the source itself; None if there is none.
        tags: which tags to migrate; if there is a ``reference``, it is the only name. The tags of a local source are
            those of its images.
        min_tags: how many tags must match; None if the plan does not say.
        goals: where they go, one for each target.
        platforms: the platforms to migrate from indexes; empty for the whole index.
        referrers: migrate signatures, attestations and SBOMs.
        create: create missing repositories.
        like_source: give created repositories the settings of the source, where ``repository_settings`` has none.
        repository_settings: the settings of created repositories.
    """

    place: str
    source: str
    kind: Literal["registry", "local"]
    location: str
    host: str = ""
    repository: str = ""
    pattern: RepositoryPattern | None = None
    reference: str | None = None
    tags: TagRules = field(default_factory=TagRules)
    min_tags: int | None = None
    goals: tuple[Goal, ...]
    platforms: tuple[Platform, ...] = ()
    referrers: bool = True
    create: bool = False
    like_source: bool = False
    repository_settings: RepositorySettings = field(default_factory=RepositorySettings)


@dataclass(frozen=True, slots=True)
class Plan:
    """A migration.

    Attributes:
        source_registries: how to reach source registries, by host; other hosts are reached with
            ``SourceRegistry(host=...)``.
        targets: the registries that images go to.
        entries: what to migrate, in the plan's order.
        path: the plan's file; None if it came from standard input.
        notices: messages for the user that are not failures.
    """

    source_registries: Mapping[str, SourceRegistry]
    targets: tuple[PlanTarget, ...]
    entries: tuple[PlanEntry, ...]
    path: Path | None = None
    notices: tuple[str, ...] = ()


def overridden(
    plan: Plan,
    aws: AwsConfiguration,
    sources: Mapping[str, SourceRegistry],
    *,
    platforms: tuple[Platform, ...] = (),
    create_repository: bool = False,
    strict: bool = False,
) -> Plan:
    """*plan*, with the settings of the command line where it has none.

    Args:
        plan: the plan.
        aws: the profile, region and endpoint of targets that do not set them.
        sources: how to reach registries that the plan does not describe, by host.
        platforms: the platforms to migrate from indexes where the plan names none.
        create_repository: create missing repositories, whatever the plan says.
        strict: an entry must match a tag, unless the plan sets how many.
    """

    def complete(target: PlanTarget) -> PlanTarget:
        own = target.aws
        return replace(
            target,
            aws=replace(
                own,
                profile=own.profile or aws.profile,
                region=own.region or aws.region,
                endpoint_url=own.endpoint_url or aws.endpoint_url,
            ),
        )

    def complete_goal(goal: Goal) -> Goal:
        return replace(goal, target=complete(goal.target))

    return replace(
        plan,
        source_registries={**sources, **plan.source_registries},
        targets=tuple(complete(target) for target in plan.targets),
        entries=tuple(
            replace(
                entry,
                goals=tuple(map(complete_goal, entry.goals)),
                platforms=entry.platforms or platforms,
                create=entry.create or create_repository,
                min_tags=1 if strict and entry.min_tags is None else entry.min_tags,
            )
            for entry in plan.entries
        ),
    )
