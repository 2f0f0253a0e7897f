"""Cross-repository blob mounts: a layer of one repository linked into another, by ``/v2/``, since the API cannot."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import botocore.exceptions as bce
import pybase64

from asyncpush.ecr.auth_token import EcrLogin
from asyncpush.ecr.client import EcrClient, answer_timeout
from asyncpush.ecr.errors import translate_errors
from asyncpush.ecr.http_session import EcrHttp
from asyncpush.ecr.rate_limit import is_aws
from asyncpush.ecr.retry import RetryingSender
from asyncpush.ecr.session import registry_host
from asyncpush.errors import ServiceError
from asyncpush.model import Digest
from asyncpush.reference import RegistryName
from asyncpush.settings import Credentials

#: The name of a mount in errors, events and paces. Which of ECR's quotas it counts against is not documented.
OPERATION = "MountBlob"

_MOUNTED = 201
_NOT_MOUNTED = frozenset({202, 404, 405})


class Mounts:
    """Mounts blobs within one registry, at its ``/v2/``.

    ECR mounts a blob if the account's setting BLOB_MOUNTING is ENABLED, both repositories have the same encryption, and
    an image of the source repository refers to the blob (ECR user guide, blob mounting). The caller needs
    ecr:GetDownloadUrlForLayer on the source. Otherwise ECR opens an upload, which is left alone: ECR's own API cannot
    cancel an upload either, and a DELETE would double the requests for something that costs nothing.

    Args:
        api: the registry's API, whose endpoint determines the address of its ``/v2/``.
        name: the registry, as the user named it.
        login: provides the password.
        http: sends the requests.
        sender: paces and retries them; not the API's, since this host may be unreachable where the API is not.
        account: provides the registry's account ID, for endpoints other than AWS's.
    """

    def __init__(
        self,
        api: EcrClient,
        name: RegistryName,
        *,
        login: EcrLogin,
        http: EcrHttp,
        sender: RetryingSender,
        account: Callable[[], Awaitable[str | None]],
    ) -> None:
        self._api = api
        self._name = name
        self._login = login
        self._http = http
        self._sender = sender
        self._account = account

    async def mount(self, repository: str, digest: Digest, source: str) -> bool:
        """Mount *digest* from repository *source* into *repository*; False if ECR does not.

        Nothing is mounted at ECR Public, nor at other endpoints than AWS's where the account ID is unknown: a request
        that does not name its registry could reach another one there.

        Raises:
            ServiceError: the registry refuses the caller.
            ConnectionFailedError: its host can't be reached.
        """
        if self._name.service == "ecr-public":
            return False
        address = await self.address()
        if address is None:
            return False
        base, headers = address
        query = urlencode({"mount": str(digest), "from": source})
        url = f"{base}/v2/{quote(repository)}/blobs/uploads/?{query}"
        credentials = await self._login()
        try:
            return await self._post(url, headers, credentials)
        except ServiceError as error:
            if not _is_stale(error):
                raise
        return await self._post(url, headers, await self._login.renewed(credentials))

    async def address(self) -> tuple[str, dict[str, str]] | None:
        """The base URL of the registry's ``/v2/``, and the Host header that names the registry there."""
        endpoint = self._api.endpoint_url
        if is_aws(endpoint):
            if self._name.host:
                return f"https://{self._name.host}", {}
            if self._name.id:
                return f"https://{registry_host(self._api.client, self._name.id)}", {}
            return (await self._login.endpoint()).rstrip("/"), {}
        account = await self._account()
        return (endpoint.rstrip("/"), {"Host": registry_host(self._api.client, account)}) if account else None

    async def _post(self, url: str, headers: dict[str, str], credentials: Credentials) -> bool:
        basic = pybase64.b64encode(f"{credentials.username}:{credentials.password}".encode()).decode()
        authorized = {**headers, "Authorization": f"Basic {basic}"}

        async def send() -> bool:
            with translate_errors(OPERATION, _host(url)):
                async with answer_timeout(OPERATION, _host(url), self._sender) as timeout:
                    timeout.start()
                    answer = await self._http.send("POST", url, authorized)
                    body = await answer.content
                if answer.status_code == _MOUNTED:
                    return True
                if answer.status_code in _NOT_MOUNTED:
                    return False
                raise _refusal(answer.status_code, answer.headers, body)

        return await self._sender.call(OPERATION, send)


def _is_stale(error: ServiceError) -> bool:
    """Whether the password has expired: ECR then answers DENIED, as it does to callers who may not mount."""
    return error.status == 401 or (error.status == 403 and "expired" in error.message.lower())


def _refusal(status: int, headers: Any, body: bytes) -> bce.ClientError:
    """An error of ``/v2/`` (distribution-spec, Error Codes) as botocore's ClientError."""
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
