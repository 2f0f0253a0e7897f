"""The AWS configuration: what of the environment and of its files counts, and what is wrong with them, in one line."""

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

#: What one line holds of a foreign text.
_LONGEST = 300


def variables() -> dict[str, tuple[Any, ...]]:
    """What differs from botocore's table of settings: AWS_REGION counts, and a variable that is empty sets nothing."""
    table = {**botocore.configprovider.BOTOCORE_DEFAUT_SESSION_VARIABLES}
    table["region"] = ("region", ["AWS_REGION", "AWS_DEFAULT_REGION"], None, None)
    changed = {"region": table["region"]}
    for name, (key, found, default, convert) in table.items():
        names = [found] if isinstance(found, str) else found or []
        if not all(os.environ.get(each, "unset") for each in names):
            changed[name] = (key, [each for each in names if os.environ.get(each)] or None, default, convert)
    return changed


def configured(session: Any, aws: AwsConfiguration, region: str | None) -> Any:
    """Give a session of botocore's what *aws* sets, and read its files; blocks.

    Raises:
        ConfigurationError: there is no such profile, or a file can't be read.
    """
    with readable_configuration():
        if aws.profile:
            session.set_config_variable("profile", aws.profile)
        if region:
            session.set_config_variable("region", region)
        session.get_scoped_config()
        # An empty bundle would mean no checks at all.
        bundle = session.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE") or True
        session.set_config_variable("ca_bundle", bundle)
    return session


@contextmanager
def readable_configuration() -> Iterator[None]:
    """Raise what is wrong with the AWS configuration as a ``ConfigurationError``."""
    try:
        yield
    except bce.ProfileNotFound as error:
        raise ConfigurationError(str(error), hint="see `aws configure list-profiles`") from error
    except bce.ConfigParseError as error:
        raise ConfigurationError(f"the AWS configuration can't be read: {parse_text(error)}") from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise ConfigurationError(f"the AWS configuration can't be read: {where}{os_text(error)}") from error
    except (bce.BotoCoreError, ValueError) as error:
        raise ConfigurationError(f"the AWS configuration can't be used: {one_line(error)}") from error


def parse_text(error: bce.ConfigParseError) -> str:
    """Which file is wrong, and where, without its text: that may be a key."""
    path, cause = error.kwargs.get("path"), error.kwargs.get("error")
    match cause:
        case configparser.DuplicateSectionError():
            return f"{path}, line {cause.lineno}: [{cause.section}] is there twice"
        case configparser.DuplicateOptionError():
            return f"{path}, line {cause.lineno}: {cause.option} is there twice in [{cause.section}]"
        case configparser.MissingSectionHeaderError():
            mark = "; there is a byte order mark: save it without one" if cause.line.startswith("\ufeff") else ""
            return f"{path}, line {cause.lineno}: a section such as [default] must come first{mark}"
        case configparser.ParsingError() if cause.errors:
            return f"{path}, line {cause.errors[0][0]}: it is not a setting"
        case UnicodeDecodeError():
            return f"{path}: it is not text in {cause.encoding.upper()}"
    return f"{path}"


def os_text(error: Exception) -> str:
    """What the operating system says, without the path."""
    return open_files.shortage(error) or getattr(error, "strerror", None) or one_line(error)


def one_line(error: Exception) -> str:
    """An error's text, in one line."""
    return printable(str(error)).rstrip(".") or type(error).__name__


def printable(text: str) -> str:
    """*text* in one line that a terminal can show, not too long."""
    line = " ".join(text.split())
    return "".join(character for character in line if character.isprintable())[:_LONGEST]
