"""ECR's caps that an image can be held against before any of it is sent ("Amazon ECR service quotas")."""

from __future__ import annotations

from asyncpush.engine.diff import leaves
from asyncpush.errors import ManifestError
from asyncpush.protocols import Image
from asyncpush.reference import Service
from asyncpush.settings import MiB

#: Bytes of a layer, at the most.
MAX_LAYER_SIZE: dict[Service, int] = {"ecr": 52_000 * MiB, "ecr-public": 10_000 * MiB}

#: Layers of an image. ECR documents no such cap, but has one: images of 500 are known to pass, and larger ones not to.
#: So this only warns.
KNOWN_LAYERS = 500


def check_caps(image: Image, service: Service) -> str | None:
    """See that *image* is one that ECR may take.

    Returns:
        What a user should know, if there is anything; None otherwise.

    Raises:
        ManifestError: a layer is larger than ECR takes any.
    """
    notice = None
    for leaf in leaves(image.root):
        for layer in leaf.layers:
            if layer.source_size > MAX_LAYER_SIZE[service] and layer.descriptor:
                raise ManifestError(
                    f"{layer.name} of {image.source} has {layer.source_size} bytes",
                    hint=f"ECR takes layers of up to {MAX_LAYER_SIZE[service] // MiB} MiB",
                )
        if len(leaf.layers) > KNOWN_LAYERS:
            notice = f"{image.source} has {len(leaf.layers)} layers; ECR may refuse more than {KNOWN_LAYERS}"
    return notice
