"""Answers below ``/v2/``: JSON documents, errors, and pages of lists."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import urlencode

import msgspec
from aiohttp import web

from asyncpush.emulator.errors import AwsError

#: Headers of every answer.
VERSION = {"Docker-Distribution-Api-Version": "registry/2.0"}


def empty(status: int, headers: Mapping[str, str]) -> web.Response:
    """An answer without a body."""
    return web.Response(status=status, headers={**VERSION, **headers})


def json_answer(
    document: object,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    media_type: str = "application/json",
) -> web.Response:
    """An answer with a JSON document."""
    return web.Response(
        body=msgspec.json.encode(document),
        status=status,
        headers={**VERSION, **(headers or {}), "Content-Type": media_type},
    )


def refusal(error: V2Error) -> web.Response:
    """The answer of an error (distribution-spec, Error Codes)."""
    document = {"errors": [{"code": error.code, "message": error.message}]}
    return json_answer(document, status=error.status, headers=error.headers)


def page(request: web.Request, names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """A page of names: the ``n`` sorted ones after ``last``, and the header ``Link`` to the next page, if there is one.

    Raises:
        V2Error: PAGINATION_NUMBER_INVALID.
    """
    size, last = request.query.get("n"), request.query.get("last", "")
    if size is not None and not re.fullmatch(r"[0-9]{1,9}", size):
        raise V2Error(400, "PAGINATION_NUMBER_INVALID", f"n is {size!r}, and must be a number")
    rest = sorted(name for name in names if name > last)
    shown = rest if size is None else rest[: int(size)]
    if not shown or len(shown) == len(rest):
        return shown, {}
    query = urlencode({"last": shown[-1], "n": size})
    return shown, {"Link": f'<{request.path}?{query}>; rel="next"'}


#: As ECR was observed to answer: 405 UNSUPPORTED is its answer to every manifest that it does not accept.
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
        message: the reason.
        headers: further headers of the answer.
    """

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers or {}
        super().__init__(message)


def translated(error: AwsError) -> V2Error:
    """The error below ``/v2/`` that stands for an error of the JSON API."""
    status, code = _MEANINGS.get(error.code, (error.status, "UNKNOWN"))
    return V2Error(status, code, error.message)


def unauthorized(request: web.BaseRequest) -> V2Error:
    """A missing or wrong token: a challenge (distribution-spec, Error Codes)."""
    challenge = f'Basic realm="{request.scheme}://{request.host}/",service="ecr.amazonaws.com"'
    message = "give the user AWS and a password of GetAuthorizationToken"
    return V2Error(401, "UNAUTHORIZED", message, {"WWW-Authenticate": challenge})


def token_expired() -> V2Error:
    """An expired token, as ECR answers it."""
    return V2Error(403, "DENIED", "Your authorization token has expired. Reauthenticate and try again.")


def digest_invalid(text: str) -> V2Error:
    """A malformed digest, or one of another algorithm than sha256."""
    return V2Error(400, "DIGEST_INVALID", f"{text!r} is not a sha256 digest")
