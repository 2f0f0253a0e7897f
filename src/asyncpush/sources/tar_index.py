"""The positions of files inside a tar archive: found once, so that their bytes can be read in place."""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from anyio import from_thread

from asyncpush.errors import SourceError
from asyncpush.settings import MiB
from asyncpush.sources.blobs import Content, DocumentMemory, Extent, Region, SparseRegion, hash_content, readable
from asyncpush.sources.detection import HEAD_SIZE, archive_kind
from asyncpush.sources.file_pool import ReadFile

#: An image has a few files per layer; many more are a mistake or an attack.
MAX_ENTRIES = 100_000

#: Names are digests and short paths.
MAX_NAME_LENGTH = 4096

#: Characters of all names and link targets.
MAX_NAMES_LENGTH = 16 * MiB

#: Length of a chain of links; ``docker save`` writes one level.
MAX_LINKS = 16

#: The prefix of files that macOS's tar adds for extended attributes.
_APPLE_DOUBLE = "._"

#: The files at the top of an archive that list its images.
_LISTS = ("index.json", "manifest.json")

#: Extensions of archives at the top of an archive; layers mostly lie in folders.
_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".tar.zst", ".tar.bz2", ".zip")

_ZEROS = bytes(MiB)


@dataclass(frozen=True, slots=True)
class _File:
    start: int
    size: int
    extents: tuple[Extent, ...] | None


@dataclass(frozen=True, slots=True)
class _Link:
    target: str


