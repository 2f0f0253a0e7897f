"""What ECR's service model has gained since the botocore that aioboto3 pins, in botocore's own form of additions.

botocore merges ``SERVICE/VERSION/service-2.sdk-extras.json`` of any of its search paths into the model that it ships.
Source: botocore 1.44.8, of the operations that ``asyncpush ecr`` has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def extended(loader: Any) -> Any:
    """Let a botocore *loader* find the additions; the user's own in ``~/.aws/models`` come first. Returns *loader*."""
    folder = str(Path(__file__).parent)
    if folder not in loader.search_paths:
        loader.search_paths.append(folder)
    return loader
