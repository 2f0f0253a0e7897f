"""``asyncpush serve --check`` finds every damage, tells it in a line each, and changes nothing."""

from __future__ import annotations

import fcntl
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import anyio
import pytest

from asyncpush.emulator import Emulator
from support.commands import Ran, run_here
from support.emulator_client import Ecr, digest_of, image_manifest, index_manifest

CONFIG, LAYER = b"{}", b"a layer"
MANIFEST = image_manifest(CONFIG, LAYER)


async def fill(data: Path) -> None:
    async with Emulator(data, part_size=4, fsync=False) as emulator:
        ecr = Ecr(emulator.endpoint_url)
        await ecr.call("create_repository", repositoryName="app")
        await ecr.push_image("app", "v1", CONFIG, LAYER)
        await ecr.put("app", index_manifest(MANIFEST), "multi")
        upload_id = await ecr.begin("app")
        await ecr.send("app", upload_id, 0, b"0123")


async def start(data: Path) -> None:
    async with Emulator(data, fsync=False):
        pass


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A directory with an image, an index and an upload that goes on."""
    anyio.run(fill, tmp_path / "ecr")
    return tmp_path / "ecr"


def run_check(data: Path) -> Ran:
    return run_here("serve", "--check", "--data", data)


def layout(data: Path) -> Path:
    return data / "repositories/ecr/000000000000/us-east-1/app/_layout"


def blob(data: Path, content: bytes) -> Path:
    return layout(data) / "blobs/sha256" / digest_of(content)[7:]


def upload(data: Path) -> Path:
    (only,) = (data / "uploads").iterdir()
    return only


def change_catalog(data: Path, statement: str) -> None:
    with closing(sqlite3.connect(data / "catalog.sqlite", isolation_level=None)) as catalog:
        catalog.execute(statement)


def test_a_directory_that_is_whole_is_clean(data: Path) -> None:
    before = {path: path.read_bytes() for path in data.rglob("*") if path.is_file()}
    ran = run_check(data)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == (
        f"{data}: 1 repositories, 2 images, 1 unfinished uploads, 5 blobs of "
        f"{len(CONFIG + LAYER + MANIFEST + index_manifest(MANIFEST)) + 4} bytes hashed: "
        "0 damaged, 0 stray, 0 left by a kill\n"
    )
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda data: blob(data, LAYER).write_bytes(b"b layer"), "has the digest sha256:"),
        (lambda data: blob(data, MANIFEST).write_bytes(MANIFEST.swapcase()), "has the digest sha256:"),
        (lambda data: upload(data).write_bytes(b"4567"), "has the digest sha256:"),
        (lambda data: blob(data, LAYER).write_bytes(b""), "has 0 bytes, not 7"),
        (lambda data: blob(data, LAYER).unlink(), "is not there"),
        (lambda data: change_catalog(data, "DELETE FROM layer WHERE size = 7"), f"needs {digest_of(LAYER)}, which"),
        (lambda data: change_catalog(data, "DELETE FROM image WHERE rowid = 1"), f"needs {digest_of(MANIFEST)}, which"),
        (lambda data: change_catalog(data, "UPDATE tag SET digest = '0'"), "a row of tag refers to a row of image"),
        (lambda data: (data / "catalog.sqlite").write_bytes(b"x" * 4096), "is damaged, or no catalog"),
        (lambda data: (data / "catalog.sqlite").write_bytes(b""), "is empty, and there is data that it should name"),
    ],
)
def test_every_damage_is_told(data: Path, damage: Callable[[Path], object], named: str) -> None:
    damage(data)
    ran = run_check(data)
    assert ran.status == 1
    assert named in ran.out
    assert "(damage)" in ran.out


@pytest.mark.parametrize("name", ["uploads/mine", "repositories/ecr/notes.txt", "{layout}/blobs/sha256/readme"])
def test_a_file_of_nobodys_is_told_and_kept(data: Path, name: str) -> None:
    path = data / name.format(layout=layout(data).relative_to(data))
    path.write_bytes(b"precious")
    ran = run_check(data)
    assert (ran.status, ran.out.splitlines()[0].endswith("(stray)")) == (1, True)
    assert str(path) in ran.out
    anyio.run(start, data)
    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize(
    "leave",
    [
        lambda data: (layout(data) / "blobs/sha256/.new-0").write_bytes(b"half"),
        lambda data: (layout(data) / "blobs/sha256" / ("0" * 64)).write_bytes(b"moved, never entered"),
        lambda data: (data / "uploads/0cb5cb63-f0ad-4ac5-aadf-ff3a37e1dd4e").write_bytes(b"removed"),
        lambda data: (layout(data) / "index.json").unlink(),
        lambda data: (data / "repositories/ecr/000000000000/us-east-1/half/_layout").mkdir(parents=True),
        lambda data: upload(data).rename(blob(data, b"0123")),
        lambda data: upload(data).write_bytes(b"01"),
    ],
)
def test_what_a_kill_leaves_is_no_fault_and_the_next_start_makes_it_right(
    data: Path, leave: Callable[[Path], object]
) -> None:
    leave(data)
    ran = run_check(data)
    assert (ran.status, ran.out.count("(left by a kill")) == (0, 1)
    anyio.run(start, data)
    again = run_check(data)
    assert again.status == 0
    assert "(left by a kill" not in again.out


def test_what_was_deleted_leaves_nothing_behind(data: Path) -> None:
    async def delete() -> None:
        async with Emulator(data, fsync=False) as emulator:
            ecr = Ecr(emulator.endpoint_url)
            await ecr.call("create_repository", repositoryName="other")
            await ecr.push_image("other", "v1", CONFIG, LAYER)
            await ecr.begin("other")
            await ecr.call("delete_repository", repositoryName="other", force=True)
            tags = [{"imageTag": "multi"}, {"imageTag": "v1"}]
            assert len((await ecr.call("batch_delete_image", repositoryName="app", imageIds=tags))["imageIds"]) == 2

    anyio.run(delete)
    ran = run_check(data)
    assert (ran.status, ran.out.count("\n")) == (0, 1)
    assert "1 repositories, 0 images, 1 unfinished uploads, 3 blobs of 13 bytes hashed: 0 damaged, 0 stray" in ran.out


def test_a_layer_that_was_moved_and_never_entered_is_an_upload_again(data: Path) -> None:
    upload_id = upload(data).name
    upload(data).rename(blob(data, b"0123"))

    async def complete() -> str:
        async with Emulator(data, fsync=False) as emulator:
            ecr = Ecr(emulator.endpoint_url)
            assert await ecr.available("app", digest_of(b"0123")) == set()
            return await ecr.complete("app", upload_id, digest_of(b"0123"))

    assert anyio.run(complete) == digest_of(b"0123")


def test_a_directory_in_use_missing_or_anothers_is_wrong_usage(data: Path, tmp_path: Path) -> None:
    with (data / "lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        ran = run_check(data)
        assert (ran.status, "another emulator uses" in ran.err) == (2, True)
    for other in (tmp_path, tmp_path / "absent"):
        ran = run_check(other)
        assert (ran.status, "is not an emulator's data directory" in ran.err) == (2, True)
    assert not (tmp_path / "absent").exists()
    assert run_here("serve", "--check").status == 2
