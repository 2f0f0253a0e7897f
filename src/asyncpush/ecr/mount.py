"""Layers taken over from one repository into another: ``/v2/``'s cross-repository blob mount, which the API lacks."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import botocore.exceptions as bce
import pybase64

from asyncpush.ecr.auth_token import EcrLogin
from asyncpush.ecr.client import EcrClient, answer_timeout
from asyncpush.ecr.endpoints import registry_host
from asyncpush.ecr.errors import translated
from asyncpush.ecr.http_session import EcrHttp
from asyncpush.ecr.rate_limit import is_aws
from asyncpush.ecr.retry import RetryingSender
from asyncpush.errors import ServiceError
from asyncpush.model import Digest
from asyncpush.reference import RegistryName
from asyncpush.settings import Credentials

#: What a mount is called in errors, events and paces. Which of ECR's quotas it counts against is not documented.
OPERATION = "MountBlob"

_MOUNTED = 201
_NOT_MOUNTED = frozenset({202, 404, 405})


class Mounts:
    """Mounts blobs within one registry, at its ``/v2/``.

    ECR mounts where the account's setting BLOB_MOUNTING is ENABLED, between repositories of the same encryption, and
    only what an image of the source refers to (ECR user guide, blob mounting); the caller needs
    ecr:GetDownloadUrlForLayer of the source. Otherwise it opens an upload instead. That is left alone: ECR's own API
    has no way to give up an upload, either, and a DELETE would double the requests for what costs nothing.

    Args:
        calls: the registry's API, whose endpoint tells where its ``/v2/`` is.
        name: the registry, as it was asked for.
        login: gives the password.
        http: sends the requests.
        retries: says when, and how often; not the API's, since this host may not be within reach where the API is.
        account: tells whose registry it is, for endpoints that are not AWS's own.
    """

    def __init__(
        self,
        calls: EcrClient,
        name: RegistryName,
        *,
        login: EcrLogin,
        http: EcrHttp,
        retries: RetryingSender,
        account: Callable[[], Awaitable[str | None]],
    ) -> None:
        self._calls = calls
        self._name = name
        self._login = login
        self._http = http
        self._retries = retries
        self._account = account

    async def mount(self, repository: str, digest: Digest, source: str) -> bool:
        """Take over *digest* from repository *source* into *repository*; False if ECR won't.

        Nor is anything mounted at ECR Public, or at an endpoint of somebody else's where nobody says whose the registry
        is: a request that does not name its registry could meet another one there.

        Raises:
            ServiceError: the registry refuses the caller.
            ConnectionFailedError: its host can't be reached.
        """
        if self._name.service == "ecr-public":
            return False
        place = await self.place()
        if place is None:
            return False
        base, headers = place
        query = urlencode({"mount": str(digest), "from": source})
        url = f"{base}/v2/{quote(repository)}/blobs/uploads/?{query}"
        credentials = await self._login()
        try:
            return await self._post(url, headers, credentials)
        except ServiceError as error:
            if not _is_stale(error):
                raise
        return await self._post(url, headers, await self._login.renewed(credentials))

    async def place(self) -> tuple[str, dict[str, str]] | None:
        """Where the registry's ``/v2/`` is, and the Host that names the registry there."""
        endpoint = self._calls.endpoint_url
        if is_aws(endpoint):
            if self._name.host:
                return f"https://{self._name.host}", {}
            if self._name.id:
                return f"https://{registry_host(self._calls.client, self._name.id)}", {}
            return (await self._login.endpoint()).rstrip("/"), {}
        account = await self._account()
        return (endpoint.rstrip("/"), {"Host": registry_host(self._calls.client, account)}) if account else None

    async def _post(self, url: str, headers: dict[str, str], credentials: Credentials) -> bool:
        basic = pybase64.b64encode(f"{credentials.username}:{credentials.password}".encode()).decode()
        authorized = {**headers, "Authorization": f"Basic {basic}"}

        async def send() -> bool:
            with translated(OPERATION, _host(url)):
                async with answer_timeout(OPERATION, _host(url), self._retries) as wait:
                    wait.begin()
                    answer = await self._http.send("POST", url, authorized)
                    body = await answer.content
                if answer.status_code == _MOUNTED:
                    return True
                if answer.status_code in _NOT_MOUNTED:
                    return False
                raise _refusal(answer.status_code, answer.headers, body)

        return await self._retries.call(OPERATION, send)


def _is_stale(error: ServiceError) -> bool:
    """Whether the password is to blame: ECR answers one that has ended with DENIED, as it does who may not mount."""
    return error.status == 401 or (error.status == 403 and "expired" in error.message.lower())


def _refusal(status: int, headers: Any, body: bytes) -> bce.ClientError:
    """An error of ``/v2/`` (distribution-spec, Error Codes) as botocore has errors."""
    code, message = str(status), ""
    try:
        first = json.loads(body)["errors"][0]
        code, message = str(first["code"]), str(first.get("message") or "")
    except (LookupError, TypeError, ValueError, AttributeError):
        message = f"HTTP status {status}"
    meta = {"HTTPStatusCode": status, "HTTPHeaders": dict(headers), "RequestId": headers.get("x-amzn-requestid", "")}
    return bce.ClientError({"Error": {"Code": code, "Message": message}, "ResponseMetadata": meta}, OPERATION)


def _host(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"
