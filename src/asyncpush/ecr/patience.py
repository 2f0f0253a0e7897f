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
    """The wait for one answer; it begins when its request has left.

    Attributes:
        seconds: how long it is, now that it has begun.
        least: how long it must be at least, where other requests share a line.
    """

    seconds = 0.0
    least: Callable[[], float] | None = None

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
            self.seconds = max(ANSWER_TIMEOUT, self.least() if self.least else 0.0)
            self._timeout.reschedule(asyncio.get_running_loop().time() + self.seconds)

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
    seconds = ANSWER_TIMEOUT
    try:
        with ExitStack() as stack:
            async with asyncio.timeout(None) as timeout:
                word = f"{operation} has no answer yet from {endpoint}"
                wait = _Wait(timeout, lambda: stack.enter_context(told_if_late(word, tell)))
                try:
                    yield wait
                finally:
                    seconds = wait.seconds
    except TimeoutError as error:
        raise ConnectionFailedError(
            f"{operation} got no whole answer from {endpoint} within {seconds:.3g} seconds",
            hint="check the endpoint and the network",
        ) from error
