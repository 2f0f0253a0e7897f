"""What a file is, by its first bytes: how it is compressed, whether it is an archive, and what to do if it is none."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence

from asyncpush.engine.decompress import Packing
from asyncpush.errors import SourceError

#: Bytes at the beginning of a file that identify it: a tar archive's first header.
HEAD_SIZE = 512

_MAGIC: tuple[tuple[bytes, Packing], ...] = (
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"BZh", "bzip2"),
)

_FETCH = "fetch it again, logged in, from the address of the file itself"

_UNPACK = "unpack it, and push the image archive or layout that is in it"

_DECOMPRESS = "decompress it first; gzip, xz, zstd and bzip2 are read"

_DISK = "images come as OCI layouts, OCI archives and docker-archives"

#: The first bytes of other kinds of files, and hints for them.
_STRANGERS: tuple[tuple[bytes, str, str], ...] = (
    (b"PK\x03\x04", "a zip archive", _UNPACK),
    (b"PK\x05\x06", "an empty zip archive", "save the image again"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"Rar!\x1a\x07", "a rar archive", _UNPACK),
    (b"0707", "a cpio archive", _UNPACK),
    (b"!<arch>\n", "an ar archive, such as a deb package", _UNPACK),
    (b"\xed\xab\xee\xdb", "an rpm package", _UNPACK),
    (b"\xff\xfe", "UTF-16 text", "PowerShell's > damages what it saves; save with `docker save -o FILE`"),
    (b"\xfe\xff", "UTF-16 text", "PowerShell's > damages what it saves; save with `docker save -o FILE`"),
    (b"version https://git-lfs.github.com/", "a Git LFS pointer, not the file itself", "run `git lfs pull`"),
    (b"\x7fELF", "a program", _DISK),
    (b"MZ", "a program", _DISK),
    (b"#!", "a script", _DISK),
    (b"hsqs", "a squashfs image", _DISK),
    (b"QFI\xfb", "a disk image", _DISK),
)

#: The first bytes of unsupported compressions.
_COMPRESSED: tuple[tuple[bytes, str], ...] = (
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"LZIP", "lzip"),
    (b"\x89LZO", "lzop"),
    (b"\x5d\x00\x00", "lzma"),
    (b"\x1f\x9d", "compress"),
)

#: The byte order mark that PowerShell and editors put before UTF-8.
_BOM = b"\xef\xbb\xbf"


def sniff(head: bytes) -> Packing | None:
    """How a file that begins with *head* is compressed, by its magic number; None if it is not."""
    if head[257:262] == b"ustar":
        return None
    if head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5:
        return "zstd"  # a skippable frame, with which pzstd begins its files
    return next((packing for magic, packing in _MAGIC if head.startswith(magic)), None)


def check_head(head: bytes, label: str) -> None:
    """Refuse a file that begins with *head*, its first 512 bytes, if it is recognized as something else than tar.

    Raises:
        SourceError: it is something else; the message says what.
    """
    if is_tar(head):
        return
    if packing := sniff(head):
        raise SourceError(f"{label} is compressed with {packing} once more", hint=_DECOMPRESS)
    if other := next((name for magic, name in _COMPRESSED if head.startswith(magic)), None):
        raise SourceError(f"{label} is compressed with {other}", hint=_DECOMPRESS)
    if what := next((found for magic, *found in _STRANGERS if head.startswith(magic)), None) or _text(head):
        raise SourceError(f"{label} is {what[0]}, not an image archive", hint=what[1])


def is_tar(head: bytes) -> bool:
    """Whether *head* can begin a tar archive: with a header, or with zeros if it is empty."""
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError, ArithmeticError):
        return not head.strip(b"\0")
    return True


def archive_kind(head: bytes) -> Packing | str | None:
    """The kind of archive that begins with *head*; None if it is not an archive."""
    if head.strip(b"\0") and is_tar(head):
        return "tar"
    return sniff(head) or ("zip" if head.startswith(b"PK\x03\x04") else None)


def _text(head: bytes) -> Sequence[str] | None:
    text = head.removeprefix(_BOM).lstrip()
    if not text or any(byte < 32 and byte not in b"\t\n\r\x1b" for byte in head):
        return None
    if text[:1] == b"<":
        lower = text.lower()
        if lower.startswith((b"<!doctype html", b"<html", b"<head")):
            return "an HTML page", _FETCH
        return "XML", _FETCH
    if text[:1] in (b"{", b"["):
        if b'"schemaVersion"' in text:
            return "JSON, a manifest without its layers", "name the image as docker://HOST/REPOSITORY[:TAG|@DIGEST]"
        return "JSON", _FETCH
    return "text", "it may be a command's error message; save or fetch the image again"
