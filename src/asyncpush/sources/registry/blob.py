"""One blob of a registry, as it arrives: a connection that breaks is made good from the byte where it broke.

Sources: OCI distribution-spec 1.1, "pulling blobs"; RFC 9110, 14 (range requests).
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from asyncpush.errors import DigestMismatchError
from asyncpush.model import Descriptor, Digest
from asyncpush.protocols import BlobStream
from asyncpush.sources.registry.http import LATER, translated
from asyncpush.sources.registry.patience import TransientError
from asyncpush.sources.registry.wire import Ask, OpenAnswer, Wire, path_of

_OPERATION = "GET blob"
_PARTIAL, _NO_SUCH_RANGE = 206, 416
_EXPECTED = frozenset({200, _PARTIAL, _NO_SUCH_RANGE})
_CONTENT_RANGE = re.compile(r"bytes\s+([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")

_OTHER_BYTES = "the registry, or a proxy before it, holds other bytes than the manifest names"


@dataclass(frozen=True, slots=True)
class RegistryBlob:
    """A blob in a repository of a registry (``protocols.RemoteBlob``); nothing is asked before it is read.

    Attributes:
        name: how to call it on screens.
        descriptor: its digest and size, as a manifest claims them.
        repository: where it is.
    """

    name: str
    descriptor: Descriptor
    repository: str
    wire: Wire

    @property
    def media_type(self) -> str:
        """The descriptor's media type."""
        return self.descriptor.media_type

    @property
    def source_size(self) -> int:
        """The descriptor's size in bytes."""
        return self.descriptor.size

    @property
    def identity(self) -> str:
        """The digest."""
        return str(self.descriptor.digest)

    @property
    def what(self) -> str:
        """How to call it in errors."""
        return f"{self.name} of {self.wire.host}/{self.repository}"

    def mismatch(self, expected: Digest | int, actual: Digest | int) -> DigestMismatchError:
        """The error for bytes that are not what was claimed."""
        return DigestMismatchError(self.what, expected, actual, hint=_OTHER_BYTES)

    @asynccontextmanager
    async def stream(self, start: int = 0) -> AsyncIterator[BlobStream]:
        """Begin to read it, from byte *start* on (GET of the blob, with a range).

        Raises:
            SourceNotFoundError: it is not there.
            SourceDeniedError: the registry refuses.
            SourceUnavailableError: the registry can't be reached, or fails too often.
        """
        stream = _Stream(self, start)
        try:
            await stream.begin()
            yield stream
        finally:
            stream.close()


class _Stream:
    """The bytes of one blob. ``_received`` counts those that have arrived; what was not given out yet is ``_rest``."""

    def __init__(self, blob: RegistryBlob, start: int) -> None:
        self._blob = blob
        self._size = blob.descriptor.size
        self._received = start
        self._what = blob.what
        self._rest = memoryview(b"")
        self._answer: OpenAnswer | None = None
        self._bounded = False
        self._skip = 0
        self._ranges = True
        self._tries = blob.wire.tries(_OPERATION)

    async def begin(self) -> None:
        """Open it, so that what is not there shows at once."""
        if self._received < self._size:
            self._rest = memoryview(await self._next())

    async def readinto(self, buffer: memoryview) -> int:
        """See ``protocols.BlobStream``.

        Raises:
            DigestMismatchError: the registry has more bytes than the descriptor says.
            SourceError: it refuses, or breaks off too often.
        """
        filled = 0
        while filled < len(buffer):
            if not self._rest:
                self._rest = memoryview(await self._next())
                if not self._rest:
                    break
            count = min(len(self._rest), len(buffer) - filled)
            buffer[filled : filled + count] = self._rest[:count]
            self._rest = self._rest[count:]
            filled += count
        return filled

    def close(self) -> None:
        """Let go of the connection."""
        if self._answer is not None:
            self._answer.close()
            self._answer = None

    async def _next(self) -> bytes | memoryview:
        """The next bytes, whatever it takes; empty at the end."""
        while True:
            try:
                if self._answer is None:
                    if self._received >= self._size:
                        return b""
                    self._answer = await self._open()
                data = await self._chunk(self._answer)
            except TransientError as error:
                self.close()
                await self._tries.failed(error)
            except BaseException:
                self.close()
                raise
            else:
                if data or self._received >= self._size:
                    return data

    async def _chunk(self, answer: OpenAnswer) -> bytes | memoryview:
        """What has arrived; empty once all has, or once a part of it that was asked for has."""
        content = answer.response.content
        data = memoryview(b"")
        with translated(answer.response.url, self._blob.wire.patience):
            while not data and not content.at_eof():
                # As it came from the socket: joining the pieces would copy them once more.
                arrived, _ = await content.readchunk()
                data = memoryview(arrived)[self._skip :]
                self._skip -= min(self._skip, len(arrived))
        if not data:
            self.close()
            if self._received < self._size and not self._bounded:
                missing = self._size - self._received
                raise TransientError(
                    f"{self._what} ends {missing} of {self._size} bytes early",
                    hint=LATER,
                )
            self._bounded = False
            return data
        self._received += len(data)
        if self._received > self._size:
            raise self._mismatch(self._received)
        self._tries.progress()
        if self._received == self._size and answer.response.content_length is not None:
            self.close()
        return data

    async def _open(self) -> OpenAnswer:
        blob, start = self._blob, self._received
        headers = {"Range": f"bytes={start}-"} if start and self._ranges else {}
        path = path_of(blob.repository, "blobs", str(blob.descriptor.digest))
        opened = await blob.wire.open(Ask(_OPERATION, path, self._what, blob.repository, headers, _EXPECTED))
        try:
            self._check(opened)
        except BaseException:
            opened.close()
            raise
        return opened

    def _check(self, opened: OpenAnswer) -> None:
        """See that the answer begins where it should, and can have the right length."""
        response, start = opened.response, self._received
        length = response.content_length
        self._bounded = False
        if response.status == 200:
            self._skip = start
            if length is not None and length != self._size:
                raise self._mismatch(length)
            return
        match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "").strip())
        total = int(match[3]) if match and match[3] != "*" else self._size
        if response.status == _PARTIAL and total != self._size:
            raise self._mismatch(total)
        last = int(match[2]) if match else -1
        fits = match is not None and int(match[1]) == start <= last < self._size and self._ranges and start > 0
        if response.status != _PARTIAL or not fits or (length is not None and length != last + 1 - start):
            # It does not know ranges: all of it, then, and skip what is there.
            self._ranges = False
            raise TransientError(f"{self._what}: the registry answers with another range than bytes {start} and on")
        self._skip = 0
        self._bounded = last + 1 < self._size

    def _mismatch(self, size: int) -> DigestMismatchError:
        return self._blob.mismatch(self._size, size)
