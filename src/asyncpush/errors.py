"""The errors of asyncpush. Each message is one line: what happened, to what, and what to do.

AsyncpushError
├── UsageError                 a request that is not valid: nothing was sent (exit 2)
│   ├── InvalidReferenceError  a source, destination, repository, tag or digest that is not well formed
│   ├── ChoiceError            several images or tags, and none was chosen
│   ├── PlanError              an invalid plan; the error lists all of its problems
│   ├── JournalInUseError      another process uses the journal
│   └── ConfigurationError     no region, an unknown profile, a file that can't be read
│       └── CredentialsError   there are no AWS credentials, or their provider fails
├── SourceError                the source can't be read, or does not match its description
│   ├── PathNotFoundError      there is no such file; a UsageError, too
│   ├── ManifestError          a manifest that is malformed, too large or too deep
│   ├── EmptyLayerError        a layer of 0 bytes, which ECR can't hold
│   ├── DigestMismatchError    bytes that do not match their digest or size
│   ├── SourceNotFoundError    a registry, engine or bucket has no such image, manifest, blob or object
│   ├── SourceArchivedError    ECR holds the image in its archive, from which nobody can pull
│   ├── SourceDeniedError      a registry, engine or bucket refuses the available credentials
│   └── SourceUnavailableError a registry, engine or bucket can't be reached, or fails too often
│       └── SourceLimitedError its limit is used up until a time that is too far to wait for
├── UnforeseenError            an unexpected error: a bug; only the image or layer that it affects fails
├── JournalError               the journal is damaged or can't be written
├── InterruptedRunError        what a signal or a cancellation kept from being done
├── FailuresError              some of several images or layers failed (``raise_for_failures``)
└── RegistryError              ECR refused, or could not be reached
    ├── ConnectionFailedError  no answer: refused, reset, timed out, TLS
    ├── CredentialsExpiredError  the AWS credentials expired during the run, and can't be renewed
    └── ServiceError           ECR answered with an error code
        ├── CredentialsRefusedError
        ├── RepositoryNotFoundError
        ├── UploadNotFoundError
        ├── InvalidLayerPartError
        ├── InvalidLayerError
        ├── LayersNotFoundError
        └── TagImmutableError
"""

from __future__ import annotations

import re
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from asyncpush.redaction import shown, shown_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from asyncpush.model import Digest


#: Stack frames, the innermost first, and characters in the message of an unexpected error.
_SHOWN_FRAMES = 4
_SHOWN_TEXT = 300

#: Choices that a message lists; a layout can hold hundreds.
_SHOWN_CHOICES = 20

#: Failures that a message lists.
_SHOWN_FAILURES = 5


class AsyncpushError(Exception):
    """The base class of all errors of asyncpush. Their texts contain no known secrets and no control characters.

    Args:
        message: what happened, in one line.
        hint: what to do about it; printed after the message.
    """

    #: Whether the message may have several lines; otherwise line ends in names are escaped.
    _has_lines = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        self.message = shown(message) if self._has_lines else shown_line(message)
        self.hint = shown_line(hint) if hint else hint
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


#: What differs between failures of one cause, besides the names of what failed.
_INCIDENTAL = re.compile(r"\b[0-9a-f]{12,64}\b|\b[0-9]{5,}\b")


def cause_of(message: str, name: str) -> str:
    """The part of *message* that failures of the same cause share: without the *name* of what failed, and digests."""
    host, slash, path = name.partition("/")
    repository = path if slash and ("." in host or ":" in host) else name
    for part in (name, repository, *repository.rsplit(":", 1)):
        if part:
            message = message.replace(part, "...")
    return _INCIDENTAL.sub("...", message)


class UsageError(AsyncpushError):
    """Raised when a request can't be carried out as asked; nothing was sent."""


class InvalidReferenceError(UsageError):
    """Raised when a source, destination, repository name, tag or digest is not well formed."""


