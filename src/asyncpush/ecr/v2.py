"""The registry's ``/v2/`` (OCI distribution-spec): its address, and requests that are authorized and retried."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import botocore.exceptions as bce
import pybase64

from asyncpush.ecr.auth_token import EcrLogin
from asyncpush.ecr.client import EcrClient, answer_timeout, answered_in_time
from asyncpush.ecr.errors import UNEXPECTED_ANSWER, translate_errors
from asyncpush.ecr.http_session import EcrHttp
from asyncpush.ecr.part_body import OutgoingPart
from asyncpush.ecr.raw_body import RawPartBody
from asyncpush.ecr.regions import is_aws
from asyncpush.ecr.retry import RetryingSender
from asyncpush.ecr.session import registry_host
from asyncpush.errors import ConnectionFailedError, ServiceError
from asyncpush.reference import RegistryName
from asyncpush.settings import Credentials

#: The Range of an upload in an answer, in the forms of the distribution-spec and of HTTP.
_RANGE = re.compile(r"(?:bytes[ =])?0-([0-9]{1,18})(?:/.*)?")


@dataclass(frozen=True, slots=True)
class V2Request:
    """A request to ``/v2/``.

    Attributes:
        operation: its name in errors, events and rate limits.
        method: the HTTP method.
        path: the path and query, percent-encoded, as in ``/v2/team/app/blobs/uploads/``.
        accepted: the HTTP statuses that are not errors.
        headers: further headers.
        part: the part that is its body, if it has one.
        first: the first byte of the layer in the body; those of the part before it have arrived.
    """

    operation: str
    method: str
    path: str
    accepted: frozenset[int]
    headers: Mapping[str, str] = field(default_factory=dict)
    part: OutgoingPart | None = None
    first: int = 0


@dataclass(frozen=True, slots=True)
class V2Answer:
    """An accepted answer: the HTTP status, and its headers."""

    status: int
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class V2Address:
    """Where the registry's ``/v2/`` is.

    Attributes:
        base: the base URL.
        host: the Host header that names the registry there; empty if the URL does.
    """

    base: str
    host: str = ""

    def path_of(self, location: str, requested: str) -> str | None:
        """Return the path and query of a Location; None if it leads to another host, which must not get the password.

        Args:
            location: the header's value: absolute, or relative to *requested*.
            requested: the path of the request that it answers.
        """
        parts = urlsplit(urljoin(f"{self.base}{requested}", location))
        base = urlsplit(self.base)
        hosts = {(base.scheme, base.netloc)}
        if self.host:
            hosts |= {(scheme, self.host) for scheme in ("http", "https")}
        if (parts.scheme, parts.netloc) not in hosts:
            return None
        return f"{parts.path.removeprefix(base.path)}?{parts.query}" if parts.query else parts.path


class V2Endpoint:
    """Sends requests to one registry's ``/v2/``.

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
        self.sender = sender
        self._api = api
        self._name = name
        self._login = login
        self._http = http
        self._account = account

    @property
    def is_public(self) -> bool:
        """Whether the registry is of ECR Public, whose ``/v2/`` is not used here."""
        return self._name.service == "ecr-public"

    async def address(self) -> V2Address | None:
        """Return where ``/v2/`` is.

        Returns:
            None at ECR Public, and at other endpoints than AWS's where the account ID is unknown: a request that does
            not name its registry could reach another one there.
        """
        if self.is_public:
            return None
        endpoint = self._api.endpoint_url
        if is_aws(endpoint):
            if self._name.host:
                return V2Address(f"https://{self._name.host}")
            if self._name.id:
                return V2Address(f"https://{registry_host(self._api.client, self._name.id)}")
            return V2Address((await self._login.endpoint()).rstrip("/"))
        account = await self._account()
        return V2Address(endpoint.rstrip("/"), registry_host(self._api.client, account)) if account else None

    async def send(self, address: V2Address, request: V2Request) -> V2Answer:
        """Send a request, and retry it where that can help.

        Raises:
            ServiceError: the registry refused it; a subclass if there is one for the error code.
            ConnectionFailedError: it did not answer.
        """
        return await self.sender.call(request.operation, lambda: self.send_once(address, request))

    async def send_once(self, address: V2Address, request: V2Request) -> V2Answer:
        """Send a request once; twice if the registry no longer accepts the password. Raises as ``send`` does."""
        credentials = await self._login()
        try:
            return await self._send(address, request, credentials)
        except ServiceError as error:
            if not _is_stale(error):
                raise
        return await self._send(address, request, await self._login.renewed(credentials))

    async def _send(self, address: V2Address, request: V2Request, credentials: Credentials) -> V2Answer:
        basic = pybase64.b64encode(f"{credentials.username}:{credentials.password}".encode()).decode()
        headers = {**request.headers, "Authorization": f"Basic {basic}"}
        if address.host:
            headers["Host"] = address.host
        with _releasing(request.part), translate_errors(request.operation, address.base):
            async with answer_timeout(request.operation, address.base, self.sender) as timeout:
                body = None
                if request.part is None:
                    timeout.start()
                else:
                    body = RawPartBody(answered_in_time(request.part, timeout, self._api.uplink), request.first)
                answer = await self._http.send(request.method, f"{address.base}{request.path}", headers, body=body)
                content = await answer.content
            if answer.status_code not in request.accepted:
                raise _refusal(request.operation, answer.status_code, answer.headers, content)
            return V2Answer(answer.status_code, answer.headers)


