"""The limit of open files and connections of this process: raises it, shares it out, and explains errors from it."""

from __future__ import annotations

import errno
import os
import resource
from contextlib import suppress

#: The limit that the process asks for; a higher one would only hide leaks.
_TARGET_LIMIT = 65_536

#: The limit that macOS always grants.
_MACOS_LIMIT = 10_240

#: The number of equal shares: connections to ECR for requests and for `/v2/`, connections to source registries,
#: archives, layers in flight, and one for the journal, the event loop and pipes.
_SHARES = 6

#: The least files and connections of a share: with fewer, a push would hardly proceed.
_MIN_SHARE = 8

#: Causes of an error that are examined, one within another.
_MAX_CAUSES = 8

#: The hint if no more files can be opened.
HINT = "raise the limit with `ulimit -n`, or lower --max-layers"


def raise_limit() -> None:
    """Raise this process's limit of open files: many systems grant 1,024 at first, and far more on request."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for target in (_TARGET_LIMIT, _MACOS_LIMIT):
        new_soft = target if hard == resource.RLIM_INFINITY else min(target, hard)
        if soft == resource.RLIM_INFINITY or soft >= new_soft:
            return
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (new_soft, hard))
            return


def limit() -> int:
    """Return how many files and connections this process may have open at once."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _TARGET_LIMIT if soft == resource.RLIM_INFINITY else soft


def share(requested: int) -> int:
    """Return how many of *requested* files one use may have open at once, so that the others keep their shares."""
    return min(requested, max(_MIN_SHARE, limit() // _SHARES))


def shortage(error: BaseException | None) -> str | None:
    """Return a message if *error* or one of its causes means that too many files are open; otherwise None."""
    for _ in range(_MAX_CAUSES):
        if error is None:
            break
        match getattr(error, "errno", None):
            case errno.EMFILE:
                return f"this process has {limit()} files and connections open, and may open no more"
            case errno.ENFILE:
                return "this machine has too many files open"
        inner = getattr(error, "kwargs", {}).get("error")  # botocore's
        error = inner if isinstance(inner, BaseException) else error.__cause__ or error.__context__
    return None


def reason(error: OSError) -> str:
    """Return the operating system's message, without the path."""
    if isinstance(error, ConnectionResetError) and not error.errno:
        return os.strerror(errno.ECONNRESET)  # asyncio's own has no text
    return shortage(error) or error.strerror or str(error) or type(error).__name__


def advice(error: BaseException, otherwise: str | None = None) -> str | None:
    """Return the hint for *error*: to raise the limit if it is the cause, else *otherwise*."""
    return HINT if shortage(error) else otherwise
