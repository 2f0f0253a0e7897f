"""What can be listed through ``/v2/``: tags, the referrers of a digest, and the repositories of a registry."""

from __future__ import annotations

from aiohttp import web

from asyncpush.emulator.manifests import Manifest, sha256_digest
from asyncpush.emulator.registry import Registry
from asyncpush.emulator.repository import Repository
from asyncpush.emulator.store import Store
from asyncpush.emulator.v2.answers import json_answer, page
from asyncpush.emulator.v2.errors import digest_invalid

_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"


def tags(request: web.Request, repository: Repository) -> web.Response:
    """The tags in order (Listing Tags)."""
    shown, headers = page(request, tuple(repository.tags))
    return json_answer({"name": repository.name, "tags": shown}, headers=headers)


def catalog(request: web.Request, store: Store, registry: Registry | None) -> web.Response:
    """The names of a registry's repositories, or of all registries' (Docker's API; no part of the specification)."""
    held = store.repositories.values() if registry is None else [store.held(registry)]
    shown, headers = page(request, tuple({name for repositories in held for name in repositories}))
    return json_answer({"repositories": shown}, headers=headers)


def referrers(request: web.Request, repository: Repository, subject: str) -> web.Response:
    """An index of the manifests whose subject is this digest, be it there or not (Listing Referrers)."""
    if sha256_digest(subject) is None:
        raise digest_invalid(subject)
    wanted = request.query.get("artifactType")
    found = [each for each in repository.referrers(subject) if not wanted or each.artifact_type == wanted]
    index = {"schemaVersion": 2, "mediaType": _INDEX_TYPE, "manifests": [_descriptor(each) for each in found]}
    headers = {"OCI-Filters-Applied": "artifactType"} if wanted else {}
    return json_answer(index, headers=headers, media_type=_INDEX_TYPE)


def _descriptor(manifest: Manifest) -> dict[str, object]:
    members: dict[str, object] = {
        "mediaType": manifest.media_type,
        "digest": str(manifest.digest),
        "size": manifest.size,
    }
    if manifest.artifact_type:
        members["artifactType"] = manifest.artifact_type
    if manifest.annotations:
        members["annotations"] = manifest.annotations
    return members
