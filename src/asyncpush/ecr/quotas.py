"""ECR's documented quotas, and which of them each operation uses."""

from __future__ import annotations

from dataclasses import dataclass

from asyncpush.reference import Service

#: Requests a second, per account and region ("Amazon ECR service quotas", "Amazon ECR Public service quotas").
#: Operations that are missing here have no documented quota.
QUOTAS: dict[Service, dict[str, int]] = {
    "ecr": {
        "BatchCheckLayerAvailability": 1000,
        "BatchGetImage": 2000,
        "CompleteLayerUpload": 100,
        "InitiateLayerUpload": 100,
        "PutImage": 10,
        "UploadLayerPart": 500,
    },
    "ecr-public": {
        "BatchCheckLayerAvailability": 200,
        "CompleteLayerUpload": 10,
        "InitiateLayerUpload": 10,
        "PutImage": 10,
        "UploadLayerPart": 260,
    },
}

#: The codes of the quotas in Service Quotas, all of them adjustable ("Amazon ECR service quotas"); those of ECR Public
#: are not documented.
QUOTA_CODES: dict[Service, dict[str, str]] = {
    "ecr": {
        "BatchCheckLayerAvailability": "L-B9173138",
        "BatchGetImage": "L-16E70933",
        "CompleteLayerUpload": "L-44194860",
        "InitiateLayerUpload": "L-95B28F8D",
        "PutImage": "L-AD52DFB2",
        "UploadLayerPart": "L-A1670B10",
    },
    "ecr-public": {},
}

#: The requests to ``/v2/`` in errors, events and rate limits.
MOUNT, BEGIN, ASK, APPEND, COMPLETE = "MountBlob", "PostBlobUpload", "GetBlobUpload", "PatchBlobUpload", "PutBlobUpload"

#: Whose quota a request to ``/v2/`` uses. It was seen for mounts; for uploads it is not documented, but likely.
METERED_AS = {
    MOUNT: "InitiateLayerUpload",
    BEGIN: "InitiateLayerUpload",
    APPEND: "UploadLayerPart",
    COMPLETE: "CompleteLayerUpload",
}


@dataclass(frozen=True, slots=True)
class Quota:
    """The quota of an operation, per account and region.

    Attributes:
        operation: the operation's name.
        rate: requests a second.
        code: its code in Service Quotas; None if that is unknown.
        is_stated: whether the user has stated it; otherwise it is ECR's default.
    """

    operation: str
    rate: float
    code: str | None
    is_stated: bool
