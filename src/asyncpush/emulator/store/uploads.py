"""A layer upload: parts appended to a file in order, a running digest, and a record for the next start."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import anyio

from asyncpush.emulator.errors import empty_upload, part_too_small
from asyncpush.emulator.store.catalog import Catalog
from asyncpush.emulator.store.disk import Disk, is_kept, write_at
from asyncpush.emulator.store.records import UploadRecord
from asyncpush.model import Digest

_BLOCK = 4 * 1024 * 1024

#: Bytes after which an upload is written out: layers of this length are not read back from memory.
_LONG = 4 * 1024 * 1024

#: Bytes of the longest part: a longer chunk of ``/v2/`` counts as several.
_MAX_PART = 20 * 1024 * 1024


class StagedUpload:
    """One upload; its methods block, and are called one at a time under ``lock``.

    Args:
        path: the file of its bytes, ``<data>/uploads/<id>``, which exists from the first part on.
        record: its state.
        catalog: the catalog that keeps the record.
    """

    def __init__(self, path: Path, record: UploadRecord, catalog: Catalog) -> None:
        self.id = record.id
        self.lock = anyio.Lock()
        self.record = record
        self.path = path
        self._catalog = catalog
        self._hasher = None if record.received else hashlib.sha256()

    def create(self) -> None:
        """Add it to the catalog."""
        with self._catalog.writing(lasting=False) as writes:
            writes.add_upload(self.record)

    def append(self, part: bytes | memoryview, minimum: int, disk: Disk) -> None:
        """Append the next part; a failure leaves the upload unchanged.

        When this returns, bytes and record survive a kill of this process. Neither is synced part by part: a power cut
        costs parts at most, which the client learns by ``lastValidByteReceived``.

        Args:
            part: its bytes.
            minimum: the least bytes of all parts but the last.
            disk: how to write.
        """
        short = self.record.short_part or 0 < self.record.last_part < minimum
        self._add(part, disk, parts=self.record.parts + 1, last_part=len(part), short_part=short)

    def extend(self, block: memoryview, minimum: int, disk: Disk) -> None:
        """Append a block of a chunk of ``/v2/``; a failure leaves the upload unchanged.

        Until ``end_chunk``, a chunk is one part of any length: a chunk that was cut continues with the next body.

        Args:
            block: its next bytes.
            minimum: the least bytes of all parts but the last.
            disk: how to write.
        """
        short = self.record.short_part or 0 < self.record.last_part < minimum
        open_part = min(self.record.last_part, 0) - len(block)
        self._add(block, disk, parts=self.parts_with(len(block)), last_part=open_part, short_part=short)

    def parts_with(self, size: int) -> int:
        """The number of parts after *size* more bytes of a chunk of ``/v2/``."""
        chunk = max(-self.record.last_part, 0)
        return self.record.parts + _parts_of(chunk + size) - _parts_of(chunk)

    def end_chunk(self) -> None:
        """Close the part that ``extend`` has opened, if any."""
        if self.record.last_part < 0:
            self._save(replace(self.record, last_part=-self.record.last_part))

    def _add(self, data: bytes | memoryview, disk: Disk, *, parts: int, last_part: int, short_part: bool) -> None:
        old = self.record
        hasher = self._running().copy()
        hasher.update(data)
        new = replace(
            old,
            parts=parts,
            received=old.received + len(data),
            last_part=last_part,
            short_part=short_part,
            digest=hasher.hexdigest(),
        )
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            first = os.pread(descriptor, 1, 0) if old.received else data
            if disk.discard and not is_kept(new.received, first):
                self._discard_bytes(descriptor, new)
            else:
                write_at(descriptor, data, old.received)
                if old.received // _LONG < new.received // _LONG:
                    disk.write_out(descriptor)
                self._save(new)
        except OSError:
            os.ftruncate(descriptor, old.received)
            raise
        finally:
            os.close(descriptor)
        self._hasher = hasher

    def close(self, disk: Disk) -> Digest:
        """``finish``, also for an upload without bytes: the OCI specification allows the empty blob."""
        if not self.record.received:
            self.path.touch()
        return self.finish(disk)

    def finish(self, disk: Disk) -> Digest:
        """Cut off what was never acknowledged, sync the rest, and return its digest."""
        digest = self._running().hexdigest()
        if digest != self.record.digest:  # unknown after a power cut; recovery needs it to find the moved file
            self._save(replace(self.record, digest=digest))
        descriptor = os.open(self.path, os.O_RDWR)
        try:
            os.ftruncate(descriptor, self.record.received)
            disk.sync(descriptor)
        finally:
            os.close(descriptor)
        return Digest(digest)

    def shorten(self, size: int) -> None:
        """Shorten it to *size* bytes: a power cut took the rest."""
        self._save(replace(self.record, received=size, digest=""))
        self._hasher = None

    def remove(self) -> None:
        """Remove it from the catalog, and delete its bytes."""
        with self._catalog.writing(lasting=False) as writes:
            writes.remove_upload(self.id)
        self.discard()

    def discard(self) -> None:
        """Delete the bytes of an upload that is no longer in the catalog."""
        self.path.unlink(missing_ok=True)

    def _discard_bytes(self, descriptor: int, new: UploadRecord) -> None:
        """Turn the file into a shell, after the catalog: a part that fails must leave the earlier ones unchanged."""
        os.ftruncate(descriptor, new.received)
        self._save(new)
        os.ftruncate(descriptor, 0)
        os.ftruncate(descriptor, new.received)

    def _save(self, record: UploadRecord) -> None:
        with self._catalog.writing(lasting=False) as writes:
            writes.save_upload(record)
        self.record = record

    def _running(self) -> hashlib._Hash:
        """The running digest; after a restart, the bytes are read once more."""
        if self._hasher is None:
            hasher, rest = hashlib.sha256(), self.record.received
            with self.path.open("rb") as file:
                while rest and (block := file.read(min(rest, _BLOCK))):
                    hasher.update(block)
                    rest -= len(block)
            self._hasher = hasher
        return self._hasher


def check_parts(upload: StagedUpload, repository: str, registry_id: str) -> None:
    """Check that an upload may be completed, through either API.

    Raises:
        AwsError: it has no parts, or a short one before the last.
    """
    if upload.record.received == 0:
        raise empty_upload(upload.id, repository, registry_id)
    if upload.record.short_part:
        raise part_too_small()


def _parts_of(chunk: int) -> int:
    """The parts that a chunk of so many bytes counts as."""
    return -(-chunk // _MAX_PART)
