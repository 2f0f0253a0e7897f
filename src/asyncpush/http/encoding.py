"""Content codings: some servers and proxies compress responses although the request asks for ``identity``.

Source: RFC 9110, section 8.4.1 (content codings).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Literal

Encoding = Literal["gzip", "deflate"]

#: The first bytes of a gzip stream (RFC 1952).
GZIP = b"\x1f\x8b"

_ZLIB_HEADER = 2
_TAR_BLOCK = 512
_GZIP_WBITS, _ZLIB_WBITS, _DEFLATE_WBITS = 31, 15, -15
_NAMES: dict[str, Encoding] = {"gzip": "gzip", "x-gzip": "gzip", "deflate": "deflate"}
#: Other compressions; servers also write values that are none, such as aws-chunked or UTF-8.
_OTHERS = frozenset({"br", "zstd", "compress", "x-compress", "dcb", "dcz"})


def encoding_of(headers: Mapping[str, str]) -> Encoding | None:
    """The coding of a response's body according to its headers; None without one, or if it is not supported."""
    codings = _codings(headers)
    return _NAMES.get(codings[0]) if len(codings) == 1 else None


def unknown_encoding_of(headers: Mapping[str, str]) -> str | None:
    """The unsupported coding of a response's body according to its headers; None without one."""
    codings = _codings(headers)
    return ", ".join(codings) if codings and encoding_of(headers) is None else None


def _codings(headers: Mapping[str, str]) -> list[str]:
    words = [word.strip().lower() for word in headers.get("Content-Encoding", "").split(",")]
    return [word for word in words if word in _NAMES or word in _OTHERS]


class Decoder:
    """Decompresses a body piece by piece, and never more at a time than requested.

    Args:
        encoding: its coding.
    """

    def __init__(self, encoding: Encoding) -> None:
        self._encoding = encoding
        self._inflate = zlib.decompressobj(_GZIP_WBITS) if encoding == "gzip" else None
        self._input = b""
        self._may_have_more = False

    def feed(self, data: bytes | memoryview) -> None:
        """Add compressed bytes."""
        self._input += data

    def read(self, limit: int) -> bytes:
        """Up to *limit* decompressed bytes; none once the input is used up.

        Raises:
            ValueError: the input has another coding, or is damaged.
        """
        found = bytearray()
        while (self._input or self._may_have_more) and len(found) < limit and (inflate := self._stream()):
            remaining = limit - len(found)
            try:
                piece = inflate.decompress(self._input, remaining)
            except zlib.error as error:
                raise ValueError(str(error)) from error
            self._may_have_more = len(piece) == remaining
            self._input = inflate.unconsumed_tail or inflate.unused_data
            found += piece
        return bytes(found)

    def _stream(self) -> zlib._Decompress | None:
        """The stream that takes the next bytes; None while they are too few to identify it, or behind the end."""
        if self._inflate is None:
            if len(self._input) < _ZLIB_HEADER:
                return None
            # Some servers take the name "deflate" literally, and omit the header of zlib.
            is_zlib = self._input[0] & 0x0F == zlib.DEFLATED and int.from_bytes(self._input[:2]) % 31 == 0
            self._inflate = zlib.decompressobj(_ZLIB_WBITS if is_zlib else _DEFLATE_WBITS)
        elif self._inflate.eof:
            self._may_have_more = False
            if self._encoding != "gzip" or not self._input.startswith(GZIP):
                # Other bytes behind the last member are skipped.
                self._input = self._input if self._input == GZIP[:1] else b""
                return None
            self._inflate = zlib.decompressobj(_GZIP_WBITS)
        return self._inflate


def is_hidden(media_type: str, size: int, length: int | None, beginning: bytes) -> bool:
    """Whether a body that begins like gzip is its blob compressed on the way, without a label.

    Args:
        media_type: the blob's media type.
        size: the blob's size.
        length: the body's length, which is not the blob's size; None if it comes in chunks.
        beginning: its first bytes, decompressed.
    """
    if "gzip" in media_type:
        return length is not None and beginning.startswith(GZIP)
    # Media types can be wrong: the size of a gzipped layer of type tar is rarely a multiple of tar's blocks.
    return length is not None or "json" in media_type or ("tar" in media_type and size % _TAR_BLOCK == 0)


def encoding_of_document(body: bytes, headers: Mapping[str, str]) -> Encoding | None:
    """The coding of a document, labelled or not; None without one."""
    return encoding_of(headers) or ("gzip" if body.startswith(GZIP) else None)  # no JSON begins so


def decompressed(body: bytes, encoding: Encoding, limit: int) -> bytes | None:
    """A document, decompressed if it really is compressed; None if it is longer than *limit*."""
    decoder = Decoder(encoding)
    decoder.feed(body)
    try:
        found = decoder.read(limit + 1)
    except ValueError:
        return body
    return found if len(found) <= limit else None
