"""One call of an operation: what the AWS configuration says about it, and the request, with all pages of its answer.

Without a retry mode in the environment or the profile, botocore makes three tries in its standard mode, as the aws CLI.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import botocore.session
from aiobotocore.paginate import AioPaginator
from botocore.exceptions import BotoCoreError, PaginationError
from botocore.utils import set_value_from_jmespath

from asyncpush.awscli.command import Command
from asyncpush.awscli.errors import OTHER, CommandError
from asyncpush.awscli.formats import OperationOutput
from asyncpush.awscli.global_options import BINARY_FORMATS, OUTPUTS, Globals, Output
from asyncpush.awscli.operations import Json, Members, Operation
from asyncpush.ecr.part_body import JsonPartEncoder, OutgoingPart
from asyncpush.ecr.session import Transport, open_client
from asyncpush.engine.parts import BLOCK_SIZE
from asyncpush.model import Upload
from asyncpush.protocols import Part
from asyncpush.reference import RegistryName
from asyncpush.settings import AwsConfiguration


@dataclass(frozen=True, slots=True)
class Configuration:
    """The settings of one command, from its options, the environment and the profile, in this order.

    Attributes:
        output: the format of the response.
        binary_format: the encoding of blobs: ``base64`` or ``raw-in-base64-out``.
        wire_times: whether times are printed as numbers, as ECR sends them.
        retry_mode: botocore's retry mode; ``standard`` by default, as in version 2 of the aws CLI.
    """

    output: Output
    binary_format: str
    wire_times: bool
    retry_mode: str


def read_configuration(options: Globals) -> Configuration:
    """Read the configuration; blocks.

    Raises:
        CommandError: there is no such profile, or a value in it is invalid.
    """
    try:
        profile = botocore.session.Session(profile=options.profile or None).get_scoped_config()
    except BotoCoreError as error:
        raise CommandError(str(error), OTHER) from error
    output = options.output or os.environ.get("AWS_DEFAULT_OUTPUT") or profile.get("output") or "json"
    if output not in OUTPUTS:
        raise CommandError(f"Unknown output type: {output}", OTHER)
    binary_format = options.binary_format or profile.get("cli_binary_format") or "base64"
    if binary_format not in BINARY_FORMATS:
        raise CommandError(f"Invalid cli_binary_format: {binary_format}", OTHER)
    return Configuration(
        output=cast("Output", output),
        binary_format=binary_format,
        wire_times=profile.get("cli_timestamp_format") in ("wire", "none"),
        retry_mode=os.environ.get("AWS_RETRY_MODE") or profile.get("retry_mode") or "standard",
    )


def aws_configuration(options: Globals) -> AwsConfiguration:
    """The account, region and endpoint.

    Raises:
        CommandError: the endpoint is not an HTTP URL.
    """
    url = options.endpoint_url
    if url is not None and not url.startswith(("http://", "https://")):
        raise CommandError(
            f'Bad value for --endpoint-url "{url}": scheme is {"unknown" if "://" in url else "missing"}.  '
            "Must be of the form http://<hostname>/ or https://<hostname>/"
        )
    return AwsConfiguration(profile=options.profile or None, region=options.region or None, endpoint_url=url)


def transport(options: Globals, retry_mode: str | None) -> Transport:
    """How requests are sent; *retry_mode* is None where asyncpush retries itself.

    Raises:
        CommandError: a timeout is negative.
    """
    for name, seconds in (("connect", options.connect_timeout), ("read", options.read_timeout)):
        if seconds < 0:
            reason = "but the timeout cannot be set to a value less than or equal to 0."
            raise CommandError(f"Attempted to set {name} timeout to {seconds}, {reason}", OTHER)
    return Transport(
        verify=False if not options.verify_ssl else options.ca_bundle,
        signed=options.sign_request,
        connect_timeout=options.connect_timeout or None,
        read_timeout=options.read_timeout or None,
        retry_mode=retry_mode,
    )


#: A client's method for an operation, or a wrapper that retries it.
Method: TypeAlias = Callable[..., Awaitable[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class Input:
    """The checked input of an operation; for UploadLayerPart, with its encoded body if possible.

    Attributes:
        members: the input.
        part: the encoded and hashed part of a layer; None if botocore encodes it.
    """

    members: Members
    part: Part | None = None

    def parameters(self) -> dict[str, Any]:
        """The parameters of a client's method."""
        return self.members if self.part is None else {**self.members, "layerPartBlob": OutgoingPart(self.part)}


def prepare(operation: Operation, members: Members) -> Input:
    """Encode and hash the part of a layer in *members*, if there is one; blocks, a few milliseconds a MiB."""
    if not operation.needs_upload_body:
        return Input(members)
    blob, first, last = members["layerPartBlob"], members["partFirstByte"], members["partLastByte"]
    if not isinstance(blob, bytes) or not isinstance(first, int) or not blob or last != first + len(blob) - 1:
        # ECR refuses inconsistent members; send them as they are.
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
    """Send *prepared* and return the response.

    Raises:
        ClientError: ECR refused; other errors of botocore are raised as well.
        ConfigurationError: no client can be created.
        PaginationError: pages are requested although pagination is off.
    """
    async with open_for(command, 1, configuration.retry_mode) as client:
        return await send(command, prepared, getattr(client, command.operation.method))


async def send(command: Command, prepared: Input, method: Method) -> OperationOutput:
    """Call *method* with *prepared*, once for each page of the response; errors of *method* are raised.

    Raises:
        PaginationError: pages are requested although pagination is off.
    """
    page_options = _page_options(command, prepared.members)
    if page_options is None:
        return single(await method(**prepared.parameters()))
    operation = command.operation
    assert operation.paging is not None  # noqa: S101 - for the type
    # The client's get_paginator would read the model from disk on the event loop.
    paginator = AioPaginator(method, operation.paging.config, operation.model)
    return await _pages(paginator, prepared.members, page_options)


def single(answer: dict[str, Any]) -> OperationOutput:
    """A response without pages."""
    whole = {name: value for name, value in answer.items() if name != "ResponseMetadata"}
    return OperationOutput(whole, (whole,))


def _page_options(command: Command, members: Members) -> dict[str, Any] | None:
    """The options of the paginator; None if one page is requested."""
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
