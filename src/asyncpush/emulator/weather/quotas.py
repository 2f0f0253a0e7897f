"""ECR's documented request rates, for ``--quotas aws``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from asyncpush.emulator.weather.operations import V2

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
    """The service and operation whose quota a request takes: of a push through ``/v2/``, ECR's own."""
    return (_PRIVATE, _PUSHES[operation]) if operation in _PUSHES else (service, operation)
