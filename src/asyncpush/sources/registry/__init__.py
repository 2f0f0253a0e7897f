"""Images in remote registries: any that speak the OCI distribution-spec 1.1, Docker Hub and ECR among them.

``open_remotes`` opens registries as they are needed; a ``Remote`` resolves tags, reads manifests and lists, and gives
blobs that stream.
"""

from __future__ import annotations

from asyncpush.sources.registry.credentials import Logins, is_ecr, no_logins
from asyncpush.sources.registry.pool import Remotes, RemoteSource, open_remote, open_remotes
from asyncpush.sources.registry.reference import RemoteReference, canonical_host, is_remote, parse_remote
from asyncpush.sources.registry.referrers import RepositoryReferrers
from asyncpush.sources.registry.retry import Patience
from asyncpush.sources.registry.source_registry import Remote

__all__ = [
    "Logins",
    "Patience",
    "Remote",
    "RemoteReference",
    "RemoteSource",
    "Remotes",
    "RepositoryReferrers",
    "canonical_host",
    "is_ecr",
    "is_remote",
    "no_logins",
    "open_remote",
    "open_remotes",
    "parse_remote",
]
