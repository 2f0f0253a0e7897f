"""One layer on its way into ECR: read once, cut into parts, sent to one repository or to several at the same time."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import anyio
from anyio import to_thread
from anyio.streams.memory import MemoryObjectReceiveStream

from asyncpush.engine.context import PushContext
from asyncpush.engine.memory import MemoryAccount
from asyncpush.engine.parts import WINDOW_SIZE, HeldBytes, PartCutter, PartMaker, find_damage, opened, receive_part
from asyncpush.engine.upload import EncodedParts, LayerUpload, PartOf, UploadParts
from asyncpush.errors import AsyncpushError, only_cause
from asyncpush.model import LayerBytes, PushedLayer
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
from asyncpush.settings import DEFAULT_PART_SIZE, MIN_PART_SIZE

#: Uploads begun for one layer: an upload can expire, fall out of step or be damaged, but not again and again.
_UPLOADS = 3

Parts = tuple[Part, ...]


async def push_layer(repository: Repository, blob: Blob, context: PushContext) -> PushedLayer:
    """Put *blob* into *repository*, in one of the run's slots.

    Raises:
        DigestMismatchError: the blob's bytes are not those that its descriptor names; nothing was completed.
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
    """Put *blob* into all of *repositories*, which may be in several registries, and read it only once for that.

    The caller has a slot. One repository that fails does not stop the others.

    Returns:
        What became of each, in the order of *repositories*.
    """
    uploads = [LayerUpload(repository, blob, context) for repository in repositories]
    async with AsyncExitStack() as shown:
        for upload in uploads:
            await shown.enter_async_context(upload.shown())
        left = uploads
        for attempt in range(1, _UPLOADS + 1):
            await _attempt(left, blob, context, own_size=attempt == 1)
            await _blame(left, blob, context)
            if attempt < _UPLOADS:
                left = [upload for upload in left if upload.failure is not None and await upload.recover()]
            if not left:
                break
    return [_outcome(upload) for upload in uploads]


async def _blame(uploads: Sequence[LayerUpload], blob: Blob, context: PushContext) -> None:
    """Tell a damaged source from a damaged upload, where ECR has refused a digest that was not computed here.

    Another attempt can mend a damaged upload; a damaged source fails it for good.
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
            await upload.failed(damage)


def _outcome(upload: LayerUpload) -> PushedLayer | AsyncpushError:
    outcome = upload.failure or upload.pushed
    assert outcome is not None, "the last attempt has ended one way or the other"  # noqa: S101
    return outcome


async def _attempt(uploads: Sequence[LayerUpload], blob: Blob, context: PushContext, *, own_size: bool) -> None:
    """Open the uploads, and send each what it lacks: what lacks the same is read once."""
    # A part size of our own that ECR does not like shows as a refused part: the next upload takes ECR's.
    wanted = context.settings.part_size or _held_size(blob, context) if own_size else None

    async def open_one(upload: LayerUpload) -> None:
        try:
            await upload.open(wanted=wanted)
        except AsyncpushError as error:
            upload.failure = error

    with only_cause():
        async with anyio.create_task_group() as tg:
            for upload in uploads:
                tg.start_soon(open_one, upload)
    opened = sorted((upload for upload in uploads if upload.failure is None), key=lambda upload: upload.received)
    for received, together in groupby(opened, key=lambda upload: upload.received):
        await _send_from(received, list(together), blob, context)


def _held_size(blob: Blob, context: PushContext) -> int | None:
    """The size of a remote blob's parts, which must be held: small ones where many layers share the memory."""
    if not isinstance(blob, RemoteBlob) or blob.source_size <= DEFAULT_PART_SIZE:
        return None
    wanted = 2 * encoded_size(DEFAULT_PART_SIZE) * context.limiter.taken
    return MIN_PART_SIZE if wanted > context.memory.limit else None


async def _send_from(first: int, uploads: Sequence[LayerUpload], blob: Blob, context: PushContext) -> None:
    """Send the blob from byte *first* on, and complete the uploads."""
    try:
        with only_cause():
            found = await _send_parts(first, uploads, blob, context)
            async with anyio.create_task_group() as tg:
                for upload in uploads:
                    if upload.failure is None:
                        tg.start_soon(upload.complete, found)
    except AsyncpushError as error:
        for upload in uploads:
            await upload.failed(error)


async def _send_parts(first: int, uploads: Sequence[LayerUpload], blob: Blob, context: PushContext) -> LayerBytes:
    size = max(upload.part_size for upload in uploads)
    if blob.descriptor and first >= blob.descriptor.size:
        return LayerBytes(blob.descriptor.digest, blob.descriptor.size)  # all of it is there; ECR compares the digest

    def encoder(start: int, content: RandomAccess | None) -> _Encoders:
        return _Encoders([upload.repository.encoder(upload.upload, start, content) for upload in uploads])

    async with context.memory.account() as account:
        run = _LayerSend(blob, first, size, encoder, context, account)
        async with AsyncExitStack() as stack:
            maker, produce = await run.open(stack, uploads)
            streams = [anyio.create_memory_object_stream[PartOf](0) for _ in uploads]
            # The receiving ends outside, the group inside: when all has failed, the group stops the cutter before they
            # close, and the failure arrives alone.
            for _, parts in streams:
                stack.enter_context(parts)
            async with anyio.create_task_group() as tg:

                async def send(upload: LayerUpload, parts: MemoryObjectReceiveStream[PartOf]) -> None:
                    await upload.send(parts)
                    if all(upload.failure is not None for upload in uploads):
                        tg.cancel_scope.cancel()  # nobody wants the next part

                tg.start_soon(_encode_ahead, produce, [ahead for ahead, _ in streams])
                for upload, (_, parts) in zip(uploads, streams, strict=True):
                    tg.start_soon(send, upload, parts)
        return maker.result()


