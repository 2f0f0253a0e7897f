"""What ECR's service model has gained since the botocore that aioboto3 pins, in botocore's own form of additions.

botocore merges ``SERVICE/VERSION/service-2.sdk-extras.json`` of any of its search paths into the model that it ships.
Source: botocore 1.44.8, of the operations that ``asyncpush ecr`` has.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from botocore.loaders import create_loader


@cache
def data(folders: str | None = None) -> Any:
    """Botocore's loader of its data and these additions, also in *folders* (``AWS_DATA_PATH``); one for all sessions.

    To read what a client needs takes 0.1 seconds. The user's own additions in ``~/.aws/models`` come first.
    """
    loader = create_loader(folders)
    loader.search_paths.append(str(Path(__file__).parent))
    return loader
