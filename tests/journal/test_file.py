"""The journal's file: one process at a time has it, and a file that is none, is damaged or can't be used is refused."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from anyio import to_thread

from asyncpush.errors import AsyncpushError, JournalError, UsageError
from asyncpush.journal import open_journal
from asyncpush.journal.database import open_database, opening
from asyncpush.journal.export import rows, summarize
from asyncpush.journal.sql import begin_run, load
from asyncpush.model import Descriptor, Digest, Upload
from support.commands import run_cli

APP = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/team/app"
A = Digest.of(b"a")

HOLDER = """
import anyio, pathlib, sys
from asyncpush.journal import open_journal
async def main():
    async with open_journal(pathlib.Path(sys.argv[1])):
        print("open", flush=True)
        await anyio.sleep_forever()
anyio.run(main)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.journal"


async def _make(path: Path, layers: int) -> None:
    async with open_journal(path) as journal, anyio.create_task_group() as tg:
        for number in range(layers):
            digest = Digest.of(b"%d" % number)
            tg.start_soon(journal.layer_completed, APP, str(digest), Descriptor("application/x", digest, 7))


def make(path: Path, layers: int = 1) -> None:
    anyio.run(_make, path, layers)


async def _count(path: Path) -> int:
    async with open_journal(path) as journal:
        return len(await journal.completed(APP))


def count(path: Path) -> int:
    return anyio.run(_count, path)


def refusal(path: Path) -> AsyncpushError:
    """What is said when it is opened."""
    with pytest.raises(AsyncpushError) as refused:
        make(path, layers=0)
    assert len(str(refused.value).splitlines()) == 1
    assert refused.value.hint
    return refused.value


def beside(path: Path) -> set[str]:
    return {file.name for file in path.parent.iterdir()}


def run_sql(path: Path, script: str) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(script)
    connection.close()


async def test_a_second_one_is_refused_at_once_in_the_same_process_too(path: Path) -> None:
    async with open_journal(path) as journal:
        with pytest.raises(UsageError) as refused:
            await _count(path)
        assert refused.value.message == f"another process uses the journal {path}"
        await journal.layer_completed(APP, str(A), Descriptor("application/x", A, 7))
    assert await _count(path) == 1


