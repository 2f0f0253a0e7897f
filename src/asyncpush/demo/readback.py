"""Read an image back through ``/v2/`` and prove every byte of it: manifests, configs and layers by their digests."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import anyio
from anyio import to_thread

from asyncpush.errors import DigestMismatchError, RegistryError, only_cause
from asyncpush.manifest import ACCEPTED_TYPES, Manifest, parse_manifest
from asyncpush.model import Descriptor, Digest


@dataclass(frozen=True, slots=True)
class Proof:
    """What was read of one image, and matched its digests: how many blobs and manifests, and their bytes."""

    digest: Digest
    blobs: int
    size: int


async def read_back(session: aiohttp.ClientSession, url: str, repository: str, tag: str) -> Proof:
    """Read the image that *tag* names, and all that it names.

    Raises:
        DigestMismatchError: what was read is not what its digest says.
        RegistryError: something of it is not there.
    """
    reading = _ReadBack(session, f"{url}/v2/{repository}", f"{repository}:{tag}")
    with only_cause():
        root = await reading.manifest(tag)
    return Proof(root.digest, len(reading.found), sum(reading.found.values()))


class _ReadBack:
    def __init__(self, session: aiohttp.ClientSession, base: str, name: str) -> None:
        self.found: dict[Digest, int] = {}
        self._session = session
        self._base = base
        self._name = name

    async def manifest(self, reference: str) -> Manifest:
        async with self._get(f"manifests/{reference}") as answer:
            read = parse_manifest(await answer.read(), media_type=answer.content_type, name=self._name)
        self.found[read.digest] = len(read.raw)
        if reference.startswith("sha256:") and str(read.digest) != reference:
            raise self._mismatch(Digest.parse(reference), read.digest)
        async with anyio.create_task_group() as tg:
            for child in read.children:
                tg.start_soon(self.manifest, str(child.digest))
            for descriptor in read.blobs():
                if descriptor.digest not in self.found:
                    self.found[descriptor.digest] = descriptor.size
                    tg.start_soon(self._blob, descriptor)
        return read

    async def _blob(self, descriptor: Descriptor) -> None:
        sha256 = hashlib.sha256()
        size = 0
        async with self._get(f"blobs/{descriptor.digest}") as answer:
            async for block in answer.content.iter_chunked(2**20):
                size += len(block)
                await to_thread.run_sync(sha256.update, block)
        if Digest(sha256.hexdigest()) != descriptor.digest:
            raise self._mismatch(descriptor.digest, Digest(sha256.hexdigest()))
        if size != descriptor.size:
            raise self._mismatch(descriptor.size, size)

    def _mismatch(self, expected: Digest | int, actual: Digest | int) -> DigestMismatchError:
        return DigestMismatchError(self._name, expected, actual, hint="the registry gives other bytes than were pushed")

    @asynccontextmanager
    async def _get(self, path: str) -> AsyncIterator[aiohttp.ClientResponse]:
        async with self._session.get(f"{self._base}/{path}", headers={"Accept": ", ".join(ACCEPTED_TYPES)}) as answer:
            if answer.status != 200:
                raise RegistryError(f"{self._name} can't be read back: HTTP {answer.status} for {path}")
            yield answer
