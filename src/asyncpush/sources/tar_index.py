"""Where the files of a tar archive lie inside it: found once, so that their bytes can be read in place."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass

from anyio import from_thread

from asyncpush.errors import SourceError
from asyncpush.settings import MiB
from asyncpush.sources.content import Content, Extent, Region, SparseRegion, hash_content, readable
from asyncpush.sources.document_memory import DocumentMemory
from asyncpush.sources.files import ReadFile
from asyncpush.sources.recognition import archive_kind
from asyncpush.sources.tar_reader import CutError, DamagedError, Member, TarReader
from asyncpush.sources.unpack import HEAD_SIZE

#: An image has a few files a layer; many more are a mistake or an attack.
MAX_ENTRIES = 100_000

#: Names are digests and short paths.
MAX_NAME_LENGTH = 4096

#: Characters of all names and links.
MAX_NAMES_LENGTH = 16 * MiB

#: Links to links to links; ``docker save`` writes one level.
MAX_LINKS = 16

#: What macOS's tar puts beside each file that has extended attributes.
_APPLE_DOUBLE = "._"

#: What lists an archive's images, at its top.
_LISTS = ("index.json", "manifest.json")

#: Endings of archives at the top of an archive; layers mostly lie in folders.
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
    """The files of a tar archive by name (``content.Store``); of several with one name the last counts, as tar has it.

    Args:
        file: the archive, open for reading as long as the index is used.
        label: how to call it in errors.
        memory: what its documents may take.

    Raises:
        SourceError: it is no tar archive, is cut short or damaged, or holds nothing but another archive; or it is
            several archives in one.
    """

    def __init__(self, file: ReadFile, label: str, memory: DocumentMemory | None = None) -> None:
        self.label = label
        self._file = file
        self._memory = memory
        self._entries: dict[str, _File | _Link | None] = {}
        #: What a user should know of it.
        self.notes: tuple[str, ...] = ()
        self._replaced: list[tuple[str, _File]] = []
        reader = TarReader(file)
        try:
            with readable(label):
                self._read(reader)
                self._check_rest(reader.position)
                self._check_replaced()
                if reader.has_end_mark:
                    self._check_only_file()
        except DamagedError as error:
            if not reader.position and file.read(0, HEAD_SIZE)[257:262] != b"ustar":
                raise SourceError(f"{label} is not a tar archive", hint="check the path") from error
            state = "cut short" if isinstance(error, CutError) else "damaged"
            raise SourceError(f"{label} is {state}: {error}", hint="fetch or save it again") from error
        if not reader.has_end_mark:
            # Others take it, too. What a cut took away is missed when something names it.
            self.label = f"{label} (cut short? it has no end mark)"

    def find(self, name: str) -> Content | None:
        """The file called *name*; links are followed, inside the archive only.

        Raises:
            SourceError: a link leads nowhere or in a circle, or *name* is no regular file.
        """
        target = _normal(name)
        if target not in self._entries:
            return None
        for _ in range(MAX_LINKS):
            entry = self._entries.get(target)
            if isinstance(entry, _File):
                return self._content(target, entry)
            if entry is None:
                raise SourceError(f"{name!r} in {self.label} leads to {target!r}, which is no regular file there")
            target = entry.target
        raise SourceError(f"{name!r} in {self.label} is a link that leads in a circle")

    def advice(self) -> str | None:
        """What to do about an archive that holds no image where one is looked for; None where nothing shows it."""
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
            name = _normal(member.name)
            earlier = self._entries.get(name)
            if name in _LISTS and isinstance(earlier, _File):
                self._replaced.append((name, earlier))
            self._entries[name] = self._entry(member)
        if not count:
            raise SourceError(f"{self.label} holds no image: it is an empty archive", hint="save it again")

    def _entry(self, member: Member) -> _File | _Link | None:
        match member.kind:
            case "file":
                return _File(member.start, member.size, member.extents)
            case "symlink":
                return _Link(_normal(posixpath.join(posixpath.dirname(_normal(member.name)), member.target)))
            case "hardlink":
                # It means the file that has the name now, whatever takes the name later.
                target = _normal(member.target)
                found = self._entries.get(target)
                return found if isinstance(found, _File) else _Link(target)
            case _:
                return None

    def _check_rest(self, position: int) -> None:
        """See that no other archive follows, which would be left out; anything else, other readers ignore, too."""
        while chunk := self._file.read(position, len(_ZEROS)):
            from_thread.check_cancelled()
            if chunk != _ZEROS[: len(chunk)]:
                position += len(chunk) - len(chunk.lstrip(b"\0"))
                if archive_kind(self._file.read(position, HEAD_SIZE)):
                    raise self._several(f"a second one begins at byte {position}")
                self.notes = (
                    f"what follows the end of {self.label}, at byte {position}, is no archive, and is not read",
                )
                return
            position += len(chunk)

    def _check_replaced(self) -> None:
        """See that no list of images took the place of another one, as in archives that `tar -A` has joined."""
        for name, earlier in self._replaced:
            later = self.find(name)
            if later is None or hash_content(self._content(name, earlier)) != hash_content(later):
                raise self._several(f"it has a second {name}, unlike the first")

    def _several(self, reason: str) -> SourceError:
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


def _normal(name: str) -> str:
    """One spelling for ``./a``, ``/a``, ``a/`` and ``b/../a``; a key, never a path on disk."""
    return posixpath.normpath("/" + name).lstrip("/")
