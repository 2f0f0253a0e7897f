"""Layers that outlive the process that sends them, and layers that go to several registries from one reading."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread

import asyncpush
from asyncpush import Registry, Settings
from asyncpush.emulator import Emulator
from asyncpush.engine.layer import push_layer, send_layer
from asyncpush.errors import AsyncpushError, DigestMismatchError
from asyncpush.events import Event, PartSent
from asyncpush.journal import SqliteJournal, open_journal
from asyncpush.model import Descriptor, Digest, PushedLayer
from asyncpush.protocols import Blob
from asyncpush.settings import MiB, SourceRegistry
from asyncpush.sources.blobs import BytesContent, ContentBlob
from asyncpush.sources.registry import open_pool
from support.aws import QUIRKS, aws, judge
from support.commands import Server
from support.emulator_client import received
from support.images import DockerSave, layer_tar
from support.registry_server import RegistryServer, running

SIZE = 23 * MiB
PARTS = 5  # of 5 MiB
DATA = random.Random(7).randbytes(SIZE)
DESCRIPTOR = Descriptor("application/vnd.oci.image.layer.v1.tar+gzip", Digest.of(DATA), SIZE)
SETTINGS = Settings(part_size=5 * MiB)


def local_blob() -> Blob:
    return ContentBlob("layer", DESCRIPTOR, BytesContent(DATA, "layer"))


@asynccontextmanager
async def remote_blob() -> AsyncIterator[tuple[Blob, RegistryServer]]:
    async with running() as server:
        server.blobs[str(DESCRIPTOR.digest)] = DATA
        registry = SourceRegistry(host=server.host, plain_http=True, anonymous=True)
        async with open_pool({server.host: registry}) as remotes:
            yield remotes.at(server.host).blob("team/app", DESCRIPTOR), server


@asynccontextmanager
async def connected(
    emulator: Emulator, journal: SqliteJournal | None, emit: Callable[[Event], None] = lambda _: None
) -> AsyncIterator[Registry]:
    connecting = asyncpush.connect(aws=aws(emulator.endpoint_url), settings=SETTINGS, emit=emit, journal=journal)
    async with connecting as registry:
        await registry.account()
        yield registry


async def push(emulator: Emulator, blob: Blob, journal: Path, *, stop_after: int = 1000) -> PushedLayer | None:
    """Push *blob*, and cancel it once so many parts were acknowledged, as if the process had ended; None if it was."""
    parts = 0
    with anyio.CancelScope() as scope:

        def emit(event: Event) -> None:
            nonlocal parts
            parts += isinstance(event, PartSent) and event.sent > 0
            if parts == stop_after:
                scope.cancel()

        async with open_journal(journal) as kept, connected(emulator, kept, emit) as registry:
            repository = registry.repository("team/app")
            await repository.create()
            return await push_layer(repository, blob, registry.context)
    return None


@pytest.mark.parametrize("stop_after", [1, 2, 4, 5])
async def test_a_local_layer_goes_on_where_it_was(emulator: Emulator, tmp_path: Path, stop_after: int) -> None:
    assert await push(emulator, local_blob(), tmp_path / "journal", stop_after=stop_after) is None
    pushed = await push(emulator, local_blob(), tmp_path / "journal")

    assert pushed is not None
    assert pushed.descriptor == DESCRIPTOR
    counts = emulator.requests.counts()
    assert counts["InitiateLayerUpload"] == 1
    # The last acknowledgement may not have been noted: then its part is offered, and refused, once more.
    assert PARTS <= counts["UploadLayerPart"] <= PARTS + 2
    assert pushed.sent <= SIZE - (stop_after - 1) * 5 * MiB


class CountedReader:
    """Counts the bytes that are read."""

    def __init__(self, reader: Any, counts: list[int]) -> None:
        self._reader, self._counts = reader, counts

    @property
    def consumed(self) -> int:
        return self._reader.consumed

    def readinto(self, buffer: memoryview) -> int:
        self._counts.append(count := self._reader.readinto(buffer))
        return count

    def read_at(self, start: int, buffer: memoryview) -> memoryview:
        found = self._reader.read_at(start, buffer)
        self._counts.append(len(found))
        return found


@dataclass(frozen=True)
class CountedContent:
    """DATA, whose readers count."""

    counts: list[int]
    label: str = "layer"
    size: int = SIZE

    @contextmanager
    def open(self) -> Iterator[CountedReader]:
        with BytesContent(DATA, "layer").open() as reader:
            yield CountedReader(reader, self.counts)


async def test_a_local_layer_is_not_read_again_up_to_where_ecr_is(emulator: Emulator, tmp_path: Path) -> None:
    """Its digest is known, and ECR compares it: what ECR has need not be read."""
    assert await push(emulator, local_blob(), tmp_path / "journal", stop_after=4) is None
    counts: list[int] = []
    pushed = await push(emulator, ContentBlob("layer", DESCRIPTOR, CountedContent(counts)), tmp_path / "journal")

    assert pushed is not None
    assert pushed.descriptor == DESCRIPTOR
    assert sum(counts) <= SIZE - 3 * 5 * MiB


@pytest.mark.parametrize("value", ["1", "'many'", "-5", "x'00'"])
async def test_a_journal_with_an_impossible_part_size_costs_a_new_upload(
    emulator: Emulator, tmp_path: Path, value: str
) -> None:
    """A journal with an impossible part size costs no more than a new upload."""
    path = tmp_path / "journal"
    assert await push(emulator, local_blob(), path, stop_after=1) is None
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(f"UPDATE upload SET part_size = {value}")
    emulator.requests.clear()

    pushed = await push(emulator, local_blob(), path)

    assert pushed is not None
    assert emulator.requests.counts()["UploadLayerPart"] <= PARTS + 2


@pytest.mark.parametrize("stop_after", [3, 4])
async def test_a_remote_layer_goes_on_where_it_was_and_is_not_read_again(
    emulator: Emulator, tmp_path: Path, stop_after: int
) -> None:
    async with remote_blob() as (blob, server):
        assert await push(emulator, blob, tmp_path / "journal", stop_after=stop_after) is None
        pushed = await push(emulator, blob, tmp_path / "journal")
        ranges = [seen.headers.get("Range") for seen in server.asked("GET", "/blobs/")]

    assert pushed is not None
    assert emulator.requests.counts()["InitiateLayerUpload"] == 1
    assert PARTS <= emulator.requests.counts()["UploadLayerPart"] <= PARTS + 2
    first, *again = ranges
    assert first is None
    # Only one part short of the end ECR may have the rest, too, though nobody heard of it.
    assert again or stop_after == PARTS - 1
    assert all(int((each or "bytes=0-")[len("bytes=") : -1]) >= (stop_after - 1) * 5 * MiB for each in again)


class Forgetful:
    """A journal that has lost what was acknowledged last."""

    def __init__(self, journal: SqliteJournal, received: int) -> None:
        self._journal, self._received = journal, received

    def __getattr__(self, name: str) -> object:
        return getattr(self._journal, name)

    async def part_acknowledged(self, repository: str, identity: str, upload: object, received: int) -> None:
        if received <= self._received:
            await self._journal.part_acknowledged(repository, identity, upload, received)


@pytest.mark.parametrize("kind", ["local", "remote"])
async def test_ecr_says_how_far_it_has_come_where_the_journal_does_not(
    emulator: Emulator, tmp_path: Path, kind: str
) -> None:
    async with remote_blob() as (remote, _):
        blob = remote if kind == "remote" else local_blob()
        parts = 0
        with anyio.CancelScope() as scope:

            def emit(event: Event) -> None:
                nonlocal parts
                parts += isinstance(event, PartSent) and event.sent > 0
                if parts == 4:
                    scope.cancel()

            async with open_journal(tmp_path / "journal") as kept:
                forgetful = Forgetful(kept, 5 * MiB)
                async with connected(emulator, forgetful, emit) as registry:
                    repository = registry.repository("team/app")
                    await repository.create()
                    await push_layer(repository, blob, registry.context)
        before = emulator.requests.counts()["UploadLayerPart"]
        pushed = await push(emulator, blob, tmp_path / "journal")

    assert pushed is not None
    assert pushed.descriptor.digest == DESCRIPTOR.digest
    counts = emulator.requests.counts()
    assert counts["InitiateLayerUpload"] == 1
    assert counts["UploadLayerPart"] - before <= 3, "one or two that are refused, and the rest"
    assert (await received(emulator))["UploadLayerPart"]["400"] < 1000, "no part goes again to find that out"


async def test_an_upload_that_ecr_does_not_know_any_more_begins_anew(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    async with Emulator(tmp_path / "one", fsync=False, quirks=QUIRKS) as emulator:
        assert await push(emulator, local_blob(), journal, stop_after=3) is None
        port = int(emulator.endpoint_url.rpartition(":")[2])
    async with Emulator(tmp_path / "other", fsync=False, quirks=QUIRKS, port=port) as emulator:
        pushed = await push(emulator, local_blob(), journal)

        assert pushed is not None
        assert pushed.sent == SIZE
        assert emulator.requests.counts()["InitiateLayerUpload"] == 1


async def test_a_resumed_layer_whose_source_has_changed_is_not_completed(emulator: Emulator, tmp_path: Path) -> None:
    other = random.Random(8).randbytes(SIZE)
    async with remote_blob() as (blob, server):
        assert await push(emulator, blob, tmp_path / "journal", stop_after=2) is None
        server.blobs[str(DESCRIPTOR.digest)] = other
        with pytest.raises(
            DigestMismatchError, match=r"team/app is damaged: .*; the registry, or a proxy in front of it"
        ):
            await push(emulator, blob, tmp_path / "journal")

    async with connected(emulator, None) as registry:
        assert not await registry.repository("team/app").available([DESCRIPTOR.digest])


async def test_several_registries_get_a_layer_from_one_reading(tmp_path: Path) -> None:
    async with (
        Emulator(tmp_path / "one", fsync=False) as one,
        Emulator(tmp_path / "other", fsync=False) as other,
        remote_blob() as (blob, server),
        connected(one, None) as first,
        connected(other, None) as second,
    ):
        repositories = [first.repository("team/app"), second.repository("team/app"), second.repository("team/copy")]
        for repository in repositories:
            await repository.create()
        outcomes = await send_layer(repositories, blob, first.context)

        assert [getattr(outcome, "descriptor", outcome) for outcome in outcomes] == [DESCRIPTOR] * 3
        assert len(server.asked("GET", "/blobs/")) == 1
        for repository in repositories:
            assert await repository.available([DESCRIPTOR.digest])
        assert first.context.memory.held == 0


@pytest.mark.parametrize("kind", ["local", "remote"])
async def test_one_registry_that_fails_does_not_stop_the_others(emulator: Emulator, tmp_path: Path, kind: str) -> None:
    async with (
        Emulator(tmp_path / "other", fsync=False) as other,
        remote_blob() as (remote, _),
        connected(emulator, None) as first,
        connected(other, None) as second,
    ):
        blob = remote if kind == "remote" else local_blob()
        there, missing = first.repository("team/app"), second.repository("team/app")
        await there.create()
        outcomes = await send_layer([missing, there], blob, first.context)

        assert isinstance(outcomes[0], AsyncpushError)
        assert isinstance(outcomes[1], PushedLayer)
        assert await there.available([DESCRIPTOR.digest])
        assert first.context.memory.held == 0


async def test_push_remembers_in_the_journal_that_it_is_given(server: Server, tmp_path: Path) -> None:
    layer = layer_tar("of some size", 3_000_000)
    archive = tmp_path / "app.tar"
    archive.write_bytes(DockerSave().image(layer, tags=["journaled/app:1"]).archive())
    journal = tmp_path / "push.journal"
    words = ("push", archive, "journaled/app:1", "--create-repository", "--journal", journal, "--output", "json")
    first = await to_thread.run_sync(lambda: server.run(*words))
    assert first.status == 0, first.err

    again = ("push", archive, "journaled/app:2", "--journal", journal, "--output", "json")
    second = await to_thread.run_sync(lambda: server.run(*again))
    assert second.status == 0, second.err
    assert json.loads(first.out)["totals"]["layersSent"] == 2
    assert json.loads(second.out)["totals"]["layersSent"] == 0, "what the layer became is remembered"

    client = judge(server.url)
    await to_thread.run_sync(lambda: client.delete_repository(repositoryName="journaled/app", force=True))
    last = ("push", archive, "journaled/app:3", "--create-repository", "--journal", journal, "--output", "json")
    third = await to_thread.run_sync(lambda: server.run(*last))
    assert third.status == 0, third.err
    totals = json.loads(third.out)["totals"]
    assert (totals["layersSent"], totals["layersPresent"], totals["bytesPresent"]) == (2, 0, 0), "ECR lacked them"
