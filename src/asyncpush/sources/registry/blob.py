"""One blob of a registry, streamed: after a break, the download resumes from the byte where it broke.

Sources: OCI distribution-spec 1.1, "pulling blobs"; RFC 9110, 14 (range requests).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
from anyio import to_thread

from asyncpush.errors import DigestMismatchError, SourceError
from asyncpush.http.download import Download
from asyncpush.http.encoding import GZIP, Decoder, Encoding, encoding_of, is_hidden, unknown_encoding_of
from asyncpush.http.socket_reader import LONG, SocketReader
from asyncpush.model import Digest
from asyncpush.protocols import BlobStream
from asyncpush.settings import MiB
from asyncpush.sources.blobs import DescribedBlob
from asyncpush.sources.registry.client import UNASKED, ConnectionSlot, OpenResponse, RegistryClient
from asyncpush.sources.registry.http import LATER, translated
from asyncpush.sources.registry.requests import Request, TransientError, path_of

_OPERATION = "GET blob"
_WHOLE, _PARTIAL, _NO_SUCH_RANGE, _BROKEN = 200, 206, 416, 500
_EXPECTED = frozenset({_WHOLE, _PARTIAL, _NO_SUCH_RANGE})
#: Range requests that fail with a server error before the whole blob is requested instead.
_FAILING_RANGES = 3
#: Bytes that are decompressed at once.
_DECODED_AT_ONCE = MiB // 4

_OTHER_BYTES = "the registry, or a proxy in front of it, holds other bytes than the manifest names"


@dataclass(frozen=True, slots=True)
class RegistryBlob(DescribedBlob):
    """A blob in a repository of a registry (``protocols.RemoteBlob``); no request is sent before it is read.

    Attributes:
        repository: the repository that holds it.
        client: the registry.
    """

    repository: str
    client: RegistryClient

    @property
    def what(self) -> str:
        """Its name in errors."""
        return f"{self.name} of {self.client.host}/{self.repository}"

    def mismatch(self, expected: Digest | int, actual: Digest | int) -> DigestMismatchError:
        """The error for bytes that are not what was claimed."""
        return DigestMismatchError(self.what, expected, actual, hint=_OTHER_BYTES)

    async def stored_size(self) -> int | None:
        """The size that the registry reports (GET of the blob, whose body is not read); None if it reports none.

        Raises:
            SourceError: as ``stream``.
        """
        tries = self.client.retry_loop(_OPERATION)
        path = path_of(self.repository, "blobs", str(self.descriptor.digest))
        while True:
            try:
                opened = await self.client.open(Request(_OPERATION, path, self.name, self.repository))
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
        """Take a connection slot to read it from byte *start* on; the first ``readinto`` sends the request."""
        async with self.client.slot() as slot:
            stream = _BlobDownload(self, start, slot)
            try:
                yield stream
            finally:
                stream.close()


class _BlobDownload:
    """The bytes of one blob (``protocols.BlobStream``); ``_rest`` has arrived and was not read yet."""

    def __init__(self, blob: RegistryBlob, start: int, slot: ConnectionSlot) -> None:
        self._blob = blob
        self._slot = slot
        self._size = blob.descriptor.size
        self._download = Download(self._size, start)
        self._what = blob.what
        self._rest = memoryview(b"")
        self._open_response: OpenResponse | None = None
        self._socket: SocketReader | None = None
        self._ranges_left = _FAILING_RANGES
        self._decoder: Decoder | None = None
        self._unknown: str | None = None
        self._head = b""
        self._tries = blob.client.retry_loop(_OPERATION)

    async def readinto(self, buffer: memoryview) -> int:
        """See ``protocols.BlobStream``.

        Raises:
            DigestMismatchError: the registry's blob has another size than the descriptor.
            SourceNotFoundError: the registry does not have it.
            SourceDeniedError: the registry denies access.
            SourceUnavailableError: the registry can't be reached, or fails too often.
        """
        filled = 0
        while filled < len(buffer) and (count := await self._next(buffer[filled:])):
            filled += count
        return filled

    def close(self) -> None:
        """Release the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._open_response is not None:
            self._open_response.close()
            self._open_response = None

    async def _next(self, room: memoryview) -> int:
        """Read the next bytes into *room*, after as many tries as it takes; 0 at the end."""
        while not self._rest:
            try:
                if self._open_response is None:
                    if self._download.received >= self._size:
                        return 0
                    self._open_response = await self._open()
                if count := await self._receive(self._open_response, room):
                    return count
                self._rest = memoryview(await self._chunk(self._open_response))
                if not self._rest and self._download.received >= self._size:
                    return 0
            except TransientError as error:
                self.close()
                await self._tries.wait(error)
            except BaseException:
                self.close()
                raise
        count = min(len(self._rest), len(room))
        room[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    async def _receive(self, opened: OpenResponse, room: memoryview) -> int:
        """Receive the next bytes from the socket straight into *room*; 0 if they come through aiohttp."""
        socket = self._socket or self._reader(opened.response)
        if socket is None or not socket.rest:
            return 0
        self._socket = socket
        retry = self._blob.client.retry
        url = opened.response.url
        with self._blob.client.reading(url), translated(url, retry):
            count = await socket.receive(room, retry.stall)
        if count:
            self._download.received += count
            self._note_progress(opened)
        return count

    def _reader(self, response: aiohttp.ClientResponse) -> SocketReader | None:
        """What receives the rest of a long body that is the blob's own; None if it comes otherwise."""
        content, connection = response.content, response.connection
        if self._decoder is not None or self._head or self._download.skips or response.content_length is None:
            return None
        rest = response.content_length - content.total_bytes
        if rest < LONG or connection is None or connection.protocol is None:
            return None
        transport = connection.transport
        if not isinstance(transport, asyncio.Transport) or content.exception() is not None:
            return None
        self._head = content.read_nowait()
        return None if self._head else SocketReader(connection.protocol, transport, content, rest)

    async def _chunk(self, opened: OpenResponse) -> bytes:
        """The next bytes of the response; empty at its end."""
        data, download = b"", self._download
        while not data and (arrived := await self._arrived(opened)):
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
        self._note_progress(opened)
        return data

    def _note_progress(self, opened: OpenResponse) -> None:
        self._tries.restart()
        is_complete = self._download.received == self._size
        if is_complete and self._decoder is None and opened.response.content_length is not None:
            self.close()
            self._slot.release()  # no further request follows

    async def _arrived(self, opened: OpenResponse) -> bytes:
        """The next bytes, in the pieces in which they came from the socket: joining them would copy them."""
        decoder = self._decoder
        while True:
            if decoder is not None and (found := await self._decoded(decoder)):
                return found
            content = opened.response.content
            arrived, self._head = self._head, b""
            with translated(opened.response.url, self._blob.client.retry):
                if not arrived and content.at_eof():
                    return b""
                if not arrived:
                    with self._blob.client.reading(opened.response.url):
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

    async def _open(self) -> OpenResponse:
        blob, is_ranged = self._blob, self._download.is_ranged
        headers = self._download.request_headers()
        path = path_of(blob.repository, "blobs", str(blob.descriptor.digest))
        try:
            request = Request(_OPERATION, path, self._what, blob.repository, headers, _EXPECTED)
            opened = await blob.client.open(request, self._slot)
        except SourceError as error:
            if is_ranged:
                self._note_refused_range(error)
            raise
        try:
            self._check(opened)
            self._head = b""
            self._decoder = await self._chosen_decoder(opened.response)
            response, length = opened.response, opened.response.content_length
            # The length of a compressed response is not the blob's.
            is_compressed = self._decoder is not None or encoding_of(response.headers) is not None
            if response.status == _WHOLE and not is_compressed and length not in (None, self._size):
                raise self._mismatch(length or 0)
        except BaseException:
            opened.close()
            raise
        return opened

    def _note_refused_range(self, error: SourceError) -> None:
        """Request the whole blob next time, and skip what has arrived: a refused range does not mean a refused blob."""
        if not isinstance(error, TransientError):
            self._download.uses_ranges = False
            raise TransientError(error.message, hint=error.hint) from error
        if error.status == _BROKEN:
            self._ranges_left -= 1
            self._download.uses_ranges = self._ranges_left > 0

    async def _chosen_decoder(self, response: aiohttp.ClientResponse) -> Decoder | None:
        """The decoder for a blob that comes compressed; None if its own bytes come.

        Some servers label a layer with its own compression as the encoding; some proxies compress it once more, and
        some of those do not label it. Its size and its first bytes tell these apart; its digest is compared anyway.
        """
        labelled, length = encoding_of(response.headers), response.content_length
        if length == self._size or response.status != _WHOLE or self._unknown:
            return None
        encoding = labelled or "gzip"
        beginning = await self._peek(response, encoding)
        if beginning is None:
            return None  # not compressed, whatever the label
        if response.content.at_eof() and self._size in (len(self._head), len(beginning)):
            is_compressed = len(beginning) == self._size  # the whole response is here
        elif labelled:
            # A length other than the blob's is the best evidence: media types can be wrong, encrypted data are random.
            is_compressed = length is not None or "gzip" not in self._blob.media_type or beginning.startswith(GZIP)
        else:
            is_compressed = is_hidden(self._blob.media_type, self._size, length, beginning)
        if not is_compressed:
            return None
        self._download.uses_ranges = False
        return Decoder(encoding)

    async def _peek(self, response: aiohttp.ClientResponse, encoding: Encoding) -> bytes | None:
        """The beginning, decompressed, with what was read for it in ``_head``; None if it is not so compressed."""
        decoder, beginning = Decoder(encoding), b""
        longest = min(self._size, _DECODED_AT_ONCE) + 1  # one more, to notice a longer one
        with translated(response.url, self._blob.client.retry):
            while len(self._head) < _DECODED_AT_ONCE and not response.content.at_eof():
                arrived, _ = await response.content.readchunk()
                self._head += arrived
                try:
                    decoder.feed(arrived)
                    beginning += await to_thread.run_sync(decoder.read, longest - len(beginning))
                except ValueError:
                    return None
        return beginning

    def _check(self, opened: OpenResponse) -> None:
        """Check that the response holds the missing bytes."""
        response, start = opened.response, self._download.received
        self._unknown = unknown_encoding_of(response.headers)
        is_encoded = encoding_of(response.headers) is not None
        accepted = self._download.accept(response.status, response.headers, response.content_length)
        # A range of what comes compressed counts compressed bytes.
        if not accepted or (is_encoded and response.status != _WHOLE):
            self._download.uses_ranges = False
            raise TransientError(f"{self._what}: the registry sends another range than the bytes from {start} on")

    def _mismatch(self, size: int) -> SourceError:
        if self._unknown:
            return SourceError(f"{self._what} comes compressed with {self._unknown}{UNASKED}")
        return self._blob.mismatch(self._size, size)
