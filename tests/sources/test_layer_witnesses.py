"""Laws of a docker-archive's layers: none is pushed before its name or its diff id agrees with its bytes."""

from __future__ import annotations

import gzip
import json
import random
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import asyncpush
from asyncpush import Registry, Settings
from asyncpush.emulator import Emulator
from asyncpush.engine import decompress
from asyncpush.engine.compress import zstd
from asyncpush.engine.decompress import CorruptError, UnpackedHash
from asyncpush.errors import DigestMismatchError, SourceError, UnforeseenError
from asyncpush.events import Event, PartSent
from asyncpush.journal import open_journal
from asyncpush.model import Digest
from asyncpush.settings import MiB
from asyncpush.sources import docker_archive
from support.aws import aws
from support.commands import Server, run_here
from support.images import A, B, DockerSave, digest, image_of, layer_tar, saved
from support.layer_bytes import DAMAGED, PACKED, WHOLE


def archive_of(stored: bytes, name: str, layer: bytes = A) -> DockerSave:
    """An archive with one layer, which lies there as *stored* under *name*."""
    archive = DockerSave().image(layer, tags=["app:1"])
    del archive.entries[archive.items[0]["Layers"][0]]
    archive.entries[name] = stored
    archive.items[0]["Layers"] = [name]
    return archive


def names_of(good: bytes) -> list[str]:
    """What tools call a layer; the first ones by the digest of *good*, its compressed bytes."""
    packed = digest(good)[7:]
    by_digest = [f"{packed}.tar.gz", f"sha256:{packed}.tar.gz", f"sha256:{packed}", f"./layers/{packed}"]
    return [*by_digest, f"{digest(A)[7:]}.tar", f"{digest(A)[7:]}/layer.tar", f"{packed}/layer.tar", "layer.tar.gz"]


@pytest.mark.parametrize("damage", DAMAGED)
async def test_a_damaged_layer_is_refused_by_its_place_whatever_its_name(tmp_path: Path, damage: str) -> None:
    for name in names_of(PACKED):
        with pytest.raises(SourceError) as caught:
            await image_of(saved(tmp_path / "app.tar", archive_of(DAMAGED[damage], name).archive()))

        assert str(caught.value).startswith(f"{name.removeprefix('./')!r} in {tmp_path}/app.tar")
        assert "is damaged: " in str(caught.value)
        assert "fetch or save" in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", WHOLE)
async def test_a_whole_layer_is_pushed_as_it_lies_there_whatever_its_name(tmp_path: Path, kind: str) -> None:
    stored = WHOLE[kind]
    for name in [*names_of(stored), f"{'ab' * 32}.tar.gz", f"blobs/sha256/{digest(stored)[7:]}"]:
        root = (await image_of(saved(tmp_path / "app.tar", archive_of(stored, name).archive()))).root

        assert str(root.layers[0].descriptor.digest) == digest(stored)
        assert root.manifest is not None


