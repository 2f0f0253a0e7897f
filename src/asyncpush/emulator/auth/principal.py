"""Who sends a request: account, region and access key, as its SigV4 credential scope says them; the gate proves it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from asyncpush.emulator.registry import DEFAULT_ACCOUNT, DEFAULT_REGION

# Credential=KEY/YYYYMMDD/REGION/SERVICE/aws4_request. The region becomes part of a path: nothing but these characters.
_CREDENTIAL = re.compile(
    r"Credential=(?P<key>[^/,\s]{1,256})/[0-9]{8}/(?P<region>[a-z0-9][a-z0-9-]{0,39})/[a-z0-9-]{1,40}/aws4_request"
)


class Owned(Protocol):
    """A key that an account has."""

    @property
    def account(self) -> str:
        """12 digits."""
        ...


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks.

    Attributes:
        account: 12 digits.
        region: such as ``eu-west-1``.
        access_key_id: empty if the request has no readable credential.
    """

    account: str = DEFAULT_ACCOUNT
    region: str = DEFAULT_REGION
    access_key_id: str = ""


def caller_of(headers: Mapping[str, str], keys: Mapping[str, Owned]) -> Principal:
    """Read a request's Authorization header (SigV4, or SigV4's form with another algorithm).

    Args:
        headers: the request's headers; names in any case if the mapping knows that.
        keys: access key id -> whose it is.
    """
    match = _CREDENTIAL.search(headers.get("Authorization", ""))
    if match is None:
        return Principal()
    owned = keys.get(match["key"])
    return Principal(owned.account if owned else DEFAULT_ACCOUNT, match["region"], match["key"])
