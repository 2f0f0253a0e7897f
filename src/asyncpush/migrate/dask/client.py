"""A migration on a Dask cluster: its shards as tasks, and one progress and one report of all of them.

Dask decides which worker runs a shard, runs it again if the worker is lost or the shard could not run, and forgets what
is not wanted any more. There is no other scheduler here.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import anyio
import msgspec
from anyio import CancelScope, to_thread

from asyncpush.errors import AsyncpushError, UnforeseenError, UsageError
from asyncpush.events import Emit, Event, LayerDone, LayerFailed, LayerStarted, Notice
from asyncpush.migrate.dask import worker
from asyncpush.migrate.dask.plain import (
    Job,
    Plain,
    PlainError,
    PlainNothing,
    Results,
    ShardOutcome,
    ShardTask,
    error_of,
    event_of,
    from_plain,
    plain_error,
    to_plain,
)
from asyncpush.migrate.dask.worker import ShardFailedError, check_worker, run_shard
from asyncpush.migrate.plan.model import Plan
from asyncpush.migrate.report import CopyResult, LeftOutTag, Report
from asyncpush.migrate.shard import Shard
from asyncpush.timeline import Timeline, TimelineRecorder
from asyncpush.traffic import total

#: Shards of a plan by default: several for each worker, so that none waits for the last one for long.
SHARDS = 64

#: How often Dask runs a shard again that could not run. For lost workers, Dask has a limit of its own.
_RETRIES = 2

#: Seconds to wait for the first worker, for the answers of all of them before a run, and for connections to close.
_FIRST_WORKER, _CHECK, _CLOSE = 120.0, 120.0, 30.0

#: Seconds for which workers may end what was cancelled, put journals back, and say so.
_CANCELLATION = 30.0

_LOCAL = "local:"
_SCHEMES = ("tcp://", "tls://", "ws://", "wss://", "ucx://")
_MOST_PROCESSES = 256


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where shards run: a scheduler's address, or a number of processes on this machine."""

    address: str | None = None
    processes: int = 0

    @classmethod
    def parse(cls, text: str) -> Cluster:
        """Read ``--dask``: ``tcp://SCHEDULER:PORT``, or ``local:N``.

        Raises:
            UsageError: it has another form.
        """
        if text.startswith(_LOCAL):
            number = text.removeprefix(_LOCAL)
            if number.isascii() and number.isdigit() and 1 <= int(number[:8]) <= _MOST_PROCESSES:
                return cls(processes=int(number))
        elif text.startswith(_SCHEMES) and text.partition("://")[2]:
            return cls(address=text)
        raise UsageError(f"--dask {text[:300]!r} is not a cluster", hint="write tcp://SCHEDULER:8786, or local:4")

    @property
    def is_local(self) -> bool:
        """Whether all workers are processes on this machine."""
        return self.address is None


@dataclass(slots=True)
class DaskReport:
    """The result of a migration on a cluster.

    Attributes:
        report: the report.
        journal_failures: why journals could not be put back into S3 in the end.
    """

    report: Report
    journal_failures: list[AsyncpushError] = field(default_factory=list)


async def migrate_on_dask(job: Job, plan: Plan, cluster: Cluster, emit: Emit) -> DaskReport:
    """Migrate all shards of a job.

    If it is cancelled, the shards are, too; it waits for them to end, for a bounded time.

    Args:
        job: the job. Without ``Settings.quota_share``, the quotas are divided between the workers that there are.
        plan: the client's own reading of the job's plan, for the report.
        cluster: where shards run.
        emit: takes all events of all shards.

    Raises:
        UsageError: Dask is not installed, or a worker can't run the job as it is.
        AsyncpushError: the scheduler can't be reached, or has no workers; or the same error stopped all shards.
    """
    started, recorder = time.monotonic(), TimelineRecorder()

    def record(event: Event) -> None:
        recorder(event)
        emit(event)

    shards = [Shard(index, job.shards) for index in range(job.shards)]
    parts = {shard: shard.part_of(plan) for shard in shards}
    # The largest first, so that none of them is the last to begin.
    shards = sorted((shard for shard in shards if parts[shard].entries), key=lambda shard: -len(parts[shard].entries))
    async with _connect(cluster) as client:
        threads = await _workers(client, cluster)
        await _check(client, job)
        at_once = max(1, min(threads, len(shards)))
        record(Notice(f"shards to run: {len(shards)}; at once: {at_once}"))
        if job.settings.quota_share is None:
            job = msgspec.structs.replace(job, settings=replace(job.settings, quota_share=1 / at_once))
        run = _Run(client, job, record)
        outcomes = await run.go(shards)
    _raise_common(outcomes.values())
    return _merged(outcomes, parts, Results(plan), time.monotonic() - started, recorder.timeline())


# The cluster


