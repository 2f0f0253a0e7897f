"""The shapes of answers below ``/v2/``: JSON, refusals, and pages that lead to the next one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from urllib.parse import urlencode

import msgspec
from aiohttp import web

from asyncpush.emulator.v2.errors import V2Error

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
