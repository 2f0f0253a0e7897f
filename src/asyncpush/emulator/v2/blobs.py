"""Blobs through ``/v2/``: pulled whole or by range, mounted, and pushed in uploads."""

from __future__ import annotations

import re
from functools import partial

from aiohttp import web

from asyncpush.emulator.connections import header_text
from asyncpush.emulator.errors import limit_exceeded, part_too_small, upload_not_found
from asyncpush.emulator.limits import Limits
from asyncpush.emulator.registry import RequestTarget
from asyncpush.emulator.store.records import sha256_digest
from asyncpush.emulator.store.repository import RepositoryState
from asyncpush.emulator.store.state import BackgroundTasks, Store
from asyncpush.emulator.store.uploads import StagedUpload, check_parts
from asyncpush.emulator.v2.answers import VERSION, V2Error, digest_invalid, empty, translated
from asyncpush.emulator.v2.receiver import Receiver, is_refused
from asyncpush.model import Digest

_RANGE = re.compile(r"(?:bytes[ =])?([0-9]{1,18})-([0-9]{1,18})(?:/.*)?")


class Blobs:
    """The blobs of a store's repositories."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def get(self, repository: RepositoryState, reference: str, *, with_bytes: bool) -> web.FileResponse:
        """Answer a blob, or the requested range of it (Pulling blobs)."""
        digest = sha256_digest(reference)
        if digest is None or digest not in repository.layers:
            raise V2Error(404, "BLOB_UNKNOWN", f"{repository.name} has no blob {reference}")
        if with_bytes and await self._store.in_thread(repository.is_discarded, digest):
            raise V2Error(404, "BLOB_UNKNOWN", f"the bytes of {reference} were discarded (serve --discard)")
        headers = {**VERSION, "Docker-Content-Digest": str(digest), "Content-Type": "application/octet-stream"}
        return web.FileResponse(repository.blob_path(digest), headers=headers)

    async def mount(self, repository: RepositoryState, digest: Digest, source_name: str) -> bool:
        """Mount a blob of another repository, as ECR does; returns False where ECR would not.

        ECR mounts where the account's setting BLOB_MOUNTING is ENABLED, within one registry, between repositories of
        the same encryption, and only blobs that an image of the source refers to.
        """
        registry = repository.registry
        if self._store.accounts.setting(registry, "BLOB_MOUNTING") != "ENABLED":
            return False
        source = self._store.repositories_of(registry).get(source_name)
        if source is None or source.record.encryption != repository.record.encryption:
            return False
        if digest not in source.layers or not source.is_referenced(digest):
            return False
        async with repository.lock:
            is_present = digest in repository.layers
            return is_present or await self._store.in_thread(repository.mount, source, digest)


def created(repository: RepositoryState, digest: Digest) -> web.Response:
    """The answer after a blob was added to a repository."""
    location = f"/v2/{repository.name}/blobs/{digest}"
    return empty(201, {"Location": location, "Docker-Content-Digest": str(digest)})


class Uploads:
    """The uploads into a store's repositories; the JSON API shares them.

    Args:
        store: the repositories.
        limits: quotas, and how a PATCH is answered.
        background: runs what changes data to its end.
        blobs: mounts blobs.
    """

    def __init__(self, store: Store, limits: Limits, background: BackgroundTasks, blobs: Blobs) -> None:
        self._store = store
        self._limits = limits
        self._background = background
        self._blobs = blobs
        self._receiver = Receiver(background)

    async def begin(self, request: web.Request, repository: RepositoryState) -> web.Response:
        """POST: mount a blob, take a whole one, or open an upload (Pushing blobs; Mounting a blob)."""
        mounted, whole = request.query.get("mount"), request.query.get("digest")
        if mounted is not None:
            digest, source = _digest(mounted), request.query.get("from", "")
            if await self._background.finish(partial(self._blobs.mount, repository, digest, source)):
                return created(repository, digest)
        expected = None if whole is None else _digest(whole)
        upload = await self._background.finish(partial(self._open, repository))
        if expected is None:
            return empty(202, self._progress(request, repository, upload))
        try:
            await self._receive(request, repository, upload)
        except BaseException:  # no client knows this upload, so none can continue it
            self._background.start(partial(self._cancel, repository, upload.id))
            raise
        return await self._background.finish(partial(self._complete, repository, upload.id, expected))

    async def status(self, request: web.Request, repository: RepositoryState, upload_id: str) -> web.Response:
        """GET: how many bytes have arrived (Getting the status of an upload)."""
        upload = await self._find(request, repository, upload_id)
        match self._limits.quirks.upload_status:
            case "404":
                raise translated(upload_not_found(upload_id, repository.name, repository.target.id))
            case "405":
                raise V2Error(405, "UNSUPPORTED", "The operation is unsupported.")
        return empty(204, self._progress(request, repository, upload))

    async def append(self, request: web.Request, repository: RepositoryState, upload_id: str) -> web.Response:
        """PATCH: the next bytes, with or without a Content-Range (Pushing a blob in chunks)."""
        upload = await self._find(request, repository, upload_id)
        before = self._progress(request, repository, upload)["Range"] if upload.record.received else None
        await self._receive(request, repository, upload)
        progress, quirks = self._progress(request, repository, upload), self._limits.quirks
        if before and quirks.patch_range == "stale":
            progress["Range"] = before
        return empty(int(quirks.patch_status), progress)

    async def complete(self, request: web.Request, repository: RepositoryState, upload_id: str) -> web.Response:
        """PUT: the last bytes, or none, and the digest of all of them."""
        digest = _digest(request.query.get("digest", ""))
        upload = await self._find(request, repository, upload_id)
        await self._receive(request, repository, upload)
        return await self._background.finish(partial(self._complete, repository, upload.id, digest))

    async def cancel(self, request: web.Request, repository: RepositoryState, upload_id: str) -> web.Response:
        """DELETE: forget an upload (Canceling an upload)."""
        await self._find(request, repository, upload_id)
        await self._background.finish(partial(self._cancel, repository, upload_id))
        return empty(204, {})

    async def _open(self, repository: RepositoryState) -> StagedUpload:
        async with self._store.changing(repository.target, repository.name) as found:
            return await self._store.create_upload(found)

    async def _find(self, request: web.Request, repository: RepositoryState, upload_id: str) -> StagedUpload:
        async with self._store.uploading(upload_id, repository.target, repository.name) as upload:
            if self._limits.quirks.upload_location == "with-query" and request.query.get("_state") != _state(upload):
                raise V2Error(400, "BLOB_UPLOAD_INVALID", "the query of the upload's location is missing or wrong")
            return upload

    async def _receive(self, request: web.Request, repository: RepositoryState, upload: StagedUpload) -> None:
        first, length = upload.record.received, self._length(request, repository, upload)
        self._check_last_chunk(request, upload)
        intake = Intake(self._store, self._limits, repository, upload, first=first, length=length)
        await self._receiver.receive(request, intake.keep)
        await self._background.finish(intake.end)

    def _length(self, request: web.Request, repository: RepositoryState, upload: StagedUpload) -> int | None:
        """The announced number of bytes, if any; a Content-Range must be that of the next ones."""
        asked, received = header_text(request, "Content-Range"), upload.record.received
        match = _RANGE.fullmatch(asked.strip())
        first, last = (int(match[1]), int(match[2])) if match else (received, -1)
        if is_refused(request) or first != received or (asked and last < first):
            message = f"the range is {asked or 'unknown'}, and the next byte is {received}"
            if first != received:  # as ECR was observed to say
                message = f"First byte of the layer part is {first} instead of {received}"
            raise V2Error(416, "BLOB_UPLOAD_INVALID", message, self._progress(request, repository, upload))
        if not asked:
            return request.content_length
        length = last - first + 1
        if request.content_length not in (None, length):
            raise V2Error(400, "SIZE_INVALID", f"the range has {length} bytes, and the body {request.content_length}")
        return length

    def _check_last_chunk(self, request: web.Request, upload: StagedUpload) -> None:
        """Refuse bytes after a short chunk where the quirk says so; a chunk that was cut is still open."""
        quirks, has_bytes = self._limits.quirks, request.body_exists and request.content_length != 0
        is_short = 0 < upload.record.last_part < self._limits.min_part
        if quirks.short_chunk == "at-next" and quirks.oci_conformance == "no" and has_bytes and is_short:
            raise part_too_small()

    def _progress(self, request: web.Request, repository: RepositoryState, upload: StagedUpload) -> dict[str, str]:
        location = f"/v2/{repository.name}/blobs/uploads/{upload.id}"
        match self._limits.quirks.upload_location:
            case "absolute":
                location = f"{request.scheme}://{request.host}{location}"
            case "with-query":
                location = f"{request.scheme}://{request.host}{location}?_state={_state(upload)}"
        received = f"0-{max(upload.record.received - 1, 0)}"
        return {"Location": location, "Range": received, "Docker-Upload-UUID": upload.id}

    async def _complete(self, repository: RepositoryState, upload_id: str, expected: Digest) -> web.Response:
        target, name = repository.target, repository.name
        async with self._store.uploading(upload_id, target, name) as upload:
            if self._limits.quirks.oci_conformance == "no":
                check_parts(upload, name, target.id)
            digest = await self._store.in_thread(upload.close, self._store.disk)
            if digest != expected:  # no further bytes can correct it
                await self._store.remove_upload(upload)
                raise V2Error(400, "DIGEST_INVALID", f"the bytes have the digest {digest}, not {expected}")
            await self._keep(upload, digest, target, name)
        return created(repository, digest)

    async def _keep(self, upload: StagedUpload, digest: Digest, target: RequestTarget, name: str) -> None:
        async with self._store.changing(target, name) as repository:
            if digest not in repository.layers:
                await self._store.in_thread(repository.add_layer, upload, digest)
                del self._store.uploads[upload.id]
                return
        await self._store.remove_upload(upload)

    async def _cancel(self, repository: RepositoryState, upload_id: str) -> None:
        async with self._store.uploading(upload_id, repository.target, repository.name) as upload:
            await self._store.remove_upload(upload)


def _digest(text: str) -> Digest:
    digest = sha256_digest(text)
    if digest is None:
        raise digest_invalid(text)
    return digest


def _state(upload: StagedUpload) -> str:
    """What the query of an upload's location must repeat."""
    return upload.id.replace("-", "")[::-1]


