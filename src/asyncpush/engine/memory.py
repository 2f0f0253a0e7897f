"""The memory budget of all layers: memory is taken before a part is made, and given back once ECR has the part."""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio

from asyncpush.settings import MiB

#: Bytes of memory that it takes to send a part that is not held encoded: a window of base64, and its copy in the
#: buffers of the socket.
WINDOW_SIZE = 2 * MiB

#: The share of the budget that windows may take while parts wait; parts that need not be held leave it free.
_SHARE_OF_WINDOWS = 3 / 8

#: Bytes of a buffer that is worth keeping for another part.
_WORTH_KEEPING = MiB

#: Requests that wait, in order: the bytes, and the event that grants them.
_Queue = OrderedDict[tuple[int, anyio.Event], None]


class MemoryBudget:
    """Limits the bytes that parts hold, and windows: the buffers through which parts that are not held are sent.

    It can't deadlock. A layer that waits for memory holds none that only it can give back: its parts are with their
    senders, and its source keeps what it needs to continue (``RemoteBlob.stream``). A sender waits at most for a
    window, and one window is always available, whatever parts and other requests take. Sending through a window waits
    only for the network: so windows are given back, then parts, and then the next part can be made.

    Windows have priority up to a share of the budget; beyond it they wait until no part waits. Parts are granted in
    order. A part larger than the budget is granted when no other part is held, so no part is too large to be sent.

    Args:
        limit: the bytes that may be held.
        window: the bytes of a window; 0 if windows need no memory.
    """

    def __init__(self, limit: int, window: int = WINDOW_SIZE) -> None:
        self._limit = limit
        self._window = window
        self._parts = 0
        self._windows = 0
        self._waiting_parts: _Queue = OrderedDict()
        self._waiting_windows: _Queue = OrderedDict()
        self._idle: list[bytearray] = []

    @property
    def held(self) -> int:
        """The bytes that are held now."""
        return self._parts + self._windows

    @property
    def limit(self) -> int:
        """The bytes that may be held."""
        return self._limit

    @property
    def window_size(self) -> int:
        """The bytes of a window."""
        return self._window

    @asynccontextmanager
    async def account(self) -> AsyncIterator[MemoryAccount]:
        """Open the account of one layer's parts; everything in it is given back at the end of the block."""
        account = MemoryAccount(self)
        try:
            yield account
        finally:
            account.give_back(account.held)

    @asynccontextmanager
    async def window(self) -> AsyncIterator[Callable[[], None]]:
        """Hold a window for the block. The block may wait only for the network.

        Yields:
            A function that gives the window back before the end of the block.
        """
        await self._wait(self._waiting_windows, self._window, self._close_window)
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
        """Wait until a part may hold *size* bytes, and take them."""
        await self._wait(self._waiting_parts, size, self.give_back)

    def take_nowait(self, size: int) -> bool:
        """Take *size* bytes for a part if memory is plentiful: nothing waits, and the share of the windows is free."""
        if self._waiting_parts or self._waiting_windows or self.held + size > self._limit * (1 - _SHARE_OF_WINDOWS):
            return False
        self._parts += size
        self._drop_idle(size)
        return True

    def give_back(self, size: int) -> None:
        """Give back *size* bytes of parts."""
        self._parts -= size
        self._grant()

    def buffer(self, size: int) -> memoryview:
        """Return a buffer of *size* bytes, which were taken, for one part; what it contains is arbitrary.

        Where it can, it is one that served another part: the system clears new memory page by page. It is used again
        once no view of it exists, and not before: a connection may keep views of what it has sent.
        """
        if size < _WORTH_KEEPING:
            return memoryview(bytearray(size))
        fitting = (number for number, memory in enumerate(self._idle) if len(memory) == size)
        number = next(fitting, None)
        memory = bytearray(size) if number is None else self._idle.pop(number)
        # All views refer to this array, and nothing else does: it dies with the last of them.
        array = (ctypes.c_char * size).from_buffer(memory)
        weakref.finalize(array, self._idle.append, memory).atexit = False
        return memoryview(array).cast("B")

    def _close_window(self, size: int) -> None:
        self._windows -= size
        self._grant()

    async def _wait(self, queue: _Queue, size: int, give_back: Callable[[int], None]) -> None:
        request = (size, anyio.Event())
        queue[request] = None
        self._grant()
        try:
            await request[1].wait()
        except BaseException:
            if request in queue:
                del queue[request]
                self._grant()
            else:
                give_back(size)
            raise

    def _grant(self) -> None:
        while True:
            if self._waiting_windows and self._may_open_window():
                size = _grant_first(self._waiting_windows)
                self._windows += size
            elif self._waiting_parts and self._has_room(next(iter(self._waiting_parts))[0]):
                size = _grant_first(self._waiting_parts)
                self._parts += size
            else:
                return
            self._drop_idle(size)

    def _drop_idle(self, granted: int) -> None:
        """Drop buffers that make it more than the limit, beside what was just *granted*: it may be for one of them."""
        while self._idle and self.held - granted + sum(map(len, self._idle)) > self._limit:
            del self._idle[0]

    def _may_open_window(self) -> bool:
        """Whether one more window may open; beside other windows only if that delays no part."""
        if not self._windows:
            return True
        limit = self._limit
        if self._waiting_parts:
            limit = min(int(limit * _SHARE_OF_WINDOWS), limit - next(iter(self._waiting_parts))[0])
        windows = self._windows + self._window
        return windows <= limit and self._parts + windows <= self._limit

    def _has_room(self, size: int) -> bool:
        """Whether a part may take *size* bytes: it leaves room for a window, or no other part is held."""
        room = self._limit - max(self._windows, self._window)
        return self._parts + size <= room or (not self._parts and size > self._limit - self._window)


def _grant_first(queue: _Queue) -> int:
    """Grant the first request, and return its bytes."""
    (size, granted), _ = queue.popitem(last=False)
    granted.set()
    return size


class MemoryAccount:
    """One layer's share of a budget (``MemoryBudget.account``)."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self.held = 0

    async def take(self, size: int) -> None:
        """Wait until a part may hold *size* bytes, and take them."""
        await self._budget.take(size)
        self.held += size

    def take_nowait(self, size: int) -> bool:
        """Take *size* bytes for a part if memory is plentiful (``MemoryBudget.take_nowait``)."""
        is_taken = self._budget.take_nowait(size)
        self.held += size if is_taken else 0
        return is_taken

    def give_back(self, size: int) -> None:
        """Give back *size* bytes."""
        self.held -= size
        self._budget.give_back(size)


class ThreadBuffer(threading.local):
    """A buffer for each worker thread, whose content is used only within one call.

    Hundreds of layers may be open at once, but only a few threads work on them.

    Args:
        size: the bytes of the buffer.
    """

    def __init__(self, size: int) -> None:
        self.view = memoryview(bytearray(size))
