"""Requests to ECR, sent at their operations' pace: what their failures mean to ``http.retry``."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from typing import Generic, Literal, TypeVar

from botocore.exceptions import ClientError

from asyncpush.ecr.errors import UNEXPECTED_ANSWER, verdict
from asyncpush.ecr.rate_limit import Pace, RateLimiter
from asyncpush.errors import AsyncpushError, ConnectionFailedError, ServiceError
from asyncpush.events import Emit, Notice, RequestDone
from asyncpush.http.retry import Failure, HostBackoff, Rest, RetryLoop, backoff, retry_after
from asyncpush.settings import RetryPolicy

T = TypeVar("T")

#: How often a request may be refused for its rate within ``RetryPolicy.throttled`` seconds: where nine of ten requests
#: are refused, one in a thousand million meets that.
_MOST_THROTTLES = 200
#: Seconds between two notices to the user about slow answers.
_NOTICE_INTERVAL = 60.0
_THROTTLED_HINT = "others may be using up the account's quota: push again later, or ask for more in Service Quotas"


class RetryingSender:
    """Sends requests to one host at their operations' pace, again where that can help.

    Args:
        max_attempts: answers that fail a request and end it; throttles are none.
        emit: receives the outcome of each try, and each retry.
        pace: decides when requests may start, from those that were throttled.
        retry: the waits.
        host: what is known of the host; None knows nothing yet.
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
        self._last_notice = -math.inf

    async def call(self, operation: str, send: Callable[[], Awaitable[T]]) -> T:
        """Await ``send()`` until it succeeds, fails for good, has failed too often, or for minutes.

        An endpoint that has never answered gets one try where its address may be wrong, which should show at once.
        """
        request = _PacedRequest(operation, send, self.host, self._pace.of(operation), self.retry, self._emit)
        try:
            return await RetryLoop(operation, self.retry, request, self._emit, self._max_attempts).run(request.send)
        except ServiceError as error:
            if verdict(error) == "throttled":
                error.hint = _THROTTLED_HINT
            raise

    def tell(self, text: str) -> None:
        """Tell the user something, but not the like of it for each request."""
        if time.monotonic() > self._last_notice + _NOTICE_INTERVAL:
            self._last_notice = time.monotonic()
            self._emit(Notice(text))


class _PacedRequest(Generic[T]):
    """One request, try by try (``RetryRules``)."""

    def __init__(
        self,
        operation: str,
        send: Callable[[], Awaitable[T]],
        host: HostBackoff,
        pace: RateLimiter,
        policy: RetryPolicy,
        emit: Emit,
    ) -> None:
        self._operation = operation
        self._send = send
        self._host = host
        self._pace = pace
        self._policy = policy
        self._emit = emit
        self._error: AsyncpushError | None = None
        self._is_sent = False
        self._sent_at = self._started = 0.0
        self._throttled_since = math.inf

    async def send(self) -> T:
        """Send it once, when the host and the pace allow it."""
        self._is_sent = False
        while True:
            async with self._host.asking(self._error) as asks_for_all:
                self._started = await self._pace.acquire()
                if self._host.is_silent and not asks_for_all:
                    continue  # it has fallen silent meanwhile
                self._is_sent, self._sent_at = True, time.monotonic()
                try:
                    answer = await self._timed()
                except AsyncpushError as error:
                    self._error = error
                    if isinstance(error, ServiceError) and error.code != UNEXPECTED_ANSWER:
                        self._host.note_answer()
                    if verdict(error) == "throttled":
                        self._pace.throttled(self._started)
                    raise
                self._host.note_answer()
                self._pace.succeeded(self._started)
                return answer

    async def _timed(self) -> T:
        """Send it and emit how long it took: a cancelled request has not ended, and emits nothing."""
        began = time.perf_counter()
        try:
            answer = await self._send()
        except AsyncpushError as error:
            self._emit(RequestDone(self._operation, time.perf_counter() - began, _outcome(error)))
            raise
        self._emit(RequestDone(self._operation, time.perf_counter() - began, "succeeded"))
        return answer

    def explain(self, error: AsyncpushError) -> Failure:
        """See ``RetryRules``."""
        if not self._is_sent:
            return Failure("final")  # the host was given up while this request waited for it
        silence = None
        if isinstance(error, ConnectionFailedError):
            if error.wrong_address and not self._host.answered:
                return Failure("final")
            silence = (self._host, self._sent_at) if error.silent else None
        elif isinstance(error, ServiceError) and error.code == UNEXPECTED_ANSWER and not self._host.answered:
            return Failure("final")
        return Failure(verdict(error), silence, _asked_delay(error))

    def rest(self, failure: Failure, count: int) -> Rest | None:
        """See ``RetryRules``: what is throttled waits for its pace, so that its own rest is short."""
        asked, policy = failure.asked or 0.0, self._policy
        if failure.verdict == "transient":
            return Rest(asked + backoff(policy.first_wait, policy.longest_wait, count), asked)
        self._throttled_since = min(self._throttled_since, self._started)
        is_starved = self._pace.starved(self._throttled_since) > policy.throttled
        if is_starved or (count > _MOST_THROTTLES and self._pace.since(self._throttled_since) > policy.throttled):
            return None
        return Rest(asked + backoff(policy.throttled_wait * count, policy.longest_wait, 1), asked)

    def note_retry(self, failure: Failure, delay: float) -> None:  # noqa: ARG002 - the pace counts retries alone
        """See ``RetryRules``."""
        self._pace.retried()


def _outcome(error: AsyncpushError) -> Literal["throttled", "refused", "unanswered"]:
    if isinstance(error, ConnectionFailedError):
        return "unanswered"
    return "throttled" if verdict(error) == "throttled" else "refused"


def _asked_delay(error: AsyncpushError) -> float | None:
    """The seconds that the answer asks to wait; None if it asks for none."""
    cause = error.__cause__
    if not isinstance(cause, ClientError):
        return None
    return retry_after(cause.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("retry-after"))
