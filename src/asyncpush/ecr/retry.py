"""Retries for requests to ECR: ``http.retry`` with ECR's rate limits and the meaning of its errors."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from typing import Generic, Literal, TypeVar

import anyio
from botocore.exceptions import ClientError

from asyncpush.ecr.errors import UNEXPECTED_ANSWER, verdict
from asyncpush.ecr.rate_limit import Pace, RateLimiter
from asyncpush.errors import AsyncpushError, ConnectionFailedError, ServiceError
from asyncpush.events import Emit, Notice, RequestDone
from asyncpush.http.retry import Failure, HostBackoff, Rest, RetryLoop, backoff, retry_after
from asyncpush.settings import RetryPolicy

T = TypeVar("T")

#: How often a request may be throttled within ``RetryPolicy.throttled`` seconds. If ECR throttles nine of ten requests,
#: one in a thousand million reaches this.
_MAX_THROTTLES = 200
#: Seconds between two notices to the user about slow answers.
_NOTICE_INTERVAL = 60.0
_THROTTLED_HINT = (
    "other clients may be using up the account's quota: push again later, or request an increase in Service Quotas"
)


class RetryingSender:
    """Sends requests to one host: limits their rate per operation, and retries those that a retry can help.

    Args:
        max_attempts: failed tries after which a request fails; throttled tries do not count.
        emit: receives the outcome of each try, and each retry.
        pace: the rate limiters of the operations.
        retry: the limits and waits of retries.
        host: whether the host answers; None starts without knowledge.
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
        self.host = host or HostBackoff(self.retry, emit=emit)
        self._last_notice = -math.inf

    async def call(self, operation: str, send: Callable[[], Awaitable[T]]) -> T:
        """Await ``send()`` until it succeeds, or until no other try can help.

        An endpoint that has never answered and whose address may be wrong gets one try, so that the user learns of it
        at once.
        """
        request = _PacedRequest(operation, send, self.host, self._pace.of(operation), self.retry, self._emit)
        try:
            return await RetryLoop(operation, self.retry, request, self._emit, self._max_attempts).run(request.send)
        except ServiceError as error:
            if verdict(error) == "throttled":
                error.hint = _THROTTLED_HINT
            raise

    def notify(self, text: str) -> None:
        """Emit a ``Notice`` to the user, at most one a minute."""
        if time.monotonic() > self._last_notice + _NOTICE_INTERVAL:
            self._last_notice = time.monotonic()
            self._emit(Notice(text))


class _PacedRequest(Generic[T]):
    """One request: its tries, and what their failures mean (``RetryRules``)."""

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
        """Send the request once, as soon as the host and the rate limiter allow it."""
        self._is_sent = False
        while True:
            async with self._host.asking(self._error) as is_probe:
                self._started = await self._pace.acquire()
                if self._host.is_silent and not is_probe:
                    continue  # the host fell silent while the request waited for its pace
                self._is_sent, self._sent_at = True, anyio.current_time()
                try:
                    answer = await self._send_timed()
                except AsyncpushError as error:
                    self._error = error
                    if isinstance(error, ServiceError) and error.code != UNEXPECTED_ANSWER:
                        self._host.note_answer()
                    if verdict(error) == "throttled":
                        self._pace.note_throttle(self._started)
                    raise
                self._host.note_answer()
                self._pace.note_success(self._started)
                return answer

    async def _send_timed(self) -> T:
        """Send the request and emit its duration; a cancelled request emits nothing."""
        started = time.perf_counter()
        try:
            answer = await self._send()
        except AsyncpushError as error:
            self._emit(RequestDone(self._operation, time.perf_counter() - started, _outcome(error)))
            raise
        self._emit(RequestDone(self._operation, time.perf_counter() - started, "succeeded"))
        return answer

    def explain(self, error: AsyncpushError) -> Failure:
        """See ``RetryRules``."""
        if not self._is_sent:
            return Failure("final")  # the host was given up while this request waited for it
        silence, name = None, self._host.silence.host
        if isinstance(error, ConnectionFailedError):
            if error.wrong_address and not self._host.answered:
                return Failure("final")
            silence = (self._host, self._sent_at) if error.silent else None
        elif isinstance(error, ServiceError) and error.code == UNEXPECTED_ANSWER and not self._host.answered:
            return Failure("final")
        return Failure(verdict(error), silence, _requested_delay(error), name)

    def rest(self, failure: Failure, count: int) -> Rest | None:
        """See ``RetryRules``: a throttled request waits for the rate limiter, so its own rest is short."""
        requested, policy = failure.asked or 0.0, self._policy
        if failure.verdict == "transient":
            return Rest(requested + backoff(policy.first_wait, policy.longest_wait, count), requested)
        self._throttled_since = min(self._throttled_since, self._started)
        is_starved = self._pace.seconds_starved(self._throttled_since) > policy.throttled
        if is_starved or (
            count > _MAX_THROTTLES and self._pace.seconds_since(self._throttled_since) > policy.throttled
        ):
            return None
        return Rest(requested + backoff(policy.throttled_wait * count, policy.longest_wait, 1), requested)

    def note_retry(self, failure: Failure, delay: float) -> None:  # noqa: ARG002 - the rate limiter only counts retries
        """See ``RetryRules``."""
        self._pace.note_retry()


def _outcome(error: AsyncpushError) -> Literal["throttled", "refused", "unanswered"]:
    if isinstance(error, ConnectionFailedError):
        return "unanswered"
    return "throttled" if verdict(error) == "throttled" else "refused"


def _requested_delay(error: AsyncpushError) -> float | None:
    """The seconds that the answer's Retry-After requests; None if it has none."""
    cause = error.__cause__
    if not isinstance(cause, ClientError):
        return None
    return retry_after(cause.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("retry-after"))
