"""A shard as a task of a Dask worker: what is called there, in a thread of the worker or in its event loop."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, cast

import anyio
from anyio import CancelScope, to_thread

from asyncpush import open_files
from asyncpush.errors import AsyncpushError, UsageError, foreseen
from asyncpush.events import Event, Notice, PartSent
from asyncpush.migrate.dask.plain import (
    Job,
    Plain,
    PlainError,
    ShardOutcome,
    ShardTask,
    error_of,
    from_plain,
    plain_error,
    plain_event,
    plain_report,
    to_plain,
)
from asyncpush.migrate.journals import open_place, read_place
from asyncpush.migrate.plan.load import parse_plan
from asyncpush.migrate.plan.model import Plan, overridden
from asyncpush.migrate.run import migrate_plan
from asyncpush.migrate.shard import Shard, at_shard
from asyncpush.settings import Credentials, SourceRegistry
from asyncpush.sources.source import locate
from asyncpush.sources.streams import is_engine_image, is_stream

#: The variable with the login to the source registry, as for ``--src-creds``.
LOGIN_VARIABLE = "ASYNCPUSH_SRC_CREDS"

#: Seconds between two looks at whether the task is still wanted; its events are sent then, too.
_PERIOD = 0.25

#: Seconds to wait for the journal of a shard: an attempt that the cluster has given up may still be ending.
_PATIENCE = 60.0


class ShardFailedError(Exception):
    """Raised in a task whose shard could not run, so that Dask runs it again; its argument is a ``PlainError``."""

    def __init__(self, text: str) -> None:
        super().__init__(text)

    @property
    def error(self) -> AsyncpushError:
        """Why it could not run."""
        return error_of(from_plain(json.loads(self.args[0]), PlainError))


class _Worker(Protocol):
    """What is used of a ``distributed.Worker``."""

    state: Any
    status: Any

    def get_current_task(self) -> object: ...

    def log_event(self, topic: str, msg: object) -> None: ...


def dask_setup(worker: object) -> None:  # noqa: ARG001 - as Dask calls it
    """Ignore Ctrl-C in a worker that the client has started: the client cancels shards, and they end in order."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


# Before a run


async def check_worker(document: Plain) -> Plain:
    """Whether this worker could run a job: the error that prevents it, and the paths of the plan that it lacks."""
    return await to_thread.run_sync(_check, document)


def _check(document: Plain) -> Plain:
    if document["version"] != version("asyncpush"):  # it may have written what this one can't read
        return {"error": None, "version": version("asyncpush"), "missing": []}
    job = from_plain(document, Job)
    error, missing = None, [path for path in job.local_paths if not Path(path).exists()]
    if not missing:
        try:
            plan = _read(job)
            missing = sorted(set(job.local_paths) ^ set(local_paths(plan)))
        except AsyncpushError as caught:
            error = to_plain(plain_error(caught))
    return {"error": error, "version": version("asyncpush"), "missing": missing}


def local_paths(plan: Plan) -> tuple[str, ...]:
    """The layouts and archives on disk that a plan names, as absolute paths; blocks.

    Raises:
        UsageError: it names an image in an engine, which no other machine has.
    """
    local = [entry for entry in plan.entries if entry.kind == "local"]
    if image := next((entry for entry in local if is_engine_image(entry.location)), None):
        raise UsageError(
            f"{image.place}: {image.source} is on this machine alone", hint="migrate it without --dask, in another plan"
        )
    paths = (locate(entry.location).path for entry in local if not is_stream(entry.location))
    return tuple(dict.fromkeys(str(Path(path).absolute()) for path in paths))


def _read(job: Job) -> Plan:
    """The plan, with this worker's variables and login; blocks."""
    plan = parse_plan(job.text, Path(job.path) if job.path else None, os.environ)
    return overridden(
        plan,
        job.aws,
        {host: _with_login(job, source) for host, source in job.sources.items()},
        platforms=job.platforms,
        create_repository=job.create_repository,
        strict=job.strict,
    )


def _with_login(job: Job, source: SourceRegistry) -> SourceRegistry:
    if not job.has_login:
        return source
    user, colon, password = os.environ.get(LOGIN_VARIABLE, "").partition(":")
    if not user or not colon:
        raise UsageError(f"{LOGIN_VARIABLE} is not set to USER:PASSWORD", hint="set it in the environment of workers")
    return replace(source, credentials=Credentials(user, password))


