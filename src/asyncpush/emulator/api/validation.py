"""Validates input against a service's model, and reports the first rule that it breaks.

Constraints are those of the model's shapes: presence, type, length, range, pattern, enumeration. Members that the model
does not have are ignored, as AWS does.
"""

from __future__ import annotations

import binascii
import gzip
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Protocol

import msgspec
import pybase64

from asyncpush.emulator.errors import AwsError, invalid_parameter

#: The ranges of the whole numbers, in bits (Smithy's simple types).
_BITS = {"byte": 8, "short": 16, "integer": 32, "long": 64}


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken rule: where, such as ``imageIds[0].imageTag``, and which."""

    path: str
    constraint: str


class Rule(Protocol):
    """What a shape demands of a value."""

    def violations(self, value: object, path: str) -> Iterator[Violation]:
        """What *value*, found at *path*, breaks, in the model's order; lazily, so the first is found soon."""
        ...


class InputRules:
    """The rules of one service's operations.

    Args:
        model: the service's model.
    """

    def __init__(self, model: Model) -> None:
        self._operations: Model = model["operations"]
        self._shapes: Model = model["shapes"]
        self._rules: dict[str, Rule] = {}

    @property
    def operations(self) -> frozenset[str]:
        """The names of all operations that the service has."""
        return frozenset(self._operations)

    def check(self, operation: str, document: object) -> None:
        """Validate an operation's input.

        Args:
            operation: its name in the model, such as ``PutImage``.
            document: the request's body, parsed; blobs as base64 text, or as bytes where they are decoded already.

        Raises:
            AwsError: InvalidParameterException that names the first member that breaks a rule;
                SerializationException if it is not an object.
        """
        if not isinstance(document, dict):
            raise AwsError("SerializationException", "The request's body must be a JSON object")
        shape = self._operations[operation].get("input")
        rule = self._rule(shape["shape"]) if shape else _Structure({}, frozenset())
        for violation in rule.violations(document, ""):
            raise invalid_parameter(violation.path, violation.constraint)

    def _rule(self, name: str) -> Rule:
        """The rule of a shape; made when it is first needed."""
        if name not in self._rules:
            self._rules[name] = self._make(self._shapes[name])
        return self._rules[name]

    def _make(self, shape: Model) -> Rule:
        kind: str = shape["type"]
        length = _Length(shape.get("min"), shape.get("max"))
        match kind:
            case "structure":
                shapes = {member: reference["shape"] for member, reference in shape["members"].items()}
                members = {member: self._rule(name) for member, name in shapes.items()}
                return _Structure(members, frozenset(shape.get("required", ())))
            case "list":
                return _List(self._rule(shape["member"]["shape"]), length)
            case "map":
                return _Map(self._rule(shape["key"]["shape"]), self._rule(shape["value"]["shape"]), length)
            case "string":
                pattern, values = shape.get("pattern"), tuple(shape.get("enum", ()))
                return _String(length, re.compile(pattern, re.ASCII) if pattern else None, values)
            case "blob":
                return _Blob(length)
            case "byte" | "short" | "integer" | "long":
                half = 1 << _BITS[kind] - 1
                return _Number((int,), "an integer", shape.get("min", -half), shape.get("max", half - 1))
            case "boolean":
                return _Boolean()
        # float, double and timestamp: seconds since 1970.
        return _Number((int, float), "a number", shape.get("min"), shape.get("max"))


@cache
def load_input_rules(service: str) -> InputRules:
    """The rules of ``ecr`` or ``ecr-public``; blocks for some milliseconds, once."""
    return InputRules(load_model(service))


@dataclass(frozen=True, slots=True)
class _Length:
    least: int | None
    most: int | None

    def violations(self, length: int, path: str) -> Iterator[Violation]:
        if self.least is not None and length < self.least:
            yield Violation(path, f"must have length greater than or equal to {self.least}")
        if self.most is not None and length > self.most:
            yield Violation(path, f"must have length less than or equal to {self.most}")