class ChoiceError(UsageError):
    """Raised when a source holds several images and none was chosen, or the chosen one does not exist.

    Args:
        message: what must be chosen.
        choices: the possible choices, as the user would write them.
    """

    def __init__(self, message: str, choices: Sequence[str]) -> None:
        self.choices = tuple(choices)
        shown = list(choices[:_SHOWN_CHOICES])
        if len(choices) > len(shown):
            shown.append(f"... ({len(choices) - len(shown)} more)")
        super().__init__(message, hint="choose one of: " + (", ".join(shown) or "(none)"))


@dataclass(frozen=True, slots=True)
class Position:
    """Where something stands in a file.

    Attributes:
        file: the file; None for standard input.
        line: the line, from 1.
        column: the column, from 1; None if the line says enough.
    """

    file: Path | None
    line: int
    column: int | None = None

    def __str__(self) -> str:
        """As compilers write it: ``FILE:LINE:COLUMN``."""
        numbers = f"{self.line}:{self.column}" if self.column is not None else str(self.line)
        return f"{self.file or 'standard input'}:{numbers}"


class PlanError(UsageError):
    """Raised when a plan is not valid.

    Args:
        problems: the problems, one line each, which begins with its position.
        positions: the position of each problem again, for programs; None where it is unknown.
    """

    _has_lines = True
    positions: tuple[Position | None, ...] = ()

    def __init__(self, problems: Sequence[str], positions: Sequence[Position | None] = ()) -> None:
        self.problems = tuple(map(shown_line, problems))
        self.positions = tuple(positions)
        super().__init__("\n".join(self.problems))


class JournalInUseError(UsageError):
    """Raised when another process uses the journal."""


class ConfigurationError(UsageError):
    """Raised when the AWS configuration lacks a region or credentials, or names an unknown profile."""


class CredentialsError(ConfigurationError):
    """Raised when there are no AWS credentials, or the provider that the message names fails. Nothing was sent."""


class SourceError(AsyncpushError):
    """Raised when a source can't be read, or does not match its description."""


class PathNotFoundError(SourceError, UsageError):
    """Raised when the path of a source does not exist."""


class ManifestError(SourceError):
    """Raised when a manifest is malformed, too large, too deeply nested, or of a type that ECR does not accept."""


class EmptyLayerError(SourceError):
    """Raised for a layer of 0 bytes, before anything is sent: ECR completes no upload without parts.

    Args:
        what: the layer and where it is, by the name that the user knows.
        advice: how to do without it, as an imperative.
    """

    def __init__(self, what: str, advice: str) -> None:
        super().__init__(f"{what} has 0 bytes", hint=f"ECR cannot hold an empty layer; {advice}")


#: The hint for damaged bytes of a file: an archive, a layout, a layer.
_FILE_HINT = "fetch or save it again, and let nothing change it during the push"


class DigestMismatchError(SourceError):
    """Raised when the bytes of a blob do not match its digest or its size.

    Args:
        what: the blob and where it is, by the name that the user knows.
        expected: the digest or size that was claimed.
        actual: the digest or size of the bytes that were read.
        hint: what to do about it, if the bytes do not come from a file.
    """

    def __init__(self, what: str, expected: Digest | int, actual: Digest | int, *, hint: str = _FILE_HINT) -> None:
        self.expected = expected
        self.actual = actual
        claim, found = (
            (f"{expected} bytes", f"{actual} bytes") if isinstance(expected, int) else (str(expected), str(actual))
        )
        super().__init__(
            f"{what} is damaged: {claim} expected, {found} read",
            hint=hint,
        )


class SourceNotFoundError(SourceError):
    """Raised when a registry, engine or bucket has no such repository, image, manifest, blob or object."""


class SourceArchivedError(SourceError):
    """Raised when an image is in ECR's archive: it must be restored before it can be pulled."""


class SourceDeniedError(SourceError):
    """Raised when a registry, engine or bucket refuses the credentials, or requires some and there are none."""


class SourceUnavailableError(SourceError):
    """Raised when a registry, engine or bucket can't be reached, is not trusted, or fails too often."""


