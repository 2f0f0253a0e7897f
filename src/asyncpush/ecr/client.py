"""Requests to ECR's API: rate limited, retried and timed, with typed errors for what fails."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, TypeVar
from urllib.parse import urlsplit

import anyio
from botocore import xform_name
from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError

from asyncpush.ecr.credentials import credentials_of
from asyncpush.ecr.errors import EXPIRED, UNEXPECTED_ANSWER, is_signed_late, translate_errors, verdict
from asyncpush.ecr.part_body import OutgoingPart
from asyncpush.ecr.retry import RetryingSender
from asyncpush.ecr.uplink import PartTransfer, TransferStoppedError, Uplink
from asyncpush.errors import AsyncpushError, ConnectionFailedError, RegistryError, ServiceError, only_cause
from asyncpush.http.token_bucket import TokenBucket
from asyncpush.reference import Service
from asyncpush.settings import SIGNATURE_LIFETIME

T = TypeVar("T")
K = TypeVar("K")

#: Items that one BatchCheckLayerAvailability, BatchGetImage, DescribeImages or DescribeRepositories accepts.
BATCH_SIZE = 100

#: The error codes of an operation that the caller may not use, or that a registry does not support.
NOT_ALLOWED = frozenset({"AccessDeniedException", "UnsupportedCommandException"})

#: How often the signature of a part may expire on the way. Each time, the estimated rate of the uplink drops, and
#: fewer parts share it.
_MAX_EXPIRIES = 3

#: How often the uplink may stop a part to make room for others.
_MAX_STOPS = 3


class EcrClient:
    """Sends the operations of ECR or ECR Public.

    Args:
        client: an aiobotocore client.
        registry_id: the registry's account or alias, for each request that accepts it; None is the caller's registry.
        sender: limits the rate of requests and retries them.
        signature_lifetime: seconds for which a signature is valid.
        brake: limits the bandwidth of all uploads together; None does not.

    Attributes:
        client: the aiobotocore client.
        uplink: shares the connection's bandwidth between parts.
        registry_id: the account or alias.
        account: the account that owns the registry, once the answer to a request for an image has named it.
        sender: limits the rate of requests and retries them.
        service: ``ecr`` or ``ecr-public``.
        endpoint_url: the API's endpoint.
    """

    def __init__(
        self,
        client: Any,
        registry_id: str | None,
        sender: RetryingSender,
        signature_lifetime: float = SIGNATURE_LIFETIME,
        brake: TokenBucket | None = None,
    ) -> None:
        self.client = client
        self.uplink = Uplink(sender.notify, signature_lifetime, brake=brake)
        self.registry_id = registry_id
        self.account: str | None = None
        self.sender = sender
        self.service: Service = client.meta.service_model.service_name
        self.endpoint_url: str = client.meta.endpoint_url
        self._credentials = credentials_of(client)

    async def call(self, operation: str, **members: Any) -> dict[str, Any]:
        """Send *operation* and retry it where that can help.

        Raises:
            ServiceError: ECR refused it; a subclass if there is one for the error code.
            ConnectionFailedError: ECR did not answer.
            ConfigurationError: credentials are missing.
        """
        blob = members.get("layerPartBlob")
        if isinstance(blob, OutgoingPart):
            return await self._call_with_part(operation, members, blob)
        return await self.sender.call(operation, lambda: self.send(operation, members))

    async def _call_with_part(self, operation: str, members: dict[str, Any], blob: OutgoingPart) -> dict[str, Any]:
        """Send a part once the uplink has room for it; send it again if it was stopped, or its signature expired."""
        part, expiries, stops = blob.part, 0, 0
        while True:
            async with self.uplink.transfer(part.first, part.body_size, may_stop=stops < _MAX_STOPS) as transfer:
                part_members = {**members, "layerPartBlob": replace(blob, transfer=transfer)}
                try:
                    answer = await self.sender.call(operation, partial(self.send, operation, part_members))
                except TransferStoppedError as error:
                    stops += transfer.is_stopped
                    expiries += not transfer.is_stopped
                    if expiries >= _MAX_EXPIRIES:
                        raise ConnectionFailedError(
                            f"a part of {part.size} bytes needs more than {self.uplink.lifetime:g} seconds to reach "
                            f"{self.endpoint_url}, and its signature is valid for no longer",
                            hint="use a faster connection, or --part-size 5MiB",
                        ) from error
                else:
                    self.uplink.note_arrival(transfer)
                    return answer

    async def send(self, operation: str, members: dict[str, Any]) -> dict[str, Any]:
        """Send *operation* once; twice if ECR reports expired credentials and the provider has new ones."""
        if self.registry_id and self._accepts_registry_id(operation, self.registry_id):
            members = {**members, "registryId": self.registry_id}
        method = getattr(self.client, xform_name(operation))
        blob = members.get("layerPartBlob")
        transfer = blob.transfer if isinstance(blob, OutgoingPart) else None
        with (
            self._releasing(transfer),
            self.parsing(operation),
            translate_errors(operation, self.endpoint_url, self.client.meta.region_name),
        ):
            answer: dict[str, Any]
            async with answer_timeout(operation, self.endpoint_url, self.sender) as timeout:
                if isinstance(blob, OutgoingPart):
                    members = {**members, "layerPartBlob": answered_in_time(blob, timeout, self.uplink)}
                else:
                    timeout.start()
                answer = await self._send_signed(method, members)
            if self._is_empty(operation, answer):
                raise ValueError("botocore also leaves out members that it can't parse")
            return answer

    @contextmanager
    def _releasing(self, transfer: PartTransfer | None) -> Iterator[None]:
        """End *transfer*, and raise ``TransferStoppedError`` if the request failed because the uplink is slow."""
        try:
            yield
        except AsyncpushError as error:
            if transfer is None:
                raise
            is_expired = is_signed_late(error) and transfer.age > self.uplink.lifetime / 2
            if is_expired:
                self.uplink.note_expiry(transfer)
            if is_expired or transfer.is_stopped:
                raise TransferStoppedError from error
            raise
        finally:
            if transfer is not None:
                transfer.release()

    async def _send_signed(self, method: Any, members: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any]
        keys = self._credentials.keys
        try:
            answer = await method(**members)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") not in EXPIRED or not await self._credentials.replace(keys):
                raise
            answer = await method(**members)
        return answer

    @contextmanager
    def parsing(self, operation: str) -> Iterator[None]:
        """Raise a ``ServiceError`` if an answer lacks what ECR's has: a proxy or portal may answer in ECR's place."""
        try:
            yield
        except (AttributeError, LookupError, TypeError, ValueError, ResponseParserError) as error:
            raise ServiceError(
                operation, UNEXPECTED_ANSWER, "this is not an answer from ECR", hint=f"check {self.endpoint_url}"
            ) from error

    def _is_empty(self, operation: str, answer: dict[str, Any]) -> bool:
        """Whether *answer* has no member of the operation's output."""
        shape = self.client.meta.service_model.operation_model(operation).output_shape
        return shape is not None and bool(shape.members) and answer.keys().isdisjoint(shape.members)

    def _accepts_registry_id(self, operation: str, registry_id: str) -> bool:
        """Whether *operation* can name the registry; an operation that can't concerns the caller's own.

        ECR Public accepts an alias in the operations of a push only; the model's pattern excludes it elsewhere.
        """
        shape = self.client.meta.service_model.operation_model(operation).input_shape
        member = shape.members.get("registryId") if shape is not None else None
        return member is not None and re.fullmatch(member.metadata.get("pattern", ".*"), registry_id) is not None


