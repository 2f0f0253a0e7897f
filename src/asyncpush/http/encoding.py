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

_ZLIB_HEADER = 2
_TAR_BLOCK = 512
_GZIP_WBITS, _ZLIB_WBITS, _DEFLATE_WBITS = 31, 15, -15
_NAMES: dict[str, Encoding] = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}
#: Other names of compressions; what else servers write there, such as aws-chunked or UTF-8, is none.
_OTHERS = frozenset({"br", "zstd", "compress", "x-compress", "dcb", "dcz"})


def encoding_of(headers: Mapping[str, str]) -> Encoding | None:
    """How an answer says that its body is compressed; None if it does not, or in a way that is not known here."""
    codings = _codings(headers)
    return _NAMES.get(codings[0]) if len(codings) == 1 else None


def unknown_encoding_of(headers: Mapping[str, str]) -> str | None:
    """How an answer says that its body is compressed, in a way that is not known here; None if it does not."""
    codings = _codings(headers)
    return ", ".join(codings) if codings and encoding_of(headers) is None else None


def _codings(headers: Mapping[str, str]) -> list[str]:
    words = [word.strip().lower() for word in headers.get("Content-Encoding", "").split(",")]
    return [word for word in words if word in _NAMES or word in _OTHERS]


class Decoder:
    """Decompresses a body, piece by piece, and never gives out more at a time than is asked for.

    Args:
        encoding: how it is compressed.
    """

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding
        self._inflate = zlib.decompressobj(_GZIP_WBITS) if encoding == "gzip" else None
        self._rest = b""
        self._full = False

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next compressed bytes."""
        self._rest += data

    def read(self, limit: int) -> bytes:
        """Up to *limit* bytes; none once what was fed is used up.

        Raises:
            ValueError: it is not compressed in that way, or damaged.
        """
        found = bytearray()
        while (self._rest or self._full) and len(found) < limit and (inflate := self._current()):
            wanted = limit - len(found)
            try:
                piece = inflate.decompress(self._rest, wanted)
            except zlib.error as error:
                raise ValueError(str(error)) from error
            self._full = len(piece) == wanted
            self._rest = inflate.unconsumed_tail or inflate.unused_data
            found += piece
        return bytes(found)

    def _current(self) -> zlib._Decompress | None:
        """What takes the next bytes; None while there are too few of them to tell, or behind the end."""
        if self._inflate is None:
            if len(self._rest) < _ZLIB_HEADER:
                return None
            # Some take the name "deflate" literally, and leave out the two bytes of zlib's own.
            is_zlib = self._rest[0] & 0x0F == zlib.DEFLATED and int.from_bytes(self._rest[:2]) % 31 == 0
            self._inflate = zlib.decompressobj(_ZLIB_WBITS if is_zlib else _DEFLATE_WBITS)
        elif self._inflate.eof:
            self._full = False
            if self._encoding != "gzip" or not self._rest.startswith(GZIP):
                # What else stands behind the last member is passed over.
                self._rest = self._rest if self._rest == GZIP[:1] else b""
                return None
            self._inflate = zlib.decompressobj(_GZIP_WBITS)
        return self._inflate


def is_hidden(media_type: str, size: int, length: int | None, inner: bytes) -> bool:
    """Whether a body that begins as gzip does is its blob compressed on the way, though it does not say so.

    Args:
        media_type: the blob's.
        size: likewise.
        length: the body's, which is not the blob's size; None where it comes in chunks.
        inner: what it begins with, decompressed.
    """
    if "gzip" in media_type:
        return length is not None and inner.startswith(GZIP)
    # Types lie: a layer that is gzipped, and is not called so, is not a whole number of a tar's blocks.
    return length is not None or "json" in media_type or ("tar" in media_type and size % _TAR_BLOCK == 0)


def encoding_of_document(body: bytes, headers: Mapping[str, str]) -> Encoding | None:
    """How a document comes compressed, whether its answer says so or not; None where it does not."""
    return encoding_of(headers) or ("gzip" if body.startswith(GZIP) else None)  # no document begins so


def decompressed(body: bytes, encoding: Encoding, limit: int) -> bytes | None:
    """The bytes of a document that came compressed; as they are where they are not; None if longer than *limit*."""
    decoder = Decoder(encoding)
    decoder.feed(body)
    try:
        found = decoder.read(limit + 1)
    except ValueError:
        return body
    return found if len(found) <= limit else None
