"""The shapes of answers below ``/v2/``: JSON, refusals, and pages that lead to the next one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import urlencode

import msgspec
from aiohttp import web

from asyncpush.emulator.errors import AwsError

#: What every answer says.
VERSION = {"Docker-Distribution-Api-Version": "registry/2.0"}


def empty(status: int, headers: Mapping[str, str]) -> web.Response:
    """An answer whose headers say it all."""
    return web.Response(status=status, headers={**VERSION, **headers})


def json_answer(
    document: object,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    media_type: str = "application/json",
) -> web.Response:
    """An answer with a document."""
    return web.Response(
        body=msgspec.json.encode(document),
        status=status,
        headers={**VERSION, **(headers or {}), "Content-Type": media_type},
    )


def refusal(error: V2Error) -> web.Response:
    """An error (distribution-spec, Error Codes)."""
    document = {"errors": [{"code": error.code, "message": error.message}]}
    return json_answer(document, status=error.status, headers=error.headers)


def page(request: web.Request, names: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The sorted names behind ``last``, ``n`` of them, and the ``Link`` to the next ones, if there are any.

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
    return V2Error(400, "DIGEST_INVALID", f"{text!r} is not a sha256 digest")
