"""What the emulator acknowledged is on its disk: after a restart, a kill, a full disk; as OCI image layouts."""

from __future__ import annotations

import json
import resource
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import anyio
import pytest
from anyio.streams.buffered import BufferedByteReceiveStream

from asyncpush.emulator import Emulator, Finding
from asyncpush.emulator.store.fsck import check
from asyncpush.errors import UsageError
from support.emulator_client import Ecr, digest_of, image_manifest, index_manifest, part

needs_skopeo = pytest.mark.usefixtures("skopeo")

CONFIG = b'{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":[]}}'
LAYER = b"a layer"


def layout(data: Path, name: str = "app") -> Path:
    return data / "repositories/ecr/000000000000/us-east-1" / name / "_layout"


def entries(data: Path, name: str = "app") -> list[tuple[str, str | None]]:
    """The digest and the tag of each entry of a repository's index.json."""
    index = json.loads((layout(data, name) / "index.json").read_bytes())
    return [
        (entry["digest"], entry.get("annotations", {}).get("org.opencontainers.image.ref.name"))
        for entry in index["manifests"]
    ]


def everything(data: Path) -> list[Path]:
    return sorted(data.rglob("*"))


def half_written(data: Path) -> list[Path]:
    """Files that were being written and never got to their place."""
    return list(data.rglob(".new-*"))


