"""Reading from a repository: its manifests, ECR's records of its blobs, and the bytes of blobs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import aiohttp
import botocore.exceptions as bce

from asyncpush.ecr.client import EcrClient, map_batches
from asyncpush.ecr.errors import translate_errors
from asyncpush.ecr.http_session import EcrHttp
from asyncpush.ecr.retry import RetryingSender
from asyncpush.errors import ServiceError, UsageError
from asyncpush.http.download import HashedDownload
from asyncpush.manifest import ACCEPTED_TYPES
from asyncpush.model import Digest, LayerBytes
from asyncpush.protocols import NotHeld, StoredBlob, StoredManifest

#: The name of a download in errors, events and paces: a GET of the address that GetDownloadUrlForLayer returns.
DOWNLOAD = "DownloadLayer"

_PARTIAL, _FORBIDDEN = 206, 403

#: New addresses to ask for after a refusal: an address is valid for about an hour, and a slow blob may take longer.
_NEW_ADDRESSES = 3


class EcrReader:
    """Reads one repository (a ``RepositoryReader``).

    Args:
        api: sends requests to ECR's API.
        name: the repository's name.
        http: sends the downloads, which carry no credentials.
        sender: paces and retries the downloads.
    """

    def __init__(self, api: EcrClient, name: str, *, http: EcrHttp, sender: RetryingSender) -> None:
        self._api = api
        self._name = name
        self._http = http
        self._sender = sender

    async def manifests(self, references: Collection[str | Digest]) -> Mapping[str | Digest, StoredManifest | NotHeld]:
        """The manifests that these tags and digests name (BatchGetImage, 100 a call), exactly as they are stored.

        Raises:
            UsageError: ECR Public has no operation that gives a manifest.
            ServiceError: the repository does not exist, or may not be read.
        """
        if self._api.service == "ecr-public":
            raise UsageError(
                "ECR Public's API returns no manifests, so images cannot be verified there",
                hint="pull the image by its digest instead; that needs no login",
            )
        batches = await map_batches(self._get_images, references)
        return {reference: manifest for batch in batches for reference, manifest in batch.items()}

    async def blobs(self, digests: Collection[Digest]) -> Mapping[Digest, StoredBlob | NotHeld]:
        """ECR's records of these blobs (BatchCheckLayerAvailability, 100 a call)."""
        batches = await map_batches(self._check_layers, digests)
        return {digest: blob for batch in batches for digest, blob in batch.items()}

    async def read_blob(
        self,
        digest: Digest,
        also: Callable[[bytes], None] | None = None,
        arrived: Callable[[int], None] | None = None,
    ) -> LayerBytes:
        """Read all bytes of a blob (GetDownloadUrlForLayer, and a GET of that address), and hash them.

        About 1 MiB is held at any time. After a break, the download resumes from the byte where it broke.

        Args:
            digest: the blob.
            also: receives its bytes, too, in order and each once, in worker threads.
            arrived: receives the number of bytes that were read and hashed since the last call.

        Returns:
            The digest and the size of what was read.

        Raises:
            ServiceError: ECR refuses the blob (LayersNotFoundException, LayerInaccessibleException), or the server
                does.
            ConnectionFailedError: the server can't be reached, or sends no more bytes despite all retries.
        """
        download = HashedDownload(also, arrived)
        addresses = 0
        while True:
            url = await self._address(digest)
            addresses += 1
            try:
                while not download.has_ended:
                    await self._sender.call(DOWNLOAD, partial(self._continue, download, url))
                return download.result()
            except ServiceError as error:
                if error.status != _FORBIDDEN or addresses > _NEW_ADDRESSES:
                    raise

    async def _get_images(self, references: list[str | Digest]) -> Mapping[str | Digest, StoredManifest | NotHeld]:
        ids = [_image_id(reference) for reference in references]
        answer = await self._call("BatchGetImage", imageIds=ids, acceptedMediaTypes=list(ACCEPTED_TYPES))
        with self._api.parsing("BatchGetImage"):
            return _by_reference(references, answer)

    async def _check_layers(self, digests: list[Digest]) -> Mapping[Digest, StoredBlob | NotHeld]:
        answer = await self._call("BatchCheckLayerAvailability", layerDigests=[str(digest) for digest in digests])
        records: dict[str, StoredBlob | NotHeld] = {}
        with self._api.parsing("BatchCheckLayerAvailability"):
            for layer in answer.get("layers") or ():
                state = str(layer.get("layerAvailability"))
                is_available = state == "AVAILABLE"
                records[layer["layerDigest"]] = StoredBlob(layer.get("layerSize")) if is_available else NotHeld(state)
            for failure in answer.get("failures") or ():
                records[failure["layerDigest"]] = _failure(failure)
        return {digest: records.get(str(digest), NotHeld("not mentioned")) for digest in digests}

    async def _address(self, digest: Digest) -> str:
        answer = await self._call("GetDownloadUrlForLayer", layerDigest=str(digest))
        with self._api.parsing("GetDownloadUrlForLayer"):
            return str(answer["downloadUrl"])

    async def _continue(self, download: HashedDownload, url: str) -> None:
        """Send one request for the missing bytes; return once some have arrived, and another request may follow."""
        start = download.received
        with translate_errors(DOWNLOAD, url.partition("?")[0]), _as_botocore_errors(url):
            response = await self._http.send("GET", url, download.request_headers(), stream=True, redirects=True)
            try:
                if not download.accept(response.status_code, response.headers):
                    raise _refusal(response.status_code, response.headers, start)
                try:
                    await download.read(response.raw.content)
                    if download.received == start and not download.has_ended:
                        raise aiohttp.ClientPayloadError("the response is empty")
                except (aiohttp.ClientError, OSError, TimeoutError):
                    # A break after some progress is no failure: the next try counts as a first one.
                    if download.received == start:
                        raise
            finally:
                response.raw.close()

    async def _call(self, operation: str, **members: Any) -> dict[str, Any]:
        return await self._api.call(operation, repositoryName=self._name, **members)


