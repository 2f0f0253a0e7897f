"""Laws of the members of tar archives; GNU tar, tarfile and skopeo are the judges."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import tarfile
import tracemalloc
from functools import partial
from io import FileIO

import pytest
from anyio import to_thread
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from asyncpush.errors import SourceError
from asyncpush.protocols import SeekableReader
from asyncpush.sources import open_source, tar_index
from asyncpush.sources.file_pool import KeptFile
from asyncpush.sources.tar_index import TarIndex
from support.images import SETTINGS, A, C, DockerSave, Layout, Link, image_of, read, saved, tar

FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

#: Arguments of GNU tar: each makes another kind of sparse member.
SPARSE = {
    "old": ["--format=gnu"],
    "0.0": ["--format=pax", "--sparse-version=0.0"],
    "0.1": ["--format=pax", "--sparse-version=0.1"],
    "1.0": ["--format=pax", "--sparse-version=1.0"],
}

HOLES = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), max_size=30)


def in_thread(function, *args):
    """Indexes are read in a worker thread of anyio."""
    return to_thread.run_sync(function, *args)


async def run(command, folder):
    await in_thread(partial(subprocess.run, command, cwd=folder, check=True, capture_output=True, timeout=60))


def contents(path):
    """What an archive's files hold, by name."""
    with FileIO(path) as file:
        index = TarIndex(KeptFile(file), "a.tar")
        return {name: content_of(index, name) for name in index.names}


