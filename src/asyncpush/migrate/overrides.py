"""What the command line sets over a plan: how registries are reached that the plan says nothing of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from asyncpush.migrate.plan.model import Goal, Plan, PlanTarget
from asyncpush.model import Platform
from asyncpush.settings import AwsConfiguration, SourceRegistry


def overridden(
    plan: Plan,
    aws: AwsConfiguration,
    sources: Mapping[str, SourceRegistry],
    *,
    platforms: tuple[Platform, ...] = (),
    create_repository: bool = False,
    strict: bool = False,
) -> Plan:
    """*plan*, with what it does not say.

    Args:
        plan: the plan.
        aws: what targets have that say nothing of their profile, region or endpoint.
        sources: how registries are reached that the plan does not describe, by host.
        platforms: what is taken of indexes where the plan names no platforms.
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
                platforms=entry.platforms or platforms,
                create=entry.create or create_repository,
                min_tags=1 if strict and entry.min_tags is None else entry.min_tags,
            )
            for entry in plan.entries
        ),
    )