# The task


def run_shard(document: Plain) -> Plain:
    """Migrate one shard, in a thread of a worker.

    Raises:
        ShardFailedError: it could not run, and may succeed if it runs again.
    """
    from distributed import get_worker

    open_files.raise_limit()
    task = from_plain(document, ShardTask)
    worker = cast("_Worker", get_worker())
    watch = _Watch(worker, worker.get_current_task(), task)
    outcome = anyio.run(_run, task, watch)
    return to_plain(outcome)


async def _run(task: ShardTask, watch: _Watch) -> ShardOutcome:
    try:
        with foreseen():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(watch.look, tasks.cancel_scope)
                outcome = await _migrate(task, watch)
                tasks.cancel_scope.cancel()
                return outcome
        # Nobody waits for the result of a task that was cancelled.
        return ShardOutcome()
    except UsageError as error:
        return ShardOutcome(error=plain_error(error))
    except AsyncpushError as error:
        raise ShardFailedError(json.dumps(to_plain(plain_error(error)))) from None
    finally:
        watch.end()


async def _migrate(task: ShardTask, watch: _Watch) -> ShardOutcome:
    job, shard = task.job, Shard(task.index, task.job.shards)
    plan = await to_thread.run_sync(_read, job)
    place = None if job.journal is None else read_place(at_shard(job.journal, shard, "--journal"))
    async with open_place(place, job.aws, watch.take, dry=False, patience=_PATIENCE) as kept:
        report = await migrate_plan(
            plan,
            settings=job.settings,
            journal=kept.journal,
            emit=watch.take,
            options=replace(job.options, shard=shard),
        )
    return plain_report(report, kept.failure)


class _Watch:
    """Sends the events of a task to the client, and cancels it once nobody wants it any more.

    Dask forgets a running task that was cancelled, or whose client is gone, but can't stop it.

    Args:
        worker: the worker that runs it.
        key: the name of the task.
        task: the task.
    """

    def __init__(self, worker: _Worker, key: object, task: ShardTask) -> None:
        self._worker = worker
        self._key = key
        self._index = task.index
        self._topic = task.topic
        self._attempt = os.urandom(8).hex()
        self._is_announced = False
        self._own_notice = f"shard {task.index}/{task.job.shards} has "
        self._events: list[tuple[str, Plain]] = []
        self._parts: dict[str, tuple[int, int]] = {}

    def take(self, event: Event) -> None:
        """Keep an event until the next look."""
        if isinstance(event, PartSent):  # the most frequent ones are added up
            read, sent = self._parts.get(event.layer, (0, 0))
            self._parts[event.layer] = (read + event.read, sent + event.sent)
            return
        if isinstance(event, Notice) and event.text.startswith(self._own_notice):
            return
        if (plain := plain_event(event)) is not None:
            self._take_parts(getattr(event, "layer", None))
            self._events.append(plain)

    def _take_parts(self, layer: str | None) -> None:
        """Let the parts of a layer come before what happens to it next."""
        for name in [name for name in self._parts if layer in (name, None)] if self._parts else ():
            read, sent = self._parts.pop(name)
            if (plain := plain_event(PartSent(name, read, sent))) is not None:
                self._events.append(plain)

    async def look(self, scope: CancelScope) -> None:
        """Send events, and cancel *scope* once the task is not wanted, until cancelled."""
        while True:
            self._send(ended=False)
            if not self._is_wanted():
                scope.cancel()
            await anyio.sleep(_PERIOD)

    def end(self) -> None:
        """Send the last events."""
        self._send(ended=True)

    def _send(self, *, ended: bool) -> None:
        self._take_parts(None)
        events, self._events = self._events, []
        if events or ended or not self._is_announced:
            self._is_announced = True
            message = {"shard": self._index, "attempt": self._attempt, "events": events, "ended": ended}
            with _ignoring_lost_connections():
                self._worker.log_event(self._topic, message)

    def _is_wanted(self) -> bool:
        state = self._worker.state.tasks.get(self._key)
        return state is not None and state.state in ("executing", "long-running") and self._is_open()

    def _is_open(self) -> bool:
        return self._worker.status.name in ("running", "paused", "init", "starting", "undefined")


@contextmanager
def _ignoring_lost_connections() -> Iterator[None]:
    """Ignore that the scheduler is out of reach: the worker ends then."""
    try:
        yield
    except (OSError, RuntimeError):
        return
