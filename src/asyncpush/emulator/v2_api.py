"""Pulls through ``/v2/`` (OCI distribution-spec): manifests, blobs and tags, read only."""

from __future__ import annotations

import re
from urllib.parse import urlencode

import msgspec
from aiohttp import web

from asyncpush.emulator.manifests import sha256_digest
from asyncpush.emulator.records import Image
from asyncpush.emulator.registry import Registry, registry_of_host
from asyncpush.emulator.repository import Repository
from asyncpush.emulator.store import Store

_MANIFEST = re.compile(r"(?P<name>.+)/manifests/(?P<reference>[^/]+)")
_BLOB = re.compile(r"(?P<name>.+)/blobs/(?P<digest>[^/]+)")
_TAGS = re.compile(r"(?P<name>.+)/tags/list")

_VERSION = {"Docker-Distribution-Api-Version": "registry/2.0"}


class V2Error(Exception):
    """Raised to refuse a pull.

    Args:
        status: the HTTP status.
        code: the distribution-spec's code, such as ``MANIFEST_UNKNOWN``.
        message: what is wrong.
    """

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status = status
        self.code = code
        self.message = message
        super().__init__(message)


class V2Api:
    """The read side of a registry on a store, for those that the gate let in."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer any request below ``/v2/``."""
        try:
            return await self._route(request)
        except V2Error as error:
            return _refusal(error)
        except OSError as error:
            return _refusal(V2Error(500, "UNKNOWN", f"the emulator can't use its data directory: {error}"))

    async def _route(self, request: web.Request) -> web.StreamResponse:
        if request.method not in ("GET", "HEAD"):
            raise V2Error(405, "UNSUPPORTED", "this registry takes pushes through ECR's JSON API only")
        path, registry = request.match_info["path"], registry_of_host(request.host)
        if not path:
            return _json({})
        if match := _MANIFEST.fullmatch(path):
            return await self._manifest(self._repository(match["name"], registry), match["reference"])
        if match := _BLOB.fullmatch(path):
            return self._blob(self._repository(match["name"], registry), match["digest"])
        if match := _TAGS.fullmatch(path):
            return self._tags(self._repository(match["name"], registry), request)
        raise V2Error(404, "NAME_UNKNOWN", f"there is nothing at /v2/{path}")

    def _repository(self, name: str, registry: Registry | None) -> Repository:
        found = self._store.find(name, registry)
        if found is None:
            raise V2Error(404, "NAME_UNKNOWN", f"there is no repository {name}")
        return found

    async def _manifest(self, repository: Repository, reference: str) -> web.Response:
        image = _image(repository, reference)
        if image is None:
            raise V2Error(404, "MANIFEST_UNKNOWN", f"{repository.name} has no manifest {reference}")
        raw = await self._store.in_thread(repository.read_manifest, image)
        digest = str(image.manifest.digest)
        headers = {**_VERSION, "Docker-Content-Digest": digest, "Content-Type": image.manifest.media_type}
        return web.Response(body=raw, headers=headers)

    def _blob(self, repository: Repository, reference: str) -> web.FileResponse:
        digest = sha256_digest(reference)
        if digest is None or digest not in repository.layers:
            raise V2Error(404, "BLOB_UNKNOWN", f"{repository.name} has no blob {reference}")
        headers = {**_VERSION, "Docker-Content-Digest": str(digest), "Content-Type": "application/octet-stream"}
        return web.FileResponse(repository.blob_path(digest), headers=headers)

    def _tags(self, repository: Repository, request: web.Request) -> web.Response:
        """The tags in order, ``n`` at a time, behind ``last``; ``Link`` leads to the next ones."""
        size, last = request.query.get("n"), request.query.get("last", "")
        if size is not None and not re.fullmatch(r"[0-9]{1,9}", size):
            raise V2Error(400, "PAGINATION_NUMBER_INVALID", f"n is {size!r}, and must be a number")
        rest = sorted(tag for tag in repository.tags if tag > last)
        page = rest if size is None else rest[: int(size)]
        headers = {}
        if page and len(page) < len(rest):
            query = urlencode({"last": page[-1], "n": size})
            headers["Link"] = f'</v2/{repository.name}/tags/list?{query}>; rel="next"'
        return _json({"name": repository.name, "tags": page}, headers=headers)


def _image(repository: Repository, reference: str) -> Image | None:
    return repository.find(digest=reference) if ":" in reference else repository.find(tag=reference)


def _refusal(error: V2Error) -> web.Response:
    return _json({"errors": [{"code": error.code, "message": error.message}]}, status=error.status)


def _json(document: object, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(document),
        status=status,
        headers={**_VERSION, **(headers or {}), "Content-Type": "application/json"},
    )
