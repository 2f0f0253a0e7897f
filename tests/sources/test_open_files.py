"""Many archives and few descriptors: each is opened when it is read, and a shortage is named as what it is."""

from __future__ import annotations

import errno
import gzip
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from contextlib import AsyncExitStack, contextmanager
from itertools import islice
from pathlib import Path

import pytest
from anyio import to_thread

from asyncpush import Settings, connect, open_files
from asyncpush.errors import ConnectionFailedError, SourceError
from asyncpush.model import Digest
from asyncpush.protocols import Image
from asyncpush.sources import open_source
from support.aws import aws
from support.images import SETTINGS, DockerSave, layer_tar

PLAIN = Settings(compression="none")

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")


def opened() -> set[int]:
    """The numbers of the files that are open (the one that lists them is not)."""
    names = [int(path.name) for path in Path("/proc/self/fd").iterdir()]
    return {number for number in names if Path(f"/proc/self/fd/{number}").exists()}


@contextmanager
def room_for(count: int):
    """Let this process open *count* files more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unused = (number for number in range(hard) if number not in opened())
    resource.setrlimit(resource.RLIMIT_NOFILE, (next(islice(unused, count, None)), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def archives(folder: Path, count: int, *, packed: bool = False) -> list[str]:
    paths = []
    for number in range(count):
        data = DockerSave().image(layer_tar(f"file {number}", 50), tags=[f"app:{number}"]).archive()
        path = folder / f"{number}.tar{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(data, 1) if packed else data)
        paths.append(str(path))
    return paths


def first_bytes(image: Image) -> bytes:
    """What its layer begins with, as it is in the archive."""
    [layer] = image.root.layers
    buffer = memoryview(bytearray(5))
    with layer.open() as reader:
        reader.readinto(buffer)
    return bytes(buffer)


@pytest.mark.parametrize("packed", [False, True])
async def test_more_archives_than_descriptors_are_all_read(tmp_path, packed):
    paths = await to_thread.run_sync(lambda: archives(tmp_path, 60, packed=packed))
    with room_for(40):
        async with AsyncExitStack() as stack:
            sources = [await stack.enter_async_context(open_source(path, PLAIN)) for path in paths]
            images = [await source.image() for source in sources]
            assert [image.tag for image in images] == [str(number) for number in range(60)]
            assert [await to_thread.run_sync(first_bytes, image) for image in images] == [b"srv/f"] * 60


async def test_a_replaced_archive_is_not_taken_for_the_opened_one(tmp_path, monkeypatch):
    """An archive that replaced the opened one is not taken for it."""
    monkeypatch.setattr(open_files, "share", lambda _: 1)
    first, second = await to_thread.run_sync(archives, tmp_path, 2)
    async with open_source(first, SETTINGS) as source, open_source(second, SETTINGS) as other:
        await to_thread.run_sync(shutil.copy, first, f"{first}.new")
        await to_thread.run_sync(os.replace, f"{first}.new", first)
        assert (await other.image()).tag == "1"
        with pytest.raises(SourceError, match="was replaced by another file"):
            await source.image()


async def test_the_room_of_a_copy_is_used_again_and_given_back(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    paths = await to_thread.run_sync(lambda: archives(tmp_path, 3, packed=True))
    async with AsyncExitStack() as stack:
        before = len(opened())
        first = await stack.enter_async_context(open_source(paths[0], SETTINGS))
        async with open_source(paths[1], SETTINGS) as second:
            assert len(opened()) == before + 1, "both copies lie in one file"
            assert (await second.image()).tag == "1"
        third = await stack.enter_async_context(open_source(paths[2], SETTINGS))
        assert [(await source.image()).tag for source in (first, third)] == ["0", "2"]
    assert len(opened()) == before


async def test_a_shortage_at_a_connection_to_ecr_is_named():
    nobody, settings = aws("http://127.0.0.1:9"), Settings(max_attempts=1)
    async with connect(aws=nobody, settings=settings) as registry:
        repository = registry.repository("team/app")
        with room_for(0), pytest.raises(ConnectionFailedError, match="may open no more; raise the limit with `ulimit"):
            await repository.available([Digest.of(b"")])


async def test_a_shortage_at_a_source_is_named(tmp_path):
    [path] = await to_thread.run_sync(archives, tmp_path, 1)
    with room_for(0), pytest.raises(SourceError, match="may open no more; raise the limit"):
        await open_source(path, SETTINGS).__aenter__()


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_a_shortage_is_found_however_deep_it_is_hidden(number):
    error = ValueError("something else")
    error.__cause__ = OSError(number, os.strerror(number))
    assert "open" in (open_files.shortage(error) or "")
    assert open_files.shortage(OSError(errno.ENOENT, "no such file")) is None


def test_the_command_raises_its_soft_limit():
    program = """
import resource, asyncpush.__main__, asyncpush.cli.main
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 512))
asyncpush.cli.main.run_app = lambda _: print(*resource.getrlimit(resource.RLIMIT_NOFILE))
asyncpush.__main__.main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "512 512\n", done.stderr
