"""ECR's operations over one connection: sent at their pace, again where that helps, errors and answers typed."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from botocore import xform_name
from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError

from asyncpush.ecr.credentials import signing
from asyncpush.ecr.errors import EXPIRED, UNEXPECTED_ANSWER, is_signed_late, translated
from asyncpush.ecr.part_body import OutgoingPart
from asyncpush.ecr.retry import RetryingSender
from asyncpush.ecr.uplink import PartTransfer, StoppedError, Uplink
from asyncpush.errors import AsyncpushError, ConnectionFailedError, ServiceError
from asyncpush.http.retry import note_if_slow
from asyncpush.reference import Service
from asyncpush.settings import SIGNATURE_LIFETIME

T = TypeVar("T")

#: What one BatchCheckLayerAvailability, BatchGetImage, DescribeImages or DescribeRepositories takes.
BATCH = 100

#: What a caller is told who may not use an operation, and a registry that does not have it.
NOT_ALLOWED = frozenset({"AccessDeniedException", "UnsupportedCommandException"})

#: How often a part may outlive its signature; each time, the line counts as slower, and fewer share it.
_MOST_OUTLIVED = 3

#: How often a part may be taken off the line.
_MOST_STOPPED = 3


class EcrClient:
    """Sends the operations of ECR or ECR Public.

    Args:
        client: an aiobotocore client.
        registry_id: the registry's account or alias, which goes into each request that takes it; None is the caller's.
        retries: sends each request at its pace, and again where that can help.
        signature_lifetime: seconds for which a signature is good.

    Attributes:
        client: the client.
        uplink: the line that parts take.
        registry_id: the account or alias.
        retries: what sends requests.
        service: which of the two services it is.
        endpoint_url: where requests go.
    """

    def __init__(
        self,
        client: Any,
        registry_id: str | None,
        retries: RetryingSender,
        signature_lifetime: float = SIGNATURE_LIFETIME,
    ) -> None:
        self.client = client
        self.uplink = Uplink(retries.tell, signature_lifetime)
        self.registry_id = registry_id
        self.retries = retries
        self.service: Service = client.meta.service_model.service_name
        self.endpoint_url: str = client.meta.endpoint_url
        self._signing = signing(client)

    async def call(self, operation: str, **members: Any) -> dict[str, Any]:
        """Send *operation*, again where that can help.

        Raises:
            ServiceError: ECR refused; a subclass where there is one for its code.
            ConnectionFailedError: it did not answer.
            ConfigurationError: credentials are missing.
        """
        blob = members.get("layerPartBlob")
        if isinstance(blob, OutgoingPart):
            return await self._call_with_part(operation, members, blob)
        return await self.retries.call(operation, lambda: self.send(operation, members))

    async def _call_with_part(self, operation: str, members: dict[str, Any], blob: OutgoingPart) -> dict[str, Any]:
        """Send a part when the line has room for it, again where it has left the line to others."""
        part, outlived, stopped = blob.part, 0, 0
        while True:
            async with self.uplink.transfer(part.first, part.body_size, may_stop=stopped < _MOST_STOPPED) as transfer:
                own = {**members, "layerPartBlob": replace(blob, transfer=transfer)}
                try:
                    answer = await self.retries.call(operation, partial(self.send, operation, own))
                except StoppedError as error:
                    stopped += transfer.stopped
                    outlived += not transfer.stopped
                    if outlived >= _MOST_OUTLIVED:
                        raise ConnectionFailedError(
                            f"a part of {part.size} bytes needs more than {self.uplink.lifetime:g} seconds to "
                            f"{self.endpoint_url}, and its signature is good for no longer",
                            hint="use a faster connection, or --part-size 5MiB",
                        ) from error
                else:
                    self.uplink.arrived(transfer)
                    return answer

    async def send(self, operation: str, members: dict[str, Any]) -> dict[str, Any]:
        """Send *operation* once; once more where other credentials have come for those that ECR says are expired."""
        if self.registry_id and self._takes(operation, self.registry_id):
            members = {**members, "registryId": self.registry_id}
        method = getattr(self.client, xform_name(operation))
        blob = members.get("layerPartBlob")
        transfer = blob.transfer if isinstance(blob, OutgoingPart) else None
        with self._on_line(transfer), self.understood(operation), translated(operation, self.endpoint_url):
            answer: dict[str, Any]
            async with answer_timeout(operation, self.endpoint_url, self.retries) as wait:
                if isinstance(blob, OutgoingPart):
                    members = {**members, "layerPartBlob": replace(blob, on_sent=wait.after(blob.on_sent))}
                    if transfer:
                        transfer.moved, wait.least = wait.extend, self.uplink.answer_timeout
                else:
                    wait.begin()
                answer = await self._send(method, members)
            if self._is_empty(operation, answer):
                raise ValueError("what can't be read is left out by botocore, too")
            return answer

    @contextmanager
    def _on_line(self, transfer: PartTransfer | None) -> Iterator[None]:
        """What fails of a part that has left the line, or outlived its signature, is not a failure."""
        try:
            yield
        except AsyncpushError as error:
            if transfer is None:
                raise
            is_late = is_signed_late(error) and transfer.age > self.uplink.lifetime / 2
            if is_late:
                self.uplink.outlived(transfer)
            if is_late or transfer.stopped:
                raise StoppedError from error
            raise
        finally:
            if transfer is not None:
                transfer.end()

    def _is_empty(self, operation: str, answer: dict[str, Any]) -> bool:
        """Whether an answer has nothing of what ECR gives for *operation*."""
        shape = self.client.meta.service_model.operation_model(operation).output_shape
        return shape is not None and bool(shape.members) and answer.keys().isdisjoint(shape.members)

    async def _send(self, method: Any, members: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any]
        used = self._signing.keys
        try:
            answer = await method(**members)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") not in EXPIRED or not await self._signing.others(used):
                raise
            answer = await method(**members)
        return answer

    @contextmanager
    def understood(self, operation: str) -> Iterator[None]:
        """What a portal or proxy answers in ECR's place may be a success, but lacks what ECR's has."""
        try:
            yield
        except (AttributeError, LookupError, TypeError, ValueError, ResponseParserError) as error:
            raise ServiceError(
                operation, UNEXPECTED_ANSWER, "this is not an answer from ECR", hint=f"check {self.endpoint_url}"
            ) from error

    def _takes(self, operation: str, registry_id: str) -> bool:
        """Whether *operation* can be told the registry; what can't means the caller's own.

        ECR Public knows its aliases in the operations of a push only: its model gives the others a pattern.
        """
        shape = self.client.meta.service_model.operation_model(operation).input_shape
        member = shape.members.get("registryId") if shape is not None else None
        return member is not None and re.fullmatch(member.metadata.get("pattern", ".*"), registry_id) is not None


def batches(items: Iterable[T], size: int = BATCH) -> Iterator[list[T]]:
    """Cut *items* into lists of *size*, the last one maybe shorter."""
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch


class _AnswerTimeout:
    """The wait for one answer; it begins when its request has left.

    Attributes:
        seconds: how long it is, now that it has begun.
        least: how long it must be at least, where other requests share a line.
    """

    seconds = 0.0
    least: Callable[[], float] | None = None

    def __init__(self, timeout: asyncio.Timeout, shortest: float, late: Callable[[], None]) -> None:
        self._timeout = timeout
        self._shortest = shortest
        self._late = late
        self._has_begun = False

    def begin(self) -> None:
        """Begin to wait."""
        self._has_begun = True
        self.extend()
        self._late()

    def extend(self) -> None:
        """Wait from now on, if it has begun: what was handed over has not all left before."""
        if self._has_begun and not self._timeout.expired():
            self.seconds = max(self._shortest, self.least() if self.least else 0.0)
            self._timeout.reschedule(asyncio.get_running_loop().time() + self.seconds)

    def after(self, on_sent: Callable[[], None] | None) -> Callable[[], None]:
        """A callback for the end of a body: it begins the wait, then calls *on_sent*."""

        def begin_and_report() -> None:
            self.begin()
            if on_sent:
                on_sent()

        return begin_and_report


@asynccontextmanager
async def answer_timeout(operation: str, endpoint: str, retries: RetryingSender) -> AsyncIterator[_AnswerTimeout]:
    """Bound the wait for an answer's head and body, and tell of one that takes long.

    Raises:
        ConnectionFailedError: it has not come, or not ended, in time.
    """
    seconds, policy = retries.retry.answer, retries.retry
    try:
        with ExitStack() as stack:
            async with asyncio.timeout(None) as timeout:
                word = f"{operation} has no answer yet from {endpoint}"
                note = partial(note_if_slow, word, retries.tell, policy.note_after)
                wait = _AnswerTimeout(timeout, policy.answer, lambda: stack.enter_context(note()))
                try:
                    yield wait
                finally:
                    seconds = wait.seconds
    except TimeoutError as error:
        raise ConnectionFailedError(
            f"{operation} got no whole answer from {endpoint} within {seconds:.3g} seconds",
            hint="check the endpoint and the network",
        ) from error
