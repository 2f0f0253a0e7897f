"""Blobs that are there: given whole or by range, and mounted from one repository into another."""

from __future__ import annotations

from aiohttp import web

from asyncpush.emulator.store.manifests import sha256_digest
from asyncpush.emulator.store.repository import RepositoryState
from asyncpush.emulator.store.state import Store
from asyncpush.emulator.v2.answers import VERSION, V2Error, empty
from asyncpush.model import Digest


class Blobs:
    """The blobs of a store's repositories."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def get(self, repository: RepositoryState, reference: str, *, with_bytes: bool) -> web.FileResponse:
        """Give a blob, or the range of it that is asked for (Pulling blobs)."""
        digest = sha256_digest(reference)
        if digest is None or digest not in repository.layers:
            raise V2Error(404, "BLOB_UNKNOWN", f"{repository.name} has no blob {reference}")
        if with_bytes and await self._store.in_thread(repository.is_discarded, digest):
            raise V2Error(404, "BLOB_UNKNOWN", f"the bytes of {reference} were discarded (serve --discard)")
        headers = {**VERSION, "Docker-Content-Digest": str(digest), "Content-Type": "application/octet-stream"}
        return web.FileResponse(repository.blob_path(digest), headers=headers)

    async def mount(self, repository: RepositoryState, digest: Digest, source_name: str) -> bool:
        """Take over a blob of another repository, as ECR does; False where it would not.

        ECR mounts where the account's setting BLOB_MOUNTING is ENABLED, within one registry, between repositories of
        the same encryption, and only what an image of the source names.
        """
        registry = repository.registry
        if self._store.accounts.setting(registry, "BLOB_MOUNTING") != "ENABLED":
            return False
        source = self._store.held(registry).get(source_name)
        if source is None or source.record.encryption != repository.record.encryption:
            return False
        if digest not in source.layers or not source.is_referenced(digest):
            return False
        async with repository.lock:
            there = digest in repository.layers
            return there or await self._store.in_thread(repository.mount, source, digest)


def created(repository: RepositoryState, digest: Digest) -> web.Response:
    """The answer once a blob is in a repository."""
    location = f"/v2/{repository.name}/blobs/{digest}"
    return empty(201, {"Location": location, "Docker-Content-Digest": str(digest)})
