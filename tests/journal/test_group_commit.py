"""What many tasks tell the journal goes in together; failures and cancellation leave nothing half, and it goes on."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from asyncpush.errors import JournalError
from asyncpush.journal import open_journal
from support.journals import APP, HOST, OTHER, UPLOAD, digest, layer, manifest


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.journal"


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[sqlite3.Connection]:
    """All connections that are opened from now on."""
    opened: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def connect_and_tell(*args, **kwargs):
        opened.append(connect(*args, **kwargs))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", connect_and_tell)
    return opened


async def test_tasks_that_write_at_the_same_time_share_a_transaction(path: Path, connections) -> None:
    statements: list[str] = []
    async with open_journal(path) as journal:
        connections[-1].set_trace_callback(statements.append)
        async with anyio.create_task_group() as tg:
            for number in range(100):
                tg.start_soon(journal.layer_completed, APP, str(digest(str(number))), layer(str(number)))
        commits = statements.count("COMMIT")

        assert len(await journal.completed(APP)) == 100
    assert 1 <= commits <= 3


async def test_what_fails_alone_fails_nobody_else(path: Path) -> None:
    failures: list[Exception] = []
    async with open_journal(path) as journal:

        async def write(repository: str) -> None:
            try:
                await journal.layer_completed(repository, str(digest("a")), layer("a"))
            except ValueError as error:
                failures.append(error)

        async with anyio.create_task_group() as tg:
            for repository in (APP, "can't be\ud800 encoded", OTHER):
                tg.start_soon(write, repository)

        assert len(failures) == 1
        assert len(await journal.completed(APP)) == len(await journal.completed(OTHER)) == 1


async def test_a_full_disk_is_one_line_and_what_was_acknowledged_stays(path: Path, connections) -> None:
    async with open_journal(path) as journal:
        await journal.layer_completed(APP, str(digest("a")), layer("a"))

        async def limit(pages: int) -> None:
            await to_thread.run_sync(connections[-1].execute, f"PRAGMA max_page_count = {pages}")

        await limit(1)
        lost = ["x" * 50_000, "y" * 50_000]
        failures: list[JournalError] = []

        async def begin(identity: str) -> None:
            try:
                await journal.upload_begun(APP, identity, UPLOAD, 1)
            except JournalError as error:
                failures.append(error)

        async with anyio.create_task_group() as tg:
            for identity in lost:
                tg.start_soon(begin, identity)
        assert len(failures) == len(set(map(id, failures))) == 2
        for error in failures:
            assert str(error) == (
                f"the journal {path} can't be written: database or disk is full; "
                "free space on its disk; run the same command again to resume"
            )
        await limit(1_000_000)
        await journal.layer_completed(APP, str(digest("b")), layer("b"))

    async with open_journal(path) as journal:
        assert await journal.completed(APP) == {digest("a"), digest("b")}
        assert [await journal.open_upload(APP, identity) for identity in lost] == [None, None]


async def test_a_journal_that_was_deleted_records_nothing_in_vain(path: Path) -> None:
    async with open_journal(path) as journal:
        await journal.layer_completed(APP, str(digest("a")), layer("a"))
        await to_thread.run_sync(path.unlink)
        with pytest.raises(JournalError, match=r"was deleted during the run; .* run the same command again"):
            await journal.layer_completed(APP, str(digest("b")), layer("b"))


async def test_a_cancelled_write_is_wholly_there_and_the_journal_goes_on(path: Path) -> None:
    async with open_journal(path) as journal:
        # Somebody else holds the file's lock, so that the transaction is on its way when its task is cancelled.
        blocker = await to_thread.run_sync(lambda: sqlite3.connect(path, check_same_thread=False))
        await to_thread.run_sync(blocker.execute, "BEGIN IMMEDIATE")
        returned = []

        async def put() -> None:
            await journal.image_put(APP, manifest("config", "a", "b"), "1")
            returned.append("put")

        async def begin() -> None:
            await journal.begin_run("plan", fresh=False)
            returned.append("begun")

        async with anyio.create_task_group() as tg:
            tg.start_soon(put)
            await anyio.wait_all_tasks_blocked()
            tg.start_soon(begin)  # waits for the next transaction
            await anyio.wait_all_tasks_blocked()
            tg.cancel_scope.cancel()
        assert returned == []
        await to_thread.run_sync(blocker.close)

        assert await journal.completed(APP) == {digest("config"), digest("a"), digest("b")}
        assert (await journal.begin_run("plan", fresh=False)).resumed

    async with open_journal(path) as journal:
        assert len(await journal.completed(APP)) == 3


async def test_cancelling_all_closes_the_journal_with_all_that_it_was_told(path: Path) -> None:
    with anyio.CancelScope() as scope:
        async with open_journal(path) as journal, anyio.create_task_group() as tg:
            for number in range(10):
                tg.start_soon(journal.layer_completed, APP, str(digest(str(number))), layer(str(number)))
            await anyio.wait_all_tasks_blocked()
            scope.cancel()

    assert scope.cancelled_caught
    async with open_journal(path) as journal:
        assert len(await journal.completed(APP)) == 10


async def test_an_error_of_the_block_comes_out_as_it_is(path: Path) -> None:
    with pytest.raises(LookupError, match="the block's"):
        async with open_journal(path) as journal:
            raise LookupError("the block's")
    with pytest.raises(JournalError, match="is closed"):
        await journal.upload_lost(APP, "blob")


def overwrite_pages(path: Path, connection: sqlite3.Connection) -> None:
    """Damage all pages but the first, and let SQLite forget those that it has in memory."""
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))
    connection.execute("PRAGMA shrink_memory")


async def test_damage_that_shows_late_says_what_to_do(path: Path, connections) -> None:
    async with open_journal(path) as journal, anyio.create_task_group() as tg:
        for number in range(1000):
            tg.start_soon(journal.layer_completed, APP, str(digest(str(number))), layer(str(number)))

    async with open_journal(path) as journal:
        await to_thread.run_sync(overwrite_pages, path, connections[-1])
        with pytest.raises(JournalError) as failure:
            await journal.mount_sources(HOST, [digest("1")])

    assert str(failure.value).startswith(f"the journal {path} is damaged: ")
    assert failure.value.hint.startswith("delete it, and run.journal-wal")