class TarIndex:
    """The files of a tar archive by name (``blobs.BlobStore``); the last one of a name counts, as in tar.

    Args:
        file: the archive, open for reading while the index is used.
        label: its name in errors.
        memory: bounds its documents.

    Raises:
        SourceError: it is not a tar archive, is cut short or damaged, holds only another archive, or is several
            archives in one.
    """

    def __init__(self, file: ReadFile, label: str, memory: DocumentMemory | None = None) -> None:
        self.label = label
        self._file = file
        self._memory = memory
        self._entries: dict[str, _File | _Link | None] = {}
        #: Notices about it for the user.
        self.notes: tuple[str, ...] = ()
        self._replaced: list[tuple[str, _File]] = []
        reader = TarReader(file)
        try:
            with readable(label):
                self._read(reader)
                self._check_trailing_data(reader.position)
                self._check_replaced()
                if reader.has_end_mark:
                    self._check_only_file()
        except DamagedError as error:
            if not reader.position and file.read(0, HEAD_SIZE)[257:262] != b"ustar":
                raise SourceError(f"{label} is not a tar archive", hint="check the path") from error
            state = "cut short" if isinstance(error, CutError) else "damaged"
            raise SourceError(f"{label} is {state}: {error}", hint="fetch or save it again") from error
        if not reader.has_end_mark:
            # Other readers accept it, too. A missing file is reported when something names it.
            self.label = f"{label} (cut short? it has no end mark)"

    @property
    def names(self) -> list[str]:
        """The names in the archive: files, links and folders."""
        return list(self._entries)

    @property
    def files(self) -> list[str]:
        """The regular files among them."""
        return [name for name, entry in self._entries.items() if isinstance(entry, _File)]

    def find(self, name: str) -> Content | None:
        """The file called *name*; links are followed, inside the archive only.

        Raises:
            SourceError: a link is broken or circular, or *name* is not a regular file.
        """
        target = normalize_name(name)
        if target not in self._entries:
            return None
        for _ in range(MAX_LINKS):
            entry = self._entries.get(target)
            if isinstance(entry, _File):
                return self._content(target, entry)
            if entry is None:
                raise SourceError(f"{name!r} in {self.label} leads to {target!r}, which is not a regular file there")
            target = entry.target
        raise SourceError(f"{name!r} in {self.label} is a link that leads in a circle")

    def advice(self) -> str | None:
        """A hint for an archive without an image, by its content; None without a clue."""
        if ".dockerenv" in self._entries:
            return "these are a container's files, as `docker export` writes them; use `docker save`"
        folders = {name.partition("/")[0] for name in self._entries}
        if len(folders) == 1 and any(f"{folder}/{name}" in self._entries for folder in folders for name in _LISTS):
            return f"all of it lies in the folder {folders.pop()[:200]!r}; make the archive inside that folder"
        if inner := next((name for name in self._entries if name.endswith(_ARCHIVES) and "/" not in name), None):
            return f"it holds archives, such as {inner[:200]!r}; unpack it, and push those"
        return None

    def _content(self, name: str, entry: _File) -> Content:
        label = f"{name!r} in {self.label}"
        if entry.extents is None:
            return Region(self._file, entry.start, entry.size, label, self._memory)
        return SparseRegion(self._file, entry.extents, entry.size, label, self._memory)

    def _read(self, reader: TarReader) -> None:
        names_length = count = 0
        while member := reader.next():
            from_thread.check_cancelled()
            count += 1
            names_length += len(member.name) + len(member.target)
            if count > MAX_ENTRIES:
                raise SourceError(f"{self.label} has more than {MAX_ENTRIES} entries")
            if max(len(member.name), len(member.target)) > MAX_NAME_LENGTH:
                raise DamagedError(
                    f"the entry before byte {reader.position} has a name of {len(member.name)} characters"
                )
            if names_length > MAX_NAMES_LENGTH:
                raise DamagedError(f"its names have more than {MAX_NAMES_LENGTH} characters")
            name = normalize_name(member.name)
            previous = self._entries.get(name)
            if name in _LISTS and isinstance(previous, _File):
                self._replaced.append((name, previous))
            self._entries[name] = self._entry(member)
        if not count:
            raise SourceError(f"{self.label} holds no image: it is an empty archive", hint="save it again")

    def _entry(self, member: Member) -> _File | _Link | None:
        match member.kind:
            case "file":
                return _File(member.start, member.size, member.extents)
            case "symlink":
                return _Link(
                    normalize_name(posixpath.join(posixpath.dirname(normalize_name(member.name)), member.target))
                )
            case "hardlink":
                # A hard link means the file that has the name now, whatever replaces it later.
                target = normalize_name(member.target)
                found = self._entries.get(target)
                return found if isinstance(found, _File) else _Link(target)
            case _:
                return None

    def _check_trailing_data(self, position: int) -> None:
        """Refuse another archive behind the end, which would be ignored; note any other data, as other readers do."""
        while chunk := self._file.read(position, len(_ZEROS)):
            from_thread.check_cancelled()
            if chunk != _ZEROS[: len(chunk)]:
                position += len(chunk) - len(chunk.lstrip(b"\0"))
                if archive_kind(self._file.read(position, HEAD_SIZE)):
                    raise self._joined_archives_error(f"a second one begins at byte {position}")
                self.notes = (
                    f"what follows the end of {self.label}, at byte {position}, is not an archive, and is not read",
                )
                return
            position += len(chunk)

    def _check_replaced(self) -> None:
        """Refuse an archive in which a list of images replaces another, as in archives joined by `tar -A`."""
        for name, previous in self._replaced:
            current = self.find(name)
            if current is None or hash_content(self._content(name, previous)) != hash_content(current):
                raise self._joined_archives_error(f"it has a second {name}, unlike the first")

    def _joined_archives_error(self, reason: str) -> SourceError:
        return SourceError(
            f"{self.label} is several archives in one: {reason}",
            hint="push each alone; one `docker save A B` puts several images into one archive",
        )

    def _check_only_file(self) -> None:
        files = [(name, entry) for name, entry in self._entries.items() if isinstance(entry, _File)]
        files = [(name, entry) for name, entry in files if not posixpath.basename(name).startswith(_APPLE_DOUBLE)]
        if len(files) != 1:
            return
        [(name, entry)] = files
        head = memoryview(bytearray(HEAD_SIZE))
        with self._content(name, entry).open() as reader:
            kind = archive_kind(bytes(head[: reader.readinto(head)]))
        if kind:
            raise SourceError(
                f"{self.label} holds no image, but {name[:200]!r}, itself an archive ({kind})",
                hint="unpack it, and push what is in it",
            )


def normalize_name(name: str) -> str:
    """One key for ``./a``, ``/a``, ``a/`` and ``b/../a``; never a path on disk."""
    return posixpath.normpath("/" + name).lstrip("/")


#: Bytes of one extended header: names, times, extended attributes (such as a resource fork).
MAX_HEADER_SIZE = MiB

#: Bytes of all extended headers of an archive.
MAX_HEADERS_SIZE = 64 * MiB

#: Extended headers before one member; GNU tar and PAX write up to three.
MAX_HEADERS = 16

#: Extents of all sparse files of an archive.
MAX_EXTENTS = 100_000

_BLOCK = tarfile.BLOCKSIZE

_PAX = frozenset({tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE})
_NO_DATA = frozenset(
    {tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE}
)
_LONG_NAMES = {tarfile.GNUTYPE_LONGNAME: "path", tarfile.GNUTYPE_LONGLINK: "linkpath"}

_SPARSE = "GNU.sparse."
_GLOBAL_KEYWORDS = frozenset({"path", "linkpath", "size"})
_KEYWORDS = _GLOBAL_KEYWORDS | frozenset(
    {*(_SPARSE + word for word in ("major", "minor", "name", "size", "realsize", "map"))}
)

#: Sparse format 0.0 repeats these keywords in the order of format 0.1's map.
_MAP_KEYWORDS = frozenset({_SPARSE + "offset", _SPARSE + "numbytes"})

