"""Memory as a budget in bytes over all layers: taken before a part is made, given back when ECR has it."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio


class ByteBudget:
    """Bytes that may be held at once; who asks first is served first.

    A request for more than all of it is granted when nothing else is held, so that no part is too large to be sent.

    Args:
        limit: bytes that may be held.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._waiting: deque[tuple[int, anyio.Event]] = deque()

    @property
    def held(self) -> int:
        """Bytes that are held now."""
        return self._held

    @property
    def limit(self) -> int:
        """Bytes that may be held."""
        return self._limit

    @asynccontextmanager
    async def account(self) -> AsyncIterator[BudgetAccount]:
        """What one layer holds; all of it is given back at the end, however the layer ends."""
        account = BudgetAccount(self)
        try:
            yield account
        finally:
            account.give_back(account.held)

    async def take(self, size: int) -> None:
        """Wait until *size* bytes may be held, and hold them."""
        if not self._waiting and self._fits(size):
            self._held += size
            return
        granted = anyio.Event()
        self._waiting.append((size, granted))
        try:
            await granted.wait()
        except BaseException:
            if granted.is_set():
                self.give_back(size)
            else:
                self._waiting.remove((size, granted))
                self._grant()
            raise

    def take_nowait(self, size: int) -> bool:
        """Hold *size* bytes if most of the budget is free; the rest is for those who must wait."""
        if self._waiting or self._held + size > self._limit * 5 // 8:
            return False
        self._held += size
        return True

    def give_back(self, size: int) -> None:
        """Hold *size* bytes less."""
        self._held -= size
        self._grant()

    def _fits(self, size: int) -> bool:
        return self._held == 0 or self._held + size <= self._limit

    def _grant(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0]):
            size, granted = self._waiting.popleft()
            self._held += size
            granted.set()


class BudgetAccount:
    """One layer's share of a budget (``ByteBudget.account``)."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self.held = 0

    async def take(self, size: int) -> None:
        """Wait until *size* bytes may be held, and hold them."""
        await self._budget.take(size)
        self.held += size

    def take_nowait(self, size: int) -> bool:
        """Hold *size* bytes if there is plenty (``ByteBudget.take_nowait``)."""
        taken = self._budget.take_nowait(size)
        self.held += size if taken else 0
        return taken

    @asynccontextmanager
    async def holding(self, size: int) -> AsyncIterator[Callable[[], None]]:
        """Hold *size* bytes meanwhile; what is yielded gives them back earlier, if called."""
        await self.take(size)
        rest = size

        def let_go() -> None:
            nonlocal rest
            self.give_back(rest)
            rest = 0

        try:
            yield let_go
        finally:
            let_go()

    def give_back(self, size: int) -> None:
        """Hold *size* bytes less."""
        self.held -= size
        self._budget.give_back(size)
