"""Repositories of other shards that may have a layer already, so that it can be mounted from there.

Nobody tells one machine what another one has pushed. But the plan names the repositories of all shards, and one request
asks one of them for a hundred layers. Each image asks a few: those that the plan has beside it, which are likely to
share its base, and some others in turn. What one of them has need not be asked for again.
"""

from __future__ import annotations

import time
from bisect import bisect
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable

import anyio

from asyncpush.errors import RegistryError, RepositoryNotFoundError
from asyncpush.migrate.plan.model import Plan, PlanTarget
from asyncpush.migrate.shard import Shard
from asyncpush.model import Digest
from asyncpush.protocols import Repository

#: Repositories that one image asks: those that are likely to share layers with it, and others in turn.
_NEAR, _IN_TURN = 4, 4

#: Seconds after which a repository that lacked a layer, or did not exist, is asked again, and how many answers are kept
#: of each.
_FORGET = 60.0
_KEPT = 10_000

#: Repositories that refuse, or mounts that are declined, without a layer that was mounted, before no more is asked.
_MAX_FAILURES = 3


class Siblings:
    """The repositories of a plan that other shards push to.

    Args:
        plan: the whole plan.
        shard: this shard.
        repository: returns a target's repository by its name.
    """

    def __init__(self, plan: Plan, shard: Shard, repository: Callable[[PlanTarget, str], Repository]) -> None:
        self._repository = repository
        self._names: dict[PlanTarget, list[str]] = {}
        self._positions: dict[PlanTarget, list[int]] = {}
        self._turns: dict[PlanTarget, int] = defaultdict(int)
        self._place: dict[tuple[PlanTarget, str], int] = {}
        self._of_source: dict[tuple[PlanTarget, str], list[str]] = defaultdict(list)
        self._lacking: dict[str, dict[Digest, float]] = defaultdict(dict)
        self._absent: dict[str, float] = {}
        self._holders: dict[tuple[str, Digest], str] = {}
        self._failures = 0
        self._granted = False
        known = set[tuple[PlanTarget, str]]()
        for position, entry in enumerate(plan.entries):
            for goal in entry.goals:
                key = (goal.target, goal.repository)
                if shard.takes(goal.repository):
                    self._place.setdefault(key, position)
                    continue
                self._of_source[goal.target, entry.location].append(goal.repository)
                if key not in known:
                    known.add(key)
                    self._names.setdefault(goal.target, []).append(goal.repository)
                    self._positions.setdefault(goal.target, []).append(position)

    async def ask(self, target: PlanTarget, name: str, source: str, digests: Collection[Digest]) -> None:
        """Ask some repositories of *target* which of *digests* they have; ``holder`` returns what they answer.

        Args:
            target: the registry.
            name: the repository that lacks the digests.
            source: where its image comes from (``PlanEntry.location``).
            digests: what it lacks.
        """
        if not digests or self._is_over:
            return
        async with anyio.create_task_group() as tasks:
            for other in self._candidates(target, name, source):
                tasks.start_soon(self._ask_one, self._repository(target, other), digests)

    def holder(self, registry: str, digest: Digest) -> str | None:
        """The name of a repository of *registry*, an address, that has a layer; None if none is known."""
        return None if self._is_over else self._holders.get((registry, digest))

    def note_mount(self, registry: str, digest: Digest, *, granted: bool) -> None:
        """Learn whether the layer could be mounted from its holder."""
        self._granted |= granted
        if not granted:
            self._failures += 1
            self._holders.pop((registry, digest), None)  # no image refers to it yet, say

    @property
    def _is_over(self) -> bool:
        return not self._granted and self._failures >= _MAX_FAILURES

    def _candidates(self, target: PlanTarget, name: str, source: str) -> Iterable[str]:
        names = self._names.get(target, [])
        chosen = dict.fromkeys(self._of_source[target, source][:_NEAR])
        middle = bisect(self._positions.get(target, []), self._place.get((target, name), 0))
        chosen |= dict.fromkeys(names[max(0, middle - _NEAR // 2) : middle + _NEAR // 2])
        start = self._turns[target]
        chosen |= dict.fromkeys((names[start:] + names[:start])[:_IN_TURN])
        self._turns[target] = (start + _IN_TURN) % max(1, len(names))
        return chosen

    async def _ask_one(self, repository: Repository, digests: Collection[Digest]) -> None:
        lacking, now = self._lacking[repository.address], time.monotonic()
        if now - self._absent.get(repository.address, -_FORGET) < _FORGET:
            return
        registry = repository.registry
        wanted = [
            digest
            for digest in digests
            if (registry, digest) not in self._holders and now - lacking.get(digest, -_FORGET) >= _FORGET
        ]
        if not wanted:
            return
        try:
            found = await repository.available(wanted)
        except RepositoryNotFoundError:
            self._absent[repository.address] = now  # its shard has not begun
            return
        except RegistryError:
            self._failures += 1  # an upload needs no answer
            found = frozenset()
        if len(lacking) > _KEPT:
            lacking.clear()
        for digest in wanted:
            if digest in found:
                self._holders.setdefault((registry, digest), repository.name)
            else:
                lacking[digest] = now
