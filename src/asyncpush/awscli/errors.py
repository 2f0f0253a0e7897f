"""Errors of a command: their messages and exit statuses, as in version 2 of the aws CLI.

Version 2 before 2.34: the messages without the prefix ``aws: [ERROR]: `` and the details that later ones add, so that
a script that looks for ``An error occurred (UploadNotFoundException)`` at the beginning of a line finds it.
"""

from __future__ import annotations

import botocore.exceptions as bce

from asyncpush.errors import AsyncpushError, SourceError

#: Exit statuses; 0 is success, 130 is Ctrl-C.
USAGE, CONFIGURATION, SERVICE, OTHER = 252, 253, 254, 255

_NO_REGION = 'You must specify a region. You can also configure your region by running "aws configure".'
_NO_CREDENTIALS = 'Unable to locate credentials. You can configure credentials by running "aws configure".'

USAGE_TEXT = """\
usage: asyncpush [options] <command> <subcommand> [<subcommand> ...] [parameters]
To see help text, you can run:

  asyncpush ecr help
  asyncpush ecr <subcommand> help
"""


class CommandError(AsyncpushError):
    """Raised when a command can't be carried out.

    Args:
        message: the text on standard error; can have several lines.
        status: the exit status.
    """

    _has_lines = True

    def __init__(self, message: str, status: int = USAGE) -> None:
        self.status = status
        super().__init__(message)


class WordsError(CommandError):
    """Raised when arguments are missing, unknown or invalid; the usage is printed as well."""

    def __init__(self, message: str) -> None:
        super().__init__(f"{USAGE_TEXT}\n{message}")


class ParameterError(CommandError):
    """Raised when an option's value can't be read.

    Args:
        option: the option, as it is written.
        reason: why.
    """

    def __init__(self, option: str, reason: str) -> None:
        super().__init__(f"Error parsing parameter '{option}': {reason}")


def service_text(error: bce.ClientError) -> str:
    """ECR's error message, without botocore's count of retries, since asyncpush retries itself."""
    return str(error).replace(" (reached max retries: 0)", "")


def explain(error: Exception) -> CommandError:
    """The message and the exit status for *error*."""
    match error:
        case CommandError():
            return error
        case bce.ClientError():
            return CommandError(service_text(error), SERVICE)
        case bce.NoRegionError():
            return CommandError(_NO_REGION, CONFIGURATION)
        case bce.NoCredentialsError():
            return CommandError(_NO_CREDENTIALS, CONFIGURATION)
        case bce.ParamValidationError() | bce.PaginationError():
            return CommandError(str(error), USAGE)
        case AsyncpushError(__cause__=bce.BotoCoreError() | bce.ClientError() as cause):
            return explain(cause)
        case SourceError():
            return CommandError(str(error), USAGE)
        case bce.HTTPClientError() if isinstance(cause := error.kwargs.get("error"), AsyncpushError):
            return explain(cause)
    return CommandError(str(error) or type(error).__name__, OTHER)
