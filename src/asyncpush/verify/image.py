"""Verify images over one connection: each repository's manifests and blobs are read once, whatever shares them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import anyio
from anyio import CapacityLimiter

from asyncpush.api import Stop
from asyncpush.connection import Registry, engine_of
from asyncpush.errors import AsyncpushError, InvalidReferenceError, only_cause
from asyncpush.model import Digest
from asyncpush.reference import in_registry
from asyncpush.verify.content import RepositoryContent
from asyncpush.verify.results import Verification, VerificationFailure, VerificationTarget, parse_target

#: Repositories that are verified at once.
_REPOSITORIES_AT_ONCE = 16
#: Blobs that are read at once, at most: about 1 MiB of each is in memory, and this machine has to hash them all.
_READS_AT_ONCE = 32


async def verify_image(
    registry: Registry, destination: str, *, deep: bool = False, expected: Digest | None = None
) -> Verification:
    """Verify one image, or one index with everything that it names.

    Args:
        registry: the connection.
        destination: ``[REGISTRY/]REPOSITORY[:TAG][@DIGEST]``; the tag is ``latest`` if there is neither.
        deep: read every blob and compare its digest, instead of asking whether it exists and how large it is.
        expected: the digest that the image must have.

    Raises:
        UsageError: *destination* is not well formed, or is in ECR Public, whose API gives no manifests.
        RegistryError: the repository does not exist or may not be read, or ECR can't be reached.
    """
    target = parse_target(destination)
    if expected is not None:
        if target.digest not in (None, expected):
            raise InvalidReferenceError(f"{destination!r} names another digest than {expected}")
        target = replace(target, digest=expected)
    [result] = await verify_all(registry, [target], deep=deep)
    if isinstance(result, VerificationFailure):
        raise result.error
    return result


async def verify_all(
    registry: Registry, targets: Sequence[VerificationTarget], *, deep: bool = False
) -> list[Verification | VerificationFailure]:
    """Verify many images over one connection.

    Args:
        registry: the connection.
        targets: the images.
        deep: read every blob and compare its digest.

    Returns:
        A result for each of *targets*, in their order; a failure where the repository could not be read, or was not
        read because the credentials were lost.
    """
    engine = engine_of(registry)
    results: dict[int, Verification | VerificationFailure] = {}
    by_repository: defaultdict[str, dict[int, VerificationTarget]] = defaultdict(dict)
    for position, target in enumerate(targets):
        try:
            in_registry(target.destination, registry.name)
        except InvalidReferenceError as error:
            results[position] = VerificationFailure(str(target), error)
        else:
            by_repository[target.destination.repository][position] = target
    at_once = CapacityLimiter(_REPOSITORIES_AT_ONCE)
    reads = CapacityLimiter(min(registry.settings.max_layers, _READS_AT_ONCE))

    async def verify(repository: str, targets: dict[int, VerificationTarget]) -> None:
        async with at_once:
            content = RepositoryContent(engine.reader(repository), reads if deep else None)
            try:
                with only_cause():
                    await content.load({target.reference for target in targets.values()})
            except AsyncpushError as error:
                results.update({at: VerificationFailure(str(target), error) for at, target in targets.items()})
                stop.on(error)
            else:
                results.update({at: content.verdict(target) for at, target in targets.items()})

    with only_cause():
        async with anyio.create_task_group() as tg:
            stop = Stop(tg.cancel_scope)
            for repository, found in by_repository.items():
                tg.start_soon(verify, repository, found)
    return [
        results[position] if position in results else VerificationFailure(str(target), stop.cause)
        for position, target in enumerate(targets)
    ]
