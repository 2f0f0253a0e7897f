"""Small files of the user's, such as configurations and policies: read whole, but never without a bound."""

from __future__ import annotations

import errno
import os
import select
import stat
import time
from pathlib import Path

#: Seconds that a pipe may take to bring its bytes.
_PIPE = 5.0
_BLOCK = 64 * 1024


def read_small(path: Path, limit: int) -> bytes:
    """Read a file, or a pipe as a shell's ``<(...)`` makes it; blocks for some seconds at the most.

    Raises:
        OSError: it is a device or the like, has more than *limit* bytes, nobody writes into it, or it can't be read.
    """
    # A named pipe without a writer would block here for ever; regular files ignore the flag.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISFIFO(mode):
            raise OSError(errno.EINVAL, "it is no file", str(path))
        data, end = bytearray(), time.monotonic() + _PIPE
        while len(data) <= limit:
            if not select.select([descriptor], [], [], max(0.0, end - time.monotonic()))[0]:
                raise OSError(errno.ETIMEDOUT, "it is a pipe that nobody writes into", str(path))
            block = file.read(_BLOCK)
            if block == b"":
                return bytes(data)
            data += block or b""
    raise OSError(errno.EFBIG, f"it has more than {limit} bytes", str(path))
