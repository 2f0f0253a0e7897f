"""A request as fault rules see it: its operation, its service, and the few members of its body that rules use."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import msgspec
from aiohttp import web

from asyncpush.emulator.api.dispatch import operation_name
from asyncpush.emulator.api.part_body import locate_blob
from asyncpush.emulator.connections import header_text
from asyncpush.emulator.errors import AwsError
from asyncpush.emulator.store.records import ParsedManifest, read_manifest


@dataclass(frozen=True, slots=True)
class Call:
    """A request.

    Attributes:
        operation: its name in rules.
        service: the target's prefix, or ``v2:``.
        repository: the repository's name; empty where it names none, or before ``with_members``.
        registry_id: the account; empty likewise.
        upload_id: the upload; empty likewise.
        manifest: the manifest of PutImage, if it is valid.
    """

    operation: str
    service: str
    repository: str = ""
    registry_id: str = ""
    upload_id: str = ""
    manifest: ParsedManifest | None = None

    @property
    def is_v2(self) -> bool:
        """Whether it is a request below ``/v2/``, not an operation of the JSON API."""
        return self.service == V2


class _Members(msgspec.Struct, rename="camel"):
    repository_name: str = ""
    registry_id: str = ""
    upload_id: str = ""
    image_manifest: str | None = None
    image_manifest_media_type: str | None = None


def identify(request: web.Request) -> Call | None:
    """Identify a request; None if it is for the emulator itself."""
    if request.path == "/" and request.method == "POST":
        target = header_text(request, "X-Amz-Target")
        return Call(operation_name(target), target.rpartition(".")[0])
    if request.path.startswith("/v2/"):
        name = name_v2(request.method, request.path.removeprefix("/v2/"))
        return Call(name.operation, V2, name.repository, upload_id=name.upload)
    return None


def with_members(call: Call, body: bytearray) -> Call:
    """Add the members of the body; blocks while it is parsed. A malformed body is left to the operation."""
    try:
        members = msgspec.json.decode(_without_blob(body), type=_Members)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return call
    return replace(
        call,
        repository=members.repository_name,
        registry_id=members.registry_id,
        upload_id=members.upload_id,
        manifest=_manifest(members),
    )


def _without_blob(body: bytearray) -> bytes | bytearray:
    span = locate_blob(body)
    return bytes(body[: span[0]] + body[span[1] :]) if span else body


def _manifest(members: _Members) -> ParsedManifest | None:
    if members.image_manifest is None:
        return None
    try:
        return read_manifest(members.image_manifest.encode(), members.image_manifest_media_type)
    except AwsError:
        return None


#: The operations of the emulator's JSON API.
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
    "UpdateImageStorageClass",
    "UpdateRepositoryCreationTemplate",
    "UploadLayerPart",
)

#: The prefix of requests below ``/v2/``: ``v2:GET-blob``.
V2 = "v2:"

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")

#: The paths of each kind of request (OCI distribution-spec); an upload's must come before a blob's.
_KINDS = {
    "upload": re.compile(r"(?P<name>.+)/blobs/uploads(?:/(?P<upload>.*))?"),
    "blob": re.compile(r"(?P<name>.+)/blobs/[^/]+"),
    "manifest": re.compile(r"(?P<name>.+)/manifests/[^/]+"),
    "tags": re.compile(r"(?P<name>.+)/tags/list"),
    "referrers": re.compile(r"(?P<name>.+)/referrers/[^/]+"),
    "base": re.compile(r"(?P<name>)"),
}

NAMES = (*OPERATIONS, *(f"{V2}{method}-{kind}" for kind in _KINDS for method in _METHODS))

_KNOWN = frozenset(NAMES)


def counted_as(operation: str) -> str:
    """The name under which requests of *operation* are counted: clients can make up any, which count together."""
    return operation if operation in _KNOWN else "(other)"


@dataclass(frozen=True, slots=True)
class V2Name:
    """A request below ``/v2/``: its name in rules, and the repository and upload in its path, if any."""

    operation: str
    repository: str = ""
    upload: str = ""


def name_v2(method: str, path: str) -> V2Name:
    """Identify a request by its method and its path below ``/v2/``; unknown paths are ``other``."""
    for kind, pattern in _KINDS.items():
        if match := pattern.fullmatch(path):
            return V2Name(f"{V2}{method}-{kind}", match["name"], match.groupdict().get("upload") or "")
    return V2Name(f"{V2}{method}-other")


def matching(glob: str) -> list[str]:
    """The names that *glob* selects."""
    return [name for name in NAMES if fnmatchcase(name, glob)]
