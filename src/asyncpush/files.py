"""Small files of the user's, such as configurations and policies: where they lie, and how they are read in bounds."""

from __future__ import annotations

import errno
import os
import select
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile

#: Seconds that a pipe may take to bring its bytes.
PIPE_TIMEOUT = 5.0

#: Bytes of the largest file of certificates or keys: all of the world's authorities are less than 1 MiB.
_MAX_PEM = 16 * 1024 * 1024
_BLOCK = 64 * 1024


def read_small(path: Path, limit: int, *, seconds: float | None = None) -> bytes:
    """Read a file, or a pipe as a shell's ``<(...)`` makes it; blocks for some seconds at the most.

    Args:
        path: the file.
        limit: bytes that it may have.
        seconds: how long a pipe may take to bring its bytes; None is ``PIPE_TIMEOUT``.

    Raises:
        OSError: it is a device or the like, has more than *limit* bytes, nobody writes into it, or it can't be read.
    """
    # A named pipe without a writer would block here for ever; regular files ignore the flag.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        mode = status.st_mode
        if stat.S_ISCHR(mode) and status.st_rdev == Path(os.devnull).stat().st_rdev:
            return b""
        if not stat.S_ISREG(mode) and not stat.S_ISFIFO(mode):
            raise OSError(errno.EINVAL, "it is not a file", str(path))
        data, end = bytearray(), time.monotonic() + (PIPE_TIMEOUT if seconds is None else seconds)
        while len(data) <= limit:
            if not select.select([descriptor], [], [], max(0.0, end - time.monotonic()))[0]:
                raise OSError(errno.ETIMEDOUT, "it is a pipe that nobody writes into", str(path))
            block = file.read(_BLOCK)
            if block == b"":
                return bytes(data)
            data += block or b""
    raise OSError(errno.EFBIG, f"it has more than {limit} bytes", str(path))


def write_small(path: Path, data: bytes) -> None:
    """Write a file, or into a pipe as a shell's ``>(...)`` makes it.

    Raises:
        OSError: it can't be written, or is a pipe that nobody reads.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    # A named pipe without a reader would block here for ever; regular files ignore the flag.
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)
    os.set_blocking(descriptor, True)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


@contextmanager
def pem_file(path: str | Path) -> Iterator[str]:
    """The name of a file that OpenSSL can read, which would wait for a pipe for ever: what that brings is copied."""
    status = Path(path).stat()
    if stat.S_ISREG(status.st_mode) and status.st_size <= _MAX_PEM:
        yield str(path)
        return
    with NamedTemporaryFile(prefix="asyncpush-") as copy:  # nobody else may read it
        copy.write(read_small(Path(path), _MAX_PEM))
        copy.flush()
        yield copy.name


def home_folder() -> Path | None:
    """The user's home; None of a user without one."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def configuration_folder() -> Path | None:
    """Where the user's programs keep their configuration (XDG); None of a user without a home."""
    if folder := os.environ.get("XDG_CONFIG_HOME"):
        return Path(folder)
    home = home_folder()
    return None if home is None else home / ".config"