#: Digits of a number: enough for 2 to the power of 64.
_MAX_DIGITS = 20

Records = dict[str, bytes]


class DamagedError(Exception):
    """Raised for a damaged archive whose name is not known yet."""


class CutError(DamagedError):
    """Raised for an archive that ends early."""


@dataclass(frozen=True, slots=True)
class Member:
    """One member of an archive.

    Attributes:
        name: its name as written.
        kind: its kind; ``other`` are folders, devices, and extensions.
        target: the target of a link.
        size: the bytes of a file, with its holes.
        start: the position of its data in the archive.
        extents: the stored parts of a sparse file; None for any other.
    """

    name: str
    kind: Literal["file", "symlink", "hardlink", "other"]
    target: str
    size: int
    start: int
    extents: tuple[Extent, ...] | None


@dataclass(slots=True)
class TarReader:
    """Reads the members of an archive in order; blocks.

    Attributes:
        file: the archive.
        position: the position of the next header; at the end, behind the last member.
        has_end_mark: whether a block of zeros ends the archive.
    """

    file: ReadFile
    position: int = 0
    has_end_mark: bool = False
    _headers_size: int = 0
    _extents: int = 0
    _global: Records = field(default_factory=dict)

    def next(self) -> Member | None:
        """The next member; None at the end.

        Raises:
            DamagedError: there is no valid header.
        """
        records: Records = {}
        is_extended = False
        for _ in range(MAX_HEADERS + 1):
            block = self._header_block()
            if block is None:
                if is_extended:
                    raise CutError("an extended header is the last thing in it")
                return None
            header = self._decode(block)
            if header.type in _PAX:
                records.update(_parse_records(self._extension(header)))
            elif header.type in _LONG_NAMES:
                records[_LONG_NAMES[header.type]] = self._extension(header).partition(b"\0")[0]
            elif header.type == tarfile.XGLTYPE:
                found = _parse_records(self._extension(header))
                self._global.update({word: found[word] for word in _GLOBAL_KEYWORDS & found.keys()})
                continue
            else:
                return self._member(header, block, {**self._global, **records})
            is_extended = True
        raise DamagedError(f"there are more than {MAX_HEADERS} extended headers before byte {self.position}")

    def _header_block(self) -> bytes | None:
        block = self.file.read(self.position, _BLOCK)
        if not block.strip(b"\0"):
            self.has_end_mark = bool(block)
            return None
        if len(block) < _BLOCK:
            raise CutError(f"its last header lacks {_BLOCK - len(block)} bytes")
        return block

    def _decode(self, block: bytes) -> tarfile.TarInfo:
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.HeaderError, ValueError, ArithmeticError) as error:
            raise DamagedError(f"no entry begins at byte {self.position}") from error
        if header.size < 0:
            raise DamagedError("a header has a negative size")
        self.position += _BLOCK
        return header

    def _extension(self, header: tarfile.TarInfo) -> bytes:
        self._headers_size += header.size
        if header.size > MAX_HEADER_SIZE or self._headers_size > MAX_HEADERS_SIZE:
            raise DamagedError(f"an extended header has {header.size} bytes, all of them {self._headers_size}")
        data = self.file.read(self.position, header.size)
        if len(data) < header.size:
            raise CutError(f"an extended header lacks its last {header.size - len(data)} bytes")
        self.position += _padded(header.size)
        return data

    def _block(self) -> bytes:
        block = self.file.read(self.position, _BLOCK)
        if len(block) < _BLOCK:
            raise CutError("the map of a sparse file has no end")
        self.position += _BLOCK
        return block

    def _member(self, header: tarfile.TarInfo, block: bytes, records: Records) -> Member:
        name = _text(records.get(_SPARSE + "name") or records.get("path")) or header.name
        target = _text(records.get("linkpath")) or header.linkname
        if header.type in _NO_DATA:
            kind: Literal["symlink", "hardlink", "other"] = (
                "symlink" if header.issym() else "hardlink" if header.islnk() else "other"
            )
            return Member(name, kind, target, 0, self.position, None)
        stored = _number(records["size"]) if records.get("size") else header.size
        size, extents = stored, None
        if header.isreg() and (sparse := self._sparse(header, block, records, stored)):
            size, stored, pairs = sparse
            extents = self._check_map(pairs, size, stored)
        start = self.position
        if start + stored > (length := self.file.size):
            raise CutError(f"{name[:200]!r} lacks its last {start + stored - length} bytes")
        self.position += _padded(stored)
        return Member(name, "file" if header.isreg() else "other", "", size, start, extents)

    def _sparse(
        self, header: tarfile.TarInfo, block: bytes, records: Records, stored: int
    ) -> tuple[int, int, list[tuple[int, int]]] | None:
        """Size, stored bytes, and map of a sparse file, after reading any map before its data; None for others."""
        if header.type == tarfile.GNUTYPE_SPARSE:
            return _field(block[483:495]), stored, _pairs(self._old_map(block))
        version = tuple(records.get(_SPARSE + word) for word in ("major", "minor"))
        if version == (b"1", b"0"):
            if records.keys() & {_SPARSE + "map", _SPARSE + "size"}:
                raise DamagedError(f"{header.name[:200]!r} is a sparse file of two formats")
            start = self.position
            pairs = _pairs(self._map_before_data())
            return _number(records.get(_SPARSE + "realsize", b"")), stored - (self.position - start), pairs
        if version not in ((None, None), (b"0", b"0"), (b"0", b"1")):
            raise DamagedError(f"{header.name[:200]!r} is a sparse file of an unknown format")
        if _SPARSE + "map" not in records:
            self._check_not_sparse(header, records, stored)
            return None
        numbers = (_number(text) for text in records[_SPARSE + "map"].split(b",") if text)
        return _number(records.get(_SPARSE + "size", b"")), stored, _pairs(numbers)

    def _check_not_sparse(self, header: tarfile.TarInfo, records: Records, stored: int) -> None:
        """Refuse a sparse file without a map: to some readers it is all hole, to others its stored bytes."""
        size, real = (_number(records.get(_SPARSE + word, b"%d" % stored)) for word in ("size", "realsize"))
        if size != stored or real != stored or (stored and _SPARSE + "size" in records):
            raise DamagedError(f"{header.name[:200]!r} is a sparse file without a map")

    def _old_map(self, block: bytes) -> Iterator[int]:
        """GNU's old format: 4 entries in the header, and 21 in each further block."""
        places, more = block[386:482], block[482]
        while True:
            for at in range(0, len(places), 12):
                if not places[at]:
                    return
                yield _field(places[at : at + 12])
            if not more:
                return
            block = self._block()
            places, more = block[:504], block[504]

    def _map_before_data(self) -> Iterator[int]:
        """Format 1.0: the number of pairs and the pairs, one number per line, padded to whole blocks."""
        lines = self._lines()
        for _ in range(2 * _number(next(lines))):
            yield _number(next(lines))

    def _lines(self) -> Iterator[bytes]:
        text = b""
        while True:
            *lines, text = (text[:_BLOCK] + self._block()).split(b"\n")
            yield from lines

    def _check_map(self, pairs: list[tuple[int, int]], size: int, stored: int) -> tuple[Extent, ...]:
        self._extents += len(pairs)
        if self._extents > MAX_EXTENTS:
            raise DamagedError(f"its sparse files have more than {MAX_EXTENTS} pieces")
        extents = []
        end, at = 0, self.position
        for start, length in pairs:
            if start < end or start + length > size:
                raise DamagedError("the map of a sparse file is not in order")
            if length:
                extents.append(Extent(start, length, at))
            end, at = start + length, at + length
        if at != self.position + stored:
            raise DamagedError("the map of a sparse file does not fit its data")
        return tuple(extents)


