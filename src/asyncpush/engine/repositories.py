"""The repositories that a run creates, because ECR lacks them or because somebody deletes them in mid-run."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import anyio

from asyncpush.errors import RepositoryNotFoundError, ServiceError
from asyncpush.events import Emit, Notice, ignore
from asyncpush.protocols import Repository

#: Times that a run creates one repository: once because it is missing, once more because it was deleted.
_MAX_CREATIONS = 2


@dataclass(slots=True)
class CreatedRepositories:
    """Creates each missing repository once for all images that lack it, and again after a deletion.

    Attributes:
        emit: receives a notice of each deletion.
    """

    emit: Emit = ignore
    _created: Counter[str] = field(default_factory=Counter)
    _created_at: dict[str, float] = field(default_factory=dict)
    _locks: dict[str, anyio.Lock] = field(default_factory=dict)

    def times(self, repository: Repository) -> int:
        """How often *repository* was created."""
        return self._created[repository.address]

    def is_newer(self, repository: Repository, moment: float) -> bool:
        """Whether *repository* was created after *moment*: what was put into it before is lost."""
        return self._created_at.get(repository.address, moment) > moment

    async def create(
        self,
        repository: Repository,
        create: Callable[[], Awaitable[bool]],
        error: RepositoryNotFoundError,
        *,
        since: float,
        existed: bool,
    ) -> bool:
        """Create *repository*, unless another image has created it meanwhile.

        Args:
            repository: the repository.
            create: creates it.
            error: says that it does not exist.
            since: when the work that has met *error* began, by the monotonic clock.
            existed: whether the run has seen the repository, so that it was deleted since.

        Returns:
            Whether this call has created it.

        Raises:
            RepositoryNotFoundError: it was created twice, and deleted again.
            RegistryError: ECR refuses.
        """
        address = repository.address
        async with self._locks.setdefault(address, anyio.Lock()):
            if self.is_newer(repository, since):
                return False
            if self._created[address] == _MAX_CREATIONS:
                raise _deleted_again(repository, error) from error
            await create()
            if existed or self._created[address]:
                self.emit(Notice(f"repository {repository.name} was deleted during the run, and is created again"))
            self._created[address] += 1
            self._created_at[address] = time.monotonic()
            return True


def _deleted_again(repository: Repository, error: ServiceError) -> RepositoryNotFoundError:
    return RepositoryNotFoundError(
        error.operation,
        error.code,
        f"repository {repository.name} was deleted again after {_MAX_CREATIONS} creations in this run",
        hint="find out who deletes it, then run the same command again",
    )
