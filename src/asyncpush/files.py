"""Reads and writes small files of the user, such as configurations and policies, with limits on size and time."""

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

#: Seconds within which a pipe must deliver its bytes.
PIPE_TIMEOUT = 5.0

#: Bytes of the largest file of certificates or keys: all public authorities together take less than 1 MiB.
_MAX_PEM = 16 * 1024 * 1024
_BLOCK = 64 * 1024


def read_small(path: Path, limit: int, *, seconds: float | None = None) -> bytes:
    """Read a file, or a pipe from a shell's ``<(...)``; blocks at most for some seconds.

    Args:
        path: the file.
        limit: the most bytes that it may have.
        seconds: time within which a pipe must deliver its bytes; None is ``PIPE_TIMEOUT``.

    Raises:
        OSError: it can't be read, is a device or the like, has more than *limit* bytes, or is a pipe without a writer.
    """
    # Without the flag, a named pipe without a writer would block here for ever; regular files ignore it.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):  # fdopen would refuse it by its number, and leave it open
        os.close(descriptor)
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        mode = status.st_mode
        if stat.S_ISCHR(mode) and status.st_rdev == Path(os.devnull).stat().st_rdev:
            return b""
        if not stat.S_ISREG(mode) and not stat.S_ISFIFO(mode):
            raise OSError(errno.EINVAL, "it is not a file", str(path))
        data, deadline = bytearray(), time.monotonic() + (PIPE_TIMEOUT if seconds is None else seconds)
        while len(data) <= limit:
            if not select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise OSError(errno.ETIMEDOUT, "it is a pipe that nobody writes into", str(path))
            block = file.read(_BLOCK)
            if block == b"":
                return bytes(data)
            data += block or b""
    raise OSError(errno.EFBIG, f"it has more than {limit} bytes", str(path))


def write_small(path: Path, data: bytes) -> None:
    """Write a file, or to a pipe from a shell's ``>(...)``.

    Raises:
        OSError: it can't be written, or is a pipe without a reader.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    # Without the flag, a named pipe without a reader would block here for ever; regular files ignore it.
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o666)
    os.set_blocking(descriptor, True)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def check_writable(path: Path) -> None:
    """Check, without changing anything, that a file can be written or created.

    Raises:
        OSError: it can't.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        path.parent.stat()
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path.parent)) from None
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    # A pipe must not be opened: its reader would take that for its end.
    if not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


@contextmanager
def pem_file(path: str | Path) -> Iterator[str]:
    """Yield the name of a file that OpenSSL can read: a pipe is copied, because OpenSSL could wait for it for ever."""
    status = Path(path).stat()
    if stat.S_ISREG(status.st_mode) and status.st_size <= _MAX_PEM:
        yield str(path)
        return
    with NamedTemporaryFile(prefix="asyncpush-") as copy:  # readable only by this user
        copy.write(read_small(Path(path), _MAX_PEM))
        copy.flush()
        yield copy.name


def home_folder() -> Path | None:
    """Return the user's home folder, if there is one."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def configuration_folder() -> Path | None:
    """Return the folder of the user's configuration files (XDG); None if the user has no home folder."""
    if folder := os.environ.get("XDG_CONFIG_HOME"):
        return Path(folder)
    home = home_folder()
    return None if home is None else home / ".config"
