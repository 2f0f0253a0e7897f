"""The sweep: pushes each trial of the plan into a repository, and over a connection, of its own, and measures it."""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version

import anyio
from anyio import CapacityLimiter, to_thread

from asyncpush.api import connect
from asyncpush.bench.target import BenchEndpoint, BenchTarget, own_repository
from asyncpush.bench.trials import Trial, TrialPlan
from asyncpush.connection import Registry, engine_of
from asyncpush.engine.layer import push_layer
from asyncpush.errors import AsyncpushError, RepositoryNotFoundError, only_cause
from asyncpush.events import Emit, Event, ImagePlanned, Notice, RequestDone, Retrying
from asyncpush.model import Descriptor, Digest
from asyncpush.protocols import BlobReader, Repository
from asyncpush.sources.blobs import ContentBlob, PositionalReader

GiB = 1024**3

_MEDIA_TYPE = "application/vnd.oci.image.layer.v1.tar"

#: Random bytes that make a layer different from every other one; the rest is the same block over and over.
_HEAD_SIZE = 32

#: Small enough for a processor's second-level cache, larger than the window of gzip: it does not compress.
_BLOCK_SIZE = 256 * 1024

#: Bytes that are made and hashed at a time.
_HASH_SIZE = 384 * 1024


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a sweep.

    Attributes:
        plan: what was to be pushed.
        endpoint: where to.
        samples: the counted pushes, in order.
        failure: why it ended early, in one line; None if it did not.
    """

    plan: TrialPlan
    endpoint: BenchEndpoint
    samples: tuple[Sample, ...]
    failure: str | None

    @property
    def heading(self) -> str:
        """What measured, on which machine, against which endpoint."""
        return f"asyncpush {version('asyncpush')}, {os.cpu_count()} CPUs, to {self.endpoint}"


class Sweep:
    """Pushes what a plan says.

    Args:
        plan: what to push.
        target: where to.
        home: a connection to it that is not measured.
        emit: receives all events.
        say: shows the user what must not be missed.
    """

    def __init__(
        self, plan: TrialPlan, target: BenchTarget, home: Registry, *, emit: Emit, say: Callable[[str], None]
    ) -> None:
        self._samples: list[Sample] = []
        self._trial: Trial | None = None
        self._plan = plan
        self._target = target
        self._home = home
        self._emit = emit
        self._say = say
        self._prefix = f"asyncpush-bench-{secrets.token_hex(4)}"
        self._maker = LayerMaker()

    async def run(self) -> Outcome:
        """Push all trials. A failure ends the sweep; once there are samples, it is reported beside them.

        Raises:
            AsyncpushError: a push failed, or a repository is left behind, before the first counted push was done.
        """
        failure = None
        try:
            await self._run()
        except AsyncpushError as error:
            if not self._samples:
                raise
            failure = f"{self._trial}: {error}"
        return Outcome(self._plan, BenchEndpoint.of(self._target, self._home), tuple(self._samples), failure)

    async def _run(self) -> None:
        await self._check_access()
        trials = [(f"{self._prefix}/{number}", trial) for number, trial in enumerate(self._plan.trials(), 1)]
        for name, trial in trials:
            self._emit(ImagePlanned(name, trial.combination.layers, trial.combination.total, 0, 0))
        for name, trial in trials:
            if self._trial is None or trial.round != self._trial.round:
                self._emit(Notice(f"round {trial.round} of {self._plan.rounds}" if trial.round else "warming up"))
            self._trial = trial
            sample = await self._push(name, trial)
            if trial.round:
                self._samples.append(sample)

    async def _check_access(self) -> None:
        """Send a harmless request: if it fails, no repository has to be looked for and removed."""
        try:
            await self._home.repository(f"{self._prefix}/1").available([Digest.of(b"")])
        except RepositoryNotFoundError:
            return

    async def _push(self, name: str, trial: Trial) -> Sample:
        layers = await self._maker.make(trial.combination.layers, trial.combination.size)
        recorder = Recorder(self._emit)
        settings = self._plan.settings(trial.combination)
        # A repository for each trial: the endpoint never holds more than one push.
        async with (
            own_repository(self._home, self._target, name, self._say),
            connect(self._target.registry, aws=self._target.aws, settings=settings, emit=recorder) as registry,
        ):
            return await measure(trial, registry, registry.repository(name), layers, recorder)


@dataclass(frozen=True, slots=True)
class Sample:
    """What one push took.

    Attributes:
        trial: which push it was.
        seconds: from the first layer's start to the last one's end.
        cpu: processor seconds of this process meanwhile, of all its threads, user and system.
        requests: every request that ended meanwhile.
        retried: requests that were sent again.
    """

    trial: Trial
    seconds: float
    cpu: float
    requests: tuple[RequestDone, ...]
    retried: int

    @property
    def rate(self) -> float:
        """Bytes of layers a second; over the wire go a third more."""
        return self.trial.combination.total / self.seconds

    @property
    def cpu_per_gib(self) -> float:
        """Processor seconds for each GiB of layers."""
        return self.cpu * GiB / self.trial.combination.total

    @property
    def throttled(self) -> int:
        """Requests that were refused for their rate."""
        return sum(request.outcome == "throttled" for request in self.requests)

    def counts(self) -> Counter[str]:
        """Requests by operation, whatever their outcome."""
        return Counter(request.operation for request in self.requests)

    def latencies(self, operation: str) -> list[float]:
        """Seconds of each request of *operation* that succeeded, in the order of their ends."""
        return [each.seconds for each in self.requests if (each.operation, each.outcome) == (operation, "succeeded")]


class Recorder:
    """An ``Emit`` that collects what a sample needs, and passes all events on.

    Args:
        emit: receives all events, too.
    """

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self.clear()

    def __call__(self, event: Event) -> None:
        """Take *event*."""
        if isinstance(event, RequestDone):
            self.requests.append(event)
        elif isinstance(event, Retrying):
            self.retried += 1
        self._emit(event)

    def clear(self) -> None:
        """Drop what was collected."""
        self.requests: list[RequestDone] = []
        self.retried = 0


async def measure(
    trial: Trial, registry: Registry, repository: Repository, layers: Sequence[ContentBlob], recorder: Recorder
) -> Sample:
    """Push *layers* and measure it.

    Args:
        trial: which push it is.
        registry: a connection of its own, so that each push opens its connections as any other does.
        repository: where they go, over that connection.
        layers: what is pushed; hashed already, as an image's are.
        recorder: receives that connection's events.

    Raises:
        RegistryError: the endpoint refused, or could not be reached in spite of all retries.
    """
    # The first request looks for credentials, which is no part of a push's speed.
    await repository.available([layers[0].descriptor.digest])
    recorder.clear()
    context = engine_of(registry).context
    cpu, began = time.process_time(), time.perf_counter()
    with only_cause():
        async with anyio.create_task_group() as tg:
            for layer in layers:
                tg.start_soon(push_layer, repository, layer, context)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    return Sample(trial, seconds, cpu, tuple(recorder.requests), recorder.retried)


class LayerMaker:
    """Makes layers of random bytes, each different from all others, with their digests."""

    def __init__(self) -> None:
        self._block = memoryview(secrets.token_bytes(_BLOCK_SIZE))
        self._threads = CapacityLimiter(os.cpu_count() or 1)

    async def make(self, count: int, size: int) -> list[ContentBlob]:
        """Make *count* layers of *size* bytes, which must be at least 32; hashing takes all cores meanwhile."""
        made: list[ContentBlob] = []

        async def one(number: int) -> None:
            made.append(await to_thread.run_sync(self._make, f"layer {number} of {count}", size, limiter=self._threads))

        with only_cause():
            async with anyio.create_task_group() as tg:
                for number in range(1, count + 1):
                    tg.start_soon(one, number)
        return made

    def _make(self, name: str, size: int) -> ContentBlob:
        content = _RandomContent(name, size, secrets.token_bytes(_HEAD_SIZE), self._block)
        sha256 = hashlib.sha256()
        buffer = memoryview(bytearray(min(size, _HASH_SIZE)))
        with content.open() as reader:
            while count := reader.readinto(buffer):
                sha256.update(buffer[:count])
        return ContentBlob(name, Descriptor(_MEDIA_TYPE, Digest(sha256.hexdigest()), size), content)


@dataclass(frozen=True, slots=True)
class _RandomContent:
    """Random bytes (a ``sources.blobs.Content``), read at the speed of memory, from any offset.

    Attributes:
        label: their name in errors.
        size: bytes.
        head: their unique beginning.
        block: what follows, repeated.
    """

    label: str
    size: int
    head: bytes
    block: memoryview

    @contextmanager
    def open(self) -> Iterator[BlobReader]:
        """Read them from the first byte; the reader is a ``SeekableReader``."""
        yield _Reader(self.head, self.block, self.size)


class _Reader(PositionalReader):
    def __init__(self, head: bytes, block: memoryview, size: int) -> None:
        self._head = head
        self._block = block
        self._size = size

    def read_at(self, start: int, buffer: memoryview) -> memoryview:
        requested = buffer[: max(0, self._size - start)]
        head = self._head[start : start + len(requested)]
        filled = len(head)
        requested[:filled] = head
        while filled < len(requested):
            offset = (start + filled) % len(self._block)
            piece = self._block[offset : offset + len(requested) - filled]
            requested[filled : filled + len(piece)] = piece
            filled += len(piece)
        return requested
