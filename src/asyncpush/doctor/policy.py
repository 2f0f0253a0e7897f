"""The least IAM policy of each task, as JSON that IAM accepts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, TypedDict

from asyncpush.doctor.permissions import Feature, Task, permissions_of
from asyncpush.ecr.regions import partition_of
from asyncpush.migrate.plan.model import Plan, PlanEntry, PlanTarget
from asyncpush.migrate.plan.wildcards import as_arn_pattern
from asyncpush.reference import RegistryName, Service, parse_registry
from asyncpush.sources.registry.logins import has_ecr_api, is_ecr

Statement: TypeAlias = dict[str, "str | list[str]"]


class Policy(TypedDict):
    """A policy, with IAM's names of its members."""

    Version: str
    Statement: list[Statement]


#: The tasks that call ECR.
AWS_TASKS: tuple[Task, ...] = ("push", "migrate", "verify")

#: What a plan does with a repository of ECR that it reads from.
SourceUse = Literal["images", "tags", "settings"]

#: The actions of each use; those of images are checked by ``/v2/``.
_READING: Mapping[SourceUse, tuple[str, ...]] = {
    "images": ("BatchGetImage", "GetDownloadUrlForLayer"),
    # The list has archived images, too, which can't be pulled.
    "tags": ("DescribeImages", "ListImages"),
    "settings": ("DescribeRepositories", "GetLifecyclePolicy", "GetRepositoryPolicy", "ListTagsForResource"),
}

#: Repositories of one registry that a policy names one by one: a managed policy has at most 6,144 characters.
_NAMED_REPOSITORIES = 20


@dataclass(frozen=True, slots=True)
class Unknown:
    """What stands in a policy for what nobody has named.

    Attributes:
        account: the caller's own account.
        region: the caller's own region.
    """

    account: str = "*"
    region: str = "*"


@dataclass(frozen=True, slots=True)
class Scope:
    """The repositories of one registry that a policy is for.

    Attributes:
        registry: the registry.
        region: the region, if the registry names none.
        repositories: the repositories, which may contain wildcards of an ARN; empty for all.
        prefix: what all of their names begin with, up to a slash; empty if that is unknown.
    """

    registry: RegistryName = field(default_factory=RegistryName)
    region: str | None = None
    repositories: frozenset[str] = frozenset()
    prefix: str = ""

    def resources(self, unknown: Unknown) -> list[str]:
        """The ARNs of the repositories."""
        names = sorted(self.repositories)
        if len(names) > _NAMED_REPOSITORIES:
            names = [f"{self.prefix}/*" if self.prefix else "*"]
        return [f"{self._arn(unknown)}:repository/{name}" for name in names or ["*"]]

    def _arn(self, unknown: Unknown) -> str:
        name, region = self.registry, self.registry.region or self.region
        if name.service == "ecr-public":
            # The host has the registry's alias, and not its account.
            return f"arn:aws:ecr-public::{unknown.account}"
        partition = partition_of(region) if region else "aws"
        return f"arn:{partition}:ecr:{region or unknown.region}:{name.id or unknown.account}"


@dataclass(frozen=True, slots=True)
class SourceScopes:
    """The repositories of ECR that a plan reads from.

    Attributes:
        by_use: what it does with which of them.
        lists_registries: whether it chooses among all repositories of a registry.
    """

    by_use: Mapping[SourceUse, Sequence[Scope]] = field(default_factory=dict)
    lists_registries: bool = False


