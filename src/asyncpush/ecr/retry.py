"""The one place where a request is sent again: by named cause, with full jitter, as long as that can help."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from email.utils import parsedate_to_datetime
from typing import Literal, TypeVar

import anyio
from botocore.exceptions import ClientError

from asyncpush.ecr.errors import Verdict, verdict
from asyncpush.ecr.pace import Pace
from asyncpush.errors import AsyncpushError, ConnectionFailedError
from asyncpush.events import Emit, RequestDone, Retrying

T = TypeVar("T")

_LONGEST_WAIT = 20.0
#: First waits in seconds, doubled with each try; a throttle deserves a longer one than a dropped connection.
_FIRST_WAIT = {"transient": 0.2, "throttled": 1.0}
#: From here on the waits have long been the longest.
_DOUBLINGS = 10
#: Seconds that one request may spend in such waits: some sixty throttles in a row. Where seven of ten requests are
#: refused, one in a thousand million meets that. Time in the line of a pace does not count: others get through there.
_PATIENCE = 600.0
_HINT = "others may be using up the account's quota: push again later, or ask for more in Service Quotas"


class Retries:
    """Sends requests at their operations' pace, again where that can help.

    Args:
        max_attempts: failures of a request that end it; throttles are none.
        emit: hears how each try ended, and of each new one.
        pace: when requests may start; hears which were throttled.
    """

    def __init__(self, max_attempts: int, emit: Emit, pace: Pace) -> None:
        self._max_attempts = max_attempts
        self._emit = emit
        self._pace = pace
        self._answered = False

    async def call(self, operation: str, send: Callable[[], Awaitable[T]]) -> T:
        """Await ``send()`` until it succeeds, fails for good, has failed too often, or was throttled for minutes.

        An endpoint that has never answered gets one try: a wrong address should say so at once.
        """
        pace = self._pace.of(operation)
        tries: Counter[Verdict] = Counter()
        waited = 0.0
        while True:
            started = await pace.turn()
            try:
                answer = await self._timed(operation, send)
            except AsyncpushError as error:
                self._answered = self._answered or not isinstance(error, ConnectionFailedError)
                kind = verdict(error)
                if kind == "throttled":
                    pace.throttled(started)
                tries[kind] += 1
                if kind == "final" or not self._answered or tries["transient"] >= self._max_attempts:
                    raise
                delay = _delay(error, kind, tries[kind])
                waited += delay
                if waited > _PATIENCE:
                    error.hint = _HINT if kind == "throttled" else error.hint
                    raise
                pace.retried()
                self._emit(Retrying(operation, tries.total(), delay, error.message))
                await anyio.sleep(delay)
            else:
                self._answered = True
                pace.succeeded(started)
                return answer

    async def _timed(self, operation: str, send: Callable[[], Awaitable[T]]) -> T:
        """Await ``send()`` and tell how long it took: a cancelled request has not ended, and is not told."""
        began = time.perf_counter()
        try:
            answer = await send()
        except AsyncpushError as error:
            self._emit(RequestDone(operation, time.perf_counter() - began, _outcome(error)))
            raise
        self._emit(RequestDone(operation, time.perf_counter() - began, "succeeded"))
        return answer


def _outcome(error: AsyncpushError) -> Literal["throttled", "refused", "unanswered"]:
    if isinstance(error, ConnectionFailedError):
        return "unanswered"
    return "throttled" if verdict(error) == "throttled" else "refused"


def _delay(error: AsyncpushError, kind: Verdict, tries: int) -> float:
    """Seconds to wait after the given number of tries of this kind: as asked for, and a random time."""
    longest: float = min(_LONGEST_WAIT, _FIRST_WAIT[kind] * 2 ** min(tries - 1, _DOUBLINGS))
    # Full jitter: many uploads that were refused at once must not come back at once.
    return _asked_delay(error) + random.uniform(0.1, 1) * longest  # noqa: S311 - nothing is kept secret by it


def _asked_delay(error: AsyncpushError) -> float:
    """The seconds that the answer asks to wait: Retry-After, RFC 9110 10.2.3, a number or a date; 0 if it does not."""
    cause = error.__cause__
    if not isinstance(cause, ClientError):
        return 0.0
    value: str = cause.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("retry-after", "")
    try:
        seconds = float(value) if value.isdecimal() else parsedate_to_datetime(value).timestamp() - time.time()
    except (OverflowError, ValueError):
        return 0.0
    return max(0.0, seconds)
