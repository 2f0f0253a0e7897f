"""One request's bytes on their way into an upload: in order, within the quota, as many as were announced."""

from __future__ import annotations

from asyncpush.emulator.errors import limit_exceeded
from asyncpush.emulator.repository import Repository
from asyncpush.emulator.rules import Rules
from asyncpush.emulator.store import Store
from asyncpush.emulator.uploads import Upload
from asyncpush.emulator.v2.errors import V2Error


class Intake:
    """Where the blocks of one body go. The upload is free between blocks: a request that hangs keeps nobody away.

    Args:
        store: where the upload is.
        rules: the quotas.
        repository: the upload's.
        upload: the upload.
        first: the offset of the body's first byte.
        length: the bytes that were announced; None if none were.
    """

    def __init__(
        self, store: Store, rules: Rules, repository: Repository, upload: Upload, *, first: int, length: int | None
    ) -> None:
        self._store = store
        self._target = repository.target
        self._name = repository.name
        self._id = upload.id
        self._first = first
        self._next = first
        self._length = length
        self._quotas = rules.quotas(repository.registry)
        self._min_part = rules.min_part

    async def keep(self, block: memoryview) -> None:
        """Append the bytes that follow.

        Raises:
            V2Error: another request was faster, it is more than was announced, or more than a layer may have.
            AwsError: the upload is gone, or a layer may have no more parts.
            OSError: the disk is full.
        """
        end = self._next + len(block)
        if self._length is not None and end > self._first + self._length:
            raise self._size_invalid(end)
        if end > self._quotas.layer_size:
            raise V2Error(413, "SIZE_INVALID", f"a layer can have up to {self._quotas.layer_size} bytes")
        async with self._store.uploading(self._id, self._target, self._name) as upload:
            if upload.record.received != self._next:
                raise V2Error(416, "BLOB_UPLOAD_INVALID", f"another request has sent byte {self._next} meanwhile")
            if upload.parts_with(len(block)) > self._quotas.parts:
                raise limit_exceeded(f"The maximum number of layer parts, {self._quotas.parts}, has been reached")
            await self._store.in_thread(upload.extend, block, self._min_part, self._store.disk)
        self._next = end

    async def end(self) -> None:
        """Judge the whole body, which is one part of its layer.

        Raises:
            V2Error: it had fewer bytes than were announced; they are kept.
            AwsError: the upload is gone.
        """
        if self._length is not None and self._next != self._first + self._length:
            raise self._size_invalid(self._next)
        async with self._store.uploading(self._id, self._target, self._name) as upload:
            await self._store.in_thread(upload.end_chunk)

    def _size_invalid(self, end: int) -> V2Error:
        return V2Error(400, "SIZE_INVALID", f"{self._length} bytes were announced, and {end - self._first} came")
