"""What is to be migrated: each repository or archive, which of its tags, and where they go; all of it checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from asyncpush.migrate.plan.tags import TagRules
from asyncpush.model import Platform
from asyncpush.reference import RegistryName
from asyncpush.settings import AwsConfiguration, RepositorySettings, SourceRegistry


@dataclass(frozen=True, slots=True)
class PlanTarget:
    """A registry that images go to.

    Attributes:
        name: what the plan calls it.
        registry: which one it is.
        prefix: what the repositories' names begin with, without a slash at its ends; may be empty.
        aws: what is set over the AWS configuration to reach it.
    """

    name: str
    registry: RegistryName = field(default_factory=RegistryName)
    prefix: str = ""
    aws: AwsConfiguration = field(default_factory=AwsConfiguration)


@dataclass(frozen=True, slots=True)
class Goal:
    """Where the images of an entry go.

    Attributes:
        target: the registry.
        repository: the repository's name in it, prefix included.
        tag: the tag that the image gets; None is the one that it has at the source (none, for an image by digest).
    """

    target: PlanTarget
    repository: str
    tag: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanEntry:
    """Images of one repository or archive, and where they go.

    Attributes:
        place: where the plan says so: ``images[3]``, or ``line 12``.
        source: as the plan has it.
        kind: ``registry``, or ``local`` for a layout or archive on this machine.
        location: what ``open_source`` takes: a path is absolute or relative to the working directory, a repository
            begins with ``docker://``, and has no tag unless the plan gives one.
        host: the registry's host, ``docker.io`` for Docker Hub; empty for local sources.
        repository: the repository's name there (``library/nginx``); empty for local sources.
        reference: the one tag, or digest (``sha256:...``), that the source itself names; None if it names none.
        tags: which tags are taken; where there is a ``reference``, it is the only name. A local source's tags are
            those that its images have.
        min_tags: how many tags must be taken; None if the plan does not say.
        goals: where they go, one for each target.
        platforms: of indexes, the images to take; empty is all of the index.
        referrers: take signatures, attestations and SBOMs along.
        create: create missing repositories.
        repository_settings: what they are created with.
    """

    place: str
    source: str
    kind: Literal["registry", "local"]
    location: str
    host: str = ""
    repository: str = ""
    reference: str | None = None
    tags: TagRules = field(default_factory=TagRules)
    min_tags: int | None = None
    goals: tuple[Goal, ...]
    platforms: tuple[Platform, ...] = ()
    referrers: bool = True
    create: bool = False
    repository_settings: RepositorySettings = field(default_factory=RepositorySettings)


@dataclass(frozen=True, slots=True)
class Plan:
    """A migration.

    Attributes:
        source_registries: how registries are reached that images are read from, by host; a host that is not in it is
            reached with ``SourceRegistry(host=...)``.
        targets: the registries that images go to.
        entries: what is to be migrated, in the plan's order.
        path: the plan's file; None if it came from standard input.
        notices: what a user should read, but is not a failure.
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
    platform: Platform | None = None,
    create_repository: bool = False,
    strict: bool = False,
) -> Plan:
    """*plan*, with what it does not say.

    Args:
        plan: the plan.
        aws: what targets have that say nothing of their profile, region or endpoint.
        sources: how registries are reached that the plan does not describe, by host.
        platform: what is taken of indexes where the plan names no platforms.
        create_repository: missing repositories are created, whatever the plan says.
        strict: an entry must take a tag where the plan does not say how many.
    """

    def whole(target: PlanTarget) -> PlanTarget:
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

    def goal(each: Goal) -> Goal:
        return replace(each, target=whole(each.target))

    return replace(
        plan,
        source_registries={**sources, **plan.source_registries},
        targets=tuple(whole(target) for target in plan.targets),
        entries=tuple(
            replace(
                entry,
                goals=tuple(goal(each) for each in entry.goals),
                platforms=entry.platforms or ((platform,) if platform else ()),
                create=entry.create or create_repository,
                min_tags=1 if strict and entry.min_tags is None else entry.min_tags,
            )
            for entry in plan.entries
        ),
    )
