"""The plugin of pytest: the fixture ``ecr_emulator``. Imported at every start of pytest, it imports nothing itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from asyncpush.emulator.threaded import ThreadedEmulator


@pytest.fixture(scope="session")
def ecr_emulator() -> Iterator[ThreadedEmulator]:
    """A local ECR for the whole session, in a thread: ``endpoint_url``, ``environment``, ``requests``, ``reset()``."""
    from asyncpush.emulator.threaded import ThreadedEmulator

    with ThreadedEmulator() as running:
        yield running
