"""Where the files of a tar archive lie inside it: found once, so that their bytes can be read in place."""

from __future__ import annotations

import os
import posixpath
import tarfile
from dataclasses import dataclass
from io import FileIO
from typing import Self

from anyio import from_thread

from asyncpush.errors import SourceError
from asyncpush.sources.content import Region, readable

#: An image has a few files a layer; many more are a mistake or an attack.
MAX_ENTRIES = 100_000

#: Names are digests and short paths.
MAX_NAME_LENGTH = 4096

#: Extended headers hold names and times. tarfile reads them into memory whole, and searches them in quadratic time.
MAX_HEADER_SIZE = 16 * 1024

#: Links to links to links; ``docker save`` writes one level.
MAX_LINKS = 16

_EXTENSIONS = frozenset(
    {tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK}
)


class _DamagedError(Exception):
    """The reason for a SourceError that does not know the archive's name yet."""


class _Header(tarfile.TarInfo):
    """A header whose claims are within bounds before tarfile acts on them."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.size < 0:
            raise _DamagedError("a header has a negative size")
        if header.type in _EXTENSIONS and header.size > MAX_HEADER_SIZE:
            raise _DamagedError(f"an extended header has {header.size} bytes")
        return header


@dataclass(frozen=True, slots=True)
class _Link:
    target: str


class TarIndex:
    """The files of a tar archive by name (``content.Store``); of several with one name the last counts, as tar has it.

    Args:
        file: the archive, open for reading as long as the index is used. Its position is moved.
        label: how to call it in errors.

    Raises:
        SourceError: it is no tar archive, is cut short, or is damaged.
    """

    def __init__(self, file: FileIO, label: str) -> None:
        self.label = label
        self._file = file
        self._entries: dict[str, Region | _Link | None] = {}
        try:
            with readable(label):
                self._read()
        except _DamagedError as error:
            raise SourceError(f"{label} is damaged: {error}") from error
        except (tarfile.TarError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            state = "is damaged or cut short" if self._entries else "is not a tar archive"
            raise SourceError(f"{label} {state}: {error}") from error

    def find(self, name: str) -> Region | None:
        """The file called *name*; links are followed, inside the archive only.

        Raises:
            SourceError: a link leads nowhere or in a circle, or *name* is no regular file.
        """
        target = _normal(name)
        if target not in self._entries:
            return None
        for _ in range(MAX_LINKS):
            entry = self._entries.get(target)
            if isinstance(entry, Region):
                return entry
            if entry is None:
                raise SourceError(f"{name!r} in {self.label} leads to {target!r}, which is no regular file there")
            target = entry.target
        raise SourceError(f"{name!r} in {self.label} is a link that leads in a circle")

    def _read(self) -> None:
        size = self._file.seek(0, os.SEEK_END)
        self._file.seek(0)
        with open(self._file.fileno(), "rb", closefd=False) as stream:
            archive = tarfile.TarFile(fileobj=stream, mode="r", tarinfo=_Header)
            while (header := archive.next()) is not None:
                if header.size < 0:  # from an extended header; tarfile would go back, and for ever
                    raise _DamagedError(f"the entry at byte {header.offset} has a negative size")
                self._add(header, size)
                from_thread.check_cancelled()
        self._check_end_mark(archive.offset)

    def _add(self, header: tarfile.TarInfo, size: int) -> None:
        if len(self._entries) >= MAX_ENTRIES:
            raise SourceError(f"{self.label} has more than {MAX_ENTRIES} entries")
        if len(header.name) > MAX_NAME_LENGTH:
            raise _DamagedError(f"the entry at byte {header.offset} has a name of {len(header.name)} characters")
        name = _normal(header.name)
        if header.issparse():
            raise SourceError(
                f"{name!r} in {self.label} is stored as a sparse file", hint="make the archive without --sparse"
            )
        if header.isreg():
            if header.offset_data + header.size > size:
                missing = header.offset_data + header.size - size
                raise SourceError(
                    f"{self.label} is cut short: {name!r} lacks its last {missing} bytes", hint="fetch or save it again"
                )
            self._entries[name] = Region(self._file, header.offset_data, header.size, f"{name!r} in {self.label}")
        elif header.issym():
            self._entries[name] = _Link(_normal(posixpath.join(posixpath.dirname(name), header.linkname)))
        elif header.islnk():
            self._entries[name] = _Link(_normal(header.linkname))
        else:
            self._entries[name] = None

    def _check_end_mark(self, end: int) -> None:
        """See that the archive was whole: tarfile takes a broken header for the end; only a block of zeros is one."""
        block = os.pread(self._file.fileno(), tarfile.BLOCKSIZE, end)
        if len(block) < tarfile.BLOCKSIZE:
            raise SourceError(f"{self.label} is cut short: it has no end mark", hint="fetch or save it again")
        if any(block):
            raise _DamagedError(f"no entry begins at byte {end}")


def _normal(name: str) -> str:
    """One spelling for ``./a``, ``/a``, ``a/`` and ``b/../a``; a key, never a path on disk."""
    return posixpath.normpath("/" + name).lstrip("/")
