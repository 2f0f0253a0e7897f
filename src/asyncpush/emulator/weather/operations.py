"""The names of requests, as rules select them: ECR's operations, and a method and a kind of path below ``/v2/``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

#: What the emulator's JSON API answers.
OPERATIONS = (
    "BatchCheckLayerAvailability",
    "BatchDeleteImage",
    "BatchGetImage",
    "CompleteLayerUpload",
    "CreateRepository",
    "CreateRepositoryCreationTemplate",
    "DeleteLifecyclePolicy",
    "DeleteRepository",
    "DeleteRepositoryCreationTemplate",
    "DeleteRepositoryPolicy",
    "DescribeImageTags",
    "DescribeImages",
    "DescribeRegistries",
    "DescribeRegistry",
    "DescribeRepositories",
    "DescribeRepositoryCreationTemplates",
    "GetAccountSetting",
    "GetAuthorizationToken",
    "GetDownloadUrlForLayer",
    "GetLifecyclePolicy",
    "GetRegistryCatalogData",
    "GetRepositoryCatalogData",
    "GetRepositoryPolicy",
    "InitiateLayerUpload",
    "ListImageReferrers",
    "ListImages",
    "ListTagsForResource",
    "PutAccountSetting",
    "PutImage",
    "PutImageScanningConfiguration",
    "PutImageTagMutability",
    "PutLifecyclePolicy",
    "PutRegistryCatalogData",
    "PutRepositoryCatalogData",
    "SetRepositoryPolicy",
    "TagResource",
    "UntagResource",
    "UpdateRepositoryCreationTemplate",
    "UploadLayerPart",
)

#: Before the names of pushes and pulls: ``v2:GET-blob``.
V2 = "v2:"

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")

#: The last words of a path (OCI distribution-spec), by what they are; an upload's is longer than a blob's.
_KINDS = {
    "upload": re.compile(r"(?P<name>.+)/blobs/uploads(?:/(?P<upload>.*))?"),
    "blob": re.compile(r"(?P<name>.+)/blobs/[^/]+"),
    "manifest": re.compile(r"(?P<name>.+)/manifests/[^/]+"),
    "tags": re.compile(r"(?P<name>.+)/tags/list"),
    "referrers": re.compile(r"(?P<name>.+)/referrers/[^/]+"),
    "base": re.compile(r"(?P<name>)"),
}

NAMES = (*OPERATIONS, *(f"{V2}{method}-{kind}" for kind in _KINDS for method in _METHODS))


@dataclass(frozen=True, slots=True)
class V2Name:
    """A request below ``/v2/``: what rules call it, and the repository and upload that its path names, if any."""

    operation: str
    repository: str = ""
    upload: str = ""


def name_v2(method: str, path: str) -> V2Name:
    """Name a request by its method and its path below ``/v2/``; what is no path of the specification is ``other``."""
    for kind, pattern in _KINDS.items():
        if match := pattern.fullmatch(path):
            return V2Name(f"{V2}{method}-{kind}", match["name"], match.groupdict().get("upload") or "")
    return V2Name(f"{V2}{method}-other")


def matching(glob: str) -> list[str]:
    """The names that *glob* selects."""
    return [name for name in NAMES if fnmatchcase(name, glob)]
