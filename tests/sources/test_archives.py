"""Laws of archives as files: tar entries, cut and damaged ones, compression, pipes, a full disk."""

from __future__ import annotations

import bz2
import errno
import gzip
import json
import lzma
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
from io import FileIO
from pathlib import Path
from time import monotonic

import anyio
import pytest
from anyio import to_thread

from asyncpush.engine import decompress
from asyncpush.engine.compress import zstd
from asyncpush.errors import AsyncpushError, SourceError
from asyncpush.sources import open_source, tar_index
from support.images import SETTINGS, A, C, DockerSave, Link, app_layout, image_of, layer_tar, read, saved, tar

PACKERS = {"gzip": gzip.compress, "xz": lzma.compress, "zstd": zstd.compress, "bzip2": bz2.compress}


def busy_archive():
    return DockerSave().image(A, C, tags=["app:1.0"]).archive()


async def use(path):
    """All that a push does with a source: open it, choose, read each blob."""
    async with open_source(str(path), SETTINGS) as source:
        for image in await source.images():
            for blob in (image.root.config, *image.root.layers):
                await read(blob)


def assert_one_line(error):
    assert "\n" not in str(error)


# Entries


@pytest.mark.parametrize("dialect", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
async def test_names_may_begin_with_dot_slash_and_be_long(tmp_path, dialect):
    long = "/".join(["d" * 40] * (3 if dialect == tarfile.USTAR_FORMAT else 12)) + "/layer.tar"
    archive = DockerSave().image(A, tags=["a:1"])
    archive.entries[f"./{long}"] = archive.entries.pop(archive.items[0]["Layers"][0])
    archive.items[0]["Layers"] = [long]
    entries = {**archive.entries, "./manifest.json": json.dumps(archive.items).encode(), "a-folder/": Link("x")}

    await use(saved(tmp_path / "a.tar", tar(entries, dialect=dialect)))


async def test_of_entries_with_one_name_the_last_counts(tmp_path):
    layout = app_layout()
    stale = [(f"./{name}", b"stale") for name in layout.files]

    await use(saved(tmp_path / "a.tar", tar(stale + list(layout.all_files().items()))))


@pytest.mark.parametrize("distinct", [True, False])
async def test_entries_are_bounded_whatever_their_names(tmp_path, monkeypatch, distinct):
    monkeypatch.setattr(tar_index, "MAX_ENTRIES", 3)
    path = saved(tmp_path / "a.tar", tar([(f"f{at if distinct else 0}", b"") for at in range(4)]))

    with pytest.raises(SourceError, match="more than 3 entries"):
        await image_of(path)


async def test_names_are_bounded_one_and_all(tmp_path, monkeypatch):
    path = saved(tmp_path / "a.tar", tar({"n" * 5000: b""}, dialect=tarfile.GNU_FORMAT))
    with pytest.raises(SourceError, match="name of 5000"):
        await image_of(path)

    monkeypatch.setattr(tar_index, "MAX_NAMES_LENGTH", 100)
    saved(path, tar([("n" * 50, b""), ("n" * 49, Link("x" * 2))]))
    with pytest.raises(SourceError, match="more than 100 characters"):
        await image_of(path)


@pytest.mark.parametrize("size", [-1, -512, -1024, -1536, -(2**62)])
@pytest.mark.parametrize("pax", [False, True])
async def test_an_entry_of_negative_size_ends_in_an_error_and_not_in_a_loop(tmp_path, size, pax):
    info = tarfile.TarInfo("evil")
    info.size = 0 if pax else size
    info.pax_headers = {"size": str(size)} if pax else {}
    raw = info.tobuf(tarfile.PAX_FORMAT if pax else tarfile.GNU_FORMAT) + tar({"x": b"y"})

    with pytest.raises(SourceError, match="negative size"):
        await image_of(saved(tmp_path / "a.tar", raw))


# Cut and damaged


async def test_an_archive_that_is_cut_anywhere_is_refused_before_a_blob_is_read(tmp_path):
    whole = busy_archive()
    end = len(whole.rstrip(b"\0"))
    cuts = sorted({1, 100, 511, 512, 513, *range(512, end, 3000), *range(512, end, 512 * 40), end - 1})
    for cut in cuts:
        path = saved(tmp_path / "a.tar", whole[:cut])
        with pytest.raises(
            SourceError, match=r"a\.tar.*(is cut short|cut short\? |is not a tar archive|is text, not an image archive)"
        ) as error:
            await image_of(path)

        assert "\n" not in str(error.value)


async def test_a_cut_entry_is_named_with_the_bytes_it_lacks(tmp_path):
    whole = tar({"first": b"x" * 1000, "manifest.json": b"[]"})

    with pytest.raises(SourceError, match="cut short: 'first' lacks its last 300 bytes"):
        await image_of(saved(tmp_path / "a.tar", whole[: 512 + 700]))


async def test_a_broken_header_in_the_middle_is_not_taken_for_the_end(tmp_path):
    whole = bytearray(tar({"a": b"x", "b": b"y", "c": b"z"}))
    whole[1024 + 5] ^= 0xFF

    with pytest.raises(SourceError, match="damaged: no entry begins at byte 1024"):
        await image_of(saved(tmp_path / "a.tar", bytes(whole)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"hello", "text, not an image archive"),
        (os.urandom(5000), "not a tar archive"),
        (b"<" + bytes(range(256)) * 20, "not a tar archive"),
        (layer_tar("files"), "holds no image.*asyncpush layers"),
        (bytes(10240), "holds no image: it is an empty archive"),
        (bz2.compress(bytes(100)), "holds no image: it is an empty archive"),
    ],
)
async def test_what_is_no_archive_of_images_is_refused_in_one_line(tmp_path, data, message):
    with pytest.raises(SourceError, match=message):
        await image_of(saved(tmp_path / "a.tar", data))


