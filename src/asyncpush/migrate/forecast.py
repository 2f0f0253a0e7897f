"""What a migration will take: how long each limit holds it up, and which of them binds (``estimate`` finds out)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from asyncpush.reference import Service

#: The share of a quota that requests begin with, and the time for which they are seen to keep to it.
_CAUTION, _CAUTIOUS_SECONDS = 0.8, 30.0

#: The most by which a higher quota is suggested.
_MOST_RAISED = 10


@dataclass(frozen=True, slots=True)
class LimitForecast:
    """How long one limit holds a migration up, if it is the only one.

    Attributes:
        name: an operation of ECR, or ``bytes``.
        amount: requests of the operation; bytes on the wire.
        rate: how many a second.
        basis: what says so: ECR's ``default`` quota, the ``plan``, the ``option`` --bandwidth, or nothing: it is
            ``assumed``.
        code: the quota's code in Service Quotas; None if it is unknown, or no quota.
    """

    name: str
    amount: int
    rate: float
    basis: Literal["default", "plan", "option", "assumed"]
    code: str | None = None

    @property
    def seconds(self) -> float:
        """How long it takes; of a quota, asyncpush uses four fifths until it has seen what ECR accepts."""
        if self.basis not in ("default", "plan"):
            return self.amount / self.rate
        first = min(self.amount, _CAUTION * self.rate * _CAUTIOUS_SECONDS)
        return first / (_CAUTION * self.rate) + (self.amount - first) / self.rate


@dataclass(frozen=True, slots=True)
class RegistryForecast:
    """What a migration asks of one registry: quotas are per account and region.

    Attributes:
        address: the registry.
        region: its region.
        service: ``ecr`` or ``ecr-public``.
        limits: its quotas, the one that takes longest first.
        blobs_mounted: blobs that need not be sent, since another of its repositories has them.
        bytes_mounted: their bytes.
    """

    address: str
    region: str
    service: Service
    limits: tuple[LimitForecast, ...]
    blobs_mounted: int
    bytes_mounted: int


@dataclass(frozen=True, slots=True)
class PullForecast:
    """The pulls that a migration needs of a registry that limits them.

    Attributes:
        host: the registry.
        limit: what it allows, in words.
        remaining: pulls that are left.
        needed: manifests that the run reads from it.
    """

    host: str
    limit: str
    remaining: int
    needed: int


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a migration will take.

    Attributes:
        registries: its targets.
        transfer: its bytes, over all targets.
        pulls: the source registries that limit pulls.
        discovery: seconds that the dry run took to find all this out, as the run must.
    """

    registries: tuple[RegistryForecast, ...]
    transfer: LimitForecast
    pulls: tuple[PullForecast, ...]
    discovery: float

    @property
    def limits(self) -> tuple[LimitForecast, ...]:
        """All limits, the one that takes longest first."""
        found = [*(limit for registry in self.registries for limit in registry.limits), self.transfer]
        return tuple(sorted(found, key=lambda limit: -limit.seconds))

    @property
    def binding(self) -> LimitForecast | None:
        """The limit that binds; None if there is nothing to do."""
        longest = self.limits[0]
        return longest if longest.amount else None

    @property
    def seconds(self) -> float:
        """How long the migration takes: requests of all kinds, and bytes, are under way at once."""
        return self.discovery + self.limits[0].seconds

    @property
    def raise_quota(self) -> str | None:
        """The command that asks for a higher quota, or that lists the quotas; None if no quota binds."""
        binding = self.binding
        registry = next((registry for registry in self.registries if binding in registry.limits), None)
        if binding is None or registry is None:
            return None
        head, region = "aws service-quotas", f"--region {registry.region}"
        if binding.code is None:
            return f"{head} list-service-quotas --service-code {registry.service} {region}"
        others = [limit.seconds for limit in self.limits if limit is not binding and limit.basis != "assumed"]
        enough = binding.amount / max(max(others, default=0.0), 1.0)
        desired = math.ceil(min(max(enough, binding.rate + 1), _MOST_RAISED * binding.rate))
        return (
            f"{head} request-service-quota-increase --service-code {registry.service} --quota-code {binding.code} "
            f"--desired-value {desired} {region}"
        )
