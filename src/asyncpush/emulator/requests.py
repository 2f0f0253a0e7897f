"""What each operation takes: members, types, lengths and patterns, as ECR's service model has them."""

from __future__ import annotations

import re
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from asyncpush.emulator.errors import AwsError, invalid_parameter

MiB = 1024 * 1024

#: The longest manifest (PutImage, imageManifest) and the longest decoded part (UploadLayerPart, layerPartBlob).
MAX_MANIFEST = 4 * MiB
MAX_PART = 20 * MiB

RepositoryName = Annotated[
    str,
    Meta(
        min_length=2,
        max_length=256,
        pattern=r"^[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*\Z",
    ),
]
UploadId = Annotated[
    str, Meta(pattern=r"^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}\Z")
]
LayerDigest = Annotated[str, Meta(max_length=1000)]
ByteOffset = Annotated[int, Meta(ge=0)]
#: ECR's model gives lengths only; the characters are those that a pull can name (OCI distribution-spec).
Tag = Annotated[str, Meta(min_length=1, max_length=300, pattern=r"^[a-zA-Z0-9_][a-zA-Z0-9._-]*\Z")]
PageSize = Annotated[int, Meta(ge=1, le=1000)]
TagStatus = Literal["TAGGED", "UNTAGGED", "ANY"]


class Request(msgspec.Struct, rename="camel", frozen=True):
    """What all operations take."""

    registry_id: str | None = None


class RepositoryRequest(Request, frozen=True, kw_only=True):
    """What all operations on one repository take."""

    repository_name: RepositoryName


class BatchCheckLayerAvailability(RepositoryRequest, frozen=True, kw_only=True):
    """Input of BatchCheckLayerAvailability."""

    layer_digests: Annotated[list[LayerDigest], Meta(min_length=1, max_length=100)]


class InitiateLayerUpload(RepositoryRequest, frozen=True, kw_only=True):
    """Input of InitiateLayerUpload."""


class UploadLayerPart(RepositoryRequest, frozen=True, kw_only=True):
    """Input of UploadLayerPart; the blob's base64 is decoded apart from it and its member left empty."""

    upload_id: UploadId
    part_first_byte: ByteOffset
    part_last_byte: ByteOffset
    layer_part_blob: str


class CompleteLayerUpload(RepositoryRequest, frozen=True, kw_only=True):
    """Input of CompleteLayerUpload."""

    upload_id: UploadId
    layer_digests: Annotated[
        list[Annotated[str, Meta(pattern=r"^[a-zA-Z0-9-_+.]+:[a-fA-F0-9]+\Z")]], Meta(min_length=1, max_length=100)
    ]


class GetDownloadUrlForLayer(RepositoryRequest, frozen=True, kw_only=True):
    """Input of GetDownloadUrlForLayer."""

    layer_digest: Annotated[str, Meta(max_length=1000)]


class PutImage(RepositoryRequest, frozen=True, kw_only=True):
    """Input of PutImage."""

    image_manifest: Annotated[str, Meta(min_length=1, max_length=MAX_MANIFEST)]
    image_manifest_media_type: str | None = None
    image_tag: Tag | None = None
    image_digest: str | None = None


class ImageId(msgspec.Struct, rename="camel", frozen=True, omit_defaults=True):
    """An image by digest, by tag, or by both."""

    image_digest: str | None = None
    image_tag: str | None = None


ImageIds = Annotated[list[ImageId], Meta(min_length=1, max_length=100)]


class BatchGetImage(RepositoryRequest, frozen=True, kw_only=True):
    """Input of BatchGetImage."""

    image_ids: ImageIds
    accepted_media_types: Annotated[list[str], Meta(min_length=1, max_length=100)] | None = None


class BatchDeleteImage(RepositoryRequest, frozen=True, kw_only=True):
    """Input of BatchDeleteImage."""

    image_ids: ImageIds


class ImageFilter(msgspec.Struct, rename="camel", frozen=True):
    """The filter of DescribeImages and ListImages."""

    tag_status: TagStatus = "ANY"
    image_status: Literal["ACTIVE", "ARCHIVED", "ACTIVATING", "ANY"] = "ACTIVE"


class ListImages(RepositoryRequest, frozen=True, kw_only=True):
    """Input of ListImages."""

    filter: ImageFilter = ImageFilter()
    next_token: str | None = None
    max_results: PageSize | None = None


class DescribeImages(ListImages, frozen=True, kw_only=True):
    """Input of DescribeImages."""

    image_ids: ImageIds | None = None


class DescribeImageTags(RepositoryRequest, frozen=True, kw_only=True):
    """Input of DescribeImageTags (public)."""

    next_token: str | None = None
    max_results: PageSize | None = None


class SubjectId(msgspec.Struct, rename="camel", frozen=True):
    """The image that others refer to."""

    image_digest: str


class ReferrersFilter(msgspec.Struct, rename="camel", frozen=True):
    """The filter of ListImageReferrers."""

    artifact_types: Annotated[tuple[str, ...], Meta(max_length=5)] = ()
    artifact_status: Literal["ACTIVE", "ARCHIVED", "ACTIVATING", "ANY"] = "ACTIVE"


class ListImageReferrers(RepositoryRequest, frozen=True, kw_only=True):
    """Input of ListImageReferrers."""

    subject_id: SubjectId
    filter: ReferrersFilter = ReferrersFilter()
    next_token: str | None = None
    max_results: Annotated[int, Meta(ge=1, le=50)] | None = None


T = TypeVar("T", bound=Request)

_PATH = re.compile(r" - at `\$\.?(?P<path>.*)`\Z")
_WORDINGS = (
    (re.compile(r"Object missing required field `(?P<name>.*)`"), "must not be null"),
    (re.compile(r"Expected `.*`, got `null`"), "must not be null"),
    (re.compile(r"Expected `\w+` of length >= (\d+)"), r"must have length greater than or equal to \1"),
    (re.compile(r"Expected `\w+` of length <= (\d+)"), r"must have length less than or equal to \1"),
    (re.compile(r"Expected `int` >= (\d+)"), r"must have value greater than or equal to \1"),
    (re.compile(r"Expected `int` <= (\d+)"), r"must have value less than or equal to \1"),
    (re.compile(r"Expected `str` matching regex '\^(.*)\\\\Z'"), r"must satisfy regular expression '\1'"),
    (re.compile(r"Invalid enum value (.*)"), r"must be one of the values of its enumeration, not \1"),
)


def decode(body: bytes | bytearray, kind: type[T]) -> T:
    """Read a request's body.

    Raises:
        AwsError: SerializationException if it is no JSON, InvalidParameterException if it breaks *kind*'s rules.
    """
    try:
        return msgspec.json.decode(body or b"{}", type=kind)
    except msgspec.ValidationError as error:
        raise _constraint(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise AwsError("SerializationException", f"The request's body is not JSON: {error}") from error


def _constraint(problem: str) -> AwsError:
    """Word msgspec's finding as ECR words a broken constraint."""
    place = _PATH.search(problem)
    path, problem = (place["path"], problem[: place.start()]) if place else ("", problem)
    for pattern, wording in _WORDINGS:
        if match := pattern.fullmatch(problem):
            inner = match.groupdict().get("name")
            return invalid_parameter(".".join(word for word in (path, inner) if word), match.expand(wording))
    return invalid_parameter(path or "body", problem)
