"""Run a command: signals, one line for an error, and the exit status."""

from __future__ import annotations

import ctypes
import gc
import signal
import threading
import traceback
from collections.abc import Awaitable, Callable, Collection, Sequence
from itertools import zip_longest
from typing import TypeAlias

import anyio
from anyio import TASK_STATUS_IGNORED
from anyio.abc import TaskStatus

from asyncpush import open_files
from asyncpush.cli.github import annotated
from asyncpush.cli.streams import say
from asyncpush.errors import (
    CREDENTIALS_LOST,
    AsyncpushError,
    InterruptedRunError,
    PlanError,
    UnforeseenError,
    UsageError,
    cause_of,
    is_denied,
    leaf_errors,
)
from asyncpush.second_signal import ENDING, EndAtSecond
from asyncpush.units import some_text

#: Failures of one cause that are printed one by one.
ALIKE = 3

#: The exit statuses that the manual documents.
DONE, FAILED, USAGE, DENIED, INTERRUPTED = 0, 1, 2, 4, 130

#: ``mallopt``'s M_ARENA_MAX, of glibc.
_ARENAS = -8


#: Takes what has ended a command early.
EndEarly: TypeAlias = Callable[[AsyncpushError], None]


def _ignore(_: AsyncpushError) -> None: ...


def run(
    command: Callable[[], Awaitable[int]],
    *,
    verbose: bool = False,
    end_early: EndEarly = _ignore,
    state: str = "no tag names an incomplete image; run the same command again",
) -> int:
    """Run *command* and return the exit status of the process.

    SIGINT and SIGTERM cancel it, so that everything closes in order; a second signal ends the process at once.

    Args:
        command: the command.
        verbose: print the traceback of its error.
        end_early: prints what there is of the result if an error or a signal has ended the command.
        state: how an interrupted command leaves things, and what to do.
    """
    status, received = _run(command, verbose, end_early)
    if received is None:
        return status
    _end(end_early, InterruptedRunError())
    say(f"asyncpush: interrupted; {state}")
    return _signal_status(received)


def run_server(server: Callable[[], Awaitable[int]], *, verbose: bool = False) -> int:
    """Run *server* likewise; a signal is its normal end."""
    status, _ = _run(server, verbose, _ignore)
    return status


def _end(end_early: EndEarly, cause: BaseException) -> None:
    """Print what there is of a result; *cause* has ended the command."""
    if isinstance(cause, Exception):
        known = cause if isinstance(cause, AsyncpushError) else UnforeseenError(cause)
        try:
            end_early(known)
        except AsyncpushError as error:
            say_error(error)


def run_quietly(command: Callable[[], Awaitable[int]]) -> int:
    """Run *command* likewise, but print nothing; if it fails, raise the first cause.

    Returns:
        Its exit status, or that of an interrupted process.
    """
    prepare_memory()
    try:
        status, received = anyio.run(_until_signal, command)
    except BaseExceptionGroup as group:
        error = next(leaf_errors(group))
        raise error from error.__cause__
    return status if received is None else _signal_status(received)


def prepare_memory() -> None:
    """Collect garbage from now on, without what the imports have made; let threads use what others have freed."""
    gc.freeze()
    gc.enable()
    # Each thread of glibc's allocator has an arena of its own: blocks that one thread makes and another one frees would
    # take twice the memory of the parts that they belong to.
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(_ARENAS, 1)


def _signal_status(received: signal.Signals) -> int:
    return INTERRUPTED if received is signal.SIGINT else 128 + received


def _run(
    command: Callable[[], Awaitable[int]], verbose: bool, end_early: EndEarly
) -> tuple[int, signal.Signals | None]:
    prepare_memory()
    try:
        return anyio.run(_until_signal, command)
    except KeyboardInterrupt:  # before there was a handler
        return DONE, signal.SIGINT
    except (AsyncpushError, BaseExceptionGroup, OSError) as error:
        cause = next(leaf_errors(error))
        _end(end_early, cause)
        foreseen = isinstance(cause, (AsyncpushError, OSError))
        if verbose or not foreseen:
            say("".join(traceback.format_exception(error)).rstrip())
        say_error(cause, about=None if foreseen else f"this is a bug, please report it: {type(cause).__name__}")
        return status_of([cause], begun=False), None


