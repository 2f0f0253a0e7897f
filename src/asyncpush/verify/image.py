"""Verify images over one connection: each repository's manifests and blobs are read once, whatever shares them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

import anyio
from anyio import CapacityLimiter

from asyncpush.connection import Registry, engine_of
from asyncpush.errors import CREDENTIALS_LOST, AsyncpushError, InvalidReferenceError, JournalError, only_cause
from asyncpush.events import ImageFailed, ImageStarted, ImageVerified
from asyncpush.journal import SqliteJournal
from asyncpush.model import Digest
from asyncpush.reference import RegistryName, in_registry
from asyncpush.settings import Settings
from asyncpush.verify.content import RepositoryContent
from asyncpush.verify.reading import BlobReading, ImageBlobs, ReadBlobs
from asyncpush.verify.results import (
    Verification,
    VerificationFailure,
    VerificationTarget,
    VerificationWatcher,
    parse_target,
)

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
    registry: Registry,
    targets: Sequence[VerificationTarget],
    *,
    deep: bool = False,
    watcher: VerificationWatcher | None = None,
    proofs: Proofs | None = None,
) -> list[Verification | VerificationFailure]:
    """Verify many images over one connection.

    Args:
        registry: the connection.
        targets: the images.
        deep: read every blob and compare its digest.
        watcher: hears of each result as soon as it is known.
        proofs: keeps what was proved.

    Returns:
        A result for each of *targets*, in their order; a failure where the repository could not be read, or was not
        read because the credentials were lost.

    Raises:
        JournalError: the journal can't be written.
    """
    verifier = Verifier(
        registry, reads=reads_at_once(registry.settings) if deep else None, watcher=watcher, proofs=proofs
    )
    results: dict[int, Verification | VerificationFailure] = {}
    by_repository: defaultdict[tuple[str, RegistryName], list[int]] = defaultdict(list)
    for position, target in enumerate(targets):
        verifier.expect(target)
        to = target.destination
        name = registry.name if to.registry in (registry.name, RegistryName()) else to.registry
        by_repository[to.repository, name].append(position)

    async def verify(repository: str, positions: Sequence[int]) -> None:
        found = await verifier.verify(repository, [targets[position] for position in positions])
        results.update(zip(positions, found, strict=True))

    with only_cause():
        async with anyio.create_task_group() as tg:
            for (repository, _), positions in by_repository.items():
                tg.start_soon(verify, repository, positions)
    return [results[position] for position in range(len(targets))]


def reads_at_once(settings: Settings) -> CapacityLimiter:
    """How many blobs a verification reads at once, over all its connections."""
    return CapacityLimiter(min(settings.max_layers, _READS_AT_ONCE))


@dataclass(frozen=True, slots=True)
class Proofs:
    """What was proved, in a journal.

    Attributes:
        journal: the journal.
        within: an image whose bytes were read in the last *within* seconds is not read again; None for all.
    """

    journal: SqliteJournal
    within: float | None = None

    async def earlier(self, repository: str) -> Mapping[Digest, datetime]:
        """The images of a repository that need not be read again, and when they were."""
        return {} if self.within is None else await self.journal.deep_proofs(repository, self.within)

    async def keep(self, repository: str, found: Iterable[tuple[VerificationTarget, Verification]]) -> None:
        """Record what is whole, and forget what is not."""
        proved: defaultdict[bool, dict[str, Digest]] = defaultdict(dict)
        for target, result in found:
            reference = str(target.reference)
            if not result.is_whole or result.digest is None:
                await self.journal.proof_lost(repository, reference, result.digest)
            elif result.read_at is None:  # else the earlier proof, with its time, stays
                proved[result.deep][reference] = result.digest
        for deep, images in proved.items():
            await self.journal.images_proved(repository, images, deep=deep)


class Verifier:
    """Verifies images over one connection; once the credentials are lost, it only fails.

    Args:
        registry: the connection.
        reads: how many blobs are read at once; None to read none.
        watcher: hears of each result as soon as it is known.
        proofs: keeps what was proved.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        reads: CapacityLimiter | None = None,
        watcher: VerificationWatcher | None = None,
        proofs: Proofs | None = None,
    ) -> None:
        self._engine = engine_of(registry)
        self._reads = reads
        self._watcher = watcher or VerificationWatcher()
        self._proofs = proofs
        self._at_once = CapacityLimiter(_REPOSITORIES_AT_ONCE)
        self._lost: AsyncpushError | None = None

    def expect(self, target: VerificationTarget) -> None:
        """Tell that an image will be verified."""
        self._watcher.expect(target)
        self._engine.emit(ImageStarted(target.unique_name, target.unique_name))

    async def verify(
        self, repository: str, targets: Sequence[VerificationTarget]
    ) -> list[Verification | VerificationFailure]:
        """Verify images of one repository.

        Args:
            repository: its name.
            targets: the images, each of which was expected (``expect``).

        Returns:
            A result for each of *targets*, in their order.

        Raises:
            JournalError: the journal can't be written.
        """
        results: dict[int, Verification | VerificationFailure] = {}
        try:
            async with self._at_once:
                if self._lost is not None:
                    raise self._lost
                for target in targets:
                    in_registry(target.destination, self._engine.name)
                with only_cause():
                    await self._verify(repository, targets, results)
        except JournalError:
            raise
        except AsyncpushError as error:
            if isinstance(error, CREDENTIALS_LOST):
                self._lost = self._lost or error
            for at, target in enumerate(targets):
                if at not in results:
                    results[at] = VerificationFailure(str(target), error)
                    self._engine.emit(ImageFailed(target.unique_name, str(error)))
                    self._watcher.found(results[at], target)
        return [results[at] for at in range(len(targets))]

    async def _verify(
        self,
        repository: str,
        targets: Sequence[VerificationTarget],
        results: dict[int, Verification | VerificationFailure],
    ) -> None:
        address = repository
        earlier: Mapping[Digest, datetime] = {}
        if self._proofs is not None:
            await self._engine.require_account("a journal")
            address = self._engine.repository(repository).address
            if self._reads is not None:
                earlier = await self._proofs.earlier(address)
        reader = self._engine.reader(repository)
        content = RepositoryContent(reader)
        await content.load({target.reference for target in targets})

        async def conclude(positions: Sequence[int], read: ReadBlobs | None = None) -> None:
            found = {at: content.verdict(targets[at], read) for at in positions}
            if read is None and self._reads is not None:
                found = {at: proved(verdict) for at, verdict in found.items()}
            if self._proofs is not None:
                await self._proofs.keep(address, [(targets[at], verdict) for at, verdict in found.items()])
            for at, verdict in found.items():
                results[at] = verdict
                outcome: Literal["whole", "broken"] = "whole" if verdict.is_whole else "broken"
                self._engine.emit(ImageVerified(targets[at].unique_name, verdict.digest, outcome))
                self._watcher.found(verdict, targets[at])

        def proved(verdict: Verification) -> Verification:
            read_at = earlier[verdict.digest] if verdict.digest else None
            return replace(verdict, deep=True, read_at=read_at)

        if self._reads is None:
            await conclude(range(len(targets)))
            return
        known = [at for at, target in enumerate(targets) if content.digest(target) in earlier]
        await conclude(known)
        unread = [at for at in range(len(targets)) if at not in results]
        images = [ImageBlobs(targets[at].unique_name, content.blobs(targets[at])) for at in unread]
        reading = BlobReading(reader, self._reads, self._engine.repository(repository).address, self._engine.emit)
        await reading.read(images, content.manifests, lambda position: conclude([unread[position]], reading.found))
