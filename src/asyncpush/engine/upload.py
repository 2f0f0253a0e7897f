"""One upload of a layer into one repository: opened or taken up again, its parts in order, completed, journaled."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from asyncpush.engine.context import PushContext
from asyncpush.engine.memory import MemoryAccount
from asyncpush.engine.ordering import OrderedSender
from asyncpush.engine.parts import HeldBytes
from asyncpush.errors import (
    AsyncpushError,
    DigestMismatchError,
    InvalidLayerError,
    InvalidLayerPartError,
    ServiceError,
    UploadNotFoundError,
    only_cause,
)
from asyncpush.events import LayerDone, LayerFailed, LayerStarted, PartSent
from asyncpush.model import Descriptor, LayerBytes, PushedLayer, Upload
from asyncpush.protocols import Blob, Part, Repository
from asyncpush.settings import MAX_PART_SIZE, MAX_PARTS, MiB

#: Bytes that are left to send, from which on it is worth a request to know exactly which.
_WORTH_ASKING = MiB


class EncodedParts:
    """One part of a blob, encoded for each of the uploads that it goes to.

    Args:
        parts: the part, one for each upload; their bytes are shared where possible.
        cost: the memory that they take, in bytes; returned once the last upload has released its part.
        consumed: bytes of the source that were read for the part.
        account: the account that the memory is taken from.
    """

    def __init__(self, parts: tuple[Part, ...], cost: int, consumed: int, account: MemoryAccount) -> None:
        self.parts = parts
        self.consumed = consumed
        self.account = account
        self._cost = cost
        self._uploads = len(parts)

    def release(self) -> None:
        """Record that one of the uploads no longer needs its part."""
        self._uploads -= 1
        if not self._uploads:
            self.account.give_back(self._cost)


#: One upload's part, and the parts that it shares memory with.
PartOf = tuple[Part, EncodedParts]


class LayerUpload:
    """A blob on its way into one repository, over as many uploads as it takes.

    Args:
        repository: where it goes.
        blob: what is sent.
        context: what the layers of the run share.

    Attributes:
        received: bytes that ECR had acknowledged when the upload was opened; what is sent begins behind them.
        failure: what its last attempt failed of, None if it did not.
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
        self._key = layer_key(repository, blob)
        self._upload: Upload | None = None
        self._is_resumed = False
        self._sent = self._read = 0
        self._unacknowledged: dict[Part, EncodedParts] = {}

    @property
    def upload(self) -> Upload:
        """The upload; there is one once it was opened."""
        assert self._upload is not None, "it was opened"  # noqa: S101
        return self._upload

    @property
    def has_other_bytes(self) -> bool:
        """Whether ECR has other bytes of the layer than its digest names."""
        return isinstance(self.failure, InvalidLayerError)

    @asynccontextmanager
    async def shown(self) -> AsyncIterator[None]:
        """Tell when it begins, and how it ends."""
        emit = self._context.emit
        title = f"{self.repository.name.rpartition('/')[2]} {self._blob.name.removeprefix('layer ')}"
        emit(LayerStarted(self._key, title, self._blob.source_size, self.repository.name))
        try:
            yield
        finally:
            if self.pushed is None:
                emit(LayerFailed(self._key))
            else:
                emit(LayerDone(self._key, self.pushed.descriptor.digest, self.pushed.outcome))

    async def open(self, *, wanted: int | None) -> None:
        """Take up the upload that an earlier run has left, or that is to be gone on with, or begin one.

        Args:
            wanted: bytes a part; None takes what ECR asks for.
        """
        self.failure = None
        if self._upload is not None:  # its place has moved: see ``recover``
            return
        journal, address, identity = self._context.journal, self.repository.address, self._blob.identity
        left = await journal.open_upload(address, identity) if journal else None
        if left is not None and left.part_size >= _least(self._blob.source_size, MAX_PARTS["ecr"]):
            self._upload, self.part_size, self.received = left.upload, left.part_size, left.received
            self._is_resumed = True
            if await self._catch_up():
                return
            if journal:
                await journal.upload_lost(address, identity)
        self._upload = await self.repository.begin_upload()
        self.part_size = part_size(self._upload, self._blob.source_size, wanted)
        self.received, self._is_resumed = 0, False
        if journal:
            await journal.upload_begun(address, identity, self._upload, self.part_size)

    async def _catch_up(self) -> bool:
        """Learn how far ECR has come with what an earlier run has left; False if it does not have that any more.

        That run may have ended before the answers to its last parts. A part of one byte that can't follow anything is
        refused with the last byte that ECR has: that costs less than to send a part for it.
        """
        if self._blob.source_size - self.received < _WORTH_ASKING:
            return True
        encoder = self.repository.encoder(self.upload, 2 * self._blob.source_size + MAX_PART_SIZE, None)
        encoder.add(memoryview(b"\0"))
        try:
            await self.repository.send_part(self.upload, encoder.finish())
        except UploadNotFoundError:
            return False
        except InvalidLayerPartError as error:
            if not error.last_valid_byte or error.last_valid_byte < 0:
                return not self.received
            if not self._moves_on(error):
                return error.last_valid_byte + 1 == self.received
            await self._has(error.last_valid_byte + 1)
            return True
        except ServiceError:
            return True  # then the next part tells
        return False

    async def _has(self, received: int) -> None:
        """Note that ECR has more than was known, also for a run that comes after this one."""
        self.received = received
        if journal := self._context.journal:
            await journal.part_acknowledged(self.repository.address, self._blob.identity, self.upload, received)

    async def failed(self, error: AsyncpushError) -> None:
        """Note that the source has failed; an upload that has other bytes than it should is of no use any more."""
        self.failure = self.failure or error
        journal = self._context.journal
        if journal and isinstance(error, DigestMismatchError) and self._upload is not None:
            await journal.upload_lost(self.repository.address, self._blob.identity)

    async def recover(self) -> bool:
        """Make ready for another attempt, if one can help; what it failed of is in ``failure``."""
        error, self.failure = self.failure, None
        match error:
            case InvalidLayerPartError() if self._is_resumed and self._moves_on(error):
                # The last acknowledgements of the earlier run were lost with it: ECR says how far it has come.
                self._rewind()
                self._is_resumed = False
                await self._has((error.last_valid_byte or 0) + 1)
                return True
            case UploadNotFoundError() | InvalidLayerPartError() | InvalidLayerError():
                if not self._is_resumed:
                    # All was in order when it was sent. If overlapping parts can do that, they do it no more.
                    self._context.pipeline.stop()
                self._rewind()
                self._upload, self.received = None, 0
                if journal := self._context.journal:
                    await journal.upload_lost(self.repository.address, self._blob.identity)
                return True
            case _:
                self.failure = error
                return False

    def skipped(self, read: int) -> None:
        """Note that the source's first *read* bytes need not be sent."""
        self._read += read
        self._context.emit(PartSent(self._key, read, 0))

    async def send(self, parts: MemoryObjectReceiveStream[PartOf]) -> None:
        """Send all parts; an error is kept in ``failure``, and the remaining parts are released."""
        acknowledged, numbers = anyio.create_memory_object_stream[int](math.inf)
        try:
            with only_cause():
                async with parts, numbers, anyio.create_task_group() as tg:
                    tg.start_soon(self._note, numbers)
                    async with acknowledged:

                        def on_acknowledged(part: Part) -> None:
                            acknowledged.send_nowait(self._acknowledge(part))

                        sender = OrderedSender(self._send, on_acknowledged, self._context.pipeline)
                        await sender.send(self._tracked(parts))
        except AsyncpushError as error:
            self.failure = error
            for shared in self._unacknowledged.values():
                shared.release()
            self._unacknowledged.clear()

    async def complete(self, found: LayerBytes) -> None:
        """Close the upload; what that fails of is kept in ``failure``."""
        try:
            outcome = await self.repository.complete_upload(self.upload, found.digest)
        except AsyncpushError as error:
            self.failure = error
            return
        descriptor = Descriptor(self._blob.media_type, found.digest, found.size)
        if journal := self._context.journal:
            await journal.layer_completed(self.repository.address, self._blob.identity, descriptor)
        self.pushed = PushedLayer(descriptor, self._sent, outcome)

    async def _tracked(self, parts: MemoryObjectReceiveStream[PartOf]) -> AsyncIterator[Part]:
        async for part, shared in parts:
            self._unacknowledged[part] = shared
            yield part
            del part, shared  # or they would be held until the next one is made

    async def _send(self, part: Part, on_sent: Callable[[], None]) -> None:
        # A part that holds its bytes needs no memory to leave, and must not wait for any.
        if part.content is None or isinstance(part.content, HeldBytes):
            await self.repository.send_part(self.upload, part, on_sent)
            return
        async with self._context.memory.window() as close_window:

            def close_and_report() -> None:
                close_window()
                on_sent()

            await self.repository.send_part(self.upload, part, close_and_report)

    def _acknowledge(self, part: Part) -> int:
        shared = self._unacknowledged.pop(part)
        shared.release()
        self._context.limiter.acknowledged(part.size)
        self._sent += part.size
        self._read += shared.consumed
        self._context.emit(PartSent(self._key, shared.consumed, part.size))
        return part.last + 1

    async def _note(self, numbers: MemoryObjectReceiveStream[int]) -> None:
        """Journal how far ECR has acknowledged: the latest number, whenever the journal is ready for one."""
        journal = self._context.journal
        received = 0
        async for number in numbers:
            received = max(received, number)
            while numbers.statistics().current_buffer_used:
                received = max(received, numbers.receive_nowait())
            if journal:
                await journal.part_acknowledged(self.repository.address, self._blob.identity, self.upload, received)

    def _moves_on(self, error: InvalidLayerPartError) -> bool:
        return error.last_valid_byte is not None and error.last_valid_byte >= self.received

    def _rewind(self) -> None:
        self._context.emit(PartSent(self._key, -self._read, 0))
        self._read = 0


def layer_key(repository: Repository, blob: Blob) -> str:
    """What a blob on its way into a repository is called in events."""
    return f"{repository.address}/{blob.identity}"


def part_size(upload: Upload, size: int, wanted: int | None) -> int:
    """Bytes of each part but the last: *wanted* or what ECR asks for, and more where *size* needs too many parts."""
    return max(wanted or upload.part_size, _least(size, upload.max_parts))


def _least(size: int, max_parts: int) -> int:
    """The smallest part of which *max_parts* make *size* bytes, as far as ECR takes such parts."""
    return min(-(-size // max_parts), MAX_PART_SIZE)


UploadParts = MemoryObjectSendStream[PartOf]