class Intake:
    """Appends the blocks of one body. The upload is unlocked between blocks: a request that hangs blocks no other.

    Args:
        store: where the upload is.
        limits: the quotas.
        repository: the upload's.
        upload: the upload.
        first: the offset of the body's first byte.
        length: the announced number of bytes; None if none was announced.
    """

    def __init__(
        self,
        store: Store,
        limits: Limits,
        repository: RepositoryState,
        upload: StagedUpload,
        *,
        first: int,
        length: int | None,
    ) -> None:
        self._store = store
        self._target = repository.target
        self._name = repository.name
        self._id = upload.id
        self._first = first
        self._next = first
        self._length = length
        self._quotas = limits.quotas(repository.registry)
        self._min_part = limits.min_part

    async def keep(self, block: memoryview) -> None:
        """Append the next block.

        Raises:
            V2Error: another request was faster, or the body is longer than announced, or than a layer may be.
            AwsError: the upload does not exist any more, or the layer would have too many parts.
            OSError: the disk is full.
        """
        end = self._next + len(block)
        if self._length is not None and end > self._first + self._length:
            raise self._size_invalid(end)
        if end > self._quotas.layer_size:
            raise V2Error(413, "SIZE_INVALID", f"a layer can have up to {self._quotas.layer_size} bytes")
        async with self._store.uploading(self._id, self._target, self._name) as upload:
            if upload.record.received != self._next:
                raise V2Error(416, "BLOB_UPLOAD_INVALID", f"another request has sent byte {self._next} in the meantime")
            if upload.parts_with(len(block)) > self._quotas.parts:
                raise limit_exceeded(f"The maximum number of layer parts, {self._quotas.parts}, has been reached")
            await self._store.in_thread(upload.extend, block, self._min_part, self._store.disk)
        self._next = end

    async def end(self) -> None:
        """Check the length of the whole body, and close it as one part of its layer.

        Raises:
            V2Error: it had fewer bytes than announced; they are kept.
            AwsError: the upload does not exist any more.
        """
        if self._length is not None and self._next != self._first + self._length:
            raise self._size_invalid(self._next)
        async with self._store.uploading(self._id, self._target, self._name) as upload:
            await self._store.in_thread(upload.end_chunk)

    def _size_invalid(self, end: int) -> V2Error:
        return V2Error(400, "SIZE_INVALID", f"{self._length} bytes were announced, and {end - self._first} arrived")
