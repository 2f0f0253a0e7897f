"""Where layers are discarded: which blobs are kept all the same, and which files are shells."""

from __future__ import annotations

from pathlib import Path

#: Bytes up to which a blob is kept all the same: most configs, and the layers of tests.
KEPT = 1024 * 1024


def is_kept(size: int, first: bytes | memoryview) -> bool:
    """Whether a blob is kept where layers are discarded: it is short, or a JSON document, as an image's config is.

    Args:
        size: its bytes so far.
        first: the first ones.
    """
    return size <= KEPT or bytes(first[:1]) == b"{"


def is_shell(path: Path) -> bool:
    """Whether a file in a directory that discards has a length and no bytes; blocks."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    return status.st_size > KEPT and status.st_blocks * 512 < KEPT // 2