def say_error(error: BaseException, *, about: str | None = None) -> None:
    """Print *error* in one line on standard error, after what it is *about*; of a plan, each problem in a line."""
    if isinstance(error, PlanError):
        for problem, position in zip_longest(error.problems, error.positions):
            say(annotated(f"asyncpush: error: {problem}", position))
        return
    shortage = None if isinstance(error, AsyncpushError) else open_files.shortage(error)
    text = f"{shortage}; {open_files.HINT}" if shortage else " ".join(str(error).split()) or type(error).__name__
    say(annotated(f"asyncpush: error: {about}: {text}" if about else f"asyncpush: error: {text}"))


def status_of(errors: Collection[BaseException], *, begun: bool = True) -> int:
    """The exit status of a command in which *errors* have occurred; *begun* says that it has done something else."""
    if not errors:
        return DONE
    if all(map(is_denied, errors)):
        return DENIED
    return FAILED if begun or not all(isinstance(error, UsageError) for error in errors) else USAGE


#: An error, the name of what failed, and what a line of its own must name in addition.
Failure: TypeAlias = tuple[AsyncpushError, str, str | None]


def say_failures(failures: Sequence[Failure], total: int, *, undone: str = "pushed", each: bool = False) -> None:
    """Print why things failed: a line for each failure, or one for many of the same cause.

    Args:
        failures: the failures.
        total: how many things there are.
        undone: what was not done with them.
        each: print a line for each, however many have the same cause.
    """
    causes: dict[str, list[Failure]] = {}
    for failure in failures:
        if not isinstance(failure[0], CREDENTIALS_LOST):
            causes.setdefault(cause_of(str(failure[0]), failure[1]), []).append(failure)
    for alike in causes.values():
        if each or len(alike) <= ALIKE:
            for error, _, about in alike:
                say_error(error, about=about)
        else:
            say_error(alike[0][0], about=_counted([name for _, name, _ in alike], total, undone))
    say_lost([(error, name) for error, name, _ in failures], total, undone=undone)


def say_lost(failures: Sequence[tuple[AsyncpushError, str]], total: int, *, undone: str = "pushed") -> None:
    """Print once that credentials were lost, and which of *total* things that affects; ignore other failures.

    Args:
        failures: errors, and the names of what failed.
        total: how many things there are.
        undone: what was not done with them.
    """
    lost = [(error, name) for error, name in failures if isinstance(error, CREDENTIALS_LOST)]
    if not lost:
        return
    say_error(lost[0][0], about=_counted([name for _, name in lost], total, undone) if total > 1 else None)


def _counted(names: Sequence[str], total: int, undone: str) -> str:
    return f"{len(names)} of {total} not {undone} ({some_text(names, ALIKE)})"


async def _until_signal(command: Callable[[], Awaitable[int]]) -> tuple[int, signal.Signals | None]:
    status = DONE
    received: list[signal.Signals] = []
    async with anyio.create_task_group() as tg:
        with anyio.CancelScope() as scope:
            if threading.current_thread() is threading.main_thread():  # no other thread receives signals
                await tg.start(_watch, scope, received)
            status = await command()
        tg.cancel_scope.cancel()
    return status, received[0] if scope.cancelled_caught else None


async def _watch(
    scope: anyio.CancelScope, received: list[signal.Signals], *, task_status: TaskStatus[None] = TASK_STATUS_IGNORED
) -> None:
    early = signal.getsignal(signal.SIGINT)
    with anyio.open_signal_receiver(*ENDING) as signals:
        # The event loop handles a signal when it gets to it; a second one must not wait for that.
        at_once = early if isinstance(early, EndAtSecond) else EndAtSecond()
        at_once.install()
        task_status.started()
        if at_once.first is not None:  # it came before the command began
            received.append(at_once.first)
            scope.cancel()
        async for number in signals:
            received.append(number)
            scope.cancel()
