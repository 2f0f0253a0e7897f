"""A small registry on 127.0.0.1: correct by default, and wrong where a test says so."""

from __future__ import annotations

import base64
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from asyncpush.events import Emit, ignore
from asyncpush.settings import RetryPolicy, SourceRegistry
from asyncpush.sources.registry import Logins, no_logins, open_pool
from asyncpush.sources.registry.source_registry import SourceRegistryReader
from support.images import Json, Layout, digest
from support.servers import serving_http

#: Very short waits, for tests that need no others.
QUICK = RetryPolicy(stall=5.0, first_wait=0.001, longest_wait=0.002, outage=0.3)

Rule = Callable[[web.Request], Awaitable[web.StreamResponse | None]]


@dataclass
class Seen:
    """A request, as it arrived."""

    method: str
    path: str
    target: str
    headers: dict[str, str]
    body: bytes = b""

    @property
    def authorization(self) -> str | None:
        return self.headers.get("Authorization")


@dataclass
class RegistryServer:
    """Its content, its rules and its requests; the first rule that answers a request counts."""

    port: int = 0
    scheme: str = "http"
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    tags: dict[str, list[str]] = field(default_factory=dict)
    rules: list[Rule] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    referrers: dict[str, list[Json]] | None = None

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}"

    def hold(self, layout: Layout, descriptor: Json, repository: str, tag: str) -> Json:
        """Add an image of a layout, under a tag."""
        for name, data in layout.files.items():
            if name.startswith("blobs/"):
                self.blobs[digest(data)] = data
        self.manifests[f"{repository}:{tag}"] = (str(descriptor["mediaType"]), self.blobs[str(descriptor["digest"])])
        self.tags.setdefault(repository, []).append(tag)
        return descriptor

    def rule(self, method: str, part: str, *, times: int = 1_000_000) -> Callable[[Rule], Rule]:
        """Do something else for requests of *method* whose path has *part* in it, as often as *times*."""

        def add(action: Rule) -> Rule:
            left = [times]

            async def guarded(request: web.Request) -> web.StreamResponse | None:
                if request.method != method or part not in request.path or not left[0]:
                    return None
                left[0] -= 1
                return await action(request)

            self.rules.append(guarded)
            return action

        return add

    def asked(self, method: str, part: str = "") -> list[Seen]:
        """The requests of *method* whose path has *part* in it."""
        return [each for each in self.seen if each.method == method and part in each.path]

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(
            Seen(request.method, request.path, request.raw_path, dict(request.headers), await request.read())
        )
        for rule in self.rules:
            if (answer := await rule(request)) is not None:
                return answer
        return self.regular(request)

    def regular(self, request: web.Request) -> web.StreamResponse:
        """The answers of a correct registry."""
        path = request.path
        if path == "/v2/":
            return web.json_response({})
        repository, _, rest = path.removeprefix("/v2/").rpartition("/")
        repository, _, kind = repository.rpartition("/")
        if kind == "blobs" and rest in self.blobs:
            return ranged(request, self.blobs[rest])
        if kind == "manifests":
            found = self.manifests.get(f"{repository}:{rest}")
            if found is None and rest in self.blobs:
                held = next((kept for kept in self.manifests.values() if digest(kept[1]) == rest), None)
                found = held or (_media_type(self.blobs[rest]), self.blobs[rest])
            if found is not None:
                return manifest(*found)
        if kind == "tags" and repository in self.tags:
            return web.json_response({"name": repository, "tags": self.tags[repository]})
        if kind == "referrers" and self.referrers is not None:
            index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": self.referrers.get(rest, [])}
            return web.json_response(index, content_type=INDEX_TYPE)
        code = {"blobs": "BLOB_UNKNOWN", "manifests": "MANIFEST_UNKNOWN"}.get(kind, "NAME_UNKNOWN")
        return refusal(404, code, "not known here")


INDEX_TYPE = "application/vnd.oci.image.index.v1+json"


def _media_type(raw: bytes) -> str:
    return INDEX_TYPE if b'"manifests"' in raw else "application/vnd.oci.image.manifest.v1+json"


def manifest(media_type: str, raw: bytes, claim: str | None = None) -> web.Response:
    """A manifest, as registries give it."""
    return web.Response(body=raw, headers={"Content-Type": media_type, "Docker-Content-Digest": claim or digest(raw)})


def ranged(request: web.Request, data: bytes) -> web.Response:
    """A blob, or the end of it that is asked for."""
    asked = request.headers.get("Range")
    if asked is None:
        return web.Response(body=data)
    start = int(asked.removeprefix("bytes=").partition("-")[0])
    spread = f"bytes {start}-{len(data) - 1}/{len(data)}"
    return web.Response(status=206, body=data[start:], headers={"Content-Range": spread})


def refusal(status: int, code: str, message: str, **headers: str) -> web.Response:
    """An error in the distribution-spec's shape."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return web.json_response({"errors": [{"code": code, "message": message}]}, status=status, headers=named)


async def cut(request: web.Request, data: bytes, announced: int, *, start: int = 0) -> web.StreamResponse:
    """Send *data* of a body that was to have *announced* bytes, and break the connection."""
    response = web.StreamResponse(status=206 if start else 200)
    if start:
        response.headers["Content-Range"] = f"bytes {start}-{start + announced - 1}/{start + announced}"
    response.content_length = announced
    await response.prepare(request)
    await response.write(data)
    assert request.transport is not None
    request.transport.close()
    return response


def basic(user: str, password: str) -> str:
    """The value of Authorization."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@asynccontextmanager
async def running(
    server: RegistryServer | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[RegistryServer]:
    """Run a registry, on a free port."""
    server = server or RegistryServer()
    async with serving_http(server.handle, tls=tls) as port:
        server.port = port
        server.scheme = "https" if tls else "http"
        yield server


def reads(server: RegistryServer) -> SourceRegistry:
    return SourceRegistry(host=server.host, plain_http=True, anonymous=True)


@asynccontextmanager
async def open_remote(
    registry: SourceRegistry, *, logins: Logins = no_logins, emit: Emit = ignore, retry: RetryPolicy | None = None
) -> AsyncIterator[SourceRegistryReader]:
    """Read from one registry, until the context is left."""
    async with open_pool({registry.host: registry}, logins=logins, emit=emit, retry=retry) as remotes:
        yield remotes.at(registry.host)
