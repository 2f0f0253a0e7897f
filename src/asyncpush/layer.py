"""One layer on its way into ECR: opened, cut into parts that go in order while the next one is made, completed."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import anyio
from anyio import CapacityLimiter, to_thread
from anyio.streams.memory import MemoryObjectSendStream

from asyncpush.errors import InvalidLayerError, InvalidLayerPartError, UploadNotFoundError, only_cause
from asyncpush.events import Emit, LayerDone, LayerFailed, LayerStarted, PartSent, ignore
from asyncpush.model import Descriptor, Upload
from asyncpush.protocols import Blob, BlobReader, Part, Repository, SeekableReader
from asyncpush.settings import MAX_PART_SIZE, MiB, Settings
from asyncpush.stream.budget import BudgetAccount, ByteBudget
from asyncpush.stream.order import Overlap, PartsInOrder
from asyncpush.stream.parts import PartCutter
from asyncpush.stream.slots import Slots

#: Uploads begun for one layer: an upload can expire, fall out of step or be damaged, but not again and again.
_UPLOADS = 3

#: Bytes that a part takes on its way where it is not held: a window of base64, and what the socket has not taken of it.
_WINDOW = 2 * MiB


@dataclass(frozen=True, slots=True)
class Resources:
    """What all layers of a run share.

    Attributes:
        settings: the limits.
        emit: hears what happens.
        budget: the memory for encoded parts.
        slots: layers in flight; ``max_layers`` at most.
        overlap: whether parts of a layer may overlap on their way.
        threads: worker threads that read, hash, encode and compress; as many as there are cores, and one that waits.
    """

    settings: Settings
    emit: Emit
    budget: ByteBudget
    slots: Slots
    overlap: Overlap = field(default_factory=Overlap)
    threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter((os.cpu_count() or 1) + 1))

    @classmethod
    def of(cls, settings: Settings, emit: Emit = ignore) -> Resources:
        """Those that *settings* allows; must be called in an event loop."""
        # The allocator wastes a third: what one thread has freed, another can't have.
        return cls(settings, emit, ByteBudget(settings.max_memory * 3 // 4), Slots(settings.max_layers))


@dataclass(frozen=True, slots=True)
class PushedLayer:
    """A layer that was sent: what points at it, the bytes that went over the wire for it, and who had put it there."""

    descriptor: Descriptor
    sent: int
    outcome: Literal["pushed", "present"]


async def push_layer(repository: Repository, blob: Blob, resources: Resources) -> PushedLayer:
    """Put *blob* into *repository*, in one of the run's slots.

    Raises:
        DigestMismatchError: the blob's bytes are not those that its descriptor names; nothing was completed.
        SourceError: the blob can't be read.
        RegistryError: ECR refused, or could not be reached in spite of all retries.
    """
    key = f"{repository.name}/{blob.identity}"
    async with resources.slots:
        tally = _Tally(key, resources.emit)
        resources.emit(LayerStarted(key, blob.name, blob.source_size, repository.name))
        try:
            pushed = await _upload_until_complete(repository, blob, resources, tally)
        except BaseException:
            resources.emit(LayerFailed(key))
            raise
        resources.emit(LayerDone(key, pushed.descriptor.digest, pushed.outcome))
        return pushed


async def _upload_until_complete(
    repository: Repository, blob: Blob, resources: Resources, tally: _Tally
) -> PushedLayer:
    settings = resources.settings
    for attempt in range(1, _UPLOADS + 1):
        upload = await repository.begin_upload()
        # A part size of our own that ECR does not like shows as a refused part: the next upload takes ECR's.
        wanted = settings.part_size if attempt == 1 else None
        size = part_size(upload, blob.source_size, wanted)
        try:
            with only_cause():
                return await _upload(repository, blob, upload, size, resources, tally)
        except (UploadNotFoundError, InvalidLayerPartError, InvalidLayerError) as error:
            if attempt == _UPLOADS:
                raise
            if isinstance(error, InvalidLayerError):
                # Its digest was right when it was read. If overlapping parts can do that, they do it no more.
                resources.overlap.stop()
            tally.rewind()
    raise AssertionError("the last attempt returns or raises")


async def _upload(
    repository: Repository, blob: Blob, upload: Upload, size: int, resources: Resources, tally: _Tally
) -> PushedLayer:
    async with opened(blob, resources.threads) as reader, resources.budget.account() as account:
        cutter = PartCutter(blob, reader, size, lambda first, again: repository.encoder(upload, first, again))
        again = reader if isinstance(reader, SeekableReader) else None
        ahead, parts = anyio.create_memory_object_stream[_Cut](0)

        async def send(part: Part, left: Callable[[], None]) -> None:
            if part.content is None:
                await repository.send_part(upload, part, left)
                return
            async with account.holding(_WINDOW) as let_go:

                def gone() -> None:
                    let_go()
                    left()

                await repository.send_part(upload, part, gone)

        def acknowledge(cut: _Cut) -> None:
            account.give_back(cut.cost)
            resources.slots.acknowledged(cut.part.size)
            tally.acknowledge(cut)

        # The stream outside, the group inside: when sending fails, the group stops the cutter before the stream closes,
        # and the failure arrives alone.
        async with parts, anyio.create_task_group() as tg:
            tg.start_soon(_cut_ahead, cutter, again, ahead, account, _encoded_size(size, blob), resources.threads)
            await PartsInOrder(send, acknowledge, resources.overlap).send(parts)
    result = cutter.result()
    outcome = await repository.complete_upload(upload, result.digest)
    return PushedLayer(Descriptor(blob.media_type, result.digest, result.size), tally.sent, outcome)


@dataclass(frozen=True, slots=True)
class _Cut:
    """A part, the memory that it takes, and the bytes of the source that were read for it."""

    part: Part
    cost: int
    consumed: int


async def _cut_ahead(
    cutter: PartCutter,
    again: SeekableReader | None,
    ahead: MemoryObjectSendStream[_Cut],
    account: BudgetAccount,
    held: int,
    threads: CapacityLimiter,
) -> None:
    """Make the next part while one is in flight: handing over waits until that one is acknowledged.

    A part that can be read again is held, encoded, only while there is plenty of memory; else it takes next to none,
    until it is sent. So the budget bounds memory, and hardly ever the number of layers in flight.
    """
    async with ahead:
        while True:
            source, cost = None, held
            if again is None:
                await account.take(cost)
            elif not account.take_nowait(cost):
                source, cost = again, 0
            consumed = cutter.consumed
            part = await to_thread.run_sync(partial(cutter.next_part, again=source), limiter=threads)
            if part is None:
                return
            await ahead.send(_Cut(part, cost, cutter.consumed - consumed))
            del part  # or it would be held until the next one is made


@asynccontextmanager
async def opened(blob: Blob, threads: CapacityLimiter) -> AsyncIterator[BlobReader]:
    """Open *blob* in a worker thread, and close it in one."""
    manager = blob.open()
    reader = await to_thread.run_sync(manager.__enter__, limiter=threads)
    try:
        yield reader
    finally:
        with anyio.CancelScope(shield=True):
            await to_thread.run_sync(manager.__exit__, None, None, None, limiter=threads)


def part_size(upload: Upload, size: int, wanted: int | None) -> int:
    """Bytes of each part but the last: *wanted* or what ECR asks for, and more where *size* needs too many parts."""
    least = -(-size // upload.max_parts)
    return max(wanted or upload.part_size, min(least, MAX_PART_SIZE))


def _encoded_size(size: int, blob: Blob) -> int:
    """The most that one part's request body can take: base64, and room for the small members."""
    largest = min(size, blob.source_size) if blob.descriptor else size
    return largest * 4 // 3 + 2048


class _Tally:
    """What ECR has acknowledged of one layer."""

    def __init__(self, key: str, emit: Emit) -> None:
        self.sent = 0
        self._read = 0
        self._key = key
        self._emit = emit

    def acknowledge(self, cut: _Cut) -> None:
        self.sent += cut.part.size
        self._read += cut.consumed
        self._emit(PartSent(self._key, cut.consumed, cut.part.size))

    def rewind(self) -> None:
        self._emit(PartSent(self._key, -self._read, 0))
        self._read = 0