async def test_a_name_that_is_the_digest_saves_the_decompression(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(docker_archive, "UnpackedHash", None)

    for name in (f"{digest(PACKED)[7:]}.tar.gz", f"sha256:{digest(PACKED)[7:]}", f"blobs/sha256/{digest(PACKED)[7:]}"):
        await image_of(saved(tmp_path / "app.tar", archive_of(PACKED, name).archive()))
    with pytest.raises(UnforeseenError, match="TypeError"):
        await image_of(saved(tmp_path / "app.tar", archive_of(PACKED, "layer.tar.gz").archive()))


async def test_what_is_called_gzip_and_is_not_is_compressed_on_the_way(tmp_path: Path, registry: Registry) -> None:
    plain = saved(tmp_path / "plain.tar", DockerSave().image(A, tags=["app:1"]).archive())
    called = saved(tmp_path / "called.tar", archive_of(A, f"{digest(PACKED)[7:]}.tar.gz").archive())

    results = [await asyncpush.push(registry, str(path), "team/app:1") for path in (plain, called)]

    assert results[0].digest == results[1].digest


async def test_of_damaged_layers_nothing_is_asked_of_ecr_nor_by_a_dry_run(
    emulator: Emulator, registry: Registry, tmp_path: Path
) -> None:
    archive = archive_of(PACKED, "a.tar.gz").image(A, B, tags=["app:2"], stored=[PACKED, DAMAGED["another layer"][:-9]])
    path = saved(tmp_path / "app.tar", archive.archive())

    for dry in (True, False):
        with pytest.raises(SourceError, match=r"layer.tar' in .* is damaged: its gzip data has no end"):
            await asyncpush.push(registry, f"docker-archive:{path}:app:2", "team/app:2", dry=dry)

    assert not emulator.requests.counts()


BROKEN = {
    "changed": lambda layer: layer[:600] + b"!" + layer[601:],
    "cut": lambda layer: layer[:-512],
    "longer": lambda layer: layer + bytes(512),
}


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
async def test_an_uncompressed_layer_that_is_not_its_diff_id_is_never_completed(
    emulator: Emulator, tmp_path: Path, compression: Any
) -> None:
    big = layer_tar("of two parts, and incompressible", 100) + random.Random(1).randbytes(5 * MiB)
    chosen = Settings(create_repository=True, compression=compression, part_size=5 * MiB)
    for change, broken in BROKEN.items():
        archive = DockerSave().image(big, tags=["app:1"])
        archive.entries[archive.items[0]["Layers"][0]] = broken(big)
        path = saved(tmp_path / f"{change}.tar", archive.archive())
        async with (
            open_journal(tmp_path / "journal") as journal,
            asyncpush.connect(aws=aws(emulator.endpoint_url), settings=chosen, journal=journal) as registry,
        ):
            for _ in range(2):  # the second goes on with what the first has left
                with pytest.raises(DigestMismatchError, match=rf"layer.tar' in .*{change}.tar is damaged"):
                    await asyncpush.push(registry, str(path), "team/app:1")

    assert emulator.requests.counts()["PutImage"] == 0
    statuses = [record.status for record in emulator.requests if record.operation == "CompleteLayerUpload"]
    assert statuses.count(200) <= 1, "the config's"
    # A digest that is known is not computed here: ECR compares it, and refuses.
    assert statuses.count(400) <= (2 * len(BROKEN) if compression == "none" else 0)


async def test_an_upload_that_lacks_only_its_end_takes_no_damaged_bytes(emulator: Emulator, tmp_path: Path) -> None:
    """An upload that lacks only its end is not completed with damaged bytes."""
    layer = random.Random(2).randbytes(6 * MiB)
    stored = gzip.compress(layer, 1, mtime=0)
    path = saved(tmp_path / "app.tar", archive_of(stored, "layer.tar.gz", layer).archive())
    chosen = Settings(create_repository=True, part_size=5 * MiB)

    async with open_journal(tmp_path / "journal") as journal:
        killed = anyio.CancelScope()

        def emit(event: Event) -> None:
            if isinstance(event, PartSent) and event.sent == chosen.part_size:
                killed.cancel()

        with killed:
            async with asyncpush.connect(
                aws=aws(emulator.endpoint_url), settings=chosen, emit=emit, journal=journal
            ) as registry:
                await asyncpush.push(registry, str(path), "team/app:1")
        assert killed.cancelled_caught
        saved(path, archive_of(stored[:-9], "layer.tar.gz", layer).archive())
        async with asyncpush.connect(aws=aws(emulator.endpoint_url), settings=chosen, journal=journal) as registry:
            with pytest.raises(SourceError, match="has no end"):
                await asyncpush.push(registry, str(path), "team/app:1")

    assert emulator.requests.counts()["PutImage"] == 0


def test_a_migration_of_a_damaged_archive_fails_and_the_others_go(server: Server, tmp_path: Path) -> None:
    good = saved(tmp_path / "good.tar", archive_of(PACKED, "layer.tar.gz").archive())
    bad = saved(tmp_path / "bad.tar", archive_of(DAMAGED["cut"], "layer.tar.gz").archive())
    plan = tmp_path / "plan.json"
    images = [{"from": f"docker-archive:{path}", "to": f"witness/{path.stem}"} for path in (good, bad)]
    plan.write_text(json.dumps({"version": 1, "defaults": {"repository": {"create": True}}, "images": images}))

    ran = run_here("migrate", str(plan), "--progress", "none", **server.environment)

    assert ran.status == 1
    assert f"'layer.tar.gz' in {bad} is damaged: its gzip data has no end" in ran.err
    assert run_here("verify", "witness/good:1", "--deep", **server.environment).status == 0
    assert run_here("verify", "witness/bad:1", **server.environment).status == 1


# What is decompressed and hashed, by itself


def unpacked(codec: Any, blocks: list[bytes]) -> Digest:
    taking = UnpackedHash(codec)
    for block in blocks:
        taking.update(memoryview(block))
    return taking.finish()


def cut_into(data: bytes, sizes: list[int]) -> list[bytes]:
    blocks, start = [], 0
    while start < len(data):
        size = sizes[len(blocks) % len(sizes)]
        blocks.append(data[start : start + size])
        start += size
    return blocks


@pytest.mark.parametrize("isal", [True, False])
async def test_any_members_in_any_blocks_become_the_same(isal: bool, monkeypatch: Any) -> None:
    if not isal:
        monkeypatch.setattr(decompress, "igzip_lib", None)

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        pieces=st.lists(st.tuples(st.binary(max_size=50), st.integers(0, 40_000)), min_size=1, max_size=5),
        sizes=st.lists(st.integers(1, 90_000), min_size=1, max_size=3),
        codec=st.sampled_from(["gzip", "zstd"]),
        padding=st.integers(0, 3),
    )
    def check(pieces: list[tuple[bytes, int]], sizes: list[int], codec: str, padding: int) -> None:
        plain = [text * (length // max(len(text), 1)) for text, length in pieces]
        packed = b"".join(map(gzip.compress if codec == "gzip" else zstd.compress, plain))
        padded = packed + bytes(padding if codec == "gzip" else 0)
        expected = Digest.of(b"".join(plain))
        assert unpacked(codec, cut_into(padded, sizes)) == expected
        for broken in (packed[:-1], packed + b"x", packed[:-5] + bytes([packed[-5] ^ 255]) + packed[-4:]):
            with suppress(CorruptError):
                assert unpacked(codec, cut_into(broken, sizes)) != expected

    await to_thread.run_sync(check)


@pytest.mark.parametrize("codec", ["gzip", "zstd"])
@pytest.mark.parametrize("isal", [True, False])
async def test_what_expands_a_thousandfold_takes_no_memory(codec: str, isal: bool, monkeypatch: Any) -> None:
    if not isal:
        monkeypatch.setattr(decompress, "igzip_lib", None)
    zeros = bytes(64 * MiB)
    packed, expected = gzip.compress(zeros, 1) if codec == "gzip" else zstd.compress(zeros), Digest.of(zeros)
    del zeros

    tracemalloc.start()
    try:
        assert await to_thread.run_sync(unpacked, codec, [packed]) == expected
        assert tracemalloc.get_traced_memory()[1] < 4 * MiB
    finally:
        tracemalloc.stop()