class TrackedCall:
    """A call that must know whether ECR may have carried out an earlier try, whose reply was lost.

    Args:
        api: sends the call.
        operation: the operation's name.
        members: its members.

    Attributes:
        is_reply_lost: whether the reply to any try was lost.
    """

    def __init__(self, api: EcrClient, operation: str, members: dict[str, Any]) -> None:
        self.is_reply_lost = False
        self._api = api
        self._operation = operation
        self._members = members

    async def send(self) -> dict[str, Any]:
        """Send the operation and retry it where that can help; raises as ``EcrClient.call`` does."""
        return await self._api.sender.call(self._operation, self._try)

    async def _try(self) -> dict[str, Any]:
        try:
            return await self._api.send(self._operation, self._members)
        except RegistryError as error:
            self.is_reply_lost = self.is_reply_lost or verdict(error) == "transient"
            raise


async def map_batches(call: Callable[[list[K]], Awaitable[T]], items: Collection[K], size: int = BATCH_SIZE) -> list[T]:
    """Await ``call(batch)`` for all batches of *items* at once; the results are in the order of *items*."""
    results: dict[int, T] = {}

    async def run(position: int, batch: list[K]) -> None:
        results[position] = await call(batch)

    remaining = iter(items)
    with only_cause():
        async with anyio.create_task_group() as tg:
            for position in range(0, len(items), size):
                tg.start_soon(run, position, list(islice(remaining, size)))
    return [results[position] for position in sorted(results)]


