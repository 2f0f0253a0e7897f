"""The tar index, against archives whose headers are put together field by field; tarfile is the judge."""

from __future__ import annotations

import io
import os
import tarfile
from dataclasses import dataclass, field
from io import FileIO

from anyio import to_thread
from hypothesis import strategies as st

from asyncpush.sources.file_pool import KeptFile
from asyncpush.sources.tar_index import TarIndex, normalize_name
from support.fuzzing import TIME, search, value_or_error

pytestmark = TIME

BLOCK = 512
KINDS = [b"0", b"0", b"0", b"\0", b"7", b"1", b"2", b"5", b"L", b"K", b"S", b"x", b"x", b"g", b"X", b"V", b"D", b"\xff"]
NAMES = [b"a", b"./a", b"/a/../b", b"index.json", b"manifest.json", b"d/", b"\xff\xfe", b"x" * 99, b"", b"a\0b", b".."]
KEYWORDS = [
    "path", "linkpath", "size", "hdrcharset", "comment", "GNU.sparse.major", "GNU.sparse.minor", "GNU.sparse.name",
    "GNU.sparse.size", "GNU.sparse.realsize", "GNU.sparse.map", "GNU.sparse.offset", "GNU.sparse.numbytes",
    "GNU.sparse.numblocks", "mtime", "",
]  # fmt: skip
VALUES = ["0", "1", "2", "512", "1000", "-1", "1e3", "0x10", "\u0663", "9" * 30, " 1", "1_0", "0,1,2,1", "0,9,", "a/b",
          "BINARY", "", "\n", "\0", "1=2"]  # fmt: skip


@dataclass
class Head:
    """One header, with whatever follows it."""

    kind: bytes
    name: bytes
    link: bytes
    data: bytes
    size: bytes | None = None
    sparse: bytes = b""
    magic: bytes = b"ustar\x0000"
    patches: list[tuple[int, int]] = field(default_factory=list)

    def written(self) -> bytes:
        """Its blocks; the checksum is right, since no reader looks at anything else before that."""
        block = bytearray(BLOCK)
        size = b"%011o\0" % len(self.data) if self.size is None else self.size
        for at, value, length in (
            (0, self.name, 100), (100, b"0000644\0", 8), (108, b"0000000\0", 8), (116, b"0000000\0", 8),
            (124, size, 12), (136, b"00000000000\0", 12), (156, self.kind, 1), (157, self.link, 100),
            (257, self.magic, 8), (386, self.sparse, 109),
        ):  # fmt: skip
            block[at : at + len(value[:length])] = value[:length]
        for at, value in self.patches:
            block[at] = value
        block[148:156] = b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:]))
        return bytes(block) + self.data + bytes(-len(self.data) % BLOCK)


def record(keyword: str, value: str, lie: int) -> bytes:
    rest = f" {keyword}={value}\n".encode()
    length = len(rest) + 1
    while len(str(length)) + len(rest) != length:
        length += 1
    return str(length + lie).encode() + rest


