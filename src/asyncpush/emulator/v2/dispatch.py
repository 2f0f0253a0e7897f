"""Routes requests below ``/v2/`` (OCI distribution-spec) to their registry, repository and handler."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial

from aiohttp import web

from asyncpush import open_files
from asyncpush.emulator.api.images import ImagesApi
from asyncpush.emulator.errors import AwsError, repository_not_found
from asyncpush.emulator.limits import Limits
from asyncpush.emulator.registry import RegistryId, registry_of_host
from asyncpush.emulator.store.repository import RepositoryState
from asyncpush.emulator.store.state import BackgroundTasks, Store
from asyncpush.emulator.v2.answers import V2Error, json_answer, refusal, translated
from asyncpush.emulator.v2.blobs import Blobs, Uploads
from asyncpush.emulator.v2.manifests import ManifestHandlers, catalog, referrers, tags
from asyncpush.emulator.v2.receiver import BodyLostError

#: The names of repositories (distribution-spec, Pulling manifests), of as many characters as ECR allows.
_NAME = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*")
_LONGEST_NAME = 256

_Handler = Callable[[web.Request, RepositoryState, str], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class _Route:
    """The handlers of a path by method, and the method that may create the repository."""

    path: re.Pattern[str]
    handlers: Mapping[str, _Handler]
    creating: str = ""


class V2Api:
    """The registry API on a store, for authenticated requests.

    Args:
        store: repositories and uploads.
        limits: quotas and quirks.
        background: runs what changes data to its end.
    """

    def __init__(self, store: Store, limits: Limits, background: BackgroundTasks) -> None:
        self._store = store
        self._background = background
        self._blobs = Blobs(store)
        self._uploads = Uploads(store, limits, background, self._blobs)
        self._manifests = ManifestHandlers(store, ImagesApi(store, limits), background)
        self._routes = self._make_routes()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer any request below ``/v2/``."""
        try:
            return await self._route(request)
        except V2Error as error:
            return refusal(error)
        except AwsError as error:
            return refusal(translated(error))
        except (BodyLostError, ConnectionError) as error:
            if isinstance(error.__cause__, TimeoutError):
                return refusal(V2Error(408, "BLOB_UPLOAD_INVALID", str(error)))
            return refusal(V2Error(400, "BLOB_UPLOAD_INVALID", "the body ended before its end"))
        except OSError as error:
            return refusal(
                V2Error(
                    500, "UNKNOWN", f"the emulator can't use its data directory: {open_files.shortage(error) or error}"
                )
            )

    async def _route(self, request: web.Request) -> web.StreamResponse:
        path, registry = request.match_info["path"], registry_of_host(request.host)
        if path in ("", "_catalog"):
            _allow(request, ("GET",), path)
            return catalog(request, self._store, registry) if path else json_answer({})
        for route in self._routes:
            if match := route.path.fullmatch(path):
                method = _allow(request, tuple(route.handlers), path)
                repository = await self._repository(match["name"], registry, create=method == route.creating)
                return await route.handlers[method](request, repository, match["rest"])
        raise V2Error(404, "NAME_UNKNOWN", f"there is nothing at /v2/{path}")

    def _make_routes(self) -> tuple[_Route, ...]:
        uploads, manifests = self._uploads, self._manifests
        of_manifest: dict[str, _Handler] = {
            "GET": lambda _, repository, reference: manifests.get(repository, reference),
            "PUT": manifests.put,
            "DELETE": lambda _, repository, reference: manifests.delete(repository, reference),
        }
        of_upload: dict[str, _Handler] = {
            "GET": uploads.status,
            "PATCH": uploads.append,
            "PUT": uploads.complete,
            "DELETE": uploads.cancel,
        }
        begin: dict[str, _Handler] = {"POST": lambda request, repository, _: uploads.begin(request, repository)}
        return (
            _Route(_path(r"/manifests/(?P<rest>[^/]+)"), of_manifest, creating="PUT"),
            _Route(_path(r"/blobs/uploads/?(?P<rest>)"), begin, creating="POST"),
            _Route(_path(r"/blobs/uploads/(?P<rest>[^/]+)"), of_upload),
            _Route(_path(r"/blobs/(?P<rest>[^/]+)"), {"GET": self._blob}),
            _Route(_path(r"/tags/(?P<rest>list)"), {"GET": _tags}),
            _Route(_path(r"/referrers/(?P<rest>[^/]+)"), {"GET": _referrers}),
        )

    async def _repository(self, name: str, registry: RegistryId | None, *, create: bool) -> RepositoryState:
        """Find a repository; a push creates it where a creation template says so."""
        found = self._store.find(name, registry)
        if found is None and create:
            found = await self._created(name, registry)
        if found is None:
            raise translated(repository_not_found(name, (registry or RegistryId()).account))
        return found

    async def _created(self, name: str, registry: RegistryId | None) -> RepositoryState | None:
        if not _NAME.fullmatch(name) or not 2 <= len(name) <= _LONGEST_NAME:  # it becomes a path
            raise V2Error(400, "NAME_INVALID", f"{name!r} can't be a repository's name")
        into = registry or self._store.accounts.registry_for(name)
        return await self._background.finish(partial(self._store.create_on_push, into, name)) if into else None

    async def _blob(self, request: web.Request, repository: RepositoryState, digest: str) -> web.StreamResponse:
        if request.method == "HEAD" and repository.registry.is_public:
            raise V2Error(403, "DENIED", "Not Authorized")  # as public.ecr.aws was observed to answer
        return await self._blobs.get(repository, digest, with_bytes=request.method == "GET")


async def _tags(request: web.Request, repository: RepositoryState, _: str) -> web.StreamResponse:
    return tags(request, repository)


async def _referrers(request: web.Request, repository: RepositoryState, digest: str) -> web.StreamResponse:
    return referrers(request, repository, digest)


def _path(rest: str) -> re.Pattern[str]:
    return re.compile(rf"(?P<name>.+){rest}")


def _allow(request: web.Request, methods: tuple[str, ...], path: str) -> str:
    """The method whose handler answers: HEAD is GET without the body."""
    method = "GET" if request.method == "HEAD" else request.method
    if method not in methods:
        message = f"{request.method} is not for /v2/{path}"
        raise V2Error(405, "UNSUPPORTED", message, {"Allow": ", ".join(methods)})
    return method
