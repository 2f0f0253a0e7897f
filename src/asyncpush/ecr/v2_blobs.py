"""Blobs through the registry's ``/v2/``: mounted from another repository, or uploaded in chunks as they are.

The API's UploadLayerPart sends a layer as base64 inside JSON, and signs it: four bytes for three, and a second hash.
``/v2/`` takes the bytes themselves. Uploads follow the distribution-spec ("Pushing blobs", "Pushing a blob in chunks"):
POST opens an upload, each PATCH appends a chunk, PUT closes it with the digest, which the registry compares.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Literal
from urllib.parse import urlencode

import anyio

from asyncpush.ecr.errors import verdict
from asyncpush.ecr.part_body import OutgoingPart
from asyncpush.ecr.quotas import APPEND, ASK, BEGIN, COMPLETE, MOUNT
from asyncpush.ecr.uplink import Uplink
from asyncpush.ecr.v2 import (
    V2Address,
    V2Answer,
    V2Endpoint,
    V2Request,
    bytes_received,
    location_of,
    unreachable,
    uploads_path,
)
from asyncpush.errors import (
    ConfigurationError,
    ConnectionFailedError,
    InvalidLayerError,
    InvalidLayerPartError,
    RegistryError,
    ServiceError,
)
from asyncpush.events import Emit, Notice
from asyncpush.model import Digest, Upload
from asyncpush.protocols import Part
from asyncpush.settings import MAX_PART_SIZE, MAX_PARTS, MIN_PART_SIZE, TransportChoice
from asyncpush.single_flight import CachedResult

_NOT_MOUNTED = frozenset({202, 404, 405})
#: ECR was seen to answer a PATCH with 201, where the specification says 202.
_APPENDED = frozenset({201, 202, 204})
_COMPLETED = frozenset({200, 201, 204})

#: Seconds in which ``/v2/`` must answer for ``auto`` to choose it.
_PROBE_TIMEOUT = 10.0

_Send = Callable[[V2Address, V2Request], Awaitable[V2Answer]]


class V2Blobs:
    """Mounts and uploads the blobs of one registry at its ``/v2/``.

    ECR mounts a blob if the account's setting BLOB_MOUNTING is ENABLED, both repositories have the same encryption, and
    an image of the source repository refers to the blob (ECR user guide, blob mounting). The caller needs
    ecr:GetDownloadUrlForLayer on the source. Otherwise ECR opens an upload, which is left alone: ECR's own API cannot
    cancel an upload either, and a DELETE would double the requests for something that costs nothing.

    Args:
        endpoint: sends the requests.
        uplink: shares the connection's bandwidth between parts.
        transport: how layers are sent.
        emit: receives a notice if ``auto`` can't use ``/v2/``.

    Raises:
        ConfigurationError: the transport is ``v2``, and the registry is of ECR Public.
    """

    def __init__(self, endpoint: V2Endpoint, uplink: Uplink, transport: TransportChoice, emit: Emit) -> None:
        if transport == "v2" and endpoint.is_public:
            raise ConfigurationError(
                "ECR Public takes layers through its API only, and --transport is v2", hint="use --transport auto"
            )
        self._endpoint = endpoint
        self._uplink = uplink
        self._emit = emit
        self._transport = transport
        self._choice = CachedResult(self._choose)
        self._locations: dict[str, str] = {}

    async def mount(self, repository: str, digest: Digest, source: str) -> bool:
        """Mount *digest* from repository *source* into *repository* (distribution-spec, end-11).

        Returns:
            False if ECR does not; nothing is mounted where the registry has no address (``V2Endpoint.address``).

        Raises:
            ServiceError: the registry refuses the caller.
            ConnectionFailedError: its host can't be reached.
        """
        address = await self._endpoint.address()
        if address is None:
            return False
        query = urlencode({"mount": str(digest), "from": source})
        request = V2Request(MOUNT, "POST", f"{uploads_path(repository)}?{query}", _NOT_MOUNTED | {201})
        return (await self._endpoint.send(address, request)).status == 201

    async def is_chosen(self) -> bool:
        """Return whether layers are sent here; ``auto`` asks once whether ``/v2/`` answers."""
        return await self._choice.get()

    async def _choose(self) -> bool:
        if self._transport != "auto":
            return self._transport == "v2"
        problem = await self._find_problem()
        if problem is not None:
            self._emit(Notice(f"layers go through ECR's API: {problem}"))
        return problem is None

    async def _find_problem(self) -> str | None:
        """Return why ``/v2/`` can't take layers; None if it answers (distribution-spec, end-1)."""
        if self._endpoint.is_public:
            return "ECR Public takes layers in no other way"
        try:
            with anyio.fail_after(_PROBE_TIMEOUT):
                address = await self._endpoint.address()
                if address is None:
                    return "the registry has no /v2/ that is known here"
                await self._endpoint.send_once(address, V2Request("GetV2", "GET", "/v2/", frozenset({200})))
        except RegistryError as error:
            return f"/v2/ can't be used: {error.message}"
        except TimeoutError:
            return f"/v2/ has not answered within {_PROBE_TIMEOUT:g} seconds"
        return None

    async def begin(self, repository: str) -> Upload:
        """Open an upload (distribution-spec, end-4a). Its id is the path of its Location.

        Raises:
            ConfigurationError: nothing names the registry at its endpoint.
            RegistryError: the registry refuses, or can't be reached.
        """
        address = await self._address()
        request = V2Request(BEGIN, "POST", uploads_path(repository), frozenset({202}))
        try:
            answer = await self._endpoint.send(address, request)
        except ConnectionFailedError as error:
            raise unreachable(error) from error.__cause__
        return Upload(location_of(address, request, answer), self._uplink.part_size(MAX_PART_SIZE), MAX_PARTS["ecr"])

    async def find_received(self, upload: Upload, acknowledged: int) -> int:
        """Return how many bytes the registry has of an upload (distribution-spec, end-13).

        Args:
            upload: the upload.
            acknowledged: the bytes that it has acknowledged; also the result if it does not tell, or tells fewer: ECR
                was seen to name an old range.
        """
        address = await self._address()
        return max(acknowledged, await self._ask(self._endpoint.send, address, upload) or 0)

    async def send_part(self, upload: Upload, part: Part, on_sent: Callable[[], None] | None = None) -> None:
        """Append a part (distribution-spec, end-5). After a broken try, continue from the byte that the registry names.

        Args:
            upload: the upload that the part belongs to.
            part: the part.
            on_sent: called each time that the whole part has left.

        Raises:
            InvalidLayerPartError: the registry has other bytes than those before the part, or has so much of it that
                its rest is too small for a chunk of its own: the next part must begin at another byte.
            UploadNotFoundError: the registry does not know the upload.
        """
        address = await self._address()
        async with self._uplink.transfer(part.first, part.size, may_stop=False) as transfer:
            chunk = _Chunk(OutgoingPart(part, on_sent, transfer))
            await self._endpoint.sender.call(APPEND, partial(self._append, address, upload, chunk))
            self._uplink.note_arrival(transfer)

    async def _append(self, address: V2Address, upload: Upload, chunk: _Chunk) -> None:
        """Send what the registry lacks of a chunk."""
        if chunk.was_sent:
            chunk.continue_from(await self._ask(self._endpoint.send_once, address, upload))
        while not chunk.is_complete:
            request = chunk.request(self._location(upload))
            try:
                answer = await self._endpoint.send_once(address, request)
            except InvalidLayerPartError as error:
                if not chunk.continue_from(error.last_valid_byte + 1 if error.last_valid_byte else None):
                    raise
            else:
                self._follow(address, request, upload, answer)
                return

    async def complete(self, upload: Upload, digest: Digest) -> Literal["pushed"]:
        """Close an upload with the digest of its bytes (distribution-spec, end-6).

        Raises:
            InvalidLayerError: the registry has other bytes.
            UploadNotFoundError: the registry does not know the upload; it may have answered an earlier try.
        """
        address, location = await self._address(), self._location(upload)
        path = f"{location}{'&' if '?' in location else '?'}{urlencode({'digest': str(digest)})}"
        answer = await self._endpoint.send(address, V2Request(COMPLETE, "PUT", path, _COMPLETED))
        self._locations.pop(upload.id, None)
        stored = answer.headers.get("Docker-Content-Digest") or str(digest)
        if stored != str(digest):
            raise InvalidLayerError(COMPLETE, "WrongDigest", f"{digest} was sent, {stored} was stored")
        return "pushed"

    async def _ask(self, send: _Send, address: V2Address, upload: Upload) -> int | None:
        """Ask how many bytes the registry has of an upload; None if it does not tell.

        That it does not know the upload counts as that: registries without this request say so, too.

        Raises:
            ConnectionFailedError: it did not answer.
        """
        request = V2Request(ASK, "GET", self._location(upload), frozenset({200, 202, 204}))
        try:
            answer = await send(address, request)
        except ServiceError as error:
            if verdict(error) != "final":
                raise
            return None
        self._follow(address, request, upload, answer)
        return bytes_received(answer.headers)

    def _location(self, upload: Upload) -> str:
        return self._locations.get(upload.id, upload.id)

    def _follow(self, address: V2Address, request: V2Request, upload: Upload, answer: V2Answer) -> None:
        """Note where the upload goes on, if the answer says so."""
        if "Location" in answer.headers:
            location = location_of(address, request, answer)
            if location != self._location(upload):
                self._locations[upload.id] = location

    async def _address(self) -> V2Address:
        address = await self._endpoint.address()
        if address is None:
            raise ConfigurationError(
                "this registry has no /v2/ that is known here", hint="use --transport api, or write its account"
            )
        return address


class _Chunk:
    """A part that is being appended, from the first byte on that the registry lacks."""

    def __init__(self, outgoing: OutgoingPart) -> None:
        self.outgoing = outgoing
        self.was_sent = False
        self._first, self._last = outgoing.part.first, outgoing.part.last

    @property
    def is_complete(self) -> bool:
        return self._first > self._last

    def request(self, location: str) -> V2Request:
        """The request that appends the bytes that are missing."""
        self.was_sent = True
        headers = {"Content-Range": f"{self._first}-{self._last}", "Content-Type": "application/octet-stream"}
        return V2Request(APPEND, "PATCH", location, _APPENDED, headers, self.outgoing, self._first)

    def continue_from(self, received: int | None) -> bool:
        """Continue after the first *received* bytes of the layer, if these are more than before.

        Raises:
            InvalidLayerPartError: the rest of the part is too small for a chunk that is not the last one.
        """
        if received is None or received <= self._first:
            return False
        if 0 < self._last + 1 - received < MIN_PART_SIZE:
            error = InvalidLayerPartError(APPEND, "ChunkCut", f"bytes {self._first} to {received - 1} have arrived")
            error.last_valid_byte = received - 1
            raise error
        self._first = received
        return True