@asynccontextmanager
async def _connect(cluster: Cluster) -> AsyncIterator[Any]:
    distributed = await to_thread.run_sync(_import)
    async with AsyncExitStack() as stack:
        address: Any = cluster.address
        if cluster.is_local:
            address = distributed.LocalCluster(
                n_workers=cluster.processes,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address=None,
                # asyncpush keeps to --max-memory; Dask would stop a worker by what other processes use.
                memory_limit=None,
                silence_logs=logging.CRITICAL,
                preload=[worker.__name__],
                asynchronous=True,
            )
            with _sparing_children():
                await _entered(stack, address)
        try:
            client = distributed.Client(address, asynchronous=True, set_as_default=False)
            await _entered(stack, client)
        except (OSError, TimeoutError, ValueError) as error:
            raise AsyncpushError(
                f"the Dask scheduler {cluster.address} can't be reached: {_line(error)}",
                hint="start it with `dask scheduler`, and check the address",
            ) from error
        yield client


@contextmanager
def _sparing_children() -> Iterator[None]:
    """Let processes that are started meanwhile block SIGINT, which a terminal sends to all processes of a command.

    They inherit the mask. Of this process, another thread receives the signal, or this one once it is over.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _import() -> Any:  # noqa: ANN401 - an optional package
    try:
        distributed = importlib.import_module("distributed")
    except ImportError as error:
        raise UsageError("--dask needs Dask, which is not installed", hint="pip install 'asyncpush[dask]'") from error
    # What happens to a worker shows in the result of its shards. Dask gives some of its loggers a level of their own.
    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return distributed


async def _entered(stack: AsyncExitStack, opened: Any) -> None:  # noqa: ANN401 - of an optional package
    """Enter *opened*, and close it at the end in a bounded time, also if this task is cancelled before it is open."""

    async def close() -> None:
        with CancelScope(shield=True), anyio.move_on_after(_CLOSE):
            await opened.__aexit__(None, None, None)

    stack.push_async_callback(close)
    await opened.__aenter__()


async def _workers(client: Any, cluster: Cluster) -> int:  # noqa: ANN401 - likewise
    """How many shards the workers can run at once, once there is one."""
    try:
        await client.wait_for_workers(max(1, cluster.processes), timeout=_FIRST_WORKER)
    except TimeoutError as error:
        raise AsyncpushError(
            f"the Dask scheduler {cluster.address or ''} has no workers", hint="start some with `dask worker`"
        ) from error
    counts: Mapping[str, int] = await client.nthreads()
    return sum(counts.values())


async def _check(client: Any, job: Job) -> None:  # noqa: ANN401 - likewise
    """Ask each worker whether it could run the job."""
    answers: Mapping[str, Plain] = {}
    try:
        with anyio.fail_after(_CHECK):
            answers = await client.run(check_worker, to_plain(job))
    except TimeoutError as error:
        raise AsyncpushError(
            f"a worker does not answer for {_CHECK:g} seconds", hint="stop it, or wait for it"
        ) from error
    except (ImportError, AttributeError, TypeError) as error:
        raise UsageError(
            f"a worker has no asyncpush that can run shards: {error}", hint="install this version on every worker"
        ) from error
    for address, answer in answers.items():
        _refuse(address, answer, job)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _refuse(address: str, answer: Plain, job: Job) -> None:
    if answer["version"] != job.version:
        raise UsageError(
            f"the worker {address} has asyncpush {answer['version']}, and this is {job.version}",
            hint="install the same version on every worker",
        )
    if answer["missing"]:
        names = ", ".join(answer["missing"][:3])
        raise UsageError(
            f"the worker {address} does not have what the plan names here: {names}",
            hint="share the directory at the same absolute path, or migrate local sources without --dask",
        )
    if answer["error"] is not None:
        error = error_of(from_plain(answer["error"], PlainError))
        raise UsageError(f"the worker {address} can't run the plan: {error.message}", hint=error.hint)


# The run


class _Run:
    """The tasks of a run.

    Args:
        client: Dask's client.
        job: the job.
        emit: takes the events of all tasks.
    """

    def __init__(self, client: Any, job: Job, emit: Emit) -> None:  # noqa: ANN401 - of an optional package
        self._client = client
        self._job = job
        self._topic = f"asyncpush-{os.urandom(8).hex()}"
        self._relay = _EventRelay(emit)
        self._outcomes: dict[Shard, ShardOutcome] = {}

    async def go(self, shards: Sequence[Shard]) -> dict[Shard, ShardOutcome]:
        """Run shards, and wait for all of them; for the first failure if the job says so."""
        self._client.subscribe_topic(self._topic, self._relay.take)
        futures = {shard: self._submit(shard, -place) for place, shard in enumerate(shards)}
        is_done = False
        try:
            async with anyio.create_task_group() as tasks:
                for shard, future in futures.items():
                    tasks.start_soon(self._wait, shard, future, tasks.cancel_scope)
            is_done = len(self._outcomes) == len(shards)
        finally:
            if not is_done:
                with CancelScope(shield=True), anyio.move_on_after(_CANCELLATION):
                    await self._client.cancel(list(futures.values()), force=True)
                    await self._relay.wait_until_idle()
        return self._outcomes

    def _submit(self, shard: Shard, priority: int) -> Any:  # noqa: ANN401 - a future of an optional package
        task = ShardTask(job=self._job, index=shard.index, topic=self._topic)
        key = f"{self._topic}-{shard.name}"
        return self._client.submit(run_shard, to_plain(task), key=key, pure=False, retries=_RETRIES, priority=priority)

    async def _wait(self, shard: Shard, future: Any, scope: CancelScope) -> None:  # noqa: ANN401 - likewise
        try:
            outcome = from_plain(await future.result(), ShardOutcome)
        except ShardFailedError as error:
            outcome = _failure(error.error)
        except Exception as error:  # noqa: BLE001 - Dask's, for lost workers, a lost scheduler or a cancelled task
            outcome = _failure(AsyncpushError(f"shard {shard} was lost: {_reason(error)}", hint=_RESUME))
        self._outcomes[shard] = outcome
        self._relay.end(shard.index)
        has_failed = outcome.error is not None or any(result.outcome == "failed" for result in outcome.results)
        if has_failed and self._job.options.fail_fast:
            scope.cancel()


_RESUME = "run the same command again to resume"


def _failure(error: AsyncpushError) -> ShardOutcome:
    return ShardOutcome(error=plain_error(error))


def _reason(error: Exception) -> str:
    if type(error).__name__ == "KilledWorker":
        return "every worker that ran it died"
    if "Cancelled" in type(error).__name__:
        return "the cluster cancelled it, or the scheduler is out of reach"
    return str(UnforeseenError(error))


class _EventRelay:
    """Passes the events of tasks on, those of the latest attempt of each shard.

    Args:
        emit: takes them.
    """

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._attempts: dict[int, str] = {}
        self._running: set[int] = set()
        self._layers: dict[int, set[str]] = {}
        self._past: set[str] = set()
        self._changed = anyio.Event()

    def take(self, logged: tuple[float, Plain]) -> None:
        """Take a message of a task, as Dask's client hands it over."""
        _, message = logged
        shard, attempt = message["shard"], message["attempt"]
        if attempt in self._past:
            return
        if self._attempts.get(shard, attempt) != attempt:
            self._drop(shard)
        self._attempts[shard] = attempt
        self._running.add(shard)
        layers = self._layers.setdefault(shard, set())
        for name, members in message["events"]:
            event = event_of(name, members)
            if isinstance(event, LayerStarted):
                layers.add(event.layer)
            elif isinstance(event, LayerDone | LayerFailed):
                layers.discard(event.layer)
            self._emit(event)
        if message["ended"]:
            self.end(shard)

    def _drop(self, shard: int) -> None:
        """End an attempt whose worker is lost: what it was sending is not in flight any more."""
        self._past.add(self._attempts[shard])
        for layer in self._layers.pop(shard, ()):
            self._emit(LayerFailed(layer, interrupted=True))

    def end(self, shard: int) -> None:
        """Note that no attempt of a shard is running."""
        self._running.discard(shard)
        self._changed.set()
        self._changed = anyio.Event()

    async def wait_until_idle(self) -> None:
        """Wait until no attempt of any shard is running."""
        while self._running:
            await self._changed.wait()


