"""One upload of a layer into one repository: opened or resumed, its parts sent in order, completed, journaled."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from asyncpush.engine.context import PushContext
from asyncpush.engine.memory import MemoryAccount
from asyncpush.engine.ordering import OrderedSender, PipelineEstimator
from asyncpush.engine.parts import HeldBytes
from asyncpush.errors import (
    AsyncpushError,
    DigestMismatchError,
    InvalidLayerError,
    InvalidLayerPartError,
    UploadNotFoundError,
    leaf_errors,
    only_cause,
)
from asyncpush.events import LayerDone, LayerFailed, LayerStarted, PartSent, working_on
from asyncpush.model import Descriptor, LayerBytes, PushedLayer, Upload
from asyncpush.protocols import Blob, Part, Repository
from asyncpush.settings import MAX_PART_SIZE, MAX_PARTS, MiB

#: Times that a layer is sent, at most, without new bytes in its upload.
_MAX_ATTEMPTS = 3

#: Missing bytes from which on a request that asks ECR what it has costs less than to send bytes again.
_WORTH_A_REQUEST = MiB


class EncodedParts:
    """One part of a blob, encoded for each of the uploads that it goes to.

    Args:
        parts: the part, one for each upload; their bytes are shared where possible.
        cost: bytes of memory that the parts take; given back once the last upload has released its part.
        consumed: bytes of the source that were read for the part.
        account: the account that the memory was taken from.
    """

    def __init__(self, parts: tuple[Part, ...], cost: int, consumed: int, account: MemoryAccount) -> None:
        self.parts = parts
        self.consumed = consumed
        self.account = account
        self._cost = cost
        self._unreleased = len(parts)

    def release(self) -> None:
        """Record that one of the uploads no longer needs its part."""
        self._unreleased -= 1
        if not self._unreleased:
            self.account.give_back(self._cost)


#: One upload's part, and the parts of the other uploads that it shares memory with.
PartOf = tuple[Part, EncodedParts]

UploadParts = MemoryObjectSendStream[PartOf]


class LayerUpload:
    """Sends a blob to one repository; an attempt that fails can be repeated, with the same upload or a new one.

    Args:
        repository: the destination.
        blob: the blob to send.
        context: what the layers of the run share.

    Attributes:
        key: its name in events.
        part_size: bytes of each part but the last; 0 until the upload is opened.
        received: bytes that ECR has acknowledged; an attempt starts after them.
        failure: the error of the last attempt; None if it did not fail.
        pushed: the layer, once it is in the repository.
    """

    def __init__(self, repository: Repository, blob: Blob, context: PushContext) -> None:
        self.repository = repository
        self.part_size = 0
        self.received = 0
        self.failure: AsyncpushError | None = None
        self.pushed: PushedLayer | None = None
        self._blob = blob
        self._context = context
        self.key = layer_key(repository, blob)
        self._upload: Upload | None = None
        self._is_resumed = False
        self._farthest = self._failed_attempts = 0
        self._sent = self._read = 0
        self._unacknowledged: dict[Part, EncodedParts] = {}

    @property
    def upload(self) -> Upload:
        """The upload, after ``open``."""
        assert self._upload is not None, "the upload was opened"  # noqa: S101
        return self._upload

    @property
    def has_other_bytes(self) -> bool:
        """Whether ECR has other bytes of the layer than its digest names."""
        return isinstance(self.failure, InvalidLayerError)

    @asynccontextmanager
    async def reported(self) -> AsyncIterator[None]:
        """Emit an event at the beginning of the block, and one at its end that says how the layer has ended."""
        emit = self._context.emit
        title, blob = self._blob.name.removeprefix("layer "), self._blob
        emit(LayerStarted(self.key, title, blob.source_size, self.repository.name, blob.identity))
        is_interrupted = False
        try:
            yield
        except BaseException as error:
            is_interrupted = all(isinstance(leaf, anyio.get_cancelled_exc_class()) for leaf in leaf_errors(error))
            raise
        finally:
            if self.pushed is None:
                emit(LayerFailed(self.key, interrupted=is_interrupted))
            else:
                emit(LayerDone(self.key, self.pushed.descriptor.digest, self.pushed.outcome))

    async def open(self, preferred_size: int | None) -> None:
        """Continue the upload of the last attempt, resume the upload of an earlier run, or begin one.

        Args:
            preferred_size: bytes of a part; None uses the size that ECR asks for.
        """
        self.failure = None
        if self._upload is not None:  # ``recover`` has kept it
            return
        journal, address, identity = self._context.journal, self.repository.address, self._blob.identity
        earlier = await journal.open_upload(address, identity) if journal else None
        if earlier is not None and earlier.part_size >= _min_part_size(self._blob.source_size, MAX_PARTS["ecr"]):
            self._upload, self.part_size, self.received = earlier.upload, earlier.part_size, earlier.received
            self._is_resumed = True
            if await self._synchronize():
                return
            if journal:
                await journal.upload_lost(address, identity)
        self._upload = await self.repository.begin_upload()
        self.part_size = part_size(self._upload, self._blob.source_size, preferred_size)
        self.received, self._is_resumed = 0, False
        if journal:
            await journal.upload_begun(address, identity, self._upload, self.part_size)

    async def _synchronize(self) -> bool:
        """Ask ECR how many bytes it has of the upload of an earlier run; return False if the upload is lost."""
        if self._blob.source_size - self.received < _WORTH_A_REQUEST:
            return True
        try:
            received = await self.repository.find_received(self.upload, self.received, self._blob.source_size)
        except UploadNotFoundError:
            return False
        if received > self.received:
            await self._set_received(received)
        return True

    async def _set_received(self, received: int) -> None:
        """Record that ECR has the first *received* bytes, also in the journal for a later run."""
        self.received = received
        if journal := self._context.journal:
            await journal.part_acknowledged(self.repository.address, self._blob.identity, self.upload, received)

    def skip(self, read: int) -> None:
        """Record that the first *read* bytes of the source need not be sent."""
        self._read += read
        self._context.emit(PartSent(self.key, read, 0))

    async def send(self, parts: MemoryObjectReceiveStream[PartOf]) -> None:
        """Send all parts; after an error, keep it in ``failure`` and release the remaining parts."""
        acknowledged, counts = anyio.create_memory_object_stream[int](math.inf)
        try:
            with only_cause():
                async with parts, counts, anyio.create_task_group() as tg:
                    tg.start_soon(self._journal_progress, counts)
                    async with acknowledged:

                        def on_acknowledged(part: Part) -> None:
                            acknowledged.send_nowait(self._acknowledge(part))

                        # At /v2/, the answer to a part says where the next one goes.
                        early = PipelineEstimator(allowed=False) if self.upload.is_v2 else self._context.pipeline
                        sender = OrderedSender(self._send, on_acknowledged, early)
                        await sender.send(self._tracked(parts))
        except AsyncpushError as error:
            self.failure = error
            for encoded in self._unacknowledged.values():
                encoded.release()
            self._unacknowledged.clear()

    async def _tracked(self, parts: MemoryObjectReceiveStream[PartOf]) -> AsyncIterator[Part]:
        async for part, encoded in parts:
            self._unacknowledged[part] = encoded
            yield part
            del part, encoded  # or they would be held until the next one is made

    async def _send(self, part: Part, on_sent: Callable[[], None]) -> None:
        # A part whose bytes are in memory needs no more memory to be sent, and must not wait for any.
        if part.content is None or isinstance(part.content, HeldBytes):
            await self.repository.send_part(self.upload, part, on_sent)
            return
        async with self._context.memory.window() as close_window:

            def close_and_report() -> None:
                close_window()
                on_sent()

            await self.repository.send_part(self.upload, part, close_and_report)

    def _acknowledge(self, part: Part) -> int:
        """Account for a part that ECR has stored; return how many bytes of the layer ECR has now."""
        encoded = self._unacknowledged.pop(part)
        encoded.release()
        self._context.limiter.acknowledged(part.size)
        self._sent += part.size
        self._read += encoded.consumed
        self._context.emit(PartSent(self.key, encoded.consumed, part.size))
        self.received = part.last + 1
        return self.received

    async def _journal_progress(self, counts: MemoryObjectReceiveStream[int]) -> None:
        """Journal how many bytes ECR has: the latest count, each time that the journal has written the one before."""
        journal = self._context.journal
        received = 0
        async for count in counts:
            received = max(received, count)
            while counts.statistics().current_buffer_used:
                received = max(received, counts.receive_nowait())
            if journal:
                await journal.part_acknowledged(self.repository.address, self._blob.identity, self.upload, received)

    async def complete(self, layer: LayerBytes) -> None:
        """Close the upload; an error is kept in ``failure``."""
        try:
            with working_on(layer=self.key):
                outcome = await self.repository.complete_upload(self.upload, layer.digest)
        except AsyncpushError as error:
            self.failure = error
            return
        descriptor = Descriptor(self._blob.media_type, layer.digest, layer.size)
        if journal := self._context.journal:
            await journal.layer_completed(self.repository.address, self._blob.identity, descriptor)
        self.pushed = PushedLayer(descriptor, self._sent, outcome)

    async def fail(self, error: AsyncpushError) -> None:
        """Record that the source has failed; an upload of damaged bytes can't be resumed later."""
        self.failure = self.failure or error
        journal = self._context.journal
        if journal and isinstance(error, DigestMismatchError) and self._upload is not None:
            await journal.upload_lost(self.repository.address, self._blob.identity)

    async def recover(self) -> bool:
        """Prepare another attempt: an upload can expire, be damaged or miss a part, but not again and again.

        Returns:
            Whether another attempt can help; if not, ``failure`` keeps the error.
        """
        error = self.failure
        self._failed_attempts += 1
        if self._failed_attempts >= _MAX_ATTEMPTS:
            return False
        self.failure = None
        match error:
            case InvalidLayerPartError() if self._may_continue(error):
                self._rewind()
                self._is_resumed = False
                await self._set_received((error.last_valid_byte or 0) + 1)
                if self.received > self._farthest:
                    self._farthest, self._failed_attempts = self.received, 0
                return True
            case UploadNotFoundError() | InvalidLayerPartError() | InvalidLayerError():
                if not self._is_resumed:
                    # Everything was sent correctly. Parts that left early may be the cause: send none any more.
                    self._context.pipeline.stop()
                self._rewind()
                self._upload, self.received = None, 0
                if journal := self._context.journal:
                    await journal.upload_lost(self.repository.address, self._blob.identity)
                return True
            case _:
                self.failure = error
                return False

    def _rewind(self) -> None:
        self._context.emit(PartSent(self.key, -self._read, 0))
        self._read = 0

    def _may_continue(self, error: InvalidLayerPartError) -> bool:
        """Whether ECR has more than the bytes that are known to have arrived.

        An earlier run may not have got its last answers. At ``/v2/``, a broken request may leave a part of its bytes.
        """
        is_ahead = error.last_valid_byte is not None and error.last_valid_byte >= self.received
        return is_ahead and (self._is_resumed or self.upload.is_v2)


def layer_key(repository: Repository, blob: Blob) -> str:
    """The name in events of a blob that is sent to a repository."""
    return f"{repository.address}/{blob.identity}"


def part_size(upload: Upload, size: int, preferred_size: int | None) -> int:
    """Bytes of each part but the last: *preferred_size*, else ECR's; more if *size* bytes would need too many parts."""
    return max(preferred_size or upload.part_size, _min_part_size(size, upload.max_parts))


def _min_part_size(size: int, max_parts: int) -> int:
    """The smallest part size with which *max_parts* parts hold *size* bytes, but never more than ECR accepts."""
    return min(-(-size // max_parts), MAX_PART_SIZE)
