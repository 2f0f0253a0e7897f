"""``upload-layer-part --layer-file``: uploads a complete file, part by part."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from anyio import to_thread

from asyncpush.awscli.call import open_for
from asyncpush.awscli.command import Command
from asyncpush.awscli.errors import CommandError
from asyncpush.awscli.formats import OperationOutput
from asyncpush.awscli.inputs import check, validate
from asyncpush.awscli.operations import Members
from asyncpush.ecr.errors import translate_errors
from asyncpush.ecr.part_body import JsonPartEncoder, OutgoingPart
from asyncpush.ecr.rate_limit import Pace
from asyncpush.ecr.retry import RetryingSender
from asyncpush.engine.ordering import OrderedSender, PipelineEstimator
from asyncpush.engine.parts import PartCutter, opened
from asyncpush.errors import DigestMismatchError, InvalidLayerPartError, SourceError, only_cause
from asyncpush.events import ignore
from asyncpush.model import Digest, Upload
from asyncpush.protocols import BlobReader, Part, RandomAccess
from asyncpush.settings import DEFAULT_PART_SIZE, MAX_PART_SIZE, MAX_PARTS, MIN_PART_SIZE
from asyncpush.sources.blobs import FileContent, find_file

_MAX_ATTEMPTS = 6


@dataclass(frozen=True, slots=True)
class _FileBlob:
    """A file without a known digest (``protocols.Blob``): CompleteLayerUpload sends it later."""

    content: FileContent
    media_type: str = "application/octet-stream"
    descriptor: None = None

    @property
    def name(self) -> str:
        return self.content.label

    @property
    def source_size(self) -> int:
        return self.content.size

    @property
    def identity(self) -> str:
        return self.content.label

    def open(self) -> AbstractContextManager[BlobReader]:
        return self.content.open()

    def mismatch(self, expected: Digest | int, actual: Digest | int) -> DigestMismatchError:
        return DigestMismatchError(self.name, expected, actual)


def find_layer_file(name: str) -> FileContent:
    """The file; blocks.

    Raises:
        CommandError: it does not exist, can't be read, or is empty.
    """
    path = Path(name.removeprefix("fileb://")).expanduser()
    try:
        content = find_file(path, str(path))
    except SourceError as error:
        raise CommandError(str(error)) from error
    if content is None:
        raise CommandError(f"Unable to load --layer-file {name}: the file does not exist")
    if not content.size:
        raise CommandError(f"Unable to load --layer-file {name}: the file is empty, and ECR accepts no empty layers")
    return content


def part_size(command: Command, size: int) -> int:
    """The size of a part: as given, or ECR's default; larger if *size* would need too many parts.

    Raises:
        CommandError: the given size makes too many parts, or parts of a size that ECR does not accept.
    """
    least = -(-size // MAX_PARTS[command.operation.service])
    size_of_part = command.extras.part_size or max(DEFAULT_PART_SIZE, least)
    if size_of_part < size:  # only the last part may be shorter
        least = max(least, MIN_PART_SIZE)
    if not least <= size_of_part <= MAX_PART_SIZE:
        raise CommandError(f"--part-size: {size_of_part} bytes; for this file, ECR accepts {least} to {MAX_PART_SIZE}")
    return size_of_part


def check_whole(command: Command, members: Members, size: int) -> None:
    """Check the members that name the upload, before anything is sent.

    Raises:
        ParamValidationError: something is missing.
        CommandError: a value does not fit the service model.
    """
    whole = {**members, "partFirstByte": 0, "partLastByte": size - 1, "layerPartBlob": b""}
    validate(command.operation, whole)
    if command.extras.validate:
        check(command.operation, whole)


async def upload_file(command: Command, members: Members, content: FileContent) -> OperationOutput:
    """Send all parts of *content* and return ECR's response to the last one.

    Raises:
        AsyncpushError: ECR refused a part or could not be reached despite all retries, or the file can't be read.
    """
    blob, size = _FileBlob(content), part_size(command, content.size)
    async with open_for(command, 2, None) as client, opened(blob) as reader:
        pace = Pace(command.operation.service, client.meta.endpoint_url)
        sender = _PartSender(client, members, RetryingSender(_MAX_ATTEMPTS, ignore, pace))
        cutter = PartCutter(blob, reader, size, sender.encoder)
        with only_cause():
            await OrderedSender(sender.send, lambda _: None, PipelineEstimator(allowed=False)).send(_cut(cutter))
    return OperationOutput(sender.answer, (sender.answer,))


async def _cut(cutter: PartCutter[Part]) -> AsyncIterator[Part]:
    while (part := await to_thread.run_sync(partial(cutter.next_part, content=None))) is not None:
        yield part


class _PartSender:
    """Sends the parts of one upload; ``answer`` is ECR's response to the last one."""

    def __init__(self, client: Any, members: Members, retries: RetryingSender) -> None:
        self.answer: Members = {}
        self._client = client
        self._members = members
        self._retries = retries

    def encoder(self, first: int, content: RandomAccess | None) -> JsonPartEncoder:
        registry_id = self._members.get("registryId")
        upload = Upload(str(self._members["uploadId"]), 0, 0)
        name = str(self._members["repositoryName"])
        return JsonPartEncoder(None if registry_id is None else str(registry_id), name, upload, first, content)

    async def send(self, part: Part, on_sent: Callable[[], None]) -> None:
        try:
            await self._retries.call("UploadLayerPart", partial(self._once, part, on_sent))
        except InvalidLayerPartError as error:
            # An earlier try succeeded, and its reply was lost.
            if error.last_valid_byte != part.last:
                raise
            self.answer = {**self._members, "lastByteReceived": part.last}

    async def _once(self, part: Part, on_sent: Callable[[], None]) -> None:
        with translate_errors("UploadLayerPart", self._client.meta.endpoint_url):
            answer = await self._client.upload_layer_part(
                **self._members,
                partFirstByte=part.first,
                partLastByte=part.last,
                layerPartBlob=OutgoingPart(part, on_sent),
            )
        self.answer = {name: value for name, value in answer.items() if name != "ResponseMetadata"}
