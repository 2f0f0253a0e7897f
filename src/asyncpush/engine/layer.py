"""One layer read once, cut into parts, and sent to one repository or to several at the same time.

``push_layer`` takes a slot, ``send_layer`` opens the uploads and sends each the parts that it lacks, and
``_PartSource`` makes those parts of a blob on this machine or in another registry.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby

import anyio
from anyio import to_thread
from anyio.streams.memory import MemoryObjectReceiveStream

from asyncpush.engine.context import PushContext
from asyncpush.engine.memory import MemoryAccount
from asyncpush.engine.parts import (
    WINDOW_SIZE,
    HeldBytes,
    PartCutter,
    PartMaker,
    check_size,
    find_damage,
    opened,
    receive_part,
)
from asyncpush.engine.upload import EncodedParts, LayerUpload, PartOf, UploadParts
from asyncpush.errors import AsyncpushError, only_cause
from asyncpush.events import working_on
from asyncpush.model import LayerBytes, PushedLayer, decoded_size, encoded_size
from asyncpush.protocols import (
    Blob,
    BlobReader,
    LocalBlob,
    Part,
    PartEncoder,
    RandomAccess,
    RemoteBlob,
    Repository,
    SeekableReader,
)
from asyncpush.settings import DEFAULT_PART_SIZE, MAX_PART_SIZE, MIN_PART_SIZE, MiB

Parts = tuple[Part, ...]

#: Bytes of the largest part at ``/v2/`` that is read as it is sent: about what a kill may lose of a layer.
_LARGEST_PART = 80 * MiB


async def push_layer(repository: Repository, blob: Blob, context: PushContext) -> PushedLayer:
    """Put *blob* into *repository*, in one of the run's slots.

    Raises:
        DigestMismatchError: the blob's bytes do not match its descriptor; the upload was not completed.
        SourceError: the blob can't be read.
        RegistryError: ECR refused, or could not be reached in spite of all retries.
    """
    async with context.limiter.hold(blob.source_size):
        [outcome] = await send_layer([repository], blob, context)
    if isinstance(outcome, AsyncpushError):
        raise outcome
    return outcome


async def send_layer(
    repositories: Sequence[Repository], blob: Blob, context: PushContext
) -> list[PushedLayer | AsyncpushError]:
    """Put *blob* into all of *repositories*, which may be in several registries, and read it only once.

    The caller holds a slot. A repository that fails does not stop the others.

    Returns:
        The layer or the error of each repository, in the order of *repositories*.
    """
    uploads = [LayerUpload(repository, blob, context) for repository in repositories]
    async with AsyncExitStack() as reported:
        # What is read for several repositories is for the images of all of them.
        reported.enter_context(working_on(image=None if len(uploads) == 1 else "", layer=uploads[0].key))
        for upload in uploads:
            await reported.enter_async_context(upload.reported())
        unfinished, is_first = uploads, True
        while unfinished:
            await _attempt(unfinished, blob, context, is_first=is_first)
            await _find_cause(unfinished, blob, context)
            unfinished = [upload for upload in unfinished if upload.failure is not None and await upload.recover()]
            is_first = False
    return [_outcome(upload) for upload in uploads]


async def _attempt(uploads: Sequence[LayerUpload], blob: Blob, context: PushContext, *, is_first: bool) -> None:
    """Open the uploads and send the missing bytes of each; uploads that lack the same bytes share one reading."""
    # If ECR refuses parts of our own size, the next attempt uses the size that ECR asks for.
    preferred_size = context.settings.part_size or _size_to_save_memory(blob, context) if is_first else None

    async def open_one(upload: LayerUpload) -> None:
        try:
            with working_on(layer=upload.key):
                await upload.open(preferred_size)
        except AsyncpushError as error:
            upload.failure = error

    with only_cause():
        async with anyio.create_task_group() as tg:
            for upload in uploads:
                tg.start_soon(open_one, upload)
    ready = sorted((upload for upload in uploads if upload.failure is None), key=lambda upload: upload.received)
    for received, group in groupby(ready, key=lambda upload: upload.received):
        await _send_from(received, list(group), blob, context)


def _size_to_save_memory(blob: Blob, context: PushContext) -> int | None:
    """The size of a layer's parts if many share the memory: those of a remote blob are held until ECR has them.

    Returns:
        A size of which each layer can hold two encoded parts, in whole MiB, and at least the smallest; None for ECR's.
    """
    if not isinstance(blob, RemoteBlob) or blob.source_size <= DEFAULT_PART_SIZE:
        return None
    share = context.memory.limit // (2 * context.limiter.taken)
    if encoded_size(DEFAULT_PART_SIZE) <= share:
        return None
    return max(MIN_PART_SIZE, decoded_size(share) // MiB * MiB)


async def _send_from(first: int, uploads: Sequence[LayerUpload], blob: Blob, context: PushContext) -> None:
    """Send the blob from byte *first* on, and complete the uploads."""
    try:
        with only_cause():
            layer = await _send_parts(first, uploads, blob, context)
            async with anyio.create_task_group() as tg:
                for upload in uploads:
                    if upload.failure is None:
                        tg.start_soon(upload.complete, layer)
    except AsyncpushError as error:
        for upload in uploads:
            await upload.fail(error)


async def _send_parts(first: int, uploads: Sequence[LayerUpload], blob: Blob, context: PushContext) -> LayerBytes:
    if blob.descriptor and first >= blob.descriptor.size:
        return _known_bytes(blob)

    def encoder(start: int, content: RandomAccess | None) -> _Encoders:
        return _Encoders([upload.repository.encoder(upload.upload, start, content) for upload in uploads])

    # The API may refuse parts of the size that /v2/ takes.
    by_api = [upload.part_size for upload in uploads if not upload.upload.is_v2]
    part_size = max(by_api or [upload.part_size for upload in uploads])
    async with context.memory.account() as account:
        source = _PartSource(blob, first, part_size, encoder, uploads, context, account)
        async with AsyncExitStack() as stack:
            maker, encoded_parts = await source.open(stack)
            streams = [anyio.create_memory_object_stream[PartOf](0) for _ in uploads]
            # The receiving ends close after the task group. When all uploads fail, the group thus cancels the encoding
            # before its streams break, and raises nothing but the failure.
            for _, parts in streams:
                stack.enter_context(parts)
            async with anyio.create_task_group() as tg:

                async def send(upload: LayerUpload, parts: MemoryObjectReceiveStream[PartOf]) -> None:
                    with working_on(layer=upload.key):
                        await upload.send(parts)
                    if all(upload.failure is not None for upload in uploads):
                        tg.cancel_scope.cancel()  # no upload needs the next part

                tg.start_soon(_encode_ahead, encoded_parts, [sending for sending, _ in streams])
                for upload, (_, parts) in zip(uploads, streams, strict=True):
                    tg.start_soon(send, upload, parts)
        return maker.result() if maker else _known_bytes(blob)


async def _encode_ahead(encoded_parts: AsyncGenerator[EncodedParts, None], streams: Sequence[UploadParts]) -> None:
    """Encode the next part while one is in flight: a stream takes it once ECR has acknowledged the one before."""
    async with AsyncExitStack() as stack:
        for stream in streams:
            stack.enter_context(stream)
        await stack.enter_async_context(aclosing(encoded_parts))
        async for encoded in encoded_parts:
            for part, stream in zip(encoded.parts, streams, strict=True):
                try:
                    await stream.send((part, encoded))
                except anyio.BrokenResourceError:
                    encoded.release()  # this upload has failed; the others continue
            del encoded, part  # or they would be held until the next part is made


async def _find_cause(uploads: Sequence[LayerUpload], blob: Blob, context: PushContext) -> None:
    """Tell a damaged source from a damaged upload, if ECR has refused a digest that was not computed here.

    Another attempt can mend a damaged upload; a damaged source is a final failure.
    """
    refused = [upload for upload in uploads if upload.has_other_bytes]
    if not refused or not isinstance(blob, LocalBlob) or blob.descriptor is None:
        return
    try:
        damage: AsyncpushError | None = await to_thread.run_sync(find_damage, blob, limiter=context.threads)
    except AsyncpushError as error:
        damage = error
    if damage is not None:
        for upload in refused:
            upload.failure = None
            await upload.fail(damage)


def _known_bytes(blob: Blob) -> LayerBytes:
    """The digest and size that the source names; ECR compares the digest with the bytes that it has."""
    assert blob.descriptor is not None, "an unknown digest is computed"  # noqa: S101
    return LayerBytes(blob.descriptor.digest, blob.descriptor.size)


def _outcome(upload: LayerUpload) -> PushedLayer | AsyncpushError:
    outcome = upload.failure or upload.pushed
    assert outcome is not None, "the last attempt either failed or succeeded"  # noqa: S101
    return outcome


@dataclass(frozen=True, slots=True)
class _PartSource:
    """Reads a blob once, from byte ``first`` on, and makes parts of ``part_size`` bytes."""

    blob: Blob
    first: int
    part_size: int
    encoder: Callable[[int, RandomAccess | None], _Encoders]
    uploads: Sequence[LayerUpload]
    context: PushContext
    account: MemoryAccount

    async def open(self, stack: AsyncExitStack) -> tuple[PartMaker[Parts] | None, AsyncGenerator[EncodedParts, None]]:
        """Open the blob and skip the bytes that ECR has.

        Returns:
            What knows the layer's digest at the end (None if its source does), and the parts.
        """
        if isinstance(self.blob, RemoteBlob):
            self._skip(self.first)
            hashes = self.first == 0
            maker = PartMaker(self.blob, self.part_size, self.encoder, start=self.first, hashes=hashes)
            return maker, self._receive(self.blob, maker)
        assert isinstance(self.blob, LocalBlob), "a blob is local or remote"  # noqa: S101
        reader = await stack.enter_async_context(opened(self.blob, self.context.threads))
        is_raw = all(upload.upload.is_v2 for upload in self.uploads)
        if is_raw and self.blob.descriptor is not None and isinstance(reader, SeekableReader):
            await to_thread.run_sync(check_size, self.blob, reader, limiter=self.context.threads)
            self._skip(self.first)
            return None, self._slice(reader, self.blob.descriptor.size)
        cutter = PartCutter(self.blob, reader, self.part_size, self.encoder)
        if self.first:
            await to_thread.run_sync(cutter.skip, self.first, limiter=self.context.threads)
            self._skip(cutter.consumed)
        return cutter, self._cut(cutter, reader)

    def _skip(self, read: int) -> None:
        for upload in self.uploads:
            upload.skip(read)

    async def _slice(self, content: RandomAccess, size: int) -> AsyncGenerator[EncodedParts, None]:
        """Yield the parts of a local blob that is sent as it is: they are read when they are sent.

        They take no memory, so that they grow: each answer is waited for before the next part is sent.
        """
        first, part_size = self.first, self.part_size
        # Smaller parts suit a slow connection.
        grows = self.part_size == MAX_PART_SIZE and self.context.settings.part_size is None
        while first < size:
            part = Part.raw(first, min(part_size, size - first), content)
            # One object for each upload: uploads tell their parts apart by identity.
            parts = tuple(replace(part) for _ in self.uploads)
            yield EncodedParts(parts, 0, part.size, self.account)
            first += part.size
            if grows:
                part_size = min(2 * part_size, _LARGEST_PART)

    async def _cut(self, cutter: PartCutter[Parts], reader: BlobReader) -> AsyncGenerator[EncodedParts, None]:
        """Yield the parts of a local blob.

        A part whose bytes can be read again is held encoded only while memory is plentiful; otherwise it takes next to
        no memory until it is sent. So the budget bounds memory, and hardly ever the number of layers in flight.
        """
        rereader = reader if isinstance(reader, SeekableReader) else None
        part_size = min(self.part_size, self.blob.source_size) if self.blob.descriptor else self.part_size
        encoded_cost = sum(upload.upload.body_size(part_size) for upload in self.uploads)
        while True:
            content, cost = None, encoded_cost
            if rereader is None:
                await self.account.take(cost)
            elif not self.account.take_nowait(cost):
                content, cost = rereader, 0
            consumed = cutter.consumed
            next_part = partial(cutter.next_part, content=content)
            parts = await to_thread.run_sync(next_part, limiter=self.context.threads)
            if parts is None:
                return
            yield EncodedParts(parts, cost, cutter.consumed - consumed, self.account)
            del parts  # or they would be held until the next one is made

    async def _receive(self, blob: RemoteBlob, maker: PartMaker[Parts]) -> AsyncGenerator[EncodedParts, None]:
        """Yield the parts of a remote blob: held encoded for one upload by the API, as they came for any other.

        The blob takes its turn at the source registry before it takes memory: otherwise it could hold memory while it
        waits for blobs that have their turn and wait for memory. It opens no connection before it has the memory.
        """
        assert blob.descriptor is not None, "a remote blob's descriptor is known"  # noqa: S101
        size, position = blob.descriptor.size, self.first
        is_held = len(self.uploads) > 1 or self.uploads[0].upload.is_v2
        async with blob.stream(position) as stream:
            cost = await self._take_memory(position, size)
            window = memoryview(bytearray(0 if is_held else min(WINDOW_SIZE, self._room(position, size))))
            while True:
                room = self._room(position, size)
                content = HeldBytes(position, self.context.memory.buffer(room)) if is_held else None
                parts = await receive_part(maker, stream, content, window, self.context.threads)
                if parts is None:
                    return
                consumed = parts[0].size
                yield EncodedParts(parts, cost, consumed, self.account)
                del parts, content  # or they would be held until the next one is made
                if maker.ended:
                    return
                position += consumed
                cost = await self._take_memory(position, size)

    async def _take_memory(self, position: int, size: int) -> int:
        """Take the memory for the part at byte *position*, and for sending it to all uploads.

        Returns:
            The bytes that were taken.
        """
        room, uploads = self._room(position, size), len(self.uploads)
        if uploads > 1:
            cost = room + uploads * min(self.context.memory.window_size, encoded_size(room))
        else:
            cost = self.uploads[0].upload.body_size(room)
        await self.account.take(cost)
        return cost

    def _room(self, position: int, size: int) -> int:
        """Bytes to read for the next part of a blob of *size* bytes: one more than it has, to see that it ends."""
        return min(self.part_size, size - position + 1)


class _Encoders:
    """Encodes a part for several uploads at once."""

    def __init__(self, encoders: Iterable[PartEncoder]) -> None:
        self._encoders = tuple(encoders)

    def add(self, block: memoryview) -> None:
        """Take the next bytes."""
        for encoder in self._encoders:
            encoder.add(block)

    def finish(self) -> Parts:
        """Close the part."""
        return tuple(encoder.finish() for encoder in self._encoders)