# The report


def _raise_common(outcomes: Collection[ShardOutcome]) -> None:
    """Raise the error that kept every shard from running, as a run on one machine does."""
    errors = [outcome.error for outcome in outcomes]
    if errors and errors[0] is not None and errors.count(errors[0]) == len(errors):
        raise error_of(errors[0])


def _merged(
    outcomes: Mapping[Shard, ShardOutcome],
    parts: Mapping[Shard, Plan],
    made: Results,
    seconds: float,
    timeline: Timeline,
) -> DaskReport:
    """One report of all shards."""
    results: list[CopyResult] = []
    left_out: dict[LeftOutTag, None] = {}
    nothing: dict[PlainNothing, None] = {}
    failures: list[AsyncpushError] = []
    for shard in sorted(outcomes):
        outcome = outcomes[shard]
        if outcome.error is not None:
            results += made.failed(parts[shard].entries, error_of(outcome.error))
        results += map(made.result, outcome.results)
        left_out |= dict.fromkeys(outcome.left_out)
        nothing |= dict.fromkeys(outcome.nothing_taken)
        if outcome.journal_failure is not None:
            failures.append(error_of(outcome.journal_failure))
    return DaskReport(
        Report(
            results=tuple(results),
            left_out=tuple(left_out),
            nothing_taken=tuple(map(made.nothing_taken, nothing)),
            traffic=total([outcome.traffic for outcome in outcomes.values()]),
            sent=sum(outcome.sent for outcome in outcomes.values()),
            seconds=seconds,
            resumed=any(outcome.resumed for outcome in outcomes.values()),
            stopped=_stopped(outcomes.values()),
            timeline=timeline,
        ),
        failures,
    )


def _stopped(outcomes: Collection[ShardOutcome]) -> AsyncpushError | None:
    return next((error_of(outcome.stopped) for outcome in outcomes if outcome.stopped is not None), None)