def make_policy(
    scopes: Sequence[Scope],
    tasks: Iterable[Task],
    features: Collection[Feature],
    sources: SourceScopes | None = None,
    *,
    unknown: Unknown | None = None,
) -> Policy:
    """The policy with which *tasks* work in full, and which allows nothing else.

    There is a statement for each task that needs more than the ones before it, for each use of the sources, and one for
    the actions that concern no repository. Blocks for the first call, which reads a file.

    Args:
        scopes: the repositories.
        tasks: the tasks, in the order of their statements.
        features: what a plan asks for.
        sources: the repositories of ECR that a plan reads from.
        unknown: what stands for an account and a region that the scopes leave open.
    """
    sources, unknown = sources or SourceScopes(), unknown or Unknown()
    statements: list[Statement] = []
    by_service: dict[Service, list[Scope]] = {}
    for scope in scopes:
        by_service.setdefault(scope.registry.service, []).append(scope)
    everywhere: set[str] = set()
    for service, own in by_service.items():
        label = "" if len(by_service) == 1 else "Public" if service == "ecr-public" else "Private"
        resources = _resources(own, unknown)
        seen: set[str] = set()
        for task in tasks:
            permissions = permissions_of(task, service, features)
            everywhere.update(f"{service}:{each.operation}" for each in permissions if each.is_global)
            actions = {f"{service}:{each.operation}" for each in permissions if not each.is_global} - seen
            if actions:
                seen |= actions
                statements.append(_statement(f"{task.capitalize()}{label}", sorted(actions), resources))
    for use, read in sources.by_use.items():
        actions_of_use = [f"ecr:{operation}" for operation in _READING[use]]
        statements.append(_statement(f"Source{use.capitalize()}", actions_of_use, _resources(read, unknown)))
        everywhere.add("ecr:GetAuthorizationToken")
    if sources.lists_registries:
        everywhere.add("ecr:DescribeRepositories")
    if "ecr-public:GetAuthorizationToken" in everywhere:
        everywhere.add("sts:GetServiceBearerToken")
    if everywhere:
        statements.append(_statement("Registry", sorted(everywhere), ["*"]))
    return {"Version": "2012-10-17", "Statement": statements}


def policy_of(
    plan: Plan, tasks: Sequence[Task], features: frozenset[Feature], *, unknown: Unknown | None = None
) -> Policy:
    """The least policy for *tasks* with the repositories of a plan, its sources in ECR included; blocks.

    Args:
        plan: the plan.
        tasks: the tasks.
        features: what they need besides what the plan asks for; with ``create``, all of its repositories are created.
        unknown: what stands for an account and a region that the plan does not name.
    """
    targets = []
    for target in plan.targets:
        names = frozenset(map(as_arn_pattern, entries_at(plan, target)))
        targets.append(Scope(target.registry, target.aws.region, names, target.prefix))
    asked = features | features_of(plan.entries, creates="create" in features)
    return make_policy(targets, tasks, asked, _sources_of(plan), unknown=unknown)


def entries_at(plan: Plan, target: PlanTarget) -> Mapping[str, PlanEntry]:
    """The repositories at *target* that a plan goes to, each with its first entry."""
    found: dict[str, PlanEntry] = {}
    for entry in plan.entries:
        for goal in entry.goals:
            if goal.target == target:
                found.setdefault(goal.repository, entry)
    return found


def features_of(entries: Iterable[PlanEntry], *, creates: bool = False) -> frozenset[Feature]:
    """What the entries of a plan ask for, beyond copying images; *creates* says that all repositories are created."""
    found: set[Feature] = set()
    for entry in entries:
        if not (creates or entry.create):
            continue
        settings = entry.repository_settings
        found.add("create")
        # A source may have all of them.
        if settings.resource_tags or entry.like_source:
            found.add("resource-tags")
        if settings.policy is not None or entry.like_source:
            found.add("policy")
        if settings.lifecycle_policy is not None or entry.like_source:
            found.add("lifecycle-policy")
    return frozenset(found)


def _sources_of(plan: Plan) -> SourceScopes:
    read = [
        entry
        for entry in plan.entries
        if entry.kind == "registry" and has_ecr_api(entry.host, plan.source_registries.get(entry.host))
    ]
    uses: dict[SourceUse, list[PlanEntry]] = {
        "images": read,
        "tags": [entry for entry in read if entry.reference is None and entry.tags.needs_listing],
        "settings": [entry for entry in read if entry.like_source],
    }
    return SourceScopes(
        {use: _scopes_of(entries, plan) for use, entries in uses.items() if entries},
        lists_registries=any(entry.pattern is not None for entry in read),
    )


def _scopes_of(entries: Iterable[PlanEntry], plan: Plan) -> list[Scope]:
    names: dict[str, set[str]] = {}
    for entry in entries:
        names.setdefault(entry.host, set()).add(as_arn_pattern(entry.repository))
    scopes = []
    for host, found in names.items():
        registry = plan.source_registries.get(host)
        name = parse_registry(host) if is_ecr(host) else RegistryName()
        region = registry.aws.region if registry and registry.aws else None
        scopes.append(Scope(name, region, frozenset(found)))
    return scopes


def _resources(scopes: Iterable[Scope], unknown: Unknown) -> list[str]:
    return sorted({resource for scope in scopes for resource in scope.resources(unknown)})


def _statement(sid: str, actions: list[str], resources: list[str]) -> Statement:
    return {"Sid": sid, "Effect": "Allow", "Action": actions, "Resource": resources}
