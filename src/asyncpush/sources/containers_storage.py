"""An image in the storage of podman, buildah and CRI-O on this machine, as ``podman save`` writes it."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import IO

import anyio
from anyio import CancelScope, to_thread
from anyio.abc import Process

from asyncpush.errors import SourceError, SourceNotFoundError, SourceUnavailableError
from asyncpush.events import Emit, Notice
from asyncpush.http.retry import note_if_slow
from asyncpush.protocols import BlobStream

#: Seconds without a byte: podman gathers a whole layer before it writes the first one.
_PATIENCE = 900.0
_NOTE_AFTER = 10.0

#: Seconds for podman to end after it was told to.
_END = 5.0

_LONGEST_ERROR = 64 * 1024


@asynccontextmanager
async def open_image(name: str, emit: Emit) -> AsyncIterator[BlobStream]:
    """Let podman save an image, and receive the archive within the block.

    Args:
        name: the image's name with a tag or digest, or its id.
        emit: receives a ``Notice`` if podman keeps us waiting.

    Raises:
        SourceUnavailableError: podman is not installed, or can't be run.
    """
    command = ["podman", "save", "--quiet", "--format", "docker-archive", "--", name]
    errors = await to_thread.run_sync(tempfile.TemporaryFile)
    try:
        try:
            process = await anyio.open_process(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors.fileno()
            )
        except OSError as error:
            is_missing = isinstance(error, FileNotFoundError)
            raise SourceUnavailableError(
                f"podman, which reads containers-storage:{name}, "
                + ("is not installed" if is_missing else f"can't be run: {error.strerror}"),
                hint="install podman, or pipe the archive of another program: asyncpush push - DESTINATION",
            ) from error
        try:
            yield _SavedImage(process, errors, name, emit)
        finally:
            await _end(process)
    finally:
        with CancelScope(shield=True):
            await to_thread.run_sync(errors.close)


async def _end(process: Process) -> None:
    """End a program that may still run, in any case."""
    with CancelScope(shield=True):
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.terminate()
            with anyio.move_on_after(_END):
                await process.wait()
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
        await process.aclose()


@dataclass(frozen=True, slots=True)
class _SavedImage:
    """The archive that podman writes (``BlobStream``)."""

    process: Process
    errors: IO[bytes]
    name: str
    emit: Emit

    async def readinto(self, buffer: memoryview) -> int:
        """See ``BlobStream``; after the last byte, podman must have ended well."""
        assert self.process.stdout is not None  # noqa: S101 - narrows types
        filled = 0
        try:
            with (
                anyio.fail_after(_PATIENCE),
                note_if_slow(f"podman has written nothing of {self.name}", self._note, _NOTE_AFTER),
            ):
                while filled < len(buffer):
                    data = await self.process.stdout.receive(len(buffer) - filled)
                    buffer[filled : filled + len(data)] = data
                    filled += len(data)
        except anyio.EndOfStream:
            await self._check()
        except TimeoutError as error:
            raise SourceUnavailableError(
                f"podman has written nothing of {self.name} for {_PATIENCE:g} seconds",
                hint=f"try `podman save {self.name}`",
            ) from error
        return filled

    def _note(self, text: str) -> None:
        self.emit(Notice(text))

    async def _check(self) -> None:
        with anyio.fail_after(_PATIENCE):
            status = await self.process.wait()
        if status == 0:
            return
        text = await to_thread.run_sync(self._error)
        if "not known" in text or "no such image" in text.lower():
            raise SourceNotFoundError(
                f"podman has no image {self.name}", hint="`podman images` shows this user's, and root has others"
            )
        raise SourceError(f"podman can't save {self.name}: {text or f'it ended with status {status}'}")

    def _error(self) -> str:
        """The last line that podman wrote to standard error."""
        self.errors.seek(0)
        lines = self.errors.read(_LONGEST_ERROR).decode("utf-8", "replace").split("\n")
        return next((line.removeprefix("Error: ").strip() for line in reversed(lines) if line.strip()), "")[:500]