def _pairs(numbers: Iterator[int]) -> list[tuple[int, int]]:
    """Pairs of offset and length, of bounded number."""
    return list(islice(zip(numbers, numbers, strict=False), MAX_EXTENTS + 1))


def _parse_records(data: bytes) -> Records:
    """The records of an extended header that give names, sizes and positions; no others are kept."""
    records: Records = {}
    numbers: list[bytes] = []
    at = 0
    while at < len(data) and data[at]:
        length, space, _ = data[at : at + 20].partition(b" ")
        end = at + (int(length) if space and length.isdigit() else 0)
        if end <= at or end > len(data) or data[end - 1 : end] != b"\n":
            raise DamagedError("an extended header is malformed")
        keyword, _, value = data[at + len(length) + 1 : end - 1].partition(b"=")
        word = keyword.decode("utf-8", "replace")
        if word in _KEYWORDS:
            records[word] = value
        elif word in _MAP_KEYWORDS:
            numbers.append(value)
        at = end
    if numbers:
        records[_SPARSE + "map"] = b",".join(numbers)
    return records


def _number(text: bytes) -> int:
    if not text.isdigit() or len(text) > _MAX_DIGITS:
        what = "a negative size" if text.startswith(b"-") else f"a size of {text[:20]!r}"
        raise DamagedError(f"a header has {what}")
    return int(text)


def _field(field: bytes) -> int:
    """A number in a header's sparse map: octal digits or, after a high bit, binary."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip()
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise DamagedError("the map of a sparse file is malformed")
    return int(digits, 8)


def _text(text: bytes | None) -> str:
    return (text or b"").decode("utf-8", "surrogateescape")


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK
