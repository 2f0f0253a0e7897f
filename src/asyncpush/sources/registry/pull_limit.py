"""The limits that registries tell in their answers: Docker Hub's on pulls, and others' on requests.

Docker Hub counts each GET of a manifest as a pull, and a HEAD as none. Its answers to both have ``RateLimit-Limit:
100;w=21600``, ``RateLimit-Remaining: 76;w=21600`` and ``Docker-RateLimit-Source`` (docs.docker.com, "Docker Hub usage
and limits"); those to accounts without a limit have none of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

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
    """

    limit: str
    remaining: int


def pull_limit(headers: Mapping[str, str]) -> PullLimit | None:
    """The limit on pulls that an answer tells; None if it tells none."""
    remaining = _NUMBER.match(headers.get("RateLimit-Remaining", "").strip())
    limit = describe_limit(headers)
    if _OF_PULLS not in headers or remaining is None or limit is None:
        return None
    return PullLimit(limit, int(remaining[1]))


def is_used_up(headers: Mapping[str, str]) -> bool:
    """Whether an answer tells that nothing is left of a limit."""
    remaining = _NUMBER.match(headers.get("RateLimit-Remaining", "").strip())
    return remaining is not None and int(remaining[1]) == 0


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