mostly_nothing = st.sampled_from([0] * 30 + [1, -1, 1000, 10**19])
records = st.lists(
    st.builds(record, st.sampled_from(KEYWORDS), st.sampled_from(VALUES) | st.text(max_size=5), mostly_nothing),
    max_size=6,
).map(b"".join)
octal = st.integers(0, 2**33).map(lambda number: b"%o " % number)
binary = st.integers(-(2**62), 2**62).map(
    lambda number: (b"\x80" if number >= 0 else b"\xff") + number.to_bytes(11, "big", signed=True)
)
sizes = (
    st.none() | st.none() | octal | binary | st.sampled_from([b"", b"9", b"-1", b"\x80" + b"\xff" * 11, b"1_0", b" 7 "])
)
numbers = st.lists(st.sampled_from([b"0", b"1", b"2", b"512", b"1024", b"-1", b"x", b"", b"9" * 25]), max_size=9)
heads = st.builds(
    Head,
    kind=st.sampled_from(KINDS),
    name=st.sampled_from(NAMES) | st.binary(max_size=110),
    link=st.sampled_from([b"", b"a", b"../a", b"/", b"x" * 100]),
    data=st.just(b"")
    | st.binary(max_size=1200)
    | records
    | records
    | numbers.map(lambda some: b"\n".join([*some, b""])),
    size=sizes,
    sparse=st.just(b"")
    | st.lists(octal.map(lambda text: text[:12].ljust(12, b"\0")), max_size=8).map(b"".join)
    | st.binary(max_size=109),
    magic=st.sampled_from([b"ustar\x0000", b"ustar  \0", bytes(8)]),
    patches=st.just([]) | st.just([]) | st.lists(st.tuples(st.integers(0, 511), st.integers(0, 255)), max_size=3),
)
ends = st.sampled_from([bytes(1024), bytes(1024), bytes(512), b"", b"x", bytes(512) + b"ustar", bytes(10240)])
cuts = st.sampled_from([None, None, None, 0, 1, -1, 511, 512, 513, -513])


def archive(parts: list[Head], end: bytes, cut: int | None) -> bytes:
    return (b"".join(part.written() for part in parts) + end)[:cut]


archives = st.builds(archive, st.lists(heads, max_size=6), ends, cuts)


def index_of(data: bytes) -> dict[str, tuple[int, bytes | None]]:
    """What an archive's files are by the index: sizes, and the bytes of those that are short."""
    with FileIO(os.memfd_create("a.tar"), "w+") as file:
        file.write(data)
        index = TarIndex(KeptFile(file), "a.tar")
        return {name: content_of(index, name) for name in index.files}


def content_of(index: TarIndex, name: str) -> tuple[int, bytes | None]:
    content = index.find(name)
    assert content is not None
    if content.size > 65536:
        return content.size, None
    buffer = memoryview(bytearray(content.size))
    with content.open() as reader:
        assert reader.readinto(buffer) == content.size
    return content.size, bytes(buffer)


class Judge(tarfile.TarInfo):
    """Takes no more for a long name than its header says, as GNU tar does; tarfile takes all of its last block."""

    def _proc_gnulong(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        start = archive.fileobj.tell()
        name = tarfile.nts(archive.fileobj.read(self.size), archive.encoding, archive.errors)
        archive.fileobj.seek(start)
        member = super()._proc_gnulong(archive)
        setattr(member, "name" if self.type == tarfile.GNUTYPE_LONGNAME else "linkname", name)
        return member


def tarfile_of(data: bytes) -> dict[str, tuple[int, bytes | None]] | None:
    """The same by tarfile; None where it finds no archive, or no whole one."""
    found: dict[str, tuple[int, bytes | None]] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:", tarinfo=Judge) as archive:
            end = -1
            while member := archive.next():
                if archive.offset <= end:
                    return None  # tarfile of some versions of Python goes round in circles
                end = archive.offset
                name = normalize_name(member.name)
                linked = found.get(normalize_name(member.linkname)) if member.islnk() else None
                found.pop(name, None)
                if linked is not None:
                    found[name] = linked
                elif member.isreg():
                    short = member.size <= 65536
                    found[name] = member.size, archive.extractfile(member).read() if short else None
            if archive.offset > len(data):
                return None
    except (tarfile.TarError, ValueError, ArithmeticError, OSError, IndexError):
        return None
    return found


async def test_any_archive_is_an_index_or_an_error_for_users() -> None:
    def law(data: bytes) -> None:
        found = value_or_error(lambda: index_of(data))
        judged = tarfile_of(data)
        # A GNU long name that is empty counts for tarfile; here the header's own name does.
        if found is not None and judged is not None and "" not in judged:
            assert found == judged

    await to_thread.run_sync(lambda: search(law, archives, examples=25))