def _refusal(status: int, headers: Mapping[str, str], start: int) -> bce.ClientError:
    """The error for a response that does not hold the bytes from *start* on."""
    message = f"the layer's server responds with HTTP status {status}"
    if status == _PARTIAL and start:
        message = f"the layer's server sends {headers.get('content-range', '')!r} instead of the bytes from {start} on"
    return bce.ClientError(_error(status, message), DOWNLOAD)


def _error(status: int, message: str) -> dict[str, Any]:
    return {"Error": {"Code": f"HTTP{status}", "Message": message}, "ResponseMetadata": {"HTTPStatusCode": status}}


@contextmanager
def _as_botocore_errors(url: str) -> Iterator[None]:
    """Raise botocore's errors for those that aiohttp raises while a body is read."""
    try:
        yield
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise bce.ConnectionClosedError(endpoint_url=url, error=error) from error


def _image_id(reference: str | Digest) -> dict[str, str]:
    return {"imageDigest": str(reference)} if isinstance(reference, Digest) else {"imageTag": reference}


def _by_reference(
    batch: Sequence[str | Digest], answer: Mapping[str, Any]
) -> Mapping[str | Digest, StoredManifest | NotHeld]:
    """ECR's answers by reference: it answers in any order, and names both an image's digest and its tag."""
    answers: dict[str, StoredManifest | NotHeld] = {}
    for failure in answer.get("failures") or ():
        image_id = failure.get("imageId") or {}
        answers |= dict.fromkeys(_names(image_id), _failure(failure))
    for image in answer.get("images") or ():
        image_id = image["imageId"]
        stored = StoredManifest(
            Digest.parse(image_id["imageDigest"]), image["imageManifest"].encode(), image.get("imageManifestMediaType")
        )
        answers |= dict.fromkeys(_names(image_id), stored)
    return {reference: answers.get(str(reference), NotHeld("not mentioned")) for reference in batch}


def _names(image_id: Mapping[str, str]) -> list[str]:
    return [name for name in (image_id.get("imageDigest"), image_id.get("imageTag")) if name]


def _failure(failure: Mapping[str, Any]) -> NotHeld:
    return NotHeld(str(failure.get("failureCode") or "failed"), str(failure.get("failureReason") or ""))
