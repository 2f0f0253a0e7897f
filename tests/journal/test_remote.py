"""A journal in S3, as moto's server keeps it: fetched, put back, and whole whatever happens."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from asyncpush.errors import JournalError, UsageError
from asyncpush.events import Event, Notice
from asyncpush.journal import SqliteJournal, open_journal
from asyncpush.journal.remote import fetched, open_remote_journal
from asyncpush.reference import S3Location
from asyncpush.settings import AwsConfiguration
from support.commands import run_beside
from support.events import Events
from support.journals import APP, OTHER, digest, layer
from support.migrations import Bench
from support.migrations import layer as image_layer
from support.s3 import Bucket

AWS = AwsConfiguration(region="us-east-1")
PLACE = S3Location("bucket", "plan/0-of-2.journal")


def layers(data: bytes, folder: Path) -> int:
    """How many layers a copy of a journal has, as sqlite3 reads it."""
    file = folder / "copy"
    file.write_bytes(data)
    connection = sqlite3.connect(file)
    [(verdict,)] = connection.execute("PRAGMA integrity_check")
    assert verdict == "ok"
    [(count,)] = connection.execute("SELECT count(*) FROM layer")
    connection.close()
    return int(count)


async def complete(journal: SqliteJournal, *words: str, repository: str = APP) -> None:
    for word in words:
        await journal.layer_completed(repository, str(digest(word)), layer(word))


async def test_a_journal_goes_on_where_the_last_attempt_put_it_back(bucket: Bucket, tmp_path: Path) -> None:
    async with open_remote_journal(PLACE, AWS, Events()) as remote:
        assert await to_thread.run_sync(bucket.keys) == [PLACE.key], "a missing permission shows at the start"
        await complete(remote.journal, "a", "b")
    assert remote.failure is None
    assert layers(await to_thread.run_sync(bucket.get, PLACE.key), tmp_path) == 2

    async with open_remote_journal(PLACE, AWS, Events()) as remote:
        assert await remote.journal.completed(APP) == {digest("a"), digest("b")}


async def test_a_copy_is_put_back_regularly_while_the_journal_is_written(bucket: Bucket, tmp_path: Path) -> None:
    async with open_remote_journal(PLACE, AWS, Events(), interval=0.05) as remote:
        await complete(remote.journal, "a", "b", "c")
        with anyio.fail_after(20):
            while layers(await to_thread.run_sync(bucket.get, PLACE.key), tmp_path) < 3:  # noqa: ASYNC110 - S3 tells nobody
                await anyio.sleep(0.02)


async def test_a_cancelled_run_puts_its_journal_back(bucket: Bucket, tmp_path: Path) -> None:
    with anyio.CancelScope() as scope:
        async with open_remote_journal(PLACE, AWS, Events()) as remote:
            await complete(remote.journal, "a")
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert layers(await to_thread.run_sync(bucket.get, PLACE.key), tmp_path) == 1


async def test_a_cancelled_run_says_that_its_journal_is_lost(bucket: Bucket) -> None:
    events = Events()
    with anyio.CancelScope() as scope:
        async with open_remote_journal(PLACE, AWS, events) as remote:
            await complete(remote.journal, "a")
            await to_thread.run_sync(bucket.remove, PLACE.key)
            scope.cancel()
            await anyio.sleep_forever()
    [notice] = [event for event in events if isinstance(event, Notice)]
    assert notice.text.startswith(f"the journal can't be put to {PLACE}: ")


async def test_two_attempts_at_once_leave_a_whole_journal(bucket: Bucket, tmp_path: Path) -> None:
    async with (
        open_remote_journal(PLACE, AWS, Events(), interval=0.02) as first,
        open_remote_journal(PLACE, AWS, Events(), interval=0.02) as second,
    ):
        for number in range(10):
            await complete(first.journal, f"first {number}")
            await complete(second.journal, f"second {number}", f"more {number}")
            layers(await to_thread.run_sync(bucket.get, PLACE.key), tmp_path)
    assert layers(await to_thread.run_sync(bucket.get, PLACE.key), tmp_path) in (10, 20), "one or the other"


async def test_an_error_of_the_block_comes_out_as_it_is(bucket: Bucket) -> None:
    with pytest.raises(ZeroDivisionError):
        async with open_remote_journal(PLACE, AWS, Events()):
            raise ZeroDivisionError
    assert await to_thread.run_sync(bucket.keys) == [PLACE.key]


async def test_a_journal_that_is_only_read_is_not_put(bucket: Bucket) -> None:
    async with open_remote_journal(PLACE, AWS, Events(), writes=False) as remote:
        await complete(remote.journal, "a")
    assert await to_thread.run_sync(bucket.keys) == []


async def test_an_object_that_is_no_journal_is_named_and_kept(bucket: Bucket) -> None:
    await to_thread.run_sync(bucket.put, PLACE.key, b"rubbish" * 1000)
    with pytest.raises(UsageError) as raised:
        async with open_remote_journal(PLACE, AWS, Events()):
            pytest.fail("it opens")
    assert str(raised.value).startswith(f"{PLACE} is not an asyncpush journal")
    assert await to_thread.run_sync(bucket.get, PLACE.key) == b"rubbish" * 1000


@pytest.mark.parametrize("name", ["missing", "no bucket's name"])
async def test_a_bucket_that_does_not_exist_fails_at_the_start(bucket: Bucket, name: str) -> None:
    with pytest.raises((JournalError, UsageError)) as raised:
        async with open_remote_journal(S3Location(name, "key"), AWS, Events()):
            pytest.fail("it opens")
    assert name in str(raised.value)


async def test_a_copy_that_fails_is_said_and_the_run_goes_on(bucket: Bucket) -> None:
    said = anyio.Event()

    def emit(event: Event) -> None:
        assert isinstance(event, Notice)
        assert event.text.endswith("asyncpush tries again in 0.02 seconds")
        said.set()

    async with open_remote_journal(PLACE, AWS, emit, interval=0.02) as remote:
        await to_thread.run_sync(bucket.remove, PLACE.key)
        await complete(remote.journal, "a")
        with anyio.fail_after(20):
            await said.wait()
    assert remote.failure is not None
    assert f"the journal can't be put to {PLACE}" in str(remote.failure)


async def test_all_journals_below_a_prefix_are_fetched(bucket: Bucket, tmp_path: Path) -> None:
    for name in ("0-of-2", "1-of-2"):
        async with open_remote_journal(S3Location("bucket", f"plan/{name}"), AWS, Events()) as remote:
            await complete(remote.journal, name)
    async with fetched(S3Location("bucket", "plan/"), AWS) as found:
        names = [name for name, _ in found]
        for (_, path), name in zip(found, ("0-of-2", "1-of-2"), strict=True):
            async with open_journal(path) as journal:
                assert await journal.completed(APP) == {digest(name)}
    assert names == ["s3://bucket/plan/0-of-2", "s3://bucket/plan/1-of-2"]
    with pytest.raises(UsageError, match="there is no journal below s3://bucket/other/"):
        async with fetched(S3Location("bucket", "other/"), AWS):
            pytest.fail("it is there")


async def test_a_migration_keeps_its_journal_in_s3_and_merges_it(bucket: Bucket, here: Bench) -> None:
    for number in range(3):
        here.hold(f"team/app-{number}", "1", image_layer(number))
    path = here.plan(*({"from": f"team/app-{number}"} for number in range(3)))
    place = "s3://bucket/plan/{shard}"
    dry = await run_beside("migrate", path, "--shard", "0/2", "--journal", place, "--dry-run")
    assert (dry.status, await to_thread.run_sync(bucket.keys)) == (0, []), dry.err
    for shard in ("0/2", "1/2"):
        done = await run_beside("migrate", path, "--shard", shard, "--journal", place)
        assert done.status == 0, done.err
    objects = await to_thread.run_sync(bucket.keys)
    into, page = path.with_name("all.journal"), path.with_name("report.html")
    shown = await run_beside("report", "s3://bucket/plan/0-of-2", "--html", page)
    assert (shown.status, shown.err, '"outcome":"pushed"' in page.read_text()) == (0, "", True)
    summary = await run_beside("journal", "show", "s3://bucket/plan/0-of-2", "--runs", "--output", "json")
    rows = await run_beside("journal", "export", "s3://bucket/plan/0-of-2")
    assert (len(json.loads(summary.out)["runs"]), summary.err, rows.err) == (1, "", "")
    assert "team/app" in rows.out
    missing = await run_beside("migrate", path, "--failed", "--journal", "s3://bucket/none")
    assert (missing.status, "there is no journal s3://bucket/none" in missing.err) == (2, True)
    assert await to_thread.run_sync(bucket.keys) == objects
    merged = await run_beside("journal", "merge", "s3://bucket/plan/", "--into", into)
    assert merged.status == 0, merged.err
    assert sorted(line.partition("@")[0] for line in merged.out.splitlines()) == [f"team/app-{n}:1" for n in range(3)]
    sent = here.emulator.requests.counts()["UploadLayerPart"]
    assert (await run_beside("migrate", path, "--journal", into)).status == 0
    assert here.emulator.requests.counts()["UploadLayerPart"] == sent
    assert OTHER not in merged.out
