"""Parses the body of an UploadLayerPart, up to 28 MB, into its members and decoded bytes; for worker threads."""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pybase64

from asyncpush.emulator.api.requests import Check, UploadLayerPart, parse, typed
from asyncpush.emulator.errors import invalid_parameter

_BLOB = "layerPartBlob"

#: Characters that are decoded at a time, four to three bytes: short enough for malloc's heap.
_BLOCK = 160 * 1024

_OPEN = re.compile(rb"[ \t\r\n]*\{")
_KEY = re.compile(rb'[ \t\r\n]*"([^"\\]{0,200})"[ \t\r\n]*:[ \t\r\n]*')
_SCALAR = re.compile(rb'[^"\[\]{},\\ \t\r\n]{1,100}')
_NEXT = re.compile(rb"[ \t\r\n]*([,}])")


@dataclass(frozen=True, slots=True)
class ReceivedPart:
    """A part as it arrived.

    Attributes:
        request: its members; ``layer_part_blob`` may be empty.
        blob: the part's bytes, decoded in place: they are valid as long as the body that they arrived in.
    """

    request: UploadLayerPart
    blob: memoryview


def read_part_body(body: bytearray, check: Check) -> ReceivedPart:
    """Parse a body, without making a string of its blob where that is safe, else as any JSON.

    Args:
        body: the request's body, which is overwritten.
        check: checks the members.

    Raises:
        AwsError: it is not JSON, or its blob is not base64; what *check* raises, which gets the decoded blob.
    """
    span = locate_blob(body)
    if span is None:
        document = parse(body)
        text = document.get(_BLOB) if isinstance(document, dict) else None
        return _read(document, memoryview(bytearray(text.encode())) if isinstance(text, str) else None, check)
    first, end = span
    whole = memoryview(body)
    document = parse(b"".join((whole[:first], whole[end:])))
    # Of a repeated member the last one counts, which locate_blob may not have found.
    found = isinstance(document, dict) and document.get(_BLOB) == ""
    return _read(document, whole[first:end] if found else None, check)


def _read(document: object, text: memoryview | None, check: Check) -> ReceivedPart:
    if not isinstance(document, dict) or text is None:
        check(document)
        raise invalid_parameter(_BLOB, "must be base64")
    blob = _decoded(text)
    check({**document, _BLOB: blob})
    return ReceivedPart(typed({**document, _BLOB: ""}, UploadLayerPart), blob)


def locate_blob(body: bytearray) -> tuple[int, int] | None:
    """Locate the value of ``layerPartBlob``, without its quotes.

    None where that takes a whole parse: nested values, an escape, a missing member. Of two, the last one counts.
    The result is right for valid JSON; the caller must check that the rest is valid.
    """
    found: tuple[int, int] | None = None
    for key, first, end in _members(body):
        if key is None:
            return None
        if key == _BLOB.encode():
            found = first, end
    return found


def _members(body: bytearray) -> Iterator[tuple[bytes | None, int, int]]:
    """Yield the key and the place of the value of a flat object's members; a key of None gives up."""
    match = _OPEN.match(body)
    while match:
        key = _KEY.match(body, match.end())
        if key is None:
            break
        value = _value(body, key.end())
        if value is None:
            break
        first, end, after = value
        quoted = after > end
        yield (key[1] if quoted else b""), first, end
        match = _NEXT.match(body, after)
        if match and match[1] == b"}":
            return
    yield None, 0, 0


def _value(body: bytearray, start: int) -> tuple[int, int, int] | None:
    """Where a string's text or a scalar begins and ends, and where the next token begins."""
    if body[start : start + 1] != b'"':
        scalar = _SCALAR.match(body, start)
        return (start, scalar.end(), scalar.end()) if scalar else None
    end = body.find(b'"', start + 1)
    if end < 0 or body.find(b"\\", start + 1, end) >= 0:
        return None
    return start + 1, end, end + 1


def _decoded(text: memoryview) -> memoryview:
    """Decode base64 in place, block by block while that is in the cache; returns the decoded beginning."""
    size = 0
    for start in range(0, len(text), _BLOCK):
        block = _decoded_block(text[start : start + _BLOCK])
        if len(block) < _BLOCK // 4 * 3 and start + _BLOCK < len(text):
            raise invalid_parameter(_BLOB, "must be base64: there is padding before the end")
        text[size : size + len(block)] = block
        size += len(block)
    return text[:size]


def _decoded_block(text: memoryview) -> bytes:
    try:
        return pybase64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise invalid_parameter(_BLOB, f"must be base64: {error}") from error
