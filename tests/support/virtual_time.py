"""Clocks that jump: minutes of waiting pass at once, and always in the same order."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import anyio

T = TypeVar("T")


class Time(selectors.DefaultSelector):
    """A clock that jumps to the next timer as soon as nothing else is to do."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "everything waits, and no timer will end it"
        self.now += max(0.0, timeout)
        return super().select(0)


class Loop(asyncio.SelectorEventLoop):
    """An event loop with such a clock."""

    def __init__(self, time: Time) -> None:
        self.time = time  # type: ignore[method-assign]
        self.timers: list[asyncio.TimerHandle] = []
        super().__init__(time)

    def call_at(self, *args: Any, **options: Any) -> asyncio.TimerHandle:
        self.timers.append(super().call_at(*args, **options))
        return self.timers[-1]


class AheadLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock goes as others do, and can be put ahead."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead


def in_virtual_time(main: Callable[[Time], Coroutine[Any, Any, T]]) -> T:
    time = Time()
    return anyio.run(main, time, backend_options={"loop_factory": lambda: Loop(time)})
