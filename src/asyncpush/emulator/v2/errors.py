"""Refusals below ``/v2/``: the distribution-spec's codes, and which of them stands for each of ECR's errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from asyncpush.emulator.errors import AwsError

#: As ECR has been seen to answer: 405 UNSUPPORTED is what it says of each manifest that it does not take.
_MEANINGS: Final = {
    "RepositoryNotFoundException": (404, "NAME_UNKNOWN"),
    "UploadNotFoundException": (404, "BLOB_UPLOAD_UNKNOWN"),
    "EmptyUploadException": (400, "BLOB_UPLOAD_INVALID"),
    "LayerPartTooSmallException": (400, "BLOB_UPLOAD_INVALID"),
    "LayersNotFoundException": (404, "MANIFEST_BLOB_UNKNOWN"),
    "ReferencedImagesNotFoundException": (404, "MANIFEST_BLOB_UNKNOWN"),
    "ImageTagAlreadyExistsException": (400, "TAG_INVALID"),
    "ImageDigestDoesNotMatchException": (400, "DIGEST_INVALID"),
    "InvalidParameterException": (405, "UNSUPPORTED"),
    "RequestEntityTooLargeException": (413, "SIZE_INVALID"),
    "LimitExceededException": (403, "DENIED"),
}


class V2Error(Exception):
    """Raised to refuse a request.

    Args:
        status: the HTTP status.
        code: the distribution-spec's code, such as ``MANIFEST_UNKNOWN``.
        message: what is wrong.
        headers: what the answer says beside it.
    """

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers or {}
        super().__init__(message)


def translated(error: AwsError) -> V2Error:
    """What a refusal by ECR's rules is called below ``/v2/``."""
    status, code = _MEANINGS.get(error.code, (error.status, "UNKNOWN"))
    return V2Error(status, code, error.message)


def digest_invalid(text: str) -> V2Error:
    """A digest that is none, or of another algorithm than ECR's sha256."""
    return V2Error(400, "DIGEST_INVALID", f"{text!r} is no sha256 digest")
