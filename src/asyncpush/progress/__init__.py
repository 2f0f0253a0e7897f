"""Faces on events: bars for a terminal, lines for a log, JSON for a program, or nothing."""

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
    """What a face owes: take events quickly, do its work when ticked every ``period`` seconds, leave tidily."""

    @property
    def period(self) -> float: ...

    def take(self, event: Event) -> None: ...

    def tick(self) -> None: ...

    def close(self) -> None: ...


class _SafeRenderer:
    """A face whose failure ends the face, never the push."""

    def __init__(self, face: _Renderer) -> None:
        self.period = face.period
        self._face: _Renderer | None = face

    def take(self, event: Event) -> None:
        # One a request, for those who measure: dropped here, before any face spends time on it.
        if self._face is not None and not isinstance(event, RequestDone):
            self._try(self._face.take, event)

    def tick(self) -> None:
        if self._face is not None:
            self._try(self._face.tick)

    def close(self) -> None:
        face, self._face = self._face, None
        if face is not None:
            self._try(face.close)

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
    kind: ProgressKind, *, stream: TextIO | None = None, images: int | None = None, interval: float = 5.0
) -> AsyncIterator[Emit]:
    """Show a run's events until the block is left, whichever way.

    The ``Emit`` that is given out only changes state, and a task of this block draws; both belong to the event loop's
    thread. An exception of the block comes out as it is, in no exception group.

    Args:
        kind: ``rich`` draws bars, ``plain`` writes lines, ``json`` one object per event but ``RequestDone``, ``none``
            nothing.
            ``auto`` is ``rich`` on a terminal and ``plain`` elsewhere, in CI and where ``TERM`` is ``dumb``.
        stream: where it goes; standard error if None. A stream that fails is left alone from then on.
        images: how many images there will be, for ``3/12 images``; None if only their events tell.
        interval: seconds of silence before ``plain`` writes a heartbeat.
    """
    face = _choose(kind, sys.stderr if stream is None else stream, images, interval)
    if face is None:
        yield ignore
        return
    guarded = _SafeRenderer(face)
    failure: BaseException | None = None
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_refresh, guarded)
            try:
                yield guarded.take
            except (Exception, KeyboardInterrupt, SystemExit) as error:  # noqa: BLE001 - raised below, in no group
                failure = error
            tasks.cancel_scope.cancel()
    finally:
        guarded.close()
    if failure is not None:
        raise failure


async def _refresh(face: _SafeRenderer) -> None:
    while True:
        await anyio.sleep(face.period)
        face.tick()


def _choose(kind: ProgressKind, stream: TextIO, images: int | None, interval: float) -> _Renderer | None:
    """Make the face. Each is imported only here: rich alone costs more time than all of a short run's progress."""
    if kind == "none":
        return None
    sink = Sink(stream)
    if kind == "json":
        from asyncpush.progress.lines import JsonFace

        return JsonFace(sink)
    if kind == "rich" or (kind == "auto" and _is_lively(sink)):
        from asyncpush.progress.rich import RichFace

        return RichFace(sink, images=images, redirect=stream is sys.stderr)
    from asyncpush.progress.lines import PlainFace

    return PlainFace(sink, images=images, interval=interval)


def _is_lively(sink: Sink) -> bool:
    in_ci = os.environ.get("CI", "").lower() not in ("", "0", "false")
    return sink.isatty() and not in_ci and os.environ.get("TERM", "") not in ("", "dumb", "unknown")
