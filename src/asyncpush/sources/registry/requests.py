"""Requests to a registry: what they ask for, what comes back, and what a failure means to ``http.retry``.

Source: OCI distribution-spec 1.1 (end points).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import quote

import anyio
from yarl import URL

from asyncpush.errors import AsyncpushError, SourceUnavailableError
from asyncpush.http.retry import Failure, HostBackoff, Rest, backoff
from asyncpush.settings import RetryPolicy

Kind = Literal["manifests", "blobs", "referrers", "tags"]


def path_of(repository: str, kind: Kind, reference: str) -> str:
    """The path of a resource in a repository; *reference* is a tag, a digest, or ``list``."""
    return f"/v2/{quote(repository)}/{kind}/{quote(reference, safe=':')}"


#: The path of the list of all repositories.
CATALOG = "/v2/_catalog"


@dataclass(frozen=True, slots=True)
class Request:
    """A request.

    Attributes:
        operation: its name in events and counts, such as ``GET blob``.
        path: the path, quoted.
        what: what it asks for, in the words of errors.
        repository: the repository; empty for requests about the whole registry.
        headers: all headers but its credentials.
        expected: the statuses of success.
    """

    operation: str
    path: str
    what: str
    repository: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    expected: frozenset[int] = frozenset({200})

    @property
    def method(self) -> str:
        """The HTTP method."""
        return "HEAD" if self.operation.startswith("HEAD") else "GET"

    @property
    def of_image(self) -> bool:
        """Whether it asks for a part of an image, which a manifest names."""
        return "/blobs/" in self.path

    @property
    def scope(self) -> str:
        """The scope of the token that it needs."""
        if self.path.partition("?")[0] == CATALOG:
            return "registry:catalog:*"
        return f"repository:{self.repository}:pull" if self.repository else ""


@dataclass(frozen=True, slots=True)
class Response:
    """A whole response; its body is None if it was too long. ``links`` are its Link headers."""

    status: int
    headers: Mapping[str, str]
    url: URL
    body: bytes | None
    links: Sequence[str] = ()


class TransientError(SourceUnavailableError):
    """Raised when a request failed and may succeed when it is sent again.

    Args:
        message: what failed, in one line.
        hint: what to do if it fails for good.
        after: seconds that the registry asks to wait; None if it does not.
        throttled: whether the request was refused for its rate.
        unanswered: whether no connection could be made.
        final: whether waiting is useless: the registry's limit is used up, and it does not say until when.
        status: the HTTP status of the response; 0 without one.

    Attributes:
        silent: the host that sent no response at all, and when the request was sent; None otherwise.
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


class RequestGate:
    """Holds back requests to a registry that has refused one for its rate, and chooses their waits (``RetryRules``).

    Args:
        policy: the waits.
        host: the registry.
    """

    def __init__(self, policy: RetryPolicy, host: str) -> None:
        self._policy = policy
        self._host = host
        self._closed_until = 0.0

    async def wait_open(self) -> None:
        """Wait until requests may be sent."""
        while (wait := self._closed_until - time.monotonic()) > 0:  # noqa: ASYNC110 - until a time, not for a task
            await anyio.sleep(wait)

    def explain(self, error: AsyncpushError) -> Failure:
        """See ``RetryRules``. A host that has never answered gets one try: a wrong address should show at once."""
        if not isinstance(error, TransientError) or error.final:
            return Failure("final")
        if error.silent is not None and error.unanswered and not error.silent[0].answered:
            return Failure("final")
        host = error.silent[0].silence.host if error.silent else self._host
        return Failure("throttled" if error.throttled else "transient", error.silent, error.after, host)

    def rest(self, failure: Failure, count: int) -> Rest:
        """See ``RetryRules``."""
        policy, is_throttled = self._policy, failure.verdict == "throttled"
        first = max(policy.first_throttled_wait, policy.first_wait) if is_throttled else policy.first_wait
        delay = backoff(first, policy.longest_wait, count)
        if failure.asked is None:
            return Rest(delay, delay if is_throttled else 0.0)
        # The random share keeps requests apart; a registry that refuses again has asked for too short a wait.
        asked = failure.asked + min(delay, policy.first_wait)
        delay = asked if count == 1 else max(asked, delay)
        return Rest(delay, delay)

    def note_retry(self, failure: Failure, delay: float) -> None:
        """See ``RetryRules``: no other request is sent while one that was refused for the rate rests."""
        if failure.verdict == "throttled":
            seconds = delay if failure.asked is None else failure.asked
            self._closed_until = max(self._closed_until, time.monotonic() + seconds)
