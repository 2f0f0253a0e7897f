"""What decompresses with large windows takes turns in a process, and nobody waits for who has nothing to do."""

from __future__ import annotations

import fcntl
import json
import lzma
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

import asyncpush.sources.unpack
from asyncpush.errors import ManifestError
from asyncpush.settings import Settings
from asyncpush.sources import open_source
from asyncpush.stream.unpack import Decompressor, Packing, new_decompressor
from images import CONFIG, MANIFEST, RAW_LAYER, Layout, config_json, tar

#: A watchdog: what takes longer hangs.
_LIMIT = 30


def archive(size: int = 100_000, padding: int = 0) -> bytes:
    """An archive of one image that does not compress well, but for *padding* bytes of its manifest."""
    layout, random = Layout(), tar({"srv/random": os.urandom(size)})
    config, layer = layout.blob(config_json([random]), CONFIG), layout.blob(random, RAW_LAYER)
    document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]}
    image = layout.blob(json.dumps(document).encode() + b" " * padding, MANIFEST)
    return lzma.compress(layout.tag(image, "1").archive(), preset=0)


async def test_streams_with_large_windows_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_now = most = total = 0

    class Counted:
        """A decompressor that is counted as long as it is there."""

        def __init__(self, packing: Packing) -> None:
            nonlocal open_now, most, total
            self._inner: Decompressor = new_decompressor(packing)
            open_now, total = open_now + 1, total + 1
            most = max(most, open_now)

        def __del__(self) -> None:
            nonlocal open_now
            open_now -= 1

        def __getattr__(self, name: str) -> object:
            return getattr(self._inner, name)

    monkeypatch.setattr(asyncpush.sources.unpack, "new_decompressor", Counted)

    async def read(number: int) -> None:
        path = tmp_path / f"{number}.tar.xz"
        await to_thread.run_sync(path.write_bytes, archive())
        async with open_source(path, Settings()) as source:
            assert len(await source.images()) == 1

    async with anyio.create_task_group() as tg:
        for number in range(8):
            tg.start_soon(read, number)
    assert (total, most, open_now) == (8, 1, 0)


async def test_a_pipe_that_stalls_keeps_nobody_from_decompressing(tmp_path: Path) -> None:
    path, data = tmp_path / "file.tar.xz", archive(3 * 2**20)
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
    monkeypatch.setattr("asyncpush.sources.document_memory._POOL._left", 0)
    honest, padded = tmp_path / "honest.tar.xz", tmp_path / "padded.tar.xz"
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
