"""``asyncpush migrate --dask``: the job that the options describe, before and beside a run on one machine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from asyncpush.cli.options import ShardOptions
from asyncpush.errors import UsageError
from asyncpush.migrate.dask.client import SHARDS, Cluster
from asyncpush.migrate.dask.plain import Job
from asyncpush.migrate.dask.worker import LOGIN_VARIABLE, local_paths
from asyncpush.migrate.ledger import Options
from asyncpush.migrate.plan.model import Plan
from asyncpush.migrate.shard import PLACEHOLDER, journal_beside
from asyncpush.model import Platform
from asyncpush.settings import AwsConfiguration, Settings, SourceRegistry


def parse_cluster(parts: ShardOptions, *, dry: bool) -> Cluster | None:
    """The cluster of ``--dask``; None without it.

    Raises:
        UsageError: another option makes no sense with it, or without it.
    """
    if parts.dask is None:
        if parts.shards is not None:
            raise UsageError("--shards is for --dask", hint="give --shard I/N for one shard on this machine")
        return None
    if parts.shard is not None:
        raise UsageError("--dask runs all shards, and --shard is for one", hint="leave out one of them")
    if dry:
        raise UsageError("--dry-run needs no cluster", hint="leave out --dask")
    if parts.shards is not None and parts.shards < 1:
        raise UsageError(f"--shards is {parts.shards}", hint="give 1 or more")
    return Cluster.parse(parts.dask)


def job_journal(given: str | None, plan: str | None, cluster: Cluster, *, no_resume: bool) -> str | None:
    """Where the journals of all shards are, with ``{shard}`` in it; None for none.

    Raises:
        UsageError: workers on other machines need one that all of them reach, and none is given.
    """
    if no_resume:
        return None
    if given is None and not cluster.is_local:
        raise UsageError(
            "the workers of a Dask cluster need journals that each of them reaches",
            hint="give --journal 's3://BUCKET/KEY-{shard}', a path that all of them have, or --no-resume",
        )
    if given is None:
        beside = journal_beside(Path(plan) if plan else Path("asyncpush.journal"), None)
        given = str(beside.with_suffix(f".{PLACEHOLDER}.journal"))
    if PLACEHOLDER not in given:
        raise UsageError(
            f"--journal {given} is one journal for all shards", hint="write {shard} in it, such as plan-{shard}.journal"
        )
    return given if given.startswith("s3://") else str(Path(given).absolute())


def make_job(
    text: str,
    plan: Plan,
    parts: ShardOptions,
    *,
    journal: str | None,
    settings: Settings,
    options: Options,
    aws: AwsConfiguration,
    sources: Mapping[str, SourceRegistry],
    platforms: tuple[Platform, ...],
    create_repository: bool,
    strict: bool,
) -> Job:
    """What the workers of a cluster are given; blocks.

    Raises:
        UsageError: the login to the source registry would have to travel.
    """
    logins = {source.credentials for source in sources.values() if source.credentials is not None}
    own = os.environ.get(LOGIN_VARIABLE, "")
    if any(f"{login.username}:{login.password}" != own for login in logins):
        raise UsageError(
            "--src-creds is not sent to the workers of a cluster",
            hint=f"set {LOGIN_VARIABLE} here and in the environment of each worker",
        )
    return Job(
        version=version("asyncpush"),
        text=text,
        path=str(plan.path.absolute()) if plan.path else None,
        shards=parts.shards or SHARDS,
        settings=settings,
        options=options,
        aws=aws,
        sources={host: replace(source, credentials=None) for host, source in sources.items()},
        has_login=bool(logins),
        platforms=platforms,
        create_repository=create_repository,
        strict=strict,
        journal=journal,
        local_paths=local_paths(plan),
    )
