"""One blob of a registry, as it arrives: a connection that breaks is made good from the byte where it broke.

Sources: OCI distribution-spec 1.1, "pulling blobs"; RFC 9110, 14 (range requests).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from anyio import to_thread

from asyncpush.errors import DigestMismatchError, SourceError
from asyncpush.http.download import Download
from asyncpush.http.encoding import GZIP, Decoder, Encoding, encoding_of, is_hidden, unknown_encoding_of
from asyncpush.model import Descriptor, Digest
from asyncpush.protocols import BlobStream
from asyncpush.settings import MiB
from asyncpush.sources.registry.client import UNASKED, ConnectionTurn, OpenAnswer, RegistryClient
from asyncpush.sources.registry.http import LATER, translated
from asyncpush.sources.registry.requests import Request, TransientError, path_of

_OPERATION = "GET blob"
_WHOLE, _PARTIAL, _NO_SUCH_RANGE, _BROKEN = 200, 206, 416, 500
_EXPECTED = frozenset({_WHOLE, _PARTIAL, _NO_SUCH_RANGE})
#: Requests for a range that fail, though the registry is there, before all of the blob is asked for.
_FAILING_RANGES = 3
#: Bytes that are decompressed at once.
_DECODED_AT_ONCE = MiB // 4

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
    wire: RegistryClient

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

    async def stored_size(self) -> int | None:
        """Its size in bytes, as the registry has it (GET of the blob, which is not read); None if it does not say.

        Raises:
            SourceError: as ``stream``.
        """
        tries = self.wire.tries(_OPERATION)
        path = path_of(self.repository, "blobs", str(self.descriptor.digest))
        while True:
            try:
                opened = await self.wire.open(Request(_OPERATION, path, self.name, self.repository))
            except TransientError as error:
                await tries.wait(error)
                continue
            try:
                headers = opened.response.headers
                encoded = encoding_of(headers) or unknown_encoding_of(headers)
                return None if encoded else opened.response.content_length
            finally:
                opened.close()

    @asynccontextmanager
    async def stream(self, start: int = 0) -> AsyncIterator[BlobStream]:
        """Take a turn to read it, from byte *start* on (GET of the blob, with a range, at the first ``readinto``)."""
        async with self.wire.turn() as turn:
            stream = _BlobDownload(self, start, turn)
            try:
                yield stream
            finally:
                stream.close()


class _BlobDownload:
    """The bytes of one blob (``protocols.BlobStream``); ``_rest`` has arrived and was not read yet."""

    def __init__(self, blob: RegistryBlob, start: int, turn: ConnectionTurn) -> None:
        self._blob = blob
        self._turn = turn
        self._size = blob.descriptor.size
        self._download = Download(self._size, start)
        self._what = blob.what
        self._rest = memoryview(b"")
        self._answer: OpenAnswer | None = None
        self._ranges_left = _FAILING_RANGES
        self._decoder: Decoder | None = None
        self._unknown: str | None = None
        self._head = b""
        self._tries = blob.wire.tries(_OPERATION)

    async def readinto(self, buffer: memoryview) -> int:
        """See ``protocols.BlobStream``.

        Raises:
            DigestMismatchError: the registry has another number of bytes than the descriptor says.
            SourceNotFoundError: it is not there.
            SourceDeniedError: the registry refuses.
            SourceUnavailableError: the registry can't be reached, or fails too often.
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

    async def _next(self) -> bytes:
        """The next bytes, whatever it takes; empty at the end."""
        while True:
            try:
                if self._answer is None:
                    if self._download.received >= self._size:
                        return b""
                    self._answer = await self._open()
                data = await self._chunk(self._answer)
            except TransientError as error:
                self.close()
                await self._tries.wait(error)
            except BaseException:
                self.close()
                raise
            else:
                if data or self._download.received >= self._size:
                    return data

    async def _chunk(self, answer: OpenAnswer) -> bytes:
        """What has arrived; empty once all has, or once a part of it that was asked for has."""
        data, download = b"", self._download
        while not data and (arrived := await self._arrived(answer)):
            data = download.take(arrived)
        if not data:
            self.close()
            if download.received < self._size and not download.is_bounded:
                missing = self._size - download.received
                if self._unknown:
                    raise self._mismatch(download.received)
                raise TransientError(
                    f"{self._what} ends {missing} of {self._size} bytes early",
                    hint=LATER,
                )
            return data
        if download.received > self._size:
            raise self._mismatch(download.received)
        self._tries.restart()
        if download.received == self._size and self._decoder is None and answer.response.content_length is not None:
            self.close()
            self._turn.give_back()  # nothing is asked any more
        return data

    async def _arrived(self, answer: OpenAnswer) -> bytes:
        """The next bytes of the blob, as they came from the socket: joining them would copy them once more."""
        decoder = self._decoder
        while True:
            if decoder is not None and (found := await self._decoded(decoder)):
                return found
            content = answer.response.content
            arrived, self._head = self._head, b""
            with translated(answer.response.url, self._blob.wire.retry):
                if not arrived and content.at_eof():
                    return b""
                if not arrived:
                    arrived, _ = await content.readchunk()
            if decoder is not None:
                decoder.feed(arrived)
            elif arrived:
                return arrived

    async def _decoded(self, decoder: Decoder) -> bytes:
        try:
            return await to_thread.run_sync(decoder.read, _DECODED_AT_ONCE)
        except ValueError as error:
            raise TransientError(f"{self._what} comes compressed and damaged: {error}", hint=LATER) from error

    async def _open(self) -> OpenAnswer:
        blob, is_ranged = self._blob, self._download.is_ranged
        headers = self._download.request_headers()
        path = path_of(blob.repository, "blobs", str(blob.descriptor.digest))
        try:
            ask = Request(_OPERATION, path, self._what, blob.repository, headers, _EXPECTED)
            opened = await blob.wire.open(ask, self._turn)
        except SourceError as error:
            if is_ranged:
                self._note_refused_range(error)
            raise
        try:
            self._check(opened)
            self._head = b""
            self._decoder = await self._chosen_decoder(opened.response)
            response, length = opened.response, opened.response.content_length
            # The length of what comes compressed is not the blob's.
            is_compressed = self._decoder is not None or encoding_of(response.headers) is not None
            if response.status == _WHOLE and not is_compressed and length not in (None, self._size):
                raise self._mismatch(length or 0)
        except BaseException:
            opened.close()
            raise
        return opened

    def _note_refused_range(self, error: SourceError) -> None:
        """Ask for all of it the next time, and skip what is there: that a range is refused says nothing of the blob."""
        if not isinstance(error, TransientError):
            self._download.uses_ranges = False
            raise TransientError(error.message, hint=error.hint) from error
        if error.status == _BROKEN:
            self._ranges_left -= 1
            self._download.uses_ranges = self._ranges_left > 0

    async def _chosen_decoder(self, response: aiohttp.ClientResponse) -> Decoder | None:
        """What makes the blob of what comes compressed; None where the blob's own bytes come.

        Some servers label a layer, which is compressed, with its own compression; some proxies compress it once more,
        and some of those do not say so. Its size and its first bytes tell which; its digest is compared in any case.
        """
        labelled, length = encoding_of(response.headers), response.content_length
        if length == self._size or response.status != _WHOLE or self._unknown:
            return None
        encoding = labelled or "gzip"
        begin = await self._peek(response, encoding)
        if begin is None:
            return None  # it is not compressed, whatever it says
        if response.content.at_eof() and self._size in (len(self._head), len(begin)):
            is_compressed = len(begin) == self._size  # all of it is here
        elif labelled:
            # A length that is not the blob's tells it better; types lie, and what is encrypted begins with anything.
            is_compressed = length is not None or "gzip" not in self._blob.media_type or begin.startswith(GZIP)
        else:
            is_compressed = is_hidden(self._blob.media_type, self._size, length, begin)
        if not is_compressed:
            return None
        self._download.uses_ranges = False
        return Decoder(encoding)

    async def _peek(self, response: aiohttp.ClientResponse, encoding: Encoding) -> bytes | None:
        """The beginning, decompressed; what was read for it is ``_head``. None where it is not compressed so."""
        decoder, begin = Decoder(encoding), b""
        longest = min(self._size, _DECODED_AT_ONCE) + 1  # so that one that is longer shows
        with translated(response.url, self._blob.wire.retry):
            while len(self._head) < _DECODED_AT_ONCE and not response.content.at_eof():
                arrived, _ = await response.content.readchunk()
                self._head += arrived
                try:
                    decoder.feed(arrived)
                    begin += await to_thread.run_sync(decoder.read, longest - len(begin))
                except ValueError:
                    return None
        return begin

    def _check(self, opened: OpenAnswer) -> None:
        """Check that the response holds the missing bytes."""
        response, start = opened.response, self._download.received
        self._unknown = unknown_encoding_of(response.headers)
        is_encoded = encoding_of(response.headers) is not None
        accepted = self._download.accept(response.status, response.headers, response.content_length)
        # A range of what comes compressed counts compressed bytes.
        if not accepted or (is_encoded and response.status != _WHOLE):
            self._download.uses_ranges = False
            raise TransientError(f"{self._what}: the registry answers with another range than bytes {start} and on")

    def _mismatch(self, size: int) -> SourceError:
        if self._unknown:
            return SourceError(f"{self._what} comes compressed with {self._unknown}{UNASKED}")
        return self._blob.mismatch(self._size, size)