class AnswerTimeout:
    """The wait for one answer; it starts when the request has been sent, and the host shows life until then.

    Attributes:
        seconds: the length of the wait; 0 before it starts.
        minimum: the shortest wait while requests share the uplink; None if they do not.
    """

    seconds = 0.0
    minimum: Callable[[], float] | None = None

    def __init__(self, timeout: asyncio.Timeout, shortest: float, on_life: Callable[[], None]) -> None:
        self._timeout = timeout
        self._shortest = shortest
        self._on_life = on_life
        self._has_started = False

    def start(self) -> None:
        """Start the wait."""
        self._has_started = True
        self.restart()

    def restart(self) -> None:
        """Count from now on if the wait has started: the peer was still receiving the request."""
        self._on_life()
        if self._has_started and not self._timeout.expired():
            self.seconds = max(self._shortest, self.minimum() if self.minimum else 0.0)
            self._timeout.reschedule(asyncio.get_running_loop().time() + self.seconds)

    def start_after(self, on_sent: Callable[[], None] | None) -> Callable[[], None]:
        """A callback for the end of a body: it starts the wait, then calls *on_sent*."""

        def start_and_report() -> None:
            self.start()
            if on_sent:
                on_sent()

        return start_and_report


@asynccontextmanager
async def answer_timeout(operation: str, endpoint: str, sender: RetryingSender) -> AsyncIterator[AnswerTimeout]:
    """Limit the wait for an answer, head and body, and report while there is none.

    Raises:
        ConnectionFailedError: the answer is not complete in time.
    """
    seconds, silence = sender.retry.answer, sender.host.silence
    silence.host = urlsplit(endpoint).netloc
    try:
        with silence.waiting():
            async with asyncio.timeout(None) as deadline:
                timeout = AnswerTimeout(deadline, sender.retry.answer, silence.heard)
                try:
                    yield timeout
                finally:
                    seconds = timeout.seconds
    except TimeoutError as error:
        raise ConnectionFailedError(
            f"{operation} got no whole answer from {endpoint} within {seconds:.3g} seconds",
            hint="check the endpoint and the network",
        ) from error


def answered_in_time(outgoing: OutgoingPart, timeout: AnswerTimeout, uplink: Uplink) -> OutgoingPart:
    """Return a part that starts *timeout* once it has left, and restarts it while the peer accepts what has left."""
    if outgoing.transfer:
        outgoing.transfer.on_progress, timeout.minimum = timeout.restart, uplink.answer_timeout
    return replace(outgoing, on_sent=timeout.start_after(outgoing.on_sent))