@dataclass(frozen=True, slots=True)
class _LayerSend:
    """One reading of a blob, from byte ``first`` on, in parts of ``size`` bytes."""

    blob: Blob
    first: int
    size: int
    encoder: Callable[[int, RandomAccess | None], _Encoders]
    context: PushContext
    account: MemoryAccount

    async def open(
        self, stack: AsyncExitStack, uploads: Sequence[LayerUpload]
    ) -> tuple[PartMaker[Parts], AsyncGenerator[EncodedParts, None]]:
        """Open the blob, and pass what ECR has; what makes parts, and the parts."""
        if isinstance(self.blob, RemoteBlob):
            for upload in uploads:
                upload.skipped(self.first)
            maker = PartMaker(self.blob, self.size, self.encoder, start=self.first, hashes=self.first == 0)
            return maker, self._received(self.blob, maker, len(uploads))
        assert isinstance(self.blob, LocalBlob), "a blob is here or elsewhere"  # noqa: S101
        reader = await stack.enter_async_context(opened(self.blob, self.context.threads))
        cutter = PartCutter(self.blob, reader, self.size, self.encoder)
        if self.first:
            await to_thread.run_sync(cutter.skip, self.first, limiter=self.context.threads)
            for upload in uploads:
                upload.skipped(cutter.consumed)
        return cutter, self._cut(cutter, reader, len(uploads))

    async def _cut(
        self, cutter: PartCutter[Parts], reader: BlobReader, uploads: int
    ) -> AsyncGenerator[EncodedParts, None]:
        """The parts of a blob on this machine.

        A part that can be read again is held, encoded, only while there is plenty of memory; else it takes next to
        none, until it is sent. So the budget bounds memory, and hardly ever the number of layers in flight.
        """
        again = reader if isinstance(reader, SeekableReader) else None
        held = self._encoded_size() * uploads
        while True:
            source, cost = None, held
            if again is None:
                await self.account.take(cost)
            elif not self.account.take_nowait(cost):
                source, cost = again, 0
            consumed = cutter.consumed
            cut = partial(cutter.next_part, again=source)
            parts = await to_thread.run_sync(cut, limiter=self.context.threads)
            if parts is None:
                return
            yield EncodedParts(parts, cost, cutter.consumed - consumed, self.account)
            del parts  # or they would be held until the next one is made

    async def _received(
        self, blob: RemoteBlob, maker: PartMaker[Parts], uploads: int
    ) -> AsyncGenerator[EncodedParts, None]:
        """The parts of a remote blob: encoded at once for one upload; held as they came for several to encode.

        Nothing is read, nor is a connection opened for it, before there is memory for it. But its turn at the registry
        comes before: others who have theirs may wait for the memory.
        """
        assert blob.descriptor is not None, "a remote blob's descriptor is known"  # noqa: S101
        size, at = blob.descriptor.size, self.first
        async with blob.stream(at) as stream:
            cost = await self._take_for(at, size, uploads)
            window = memoryview(bytearray(min(WINDOW_SIZE, self._room(at, size)) if uploads == 1 else 0))
            while True:
                held = HeldBytes(at, self._room(at, size)) if uploads > 1 else None
                parts = await receive_part(maker, stream, held, window, self.context.threads)
                if parts is None:
                    return
                consumed = parts[0].size
                yield EncodedParts(parts, cost, consumed, self.account)
                del parts, held
                if maker.ended:
                    return
                at += consumed
                cost = await self._take_for(at, size, uploads)

    def _room(self, at: int, size: int) -> int:
        """Bytes to read for the next part of a blob of *size* bytes; one more than there are, to see its end."""
        return min(self.size, size - at + 1)

    async def _take_for(self, at: int, size: int, uploads: int) -> int:
        """Take the memory for the part at byte *at*, and for sending it; how much."""
        room = self._room(at, size)
        window = self.context.memory.window_size
        cost = room + uploads * min(window, encoded_size(room)) if uploads > 1 else encoded_size(room)
        await self.account.take(cost)
        return cost

    def _encoded_size(self) -> int:
        return encoded_size(min(self.size, self.blob.source_size) if self.blob.descriptor else self.size)


async def _encode_ahead(cuts: AsyncGenerator[EncodedParts, None], streams: Sequence[UploadParts]) -> None:
    """Make the next part while one is in flight: handing over waits until that one is acknowledged."""
    async with AsyncExitStack() as stack:
        for stream in streams:
            stack.enter_context(stream)
        await stack.enter_async_context(aclosing(cuts))
        async for encoded in cuts:
            for part, stream in zip(encoded.parts, streams, strict=True):
                try:
                    await stream.send((part, encoded))
                except anyio.BrokenResourceError:
                    encoded.release()  # this upload has failed; the others go on
            del encoded, part


def encoded_size(part: int) -> int:
    """The most that the request body of a part of so many bytes takes: base64, and room for the small members."""
    return part * 4 // 3 + 2048


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