class SourceLimitedError(SourceUnavailableError):
    """Raised when a source registry's limit is used up until a time that is too far to wait for within a request.

    Args:
        message: what was refused, and until when, in one line.
        host: the registry.
        until: the time, in seconds since 1970.
        is_guess: whether the registry names no time, so that *until* is when its limit's window ends at the latest.
        hint: what to do about it.
    """

    def __init__(self, message: str, host: str, until: float, *, is_guess: bool, hint: str | None = None) -> None:
        self.host = host
        self.until = until
        self.is_guess = is_guess
        super().__init__(message, hint=hint)


class TooManyFailuresError(AsyncpushError):
    """Raised when as many images have failed as a migration may; it begins no others."""


class JournalError(AsyncpushError):
    """Raised when the journal is damaged or can't be written, so that progress can't be recorded."""


class InterruptedRunError(AsyncpushError):
    """The reason of what was not done because a signal, or a cancellation, has ended the run; not raised."""

    #: Its code in JSON.
    code = "Interrupted"

    def __init__(self) -> None:
        super().__init__("interrupted", hint="run the same command again to resume")


class FailuresError(AsyncpushError):
    """Raised by ``raise_for_failures`` when some images or layers have failed.

    Args:
        failures: for each failure, what failed, by the name that the user knows, and the error.
    """

    def __init__(self, failures: Sequence[tuple[str, AsyncpushError]]) -> None:
        self.failures = tuple(failures)
        shown = [f"{name}: {error}" if name else str(error) for name, error in failures[:_SHOWN_FAILURES]]
        if len(failures) > len(shown):
            shown.append(f"and {len(failures) - len(shown)} more")
        super().__init__(f"{len(failures)} failed: {'; '.join(shown)}")


class UnforeseenError(AsyncpushError):
    """Raised for an exception that asyncpush does not expect: a bug.

    Args:
        error: the exception.
    """

    def __init__(self, error: Exception) -> None:
        cause = next(leaf_errors(error))
        #: The whole traceback, in many lines.
        self.traceback = shown("".join(traceback.format_exception(error)))
        frames = traceback.extract_tb(cause.__traceback__)[-_SHOWN_FRAMES:]
        locations = ", ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
        text = " ".join(str(cause).split())[:_SHOWN_TEXT]
        bug = "" if isinstance(cause, OSError) else "this is a bug, please report it: "
        super().__init__(f"{bug}{type(cause).__name__}{': ' if text else ''}{text} ({locations})")


class RegistryError(AsyncpushError):
    """Raised when the registry refuses a request or can't be reached."""


class ConnectionFailedError(RegistryError):
    """Raised when the endpoint did not answer: refused, reset, timed out, or not trusted.

    Args:
        message: what failed, in one line.
        hint: what to do about it.
        wrong_address: whether a wrong address may be the cause: refused, unknown host, untrusted certificate.
        silent: whether nothing was received; otherwise, something that is not an answer.
    """

    def __init__(
        self, message: str, *, hint: str | None = None, wrong_address: bool = False, silent: bool = True
    ) -> None:
        self.wrong_address = wrong_address
        self.silent = silent
        super().__init__(message, hint=hint)


class CredentialsExpiredError(RegistryError):
    """Raised when the AWS credentials expire during a run, and their provider does not renew them."""


class ServiceError(RegistryError):
    """Raised when ECR answers with an error.

    Args:
        operation: the operation's name, such as ``PutImage``.
        code: ECR's code, such as ``RepositoryNotFoundException``.
        message: ECR's message.
        status: the HTTP status, 0 if unknown.
        request_id: ECR's id of the request, to quote to AWS Support.
        hint: what to do about it.
    """

    def __init__(
        self, operation: str, code: str, message: str, *, status: int = 0, request_id: str = "", hint: str | None = None
    ) -> None:
        self.operation = operation
        self.code = code
        self.status = status
        self.request_id = request_id
        text = " ".join(message.split()) or "no message"
        super().__init__(f"{operation} failed: {code}: {text.rstrip('.')}", hint=hint)


