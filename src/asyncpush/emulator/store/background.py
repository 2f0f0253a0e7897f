"""Work that is carried to its end in the emulator's own group: neither a client that leaves nor the end cuts it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import anyio
from anyio.abc import TaskGroup

T = TypeVar("T")


class BackgroundTask(Generic[T]):
    """Work under way; whoever started it may wait for it, or not."""

    def __init__(self) -> None:
        self._done = anyio.Event()
        self._values: list[T] = []
        self._error: Exception | None = None

    async def result(self) -> T:
        """Wait for its end; what it raised is raised here."""
        await self._done.wait()
        if self._error:
            raise self._error
        return self._values[0]

    async def run(self, work: Callable[[], Awaitable[T]]) -> None:
        """Do the work, whatever is cancelled meanwhile."""
        try:
            with anyio.CancelScope(shield=True):
                self._values.append(await work())
        except Exception as error:  # noqa: BLE001 - it is raised where the result is asked for
            self._error = error
        finally:
            self._done.set()


class BackgroundTasks:
    """Starts such work.

    Args:
        group: the emulator's; it ends after all of its work.
    """

    def __init__(self, group: TaskGroup) -> None:
        self._group = group

    def start(self, work: Callable[[], Awaitable[T]]) -> BackgroundTask[T]:
        """Begin, and come back at once."""
        started: BackgroundTask[T] = BackgroundTask()
        self._group.start_soon(started.run, work)
        return started

    async def carry(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do it, and wait for it."""
        return await self.start(work).result()
