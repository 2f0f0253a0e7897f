"""What a repository is created with, as ECR's requests have it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from asyncpush.settings import RepositorySettings


@dataclass(frozen=True, slots=True)
class PolicyPut:
    """A policy that a new repository gets.

    Attributes:
        operation: puts it.
        member: has its text.
        look: finds it.
        missing: the code of *look* where there is none.
        text: its JSON.
    """

    operation: str
    member: str
    look: str
    missing: str
    text: str


def creation_members(settings: RepositorySettings, *, is_public: bool) -> dict[str, Any]:
    """The members of CreateRepository; ECR Public's model has resource tags alone."""
    members: dict[str, Any] = {}
    if settings.resource_tags:
        members["tags"] = [{"Key": key, "Value": value} for key, value in settings.resource_tags]
    if is_public:
        return members
    if settings.mutability:
        members["imageTagMutability"] = settings.mutability
    if settings.exclusions:
        filters = [{"filterType": "WILDCARD", "filter": wildcard} for wildcard in settings.exclusions]
        members["imageTagMutabilityExclusionFilters"] = filters
    if settings.scan_on_push is not None:
        members["imageScanningConfiguration"] = {"scanOnPush": settings.scan_on_push}
    if settings.encryption:
        key = {"kmsKey": settings.kms_key} if settings.kms_key else {}
        members["encryptionConfiguration"] = {"encryptionType": settings.encryption, **key}
    return members


def policies_of(settings: RepositorySettings, *, is_public: bool) -> list[PolicyPut]:
    """The policies to put once it is created; ECR Public has no lifecycle policies."""
    puts = []
    if settings.policy is not None:
        names = ("SetRepositoryPolicy", "policyText", "GetRepositoryPolicy", "RepositoryPolicyNotFoundException")
        puts.append(PolicyPut(*names, settings.policy))
    if settings.lifecycle_policy is not None and not is_public:
        names = ("PutLifecyclePolicy", "lifecyclePolicyText", "GetLifecyclePolicy", "LifecyclePolicyNotFoundException")
        puts.append(PolicyPut(*names, settings.lifecycle_policy))
    return puts
