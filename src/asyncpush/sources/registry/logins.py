"""Which source registries accept AWS credentials, and who creates their logins."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from asyncpush.errors import InvalidReferenceError
from asyncpush.protocols import Login
from asyncpush.reference import ECR_PUBLIC, parse_registry
from asyncpush.settings import SourceRegistry

#: Creates the login of a registry that accepts AWS credentials; None for any other registry.
Logins: TypeAlias = Callable[[SourceRegistry], Login | None]


def no_logins(registry: SourceRegistry) -> Login | None:  # noqa: ARG001 - a ``Logins``
    """Create no logins."""
    return None


def is_ecr(host: str) -> bool:
    """Whether *host* is a private registry of ECR, which accepts AWS credentials."""
    try:
        parse_registry(host)
    except InvalidReferenceError:
        return False
    return True


def has_ecr_api(host: str, registry: SourceRegistry | None) -> bool:
    """Whether *host* is a private registry of ECR: by its name, or since *registry*, its configuration, says so."""
    return is_ecr(host) or (registry is not None and registry.aws is not None and host != ECR_PUBLIC)
