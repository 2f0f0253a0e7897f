"""The AWS configuration: which settings of the environment and files apply, and one-line errors for invalid ones."""

from __future__ import annotations

import configparser
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import botocore.configprovider
import botocore.exceptions as bce

from asyncpush import open_files
from asyncpush.errors import ConfigurationError
from asyncpush.settings import AwsConfiguration

#: The most characters of a foreign text that a message contains.
_MAX_TEXT = 300


def session_variables() -> dict[str, tuple[Any, ...]]:
    """Changes to botocore's table of settings: AWS_REGION applies, and an empty variable counts as unset."""
    table = {**botocore.configprovider.BOTOCORE_DEFAUT_SESSION_VARIABLES}
    table["region"] = ("region", ["AWS_REGION", "AWS_DEFAULT_REGION"], None, None)
    changed = {"region": table["region"]}
    for name, (key, variables, default, convert) in table.items():
        names = [variables] if isinstance(variables, str) else variables or []
        if not all(os.environ.get(variable, "unset") for variable in names):
            changed[name] = (
                key,
                [variable for variable in names if os.environ.get(variable)] or None,
                default,
                convert,
            )
    return changed


def configure_session(session: Any, aws: AwsConfiguration, region: str | None) -> Any:
    """Apply *aws* to a session of botocore's, and read the configuration files; blocks.

    Raises:
        ConfigurationError: the profile does not exist, or a file can't be read.
    """
    with translate_configuration_errors():
        if aws.profile:
            session.set_config_variable("profile", aws.profile)
        if region:
            session.set_config_variable("region", region)
        session.get_scoped_config()
        # An empty setting would turn off the verification of certificates.
        bundle = session.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE") or True
        session.set_config_variable("ca_bundle", bundle)
    return session


@contextmanager
def translate_configuration_errors() -> Iterator[None]:
    """Raise a ``ConfigurationError`` for botocore's errors about the AWS configuration."""
    try:
        yield
    except bce.ProfileNotFound as error:
        raise ConfigurationError(str(error), hint="see `aws configure list-profiles`") from error
    except bce.ConfigParseError as error:
        raise ConfigurationError(f"the AWS configuration can't be read: {describe_parse_error(error)}") from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise ConfigurationError(f"the AWS configuration can't be read: {where}{describe_os_error(error)}") from error
    except (bce.BotoCoreError, ValueError) as error:
        raise ConfigurationError(f"the AWS configuration can't be used: {one_line(error)}") from error


def describe_parse_error(error: bce.ConfigParseError) -> str:
    """The file and line of the error, without the line's text, which may be a key."""
    path, cause = error.kwargs.get("path"), error.kwargs.get("error")
    match cause:
        case configparser.DuplicateSectionError():
            return f"{path}, line {cause.lineno}: [{cause.section}] appears twice"
        case configparser.DuplicateOptionError():
            return f"{path}, line {cause.lineno}: {cause.option} appears twice in [{cause.section}]"
        case configparser.MissingSectionHeaderError():
            mark = (
                "; the file begins with a byte order mark: save it without one"
                if cause.line.startswith("\ufeff")
                else ""
            )
            return f"{path}, line {cause.lineno}: a section such as [default] must come first{mark}"
        case configparser.ParsingError() if cause.errors:
            return f"{path}, line {cause.errors[0][0]}: the line is not a setting"
        case UnicodeDecodeError():
            return f"{path}: the file is not text in {cause.encoding.upper()}"
    return f"{path}"


def describe_os_error(error: Exception) -> str:
    """The operating system's message, without the path."""
    return open_files.shortage(error) or getattr(error, "strerror", None) or one_line(error)


def one_line(error: Exception) -> str:
    """An error's text in one line."""
    return printable(str(error)).rstrip(".") or type(error).__name__


def printable(text: str) -> str:
    """*text* in one line of printable characters, shortened if it is long."""
    line = " ".join(text.split())
    return "".join(character for character in line if character.isprintable())[:_MAX_TEXT]
