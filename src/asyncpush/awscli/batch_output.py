"""A batch's result lines: in the inputs' order, or as they come, written in a worker thread."""

from __future__ import annotations

from collections.abc import Callable

import anyio
from anyio import Semaphore, to_thread


class ResultLines:
    """Takes lines and writes them.

    Args:
        write: writes text; it may block.
        window: released once for each line that was written.
        ordered: whether line n waits for line n - 1.
    """

    def __init__(self, write: Callable[[str], None], window: Semaphore, *, ordered: bool) -> None:
        self._write = write
        self._window = window
        self._ordered = ordered
        self._early: dict[int, str] = {}
        self._ready: list[str] = []
        self._next = 1
        self._closed = False
        self._changed = anyio.Event()

    def add(self, number: int, line: str) -> None:
        """Take the line of input *number*; each number from 1 on comes once."""
        if self._ordered:
            self._early[number] = line
            while self._next in self._early:
                self._ready.append(self._early.pop(self._next))
                self._next += 1
        else:
            self._ready.append(line)
        self._changed.set()

    def close(self) -> None:
        """No more lines will come."""
        self._closed = True
        self._changed.set()

    async def run(self) -> None:
        """Write until ``close``, and all that is there by then."""
        while self._ready or not self._closed:
            await self._changed.wait()
            self._changed = anyio.Event()
            lines, self._ready = self._ready, []
            if lines:
                await to_thread.run_sync(self._write, "".join(lines))
            for _ in lines:
                self._window.release()
            if self._closed:
                self._changed.set()