class CredentialsRefusedError(ServiceError):
    """Raised when ECR does not accept the credentials: expired, unknown or revoked, or a wrong secret."""


#: Errors with which every further request would fail, too: the run ends, and can be resumed later.
CREDENTIALS_LOST = (CredentialsExpiredError, CredentialsRefusedError)


#: The error codes of ECR for what the caller may not do; the second one is that of ``/v2/``.
_DENIALS = frozenset({"AccessDeniedException", "DENIED"})


def is_denied(error: BaseException) -> bool:
    """Whether credentials are missing or refused, or do not permit what failed."""
    if isinstance(error, (CredentialsError, SourceDeniedError, *CREDENTIALS_LOST)):
        return True
    return isinstance(error, ServiceError) and error.code in _DENIALS


# ECR's code is ThrottlingException; the others are those of other services, which proxies and emulators use as well.
# LimitExceededException is not among them: at ECR it is a quota on parts, tags or images, and waiting does not help.
_THROTTLES = frozenset(
    {"ThrottlingException", "Throttling", "ThrottledException", "TooManyRequestsException", "RequestLimitExceeded"}
)
_TOO_MANY_REQUESTS = 429


def is_throttled(error: ServiceError) -> bool:
    """Whether ECR has refused a request for its rate: the same request may succeed later."""
    return error.code in _THROTTLES or error.status == _TOO_MANY_REQUESTS


def origin_of(error: AsyncpushError) -> Literal["source", "registry", "signal", "usage"]:
    """Where *error* comes from, as JSON names it."""
    if isinstance(error, SourceError):
        return "source"
    if isinstance(error, RegistryError):
        return "registry"
    return "signal" if isinstance(error, InterruptedRunError) else "usage"


class RepositoryNotFoundError(ServiceError):
    """Raised when the repository does not exist (RepositoryNotFoundException)."""


class UploadNotFoundError(ServiceError):
    """Raised when ECR does not know the upload id (UploadNotFoundException): finished, expired or foreign."""


class InvalidLayerPartError(ServiceError):
    """Raised when a part does not follow the last one (InvalidLayerPartException).

    ``last_valid_byte`` is the last byte that ECR has of the upload; None if ECR does not name it.
    """

    last_valid_byte: int | None = None


class InvalidLayerError(ServiceError):
    """Raised when the bytes that ECR has of a layer differ from those that were sent (InvalidLayerException)."""


class LayersNotFoundError(ServiceError):
    """Raised when PutImage does not find a blob or child (LayersNotFound-, ReferencedImagesNotFoundException)."""


class TagImmutableError(RegistryError):
    """Raised when an immutable tag names another image already (ImageTagAlreadyExistsException).

    Args:
        repository: the repository's name.
        tag: the tag.
        wanted: the image to put: its digest, or a description if its digest is not known yet.
        present: the digest that the tag names; None if it could not be read.
    """

    def __init__(self, repository: str, tag: str, wanted: Digest | str, present: Digest | None) -> None:
        self.wanted = wanted
        self.present = present
        super().__init__(
            f"{repository}:{tag} is immutable and names {present or 'another image'}, not {wanted}",
            hint="push under another tag",
        )


def leaf_errors(error: BaseException) -> Iterator[BaseException]:
    """Yield the leaves of nested exception groups, or *error* itself if it is not a group."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaf_errors(inner)
    else:
        yield error


@contextmanager
def only_cause() -> Iterator[None]:
    """Raise the first error of a task group instead of the exception group."""
    try:
        yield
    except BaseExceptionGroup as group:
        error = next(leaf_errors(group))
        raise error from error.__cause__


@contextmanager
def foreseen() -> Iterator[None]:
    """Raise any unexpected exception as an ``UnforeseenError``, so that callers catch it as an ``AsyncpushError``."""
    try:
        yield
    except AsyncpushError:
        raise
    except Exception as error:
        expected = next((leaf for leaf in leaf_errors(error) if isinstance(leaf, AsyncpushError)), None)
        if expected is not None:
            raise expected from expected.__cause__
        raise UnforeseenError(error) from error
