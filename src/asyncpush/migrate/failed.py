"""``--failed``: the part of a plan that an earlier run did not finish."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace

from asyncpush.errors import UsageError
from asyncpush.journal import EarlierRun, SqliteJournal
from asyncpush.migrate.plan.model import Goal, Plan, PlanEntry
from asyncpush.migrate.report import Copy, CopyName
from asyncpush.migrate.shard import Shard
from asyncpush.reference import is_remote, parse_remote

_HINT = "run the plan without --failed first, or name its journal with --journal"


async def find_undone(journal: SqliteJournal | None, plan: str, address_of: Callable[[Goal], str]) -> Undone:
    """What the last run of a plan in *journal* did not finish.

    Args:
        journal: the journal.
        plan: the plan's fingerprint.
        address_of: the address of the repository of a goal.

    Raises:
        UsageError: there is no journal, or no run in it.
    """
    if journal is None:
        raise UsageError("--failed needs the journal of a run, and there is none", hint=_HINT)
    earlier = await journal.earlier_run(plan)
    if earlier is None:
        raise UsageError("--failed finds no run in the journal", hint=_HINT)
    return Undone(earlier, address_of)


class Undone:
    """What an earlier run did not finish.

    Images are known by their destinations, so that a plan whose sources were corrected meanwhile has them, too.

    Args:
        run: the run.
        address_of: the address of the repository of a goal.
    """

    def __init__(self, run: EarlierRun, address_of: Callable[[Goal], str]) -> None:
        self.run = run
        self._address = address_of
        self._names = {copy: CopyName.parse(copy) for copy in run.failed}
        self._destinations = {_destination(copy): copy for copy, name in self._names.items() if not name.is_placeholder}
        self._addresses = {name.address for name in self._names.values()}
        self._unlisted = {name.address for name in self._names.values() if name.is_placeholder}

    @property
    def is_nothing(self) -> bool:
        """Whether it finished all."""
        return self.run.has_ended and not self.run.failed

    def takes(self, copy: Copy) -> bool:
        """Whether *copy* is a part of it."""
        if copy.key in self.run.finished:
            return False
        is_open = not self.run.has_ended or copy.repository.address in self._unlisted
        return is_open or _destination(copy.key) in self._destinations

    def repositories(self, plan: Plan) -> Mapping[str, Collection[str]]:
        """The repositories of each source registry that patterns can match, by host; empty if all must be listed."""
        if not self.run.has_ended:
            return {}
        named = [parse_remote(name.source) for name in self._names.values() if is_remote(name.source)]
        hosts = {entry.host for entry in plan.entries if entry.host}
        if not {reference.host for reference in named} <= hosts:
            return {}  # the plan has another registry than before
        return {host: {each.repository for each in named if each.host == host} for host in hosts}

    def part_of(self, plan: Plan) -> Plan:
        """What of *plan* can have a part in it."""
        if not self.run.has_ended:
            return plan
        entries = []
        for entry in plan.entries:
            goals = tuple(goal for goal in entry.goals if self._address(goal) in self._addresses)
            if goals:
                entries.append(replace(entry, goals=goals))
        return replace(plan, entries=tuple(entries))

    def gone(self, seen: Iterable[Copy], plan: Plan, unlisted: Iterable[PlanEntry], shard: Shard | None) -> list[str]:
        """What failed, and has no destination in the plan any more, by ``copy``.

        Args:
            seen: the copies that the plan asks for now.
            plan: what ``part_of`` has returned.
            unlisted: entries whose images are unknown.
            shard: the part of the plan that is migrated.
        """
        destinations = {_destination(copy.key) for copy in seen}
        unknown, known = self._goals(unlisted), self._goals(plan.entries)
        gone = []
        for copy, name in self._names.items():
            is_named = name.address in known if name.is_placeholder else _destination(copy) in destinations
            is_ours = shard is None or shard.takes(name.repository)
            if is_ours and not is_named and name.address not in unknown:
                gone.append(copy)
        return gone

    def _goals(self, entries: Iterable[PlanEntry]) -> set[str]:
        """The addresses of the repositories that entries go to."""
        return {self._address(goal) for entry in entries for goal in entry.goals}


def _destination(copy: str) -> str:
    return copy.rpartition(" -> ")[2]
