"""Answers that come compressed though ``identity`` was asked for: some servers and proxies do so all the same.

Source: RFC 9110, 8.4.1 (content codings).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Literal

Encoding = Literal["gzip", "deflate"]

#: What a gzip stream begins with (RFC 1952).
GZIP = b"\x1f\x8b"

_GZIP_WBITS, _ZLIB_WBITS, _DEFLATE_WBITS = 31, 15, -15
_NAMES: dict[str, Encoding] = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}


def encoding_of(headers: Mapping[str, str]) -> Encoding | None:
    """How an answer says that its body is compressed; None if it does not, or in a way that is not known here."""
    return _NAMES.get(headers.get("Content-Encoding", "").strip().lower())


class Decoder:
    """Decompresses a body, piece by piece, and never gives out more at a time than is asked for.

    Args:
        encoding: how it is compressed.
    """

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding
        self._inflate = zlib.decompressobj(_GZIP_WBITS if encoding == "gzip" else _ZLIB_WBITS)
        self._rest = b""
        self._full = self._begun = False

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next compressed bytes."""
        self._rest += data

    def read(self, limit: int) -> bytes:
        """Up to *limit* bytes; none once what was fed is used up.

        Raises:
            ValueError: it is not compressed in that way, or damaged.
        """
        found = bytearray()
        while (self._rest or self._full) and len(found) < limit:
            if self._inflate.eof and not self._next_member():
                break
            wanted = limit - len(found)
            piece = self._decompress(wanted)
            self._full = len(piece) == wanted
            self._rest = self._inflate.unconsumed_tail or self._inflate.unused_data
            found += piece
        return bytes(found)

    def _decompress(self, wanted: int) -> bytes:
        try:
            piece = self._inflate.decompress(self._rest, wanted)
        except zlib.error as error:
            if self._begun or self._encoding != "deflate":
                raise ValueError(str(error)) from error
            # Some take the name literally: without the two bytes of zlib's own.
            self._inflate, self._begun = zlib.decompressobj(_DEFLATE_WBITS), True
            return self._decompress(wanted)
        self._begun = True
        return piece

    def _next_member(self) -> bool:
        """Go on with the next gzip member, if there is one; what else stands behind the last one is passed over."""
        if self._encoding == "gzip" and self._rest.startswith(GZIP):
            self._inflate = zlib.decompressobj(_GZIP_WBITS)
            return True
        if self._rest != GZIP[:1]:
            self._rest = b""
        self._full = False
        return False


def decompressed(body: bytes, encoding: Encoding, limit: int) -> bytes | None:
    """The bytes of a document that came compressed; as they are where they are not; None if longer than *limit*."""
    decoder = Decoder(encoding)
    decoder.feed(body)
    try:
        found = decoder.read(limit + 1)
    except ValueError:
        return body
    return found if len(found) <= limit else None