# Compressed as a whole


@pytest.mark.parametrize("packing", PACKERS)
async def test_a_compressed_archive_of_several_members_is_read_whole(tmp_path, packing):
    whole, pack = busy_archive(), PACKERS[packing]

    await use(saved(tmp_path / "a", pack(whole[:3000]) + pack(whole[3000:])))


async def test_a_zstd_file_that_begins_with_a_skippable_frame_is_read(tmp_path):
    await use(saved(tmp_path / "a", b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd" + zstd.compress(busy_archive())))


@pytest.mark.parametrize("isal", [True, False])
@pytest.mark.parametrize("packing", PACKERS)
async def test_cut_compressed_data_is_refused(tmp_path, packing, isal, monkeypatch):
    if not isal:
        monkeypatch.setattr(decompress, "igzip_lib", None)
    packed = PACKERS[packing](busy_archive())
    for keep in (20, len(packed) // 2, len(packed) - 5, len(packed) - 1):
        with pytest.raises(SourceError, match="is cut short"):
            await image_of(saved(tmp_path / "a", packed[:keep]))


@pytest.mark.parametrize("isal", [True, False])
@pytest.mark.parametrize("packing", PACKERS)
async def test_changed_compressed_data_is_refused_or_read_as_it_was(tmp_path, packing, isal, monkeypatch):
    if not isal:
        monkeypatch.setattr(decompress, "igzip_lib", None)
    packed = bytearray(PACKERS[packing](busy_archive()))
    for position in range(0, len(packed), max(len(packed) // 60, 1)):
        broken = bytearray(packed)
        broken[position] ^= 0x55
        try:
            await use(saved(tmp_path / "a", bytes(broken)))
        except AsyncpushError as error:
            assert_one_line(error)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
async def test_a_full_disk_is_one_line_with_advice(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: FileIO("/dev/full", "r+"))

    with pytest.raises(SourceError, match="No space left on device; set TMPDIR"):
        await image_of(saved(tmp_path / "a.tgz", gzip.compress(busy_archive())))


async def test_no_directory_for_temporary_files_is_one_line_with_advice(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))

    with pytest.raises(SourceError, match=f"{os.strerror(errno.ENOENT)}; set TMPDIR"):
        await image_of(saved(tmp_path / "a.tgz", gzip.compress(busy_archive())))


def listed(folder):
    return {path.name for path in Path(folder).iterdir()}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
async def test_nothing_stays_open_or_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    path = saved(tmp_path / "a.tgz", gzip.compress(busy_archive()))
    before = listed("/proc/self/fd")

    async with open_source(str(path), SETTINGS) as source:
        assert await source.image()
        assert listed(tmp_path) == {"a.tgz"}
        assert len(listed("/proc/self/fd")) == len(before) + 1

    assert len(listed("/proc/self/fd")) == len(before)


# Pipes


@pytest.fixture
def pipe():
    inlet, outlet = os.pipe()
    with os.fdopen(inlet, "rb") as reader, os.fdopen(outlet, "wb", buffering=0) as writer:
        yield reader, writer


async def test_a_pipe_that_gives_single_bytes_at_first_is_read(pipe):
    reader, writer = pipe
    data = gzip.compress(busy_archive())

    async def feed():
        for byte in data[:10]:
            await to_thread.run_sync(writer.write, bytes([byte]))
        await to_thread.run_sync(writer.write, data[10:])
        writer.close()

    async with anyio.create_task_group() as tg:
        tg.start_soon(feed)
        async with open_source("-", SETTINGS, stdin=reader) as source:
            assert (await source.image()).tag == "1.0"


@pytest.mark.parametrize("sent", [b"", b"\x1f\x8b\x08", busy_archive()[:3000]])
async def test_waiting_for_a_pipe_ends_when_it_is_cancelled(pipe, sent):
    reader, writer = pipe
    await to_thread.run_sync(writer.write, sent)
    start = monotonic()

    with anyio.move_on_after(0.05) as scope:
        async with open_source("-", SETTINGS, stdin=reader):
            pytest.fail("it opened")

    assert scope.cancelled_caught
    assert monotonic() - start < 30


async def test_waiting_for_the_writer_of_a_named_pipe_ends_when_it_is_cancelled(tmp_path):
    os.mkfifo(tmp_path / "fifo")

    with anyio.move_on_after(0.05) as scope:
        async with open_source(str(tmp_path / "fifo"), SETTINGS):
            pytest.fail("it opened")

    assert scope.cancelled_caught


async def test_an_interrupted_process_does_not_wait_for_its_pipe(tmp_path):
    script = (
        "import signal, anyio, asyncpush.sources as s, asyncpush.settings as t\n"
        # Whoever runs the tests in the background of a shell hands it on as ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "async def main():\n"
        "    async with anyio.create_task_group() as tg:\n"
        "        tg.start_soon(opened)\n"
        "        await anyio.sleep(0.1)\n"
        "        print('waiting', flush=True)\n"
        "async def opened():\n"
        "    async with s.open_source('-', t.Settings()): pass\n"
        "anyio.run(main)\n"
    )

    def run():
        process = subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        with process:
            process.stdout.readline()
            process.send_signal(signal.SIGINT)
            return process.wait(60), process.stderr.read()

    status, errors = await to_thread.run_sync(run)
    assert status in (-signal.SIGINT, 130)
    assert b"KeyboardInterrupt" in errors


async def test_a_named_pipe_is_read_whether_its_writer_comes_before_or_after(tmp_path):
    path = tmp_path / "fifo"
    os.mkfifo(path)

    async with anyio.create_task_group() as tg:
        tg.start_soon(to_thread.run_sync, path.write_bytes, busy_archive())
        async with open_source(str(path), SETTINGS) as source:
            assert (await source.image()).tag == "1.0"


async def test_an_empty_pipe_and_a_terminal_are_refused(pipe):
    reader, writer = pipe
    writer.close()
    with pytest.raises(SourceError, match="standard input is empty"):
        async with open_source("-", SETTINGS, stdin=reader):
            pytest.fail("it opened")

    main, terminal = os.openpty()
    with os.fdopen(terminal, "rb", buffering=0) as stdin, pytest.raises(SourceError, match="is a terminal"):
        async with open_source("-", SETTINGS, stdin=stdin):
            pytest.fail("it opened")
    os.close(main)


async def test_a_redirected_file_that_was_read_from_before_goes_on_there(tmp_path):
    with FileIO(saved(tmp_path / "a", b"first line\n" + busy_archive())) as stdin:
        stdin.seek(11)
        async with open_source("-", SETTINGS, stdin=stdin) as source:
            assert (await source.image()).tag == "1.0"
