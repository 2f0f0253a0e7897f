"""The one place where a request is sent again: by named cause, with full jitter, as long as that can help."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from typing import Literal, TypeVar

import anyio
from botocore.exceptions import ClientError

from asyncpush.ecr.errors import UNEXPECTED_ANSWER, verdict
from asyncpush.ecr.rate_limit import Pace, RateLimiter
from asyncpush.errors import AsyncpushError, ConnectionFailedError, ServiceError
from asyncpush.events import Emit, Notice, RequestDone, Retrying
from asyncpush.http.retry import HostBackoff, SilenceLimit, backoff, retry_after
from asyncpush.settings import RetryPolicy

T = TypeVar("T")

#: How often a request may be refused for its rate within ``RetryPolicy.throttled`` seconds: where nine of ten requests
#: are refused, one in a thousand million meets that.
_MOST_THROTTLES = 200
#: Seconds between two words to the user about slow answers.
_SILENT = 60.0
_HINT = "others may be using up the account's quota: push again later, or ask for more in Service Quotas"


class RetryingSender:
    """Sends requests to one host at their operations' pace, again where that can help.

    Args:
        max_attempts: answers that fail a request and end it; throttles are none.
        emit: hears how each try ended, and of each new one.
        pace: when requests may start; hears which were throttled.
        retry: the waits.
        host: what is known of the host; another one for each.
    """

    def __init__(
        self,
        max_attempts: int,
        emit: Emit,
        pace: Pace,
        retry: RetryPolicy | None = None,
        host: HostBackoff | None = None,
    ) -> None:
        self.retry = retry or RetryPolicy()
        self._max_attempts = max_attempts
        self._emit = emit
        self._pace = pace
        self.host = host or HostBackoff(self.retry)
        self._told = -math.inf

    async def call(self, operation: str, send: Callable[[], Awaitable[T]]) -> T:
        """Await ``send()`` until it succeeds, fails for good, has failed too often, or for minutes.

        An endpoint that has never answered gets one try where its address may be wrong, which should show at once.
        """
        failed: AsyncpushError | None = None
        pace = self._pace.of(operation)
        tries = _RetryLoop(self.host, pace, self._max_attempts, self.retry)
        while True:
            async with self.host.asking(failed) as asks_for_all:
                started = await pace.acquire()
                if self.host.is_silent and not asks_for_all:
                    continue  # it has fallen silent meanwhile
                began = time.monotonic()
                try:
                    answer = await self._timed(operation, send)
                except AsyncpushError as error:
                    failed = error
                    if isinstance(error, ServiceError) and error.code != UNEXPECTED_ANSWER:
                        self.host.heard()
                    if verdict(error) == "throttled":
                        pace.throttled(started)
                    delay = tries.failed(error, began, started)
                    pace.retried()
                    self._emit(Retrying(operation, tries.total, delay, error.message))
                else:
                    self.host.heard()
                    pace.succeeded(started)
                    return answer
            await anyio.sleep(delay)

    def tell(self, text: str) -> None:
        """Tell the user something, but not the like of it for each request."""
        if time.monotonic() > self._told + _SILENT:
            self._told = time.monotonic()
            self._emit(Notice(text))

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


class _RetryLoop:
    """The tries of one request.

    Args:
        host: what is known of the host that it goes to.
        pace: the pace of its operation.
        max_attempts: answers that fail it and end it.
        retry: its waits.

    Attributes:
        total: how many have failed.
    """

    def __init__(self, host: HostBackoff, pace: RateLimiter, max_attempts: int, retry: RetryPolicy) -> None:
        self.total = 0
        self._retry = retry
        self._host = host
        self._pace = pace
        self._max_attempts = max_attempts
        self._silence = SilenceLimit()
        self._failures = self._throttles = 0
        self._throttled_since = math.inf
        self._waited = 0.0

    def failed(self, error: AsyncpushError, began: float, started: float) -> float:
        """The seconds to rest after a try, sent at *began* (*started* for its pace), that failed of *error*.

        Raises:
            AsyncpushError: *error* itself, if no other try can help.
        """
        self.total += 1
        kind = verdict(error)
        if kind == "final":
            raise error
        if isinstance(error, ConnectionFailedError):
            if not self._host.answered and error.wrong_address:
                raise error
            if error.silent:
                delay = self._silence.wait(self._host, began)
                self._failures += not self._host.answered
                if delay is None or self._failures >= self._max_attempts:
                    raise error
                return delay
        elif not self._host.answered and isinstance(error, ServiceError) and error.code == UNEXPECTED_ANSWER:
            raise error
        self._silence.end()
        asked = _asked_delay(error)
        self._waited += asked
        if kind == "throttled":
            self._throttles += 1
            self._throttled_since = min(self._throttled_since, started)
            starved = self._pace.starved(self._throttled_since) > self._retry.throttled
            often = (
                self._throttles > _MOST_THROTTLES and self._pace.since(self._throttled_since) > self._retry.throttled
            )
            if starved or often or self._waited > self._retry.throttled:
                error.hint = _HINT
                raise error
            return asked + backoff(self._retry.throttled_wait * self._throttles, self._retry.longest_wait, 1)
        self._failures += 1
        if self._failures >= self._max_attempts or self._waited > self._retry.throttled:
            raise error
        return asked + backoff(self._retry.first_wait, self._retry.longest_wait, self._failures)


def _asked_delay(error: AsyncpushError) -> float:
    """The seconds that the answer asks to wait; 0 if it does not."""
    cause = error.__cause__
    if not isinstance(cause, ClientError):
        return 0.0
    return retry_after(cause.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("retry-after")) or 0.0
