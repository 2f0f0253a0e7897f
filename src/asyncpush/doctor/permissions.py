"""The IAM actions of each task, and a call for each that tells whether it is allowed, and changes nothing.

AWS authorizes a request before it carries it out, so an error of the operation's own, such as UploadNotFoundException,
shows that the action is allowed. What ECR checks before that is not documented: an error about a malformed request or a
missing repository decides nothing.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from asyncpush.doctor.findings import Finding
from asyncpush.errors import AsyncpushError, ServiceError
from asyncpush.manifest import OCI_MANIFEST
from asyncpush.reference import Service

Task = Literal["push", "migrate", "verify", "serve"]

#: What a plan may ask for, beyond copying images: the permission is needed only then.
Feature = Literal["create", "resource-tags", "policy", "lifecycle-policy"]

_BOTH: frozenset[Service] = frozenset({"ecr", "ecr-public"})
_PRIVATE: frozenset[Service] = frozenset({"ecr"})
_PUBLIC: frozenset[Service] = frozenset({"ecr-public"})

#: The codes of a request that IAM refuses.
DENIED = frozenset({"AccessDeniedException", "AccessDenied", "UnauthorizedOperation"})

#: The code of a repository whose key can't be used: no layer can be pushed there, whatever is allowed.
_NO_KEY = "KmsException"

#: Why IAM refuses, in its message.
_BECAUSE = re.compile(r"because (.+?)\.?$")


@dataclass(frozen=True, slots=True)
class Probe:
    """A harmless call.

    Attributes:
        members: its members besides the repository's name.
        allowed: the error codes that show that the action is allowed; success does, too.
    """

    members: Callable[[], Mapping[str, Any]]
    allowed: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """One IAM action.

    Attributes:
        operation: the operation of ECR's API; the action has its name.
        without: for each task that uses it, what happens without it; empty if the task fails.
        services: the services that have it.
        features: the features of a plan that need it; empty if every plan does.
        is_global: whether its resource is ``*``: it concerns the registry, not a repository.
        probe: the call that tries it in a repository that exists; None if there is none, or another check makes it.
    """

    operation: str
    without: Mapping[Task, str]
    services: frozenset[Service] = _BOTH
    features: frozenset[Feature] = frozenset()
    is_global: bool = False
    probe: Probe | None = field(default=None, compare=False)


def _unknown_digest() -> str:
    return f"sha256:{os.urandom(32).hex()}"


def _unknown_upload() -> str:
    return str(uuid.uuid4())


def _unknown_image() -> dict[str, Any]:
    """A manifest whose config and layer exist nowhere; it has no tag."""
    config = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": _unknown_digest(), "size": 2}
    layer = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": _unknown_digest(), "size": 32}
    manifest = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer]}
    return {"imageManifest": json.dumps(manifest), "imageManifestMediaType": OCI_MANIFEST}


_RESENT = "an image that is there already is pushed again"
_NOT_MOUNTED = "layers are not mounted from other repositories"
_UNFINISHED = "an interrupted run can't complete a new repository"

#: All actions, in the order in which a push uses them.
PERMISSIONS = (
    Permission(
        operation="GetAuthorizationToken",
        without={
            "push": "--transport v2 can't be used",
            "migrate": f"{_NOT_MOUNTED}, and transport v2 can't be used",
        },
        is_global=True,
    ),
    Permission(
        operation="DescribeRepositories",
        without={
            "push": "a conflict with an immutable tag shows only at the end",
            "migrate": "all repositories are assumed to exist",
            "verify": "settings are not compared with the plan",
        },
    ),
    Permission(
        operation="BatchGetImage",
        without={"push": _RESENT, "migrate": _RESENT, "verify": ""},
        services=_PRIVATE,
        probe=Probe(lambda: {"imageIds": [{"imageDigest": _unknown_digest()}]}),
    ),
    Permission(
        operation="DescribeImages",
        without={"push": _RESENT, "migrate": _RESENT},
        services=_PUBLIC,
        probe=Probe(lambda: {"imageIds": [{"imageDigest": _unknown_digest()}]}, frozenset({"ImageNotFoundException"})),
    ),
    Permission(
        operation="DescribeImages",
        without={"migrate": _UNFINISHED},
        services=_PRIVATE,
        features=frozenset({"policy", "lifecycle-policy"}),
        probe=Probe(lambda: {"maxResults": 1}),
    ),
    Permission(
        operation="BatchCheckLayerAvailability",
        without={"push": "", "migrate": "", "verify": ""},
        probe=Probe(lambda: {"layerDigests": [_unknown_digest()]}),
    ),
    Permission(
        operation="InitiateLayerUpload",
        without={"push": "", "migrate": ""},
        probe=Probe(dict),
    ),
    Permission(
        operation="UploadLayerPart",
        without={"push": "", "migrate": ""},
        probe=Probe(
            lambda: {"uploadId": _unknown_upload(), "partFirstByte": 0, "partLastByte": 0, "layerPartBlob": b"\0"},
            frozenset({"UploadNotFoundException"}),
        ),
    ),
    Permission(
        operation="CompleteLayerUpload",
        without={"push": "", "migrate": ""},
        probe=Probe(
            lambda: {"uploadId": _unknown_upload(), "layerDigests": [_unknown_digest()]},
            frozenset({"UploadNotFoundException"}),
        ),
    ),
    Permission(
        operation="PutImage",
        without={"push": "", "migrate": ""},
        probe=Probe(_unknown_image, frozenset({"LayersNotFoundException"})),
    ),
    Permission(
        operation="GetDownloadUrlForLayer",
        without={"migrate": _NOT_MOUNTED, "verify": "verify --deep can't read the layers"},
        services=_PRIVATE,
        probe=Probe(
            lambda: {"layerDigest": _unknown_digest()},
            frozenset({"LayersNotFoundException", "LayerInaccessibleException"}),
        ),
    ),
    Permission(
        operation="GetAccountSetting",
        without={"migrate": "asyncpush can't tell whether layers are mounted"},
        services=_PRIVATE,
        is_global=True,
    ),
    Permission(
        operation="DescribeRepositoryCreationTemplates",
        without={"migrate": "creation templates are not seen"},
        services=_PRIVATE,
        is_global=True,
        probe=Probe(lambda: {"maxResults": 1}),
    ),
    Permission(
        operation="CreateRepository",
        without={"migrate": "missing repositories can't be created"},
        features=frozenset({"create"}),
        # In a repository that exists; in one that does not, it would create it.
        probe=Probe(dict, frozenset({"RepositoryAlreadyExistsException"})),
    ),
    Permission(
        operation="TagResource",
        without={"migrate": "repositories with resource tags can't be created"},
        features=frozenset({"resource-tags"}),
    ),
    Permission(
        operation="ListTagsForResource",
        without={"verify": "resource tags are not compared with the plan"},
        features=frozenset({"resource-tags"}),
    ),
    Permission(
        operation="SetRepositoryPolicy",
        without={"migrate": "created repositories lack their policy"},
        features=frozenset({"policy"}),
    ),
    Permission(
        operation="GetRepositoryPolicy",
        without={
            "migrate": _UNFINISHED,
            "verify": "policies are not compared with the plan",
        },
        features=frozenset({"policy"}),
        probe=Probe(dict, frozenset({"RepositoryPolicyNotFoundException"})),
    ),
    Permission(
        operation="PutLifecyclePolicy",
        without={"migrate": "created repositories lack their lifecycle policy"},
        services=_PRIVATE,
        features=frozenset({"lifecycle-policy"}),
    ),
    Permission(
        operation="GetLifecyclePolicy",
        without={
            "migrate": _UNFINISHED,
            "verify": "lifecycle policies are not compared with the plan",
        },
        services=_PRIVATE,
        features=frozenset({"lifecycle-policy"}),
        probe=Probe(dict, frozenset({"LifecyclePolicyNotFoundException"})),
    ),
)


def permissions_of(task: Task, service: Service, features: Collection[Feature]) -> tuple[Permission, ...]:
    """The actions that *task* uses at *service*."""
    return tuple(
        permission
        for permission in PERMISSIONS
        if task in permission.without
        and service in permission.services
        and (not permission.features or not permission.features.isdisjoint(features))
    )


def judge(
    permission: Permission, task: Task, service: Service, repository: str, error: AsyncpushError | None
) -> Finding:
    """What the outcome of a call says about its action.

    Args:
        permission: the action.
        task: what it is needed for.
        service: the service.
        repository: the repository that the call named; empty if none.
        error: why the call failed; None if it did not.
    """
    name = f"{service}:{permission.operation}"
    where = f" in {repository}" if repository else ""
    allowed = permission.probe.allowed if permission.probe else frozenset[str]()
    if error is None or (isinstance(error, ServiceError) and error.code in allowed):
        return Finding(name, "ok", f"allowed{where}")
    if isinstance(error, ServiceError) and error.code == _NO_KEY:
        return Finding(name, "problem", f"the key{where} can't be used: {error.message}", error.hint)
    if not isinstance(error, ServiceError) or error.code not in DENIED:
        return Finding(name, "unknown", f"ECR's answer does not tell: {error.message}", error.hint)
    reason = _BECAUSE.search(error.message)
    lost = permission.without[task]
    return Finding(
        name,
        "note" if lost else "problem",
        f"denied{where}{f': {reason[1]}' if reason else ''}{f'; without it, {lost}' if lost else ''}",
        f"allow {name}{where}: asyncpush doctor --policy --for {task} prints a policy",
    )
