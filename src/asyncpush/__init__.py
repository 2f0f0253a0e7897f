"""Push container images into Amazon ECR, many layers at once, through ECR's own layer API.

async with asyncpush.connect("123456789012.dkr.ecr.eu-west-1.amazonaws.com") as registry:
    result = await asyncpush.push(registry, "oci:build/app:1.0", "team/app:1.0")
    print(result.digest)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncpush.api import (
        ImageFailure as ImageFailure,
    )
    from asyncpush.api import (
        LayerFailure as LayerFailure,
    )
    from asyncpush.api import (
        LayerResult as LayerResult,
    )
    from asyncpush.api import (
        Registry as Registry,
    )
    from asyncpush.api import (
        connect as connect,
    )
    from asyncpush.api import (
        push as push,
    )
    from asyncpush.api import (
        push_all as push_all,
    )
    from asyncpush.api import (
        push_layers as push_layers,
    )
    from asyncpush.errors import (
        AsyncpushError as AsyncpushError,
    )
    from asyncpush.errors import (
        RegistryError as RegistryError,
    )
    from asyncpush.errors import (
        SourceError as SourceError,
    )
    from asyncpush.errors import (
        UsageError as UsageError,
    )
    from asyncpush.image import ImageResult as ImageResult
    from asyncpush.journal import open_journal as open_journal
    from asyncpush.migrate.plan.load import read_plan as read_plan
    from asyncpush.migrate.proof import verify_plan as verify_plan
    from asyncpush.migrate.run import migrate_plan as migrate_plan
    from asyncpush.model import Digest as Digest
    from asyncpush.model import Platform as Platform
    from asyncpush.settings import AwsConfiguration as AwsConfiguration
    from asyncpush.settings import Settings as Settings
    from asyncpush.sources import open_source as open_source
    from asyncpush.verify import verify_image as verify_image

_HOMES = {
    "verify_image": "verify",
    "verify_plan": "migrate.proof",
    "migrate_plan": "migrate.run",
    "read_plan": "migrate.plan.load",
    "open_journal": "journal",
    "AsyncpushError": "errors",
    "AwsConfiguration": "settings",
    "Digest": "model",
    "ImageFailure": "api",
    "ImageResult": "image",
    "LayerFailure": "api",
    "LayerResult": "api",
    "Platform": "model",
    "Registry": "api",
    "RegistryError": "errors",
    "Settings": "settings",
    "SourceError": "errors",
    "UsageError": "errors",
    "connect": "api",
    "open_source": "sources",
    "push": "api",
    "push_all": "api",
    "push_layers": "api",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    # botocore takes half a second to import: `asyncpush --help` must not pay for it.
    if name in _HOMES:
        return getattr(import_module(f"asyncpush.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'asyncpush' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
