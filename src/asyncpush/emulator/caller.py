"""Who sends a request: account, region and access key, as its SigV4 credential scope says them; nothing is proved."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

#: The account of the default test key, and of every key that no mapping names.
DEFAULT_ACCOUNT = "000000000000"

#: The region of requests without a credential scope, such as ``aws --no-sign-request`` sends.
DEFAULT_REGION = "us-east-1"

# Credential=KEY/YYYYMMDD/REGION/SERVICE/aws4_request. The region becomes part of a path: nothing but these characters.
_CREDENTIAL = re.compile(
    r"Credential=(?P<key>[^/,\s]{1,256})/[0-9]{8}/(?P<region>[a-z0-9][a-z0-9-]{0,39})/[a-z0-9-]{1,40}/aws4_request"
)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks.

    Attributes:
        account: 12 digits.
        region: such as ``eu-west-1``.
        access_key_id: empty if the request has no readable credential.
    """

    account: str = DEFAULT_ACCOUNT
    region: str = DEFAULT_REGION
    access_key_id: str = ""


def caller_of(headers: Mapping[str, str], accounts: Mapping[str, str]) -> Caller:
    """Read a request's Authorization header (SigV4, or SigV4's form with another algorithm).

    Args:
        headers: the request's headers; names in any case if the mapping knows that.
        accounts: access key id -> account id.
    """
    match = _CREDENTIAL.search(headers.get("Authorization", ""))
    if match is None:
        return Caller()
    return Caller(accounts.get(match["key"], DEFAULT_ACCOUNT), match["region"], match["key"])
