"""Open files and connections: how many this process may have, what of that each use gets, and what to say at the end.

Nothing here is an OCI descriptor: this is about the operating system's.
"""

from __future__ import annotations

import errno
import resource
from contextlib import suppress

#: As many as the process asks for; more would only make room for leaks.
_MOST = 65_536

#: What every macOS grants, where it grants no more.
_LEAST = 10_240

#: What one use may have of it: connections to ECR for requests and for `/v2/`, to sources, archives, layers in flight,
#: and a rest for the journal, the event loop and pipes.
_SHARES = 6

#: What a use gets in any case: fewer, and it would hardly move.
_FEW = 8

#: What to do where no more can be opened.
HINT = "raise the limit with `ulimit -n`, or lower --max-layers"


def raise_limit() -> None:
    """Let this process open as many files as it may: many systems grant 1,024 at first, and far more if asked."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (_MOST, _LEAST):
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        if soft == resource.RLIM_INFINITY or soft >= most:
            return
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            return


def limit() -> int:
    """How many files and connections this process may have open at once."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if soft == resource.RLIM_INFINITY else soft


def share(wanted: int) -> int:
    """How many of *wanted* one use may have open at once, so that enough is left for the others."""
    return min(wanted, max(_FEW, limit() // _SHARES))


def shortage(error: BaseException | None) -> str | None:
    """What to say of *error* if it comes of too many open files, however deep that is hidden; None if it does not."""
    for _ in range(_FEW):
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
    """What the operating system says, without a path."""
    return shortage(error) or error.strerror or str(error) or type(error).__name__


def advice(error: BaseException, otherwise: str | None = None) -> str | None:
    """What to do about *error*: raise the limit where that is it, else *otherwise*."""
    return HINT if shortage(error) else otherwise
