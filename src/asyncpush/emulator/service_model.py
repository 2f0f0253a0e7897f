"""ECR's and ECR Public's service models: as botocore ships them, with what is newer or safer put over them."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec

#: A model, or a part of one, in the notation of botocore's ``service-2.json``.
Model = Mapping[str, Any]

_NAME = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*"
_TAG = r"[a-zA-Z0-9_][a-zA-Z0-9._-]*"
_STATUS = {"type": "string", "enum": ["ACTIVE", "ARCHIVED", "ACTIVATING", "ANY"]}
_PREFIX = {"pattern": rf"^({_NAME}\/?|ROOT)$"}


def _members(**shapes: str) -> dict[str, dict[str, str]]:
    return {name: {"shape": shape} for name, shape in shapes.items()}


#: Operations of ECR that the botocore which aioboto3 pins does not have; a newer one's own count instead.
_ADDED_OPERATIONS: dict[str, Model] = {
    "ecr": {"ListImageReferrers": {"input": {"shape": "ListImageReferrersRequest"}}},
    "ecr-public": {},
}

#: Their shapes, and members that shapes of it have gained since.
_ADDED_SHAPES: dict[str, Model] = {
    "ecr": {
        "ListImageReferrersRequest": {
            "type": "structure",
            "required": ["repositoryName", "subjectId"],
            "members": _members(
                registryId="RegistryId",
                repositoryName="RepositoryName",
                subjectId="SubjectIdentifier",
                filter="ListImageReferrersFilter",
                nextToken="NextToken",
                maxResults="FiftyMaxResults",
            ),
        },
        "SubjectIdentifier": {
            "type": "structure",
            "required": ["imageDigest"],
            "members": _members(imageDigest="ImageDigest"),
        },
        "ListImageReferrersFilter": {
            "type": "structure",
            "members": _members(artifactTypes="ArtifactTypeList", artifactStatus="ArtifactStatusFilter"),
        },
        "ArtifactTypeList": {"type": "list", "member": {"shape": "ArtifactType"}, "min": 0, "max": 5},
        "ArtifactType": {"type": "string", "min": 1, "max": 255},
        "ArtifactStatusFilter": _STATUS,
        "ImageStatusFilter": _STATUS,
        "FiftyMaxResults": {"type": "integer", "min": 1, "max": 50},
    },
    "ecr-public": {},
}

#: Rules that count whatever the model says; members and enum values are added to its own.
_OVERRIDES: dict[str, Model] = {
    "ecr": {
        # Names of OCI's form: newer models have them, the pinned one refuses "__" and runs of "-".
        "RepositoryName": {"pattern": _NAME},
        "Prefix": _PREFIX,
        "CredentialArn": {
            "pattern": r"^arn:aws(-\w+)*:secretsmanager:[a-zA-Z0-9-:]+:secret:ecr\-pullthroughcache\/[\w/+=.@-]+$"
        },
        "KmsKeyForRepositoryCreationTemplate": {
            "pattern": r"^$|arn:aws[a-z0-9-]*:kms:[a-z0-9-]+:[0-9]{12}:key\/[a-z0-9-]+"
        },
        "RCTAppliedFor": {"enum": ["CREATE_ON_PUSH"]},
        "UpstreamRegistry": {"enum": ["chainguard"]},
        "PullThroughCacheRuleRepositoryPrefix": _PREFIX,
        "DescribeImagesFilter": {"members": _members(tagStatus="TagStatus", imageStatus="ImageStatusFilter")},
        "ListImagesFilter": {"members": _members(tagStatus="TagStatus", imageStatus="ImageStatusFilter")},
        # Accepts what the model's own pattern accepts; that one takes exponential time to refuse.
        "ScanningRepositoryFilterValue": {"pattern": r"^[a-z0-9*]+(?:[._\-/][a-z0-9*]+)*$"},
        "PutImageRequest": {"members": {"imageTag": {"shape": "NewImageTag"}}},
        # The model gives lengths only; the characters are those that a pull can name (OCI distribution-spec).
        "NewImageTag": {"type": "string", "min": 1, "max": 300, "pattern": _TAG},
    },
    "ecr-public": {
        # The model gives lengths only; of an alias it says more elsewhere (RegistryAliasName).
        "RegistryIdOrAlias": {"pattern": r"[0-9]{12}|[a-z][a-z0-9]+(?:[._-][a-z0-9]+)*"},
        "PutImageRequest": {"members": {"imageTag": {"shape": "NewImageTag"}}},
        "NewImageTag": {"type": "string", "min": 1, "max": 300, "pattern": _TAG},
    },
}


@cache
def load_model(service: str) -> Model:
    """Read the model of ``ecr`` or ``ecr-public``, once; blocks for some milliseconds.

    Its file is read without botocore's loader: importing that takes many times longer than all else here, and it would
    take models from the user's home, too.
    """
    versions = sorted(files("botocore").joinpath("data", service).iterdir(), key=lambda version: version.name)
    # Compressed in botocore's own distribution, plain in some others.
    [file] = [file for file in versions[-1].iterdir() if file.name in ("service-2.json.gz", "service-2.json")]
    raw = file.read_bytes()
    model: dict[str, Any] = msgspec.json.decode(gzip.decompress(raw) if file.name.endswith(".gz") else raw)
    model["operations"] = {**_ADDED_OPERATIONS[service], **model["operations"]}
    model["shapes"] = {**_ADDED_SHAPES[service], **model["shapes"]}
    for name, rules in _OVERRIDES[service].items():
        model["shapes"][name] = _over(model["shapes"].get(name, {}), rules)
    return model


def _over(shape: Model, rules: Model) -> Model:
    merged = {**shape, **rules}
    if "members" in rules:
        merged["members"] = {**shape["members"], **rules["members"]}
    if "enum" in rules:
        merged["enum"] = list(dict.fromkeys([*shape["enum"], *rules["enum"]]))
    return merged
