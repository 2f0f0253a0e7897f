"""The limits that registries tell in their answers: Docker Hub's on pulls, and others' on requests; and when they end.

Docker Hub counts each GET of a manifest as a pull, and a HEAD as none. Its answers to both have ``RateLimit-Limit:
100;w=21600``, ``RateLimit-Remaining: 76;w=21600`` and ``Docker-RateLimit-Source`` (docs.docker.com, "Docker Hub usage
and limits"); those to accounts without a limit have none of them. A HEAD is answered even when no pull is left. Docker
Hub names no time at which there are pulls again; other registries send ``Retry-After``, or ``RateLimit-Reset`` in
seconds (draft-ietf-httpapi-ratelimit-headers-03).
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass

from asyncpush.errors import SourceLimitedError
from asyncpush.units import moment_text

#: RateLimit-Limit and RateLimit-Remaining: a number of requests, and the seconds that they are for.
_NUMBER = re.compile(r"([0-9]{1,15})(?:\s*;\s*w=([0-9]{1,15}))?")

#: Docker Hub's header that names what it counts by: an address, or an account.
_OF_PULLS = "Docker-RateLimit-Source"


@dataclass(frozen=True, slots=True)
class PullLimit:
    """How many pulls a registry allows.

    Attributes:
        limit: pulls in the window, in words, such as ``100 requests in 6 hours``.
        remaining: pulls that are left.
        window: the seconds for which the limit holds; None if that is unknown.
    """

    limit: str
    remaining: int
    window: float | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """How long a registry refuses requests.

    Attributes:
        seconds: the time from now on.
        is_guess: whether the registry names no time: the window of its limit ends within *seconds*.
    """

    seconds: float
    is_guess: bool = False


def pull_limit(headers: Mapping[str, str]) -> PullLimit | None:
    """The limit on pulls that an answer tells; None if it tells none."""
    remaining = _NUMBER.match(headers.get("RateLimit-Remaining", "").strip())
    limit = describe_limit(headers)
    if _OF_PULLS not in headers or remaining is None or limit is None:
        return None
    return PullLimit(limit, int(remaining[1]), _window(headers))


def is_used_up(headers: Mapping[str, str], known: PullLimit | None = None) -> bool:
    """Whether an answer tells that nothing is left of a limit; without words of its own, what was *known* before it."""
    remaining = _NUMBER.match(headers.get("RateLimit-Remaining", "").strip())
    if remaining is None:
        return known is not None and known.remaining == 0
    return int(remaining[1]) == 0


def pause_until_renewed(headers: Mapping[str, str], after: float | None, known: PullLimit | None) -> Pause | None:
    """When a registry that has refused a request takes more; None if nothing tells.

    Args:
        headers: those of the refusal.
        after: the seconds of its Retry-After.
        known: the limit on pulls that earlier answers have told.
    """
    if after is not None:
        return Pause(after)
    if not is_used_up(headers, known):
        return None
    reset = headers.get("RateLimit-Reset", "").strip()
    if reset.isascii() and reset.isdecimal():
        return Pause(float(reset[:12]))
    window = _window(headers) or (known.window if known else None)
    return None if window is None else Pause(window, is_guess=True)


def _window(headers: Mapping[str, str]) -> float | None:
    for name in ("RateLimit-Remaining", "RateLimit-Limit"):
        match = _NUMBER.match(headers.get(name, "").strip())
        if match is not None and match[2] is not None:
            return float(match[2])
    return None


#: What each limit covers: a registry that refuses one of these may still answer those before it. Docker Hub answers
#: all but the first when no pull is left.
_COSTS = ("GET blob", "GET catalog", "GET tags", "HEAD manifest")


class UsedUpLimit:
    """Refuses requests to a registry whose limit is used up, until the time that it names, without sending them."""

    def __init__(self) -> None:
        self._cost = 0
        self._error: SourceLimitedError | None = None

    def note(self, operation: str, error: SourceLimitedError) -> None:
        """Note that a request of *operation* was refused: no such request, and none that costs more, is sent."""
        cost = _cost(operation)
        self._cost = cost if self._error is None or _is_over(self._error) else min(cost, self._cost)
        self._error = error

    def check(self, operation: str, what: str) -> None:
        """Raise ``SourceLimitedError`` for a request that would be refused; *what* is what it asks for."""
        error = self._error
        if error is not None and not _is_over(error) and _cost(operation) >= self._cost:
            when = until_text(error.until, is_guess=error.is_guess)
            raise SourceLimitedError(
                f"{what}: {error.host} accepts no more requests until {when}",
                error.host,
                error.until,
                is_guess=error.is_guess,
                hint=error.hint,
            )


def _is_over(error: SourceLimitedError) -> bool:
    return time.time() >= error.until


def _cost(operation: str) -> int:
    return _COSTS.index(operation) if operation in _COSTS else len(_COSTS)


def until_text(until: float, *, is_guess: bool) -> str:
    """The time at which a registry takes requests again, in words."""
    return f"about {moment_text(until)}" if is_guess else moment_text(until)


def describe_limit(headers: Mapping[str, str]) -> str | None:
    """RateLimit-Limit in words: ``100;w=21600`` is 100 requests in 6 hours; None if it is missing or malformed."""
    match = _NUMBER.match(headers.get("RateLimit-Limit", "").strip())
    if match is None:
        return None
    if match[2] is None:
        return f"{match[1]} requests"
    seconds = int(match[2])
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{match[1]} requests in {seconds // size} {unit}"
    return f"{match[1]} requests in {seconds} seconds"
