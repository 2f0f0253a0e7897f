"""Which failures another try may mend."""

from __future__ import annotations

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
