"""Memory as a budget in bytes over all layers: taken before a part is made, given back when ECR has it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio

from asyncpush.settings import MiB

#: Bytes that a part takes on its way where it is not held encoded: a window of base64, and what the socket has not
#: taken of it.
WINDOW_SIZE = 2 * MiB

#: The share of the budget that windows may take while parts wait for memory; parts that need not be held leave it free.
_FOR_WINDOWS = 3 / 8

#: Who waits, first come first: so many bytes, and the event that grants them.
_Line = OrderedDict[tuple[int, anyio.Event], None]


class MemoryBudget:
    """Bytes that may be held at once: by parts that are made, and by windows, through which other parts leave.

    It can't deadlock. Whoever waits for a part's memory holds nothing that only it can give back: all its earlier parts
    are with their senders, and its source keeps what it needs to go on (``RemoteBlob.stream``). A sender waits for a
    window at the most, and one window is always to be had, whatever parts and other waiters take. Whoever has a window
    waits for nothing but the network, so it gives it back, then the senders their parts, and then the next part begins.

    Windows go first, up to a share of the budget; beyond it they go once no part waits. Parts go first come first
    served. A part larger than the budget is granted when no other one is held, so that no part is too large to be sent.

    Args:
        limit: bytes that may be held.
        window: bytes of a window; 0 where there are none.
    """

    def __init__(self, limit: int, window: int = WINDOW_SIZE) -> None:
        self._limit = limit
        self._window = window
        self._parts = 0
        self._windows = 0
        self._waiting: _Line = OrderedDict()
        self._leaving: _Line = OrderedDict()

    @property
    def held(self) -> int:
        """Bytes that are held now."""
        return self._parts + self._windows

    @property
    def limit(self) -> int:
        """Bytes that may be held."""
        return self._limit

    @property
    def window_size(self) -> int:
        """Bytes of a window."""
        return self._window

    @asynccontextmanager
    async def account(self) -> AsyncIterator[MemoryAccount]:
        """What one layer's parts hold; all of it is given back at the end, however the layer ends."""
        account = MemoryAccount(self)
        try:
            yield account
        finally:
            account.give_back(account.held)

    @asynccontextmanager
    async def window(self) -> AsyncIterator[Callable[[], None]]:
        """Hold a window meanwhile; what is yielded gives it back earlier, if called.

        Nobody may wait for anything but the network while holding one.
        """
        await self._wait(self._leaving, self._window, self._close_window)
        is_open = True

        def close() -> None:
            nonlocal is_open
            if is_open:
                is_open = False
                self._close_window(self._window)

        try:
            yield close
        finally:
            close()

    async def take(self, size: int) -> None:
        """Wait until a part may hold *size* bytes, and hold them."""
        await self._wait(self._waiting, size, self.give_back)

    def take_nowait(self, size: int) -> bool:
        """Hold *size* bytes of a part if there is plenty; the rest is for those who must wait."""
        if self._waiting or self._leaving or self.held + size > self._limit * (1 - _FOR_WINDOWS):
            return False
        self._parts += size
        return True

    def give_back(self, size: int) -> None:
        """Hold *size* bytes less of parts."""
        self._parts -= size
        self._grant()

    def _close_window(self, size: int) -> None:
        self._windows -= size
        self._grant()

    async def _wait(self, line: _Line, size: int, give_back: Callable[[int], None]) -> None:
        place = (size, anyio.Event())
        line[place] = None
        self._grant()
        try:
            await place[1].wait()
        except BaseException:
            if place in line:
                del line[place]
                self._grant()
            else:
                give_back(size)
            raise

    def _grant(self) -> None:
        while True:
            if self._leaving and self._has_window():
                self._windows += _first_of(self._leaving)
            elif self._waiting and self._has_room(next(iter(self._waiting))[0]):
                self._parts += _first_of(self._waiting)
            else:
                return

    def _has_window(self) -> bool:
        """Whether one more window may open: beside others only where that keeps no part from its turn."""
        if not self._windows:
            return True
        most = self._limit
        if self._waiting:
            most = min(int(most * _FOR_WINDOWS), most - next(iter(self._waiting))[0])
        windows = self._windows + self._window
        return windows <= most and self._parts + windows <= self._limit

    def _has_room(self, size: int) -> bool:
        """Whether a part may take so many bytes: they leave room for a window, or are alone."""
        room = self._limit - max(self._windows, self._window)
        return self._parts + size <= room or (not self._parts and size > self._limit - self._window)


class ThreadBuffer(threading.local):
    """A buffer that each worker thread has of its own, for bytes that no call leaves behind in it.

    Hundreds of layers may be open at once, but only a few threads work on them.

    Args:
        size: its bytes.
    """

    def __init__(self, size: int) -> None:
        self.view = memoryview(bytearray(size))


def _first_of(line: _Line) -> int:
    """Let go whoever is first, and say how many bytes it waits for."""
    (size, granted), _ = line.popitem(last=False)
    granted.set()
    return size


class MemoryAccount:
    """One layer's share of a budget (``MemoryBudget.account``)."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self.held = 0

    async def take(self, size: int) -> None:
        """Wait until a part may hold *size* bytes, and hold them."""
        await self._budget.take(size)
        self.held += size

    def take_nowait(self, size: int) -> bool:
        """Hold *size* bytes of a part if there is plenty (``MemoryBudget.take_nowait``)."""
        taken = self._budget.take_nowait(size)
        self.held += size if taken else 0
        return taken

    def give_back(self, size: int) -> None:
        """Hold *size* bytes less."""
        self.held -= size
        self._budget.give_back(size)
