"""Journals whose rows hold what no asyncpush has written: each is read, or refused in one line."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest
from anyio import to_thread
from hypothesis import strategies as st

from asyncpush.journal import export, open_journal
from asyncpush.journal.store import SqliteJournal
from asyncpush.manifest import parse_manifest
from asyncpush.model import Descriptor, Digest, OpenUpload, Upload
from support.emulator_client import image_manifest
from support.fuzzing import TIME, search, value_or_error

pytestmark = TIME

ECR = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
APP, OTHER = f"{ECR}/team/app", f"{ECR}/team/other"
A, B = Digest.of(b"a"), Digest.of(b"b")
MANIFEST = parse_manifest(image_manifest(b"{}", b"a"))
MOST = 2**63

COLUMNS = {
    "run": ["plan", "started", "begun", "ended", "failed", "images_finished", "images_failed"],
    "image": ["run", "copy", "source_digest", "digest", "outcome", "reason", "at"],
    "known": ["repository", "tag", "source_digest", "digest", "at", "choice"],
    "carried": ["repository", "digest", "at"],
    "compressed": ["identity", "media_type", "digest", "size"],
    "making": ["repository", "at"],
    "repository": ["address"],
    "layer": ["repository", "digest", "size", "referenced"],
    "upload": [
        "repository",
        "identity",
        "id",
        "asked_part_size",
        "max_parts",
        "part_size",
        "received",
        "begun",
        "heard",
    ],
}
#: As SQL has them.
VALUES = [
    "NULL", "0", "-1", "1", "9223372036854775807", "-9223372036854775808", "1.5", "-1e300", "9e999", "-9e999", "1e18",
    "''", "'many'", "'1'", "x''", "x'00'", "x'ff'", "zeroblob(31)", "zeroblob(32)", "zeroblob(33)",
    "cast(x'ff' AS TEXT)", "cast(x'eda080' AS TEXT)", "'a' || char(10) || 'b'", "char(27) || '[2J'",
    "cast(x'00' AS TEXT)", "cast('a -> b:c' AS BLOB)", "'/'", "'-> :'",
]  # fmt: skip
places = st.sampled_from([(table, column) for table, columns in COLUMNS.items() for column in columns])
changes = st.lists(st.tuples(places, st.sampled_from(VALUES)), min_size=1, max_size=3)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A journal with a row in every table."""
    path = tmp_path_factory.mktemp("journal") / "run.journal"

    async def write() -> None:
        async with open_journal(path) as journal:
            await journal.begin_run("plan", fresh=True)
            await use(journal)
            await journal.image_failed(f"docker://x/app:2 -> {APP}:2", "no such tag")
            await journal.repository_begun(OTHER)

    anyio.run(write)
    return path


async def use(journal: SqliteJournal) -> None:
    """Tell a journal something of every kind."""
    copy = f"docker://x/app:1 -> {APP}:1"
    await journal.image_finished(copy, source_digest=A, digest=MANIFEST.digest, outcome="pushed", choice="linux/amd64")
    await journal.note_referrers(APP, A)
    await journal.upload_begun(APP, str(B), Upload("id", 5, 1000), 10)
    await journal.part_acknowledged(APP, str(B), Upload("id", 5, 1000), 10)
    await journal.layer_completed(APP, "docker-archive:layer", Descriptor("application/x", A, 7))
    await journal.image_put(APP, MANIFEST, "2")


def at(digest: Digest) -> bool:
    return Digest.parse(str(digest)) == digest


async def read(path: Path) -> None:
    """Ask a journal for all that it can tell: what it says is of the types that it promises."""
    async with open_journal(path) as journal:
        state = await journal.begin_run("plan", fresh=False)
        assert isinstance(state.finished, int)
        for copy, image in journal.finished.items():
            assert isinstance(copy, str)
            assert isinstance(image.outcome, str)
            assert at(image.digest)
            assert image.source_digest is None or at(image.source_digest)
        for tag, known in journal.known_images(APP).items():
            assert isinstance(tag, str)
            assert isinstance(known.choice, str)
            assert at(known.digest)
        found = await journal.open_upload(APP, str(B))
        if found is not None:
            assert isinstance(found, OpenUpload)
            assert isinstance(found.upload.id, str)
            numbers = (found.part_size, found.received, found.upload.max_parts, found.upload.part_size)
            assert all(isinstance(number, int) and 0 <= number < MOST for number in numbers)
        for left in await journal.left_uploads():
            assert isinstance(left.repository, str)
            assert isinstance(left.identity, str)
            assert isinstance(left.received, int)
            assert left.received >= 0
        assert all(map(at, await journal.completed(APP)))
        assert all(at(layer.digest) for layer in await journal.holders(ECR, [A, MANIFEST.digest]))
        assert all(isinstance(each, str) for each in (await journal.mount_sources(ECR, [A])).values())
        journal.referrers_carried(APP, A)
        assert isinstance(journal.is_half_made(OTHER), bool)
        await use(journal)
        await journal.end_run(0)


def told(path: Path) -> Any:
    """What ``journal show`` and ``journal export`` say, in JSON."""
    survey_of = value_or_error(lambda: msgspec.json.encode(export.summarize(path)))
    return survey_of, value_or_error(lambda: msgspec.json.encode(list(export.rows(path))))


def with_changes(written: Path, path: Path, said: list[tuple[tuple[str, str], str]]) -> None:
    """A copy of a journal, in which these columns hold something else."""
    for name in ("", "-wal", "-shm", "-lock"):
        path.with_name(f"{path.name}{name}").unlink(missing_ok=True)
    shutil.copyfile(written, path)
    with closing(sqlite3.connect(path)) as connection, connection:
        for (table, column), value in said:
            connection.execute(f"UPDATE OR IGNORE {table} SET {column} = {value}")


def test_any_row_of_a_journal_is_shown_or_refused_in_one_line(written: Path, tmp_path: Path) -> None:
    def law(said: list[tuple[tuple[str, str], str]]) -> None:
        path = tmp_path / "run.journal"
        with_changes(written, path, said)
        told(path)

    search(law, changes, examples=25)


async def test_a_run_goes_on_with_any_row_of_a_journal_or_refuses_it_in_one_line(written: Path, tmp_path: Path) -> None:
    def law(said: list[tuple[tuple[str, str], str]]) -> None:
        path = tmp_path / "run.journal"
        with_changes(written, path, said)
        value_or_error(lambda: anyio.run(read, path))

    await to_thread.run_sync(lambda: search(law, changes, examples=25))
