"""ECR's documented request rates, for ``--quotas aws``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from asyncpush.emulator.faults.operations import V2
from asyncpush.emulator.faults.rules import FaultConfig, Throttle

_PRIVATE: Final = "AmazonEC2ContainerRegistry_V20150921"

#: Requests a second, per account and region, by the target's prefix; "Amazon ECR service quotas" and "Amazon ECR
#: Public service quotas" in AWS's user guides. Bursts are not documented. Pulls through ``/v2/`` are metered as the
#: operations that they stand for, which the emulator leaves to ``--throttle v2:...``; pushes have their quotas here.
AWS_QUOTAS: Mapping[str, Mapping[str, int]] = {
    _PRIVATE: {
        "BatchCheckLayerAvailability": 1000,
        "BatchGetImage": 2000,
        "CompleteLayerUpload": 100,
        "GetAuthorizationToken": 500,
        "InitiateLayerUpload": 100,
        "PutImage": 10,
        "UploadLayerPart": 500,
    },
    "SpencerFrontendService": {
        "BatchCheckLayerAvailability": 200,
        "CompleteLayerUpload": 10,
        "GetAuthorizationToken": 200,
        "InitiateLayerUpload": 10,
        "PutImage": 10,
        "UploadLayerPart": 260,
    },
}

#: What a push through ``/v2/`` is metered as; mounts were seen to count as InitiateLayerUpload.
_PUSHES: Mapping[str, str] = {
    f"{V2}POST-upload": "InitiateLayerUpload",
    f"{V2}PATCH-upload": "UploadLayerPart",
    f"{V2}PUT-upload": "CompleteLayerUpload",
    f"{V2}PUT-manifest": "PutImage",
}


def metered_as(service: str, operation: str) -> tuple[str, str]:
    """The service and operation whose quota a request uses: for a push through ``/v2/``, ECR's operation."""
    return (_PRIVATE, _PUSHES[operation]) if operation in _PUSHES else (service, operation)


Clock = Callable[[], float]


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled: float


class Throttles:
    """The token buckets of one fault configuration, full at first.

    Args:
        fault_config: its throttles count first, then its quotas.
        clock: returns the time in seconds.

    Attributes:
        refused: how many requests each throttle has refused.
        refused_by_quotas: how many requests the quotas have refused.
    """

    def __init__(self, fault_config: FaultConfig, clock: Clock = time.monotonic) -> None:
        self.refused = [0] * len(fault_config.throttles)
        self.refused_by_quotas = 0
        self._fault_config = fault_config
        self._clock = clock
        self._buckets: dict[tuple[str, str, str], _Bucket] = {}

    def meters(self, service: str, operation: str) -> bool:
        """Whether requests of this name have a rate limit."""
        return self._find(service, operation) is not None

    def refuses(self, service: str, operation: str, account: str) -> bool:
        """Take a token for one request; returns True if there is none."""
        throttle = self._find(service, operation)
        if throttle is None:
            return False
        chosen = throttle in self._fault_config.throttles
        metered = (service, operation) if chosen else metered_as(service, operation)
        if self._take(throttle, (*metered, account)):
            return False
        if chosen:
            self.refused[self._fault_config.throttles.index(throttle)] += 1
        else:
            self.refused_by_quotas += 1
        return True

    def _find(self, service: str, operation: str) -> Throttle | None:
        for throttle in self._fault_config.throttles:
            if fnmatchcase(operation, throttle.operation):
                return throttle
        service, operation = metered_as(service, operation)
        rate = AWS_QUOTAS.get(service, {}).get(operation) if self._fault_config.quotas == "aws" else None
        return Throttle(operation, rate) if rate else None

    def _take(self, throttle: Throttle, key: tuple[str, str, str]) -> bool:
        now = self._clock()
        bucket = self._buckets.setdefault(key, _Bucket(throttle.size, now))
        bucket.tokens = min(throttle.size, bucket.tokens + (now - bucket.filled) * throttle.rate)
        bucket.filled = now
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True
