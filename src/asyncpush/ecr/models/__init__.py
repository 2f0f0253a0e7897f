"""Additions to ECR's service model that are newer than the botocore that aioboto3 pins, in botocore's own format.

botocore merges ``SERVICE/VERSION/service-2.sdk-extras.json`` of any of its search paths into the model that it ships.
They are from botocore 1.44.8, for the operations that ``asyncpush ecr`` has.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from botocore.loaders import create_loader


@cache
def data_loader(folders: str | None = None) -> Any:
    """Botocore's data loader, with these additions and those in *folders* (``AWS_DATA_PATH``); all sessions share it.

    Loading what a client needs takes 0.1 seconds. The user's own additions in ``~/.aws/models`` come first.
    """
    loader = create_loader(folders)
    loader.search_paths.append(str(Path(__file__).parent))
    return loader
