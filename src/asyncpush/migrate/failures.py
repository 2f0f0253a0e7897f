"""Which failures another try may mend."""

from __future__ import annotations

from asyncpush.errors import (
    CREDENTIALS_LOST,
    AsyncpushError,
    ChoiceError,
    ManifestError,
    ServiceError,
    SourceDeniedError,
    SourceNotFoundError,
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
_FINAL_CODES = frozenset({"AccessDeniedException", "LimitExceededException", "InvalidParameterException"})


def may_succeed(error: AsyncpushError | None) -> bool:
    """Whether another try may end better."""
    if isinstance(error, ServiceError) and error.code in _FINAL_CODES:
        return False
    return not isinstance(error, _FINAL)