async def test_a_repository_is_an_oci_layout_of_its_images_tagged_or_not(tmp_path: Path) -> None:
    async with Emulator(tmp_path) as emulator:
        ecr = Ecr(emulator.endpoint_url)
        await ecr.call("create_repository", repositoryName="app")
        first = await ecr.push_image("app", "v1", CONFIG, LAYER)
        await ecr.put("app", first, "latest")
        second = await ecr.push_image("app", "latest", CONFIG, b"layer")
        third = await ecr.push_image("app", None, CONFIG, b"other")
    assert json.loads((layout(tmp_path) / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    assert sorted(entries(tmp_path), key=str) == sorted(
        [(digest_of(first), "v1"), (digest_of(second), "latest"), (digest_of(third), None)], key=str
    )
    names = {path.name for path in (layout(tmp_path) / "blobs/sha256").iterdir()}
    assert names == {digest_of(blob)[7:] for blob in (CONFIG, LAYER, b"layer", b"other", first, second, third)}
    for path in (layout(tmp_path) / "blobs/sha256").iterdir():
        assert digest_of(path.read_bytes())[7:] == path.name
    assert list((tmp_path / "uploads").iterdir()) == []


@needs_skopeo
async def test_skopeo_reads_the_layout_in_place(tmp_path: Path) -> None:
    async with Emulator(tmp_path, fsync=False) as emulator:
        ecr = Ecr(emulator.endpoint_url)
        await ecr.call("create_repository", repositoryName="team/app")
        manifest = await ecr.push_image("team/app", "v1", CONFIG, LAYER)
        seen = await anyio.run_process(["skopeo", "inspect", f"oci:{layout(tmp_path, 'team/app')}:v1"])
    assert json.loads(seen.stdout)["Digest"] == digest_of(manifest)


async def test_names_within_names_do_not_meet(tmp_path: Path) -> None:
    names = ["a1", "a1/blobs", "a1/blobs/sha256", "a1/index.json", "a1/layout"]
    async with Emulator(tmp_path, fsync=False) as emulator:
        ecr = Ecr(emulator.endpoint_url)
        for name in names:
            await ecr.call("create_repository", repositoryName=name)
            await ecr.push_image(name, "v1", CONFIG, name.encode())
        await ecr.call("delete_repository", repositoryName="a1/blobs", force=True)
    async with Emulator(tmp_path, fsync=False) as emulator:
        ecr = Ecr(emulator.endpoint_url)
        for name in names[:1] + names[2:]:
            assert list(await ecr.tags(name)) == [digest_of(image_manifest(CONFIG, name.encode()))]
        refusal = await ecr.refused("list_images", repositoryName="a1/blobs")
        assert refusal.code == "RepositoryNotFoundException"


async def test_the_longest_names_have_a_place_of_their_own(tmp_path: Path) -> None:
    names = ["x" * 255, "x" * 256, "y" * 256, f"{'z' * 253}/zz"]
    for _ in range(2):
        async with Emulator(tmp_path, fsync=False) as emulator:
            ecr = Ecr(emulator.endpoint_url)
            for name in names:
                await ecr.call("create_repository", repositoryName=name)
                await ecr.push_image(name, "1", name.encode(), name.encode())
            for name in names:
                assert await ecr.available(name, *(digest_of(name.encode()) for name in names)) == {
                    digest_of(name.encode())
                }
            for name in names:
                await ecr.call("delete_repository", repositoryName=name, force=True)
        findings: list[Finding] = []
        assert (await check(tmp_path, findings.append)).is_clean
        assert not findings


async def test_another_emulator_goes_on_with_everything(tmp_path: Path) -> None:
    async with Emulator(tmp_path, fsync=False) as emulator:
        ecr = Ecr(emulator.endpoint_url)
        created = await ecr.call("create_repository", repositoryName="app", imageTagMutability="IMMUTABLE")
        manifest = await ecr.push_image("app", "v1", CONFIG, b"layer")
        index = index_manifest(manifest)
        await ecr.put("app", index)
        unreferenced = await ecr.push_layer("app", b"unreferenced")
        before = await ecr.call("describe_images", repositoryName="app")
        upload_id = await ecr.begin("app")
        await ecr.send("app", upload_id, 0, b"0123")
        empty = await ecr.begin("app")

    async with Emulator(tmp_path, fsync=False) as emulator:
        ecr = Ecr(emulator.endpoint_url)
        (described,) = (await ecr.call("describe_repositories"))["repositories"]
        assert {**described, "repositoryUri": ""} == {**created["repository"], "repositoryUri": ""}
        after = await ecr.call("describe_images", repositoryName="app")
        for old, new in zip(before["imageDetails"], after["imageDetails"], strict=True):
            assert abs((old.pop("imagePushedAt") - new.pop("imagePushedAt")).total_seconds()) < 60
            assert old == new
        held = {digest_of(CONFIG), digest_of(b"layer"), unreferenced}
        assert await ecr.available("app", *held, digest_of(manifest), digest_of(index)) == held

        assert (await ecr.refused("upload_layer_part", **part("app", upload_id, 0, b"x"))).members[
            "lastValidByteReceived"
        ] == 3
        await ecr.send("app", upload_id, 4, b"4567")
        refusal = await ecr.refused(
            "complete_layer_upload", repositoryName="app", uploadId=upload_id, layerDigests=[digest_of(b"01234567")]
        )
        assert refusal.code == "LayerPartTooSmallException"
        await ecr.send("app", empty, 0, b"layer too")
        assert await ecr.complete("app", empty, digest_of(b"layer too")) == digest_of(b"layer too")


async def test_an_upload_goes_on_where_a_killed_emulator_acknowledged_it(tmp_path: Path) -> None:
    script = (
        "import anyio, pathlib, sys\n"
        "from asyncpush.emulator import Emulator\n"
        "async def main():\n"
        "    async with Emulator(pathlib.Path(sys.argv[1]), part_size=4) as emulator:\n"
        "        print(emulator.endpoint_url, flush=True)\n"
        "        await emulator.serve_forever()\n"
        "anyio.run(main)\n"
    )
    async with await anyio.open_process([sys.executable, "-c", script, str(tmp_path)], stderr=None) as killed:
        assert killed.stdout is not None
        try:
            line = await BufferedByteReceiveStream(killed.stdout).receive_until(b"\n", 200)
            ecr = Ecr(line.decode())
            await ecr.call("create_repository", repositoryName="app")
            upload_id = await ecr.begin("app")
            await ecr.send("app", upload_id, 0, b"0123")
        finally:
            killed.kill()
    # What a part leaves behind that was being written when the end came.
    with (tmp_path / "uploads" / upload_id).open("ab") as file:
        file.write(b"never acknowledged")

    async with Emulator(tmp_path, part_size=4, fsync=False) as emulator:
        ecr = Ecr(emulator.endpoint_url)
        await ecr.send("app", upload_id, 4, b"45")
        assert await ecr.complete("app", upload_id, digest_of(b"012345")) == digest_of(b"012345")
    assert (layout(tmp_path) / "blobs/sha256" / digest_of(b"012345")[7:]).read_bytes() == b"012345"


async def test_bytes_that_a_power_cut_took_are_asked_for_again(tmp_path: Path) -> None:
    async with Emulator(tmp_path, fsync=False) as emulator:
        ecr = Ecr(emulator.endpoint_url)
        await ecr.call("create_repository", repositoryName="app")
        upload_id = await ecr.begin("app")
        await ecr.send("app", upload_id, 0, b"0123456789")
    with (tmp_path / "uploads" / upload_id).open("r+b") as file:
        file.truncate(4)

    async with Emulator(tmp_path, fsync=False) as emulator:
        ecr = Ecr(emulator.endpoint_url)
        refusal = await ecr.refused("upload_layer_part", **part("app", upload_id, 10, b"x"))
        assert refusal.members["lastValidByteReceived"] == 3


async def test_what_is_not_the_emulators_stays_beside_its_uploads(tmp_path: Path) -> None:
    async with Emulator(tmp_path, fsync=False):
        pass
    (tmp_path / "uploads" / "mine").mkdir()
    (tmp_path / "uploads" / "mine" / "file").write_bytes(b"precious")
    async with Emulator(tmp_path, fsync=False):
        pass
    assert (tmp_path / "uploads" / "mine" / "file").read_bytes() == b"precious"


async def test_what_a_kill_left_half_made_is_cleared_away(tmp_path: Path) -> None:
    async with Emulator(tmp_path, fsync=False) as emulator:
        ecr = Ecr(emulator.endpoint_url)
        await ecr.call("create_repository", repositoryName="app")
        await ecr.push_image("app", "v1", CONFIG, LAYER)
    (layout(tmp_path) / "blobs/sha256/.new-0123").write_bytes(b"half a manifest")
    (layout(tmp_path) / "blobs/sha256" / ("0" * 64)).write_bytes(b"a manifest that was never acknowledged")
    (layout(tmp_path, "half") / "blobs").mkdir(parents=True)
    (tmp_path / "uploads/0cb5cb63-f0ad-4ac5-aadf-ff3a37e1dd4e").write_bytes(b"of an upload that is complete")

    async with Emulator(tmp_path, fsync=False) as emulator:
        ecr = Ecr(emulator.endpoint_url)
        (described,) = (await ecr.call("describe_repositories"))["repositories"]
        assert described["repositoryName"] == "app"
        await ecr.call("create_repository", repositoryName="half")
        await ecr.push_image("half", "v1", CONFIG, LAYER)
    assert list((tmp_path / "uploads").iterdir()) == []
    assert half_written(tmp_path) == []


@contextmanager
def files_end_at(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond *size* bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_disk_refuses_a_part_and_keeps_those_before_it(tmp_path: Path) -> None:
    async with Emulator(tmp_path, part_size=50_000, fsync=False) as emulator:
        ecr = Ecr(emulator.endpoint_url)
        await ecr.call("create_repository", repositoryName="app")
        upload_id = await ecr.begin("app")
        await ecr.send("app", upload_id, 0, b"a" * 60_000)
        with files_end_at(100_000):
            refusal = await ecr.refused("upload_layer_part", **part("app", upload_id, 60_000, b"b" * 60_000))
        assert (refusal.code, refusal.status) == ("ServerException", 500)
        assert "data directory" in refusal.message
        assert (tmp_path / "uploads" / upload_id).stat().st_size == 60_000
        await ecr.send("app", upload_id, 60_000, b"c")
        digest = digest_of(b"a" * 60_000 + b"c")
        assert await ecr.complete("app", upload_id, digest) == digest


async def test_a_full_disk_refuses_every_change_and_changes_nothing(tmp_path: Path) -> None:
    """A full disk refuses an upload, an image and a repository, and changes nothing."""
    async with Emulator(tmp_path, fsync=False) as emulator:
        ecr = Ecr(emulator.endpoint_url)
        await ecr.call("create_repository", repositoryName="app")
        old = await ecr.push_image("app", "v1", CONFIG, LAYER)
        await ecr.push_layer("app", b"layer")
        manifest = image_manifest(CONFIG, b"layer")
        before = entries(tmp_path)
        with files_end_at(5):
            refusals = [
                await ecr.refused("initiate_layer_upload", repositoryName="app"),
                await ecr.refused("put_image", repositoryName="app", imageManifest=manifest.decode(), imageTag="v1"),
                await ecr.refused("put_image", repositoryName="app", imageManifest=old.decode(), imageTag="v2"),
                await ecr.refused("batch_delete_image", repositoryName="app", imageIds=[{"imageTag": "v1"}]),
                await ecr.refused("create_repository", repositoryName="other"),
            ]
        assert {refusal.code for refusal in refusals} == {"ServerException"}
        assert await ecr.tags("app") == {digest_of(old): ["v1"]}
        assert entries(tmp_path) == before
        assert list((tmp_path / "uploads").iterdir()) == []
        await ecr.call("create_repository", repositoryName="other")
        await ecr.put("app", manifest, "v1")
    assert half_written(tmp_path) == []


async def test_a_full_disk_under_the_catalog_loses_no_part_and_no_layer(tmp_path: Path) -> None:
    """With a full disk under the catalog, a part and a layer are refused, and neither is lost."""
    async with Emulator(tmp_path, part_size=4, fsync=False) as emulator:
        ecr = Ecr(emulator.endpoint_url)
        await ecr.call("create_repository", repositoryName="app")
        upload_id = await ecr.begin("app")
        await ecr.send("app", upload_id, 0, b"0123")
        named = {"repositoryName": "app", "uploadId": upload_id, "layerDigests": [digest_of(b"01234567")]}
        with files_end_at(100):
            refusals = [await ecr.refused("upload_layer_part", **part("app", upload_id, 4, b"4567"))]
        await ecr.send("app", upload_id, 4, b"4567")
        with files_end_at(100):
            refusals.append(await ecr.refused("complete_layer_upload", **named))
        assert {refusal.code for refusal in refusals} == {"ServerException"}
        assert list((layout(tmp_path) / "blobs/sha256").iterdir()) == []
        await ecr.call("complete_layer_upload", **named)
    findings: list[Finding] = []
    await check(tmp_path, findings.append)
    assert findings == []


async def test_one_directory_serves_one_emulator(tmp_path: Path) -> None:
    async with Emulator(tmp_path, fsync=False) as first:
        with pytest.raises(UsageError, match=f"another emulator uses {tmp_path}; "):
            async with Emulator(tmp_path, fsync=False):
                pass
        assert (await Ecr(first.endpoint_url).call("describe_repositories"))["repositories"] == []


async def test_a_directory_that_can_not_be_one_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for data in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError) as caught:
            async with Emulator(data):
                pass
        assert str(data) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [None, b"{", image_manifest(CONFIG, LAYER) + b" "])
async def test_a_blob_that_is_gone_or_cut_short_is_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    async with Emulator(tmp_path, fsync=False) as emulator:
        ecr = Ecr(emulator.endpoint_url)
        await ecr.call("create_repository", repositoryName="app")
        await ecr.push_image("app", "v1", CONFIG, LAYER)
    path = layout(tmp_path) / "blobs/sha256" / digest_of(image_manifest(CONFIG, LAYER))[7:]
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        async with Emulator(tmp_path, fsync=False):
            pass
    assert str(caught.value).startswith(f"{tmp_path} can't be read as an emulator's data: {path}: ")
    # Refused, it has let go of the directory.
    path.write_bytes(image_manifest(CONFIG, LAYER))
    async with Emulator(tmp_path, fsync=False) as emulator:
        assert await Ecr(emulator.endpoint_url).tags("app") == {digest_of(image_manifest(CONFIG, LAYER)): ["v1"]}


@pytest.mark.parametrize("content", [None, b"{"])
@pytest.mark.parametrize("name", ["index.json", "oci-layout"])
async def test_the_layouts_own_files_are_written_again_where_they_are_wrong(
    tmp_path: Path, name: str, content: bytes | None
) -> None:
    async with Emulator(tmp_path, fsync=False) as emulator:
        ecr = Ecr(emulator.endpoint_url)
        await ecr.call("create_repository", repositoryName="app")
        await ecr.push_image("app", "v1", CONFIG, LAYER)
    path = layout(tmp_path) / name
    before = path.read_bytes()
    path.unlink() if content is None else path.write_bytes(content)
    async with Emulator(tmp_path, fsync=False):
        assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [b"no database, and long enough to have a header" * 10, b"SQLite format 3\0" + bytes(4080)],
)
async def test_a_catalog_that_is_none_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "catalog.sqlite").write_bytes(content)
    with pytest.raises(UsageError) as caught:
        async with Emulator(tmp_path, fsync=False):
            pass
    assert f"{tmp_path / 'catalog.sqlite'} is damaged, or no catalog: " in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_an_emptied_catalog_is_refused_and_no_layer_is_lost(tmp_path: Path) -> None:
    async with Emulator(tmp_path, fsync=False) as emulator:
        await Ecr(emulator.endpoint_url).call("create_repository", repositoryName="app")
        await Ecr(emulator.endpoint_url).push_layer("app", b"a layer")
    (tmp_path / "catalog.sqlite").write_bytes(b"")
    before = everything(tmp_path)
    for _ in range(2):
        with pytest.raises(UsageError, match="is empty, and there is data that it should name"):
            async with Emulator(tmp_path, fsync=False):
                pass
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    ("statement", "problem"),
    [("PRAGMA user_version = 99", "has version 99"), ("PRAGMA application_id = 1", "is not this emulator's catalog")],
)
async def test_another_programs_or_versions_catalog_is_refused(tmp_path: Path, statement: str, problem: str) -> None:
    async with Emulator(tmp_path, fsync=False):
        pass
    with closing(sqlite3.connect(tmp_path / "catalog.sqlite", isolation_level=None)) as catalog:
        catalog.execute(statement)
    with pytest.raises(UsageError, match=problem):
        async with Emulator(tmp_path, fsync=False):
            pass


@pytest.mark.parametrize("foreign", ["repositories/app/_repository.json", "uploads/0cb5cb63/upload.json", "src/main.c"])
async def test_a_directory_of_something_else_is_refused_and_left_alone(tmp_path: Path, foreign: str) -> None:
    (tmp_path / foreign).parent.mkdir(parents=True)
    (tmp_path / foreign).write_bytes(b"precious")
    before = everything(tmp_path)
    with pytest.raises(UsageError, match=f"{tmp_path} holds other data, such as "):
        async with Emulator(tmp_path, fsync=False):
            pass
    assert everything(tmp_path) == before


async def test_what_a_file_system_puts_into_a_new_directory_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    (tmp_path / ".gitkeep").write_bytes(b"")
    async with Emulator(tmp_path, fsync=False):
        pass
