"""Progress displays: bars on a terminal, lines in a log, JSON for programs, or nothing."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Literal, ParamSpec, Protocol, TextIO, TypeAlias

import anyio

from asyncpush.events import Emit, Event, RequestDone, ignore
from asyncpush.progress.lines import Sink

__all__ = ["ProgressKind", "progress"]

ProgressKind: TypeAlias = Literal["auto", "rich", "plain", "json", "none"]

_P = ParamSpec("_P")

_log = logging.getLogger(__name__)


class _Renderer(Protocol):
    """A display: it takes events quickly, draws when ticked every ``period`` seconds, and closes cleanly."""

    @property
    def period(self) -> float: ...

    def take(self, event: Event) -> None: ...

    def tick(self) -> None: ...

    def close(self, *, summarized: bool = False) -> None: ...


class _SafeRenderer:
    """Wraps a display, so that its failure ends the display but never the push."""

    def __init__(self, display: _Renderer) -> None:
        self.period = display.period
        self._display: _Renderer | None = display

    def take(self, event: Event) -> None:
        # There is one for each request, for measurements: drop it before a display spends time on it.
        if self._display is not None and not isinstance(event, RequestDone):
            self._try(self._display.take, event)

    def tick(self) -> None:
        if self._display is not None:
            self._try(self._display.tick)

    def close(self, *, summarized: bool = False) -> None:
        display, self._display = self._display, None
        if display is not None:
            self._try(display.close, summarized=summarized)

    def _try(self, act: Callable[_P, None], *args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            act(*args, **kwargs)
        except Exception:  # noqa: BLE001 - whatever is wrong with a display, the push must go on
            _log.warning(
                "the progress display failed and is off; the push continues", exc_info=_log.isEnabledFor(logging.DEBUG)
            )
            self.close()


@asynccontextmanager
async def progress(
    kind: ProgressKind,
    *,
    stream: TextIO | None = None,
    images: int | None = None,
    each: bool = False,
    summarized: bool = False,
    interval: float = 5.0,
) -> AsyncIterator[Emit]:
    """Show the events of a run until the block is left.

    The ``Emit`` only changes state, and a task of this block draws; both run in the thread of the event loop. An
    exception of the block is raised as it is, not in an exception group.

    Args:
        kind: ``rich`` draws bars, ``plain`` writes lines, ``json`` writes one object for each event except
            ``RequestDone``, ``none`` shows nothing. ``auto`` is ``rich`` on a terminal, and ``plain`` elsewhere, in CI,
            and if ``TERM`` is ``dumb``.
        stream: the stream to write to; standard error if None. After a failure, nothing more is written to it.
        images: how many images there will be, for ``3/12 images``; None if only events tell.
        each: ``rich`` and ``plain`` show a line for each image that ends.
        summarized: the caller sums the run up if it comes to its end, so that ``rich`` need not.
        interval: seconds of silence before ``plain`` writes a heartbeat.
    """
    display = _choose(kind, sys.stderr if stream is None else stream, images, interval, each=each)
    if display is None:
        yield ignore
        return
    renderer = _SafeRenderer(display)
    failure: BaseException | None = None
    has_ended = False
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_refresh, renderer)
            try:
                yield renderer.take
                has_ended = True
            except (Exception, KeyboardInterrupt, SystemExit) as error:  # noqa: BLE001 - raised below, in no group
                failure = error
            tasks.cancel_scope.cancel()
    finally:
        renderer.close(summarized=summarized and has_ended)
    if failure is not None:
        raise failure


async def _refresh(display: _SafeRenderer) -> None:
    while True:
        await anyio.sleep(display.period)
        display.tick()


def _choose(kind: ProgressKind, stream: TextIO, images: int | None, interval: float, *, each: bool) -> _Renderer | None:
    """Create the display. Each is imported only here: importing rich takes longer than a short run."""
    if kind == "none":
        return None
    sink = Sink(stream)
    if kind == "json":
        from asyncpush.progress.lines import JsonDisplay

        return JsonDisplay(sink)
    if kind == "rich" or (kind == "auto" and _is_lively(sink)):
        from asyncpush.progress.rich import RichDisplay

        return RichDisplay(sink, images=images, each=each, redirect=stream is sys.stderr)
    from asyncpush.progress.lines import PlainDisplay

    return PlainDisplay(sink, images=images, each=each, interval=interval)


def _is_lively(sink: Sink) -> bool:
    in_ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
    return sink.isatty() and not in_ci and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
