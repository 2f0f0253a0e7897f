"""A file that is not an image archive is called what it is, with what would be right."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncpush.engine.compress import zstd
from asyncpush.errors import SourceError
from asyncpush.sources import open_source
from support.images import SETTINGS, A, DockerSave, Link, app_layout, image_of, saved, tar

IMAGE = DockerSave().image(A, tags=["app:1.0"]).archive()


def zipped(data):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("image.tar", data)
    return out.getvalue()


STRANGERS = {
    "zip": (zipped(IMAGE), "is a zip archive, not an image archive; unpack it"),
    "html": (b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>", "is an HTML page, .*; fetch it again"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is XML, .*; fetch it again"),
    "powershell": (b"\xff\xfe" + IMAGE.decode("latin1").encode("utf-16-le"), "is UTF-16 text, .*docker save -o FILE"),
    "json": (b'{"message": "not found"}', "is JSON, not"),
    "manifest": (b'{"schemaVersion": 2, "layers": []}', "is JSON, a manifest without its layers.*docker://"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer.*git lfs pull"),
    "text": (b"Error response from daemon: No such image: app\n", "is text, .*a command's error message"),
    "lz4": (b"\x04\x22\x4d\x18" + bytes(600), "is compressed with lz4; decompress it first"),
    "program": (b"\x7fELF" + bytes(600), "is a program, not an image archive"),
}


@pytest.mark.parametrize("stranger", STRANGERS)
async def test_what_is_given_in_place_of_an_archive_is_named(tmp_path, stranger):
    data, message = STRANGERS[stranger]
    with pytest.raises(SourceError, match=f"a.tar {message}"):
        await image_of(saved(tmp_path / "a.tar", data))
    with pytest.raises(SourceError, match=f"standard input {message}"):
        async with open_source("-", SETTINGS, stdin=io.BytesIO(data)):
            pytest.fail("it opened")
    with pytest.raises(SourceError, match=rf"a.tar, decompressed \(gzip\), {message}"):
        await image_of(saved(tmp_path / "a.tar", gzip.compress(data)))


async def test_what_was_compressed_twice_or_is_empty_inside_is_named(tmp_path):
    for data, message in ((gzip.compress(IMAGE), "is compressed with gzip once more"), (b"", "is empty")):
        with pytest.raises(SourceError, match=rf"decompressed \(bzip2\), {message}"):
            await image_of(saved(tmp_path / "a", bz2.compress(data)))


@given(magic=st.sampled_from([*(data[:4] for data, _ in STRANGERS.values()), b"BZh9", b"LZIP"]))
def test_a_tar_archive_is_one_whatever_its_first_name(tmp_path_factory, magic):
    import anyio

    name = magic.replace(b"\0", b"").replace(b"/", b"").decode("utf-8", "surrogateescape")
    files = {name: b"x", **app_layout().all_files()}
    path = saved(tmp_path_factory.mktemp("a") / "a.tar", tar(files, dialect=tarfile.GNU_FORMAT))

    assert anyio.run(image_of, path).tag == "1.0"


@pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress, zipped])
async def test_an_archive_in_an_archive_is_named(tmp_path, pack):
    data = tar({"folder/": Link("x"), "folder/image.tar": pack(IMAGE)})

    for kind in ("", "docker-archive:", "oci-archive:"):
        with pytest.raises(SourceError, match=r"holds no image, but 'folder/image.tar', itself an archive .*; unpack"):
            await image_of(f"{kind}{saved(tmp_path / 'a.tar', data)}")


async def test_an_exported_container_and_a_layout_in_a_folder_are_told(tmp_path):
    exported = tar({".dockerenv": b"", "etc/passwd": b"root"})
    with pytest.raises(SourceError, match=r"holds no image.*use `docker save`"):
        await image_of(saved(tmp_path / "a.tar", exported))

    several = tar({"a.tar": IMAGE, "b.tar": IMAGE})
    with pytest.raises(SourceError, match=r"holds no image.*such as 'a.tar'; unpack it"):
        await image_of(saved(tmp_path / "a.tar", several))

    inside = tar({f"my/{name}": data for name, data in app_layout().all_files().items()})
    with pytest.raises(SourceError, match=r"holds no image.*in the folder 'my'; make the archive inside that folder"):
        await image_of(saved(tmp_path / "a.tar", inside))


# Behind compressed data

PACKERS = {"gzip": gzip.compress, "xz": lzma.compress, "zstd": zstd.compress, "bzip2": bz2.compress}


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("zeros", [1, 4, 512, 300_000, 3 << 20])
async def test_zeros_behind_compressed_data_are_padding(tmp_path, packing, zeros):
    packed = PACKERS[packing](IMAGE)

    assert (await image_of(saved(tmp_path / "a", packed + bytes(zeros)))).tag == "1.0"
    halves = [PACKERS[packing](half) for half in (IMAGE[:5000], IMAGE[5000:])]
    assert (await image_of(saved(tmp_path / "a", bytes(zeros).join(halves)))).tag == "1.0"


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("rest", [b"done\n", b"x", b"\0\0\0\0x", IMAGE])
async def test_something_else_behind_compressed_data_is_said(tmp_path, packing, rest):
    with pytest.raises(SourceError, match="holds other data behind its compressed data"):
        await image_of(saved(tmp_path / "a", PACKERS[packing](IMAGE) + rest))


@pytest.mark.parametrize(
    "data",
    [
        lzma.compress(b"x" * 1000, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30}]),
        b"\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00",  # a frame with a window of 2 GiB, and an empty block
    ],
)
async def test_the_memory_that_compressed_data_asks_for_is_bounded(tmp_path, data):
    with pytest.raises(SourceError, match="needs more than 128 MiB of memory to be decompressed; decompress it first"):
        await image_of(saved(tmp_path / "a", data))


async def test_a_gzip_header_of_any_length_is_read(tmp_path):
    packed = gzip.compress(IMAGE)
    long = packed[:3] + b"\x08" + packed[4:10] + b"n" * (2 << 20) + b"\0" + packed[10:]

    assert (await image_of(saved(tmp_path / "a", long))).tag == "1.0"
