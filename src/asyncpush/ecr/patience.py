"""How long ECR may take for an answer: for all of it, however slowly it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager

from asyncpush.errors import ConnectionFailedError
from asyncpush.retry import told_if_late

#: Seconds for an answer's head and body, once its request has left.
ANSWER_TIMEOUT = 90.0


class _Wait:
    """The wait for one answer; it begins when its request has left."""

    def __init__(self, timeout: asyncio.Timeout, late: Callable[[], None]) -> None:
        self._timeout = timeout
        self._late = late
        self._has_begun = False

    def begin(self) -> None:
        """Begin to wait."""
        self._has_begun = True
        self.extend()
        self._late()

    def extend(self) -> None:
        """Wait from now on, if it has begun: what was handed over has not all left before."""
        if self._has_begun and not self._timeout.expired():
            self._timeout.reschedule(asyncio.get_running_loop().time() + ANSWER_TIMEOUT)

    def after(self, left: Callable[[], None] | None) -> Callable[[], None]:
        """What is to be called in the place of *left* once a body has left."""

        def gone() -> None:
            self.begin()
            if left:
                left()

        return gone


@asynccontextmanager
async def in_time(operation: str, endpoint: str, tell: Callable[[str], None]) -> AsyncIterator[_Wait]:
    """Bound the wait for an answer, and tell of one that takes long.

    Raises:
        ConnectionFailedError: it has not come, or not ended, in time.
    """
    try:
        with ExitStack() as stack:
            async with asyncio.timeout(None) as timeout:
                word = f"{operation} has no answer yet from {endpoint}"
                yield _Wait(timeout, lambda: stack.enter_context(told_if_late(word, tell)))
    except TimeoutError as error:
        raise ConnectionFailedError(
            f"{operation} got no whole answer from {endpoint} within {ANSWER_TIMEOUT:g} seconds",
            hint="check the endpoint and the network",
        ) from error
