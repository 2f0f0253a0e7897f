"""Prove that images are whole in ECR: every manifest has its digest, and every blob is there; deep, byte for byte."""

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
from asyncpush.verify.results import Problem, Verification, VerificationFailure, VerificationTarget, parse_target

__all__ = [
    "Problem",
    "Verification",
    "VerificationFailure",
    "VerificationTarget",
    "parse_target",
    "verify_all",
    "verify_image",
]

#: Repositories that are asked at once.
_REPOSITORIES_AT_ONCE = 16
#: Blobs that are read at once, at the most: some 1 MiB of each is held, and this machine has to hash them all.
_READ_AT_ONCE = 32


async def verify_image(
    registry: Registry, destination: str, *, deep: bool = False, expected: Digest | None = None
) -> Verification:
    """Verify one image, or one index with all that it names.

    Args:
        registry: the connection.
        destination: ``[REGISTRY/]REPOSITORY[:TAG][@DIGEST]``; the tag is ``latest`` if there is neither.
        deep: read every blob and compare its digest, instead of asking whether it is there and how large it is.
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
    """Verify many images over one connection; what several images of a repository share is looked at once.

    Args:
        registry: the connection.
        targets: the images.
        deep: read every blob and compare its digest.

    Returns:
        What was found of each, in the order of *targets*; a failure where its repository could not be asked, or was
        not any more, since credentials were lost.
    """
    engine = engine_of(registry)
    outcomes: dict[int, Verification | VerificationFailure] = {}
    by_repository: defaultdict[str, dict[int, VerificationTarget]] = defaultdict(dict)
    for position, target in enumerate(targets):
        try:
            in_registry(target.destination, registry.name)
        except InvalidReferenceError as error:
            outcomes[position] = VerificationFailure(str(target), error)
        else:
            by_repository[target.destination.repository][position] = target
    at_once = CapacityLimiter(_REPOSITORIES_AT_ONCE)
    reads = CapacityLimiter(min(registry.settings.max_layers, _READ_AT_ONCE))

    async def one(name: str, wanted: dict[int, VerificationTarget]) -> None:
        async with at_once:
            content = RepositoryContent(engine.reader(name), reads if deep else None)
            try:
                with only_cause():
                    await content.load({target.reference for target in wanted.values()})
            except AsyncpushError as error:
                failures = {place: VerificationFailure(str(target), error) for place, target in wanted.items()}
                outcomes.update(failures)
                stop.on(error)
            else:
                outcomes.update({place: content.verdict(target) for place, target in wanted.items()})

    with only_cause():
        async with anyio.create_task_group() as tg:
            stop = Stop(tg.cancel_scope)
            for name, wanted in by_repository.items():
                tg.start_soon(one, name, wanted)
    for position, target in enumerate(targets):
        if position not in outcomes:
            outcomes[position] = VerificationFailure(str(target), stop.cause)
    return [outcomes[position] for position in range(len(targets))]
