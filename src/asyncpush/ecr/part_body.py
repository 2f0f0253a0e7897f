"""The request body of UploadLayerPart: hashed in the pass that makes it, sent block by block, never copied.

botocore would make base64, JSON and a second sha256 of 28 MB on the event loop. Here a part arrives encoded and hashed,
and three of botocore's events take it around the serialiser (``provide-client-params``), into the request
(``before-call``) and past the signer's own hashing (``choose-signer``). What goes over the wire is what any AWS client
sends: AWS JSON 1.1, SigV4.

A body is held as long as memory allows. Otherwise only its hash is kept, and worker threads encode it once more, window
by window, as the connection takes it: a quarter more processor time, for next to no memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import botocore.auth
import pybase64
from aiohttp.abc import AbstractStreamWriter
from anyio import CapacityLimiter, to_thread
from botocore.auth import SigV4Auth

from asyncpush.ecr.request_body import TimedBody
from asyncpush.ecr.uplink import PartTransfer
from asyncpush.model import Upload
from asyncpush.protocols import Part, RandomAccess

_SIGNER = "v4-asyncpush"
_KEY = "asyncpush.part"

#: Bytes that are encoded in one go; a multiple of 3, so that base64 needs no padding inside a part.
_BLOCK_SIZE = 384 * 1024

#: Bytes of a part that are encoded ahead of the connection: enough to be worth a thread's turn, no more.
WINDOW_SIZE = 2 * _BLOCK_SIZE


class JsonPartEncoder:
    """Makes one part an UploadLayerPart request (a ``PartEncoder``).

    The small members go first and the range's end last, so that the length need not be known beforehand.
    """

    def __init__(
        self,
        registry_id: str | None,
        repository: str,
        upload: Upload,
        first: int,
        content: RandomAccess | None = None,
    ) -> None:
        members = {"registryId": registry_id} if registry_id else {}
        head = json.dumps({**members, "repositoryName": repository, "uploadId": upload.id, "partFirstByte": first})
        self._first = first
        self._content = content
        self._size = 0
        self._body_size = 0
        self._body: list[bytes] = []
        self._sha256 = hashlib.sha256()
        self._append(f'{head[:-1]}, "layerPartBlob": "'.encode())

    def add(self, block: memoryview) -> None:
        """Take the next bytes; all but the last have a length that 3 divides, so that no padding falls between."""
        self._size += len(block)
        self._append(pybase64.b64encode(block), keep=self._content is None)

    def finish(self) -> Part:
        """Close the body."""
        last = self._first + self._size - 1
        self._append(f'", "partLastByte": {last}}}'.encode())
        return Part(self._first, last, tuple(self._body), self._content, self._body_size, self._sha256.hexdigest())

    def _append(self, block: bytes, *, keep: bool = True) -> None:
        # Hashed right here, while the block is still in the processor's cache.
        self._sha256.update(block)
        self._body_size += len(block)
        if keep:
            self._body.append(block)


@dataclass(frozen=True, slots=True)
class PartRequest:
    """A part on its way.

    Attributes:
        part: the part.
        left: hears when all of it has left, each time that it is sent.
        crossing: its place on the line.
    """

    part: Part
    left: Callable[[], None] | None = None
    crossing: PartTransfer | None = None


class PartBody(TimedBody):
    """A part's body as aiohttp sends it: block by block, so that no write holds the event loop for 28 MB.

    Args:
        outgoing: the part; any number of bodies can be made of it, one for each try.
        threads: how many windows may be encoded at once, over all connections.
    """

    def __init__(self, outgoing: PartRequest, threads: CapacityLimiter) -> None:
        super().__init__(outgoing, content_type="application/x-amz-json-1.1")
        self._size = outgoing.part.body_size
        self._part = outgoing.part
        self._left = outgoing.left
        self._crossing = outgoing.crossing
        self._threads = threads

    def __len__(self) -> int:
        return self._part.body_size

    def seek(self, _: int) -> None:
        """Begin again, as botocore asks before it sends again; each write does."""

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The body as text; aiohttp asks for it in debugging only."""
        part = self._part
        middle = _encode(part, part.first, part.size) if part.content else []
        return b"".join((*part.body[:-1], *middle, part.body[-1])).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write all of it."""
        if self._crossing:
            self._crossing.begin(writer)
        await super().write(writer)
        if self._left:
            self._left()

    async def write_blocks(self, writer: AbstractStreamWriter) -> None:
        """Hand all of it to the connection."""
        part = self._part
        for block in part.body[:-1]:
            await writer.write(block)
        if part.content is not None:
            for start in range(part.first, part.last + 1, WINDOW_SIZE):
                size = min(WINDOW_SIZE, part.last + 1 - start)
                for block in await to_thread.run_sync(_encode, part, start, size, limiter=self._threads):
                    await writer.write(block)
        await writer.write(part.body[-1])


def _encode(part: Part, first: int, size: int) -> list[bytes]:
    """The base64 of *size* bytes of a part, from byte *first* of the layer on, read again; blocking."""
    assert part.content is not None, "what is held is encoded already"  # noqa: S101
    scratch = memoryview(bytearray(min(size, _BLOCK_SIZE)))
    blocks = []
    for start in range(first, first + size, _BLOCK_SIZE):
        wanted = scratch[: min(_BLOCK_SIZE, first + size - start)]
        blocks.append(pybase64.b64encode(part.content.read_at(start, wanted)))
    return blocks


class KnownHashSigV4Auth(SigV4Auth):  # type: ignore[misc] # botocore is untyped
    """SigV4 over a body whose sha256 is known already; otherwise as botocore signs."""

    def payload(self, request: Any) -> str:
        """The body's sha256, hex."""
        outgoing: PartRequest = request.context[_KEY]
        return outgoing.part.body_sha256


def install(client: Any) -> None:
    """Make *client* take ``PartRequest`` for UploadLayerPart's ``layerPartBlob``; bytes go botocore's way."""
    botocore.auth.AUTH_TYPE_MAPS[_SIGNER] = KnownHashSigV4Auth
    threads = CapacityLimiter((os.cpu_count() or 1) + 1)

    def set_body(params: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
        if _KEY in context:
            params["body"] = PartBody(context[_KEY], threads)

    service = client.meta.service_model.service_id.hyphenize()
    events = client.meta.events
    events.register(f"provide-client-params.{service}.UploadLayerPart", _take_part)
    events.register(f"before-call.{service}.UploadLayerPart", set_body)
    events.register(f"choose-signer.{service}.UploadLayerPart", _choose_signer)


def _take_part(params: dict[str, Any], context: dict[str, Any], **_: Any) -> dict[str, Any]:
    if not isinstance(params.get("layerPartBlob"), PartRequest):
        return params
    context[_KEY] = params["layerPartBlob"]
    return {**params, "layerPartBlob": b""}


def _choose_signer(signature_version: str, context: dict[str, Any], **_: Any) -> str | None:
    return _SIGNER if signature_version == "v4" and _KEY in context else None
