"""The least IAM policy of each task, as JSON that IAM accepts."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from asyncpush.doctor.permissions import Feature, Task, permissions_of
from asyncpush.ecr.regions import partition_of
from asyncpush.reference import RegistryName, Service

Statement: TypeAlias = dict[str, "str | list[str]"]
Policy: TypeAlias = dict[str, "str | list[Statement]"]

#: The tasks that call ECR.
AWS_TASKS: tuple[Task, ...] = ("push", "migrate", "verify")

#: The actions with which ``/v2/`` serves images that a plan reads from ECR, and tags that it selects from.
_READ = ("ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer")
_LIST = "ecr:ListImages"

#: Repositories of one registry that a policy names one by one: a managed policy has at most 6,144 characters.
_NAMED_REPOSITORIES = 20


@dataclass(frozen=True, slots=True)
class Scope:
    """The repositories of one registry that a policy is for.

    Attributes:
        registry: the registry; what it leaves open, such as the account, is ``*`` in the policy.
        region: the region, if the registry names none.
        repositories: the repositories; empty for all.
        prefix: what all of their names begin with, up to a slash; empty if that is unknown.
    """

    registry: RegistryName = field(default_factory=RegistryName)
    region: str | None = None
    repositories: frozenset[str] = frozenset()
    prefix: str = ""

    def resources(self) -> list[str]:
        """The ARNs of the repositories."""
        names = sorted(self.repositories)
        if len(names) > _NAMED_REPOSITORIES:
            names = [f"{self.prefix}/*" if self.prefix else "*"]
        return [f"{self._arn}:repository/{name}" for name in names or ["*"]]

    @property
    def _arn(self) -> str:
        name, region = self.registry, self.registry.region or self.region
        if name.service == "ecr-public":
            # The host has the registry's alias, and not its account.
            return "arn:aws:ecr-public::*"
        return f"arn:{partition_of(region) if region else 'aws'}:ecr:{region or '*'}:{name.id or '*'}"


def make_policy(
    scopes: Sequence[Scope],
    tasks: Iterable[Task],
    features: Collection[Feature],
    sources: Sequence[Scope] = (),
    *,
    lists_sources: bool = False,
) -> Policy:
    """The policy with which *tasks* work in full, and which allows nothing else.

    There is a statement for each task that needs more than the ones before it, and one for the actions that concern no
    repository. Blocks for the first call, which reads a file.

    Args:
        scopes: the repositories.
        tasks: the tasks, in the order of their statements.
        features: what a plan asks for.
        sources: the repositories of ECR that a plan reads from.
        lists_sources: whether it selects from their tags.
    """
    statements: list[Statement] = []
    by_service: dict[Service, list[Scope]] = {}
    for scope in scopes:
        by_service.setdefault(scope.registry.service, []).append(scope)
    everywhere: set[str] = set()
    for service, own in by_service.items():
        label = "" if len(by_service) == 1 else "Public" if service == "ecr-public" else "Private"
        resources = sorted({resource for scope in own for resource in scope.resources()})
        seen: set[str] = set()
        for task in tasks:
            permissions = permissions_of(task, service, features)
            everywhere.update(f"{service}:{each.operation}" for each in permissions if each.is_global)
            actions = {f"{service}:{each.operation}" for each in permissions if not each.is_global} - seen
            if actions:
                seen |= actions
                statements.append(_statement(f"{task.capitalize()}{label}", sorted(actions), resources))
    if sources:
        read = [*_READ, _LIST] if lists_sources else [*_READ]
        resources = sorted({resource for scope in sources for resource in scope.resources()})
        statements.append(_statement("Source", read, resources))
        everywhere.add("ecr:GetAuthorizationToken")
    if "ecr-public:GetAuthorizationToken" in everywhere:
        everywhere.add("sts:GetServiceBearerToken")
    if everywhere:
        statements.append(_statement("Registry", sorted(everywhere), ["*"]))
    return {"Version": "2012-10-17", "Statement": statements}


def _statement(sid: str, actions: list[str], resources: list[str]) -> Statement:
    return {"Sid": sid, "Effect": "Allow", "Action": actions, "Resource": resources}
