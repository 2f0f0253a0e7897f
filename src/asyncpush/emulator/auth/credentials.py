"""The keys that requests may be signed with: given by a program, or read from an AWS shared credentials file."""

from __future__ import annotations

import configparser
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from asyncpush import open_files
from asyncpush.emulator.registry import ACCOUNT, DEFAULT_ACCOUNT
from asyncpush.errors import UsageError
from asyncpush.files import read_small

#: Bytes of the longest file: thousands of profiles.
_LONGEST = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class KnownCredentials:
    """A key pair that the emulator knows, and its account.

    Attributes:
        access_key_id: its public half, which every signature names.
        secret_access_key: its secret half.
        session_token: what requests must carry with temporary credentials; None for lasting ones.
        expires: when it expires, with a time zone; None for never.
        account: the account that it belongs to, 12 digits.

    Raises:
        UsageError: a half is empty, the account is malformed, or the expiry has no time zone.
    """

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)
    expires: datetime | None = None
    account: str = "123456789012"

    def __post_init__(self) -> None:
        if not self.access_key_id or not self.secret_access_key:
            raise UsageError("credentials need an access key id and a secret access key", hint="give both")
        if not ACCOUNT.fullmatch(self.account):
            raise UsageError(f"invalid account {self.account!r} of {self.access_key_id}", hint="use its 12 digits")
        if self.expires is not None and self.expires.tzinfo is None:
            raise UsageError(f"the expiry of {self.access_key_id} has no time zone", hint="add one, such as UTC")


#: The keys of an emulator that is given none.
DEFAULT_CREDENTIALS = (KnownCredentials("test", "test", account=DEFAULT_ACCOUNT),)


def by_access_key_id(credentials: Iterable[KnownCredentials]) -> dict[str, KnownCredentials]:
    """Index credentials.

    Raises:
        UsageError: two differ under one access key id.
    """
    known: dict[str, KnownCredentials] = {}
    for entry in credentials:
        if known.setdefault(entry.access_key_id, entry) != entry:
            raise UsageError(f"two key pairs have the access key id {entry.access_key_id}", hint="keep one of them")
    return known


def read_credentials(path: Path) -> tuple[KnownCredentials, ...]:
    """Read the key pairs of an AWS shared credentials file; blocks.

    Each profile with ``aws_access_key_id`` and ``aws_secret_access_key`` is one; ``aws_session_token`` and ``account``
    (or ``aws_account_id``, as AWS tools call it) may accompany them. Profiles without keys are skipped.

    Raises:
        UsageError: it can't be read, has no keys, or a profile has half a key pair or a malformed account.
    """
    parser = configparser.RawConfigParser(default_section="")
    try:
        parser.read_string(read_small(path, _LONGEST).decode(), str(path))
    except OSError as error:
        raise UsageError(
            f"{path} can't be read: {open_files.reason(error)}", hint="name a file of AWS credentials"
        ) from error
    except (configparser.Error, UnicodeDecodeError) as error:
        # Without the parser's own message, which quotes the line: that may be a secret.
        raise UsageError(
            f"{path} is not a file of AWS credentials{_line(error)}", hint="write it as `aws configure` does"
        ) from None
    profiles = [(name, parser[name]) for name in parser.sections()]
    found = tuple(_credentials(path, name, members) for name, members in profiles if _has_keys(members))
    if not found:
        raise UsageError(f"{path} has no profile with aws_access_key_id", hint="add one, as `aws configure` does")
    return found


def _line(error: Exception) -> str:
    lines = [line for line, _ in getattr(error, "errors", ())] or [getattr(error, "lineno", None)]
    return f": line {lines[0]}" if lines[0] else ""


def _has_keys(members: Mapping[str, str]) -> bool:
    return "aws_access_key_id" in members or "aws_secret_access_key" in members


def _credentials(path: Path, profile: str, members: Mapping[str, str]) -> KnownCredentials:
    account = members.get("account") or members.get("aws_account_id")
    token = members.get("aws_session_token") or None
    try:
        found = KnownCredentials(members.get("aws_access_key_id", ""), members.get("aws_secret_access_key", ""), token)
        return replace(found, account=account) if account else found
    except UsageError as error:
        raise UsageError(f"{path}, profile {profile}: {error.message}", hint=error.hint) from error
