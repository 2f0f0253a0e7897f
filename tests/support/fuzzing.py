"""The time that each fuzzer runs, and the law that all of them share.

Whatever comes in, a value or one of asyncpush's own errors comes out, within bounded time and memory. A few examples a
target, always the same ones, belong to every run of the tests; ``ASYNCPUSH_FUZZ=300`` searches for 300 seconds each.
"""

from __future__ import annotations

import os
import time
import tracemalloc
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy

from asyncpush.errors import AsyncpushError, PlanError

SECONDS = float(os.environ.get("ASYNCPUSH_FUZZ", "0"))
MiB = 1024 * 1024

#: Examples of a round; each round has a seed of its own.
_ROUND = 2000

#: One example takes milliseconds; no machine is so busy that it takes this long.
LIMIT = timedelta(seconds=20)

#: Every file of fuzzers has this mark: a long search is not a hang.
TIME = pytest.mark.timeout(120 + 3 * SECONDS)


def trials(examples: int) -> settings:
    """The settings of one round."""
    return settings(
        max_examples=_ROUND if SECONDS else examples,
        derandomize=not SECONDS,  # what a search finds is news; an ordinary run must not be red by chance
        deadline=LIMIT,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


def rounds() -> Any:
    """As many rounds as there is time for, and at least one."""
    end = time.monotonic() + SECONDS
    yield
    while time.monotonic() < end:
        yield


def search(law: Callable[..., None], *strategies: SearchStrategy[Any], examples: int) -> None:
    """Look for values that break a law."""
    for _ in rounds():
        trials(examples)(given(*strategies)(law))()


def value_or_error(read: Callable[[], Any], *, memory: int = 32 * MiB) -> Any:
    """What *read* makes of its input; None where it is an error for users, of one line (of a plan, one a fault)."""
    tracemalloc.start()
    try:
        return read()
    except AsyncpushError as error:
        assert isinstance(error, PlanError) or "\n" not in str(error), repr(str(error))  # noqa: PT017
        return None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < memory, f"{peak} bytes"
