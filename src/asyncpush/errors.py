"""Everything that asyncpush raises on purpose. Each message is one line: what is wrong, and what to do.

AsyncpushError
├── UsageError                 asked for something that can't be: nothing was sent (exit 2)
│   ├── InvalidReferenceError  a source, destination, repository, tag or digest that is written wrong
│   ├── ChoiceError            several images or tags, and none was chosen
│   ├── PlanError              a plan with problems, all of them in one error
│   └── ConfigurationError     no region, an unknown profile, a file that can't be read
│       └── CredentialsError   there are no AWS credentials, or what should give them fails
├── SourceError                the source can't be read, or isn't what it says
│   ├── ManifestError          a manifest that is malformed, too large or too deep
│   ├── DigestMismatchError    bytes that do not match their digest or size
│   ├── SourceNotFoundError    a source registry has no such repository, tag, manifest or blob
│   ├── SourceDeniedError      a source registry refuses, with the credentials that there are
│   └── SourceUnavailableError a source registry gives no answer, or too many errors
├── UnforeseenError            an error that nobody has foreseen: a bug; it fails what it is about, and nothing else
├── JournalError               the journal is damaged or can't be written
├── FailuresError              several things were asked for, and some of them failed (``raise_for_failures``)
└── RegistryError              the far end refused or could not be reached
    ├── ConnectionFailedError  no answer: refused, reset, timed out, TLS
    ├── CredentialsExpiredError  AWS credentials ended in the midst of a run, and there are no others
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

import traceback
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from asyncpush.redaction import shown, shown_line

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from asyncpush.model import Digest


#: What a message tells of an error that nobody has foreseen: calls, the innermost first, and characters.
_SHOWN_FRAMES = 4
_SHOWN_TEXT = 300

#: Choices that a message lists; a layout can hold hundreds.
_SHOWN_CHOICES = 20

#: Failures that one line has room for.
_SHOWN_FAILURES = 5


class AsyncpushError(Exception):
    """The root of all of asyncpush's errors. They show no secrets that are known, and nothing that drives a terminal.

    Args:
        message: what is wrong, in one line.
        hint: what to do about it; printed behind the message.
    """

    #: Whether its message has several lines, and not a name with a line end in it.
    _has_lines = False

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        self.message = shown(message) if self._has_lines else shown_line(message)
        self.hint = shown_line(hint) if hint else hint
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class UsageError(AsyncpushError):
    """Raised when a request can't be carried out as asked; nothing was sent."""


class InvalidReferenceError(UsageError):
    """Raised when a source, destination, repository name, tag or digest is not well formed."""


class ChoiceError(UsageError):
    """Raised when a source holds several images and none was chosen, or the chosen one is not there.

    Args:
        message: what must be chosen.
        choices: what can be chosen, as the user would write it.
    """

    def __init__(self, message: str, choices: Sequence[str]) -> None:
        self.choices = tuple(choices)
        shown = list(choices[:_SHOWN_CHOICES])
        if len(choices) > len(shown):
            shown.append(f"... ({len(choices) - len(shown)} more)")
        super().__init__(message, hint="choose one of: " + (", ".join(shown) or "(none)"))


class PlanError(UsageError):
    """Raised when a plan can't be carried out as it is written.

    Args:
        problems: what is wrong, a line each, with its place.
    """

    _has_lines = True

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(map(shown_line, problems))
        super().__init__("\n".join(self.problems))


class ConfigurationError(UsageError):
    """Raised when the AWS configuration lacks a region or credentials, or names an unknown profile."""


class CredentialsError(ConfigurationError):
    """Raised when there are no AWS credentials, or what should give them fails; it is named. Nothing was sent."""


class SourceError(AsyncpushError):
    """Raised when a source can't be read or is not what it claims to be."""


class ManifestError(SourceError):
    """Raised when a manifest is malformed, too large, too deeply nested, or of a type that ECR does not take."""


#: What to do about damaged bytes of a file: an archive, a layout, a layer.
_FILE_HINT = "fetch or save it again, and let nothing change it during the push"


class DigestMismatchError(SourceError):
    """Raised when the bytes of a blob do not match the digest or the size that points at them.

    Args:
        what: the blob and where it is, as the user knows it.
        expected: the digest or size that was claimed.
        actual: the digest or size of the bytes that were read.
        hint: what to do about it, where the bytes do not come from a file.
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
    """Raised when a source registry has no such repository, tag, manifest or blob."""


class SourceDeniedError(SourceError):
    """Raised when a source registry refuses, with the credentials that there are, or for lack of any."""


class SourceUnavailableError(SourceError):
    """Raised when a source registry can't be reached, is not trusted, or fails too often."""


class JournalError(AsyncpushError):
    """Raised when the journal is damaged or can't be written: what ECR has acknowledged can't be remembered."""


