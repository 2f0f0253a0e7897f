"""One call of an operation, with all its pages, as the aws CLI makes it: three tries in botocore's standard mode."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias

from aiobotocore.paginate import AioPaginator
from botocore.exceptions import PaginationError
from botocore.utils import set_value_from_jmespath

from asyncpush.awscli.command import Command
from asyncpush.awscli.configuration import Configuration, aws_configuration, transport
from asyncpush.awscli.formats import OperationOutput
from asyncpush.awscli.operations import Json, Members, Operation
from asyncpush.ecr.part_body import JsonPartEncoder, OutgoingPart
from asyncpush.ecr.session import open_client
from asyncpush.engine.parts import BLOCK_SIZE
from asyncpush.model import Upload
from asyncpush.protocols import Part
from asyncpush.reference import RegistryName

#: A client's method for an operation, or what sends it again where that helps.
Method: TypeAlias = Callable[..., Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Input:
    """An operation's input, checked; of UploadLayerPart, the body is made already, if it can be.

    Attributes:
        members: the input.
        part: the part of a layer in it, encoded and hashed; None where botocore does that.
    """

    members: Members
    part: Part | None = None

    def parameters(self) -> dict[str, Any]:
        """What a client's method takes."""
        return self.members if self.part is None else {**self.members, "layerPartBlob": OutgoingPart(self.part)}


def prepare(operation: Operation, members: Members) -> Input:
    """Encode and hash the part of a layer in *members*, if there is one; blocks, a few milliseconds a MiB."""
    if not operation.needs_upload_body:
        return Input(members)
    blob, first, last = members["layerPartBlob"], members["partFirstByte"], members["partLastByte"]
    if not isinstance(blob, bytes) or not isinstance(first, int) or not blob or last != first + len(blob) - 1:
        # What does not fit together is for ECR to refuse, as it was written.
        return Input(members)
    registry_id, upload = members.get("registryId"), Upload(str(members["uploadId"]), 0, 0)
    encoder = JsonPartEncoder(
        str(registry_id) if registry_id is not None else None, str(members["repositoryName"]), upload, first
    )
    view = memoryview(blob)
    for start in range(0, len(blob), BLOCK_SIZE):
        encoder.add(view[start : start + BLOCK_SIZE])
    return Input(members, encoder.finish())


def open_for(command: Command, connections: int, retry_mode: str | None) -> AbstractAsyncContextManager[Any]:
    """A client for *command*; see ``open_client`` for what it raises."""
    options = command.options
    registry = RegistryName(service=command.operation.service)
    return open_client(registry, aws_configuration(options), connections, transport(options, retry_mode))


async def call(command: Command, prepared: Input, configuration: Configuration) -> OperationOutput:
    """Send *prepared* and return the answer.

    Raises:
        ClientError: ECR refused; likewise all other errors of botocore.
        ConfigurationError: no client can be made.
        PaginationError: pages are asked for, and turned off.
    """
    async with open_for(command, 1, configuration.retry_mode) as client:
        return await send(command, prepared, getattr(client, command.operation.method))


async def send(command: Command, prepared: Input, method: Method) -> OperationOutput:
    """Call *method* with *prepared*, once for each page of the answer; it raises what *method* raises.

    Raises:
        PaginationError: pages are asked for, and turned off.
    """
    page_options = _page_options(command, prepared.members)
    if page_options is None:
        return single(await method(**prepared.parameters()))
    operation = command.operation
    assert operation.paging is not None  # noqa: S101 - for the type
    # Not the client's own get_paginator: that would read the model from disk, here on the event loop.
    paginator = AioPaginator(method, operation.paging.config, operation.model)
    return await _pages(paginator, prepared.members, page_options)


def single(answer: dict[str, Any]) -> OperationOutput:
    """An answer that has no pages."""
    whole = {name: value for name, value in answer.items() if name != "ResponseMetadata"}
    return OperationOutput(whole, (whole,))


def _page_options(command: Command, members: Members) -> dict[str, Any] | None:
    """What the paginator is told; None where one page is asked for."""
    paging = command.operation.paging
    if paging is None:
        return None
    if command.options.paginate and not members.keys() & set(paging.members):
        return dict(command.page_words)
    if command.page_words:
        names = {"StartingToken": "--starting-token", "PageSize": "--page-size", "MaxItems": "--max-items"}
        given = ", ".join(written for name, written in names.items() if name in command.page_words)
        raise PaginationError(message=f"Cannot specify --no-paginate along with pagination arguments: {given}")
    return None


async def _pages(paginator: Any, members: Members, page_options: dict[str, Any]) -> OperationOutput:
    pages = paginator.paginate(**members, PaginationConfig=page_options)
    parts: list[Members] = []
    async for page in pages:
        part: Members = {} if parts else dict(pages.non_aggregate_part)
        for key in pages.result_keys:
            set_value_from_jmespath(part, key.expression, key.search(page))
        parts.append(part)
    whole: Members = {}
    for part in parts:
        _merge(whole, part)
    if pages.resume_token:
        parts.append({"NextToken": {"NextToken": pages.resume_token}})
        whole["NextToken"] = pages.resume_token
    return OperationOutput(whole, tuple(parts))


def _merge(whole: Members, part: Members) -> None:
    for name, value in part.items():
        before: Json = whole.get(name)
        whole[name] = [*before, *value] if isinstance(before, list) and isinstance(value, list) else value