def test_the_lock_dies_with_the_process(path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"open\n"
        assert "another process uses" in refusal(path).message
        holder.send_signal(signal.SIGKILL)
    assert count(path) == 0


def test_an_empty_file_becomes_a_journal_also_through_a_symbolic_link(tmp_path: Path, path: Path) -> None:
    path.touch()
    link = tmp_path / "link"
    link.symlink_to(path)
    make(link)

    assert link.is_symlink()
    assert beside(path) == {"link", "run.journal", "run.journal-lock"}
    assert count(path) == 1


def test_what_a_kill_has_left_of_a_new_journal_is_in_nobodys_way(path: Path) -> None:
    for name in ("-new", "-new-journal"):
        path.with_name(f"{path.name}{name}").write_bytes(b"half of a journal")
    make(path)

    assert beside(path) == {"run.journal", "run.journal-lock"}


def make_text(path: Path) -> None:
    path.write_text("not yours")


def make_long_text(path: Path) -> None:
    path.write_bytes(bytes(200_000))


def make_other_database(path: Path) -> None:
    run_sql(path, "CREATE TABLE other (x); PRAGMA user_version = 1;")


def make_other_wal_database(path: Path) -> None:
    run_sql(path, "PRAGMA journal_mode = WAL; CREATE TABLE other (x); PRAGMA application_id = 77;")


@pytest.mark.parametrize("write", [make_text, make_long_text, make_other_database, make_other_wal_database])
def test_a_foreign_file_is_left_as_it_is(path: Path, write: Callable[[Path], None]) -> None:
    write(path)
    before = path.read_bytes()

    error = refusal(path)

    assert isinstance(error, UsageError)
    assert error.message == f"{path} is not an asyncpush journal"
    assert path.read_bytes() == before
    assert beside(path) == {"run.journal"}


def test_a_foreign_database_is_refused_also_where_a_journal_was(path: Path) -> None:
    make(path)
    path.unlink()
    make_other_database(path)

    assert "is not an asyncpush journal" in (refusal(path)).message


@pytest.mark.parametrize("kind", ["directory", "pipe"])
def test_what_is_no_file_is_no_journal(path: Path, kind: str) -> None:
    if kind == "directory":
        path.mkdir()
    else:
        os.mkfifo(path)

    assert "is not an asyncpush journal" in (refusal(path)).message


def test_the_journal_of_a_newer_version_is_refused(path: Path) -> None:
    make(path)
    run_sql(path, "PRAGMA user_version = 9;")

    error = refusal(path)

    assert isinstance(error, UsageError)
    assert "was written by a newer asyncpush (format 9; " in error.message


def overwrite_pages(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xa5" * (path.stat().st_size - 4096))


def overwrite_end(path: Path) -> None:
    """Damage layers alone, which nobody reads when it is opened."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size - 4096)
        file.write(b"\xa5" * 4096)


def overwrite_header(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"\xa5" * 100)


def cut_short(path: Path) -> None:
    os.truncate(path, 4096 * 3)


@pytest.mark.parametrize("damage", [overwrite_pages, overwrite_end, overwrite_header, cut_short])
def test_a_damaged_journal_says_what_to_do(path: Path, damage: Callable[[Path], None]) -> None:
    make(path, 500)
    damage(path)

    error = refusal(path)

    assert isinstance(error, JournalError)
    assert error.message.startswith(f"the journal {path} is damaged: ")
    assert error.hint == "delete it, and run.journal-wal if it exists; images that ECR has will not be sent again"
    path.unlink()
    make(path)


@pytest.mark.parametrize("name", ["missing/run.journal", "file/run.journal", "loop", "x" * 300])
def test_a_place_that_can_hold_no_file_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")

    error = refusal(tmp_path / name)

    assert isinstance(error, UsageError)
    assert error.message.startswith(f"the journal {tmp_path / name} can't be used: ")


@pytest.mark.parametrize(("directory", "file"), [(0o500, 0o600), (0o700, 0o400), (0o700, 0o000)])
def test_a_file_that_may_not_be_written_is_one_line(tmp_path: Path, directory: int, file: int) -> None:
    path = tmp_path / "inner" / "run.journal"
    path.parent.mkdir()
    make(path)
    path.with_name("run.journal-lock").unlink()
    path.chmod(file)
    path.parent.chmod(directory)
    images = tmp_path / "images.txt"
    images.write_text("docker://127.0.0.1:1/team/app:1 team/app:1\n")
    try:
        ran = run_cli("migrate", images, "--journal", path, "--region", "eu-west-1", bound=True)
    finally:
        path.parent.chmod(0o700)

    assert ran.status == 2
    assert ran.err.startswith(f"asyncpush: error: the journal {path} can't be used: ")
    assert ran.err.count("\n") == 1


async def test_a_journal_from_before_tags_had_a_choice_of_platforms_goes_on(path: Path) -> None:
    async def finish(choice: str) -> None:
        async with open_journal(path) as journal:
            await journal.begin_run("plan", fresh=True)
            await journal.image_finished(
                f"docker://x/app:1 -> {APP}:1", source_digest=A, digest=A, outcome="pushed", choice=choice
            )

    async def known() -> list[str]:
        async with open_journal(path) as journal:
            return [image.choice for image in journal.known_images(APP).values()]

    await finish("linux/amd64")
    assert await known() == ["linux/amd64"]
    await to_thread.run_sync(drop_choice, path)
    assert await known() == [""]
    await finish("linux/arm64")
    assert await known() == ["linux/arm64"]


async def test_a_journal_from_before_proofs_is_read_and_takes_them(path: Path) -> None:
    await _fill(path)
    await to_thread.run_sync(run_sql, path, "DROP TABLE proved")
    assert (await to_thread.run_sync(summarize, path)).proofs == 0
    assert "proof" not in {row.__struct_config__.tag for row in await to_thread.run_sync(lambda: list(rows(path)))}
    async with open_journal(path) as journal:
        await journal.images_proved(APP, {"1": A}, deep=False)
    assert (await to_thread.run_sync(summarize, path)).proofs == 1


def drop_choice(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("ALTER TABLE known DROP COLUMN choice")
    connection.close()


WRONG = {
    "run": ("plan = x'ff'", "started = 'soon'", "begun = 1e300", "ended = 'x'", "failed = -1", "images_failed = 'x'"),
    "image": ("copy = 'x'", "source_digest = x'00'", "digest = 'x'", "outcome = x'00'", "reason = 7", "at = -1"),
    "known": ("repository = x'00'", "tag = x'ff'", "digest = x'00'", "source_digest = 1", "choice = x'00'", "at = ''"),
    "carried": ("repository = x'00'", "digest = 'x'", "at = 'x'"),
    "compressed": ("identity = x'00'", "media_type = x'00'", "digest = ''", "size = 'x'", "size = -1"),
    "making": ("repository = x'00'", "at = 'x'"),
    "proved": ("repository = x'00'", "reference = x'00'", "digest = 'x'", "deep = -1", "at = 'x'"),
    "repository": ("address = x'00'",),
    "layer": ("repository = 'x'", "digest = x'00'", "size = 'x'", "size = 1.5", "referenced = 'x'"),
}


async def _fill(path: Path) -> None:
    async with open_journal(path) as journal:
        await journal.begin_run("plan", fresh=True)
        await journal.image_finished(f"a -> {APP}:1", source_digest=A, digest=A, outcome="pushed")
        await journal.image_failed(f"a -> {APP}:2", "why")
        await journal.note_referrers_copied(APP, A)
        await journal.repository_begun(APP)
        await journal.images_proved(APP, {"1": A}, deep=True)
        await journal.layer_completed(APP, "identity", Descriptor("application/x", A, 7))
        await journal.upload_begun(APP, "blob", Upload("u", 10, 20), 10)


async def test_a_row_that_nobody_can_have_written_is_damage_to_all_who_read(path: Path, tmp_path: Path) -> None:
    await _fill(path)
    wrong = [(table, change) for table, changes in WRONG.items() for change in changes]
    for number, (table, change) in enumerate(wrong):
        copy = tmp_path / f"{number}.journal"
        await to_thread.run_sync(shutil.copyfile, path, copy)
        await to_thread.run_sync(run_sql, copy, f"UPDATE OR REPLACE {table} SET {change}")
        for read in (_opened, summarize, lambda copy: list(rows(copy))):
            with pytest.raises(JournalError) as caught:
                await to_thread.run_sync(read, copy)
            assert caught.value.message.startswith(f"the journal {copy} is damaged: "), (table, change)
            assert "delete it" in str(caught.value.hint)


async def test_text_that_is_none_is_damage(path: Path) -> None:
    """Only Python's module finds it."""
    await _fill(path)
    await to_thread.run_sync(run_sql, path, "UPDATE known SET tag = CAST(x'ff' AS TEXT)")
    for read in (_opened, lambda path: list(rows(path))):
        with pytest.raises(JournalError, match="is damaged: Could not decode to UTF-8"):
            await to_thread.run_sync(read, path)


def _opened(path: Path) -> None:
    with open_database(path) as connection, opening(path):
        load(connection)
        begin_run(connection, "plan", False, 0, 1)


ABSURD = """id = x'00'|asked_part_size = 'x'|max_parts = -1|part_size = 'x'|part_size = 1000000000000
received = 'x'|received = -1|begun = 'x'|heard = 'x'"""


@pytest.mark.parametrize("change", ABSURD.replace("\n", "|").split("|"))
async def test_an_upload_that_nobody_can_have_begun_is_begun_anew(path: Path, change: str) -> None:
    await _fill(path)
    await to_thread.run_sync(run_sql, path, f"UPDATE upload SET {change}")
    async with open_journal(path) as journal:
        assert await journal.open_upload(APP, "blob") is None
        assert all(isinstance(left.received, int) for left in await journal.left_uploads())
    assert len((await to_thread.run_sync(summarize, path)).uploads) == (change == "part_size = 1000000000000")


async def test_a_name_that_is_no_text_equals_nothing(path: Path) -> None:
    await _fill(path)
    await to_thread.run_sync(run_sql, path, "UPDATE image SET copy = x'ff61' WHERE outcome = 'pushed'")
    async with open_journal(path) as journal:
        run = await journal.begin_run("plan", fresh=False)
        assert (run.finished, list(journal.finished)) == (1, ["\ufffda"])
    assert len(await to_thread.run_sync(lambda: list(rows(path)))) == 10
