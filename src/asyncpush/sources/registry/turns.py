"""Who may use a connection to a registry, of which there are only so many: for one request, or for a whole blob."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from anyio import CapacityLimiter


class Turn:
    """One of a registry's turns: the right to one connection, for one request after the other."""

    def __init__(self, turns: CapacityLimiter) -> None:
        self._turns = turns
        self._is_held = False

    async def take(self) -> None:
        """Wait for it."""
        await self._turns.acquire_on_behalf_of(self)
        self._is_held = True

    def give_back(self) -> None:
        """Let somebody else have it; may be called again."""
        if self._is_held:
            self._is_held = False
            self._turns.release_on_behalf_of(self)


class OpenAnswer:
    """An answer whose body is still to be read. What was asked without a turn of its own takes one until it is closed.

    Args:
        response: the answer.
        turn: what is given back with it; None leaves it to the caller.
    """

    def __init__(self, response: aiohttp.ClientResponse, turn: Turn | None) -> None:
        self.response = response
        self._turn = turn

    def close(self) -> None:
        """Give back the connection and the turn; may be called again."""
        self.response.release()
        if self._turn is not None:
            self._turn.give_back()


@asynccontextmanager
async def own_turn(turns: CapacityLimiter) -> AsyncIterator[Turn]:
    """Have one of *turns* meanwhile."""
    turn = Turn(turns)
    await turn.take()
    try:
        yield turn
    finally:
        turn.give_back()
