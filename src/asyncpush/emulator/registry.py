"""Registries: a service, an account and a region; their addresses, directories and ARNs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

ServiceName = Literal["ecr", "ecr-public"]

PRIVATE: ServiceName = "ecr"
PUBLIC: ServiceName = "ecr-public"

#: The account of the default test key, and of all unknown keys.
DEFAULT_ACCOUNT = "000000000000"

#: The region of requests without a credential scope, such as ``aws --no-sign-request`` sends.
DEFAULT_REGION = "us-east-1"

#: An account's 12 digits.
ACCOUNT = re.compile(r"[0-9]{12}")

_HOST = re.compile(r"(?P<account>[0-9]{12})\.dkr[.-]ecr(?:-fips)?\.(?P<region>[a-z0-9][a-z0-9-]{0,39})\.")
_ARN = re.compile(
    r"arn:aws[a-z-]*:(?P<service>ecr|ecr-public):(?P<region>[a-z0-9-]*):(?P<account>[0-9]{12}):repository/(?P<name>.+)"
)


@dataclass(frozen=True, slots=True, order=True)
class RegistryId:
    """One account's repositories: private ones in one region, or all of its public ones.

    Attributes:
        service: ``ecr`` or ``ecr-public``.
        account: 12 digits.
        region: empty for public repositories, which belong to no region.
    """

    service: ServiceName = PRIVATE
    account: str = DEFAULT_ACCOUNT
    region: str = DEFAULT_REGION

    @property
    def is_public(self) -> bool:
        """Whether it is ECR Public's."""
        return self.service == PUBLIC

    @property
    def path(self) -> PurePosixPath:
        """Where its repositories lie below ``<data>/repositories``."""
        return PurePosixPath(self.service, self.account, self.region)

    def arn(self, name: str) -> str:
        """The ARN of a repository in it."""
        return f"arn:{_partition(self.region)}:{self.service}:{self.region}:{self.account}:repository/{name}"


@dataclass(frozen=True, slots=True)
class RequestTarget:
    """The registry that a request names.

    Attributes:
        registry: the registry.
        id: how the request named it, possibly by a public alias; answers and messages repeat it.
    """

    registry: RegistryId
    id: str


def registry_of_host(host: str) -> RegistryId | None:
    """The private registry that a Host header names, ``ACCOUNT.dkr.ecr.REGION.amazonaws.com``; None for others."""
    match = _HOST.match(host)
    return RegistryId(PRIVATE, match["account"], match["region"]) if match else None


def repository_of_arn(arn: str, service: ServiceName) -> tuple[RegistryId, str] | None:
    """The registry and the name in a repository's ARN; None if it is not an ARN of *service*."""
    match = _ARN.fullmatch(arn)
    if match is None or match["service"] != service:
        return None
    return RegistryId(service, match["account"], match["region"] if service == PRIVATE else ""), match["name"]


def _partition(region: str) -> str:
    if region.startswith("cn-"):
        return "aws-cn"
    return "aws-us-gov" if region.startswith("us-gov-") else "aws"
