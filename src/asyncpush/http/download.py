"""Downloads: bytes that arrive in order, resumed after a break from the byte where it broke, and hashed.

Source: RFC 9110, section 14 (range requests).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import aiohttp
import anyio
from anyio import to_thread

from asyncpush.model import Digest, LayerBytes
from asyncpush.settings import MiB

_OK, _PARTIAL_CONTENT = 200, 206

_CONTENT_RANGE = re.compile(r"bytes\s+([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")

#: Bytes that are gathered before a worker thread hashes them: enough to be worth the switch.
_BLOCK_SIZE = MiB


@dataclass(frozen=True, slots=True)
class ContentRange:
    """The part of a document that a response holds.

    Attributes:
        first: the position of its first byte.
        last: the position of its last byte.
        size: bytes of the whole document; None if the response does not say.
    """

    first: int
    last: int
    size: int | None

    @classmethod
    def parse(cls, headers: Mapping[str, str]) -> ContentRange | None:
        """Read Content-Range; None if it is missing or malformed."""
        match = _CONTENT_RANGE.fullmatch(headers.get("Content-Range", "").strip())
        return cls(int(match[1]), int(match[2]), None if match[3] == "*" else int(match[3])) if match else None


class Download:
    """How far one download has come: what the next request asks for, and which bytes of its response are new.

    Args:
        size: bytes of the whole; None if that is not known.
        start: bytes at its beginning that are not needed.

    Attributes:
        size: likewise.
        received: bytes that have arrived, or are not needed.
        uses_ranges: whether a request asks for the missing bytes alone. If not, it asks for all bytes, and those that
            have arrived are skipped.
        is_bounded: whether the current response ends before the whole does.
    """

    def __init__(self, size: int | None = None, start: int = 0) -> None:
        self.size = size
        self.received = start
        self.uses_ranges = True
        self.is_bounded = False
        self._skip = 0

    @property
    def is_ranged(self) -> bool:
        """Whether the next request asks for a range."""
        return self.uses_ranges and self.received > 0

    @property
    def skips(self) -> bool:
        """Whether the next bytes of the response are not new."""
        return self._skip > 0

    def request_headers(self) -> dict[str, str]:
        """The headers that ask for the missing bytes."""
        return {"Range": f"bytes={self.received}-"} if self.is_ranged else {}

    def accept(self, status: int, headers: Mapping[str, str], length: int | None = None) -> bool:
        """Begin to read a response; False if it does not hold the missing bytes.

        Args:
            status: its HTTP status.
            headers: its headers.
            length: bytes of its body; None if that is not known.
        """
        self.is_bounded = False
        if status == _OK:
            self._skip = self.received
            return True
        given = ContentRange.parse(headers)
        if status != _PARTIAL_CONTENT or given is None or not self.is_ranged or given.first != self.received:
            return False
        if given.last < given.first or (length is not None and length != given.last + 1 - given.first):
            return False
        # A range of another whole may count what comes compressed.
        if self.size is not None and (given.last >= self.size or given.size not in (None, self.size)):
            return False
        size = given.size if self.size is None else self.size
        self._skip = 0
        self.is_bounded = size is not None and given.last + 1 < size
        return True

    def take(self, data: bytes) -> bytes:
        """Count the next bytes of the response, and return those that are new."""
        new = data[self._skip :]
        self._skip -= len(data) - len(new)
        self.received += len(new)
        return new


class HashedDownload(Download):
    """A download of unknown size whose bytes are hashed and not kept: about 1 MiB is held at any time.

    Args:
        also: receives the bytes, too, in order and each once, in worker threads.
        arrived: receives the number of bytes that were hashed since the last call.

    Attributes:
        has_ended: whether all bytes have arrived.
    """

    def __init__(
        self, also: Callable[[bytes], None] | None = None, arrived: Callable[[int], None] | None = None
    ) -> None:
        super().__init__()
        self.has_ended = False
        self._also = also
        self._arrived = arrived
        self._sha256 = hashlib.sha256()

    async def read(self, content: aiohttp.StreamReader) -> None:
        """Hash the body of an accepted response. Where it breaks off, what has arrived is hashed nonetheless."""
        blocks: list[bytes] = []
        pending = 0
        try:
            async for data in content.iter_any():
                blocks.append(self.take(data))
                pending += len(blocks[-1])
                if pending >= _BLOCK_SIZE:
                    await self._hash(blocks)
                    blocks, pending = [], 0
        finally:
            with anyio.CancelScope(shield=True):
                await self._hash(blocks)
        self.has_ended = not self.is_bounded

    def result(self) -> LayerBytes:
        """The digest and the size of what has arrived."""
        return LayerBytes(Digest(self._sha256.hexdigest()), self.received)

    async def _hash(self, blocks: Sequence[bytes]) -> None:
        if blocks:
            await to_thread.run_sync(self._update, blocks)
            if self._arrived is not None:
                self._arrived(sum(map(len, blocks)))

    def _update(self, blocks: Sequence[bytes]) -> None:
        for block in blocks:
            self._sha256.update(block)
            if self._also is not None:
                self._also(block)
