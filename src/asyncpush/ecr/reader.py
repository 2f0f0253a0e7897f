"""What a repository holds, read back: manifests as ECR has them, what it says of blobs, and the bytes of blobs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import aiohttp
import anyio
import botocore.exceptions as bce
from anyio import to_thread

from asyncpush.ecr.client import EcrClient, batches
from asyncpush.ecr.errors import translated
from asyncpush.ecr.http_session import EcrHttp
from asyncpush.ecr.retry import RetryingSender
from asyncpush.errors import ServiceError, UsageError, only_cause
from asyncpush.manifest import ACCEPTED_TYPES
from asyncpush.model import Digest, LayerBytes
from asyncpush.protocols import NotHeld, StoredBlob, StoredManifest

K = TypeVar("K")

#: What a download is called in errors, events and paces: a GET of an address that GetDownloadUrlForLayer gave.
DOWNLOAD = "DownloadLayer"

#: Bytes that are gathered before a worker thread hashes them: enough to be worth its turn.
_BLOCK_SIZE = 1024 * 1024

_OK, _PARTIAL, _FORBIDDEN = 200, 206, 403

#: Addresses asked for in place of one that was refused: they last for an hour or so, and a slow blob may take longer.
_NEW_ADDRESSES = 3


class EcrReader:
    """Reads one repository (a ``RepositoryReader``).

    Args:
        calls: sends the questions.
        name: the repository's name.
        http: sends the downloads; no credentials go with them, nor to where they are redirected.
        retries: says when downloads are sent, and how often.
    """

    def __init__(self, calls: EcrClient, name: str, *, http: EcrHttp, retries: RetryingSender) -> None:
        self._calls = calls
        self._name = name
        self._http = http
        self._retries = retries

    async def manifests(self, references: Collection[str | Digest]) -> Mapping[str | Digest, StoredManifest | NotHeld]:
        """The manifests that these tags and digests name (BatchGetImage, 100 a call), exactly as they are stored.

        Raises:
            UsageError: ECR Public has no operation that gives a manifest.
            ServiceError: the repository does not exist, or may not be read.
        """
        if self._calls.service == "ecr-public":
            raise UsageError(
                "ECR Public's API gives no manifests, so that nothing of an image can be checked there",
                hint="pull the image by its digest instead; that needs no login",
            )
        found: dict[str | Digest, StoredManifest | NotHeld] = {}

        async def ask(batch: list[str | Digest]) -> None:
            ids = [_image_id(reference) for reference in batch]
            answer = await self._call("BatchGetImage", imageIds=ids, acceptedMediaTypes=list(ACCEPTED_TYPES))
            with self._calls.understood("BatchGetImage"):
                found.update(_answers(batch, answer))

        await _in_batches(ask, list(references))
        return found

    async def blobs(self, digests: Collection[Digest]) -> Mapping[Digest, StoredBlob | NotHeld]:
        """What ECR says of these blobs (BatchCheckLayerAvailability, 100 a call)."""
        found: dict[Digest, StoredBlob | NotHeld] = {}

        async def ask(batch: list[Digest]) -> None:
            answer = await self._call("BatchCheckLayerAvailability", layerDigests=[str(digest) for digest in batch])
            said: dict[str, StoredBlob | NotHeld] = {}
            with self._calls.understood("BatchCheckLayerAvailability"):
                for layer in answer.get("layers") or ():
                    state = str(layer.get("layerAvailability"))
                    said[layer["layerDigest"]] = (
                        StoredBlob(layer.get("layerSize")) if state == "AVAILABLE" else NotHeld(state)
                    )
                for failure in answer.get("failures") or ():
                    said[failure["layerDigest"]] = _failure(failure)
            found.update({digest: said.get(str(digest), NotHeld("not mentioned")) for digest in batch})

        await _in_batches(ask, list(digests))
        return found

    async def read_blob(self, digest: Digest, also: Callable[[bytes], None] | None = None) -> LayerBytes:
        """Read all bytes of a blob (GetDownloadUrlForLayer, and a GET of that address), and hash them.

        Nothing is held: at any time about 1 MiB. A connection that breaks is made good from the byte where it broke.

        Args:
            digest: the blob.
            also: is given its bytes, too, in order and each once, in worker threads.

        Returns:
            What was read: its own digest and size.

        Raises:
            ServiceError: ECR does not give the blob (LayersNotFoundException, LayerInaccessibleException), or the
                server does not.
            ConnectionFailedError: the server can't be reached, or gives nothing more in spite of all retries.
        """
        reading = _BlobDownload(also)
        addresses = 0
        while True:
            url = await self._address(digest)
            addresses += 1
            try:
                while not reading.ended:
                    await self._retries.call(DOWNLOAD, lambda: self._read_on(url, reading))  # noqa: B023 - awaited here
                return reading.result()
            except ServiceError as error:
                if error.status != _FORBIDDEN or addresses > _NEW_ADDRESSES:
                    raise

    async def _address(self, digest: Digest) -> str:
        answer = await self._call("GetDownloadUrlForLayer", layerDigest=str(digest))
        with self._calls.understood("GetDownloadUrlForLayer"):
            return str(answer["downloadUrl"])

    async def _read_on(self, url: str, reading: _BlobDownload) -> None:
        """Read from where *reading* is; returns when it has got further, for the next try to go on from there."""
        headers = {"Range": f"bytes={reading.size}-"} if reading.size else {}
        start = reading.size
        where = url.partition("?")[0]
        with translated(DOWNLOAD, where), _as_botocore_says(url):
            answer = await self._http.send("GET", url, headers, stream=True, redirects=True)
            try:
                skipped = _skipped(answer, reading.size)
                try:
                    await reading.take(answer.raw.content, skip=skipped)
                except (aiohttp.ClientError, OSError, TimeoutError):
                    # What has come is hashed: the next try goes on behind it, and counts as a first one.
                    if reading.size == start:
                        raise
            finally:
                answer.raw.close()

    async def _call(self, operation: str, **members: Any) -> dict[str, Any]:
        return await self._calls.call(operation, repositoryName=self._name, **members)


class _BlobDownload:
    """The bytes of a blob so far: how many, and their hash."""

    def __init__(self, also: Callable[[bytes], None] | None) -> None:
        self.size = 0
        self.ended = False
        self._also = also
        self._sha256 = hashlib.sha256()

    async def take(self, content: aiohttp.StreamReader, *, skip: int) -> None:
        """Hash what *content* has, but for its first *skip* bytes, in worker threads."""
        gathered: list[bytes] = []
        waiting = 0
        try:
            async for chunk in content.iter_any():
                block = chunk[skip:]
                skip -= len(chunk) - len(block)
                gathered.append(block)
                waiting += len(block)
                if waiting >= _BLOCK_SIZE:
                    await self._hash(gathered)
                    gathered, waiting = [], 0
        finally:
            with anyio.CancelScope(shield=True):
                await self._hash(gathered)
        self.ended = True

    def result(self) -> LayerBytes:
        """What was read."""
        return LayerBytes(Digest(self._sha256.hexdigest()), self.size)

    async def _hash(self, blocks: Sequence[bytes]) -> None:
        if blocks:
            self.size += await to_thread.run_sync(self._update, blocks)

    def _update(self, blocks: Sequence[bytes]) -> int:
        for block in blocks:
            self._sha256.update(block)
            if self._also is not None:
                self._also(block)
        return sum(map(len, blocks))


async def _in_batches(ask: Callable[[list[K]], Coroutine[None, None, None]], items: Sequence[K]) -> None:
    with only_cause():
        async with anyio.create_task_group() as tg:
            for batch in batches(items):
                tg.start_soon(ask, batch)


def _skipped(answer: Any, start: int) -> int:
    """How many bytes of *answer* were read already; it may give the blob from its beginning (RFC 9110, 14.2).

    Raises:
        ClientError: it does not give the blob.
    """
    if answer.status_code == _OK:
        return start
    if answer.status_code == _PARTIAL and start:
        given = str(answer.headers.get("content-range", ""))
        if given.startswith(f"bytes {start}-"):
            return 0
        raise bce.ClientError(
            _error(answer.status_code, f"bytes from {start} on were asked for, {given!r} came"), DOWNLOAD
        )
    message = f"the server of the layer answers with HTTP status {answer.status_code}"
    raise bce.ClientError(_error(answer.status_code, message), DOWNLOAD)


def _error(status: int, message: str) -> dict[str, Any]:
    return {"Error": {"Code": f"HTTP{status}", "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}


@contextmanager
def _as_botocore_says(url: str) -> Iterator[None]:
    """Raise botocore's errors for aiohttp's, which come while a body is read."""
    try:
        yield
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise bce.ConnectionClosedError(endpoint_url=url, error=error) from error


def _image_id(reference: str | Digest) -> dict[str, str]:
    return {"imageDigest": str(reference)} if isinstance(reference, Digest) else {"imageTag": reference}


def _answers(
    batch: Sequence[str | Digest], answer: Mapping[str, Any]
) -> Mapping[str | Digest, StoredManifest | NotHeld]:
    """Each answer by what was asked for: ECR answers in any order, and names both an image's digest and its tag."""
    said: dict[str, StoredManifest | NotHeld] = {}
    for failure in answer.get("failures") or ():
        image_id = failure.get("imageId") or {}
        said |= dict.fromkeys(_names(image_id), _failure(failure))
    for image in answer.get("images") or ():
        image_id = image["imageId"]
        stored = StoredManifest(
            Digest.parse(image_id["imageDigest"]), image["imageManifest"].encode(), image.get("imageManifestMediaType")
        )
        said |= dict.fromkeys(_names(image_id), stored)
    return {reference: said.get(str(reference), NotHeld("not mentioned")) for reference in batch}


def _names(image_id: Mapping[str, str]) -> list[str]:
    return [name for name in (image_id.get("imageDigest"), image_id.get("imageTag")) if name]


def _failure(failure: Mapping[str, Any]) -> NotHeld:
    return NotHeld(str(failure.get("failureCode") or "failed"), str(failure.get("failureReason") or ""))
