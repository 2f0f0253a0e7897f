"""Where ``asyncpush migrate`` runs, where its journal is, and which files it writes at its end."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from anyio import to_thread

from asyncpush.cli.dask import job_journal, parse_cluster
from asyncpush.cli.options import ShardOptions
from asyncpush.cli.report import check_output
from asyncpush.errors import UsageError
from asyncpush.migrate.dask.client import Cluster
from asyncpush.migrate.journals import read_place
from asyncpush.migrate.shard import PLACEHOLDER, Shard, at_shard, journal_beside, parse_shard, parse_share
from asyncpush.reference import S3Location

#: The journal of a plan that is read from standard input.
_NAMELESS = Path("asyncpush.journal")


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where a plan is migrated, and where the journal is.

    Attributes:
        cluster: the cluster of ``--dask``.
        shard: the only shard that this machine migrates.
        share: the part of ECR's quotas to keep to.
        journal: the journal of a run on this machine.
        journals: the journals of a run on a cluster.
    """

    cluster: Cluster | None
    shard: Shard | None
    share: float | None
    journal: Path | S3Location | None = None
    journals: str | None = None

    @classmethod
    def of(
        cls, parts: ShardOptions, journal: str | None, plan: str, *, dry: bool, no_resume: bool, failed: bool
    ) -> Places:
        """The places that options name.

        Args:
            parts: the options for shards.
            journal: the value of ``--journal``.
            plan: the plan's path, or ``-``.
            dry: whether nothing is sent.
            no_resume: whether there is no journal.
            failed: whether the journal says what is migrated.

        Raises:
            UsageError: an option has a wrong value, or makes no sense beside another.
        """
        cluster = parse_cluster(parts, dry=dry)
        if failed and no_resume:
            raise UsageError(
                "--failed takes from the journal what failed, and --no-resume uses none", hint="leave out one of them"
            )
        if failed and cluster is not None:
            raise UsageError(
                "--failed does not run on a cluster",
                hint="merge the journals of the shards (asyncpush journal merge), and leave out --dask",
            )
        shard = parse_shard(parts.shard, os.environ) if parts.shard is not None else None
        share = parse_share(parts.share) if parts.share is not None else None
        places = cls(cluster=cluster, shard=shard, share=share)
        if cluster is not None:
            path = None if plan == "-" else plan
            return replace(places, journals=job_journal(journal, path, cluster, no_resume=no_resume))
        return places if no_resume else replace(places, journal=_journal_place(journal, plan, parts, shard))

    async def output(self, given: str | None, option: str) -> Path | None:
        """The file that an option names, to be written at the end.

        Raises:
            UsageError: it can't be written.
        """
        if given is None:
            return None
        path = Path(at_shard(given, self.shard, option))
        await to_thread.run_sync(check_output, path, option)
        return path


def _journal_place(given: str | None, plan: str, parts: ShardOptions, shard: Shard | None) -> Path | S3Location:
    if given is None:
        return journal_beside(_NAMELESS if plan == "-" else Path(plan), shard)
    if shard is not None and parts.shard != str(shard) and PLACEHOLDER not in given:
        raise UsageError(
            f"--journal {given} is one journal for all shards", hint="write {shard} in it, such as plan-{shard}.journal"
        )
    return read_place(at_shard(given, shard, "--journal"))
