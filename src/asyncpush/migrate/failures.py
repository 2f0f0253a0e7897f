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
    UsageError,
)

_FINAL = (
    UsageError,
    ManifestError,
    ChoiceError,
    TagImmutableError,
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
