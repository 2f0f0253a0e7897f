"""When a request to a registry is sent again: by named cause, with full jitter, as its policy says."""

from __future__ import annotations

import re
import time

import anyio

from asyncpush.errors import SourceUnavailableError
from asyncpush.events import Emit, Retrying
from asyncpush.http.retry import HostBackoff, SilenceLimit, backoff
from asyncpush.settings import RetryPolicy

_LIMIT = re.compile(r"([0-9]+)(?:\s*;\s*w=([0-9]+))?")


class TransientError(SourceUnavailableError):
    """Raised when a request failed, and may succeed when it is sent again.

    Args:
        message: what failed, in one line.
        hint: what to do, if it fails for good.
        after: seconds that the registry asked to wait, if it did.
        throttled: it was refused for its rate.
        unanswered: nobody is there.
        final: waiting won't help: the registry's limit is used up, and it does not say until when.
        status: the HTTP status of the answer; 0 if there was none.

    Attributes:
        silent: the host that gave no answer at all, and when it was asked; None if something came.
    """

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        after: float | None = None,
        throttled: bool = False,
        unanswered: bool = False,
        final: bool = False,
        status: int = 0,
    ) -> None:
        self.status = status
        self.after = after
        self.throttled = throttled
        self.unanswered = unanswered
        self.final = final
        self.silent: tuple[HostBackoff, float] | None = None
        super().__init__(message, hint=hint)


class RetryBudget:
    """What all requests to one registry know of it: until when nobody may ask."""

    def __init__(self) -> None:
        self._quiet_until = 0.0

    async def turn(self) -> None:
        """Wait until requests may be sent."""
        while (wait := self._quiet_until - time.monotonic()) > 0:  # noqa: ASYNC110 - for time to pass, not for a task
            await anyio.sleep(wait)

    def be_quiet(self, seconds: float) -> None:
        """Let nobody ask for so long."""
        self._quiet_until = max(self._quiet_until, time.monotonic() + seconds)


class RetryLoop:
    """The tries of one request.

    Args:
        operation: what it is called in events.
        retry: how often, and how long.
        budget: what is known of the host.
        emit: hears of each new try.
    """

    def __init__(self, operation: str, retry: RetryPolicy, budget: RetryBudget, emit: Emit) -> None:
        self._operation = operation
        self._retry = retry
        self._budget = budget
        self._emit = emit
        self._failures = self._throttles = self._total = 0
        self._silence = SilenceLimit()
        self._waited = 0.0

    def progress(self) -> None:
        """Take note that something has arrived: failures before count no more."""
        self._failures = self._throttles = 0
        self._waited = 0.0
        self._silence.end()

    async def failed(self, error: TransientError) -> None:
        """Wait until it is time for the next try.

        Raises:
            TransientError: *error* itself, once it is final. A host that has never answered gets one try: a wrong
                address should say so at once.
        """
        self._total += 1
        if (delay := self._rest_in_silence(error)) is None:
            delay = self._rest(error)
        self._emit(Retrying(self._operation, self._total, delay, error.message))
        await anyio.sleep(delay)

    def _rest_in_silence(self, error: TransientError) -> float | None:
        """Seconds to rest where a host is silent that has answered before; None if that is not what failed."""
        if error.silent is None:
            self._silence.end()
            return None
        host, began = error.silent
        if not host.answered and error.unanswered:
            raise error
        delay = self._silence.wait(host, began)
        self._failures += not host.answered
        if delay is None or self._failures >= self._retry.attempts:
            raise error
        return delay

    def _rest(self, error: TransientError) -> float:
        """Seconds to rest after an answer that may pass."""
        if error.throttled:
            self._throttles += 1
        else:
            self._failures += 1
        if error.final or self._failures >= self._retry.attempts:
            raise error
        delay = self._delay(error)
        if error.throttled or error.after is not None:
            self._waited += delay
            if self._waited > self._retry.throttled:
                raise error
        if error.throttled:
            self._budget.be_quiet(error.after if error.after is not None else delay)
        return delay

    def _delay(self, error: TransientError) -> float:
        retry = self._retry
        first = max(retry.first_throttled_wait, retry.first_wait) if error.throttled else retry.first_wait
        tries = self._throttles if error.throttled else self._failures
        delay = backoff(first, retry.longest_wait, tries)
        if error.after is None:
            return delay
        # Only to come back one after the other; but a registry that refuses again has asked for too short a wait.
        asked = error.after + min(delay, retry.first_wait)
        return asked if tries == 1 else max(asked, delay)


def describe_limit(value: str | None) -> str | None:
    """What RateLimit-Limit says, in words: ``100;w=21600`` is 100 requests in 6 hours; None if it says nothing."""
    match = _LIMIT.match(value.strip()) if value else None
    if match is None:
        return None
    if match[2] is None:
        return f"{match[1]} requests"
    seconds = int(match[2])
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{match[1]} requests in {seconds // size} {unit}"
    return f"{match[1]} requests in {seconds} seconds"
