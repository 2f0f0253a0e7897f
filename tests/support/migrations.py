"""Migrations in tests: a source that misbehaves on request, a plan, and what arrived."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from anyio import to_thread

from asyncpush.emulator import Emulator
from asyncpush.errors import SourceError
from asyncpush.events import Event, ignore
from asyncpush.journal import open_journal
from asyncpush.migrate.ledger import Options
from asyncpush.migrate.plan.load import read_plan
from asyncpush.migrate.report import CopyResult, Report
from asyncpush.migrate.run import migrate_plan
from asyncpush.settings import RetryPolicy, Settings
from support.aws import judge
from support.images import Json, Layout
from support.registry_server import QUICK, RegistryServer, running

Emit = Any


@dataclass
class Bench:
    """A source, a target and a folder for the plan and its journal."""

    source: RegistryServer
    emulator: Emulator
    folder: Path
    layout: Layout = field(default_factory=Layout)

    def hold(self, repository: str, tag: str, *layers: bytes) -> Json:
        """Add an image of these layers to the source."""
        return self.source.hold(self.layout, self.layout.image(*layers), repository, tag)

    def plan(self, *images: Json, **members: object) -> Path:
        """Write a plan for these images, from the source to the emulator."""
        host = self.source.host
        document = {
            "version": 1,
            "registries": {host: {"plain_http": True, "credentials": {"anonymous": True}}},
            "targets": {"here": {"region": "eu-west-1", "endpoint_url": self.emulator.endpoint_url}},
            "defaults": {"targets": ["here"], "repository": {"create": True}},
            "images": [{**image, "from": f"{host}/{image['from']}"} for image in images],
            **members,
        }
        path = self.folder / "plan.json"
        path.write_text(json.dumps(document))
        return path

    async def run(
        self,
        path: Path,
        *,
        journal: bool = True,
        settings: Settings | None = None,
        emit: Emit = ignore,
        retry: RetryPolicy = QUICK,
        **options: Any,
    ) -> Report:
        """Migrate what *path* says."""
        plan, chosen = await read_plan(path), Options(**{"rest": 0.01, **options})
        run = partial(migrate_plan, plan, settings=settings or Settings(), emit=emit, options=chosen, retry=retry)
        if not journal:
            return await run()
        async with open_journal(self.folder / "plan.journal") as kept:
            return await run(journal=kept)

    async def stored(self, repository: str) -> dict[str, str]:
        """What each tag of a repository names, as boto3 finds it."""

        def ask() -> dict[str, str]:
            details = judge(self.emulator.endpoint_url).describe_images(repositoryName=repository)["imageDetails"]
            return {tag: each["imageDigest"] for each in details for tag in each.get("imageTags", [])}

        return await to_thread.run_sync(ask)

    async def mounting(self) -> None:
        """Enable blob mounting at the target."""
        client = judge(self.emulator.endpoint_url)
        await to_thread.run_sync(lambda: client.put_account_setting(name="BLOB_MOUNTING", value="ENABLED"))


@asynccontextmanager
async def bench(folder: Path, emulator: Emulator) -> AsyncIterator[Bench]:
    """A source beside *emulator*, which is the target."""
    async with running() as source:
        yield Bench(source, emulator, folder)


def outcomes(report: Report) -> dict[str, str]:
    """How each copy ended, by its destination."""
    return {result.copy.destination: result.outcome for result in report.results}


def only(report: Report, destination: str) -> CopyResult:
    """The result of one copy."""
    [result] = [result for result in report.results if result.copy.destination == destination]
    return result


def layer(number: int, size: int = 20_000) -> bytes:
    """An uncompressed layer that does not compress well."""
    import random

    from support.images import tar

    return tar({f"srv/{number}": random.Random(number).randbytes(size)})


def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The emulator's credentials in the environment."""
    for name, value in {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}.items():
        monkeypatch.setenv(name, value)


def reasons(report: Report) -> Sequence[str]:
    """Why copies failed."""
    return [str(result.error) for result in report.failed]


__all__ = ["Bench", "Event", "SourceError", "bench", "keys", "layer", "only", "outcomes", "reasons"]
