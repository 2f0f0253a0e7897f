"""How asyncpush names itself in its requests: ECR's are found by it in CloudTrail."""

from __future__ import annotations

import functools
import platform
from importlib.metadata import version


@functools.cache
def user_agent() -> str:
    """The User-Agent of every request (RFC 9110, section 10.1.5): ``asyncpush/VERSION Python/VERSION SYSTEM``."""
    return f"asyncpush/{version('asyncpush')} Python/{platform.python_version()} {platform.system()}"
