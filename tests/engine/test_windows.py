"""What decompresses with large windows takes turns in a process, and nobody waits for who has nothing to do."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import termios
import time
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO, cast

import anyio
import pytest
from anyio import to_thread

import asyncpush.engine.decompress
import asyncpush.sources.spool
from asyncpush import Registry
from asyncpush.engine.decompress import WINDOW_LOG, Decompressor, Packing, new_decompressor, zstd
from asyncpush.errors import ManifestError
from asyncpush.settings import Settings
from asyncpush.sources import open_source
from support.images import CONFIG, MANIFEST, OCI, RAW_LAYER, Layout, config_json, tar

#: A watchdog: what takes longer hangs.
_LIMIT = 30


def archive(size: int = 100_000, padding: int = 0) -> bytes:
    """An archive of one image that does not compress well, but for *padding* bytes of its manifest."""
    layout, random = Layout(), tar({"srv/random": os.urandom(size)})
    config, layer = layout.blob(config_json([random]), CONFIG), layout.blob(random, RAW_LAYER)
    document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]}
    image = layout.blob(json.dumps(document).encode() + b" " * padding, MANIFEST)
    return zstd.compress(layout.tag(image, "1").archive(), 1)


class Counts:
    """How many decompressors with large windows there are, were at most, and were in all."""

    now = most = total = 0

    def decompressor(self, packing: Packing, window_log: int = WINDOW_LOG) -> object:
        """Make one that is counted as long as it is there."""
        return Counted(self if window_log == WINDOW_LOG else Counts(), new_decompressor(packing, window_log))


class Counted:
    """A decompressor."""

    def __init__(self, counts: Counts, inner: Decompressor) -> None:
        self._counts, self._inner = counts, inner
        counts.now, counts.total = counts.now + 1, counts.total + 1
        counts.most = max(counts.most, counts.now)
        time.sleep(0.02)  # so that others would come meanwhile

    def __del__(self) -> None:
        self._counts.now -= 1

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)


async def test_streams_with_large_windows_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = Counts()
    monkeypatch.setattr(asyncpush.sources.spool, "new_decompressor", counts.decompressor)

    async def read(number: int) -> None:
        path = tmp_path / f"{number}.tar.zst"
        await to_thread.run_sync(path.write_bytes, archive())
        async with open_source(path, Settings()) as source:
            assert len(await source.images()) == 1

    async with anyio.create_task_group() as tg:
        for number in range(8):
            tg.start_soon(read, number)
    assert (counts.total, counts.most, counts.now) == (8, 1, 0)


async def test_layers_with_large_windows_are_verified_one_at_a_time(
    tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, layers = Layout(), [tar({f"srv/{number}": os.urandom(200_000)}) for number in range(6)]
    packed = [far_back(layer) if number < 4 else zstd.compress(layer) for number, layer in enumerate(layers)]
    described = [layout.blob(data, f"{OCI}layer.v1.tar+zstd") for data in packed]
    image = layout.manifest(layout.blob(config_json(layers), CONFIG), described)
    folder = await to_thread.run_sync(layout.tag(image, "1").write, tmp_path / "layout")
    await asyncpush.push(registry, f"oci:{folder}:1", "team/app:1")
    counts = Counts()
    monkeypatch.setattr(asyncpush.engine.decompress, "new_decompressor", counts.decompressor)
    found = await asyncpush.verify_image(registry, "team/app:1", deep=True)

    assert (found.problems, found.notes, found.blobs) == ((), (), 7)
    assert (counts.total, counts.most, counts.now) == (4, 1, 0)


def far_back(data: bytes) -> bytes:
    """Compress *data* so that whoever decompresses it needs 128 MiB, since nothing says how much it is."""
    compressor = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: WINDOW_LOG})
    return (
        b"".join(compressor.compress(data[at : at + 65536]) for at in range(0, len(data), 65536)) + compressor.flush()
    )


async def test_a_pipe_that_stalls_keeps_nobody_from_decompressing(tmp_path: Path) -> None:
    path, data = tmp_path / "file.tar.zst", archive(3 * 2**20)
    await to_thread.run_sync(path.write_bytes, archive())
    reader, writer = os.pipe()
    done = anyio.Event()

    async def piped() -> None:
        with open(reader, "rb") as stdin:  # noqa: PTH123, ASYNC230 - a descriptor
            async with open_source("-", Settings(), stdin=stdin) as source:
                assert len(await source.images()) == 1
        done.set()

    with anyio.fail_after(_LIMIT):
        async with anyio.create_task_group() as tg:
            tg.start_soon(piped)
            # Its first MiB is decompressed, and the second does not come.
            await to_thread.run_sync(write_all, writer, data[: 3 * 2**19])
            async with open_source(path, Settings()) as source:
                assert len(await source.images()) == 1
            assert not done.is_set()
            # It goes on where it was.
            with open(writer, "wb") as rest:  # noqa: PTH123, ASYNC230
                await to_thread.run_sync(rest.write, data[3 * 2**19 :])
        assert done.is_set()


def write_all(descriptor: int, data: bytes) -> None:
    """Write to a pipe, and wait until all of it was read."""
    with open(os.dup(descriptor), "wb") as file:  # noqa: PTH123 - a descriptor
        file.write(data)
    end = time.monotonic() + _LIMIT
    while int.from_bytes(fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)), "little"):
        assert time.monotonic() < end
        time.sleep(0.01)


async def test_a_pipe_s_bytes_explain_its_documents_as_a_file_s_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of images in a pipe take no memory that others want."""
    monkeypatch.setattr("asyncpush.sources.blobs.POOL.left", 0)
    honest, padded = tmp_path / "honest.tar.zst", tmp_path / "padded.tar.xz"
    await to_thread.run_sync(honest.write_bytes, archive())
    await to_thread.run_sync(padded.write_bytes, archive(padding=2_000_000))
    for path, is_honest in ((honest, True), (padded, False)):
        for is_piped in (False, True):
            with nullcontext() if is_honest else pytest.raises(ManifestError, match="MiB of memory"):
                await load(path, is_piped=is_piped)


async def load(path: Path, *, is_piped: bool) -> None:
    with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as process:  # noqa: ASYNC220 - it takes no time
        assert process.stdout is not None
        stdin = cast("BinaryIO", process.stdout)
        async with open_source("-" if is_piped else path, Settings(), stdin=stdin) as source:
            assert len(await source.images()) == 1
