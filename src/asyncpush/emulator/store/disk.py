"""Files that are whole or absent: written beside their place, synced, renamed."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path

#: Files of this prefix were being written when an emulator was killed; nothing refers to them.
TEMPORARY = ".new-"


@dataclass(frozen=True, slots=True)
class Disk:
    """How to write; all methods block and raise OSError.

    Attributes:
        fsync: whether what was written must outlive a power cut, not only the process.
        discard: whether layers are shells: as long as they should be, and without bytes.
    """

    fsync: bool = True
    discard: bool = False

    def replace(self, path: Path, data: bytes) -> None:
        """Put *data* at *path*, atomically."""
        beside = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
        try:
            with beside.open("wb") as file:
                file.write(data)
                file.flush()
                self.sync(file.fileno())
            beside.replace(path)
        except OSError:
            beside.unlink(missing_ok=True)
            raise
        self.sync_directory(path.parent)

    def make_directory(self, path: Path) -> None:
        """Make a directory that is not there, and those above it that are missing."""
        missing = [path, *(parent for parent in path.parents if not parent.exists())]
        path.mkdir(parents=True)
        for directory in missing:
            self.sync_directory(directory.parent)

    def move(self, source: Path, target: Path) -> None:
        """Move a file that was written and synced already to its place, atomically."""
        source.replace(target)
        self.sync_directory(target.parent)

    def link(self, source: Path, target: Path) -> None:
        """Give a file that was written and synced already a second name, in place of what has that name."""
        target.unlink(missing_ok=True)
        target.hardlink_to(source)
        self.sync_directory(target.parent)

    def sync(self, descriptor: int) -> None:
        """Flush one open file to the disk, if asked to."""
        if self.fsync:
            os.fsync(descriptor)

    def write_out(self, descriptor: int) -> None:
        """Have the kernel begin to write an open file out, and keep in memory nothing of what is written.

        A hint, for files that are longer than what is read again soon: the sync in the end finds little left to do,
        and the next file takes the same memory, which on a virtual machine costs a tenth of memory never touched.
        """
        if self.fsync and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def sync_directory(self, path: Path) -> None:
        """Flush the names in a directory to the disk, if asked to."""
        if self.fsync:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of *data* at *offset*; a short write, as a filling disk gives, is carried on until it fails."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written


#: Bytes up to which a blob is kept all the same: most configs, and the layers of tests.
KEPT = 1024 * 1024


def is_kept(size: int, first: bytes | memoryview) -> bool:
    """Whether a blob is kept where layers are discarded: it is short, or a JSON document, as an image's config is.

    Args:
        size: its bytes so far.
        first: the first ones.
    """
    return size <= KEPT or bytes(first[:1]) == b"{"


def is_shell(path: Path) -> bool:
    """Whether a file in a directory that discards has a length and no bytes; blocks."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    return status.st_size > KEPT and status.st_blocks * 512 < KEPT // 2
