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
    """The path of something in a repository; *reference* is a tag or a digest, or ``list``."""
    return f"/v2/{quote(repository)}/{kind}/{quote(reference, safe=':')}"


@dataclass(frozen=True, slots=True)
class Request:
    """A request.

    Attributes:
        operation: what it is called in events and counts, such as ``GET blob``.
        path: behind the registry's address; quoted already.
        what: how to call what it asks for, in errors.
        repository: whose it is; empty for what concerns the whole registry.
        headers: what it says beside its credentials.
        expected: statuses that are no failure.
    """

    operation: str
    path: str
    what: str
    repository: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    expected: frozenset[int] = frozenset({200})

    @property
    def method(self) -> str:
        """The HTTP method: the operation's first word where that is one."""
        return "HEAD" if self.operation.startswith("HEAD") else "GET"

    @property
    def of_image(self) -> bool:
        """Whether a manifest that was read names what it asks for."""
        return "/blobs/" in self.path

    @property
    def scope(self) -> str:
        """What a token must be good for."""
        return f"repository:{self.repository}:pull" if self.repository else ""


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer; its body is None where that was too long. ``links`` are its Link headers."""

    status: int
    headers: Mapping[str, str]
    url: URL
    body: bytes | None
    links: Sequence[str] = ()


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


class RequestGate:
    """Holds requests to one registry back while it wants none, and chooses their waits (``RetryRules``).

    Args:
        policy: the waits.
    """

    def __init__(self, policy: RetryPolicy) -> None:
        self._policy = policy
        self._closed_until = 0.0

    async def wait_open(self) -> None:
        """Wait until requests may be sent."""
        while (wait := self._closed_until - time.monotonic()) > 0:  # noqa: ASYNC110 - for time to pass, not for a task
            await anyio.sleep(wait)

    def explain(self, error: AsyncpushError) -> Failure:
        """See ``RetryRules``. A host that has never answered gets one try: a wrong address should show at once."""
        if not isinstance(error, TransientError) or error.final:
            return Failure("final")
        if error.silent is not None and error.unanswered and not error.silent[0].answered:
            return Failure("final")
        return Failure("throttled" if error.throttled else "transient", error.silent, error.after)

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
