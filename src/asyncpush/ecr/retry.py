"""The one place where a request is sent again: by named cause, with full jitter, a limited number of times."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from asyncpush.ecr.errors import verdict
from asyncpush.errors import AsyncpushError, ConnectionFailedError
from asyncpush.events import Emit, Retrying

T = TypeVar("T")

_LONGEST_WAIT = 20.0
#: First waits in seconds, doubled with each try; a throttle deserves a longer one than a dropped connection.
_FIRST_WAIT = {"transient": 0.2, "throttled": 1.0}
#: A throttle is no failure: it counts for a third of one.
_THROTTLE_PATIENCE = 3


class Retries:
    """Sends requests, again where that can help.

    Args:
        max_attempts: tries of a request; three times as many if it is throttled.
        emit: hears of each new try.
    """

    def __init__(self, max_attempts: int, emit: Emit) -> None:
        self._max_attempts = max_attempts
        self._emit = emit
        self._answered = False

    async def call(self, operation: str, send: Callable[[], Awaitable[T]]) -> T:
        """Await ``send()`` until it succeeds, fails for good, or has failed too often.

        An endpoint that has never answered gets one try: a wrong address should say so at once.
        """
        attempt = 1
        while True:
            try:
                answer = await send()
            except AsyncpushError as error:
                self._answered = self._answered or not isinstance(error, ConnectionFailedError)
                kind = verdict(error)
                patience = self._max_attempts * (_THROTTLE_PATIENCE if kind == "throttled" else 1)
                if kind == "final" or attempt >= patience or not self._answered:
                    raise
                # Full jitter: many uploads that were refused at once must not come back at once.
                delay = random.uniform(0.1, 1) * min(_LONGEST_WAIT, _FIRST_WAIT[kind] * 2 ** (attempt - 1))  # noqa: S311
                self._emit(Retrying(operation, attempt, delay, error.message))
                await anyio.sleep(delay)
                attempt += 1
            else:
                self._answered = True
                return answer