@dataclass(frozen=True, slots=True)
class _Structure:
    members: Mapping[str, Rule]
    required: frozenset[str]

    def violations(self, value: object, path: str) -> Iterator[Violation]:
        if not isinstance(value, dict):
            yield Violation(path, "must be an object")
            return
        for name, rule in self.members.items():
            member, member_path = value.get(name), f"{path}.{name}" if path else name
            if member is not None:
                yield from rule.violations(member, member_path)
            elif name in self.required:
                yield Violation(member_path, "must not be null")


@dataclass(frozen=True, slots=True)
class _List:
    member: Rule
    length: _Length

    def violations(self, value: object, path: str) -> Iterator[Violation]:
        if not isinstance(value, list):
            yield Violation(path, "must be a list")
            return
        yield from self.length.violations(len(value), path)
        for index, entry in enumerate(value):
            yield from _entry(self.member, entry, f"{path}[{index}]")


@dataclass(frozen=True, slots=True)
class _Map:
    key: Rule
    value: Rule
    length: _Length

    def violations(self, value: object, path: str) -> Iterator[Violation]:
        if not isinstance(value, dict):
            yield Violation(path, "must be an object")
            return
        yield from self.length.violations(len(value), path)
        for name, entry in value.items():
            yield from self.key.violations(name, path)
            yield from _entry(self.value, entry, f"{path}.{name}")


@dataclass(frozen=True, slots=True)
class _String:
    length: _Length
    pattern: re.Pattern[str] | None
    values: tuple[str, ...]

    def violations(self, value: object, path: str) -> Iterator[Violation]:
        if not isinstance(value, str):
            yield Violation(path, "must be a string")
            return
        # The length first: it bounds what the pattern has to look at.
        yield from self.length.violations(len(value), path)
        if self.pattern and not self.pattern.fullmatch(value):
            yield Violation(path, f"must satisfy regular expression '{self.pattern.pattern}'")
        if self.values and value not in self.values:
            yield Violation(path, f"must satisfy enum value set: [{', '.join(self.values)}]")


@dataclass(frozen=True, slots=True)
class _Blob:
    length: _Length

    def violations(self, value: object, path: str) -> Iterator[Violation]:
        if isinstance(value, str):
            try:
                value = pybase64.b64decode(value, validate=True)
            except (binascii.Error, ValueError) as error:
                yield Violation(path, f"must be base64: {error}")
                return
        if not isinstance(value, bytes | memoryview):
            yield Violation(path, "must be base64")
            return
        yield from self.length.violations(len(value), path)


@dataclass(frozen=True, slots=True)
class _Number:
    kinds: tuple[type[int | float], ...]
    name: str
    least: float | None
    most: float | None

    def violations(self, value: object, path: str) -> Iterator[Violation]:
        if not isinstance(value, self.kinds) or isinstance(value, bool):
            yield Violation(path, f"must be {self.name}")
        elif self.least is not None and value < self.least:
            yield Violation(path, f"must have value greater than or equal to {self.least}")
        elif self.most is not None and value > self.most:
            yield Violation(path, f"must have value less than or equal to {self.most}")


class _Boolean:
    __slots__ = ()

    def violations(self, value: object, path: str) -> Iterator[Violation]:
        if not isinstance(value, bool):
            yield Violation(path, "must be true or false")


def _entry(rule: Rule, value: object, path: str) -> Iterator[Violation]:
    if value is None:
        yield Violation(path, "must not be null")
    else:
        yield from rule.violations(value, path)


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
    "ecr": {
        "ListImageReferrers": {"input": {"shape": "ListImageReferrersRequest"}},
        "UpdateImageStorageClass": {"input": {"shape": "UpdateImageStorageClassRequest"}},
    },
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
        "UpdateImageStorageClassRequest": {
            "type": "structure",
            "required": ["repositoryName", "imageId", "targetStorageClass"],
            "members": _members(
                registryId="RegistryId",
                repositoryName="RepositoryName",
                imageId="ImageIdentifier",
                targetStorageClass="TargetStorageClass",
            ),
        },
        "TargetStorageClass": {"type": "string", "enum": ["STANDARD", "ARCHIVE"]},
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
