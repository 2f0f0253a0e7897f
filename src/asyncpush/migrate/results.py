"""What became of a migration, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from asyncpush.engine.image import ImageResult
from asyncpush.errors import (
    CREDENTIALS_LOST,
    AsyncpushError,
    ChoiceError,
    ConnectionFailedError,
    ManifestError,
    ServiceError,
    SourceDeniedError,
    SourceNotFoundError,
    SourceUnavailableError,
    TagImmutableError,
    UnforeseenError,
    UsageError,
)
from asyncpush.migrate.copies import Copy, CopyResult, LeftOutTag, NothingTaken
from asyncpush.results import Result


@dataclass(frozen=True, slots=True, kw_only=True)
class Report(Result):
    """What became of a migration.

    Attributes:
        results: of each copy, and of each signature, attestation and SBOM, in the order in which they ended first.
        left_out: tags that the plan does not take.
        nothing_taken: entries that take no tag, and need not.
        requests: how many requests were sent, by operation: ``PutImage``, and ``GET blob`` and the like at the sources.
        sent: bytes of layers that went over the wire (before base64), also for what failed in the end.
        seconds: how long it took.
        resumed: an interrupted run went on.
        stopped: why the run ended before all was tried: credentials were lost. With a journal, the next one goes on.
    """

    results: tuple[CopyResult, ...]
    left_out: tuple[LeftOutTag, ...]
    requests: Mapping[str, int]
    sent: int
    seconds: float
    resumed: bool
    stopped: AsyncpushError | None = None
    nothing_taken: tuple[NothingTaken, ...] = ()

    @property
    def failed(self) -> tuple[CopyResult, ...]:
        """What has failed."""
        return tuple(result for result in self.results if result.outcome == "failed")

    @property
    def failures(self) -> tuple[tuple[str, AsyncpushError], ...]:
        """What has failed, and why; where nothing was tried any more, what has stopped the run."""
        failed = tuple((result.copy.destination, result.error) for result in self.failed if result.error)
        return failed or ((("", self.stopped),) if self.stopped else ())


def pushed_result(copy: Copy, image: ImageResult) -> CopyResult:
    """The result of a copy whose image was pushed, or was there already."""
    return CopyResult(
        copy=copy,
        outcome="pushed" if image.outcome == "pushed" else "present",
        digest=image.digest,
        layers_sent=image.layers_sent,
        bytes_sent=image.bytes_sent,
        layers_mounted=image.layers_mounted,
        bytes_mounted=image.bytes_mounted,
        layers_present=image.layers_present,
        bytes_present=image.bytes_present,
        seconds=image.seconds,
        left_out=image.left_out,
    )


#: Characters of a reason that a journal keeps.
_LONGEST = 8000

_FINAL = (
    UsageError,
    ManifestError,
    ChoiceError,
    TagImmutableError,
    UnforeseenError,
    SourceNotFoundError,
    SourceDeniedError,
    *CREDENTIALS_LOST,
)
_THROTTLES = frozenset({"ThrottlingException", "TooManyRequestsException", "RequestLimitExceeded"})
_TOO_MANY_REQUESTS, _ILL = 429, 500
_FINAL_CODES = frozenset({"AccessDeniedException", "LimitExceededException", "InvalidParameterException"})


def time_may_mend(error: AsyncpushError | None) -> bool:
    """Whether another try may end better for having been made later: nobody has answered, or an ill server has."""
    if isinstance(error, ServiceError):
        return error.status == _TOO_MANY_REQUESTS or error.status >= _ILL or error.code in _THROTTLES
    return isinstance(error, (ConnectionFailedError, SourceUnavailableError))


def may_succeed(error: AsyncpushError | None) -> bool:
    """Whether another try may end better."""
    if isinstance(error, ServiceError) and error.code in _FINAL_CODES:
        return False
    return not isinstance(error, _FINAL)


def journaled(error: AsyncpushError | None) -> str:
    """What a journal keeps of *error*, in one line: with the traceback, if nobody has foreseen it."""
    trace = f" | {' | '.join(error.traceback.split(chr(10)))}" if isinstance(error, UnforeseenError) else ""
    return f"{error}{trace}"[:_LONGEST]
