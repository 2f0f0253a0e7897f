"""Sources whose limits are used up: what is left for them, until when, and the wait for that time."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import anyio

from asyncpush.errors import SourceLimitedError
from asyncpush.events import Emit, Limited, Notice
from asyncpush.migrate.report import CopyResult
from asyncpush.sources.registry.pull_limit import until_text
from asyncpush.units import count_text

#: Seconds between two events that tell what is waited for.
_TELL = 1.0


@dataclass(frozen=True, slots=True)
class LimitedSource:
    """A source registry whose limit is used up, and what was left for that.

    Attributes:
        host: the registry.
        until: when it takes requests again, in seconds since 1970.
        is_guess: whether the registry names no time: it is *until* at the latest.
        images: how many images were left.
        referrers: how many signatures, attestations and SBOMs, or lists of them, were left.
    """

    host: str
    until: float
    is_guess: bool
    images: int
    referrers: int

    @property
    def left(self) -> str:
        """What was left, and for when."""
        parts = [
            count_text(count, word) for count, word in ((self.images, "image"), (self.referrers, "referrer")) if count
        ]
        return f"{' and '.join(parts)} left for {self.when}"

    @property
    def when(self) -> str:
        """The time, in words."""
        return until_text(self.until, is_guess=self.is_guess)


def limited_sources(results: Iterable[CopyResult]) -> tuple[LimitedSource, ...]:
    """The sources for whose limits something was left, the first to end first."""
    by_host: dict[str, list[tuple[SourceLimitedError, bool]]] = {}
    for result in results:
        if result.outcome == "left" and isinstance(result.error, SourceLimitedError):
            by_host.setdefault(result.error.host, []).append((result.error, result.subject is not None))
    found = []
    for host, left in by_host.items():
        last = max((error for error, _ in left), key=lambda error: error.until)
        referrers = sum(is_referrer for _, is_referrer in left)
        found.append(LimitedSource(host, last.until, last.is_guess, len(left) - referrers, referrers))
    return tuple(sorted(found, key=lambda source: source.until))


async def wait_for_source(source: LimitedSource, emit: Emit) -> None:
    """Wait until a source takes requests again."""
    emit(Notice(f"{source.host}: {source.left}; waiting for that (--wait); Ctrl-C leaves them to --failed"))
    # By the clock of the wall, since a machine may sleep meanwhile.
    while (seconds := source.until - time.time()) > 0:
        emit(Limited(source.host, 0.0, "source", until=source.when))
        await anyio.sleep(min(seconds, _TELL))