def content_of(index, name):
    content = index.find(name)
    buffer = memoryview(bytearray(content.size + 10))
    with content.open() as reader:
        assert isinstance(reader, SeekableReader)
        assert reader.readinto(buffer) == reader.consumed == content.size
        whole = bytes(buffer[: content.size])
        for start in {0, 1, 511, 512, content.size // 2, content.size - 1} & set(range(content.size)):
            assert reader.read_at(start, memoryview(bytearray(700))) == whole[start : start + 700]
    return whole


def assert_one_line(error):
    assert "\n" not in str(error)


@pytest.fixture
def gnu_tar(need):
    program = need("tar")
    if "GNU tar" not in subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout:
        pytest.skip("this tar is another one")
    return program


# Sparse members


def with_a_hole(path, data):
    """Write *data* behind a hole: GNU tar looks for zeros only in a file that takes less room than it has bytes."""
    with path.open("wb") as file:
        file.seek(1 << 18)
        file.write(data)
        file.truncate((1 << 18) + len(data))
    return bytes(1 << 18) + data


@pytest.mark.parametrize("dialect", SPARSE)
@settings(FUZZ, max_examples=6)
@given(blocks=HOLES, tail=st.integers(0, 700))
@example(blocks=[(1, 1)] * 50, tail=0)
async def test_sparse_files_read_as_the_files_that_gnu_tar_was_given(tmp_path, gnu_tar, dialect, blocks, tail):
    data = b"".join(bytes(hole * 512) + b"data" * 128 * size for hole, size in blocks) + b"x" * (tail % 3) + bytes(tail)
    data = with_a_hole(tmp_path / "f", data)
    command = [gnu_tar, "--sparse", "--hole-detection=raw", *SPARSE[dialect], "-cf", "a.tar", "f"]
    await run(command, tmp_path)

    with tarfile.open(tmp_path / "a.tar") as archive:
        assert archive.getmember("f").issparse()
    assert await in_thread(contents, tmp_path / "a.tar") == {"f": data}


async def test_a_sparse_layer_is_pushed_as_the_layer_that_it_was(tmp_path, gnu_tar, need):
    archive = DockerSave().image(with_a_hole(tmp_path / "layer", A), tags=["a:1"])
    [name] = archive.items[0]["Layers"]
    names = {**archive.entries, "manifest.json": json.dumps(archive.items).encode(), "layer": b""}
    names[name] = Link("layer")
    for name, data in names.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if isinstance(data, Link):
            (tmp_path / name).symlink_to("../layer")
        elif data:
            (tmp_path / name).write_bytes(data)
    command = [gnu_tar, "--sparse", "--hole-detection=raw", "--format=pax", "-cf", "a.tar", *names]
    await run(command, tmp_path)
    assert (tmp_path / "a.tar").stat().st_size < (1 << 18)

    async with open_source(str(tmp_path / "a.tar"), SETTINGS) as source:
        [sparse] = (await source.image()).root.layers
        found = await read(sparse)
    async with open_source(str(saved(tmp_path / "b.tar", archive.archive())), SETTINGS) as source:
        [plain] = (await source.image()).root.layers
        assert found == await read(plain)
        assert sparse.identity == plain.identity


def pax(records, data=b"", *, kind=tarfile.REGTYPE, name="f"):
    """A member with an extended header of these records, in this order, repeated ones among them."""
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, len(body := b"".join(record(*pair) for pair in records))
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, len(data)
    return b"".join(
        part + bytes(-len(part) % 512) for part in (info.tobuf(tarfile.USTAR_FORMAT), body, member.tobuf(), data)
    )


def record(keyword, value):
    rest = f" {keyword}={value}\n".encode()
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length += 1
    return str(length).encode() + rest


NUMBERS = st.lists(st.integers(-2, 2000) | st.integers(0, 2**70), max_size=12)


@FUZZ
@given(numbers=NUMBERS, size=st.integers(-1, 3000), stored=st.binary(max_size=1500), first=st.sampled_from("01"))
async def test_any_map_of_a_sparse_file_ends_in_its_size_or_one_line(tmp_path, numbers, size, stored, first):
    version = [("GNU.sparse.major", first), ("GNU.sparse.minor", "0"), ("GNU.sparse.name", "f")]
    if first == "1":
        text = "".join(f"{number}\n" for number in [len(numbers) // 2, *numbers]).encode()
        stored = text + bytes(-len(text) % 512) + stored
        records = [*version, ("GNU.sparse.realsize", size)]
    else:
        records = [*version, ("GNU.sparse.map", ",".join(map(str, numbers))), ("GNU.sparse.size", size)]
    path = saved(tmp_path / "a.tar", pax(records, stored) + bytes(1024))

    try:
        found = await in_thread(contents, path)
    except SourceError as error:
        assert_one_line(error)
    else:
        assert [len(data) for data in found.values()] == [size]


@pytest.mark.parametrize(
    ("records", "what"),
    [
        ([("GNU.sparse.size", 0)], "without a map"),
        ([("GNU.sparse.size", 4)], "without a map"),
        ([("GNU.sparse.realsize", 5)], "without a map"),
        ([("GNU.sparse.major", "0"), ("GNU.sparse.minor", "1"), ("GNU.sparse.size", 9)], "without a map"),
        ([("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.size", 4)], "of two formats"),
        ([("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.map", "0,4")], "of two formats"),
    ],
)
async def test_a_sparse_file_that_readers_take_for_different_bytes_is_refused(tmp_path, records, what):
    path = saved(tmp_path / "a.tar", pax(records, b"data") + bytes(1024))

    with pytest.raises(SourceError, match=f"'f' is a sparse file {what}") as caught:
        await in_thread(contents, path)
    assert_one_line(caught.value)


async def test_a_file_whose_size_is_said_twice_reads_as_it_is_stored(tmp_path):
    path = saved(tmp_path / "a.tar", pax([("GNU.sparse.realsize", 4)], b"data") + bytes(1024))

    assert await in_thread(contents, path) == {"f": b"data"}


async def test_maps_of_sparse_files_are_bounded_all_together(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_index, "MAX_EXTENTS", 100)
    map_ = ",".join(f"{at},0" for at in range(60))
    one = pax([("GNU.sparse.map", map_), ("GNU.sparse.size", 100)])

    assert await in_thread(contents, saved(tmp_path / "a.tar", one)) == {"f": bytes(100)}
    with pytest.raises(SourceError, match="more than 100 pieces"):
        await in_thread(contents, saved(tmp_path / "a.tar", one + one))


# Extended headers


@pytest.mark.parametrize("size", [30_000, 700_000])
async def test_large_extended_attributes_stand_in_nobodys_way(tmp_path, size):
    attribute = base64.b64encode(bytes(size * 3 // 4)).decode()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in (("a", b"1"), ("b" * 300, b"2")):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = 1, {"LIBARCHIVE.xattr.com.apple.ResourceFork": attribute}
            archive.addfile(info, io.BytesIO(data))

    assert await in_thread(contents, saved(tmp_path / "a.tar", out.getvalue())) == {"a": b"1", "b" * 300: b"2"}


async def test_extended_headers_are_bounded_in_size_and_number(tmp_path, monkeypatch):
    path = tmp_path / "a.tar"
    with pytest.raises(SourceError, match="an extended header has 10485778 bytes"):
        await in_thread(contents, saved(path, pax([("comment", "x" * (10 << 20))])))

    monkeypatch.setattr(tar_index, "MAX_HEADERS_SIZE", 100_000)
    with pytest.raises(SourceError, match="an extended header has"):
        await in_thread(contents, saved(path, pax([("comment", "x" * 30_000)]) * 4))

    header = pax([("comment", "x")])[:1024]
    with pytest.raises(SourceError, match="more than 16 extended headers"):
        await in_thread(contents, saved(path, header * 17 + tar({"a": b"1"})))


async def test_a_large_global_header_costs_its_size_once(tmp_path):
    words = {f"k{at}": "v" for at in range(15_000)}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT, pax_headers=words) as archive:
        for at in range(300):
            archive.addfile(tarfile.TarInfo(f"f{at}"))
    path = saved(tmp_path / "a.tar", out.getvalue())

    def peak():
        tracemalloc.start()
        try:
            assert len(contents(path)) == 300
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert await in_thread(peak) < 3 << 20


# Against tarfile

NAMES = st.text("ab\u00e9\u20ac\U0001f600 =\n.", min_size=1, max_size=150)
FILES = st.lists(st.tuples(NAMES, st.binary(max_size=1200)), min_size=1, max_size=6)


@FUZZ
@given(files=FILES, dialect=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
async def test_members_are_those_that_tarfile_finds(tmp_path, files, dialect):
    path = saved(tmp_path / "a.tar", tar([(f"d/{name}x", data) for name, data in files], dialect=dialect))
    with tarfile.open(path) as archive:
        expected = {member.name: archive.extractfile(member).read() for member in archive}

    assert await in_thread(contents, path) == expected


@FUZZ
@given(place=st.floats(0, 1, exclude_max=True))
async def test_an_archive_cut_at_any_byte_never_gives_a_partial_image(tmp_path, place):
    """An archive that is cut at any byte never gives an incomplete image."""
    archive = DockerSave().image(A, C, tags=["app:1.0"])
    manifest = json.dumps(archive.items).encode()
    for entries in ({"manifest.json": manifest, **archive.entries}, {**archive.entries, "manifest.json": manifest}):
        data = tar(entries)
        end = len(data.rstrip(b"\0"))
        cut = data[: int(place * end) & ~511 if place < 0.7 else int(place * end)]
        if cut:
            with pytest.raises(SourceError) as error:
                await image_of(saved(tmp_path / "a.tar", cut))
            assert_one_line(error.value)


async def test_what_a_cut_between_members_took_away_is_named_with_the_reason(tmp_path):
    archive = DockerSave().image(A, C, tags=["app:1.0"])
    data = tar({"manifest.json": json.dumps(archive.items).encode(), **archive.entries})
    with tarfile.open(fileobj=io.BytesIO(data)) as members:
        last = list(members)[-1].offset

    with pytest.raises(SourceError, match=r"a\.tar \(cut short\? it has no end mark\) lacks"):
        await image_of(saved(tmp_path / "a.tar", data[:last]))


# Ends

IMAGE = DockerSave().image(A, tags=["app:1.0"])
PLAIN = tar({"manifest.json": json.dumps(IMAGE.items).encode(), **IMAGE.entries})
BARE = PLAIN.rstrip(b"\0")
BLOCKS = BARE + bytes(-len(BARE) % 512)
ENDS = {
    "no padding": BARE,
    "no end mark": BLOCKS,
    "half a block": BLOCKS + bytes(100),
    "one block": BLOCKS + bytes(512),
    "end mark": BLOCKS + bytes(1024),
    "a large record": BLOCKS + bytes(3 << 20),
    "an odd record": BLOCKS + bytes(5001),
}


@pytest.mark.parametrize("end", ENDS)
async def test_an_archive_may_end_as_it_does_for_other_readers(tmp_path, need, end):
    skopeo = need("skopeo")
    path = saved(tmp_path / "a.tar", ENDS[end])

    assert (await image_of(path)).tag == "1.0"
    if end != "half a block":  # where skopeo is the stricter one
        await run([skopeo, "--tmpdir", tmp_path, "copy", "-q", "docker-archive:a.tar", "dir:o"], tmp_path)


@pytest.mark.parametrize("lost", [0, 1, 511])
async def test_a_second_archive_is_found_wherever_it_begins(tmp_path, lost):
    first = BLOCKS + bytes(1024 + lost)
    for second in (PLAIN, tar({"a": b"x"})):
        with pytest.raises(SourceError, match=f"a second one begins at byte {len(first)}"):
            await image_of(saved(tmp_path / "a.tar", first + second))


@pytest.mark.parametrize("piped", [False, True])
@pytest.mark.parametrize("kind", ["docker", "oci"])
async def test_archives_that_were_joined_into_one_are_told_by_their_two_lists(tmp_path, kind, piped):
    if kind == "oci":
        layouts = [Layout(), Layout()]
        one, two = (layout.tag(layout.image(x), "1").archive() for layout, x in zip(layouts, (A, C), strict=True))
        bare, name = one.rstrip(b"\0"), "index.json"
    else:
        bare, two, name = BARE, DockerSave().image(C, tags=["tool:2"]).archive(), "manifest.json"
    path = saved(tmp_path / "a.tar", bare + bytes(-len(bare) % 512) + two)

    with path.open("rb") as file, pytest.raises(SourceError, match=f"several archives in one: .* second {name}"):
        async with open_source("-" if piped else str(path), SETTINGS, stdin=file):
            pass


async def test_an_archive_may_hold_its_list_twice(tmp_path):
    assert (await image_of(saved(tmp_path / "a.tar", BLOCKS + PLAIN))).tag == "1.0"


@pytest.mark.parametrize("rest", [b"\r\n", b"Connection closed\n", b"\1" * 700])
async def test_what_follows_the_end_and_is_no_archive_is_named_and_not_read(tmp_path, rest):
    path, events = saved(tmp_path / "a.tar", PLAIN + rest), []

    async with open_source(str(path), SETTINGS, emit=events.append) as source:
        assert (await source.image()).tag == "1.0"
    [note] = events
    assert note.text == f"what follows the end of {path}, at byte {len(PLAIN)}, is not an archive, and is not read"


async def test_appended_members_belong_to_the_archive(tmp_path, gnu_tar):
    path = saved(tmp_path / "a.tar", PLAIN)
    saved(tmp_path / "new", b"x")
    await run([gnu_tar, "-rf", "a.tar", "new"], tmp_path)

    assert (await image_of(path)).tag == "1.0"


# Members of other kinds


async def test_members_that_no_image_needs_stand_in_nobodys_way(tmp_path):
    others = b""
    for kind in (tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"V", b"M", b"Q"):
        info = tarfile.TarInfo("manifest.json" if kind == b"V" else "/dev/null/")
        info.type, info.size = kind, 700 if kind == b"Q" else 0
        others += info.tobuf(tarfile.USTAR_FORMAT) + bytes(1024 if kind == b"Q" else 0)

    await image_of(saved(tmp_path / "a.tar", others + PLAIN))


async def test_a_hard_link_means_the_file_that_had_the_name_then(tmp_path):
    entries = [("a", b"old"), ("b", Link("a", hard=True)), ("a", b"new"), ("a", Link("a", hard=True))]

    assert await in_thread(contents, saved(tmp_path / "a.tar", tar(entries))) == {"a": b"new", "b": b"old"}
