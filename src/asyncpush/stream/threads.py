"""Worker threads for what must not run on the event loop: reading, hashing, encoding, compressing."""

from __future__ import annotations

import os

from anyio import CapacityLimiter


def worker_threads() -> CapacityLimiter:
    """As many as there are cores, and one that waits for a disk; must be called in an event loop."""
    return CapacityLimiter((os.cpu_count() or 1) + 1)
