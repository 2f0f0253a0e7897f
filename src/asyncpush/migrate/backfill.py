"""ECR's own copy of existing images, where it can do what a plan asks for: ``aws ecr start-replication-backfill``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from asyncpush.api import partition_of
from asyncpush.errors import AsyncpushError
from asyncpush.events import Notice
from asyncpush.migrate.ledger import MigrationContext
from asyncpush.migrate.plan.model import PlanEntry
from asyncpush.migrate.plan.tags import TagRules
from asyncpush.reference import parse_registry
from asyncpush.sources.registry import is_ecr


@dataclass(frozen=True, slots=True)
class _Place:
    """The account and region of a private registry, and the partition that they are in."""

    account: str
    region: str
    partition: str

    def __str__(self) -> str:
        return f"{self.account} in {self.region}"


async def note_backfill(entries: Iterable[PlanEntry], context: MigrationContext) -> None:
    """In a dry run, tell between which registries ECR can copy some of *entries* itself, and how.

    It copies repositories as a whole and under their own names, within a partition.
    """
    if not context.options.dry:
        return
    found: Counter[tuple[_Place, _Place]] = Counter()
    for entry in entries:
        if not _is_whole(entry) or not context.ecr_sources.has(entry.host):
            continue
        source = await _source(entry.host, context)
        for goal in entry.goals:
            opened = context.targets[goal.target].registry
            account = await opened.account()
            if source is None or account is None or opened.name.service != "ecr":
                continue
            target = _Place(account, opened.region, partition_of(opened.region))
            if goal.tag is None and goal.repository == entry.repository and target.partition == source.partition:
                found[source, target] += source != target
    for (source, target), count in found.items():
        if not count:
            continue
        repositories = f"{count} of these repositories" if count > 1 else "one of these repositories"
        text = (
            f"ECR can copy {repositories} from {source} to {target} itself, if replication is configured there: aws "
            f"ecr start-replication-backfill --region {source.region} --destination region={target.region},registryId="
            f"{target.account}; it copies whole repositories under the same names, and can't rename them or choose tags"
        )
        context.emit(Notice(text))


def _is_whole(entry: PlanEntry) -> bool:
    """Whether *entry* asks for all of a repository, as it is."""
    return (
        entry.kind == "registry"
        and entry.reference is None
        and entry.tags == TagRules()
        and not entry.platforms
        and entry.referrers
    )


async def _source(host: str, context: MigrationContext) -> _Place | None:
    if is_ecr(host):
        name = parse_registry(host)
        return _Place(name.id or "", name.region or "", partition_of(name.region or ""))
    try:
        opened = await context.ecr_sources.at(host)
        account = await opened.account()
    except AsyncpushError:
        return None  # reading the images tells what is wrong
    return _Place(account, opened.region, partition_of(opened.region)) if account else None
