"""Images in remote registries: all that implement the OCI distribution-spec 1.1, such as Docker Hub and ECR.

``open_pool`` opens registries as they are needed. Each is a ``SourceRegistryReader``, which resolves tags, reads
manifests and lists, and streams blobs.
"""

from __future__ import annotations

from asyncpush.reference import RemoteReference, canonical_host, is_remote, parse_remote
from asyncpush.sources.registry.logins import Logins, has_ecr_api, is_ecr, no_logins
from asyncpush.sources.registry.pool import RegistryPool, RegistrySource, open_pool

__all__ = [
    "Logins",
    "RegistryPool",
    "RegistrySource",
    "RemoteReference",
    "canonical_host",
    "has_ecr_api",
    "is_ecr",
    "is_remote",
    "no_logins",
    "open_pool",
    "parse_remote",
]
