"""The names of registries: the host of an account's, and what tells a registry from all others."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlsplit

from asyncpush.ecr.rate_limit import is_aws
from asyncpush.reference import RegistryName

#: The domains of registries' hosts, where they are not amazonaws.com; by partition, as botocore names them.
_DOMAINS = {
    "aws-cn": "amazonaws.com.cn",
    "aws-eusc": "amazonaws.eu",
    "aws-iso": "c2s.ic.gov",
    "aws-iso-b": "sc2s.sgov.gov",
    "aws-iso-e": "cloud.adc-e.uk",
    "aws-iso-f": "csp.hci.ic.gov",
}


def registry_host(client: Any, account: str) -> str:
    """The host of *account*'s private registry in the client's region and partition."""
    domain = _DOMAINS.get(client.meta.partition, "amazonaws.com")
    return f"{account}.dkr.ecr.{client.meta.region_name}.{domain}"


def account_of(url: str) -> str | None:
    """The account in the URL of a private registry, whoever's domain that is in; None if it names none."""
    match = re.match(r"([0-9]{12})\.dkr[.-]", urlsplit(url).hostname or "")
    return match[1] if match else None


def registry_address(client: Any, name: RegistryName, account: str | None) -> str:
    """What tells a registry from all others, whichever of its hosts was written.

    At AWS it is the registry's host, without a word of FIPS or dual stack; elsewhere ``ENDPOINT/REGION/ACCOUNT``.

    Args:
        client: a client of the registry.
        name: the registry, as it was asked for.
        account: whose it is, or ECR Public's alias; None leaves that open.
    """
    if not is_aws(client.meta.endpoint_url):
        parts = urlsplit(client.meta.endpoint_url)
        endpoint = f"{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
        region = "public" if name.service == "ecr-public" else client.meta.region_name
        return f"{endpoint}/{region}/{account or ''}"
    if name.service == "ecr-public":
        return f"public.ecr.aws/{account or ''}"
    return registry_host(client, account or "")
