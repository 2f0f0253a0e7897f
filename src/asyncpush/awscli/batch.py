"""Many inputs of one operation, sent at once at the operation's rate; each result is a line of JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import anyio
from anyio import Semaphore, to_thread
from botocore.exceptions import BotoCoreError, ClientError

from asyncpush.awscli.batch_input import BatchInput, Item
from asyncpush.awscli.call import Configuration, Input, prepare, send
from asyncpush.awscli.command import Command
from asyncpush.awscli.errors import CommandError, service_text
from asyncpush.awscli.formats import Query, printable
from asyncpush.awscli.inputs import check, decoded, validate
from asyncpush.awscli.operations import Json, Members
from asyncpush.ecr.errors import translate_errors
from asyncpush.ecr.rate_limit import Pace
from asyncpush.ecr.retry import RetryingSender
from asyncpush.errors import (
    CREDENTIALS_LOST,
    AsyncpushError,
    ConfigurationError,
    ConnectionFailedError,
    InvalidLayerPartError,
    ServiceError,
    UploadNotFoundError,
)
from asyncpush.events import Event, RequestDone

Outcome = Literal["done", "present", "failed"]

#: Tries of one request; a throttled request does not count.
_MAX_ATTEMPTS = 6
#: Inputs that were read but whose result is not printed yet, as a multiple of the requests in flight. This bounds the
#: results that wait for one slow request before them.
_WINDOW = 16


@dataclass(slots=True)
class Tally:
    """The progress of a batch.

    Attributes:
        outcomes: inputs by outcome.
        requests: completed requests by outcome.
    """

    outcomes: Counter[Outcome] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)

    def hear(self, event: Event) -> None:
        """Count a request."""
        if isinstance(event, RequestDone):
            self.requests[event.outcome] += 1


class Batch:
    """Sends a batch.

    Args:
        command: the operation and its options.
        common: the members given on the command line; they override those of the inputs.
        configuration: the format of blobs and times.
        query: filters each response.

    Attributes:
        tally: the progress.
        lost: the error that ended the batch early: credentials were lost.
    """

    def __init__(self, command: Command, common: Members, configuration: Configuration, query: Query) -> None:
        self.tally = Tally()
        self.lost: AsyncpushError | None = None
        self._command = command
        self._operation = command.operation
        self._common = common
        self._configuration = configuration
        self._query = query

    async def run(self, client: Any, inputs: BatchInput, write: Callable[[str], None]) -> None:
        """Send all of *inputs*.

        Args:
            client: an open client.
            inputs: the inputs.
            write: writes lines of results; it is called in a worker thread.

        Raises:
            ConfigurationError: there are no credentials.
            OSError: the inputs can't be read.
        """
        pace = Pace(self._operation.service, client.meta.endpoint_url)
        retries = RetryingSender(_MAX_ATTEMPTS, self.tally.hear, pace)
        in_flight = self._command.extras.max_requests
        slots, window = anyio.Semaphore(in_flight), anyio.Semaphore(_WINDOW * in_flight)
        lines = ResultLines(write, window, ordered=not self._command.extras.unordered)
        uploads = _Uploads() if self._operation.needs_upload_body else None

        async def one(item: Item, turn: _Turn | None) -> None:
            try:
                if turn:
                    await turn.begin()
                line = await self._result(client, retries, item)
            finally:
                if turn:
                    turn.end()
            slots.release()
            lines.add(item.number, line)

        async with anyio.create_task_group() as writing:
            writing.start_soon(lines.run)
            async with anyio.create_task_group() as sending:
                async for item in _items(inputs):
                    await window.acquire()
                    await slots.acquire()
                    if self.lost is not None:
                        break  # requests in flight are completed
                    sending.start_soon(one, item, uploads.turn(item, self._common) if uploads else None)
            lines.close()

    async def _result(self, client: Any, retries: RetryingSender, item: Item) -> str:
        """Send one input and make its line."""
        try:
            if isinstance(item.members, CommandError):
                raise item.members
            members = {**item.members, **self._common}
            # Only reading files and encoding parts takes long.
            blocks = self._operation.needs_upload_body
            make = partial(self._prepare, members)
            prepared = await to_thread.run_sync(make) if blocks else make()
            outcome, answer = await _InputSender(client, retries, self._command).send(prepared)
            result: Members = {"output": self._query.apply(printable(answer, wire=self._configuration.wire_times))}
        except ConfigurationError:
            raise
        except (AsyncpushError, BotoCoreError) as error:
            outcome, result = "failed", {"error": _described(error)}
            if isinstance(error, CREDENTIALS_LOST):
                self.lost = self.lost or error
        self.tally.outcomes[outcome] += 1
        line = json.dumps({"input": item.number, "outcome": outcome, **result}, ensure_ascii=False) + "\n"
        return line.encode(errors="backslashreplace").decode()  # half a surrogate pair of an input has no UTF-8

    def _prepare(self, members: Members) -> Input:
        found = decoded(self._operation, members, self._configuration.binary_format, files=True)
        validate(self._operation, found)
        if self._command.extras.validate:
            check(self._operation, found)
        return prepare(self._operation, found)


class _InputSender:
    """Sends one input, with retries; some errors of ECR mean that it succeeded before."""

    def __init__(self, client: Any, retries: RetryingSender, command: Command) -> None:
        self._client = client
        self._retries = retries
        self._command = command
        self._reply_lost = False

    async def send(self, prepared: Input) -> tuple[Outcome, Members]:
        operation = self._command.operation
        try:
            answer = await send(self._command, prepared, partial(self._call, operation.model.name, operation.method))
        except ServiceError as error:
            members = prepared.members
            if error.code == "LayerAlreadyExistsException" and _is_sha256(members):
                return "present", _completed(members)
            if not self._reply_lost:
                raise
            return "done", await self._done_before(error, members)
        return "done", answer.whole

    async def _done_before(self, error: ServiceError, members: Members) -> Members:
        """The response of an earlier try whose reply was lost; raise *error* if no earlier try succeeded."""
        if error.code in ("ImageAlreadyExistsException", "RepositoryAlreadyExistsException"):
            return _known(members)
        if isinstance(error, InvalidLayerPartError) and error.last_valid_byte == members.get("partLastByte"):
            return {**_known(members), "lastByteReceived": error.last_valid_byte}
        # If the layer exists, an earlier try completed the upload.
        if isinstance(error, UploadNotFoundError) and await self._is_there(members):
            return _completed(members)
        raise error

    async def _call(self, name: str, method: str, **members: Any) -> dict[str, Any]:
        async def once() -> dict[str, Any]:
            try:
                with translate_errors(name, self._client.meta.endpoint_url):
                    answer: dict[str, Any] = await getattr(self._client, method)(**members)
                    return answer
            except ConnectionFailedError:
                self._reply_lost = True
                raise

        return await self._retries.call(name, once)

    async def _is_there(self, members: Members) -> bool:
        if "layerDigests" not in members:
            return False
        asked = {name: value for name, value in members.items() if name != "uploadId"}
        answer = await self._call("BatchCheckLayerAvailability", "batch_check_layer_availability", **asked)
        layers = answer.get("layers", [])
        return bool(layers) and all(layer.get("layerAvailability") == "AVAILABLE" for layer in layers)


class _Turn:
    """A place in a queue: ``begin`` waits until the place before it has ended."""

    def __init__(self, before: anyio.Event | None, ended: anyio.Event, leave: Callable[[], None]) -> None:
        self._before = before
        self._ended = ended
        self._leave = leave

    async def begin(self) -> None:
        if self._before is not None:
            await self._before.wait()

    def end(self) -> None:
        self._ended.set()
        self._leave()


class _Uploads:
    """Sends the parts of one upload one after another, as ECR requires; those of several uploads go at once."""

    def __init__(self) -> None:
        self._last: dict[object, anyio.Event] = {}

    def turn(self, item: Item, common: Members) -> _Turn:
        members = {} if isinstance(item.members, CommandError) else {**item.members, **common}
        key = tuple(str(members.get(name)) for name in ("registryId", "repositoryName", "uploadId"))
        before, ended = self._last.get(key), anyio.Event()
        self._last[key] = ended

        def leave() -> None:
            if self._last.get(key) is ended:
                del self._last[key]

        return _Turn(before, ended, leave)


async def _items(inputs: BatchInput) -> AsyncIterator[Item]:
    # The writer of a pipe may take long; an interrupted batch does not wait for it.
    while items := await to_thread.run_sync(inputs.more, abandon_on_cancel=True):
        for item in items:
            yield item


def _is_sha256(members: Members) -> bool:
    """Whether ECR compared the digest with the bytes before it reported that the layer exists."""
    digests = members.get("layerDigests")
    return isinstance(digests, list) and all(str(digest).startswith("sha256:") for digest in digests)


def _completed(members: Members) -> Members:
    """The response that CompleteLayerUpload would have sent."""
    digests = members["layerDigests"]
    assert isinstance(digests, list)  # noqa: S101 - for the type
    return {**_known(members), "layerDigest": digests[0]}


def _known(members: Members) -> Members:
    return {name: members[name] for name in ("registryId", "repositoryName", "uploadId") if name in members}


def _described(error: Exception) -> Json:
    if isinstance(error, ServiceError) and isinstance(error.__cause__, ClientError):
        return {"code": error.code, "message": service_text(error.__cause__)}
    return {"code": None, "message": str(error)}


class ResultLines:
    """Writes the lines of results.

    Args:
        write: writes text; it may block.
        window: released once for each line that is written.
        ordered: whether line n waits for line n - 1.
    """

    def __init__(self, write: Callable[[str], None], window: Semaphore, *, ordered: bool) -> None:
        self._write = write
        self._window = window
        self._ordered = ordered
        self._early: dict[int, str] = {}
        self._ready: list[str] = []
        self._next = 1
        self._closed = False
        self._changed = anyio.Event()

    def add(self, number: int, line: str) -> None:
        """Add the line of input *number*, counted from 1."""
        if self._ordered:
            self._early[number] = line
            while self._next in self._early:
                self._ready.append(self._early.pop(self._next))
                self._next += 1
        else:
            self._ready.append(line)
        self._changed.set()

    def close(self) -> None:
        """End after the lines that were added."""
        self._closed = True
        self._changed.set()

    async def run(self) -> None:
        """Write lines until ``close``, and those that remain then."""
        while self._ready or not self._closed:
            await self._changed.wait()
            self._changed = anyio.Event()
            lines, self._ready = self._ready, []
            if lines:
                await to_thread.run_sync(self._write, "".join(lines))
            for _ in lines:
                self._window.release()
            if self._closed:
                self._changed.set()