@contextmanager
def _releasing(part: OutgoingPart | None) -> Iterator[None]:
    """Drop what a part's share of the uplink refers to, once the request has ended."""
    try:
        yield
    finally:
        if part is not None and part.transfer is not None:
            part.transfer.release()


def uploads_path(repository: str) -> str:
    """Return the path at which uploads into *repository* begin (distribution-spec, end-4a)."""
    return f"/v2/{quote(repository)}/blobs/uploads/"


def location_of(address: V2Address, request: V2Request, answer: V2Answer) -> str:
    """Return the path where an upload goes on, from the Location of an answer.

    Raises:
        ServiceError: there is none, or it leads to another host.
    """
    location = answer.headers.get("Location", "")
    path = address.path_of(location, request.path) if location else None
    if path is None:
        # A query may contain a signature.
        problem = f"the upload goes on at {location.partition('?')[0][:200]!r}" if location else "it has no Location"
        raise ServiceError(
            request.operation,
            UNEXPECTED_ANSWER,
            f"this is not an answer from ECR: {problem}",
            hint=f"check {address.base}",
        )
    return path


def bytes_received(headers: Mapping[str, str]) -> int | None:
    """Return the bytes that an upload has, from a Range; None if there is none. ``0-0`` stands for no bytes."""
    match = _RANGE.fullmatch(headers.get("Range", "").strip())
    return None if match is None else int(match[1]) + (match[1] != "0")


def unreachable(error: ConnectionFailedError) -> ConnectionFailedError:
    """Add to an error of a layer's upload that the host of ``/v2/`` is another one than the API's."""
    if error.silent or error.wrong_address:
        error.hint = (
            "/v2/ has another host than the API (in a VPC, an endpoint for ecr.dkr): check the network, or use "
            "--transport api"
        )
    return error


def _is_stale(error: ServiceError) -> bool:
    """Whether the password has expired: ECR then answers DENIED, as it does to callers who may not push."""
    return error.status == 401 or (error.status == 403 and "expired" in error.message.lower())


def _refusal(operation: str, status: int, headers: Any, body: bytes) -> bce.ClientError:
    """An error of ``/v2/`` (distribution-spec, Error Codes) as botocore's ClientError."""
    code, message = str(status), ""
    try:
        first = json.loads(body)["errors"][0]
        code, message = str(first["code"]), str(first.get("message") or "")
    except (LookupError, TypeError, ValueError, AttributeError):
        message = f"HTTP status {status}"
    fault: dict[str, Any] = {"Error": {"Code": code, "Message": message}}
    if (received := bytes_received(headers)) is not None:
        fault["lastValidByteReceived"] = received - 1
    meta = {"HTTPStatusCode": status, "HTTPHeaders": dict(headers), "RequestId": headers.get("x-amzn-requestid", "")}
    return bce.ClientError({**fault, "ResponseMetadata": meta}, operation)
