"""ECR's documented request rates, for ``--quotas aws``."""

from __future__ import annotations

from collections.abc import Mapping

#: Requests a second, per account and region, by the target's prefix; "Amazon ECR service quotas" and "Amazon ECR
#: Public service quotas" in AWS's user guides. Bursts are not documented. Pulls through ``/v2/`` are metered as the
#: operations that they stand for, which the emulator leaves to ``--throttle v2:...``.
AWS_QUOTAS: Mapping[str, Mapping[str, int]] = {
    "AmazonEC2ContainerRegistry_V20150921": {
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
