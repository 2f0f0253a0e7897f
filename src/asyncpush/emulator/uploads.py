"""A layer upload on disk: parts appended in order, a running digest, and what a restart needs to go on."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import anyio
import msgspec

from asyncpush.emulator.disk import Disk, remove_tree, write_at
from asyncpush.model import Digest

_BLOCK = 4 * 1024 * 1024


class UploadRecord(msgspec.Struct, rename="camel", frozen=True):
    """What is known of an upload beside its bytes (``upload.json``).

    Attributes:
        repository: the repository's name.
        received: bytes that were acknowledged.
        last_part: bytes of the last part.
        short_part: whether a part before the last one was shorter than ECR's minimum.
    """

    repository: str
    received: int = 0
    last_part: int = 0
    short_part: bool = False


class Upload:
    """One upload; its methods block, and are called one at a time under ``lock``.

    Args:
        directory: ``<data>/uploads/<id>``.
        record: what is known of it.
        disk: how to write.
    """

    def __init__(self, directory: Path, record: UploadRecord, disk: Disk) -> None:
        self.id = directory.name
        self.lock = anyio.Lock()
        self.record = record
        self.bytes_path = directory / "bytes"
        self._directory = directory
        self._disk = disk
        self._hasher = None if record.received else hashlib.sha256()

    @classmethod
    def create(cls, directory: Path, repository: str, disk: Disk) -> Upload:
        """Open a new upload."""
        directory.mkdir()
        upload = cls(directory, UploadRecord(repository), disk)
        try:
            upload.bytes_path.touch()
            upload._save(upload.record)
        except OSError:
            remove_tree(directory)
            raise
        return upload

    @classmethod
    def load(cls, directory: Path, disk: Disk) -> Upload:
        """Take up an upload of an earlier run, at its last acknowledged byte.

        Raises:
            OSError: its files are not there.
            msgspec.DecodeError: its record is damaged.
        """
        record = msgspec.json.decode((directory / "upload.json").read_bytes(), type=UploadRecord)
        size = (directory / "bytes").stat().st_size
        # Without fsync a power cut may have taken bytes that were acknowledged: the client must send them again.
        return cls(directory, msgspec.structs.replace(record, received=min(record.received, size)), disk)

    @property
    def last_valid_byte(self) -> int:
        """The last acknowledged byte; 0 before any part, since ECR's shape has no negative values."""
        return max(self.record.received - 1, 0)

    def append(self, part: bytes, minimum: int) -> None:
        """Add the next part; on failure the upload is as it was before.

        Args:
            part: its bytes.
            minimum: bytes below which only the last part may be.
        """
        old = self.record
        hasher = self._running().copy()
        hasher.update(part)
        new = UploadRecord(
            repository=old.repository,
            received=old.received + len(part),
            last_part=len(part),
            short_part=old.short_part or 0 < old.last_part < minimum,
        )
        descriptor = os.open(self.bytes_path, os.O_RDWR)
        try:
            write_at(descriptor, part, old.received)
            self._save(new)
        except OSError:
            os.ftruncate(descriptor, old.received)
            raise
        finally:
            os.close(descriptor)
        self._hasher, self.record = hasher, new

    def finish(self) -> Digest:
        """Cut off what was never acknowledged, see the rest to the disk, and tell its digest."""
        descriptor = os.open(self.bytes_path, os.O_RDWR)
        try:
            os.ftruncate(descriptor, self.record.received)
            self._disk.sync(descriptor)
        finally:
            os.close(descriptor)
        return Digest(self._running().hexdigest())

    def remove(self) -> None:
        """Forget it and free its bytes."""
        remove_tree(self._directory)

    def _save(self, record: UploadRecord) -> None:
        # Not synced part by part: a power cut costs the upload, whose digest is checked at the end in any case.
        Disk(fsync=False).replace(self._directory / "upload.json", msgspec.json.encode(record))

    def _running(self) -> hashlib._Hash:
        """The digest of the bytes so far, read again once after a restart."""
        if self._hasher is None:
            hasher, rest = hashlib.sha256(), self.record.received
            with self.bytes_path.open("rb") as file:
                while rest and (block := file.read(min(rest, _BLOCK))):
                    hasher.update(block)
                    rest -= len(block)
            self._hasher = hasher
        return self._hasher