class FailuresError(AsyncpushError):
    """Raised by ``raise_for_failures`` when some of what was asked for has failed.

    Args:
        failures: what has failed, as the user knows it, and why.
    """

    def __init__(self, failures: Sequence[tuple[str, AsyncpushError]]) -> None:
        self.failures = tuple(failures)
        shown = [f"{name}: {error}" if name else str(error) for name, error in failures[:_SHOWN_FAILURES]]
        if len(failures) > len(shown):
            shown.append(f"and {len(failures) - len(shown)} more")
        super().__init__(f"{len(failures)} failed: {'; '.join(shown)}")


class UnforeseenError(AsyncpushError):
    """Raised when something fails in a way that nobody has foreseen: it is a bug of asyncpush's.

    Args:
        error: what was raised.
    """

    def __init__(self, error: Exception) -> None:
        cause = next(leaf_errors(error))
        #: All that is known of it, many lines.
        self.traceback = shown("".join(traceback.format_exception(error)))
        frames = traceback.extract_tb(cause.__traceback__)[-_SHOWN_FRAMES:]
        places = ", ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
        text = " ".join(str(cause).split())[:_SHOWN_TEXT]
        bug = "" if isinstance(cause, OSError) else "this is a bug, please report it: "
        super().__init__(f"{bug}{type(cause).__name__}{': ' if text else ''}{text} ({places})")


class RegistryError(AsyncpushError):
    """Raised when the registry refuses or can't be reached."""


class ConnectionFailedError(RegistryError):
    """Raised when the endpoint gave no answer: refused, reset, timed out, or not trusted.

    Args:
        message: what failed, in one line.
        hint: what to do about it.
        wrong_address: it is what a wrong address shows, too: nobody there, no such host, no trust.
        silent: nothing came; else something came that is not an answer.
    """

    def __init__(
        self, message: str, *, hint: str | None = None, wrong_address: bool = False, silent: bool = True
    ) -> None:
        self.wrong_address = wrong_address
        self.silent = silent
        super().__init__(message, hint=hint)


class CredentialsExpiredError(RegistryError):
    """Raised when AWS credentials have ended in the midst of a run, and what gave them gives no others."""


class ServiceError(RegistryError):
    """Raised when ECR answers with an error.

    Args:
        operation: the operation's name, such as ``PutImage``.
        code: ECR's code, such as ``RepositoryNotFoundException``.
        message: ECR's message.
        status: the HTTP status, 0 if unknown.
        request_id: ECR's id of the request, to quote to AWS.
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
    """Raised when ECR does not know who asks: expired, unknown or revoked credentials, or a wrong secret."""


#: What every further request of a run would fail of, too: it ends, and can be gone on with.
CREDENTIALS_LOST = (CredentialsExpiredError, CredentialsRefusedError)


class RepositoryNotFoundError(ServiceError):
    """Raised when the repository does not exist (RepositoryNotFoundException)."""


class UploadNotFoundError(ServiceError):
    """Raised when ECR does not know the upload id (UploadNotFoundException): finished, expired or foreign."""


class InvalidLayerPartError(ServiceError):
    """Raised when a part does not follow the last one (InvalidLayerPartException).

    ``last_valid_byte`` is the last byte that ECR holds of the upload, None if it did not say.
    """

    last_valid_byte: int | None = None


class InvalidLayerError(ServiceError):
    """Raised when ECR has other bytes of a layer than were sent (InvalidLayerException)."""


class LayersNotFoundError(ServiceError):
    """Raised when PutImage misses a blob or a child manifest (LayersNotFound-, ReferencedImagesNotFoundException)."""


class TagImmutableError(RegistryError):
    """Raised when an immutable tag names another image already (ImageTagAlreadyExistsException).

    Args:
        repository: the repository's name.
        tag: the tag.
        wanted: what was to be put: a digest, or words for an image whose digest is not known yet.
        present: the digest that the tag names, None if it could not be read.
    """

    def __init__(self, repository: str, tag: str, wanted: Digest | str, present: Digest | None) -> None:
        self.wanted = wanted
        self.present = present
        super().__init__(
            f"{repository}:{tag} is immutable and names {present or 'another image'}, not {wanted}",
            hint="push under another tag",
        )


def leaf_errors(error: BaseException) -> Iterator[BaseException]:
    """Walk the leaves of nested exception groups; *error* itself when it is none."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaf_errors(inner)
    else:
        yield error


@contextmanager
def only_cause() -> Iterator[None]:
    """Raise what a task group failed of, instead of the group; the first of several."""
    try:
        yield
    except BaseExceptionGroup as group:
        error = next(leaf_errors(group))
        raise error from error.__cause__


@contextmanager
def foreseen() -> Iterator[None]:
    """Raise what nobody has foreseen as an error of asyncpush's: whoever catches those catches it, too."""
    try:
        yield
    except AsyncpushError:
        raise
    except Exception as error:
        ours = next((each for each in leaf_errors(error) if isinstance(each, AsyncpushError)), None)
        if ours is not None:
            raise ours from ours.__cause__
        raise UnforeseenError(error) from error
