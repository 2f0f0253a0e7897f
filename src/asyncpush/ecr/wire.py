"""The request body of UploadLayerPart: made once, block by block in a worker thread, sent and signed without a copy.

botocore would make base64, JSON and a second sha256 of 28 MB on the event loop. Here a part arrives encoded: three of
botocore's events take it around the serialiser (``provide-client-params``), into the request (``before-call``) and past
the signer's own hashing (``choose-signer``). What goes over the wire is what any AWS client sends: AWS JSON 1.1, SigV4.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import aiohttp.payload
import botocore.auth
import pybase64
from aiohttp.abc import AbstractStreamWriter
from botocore.auth import SigV4Auth

from asyncpush.model import Upload
from asyncpush.protocols import Part

_SIGNER = "v4-asyncpush"
_KEY = "asyncpush.part"


class JsonPartEncoder:
    """Encodes one part as an UploadLayerPart request (a ``PartEncoder``).

    The small members go first and the range's end last, so that the length need not be known beforehand.
    """

    def __init__(self, registry_id: str | None, repository: str, upload: Upload, first: int) -> None:
        members = {"registryId": registry_id} if registry_id else {}
        head = json.dumps({**members, "repositoryName": repository, "uploadId": upload.id, "partFirstByte": first})
        self._first = first
        self._size = 0
        self._body_size = 0
        self._blocks: list[bytes] = []
        self._sha256 = hashlib.sha256()
        self._append(f'{head[:-1]}, "layerPartBlob": "'.encode())

    def add(self, block: memoryview) -> None:
        """Take the next bytes; all but the last have a length that 3 divides, so that no padding falls between."""
        self._size += len(block)
        self._append(pybase64.b64encode(block))

    def finish(self, consumed: int) -> Part:
        """Close the body."""
        last = self._first + self._size - 1
        self._append(f'", "partLastByte": {last}}}'.encode())
        return Part(self._first, last, consumed, tuple(self._blocks), self._body_size, self._sha256.hexdigest())

    def _append(self, block: bytes) -> None:
        # Hashed right here, while the block is still in the processor's cache.
        self._sha256.update(block)
        self._blocks.append(block)
        self._body_size += len(block)


class PartBody(aiohttp.payload.Payload):
    """A part's body as aiohttp sends it: block by block, so that no write holds the event loop for 28 MB."""

    def __init__(self, part: Part) -> None:
        super().__init__(part, content_type="application/x-amz-json-1.1")
        self._size = part.body_size
        self.part = part

    def __len__(self) -> int:
        return self.part.body_size

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.part.body)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The body as text; aiohttp asks for it in debugging only."""
        return b"".join(self.part.body).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write all of it."""
        for block in self.part.body:
            await writer.write(block)

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:  # noqa: ARG002 - it is always all of it
        """Write all of it."""
        await self.write(writer)


class KnownHashSigV4Auth(SigV4Auth):  # type: ignore[misc] # botocore is untyped
    """SigV4 over a body whose sha256 is known already; otherwise as botocore signs."""

    def payload(self, request: Any) -> str:
        """The body's sha256, hex."""
        part: Part = request.context[_KEY]
        return part.body_sha256


def install(client: Any) -> None:
    """Make *client* take a ``Part`` for UploadLayerPart's ``layerPartBlob``."""
    botocore.auth.AUTH_TYPE_MAPS[_SIGNER] = KnownHashSigV4Auth
    service = client.meta.service_model.service_id.hyphenize()
    events = client.meta.events
    events.register(f"provide-client-params.{service}.UploadLayerPart", _take_part)
    events.register(f"before-call.{service}.UploadLayerPart", _set_body)
    events.register(f"choose-signer.{service}.UploadLayerPart", _choose_signer)


def _take_part(params: dict[str, Any], context: dict[str, Any], **_: Any) -> dict[str, Any]:
    context[_KEY] = params["layerPartBlob"]
    return {**params, "layerPartBlob": b""}


def _set_body(params: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
    params["body"] = PartBody(context[_KEY])


def _choose_signer(signature_version: str, **_: Any) -> str | None:
    return _SIGNER if signature_version == "v4" else None
