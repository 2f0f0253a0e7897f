"""AWS's regions, as botocore's data has them, and its domains."""

from __future__ import annotations

import re
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import botocore
import msgspec

#: The host of ECR's API at AWS, and the region in it.
_HOST = re.compile(r"//(?:api\.)?ecr(?:-fips)?\.([a-z0-9-]+)\.(?:amazonaws\.|api\.aws)")


class _Partition(msgspec.Struct, rename="camel"):
    id: str
    region_regex: str
    regions: dict[str, msgspec.Raw]


class _Partitions(msgspec.Struct):
    partitions: list[_Partition]


@cache
def _partitions() -> list[_Partition]:
    data = Path(botocore.__file__).parent / "data" / "partitions.json"
    return msgspec.json.decode(data.read_bytes(), type=_Partitions).partitions


@cache
def known_regions() -> frozenset[str]:
    """The regions that botocore knows; newer ones may exist. The first call reads a file."""
    return frozenset(region for partition in _partitions() for region in partition.regions)


def partition_of(region: str) -> str:
    """The partition of a region, such as ``aws-cn``; ``aws`` if botocore knows none. The first call reads a file."""
    return next((partition.id for partition in _partitions() if re.match(partition.region_regex, region)), "aws")


def sibling_regions(region: str) -> list[str]:
    """The other regions of a region's partition, by name. The first call reads a file."""
    own = partition_of(region)
    names = (name for partition in _partitions() if partition.id == own for name in partition.regions)
    return sorted(name for name in names if name != region and not name.endswith("-global"))


def unknown_region_hint(endpoint: str) -> str | None:
    """What to do about the region in the URL of an endpoint of AWS's that does not exist; None if it is a known one."""
    match = _HOST.search(endpoint)
    if match is None or match[1] in known_regions():
        return None
    similar = get_close_matches(match[1], known_regions(), 1)
    return f"{match[1]} is not a known region" + (f"; did you mean {similar[0]}?" if similar else "; see --region")


#: The domains of AWS's partitions, dual-stack ones included; VPC endpoints are in them, too.
_AWS_DOMAINS = (
    ".amazonaws.com",
    ".amazonaws.com.cn",
    ".amazonaws.eu",
    ".api.amazonwebservices.com.cn",
    ".api.amazonwebservices.eu",
    ".api.aws",
    ".api.aws.hci.ic.gov",
    ".api.aws.ic.gov",
    ".api.aws.scloud",
    ".api.cloud-aws.adc-e.uk",
    ".c2s.ic.gov",
    ".cloud.adc-e.uk",
    ".csp.hci.ic.gov",
    ".sc2s.sgov.gov",
)


def is_aws(endpoint_url: str) -> bool:
    """Whether an endpoint is AWS's own: a service's, or a VPC endpoint's."""
    host = urlsplit(endpoint_url).hostname or ""
    return host.rstrip(".").endswith(_AWS_DOMAINS)
