"""One push, measured: seconds, processor time, and how each request ended."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import anyio

from asyncpush.bench.trials import Trial
from asyncpush.connection import Registry, engine_of
from asyncpush.engine.layer import push_layer
from asyncpush.errors import only_cause
from asyncpush.events import Emit, Event, RequestDone, Retrying
from asyncpush.protocols import Repository
from asyncpush.sources.blobs import ContentBlob

GiB = 1024**3


@dataclass(frozen=True, slots=True)
class Sample:
    """What one push took.

    Attributes:
        turn: which push it was.
        seconds: from the first layer's start to the last one's end.
        cpu: processor seconds of this process meanwhile, of all its threads, user and system.
        requests: every request that ended meanwhile.
        retried: requests that were sent again.
    """

    turn: Trial
    seconds: float
    cpu: float
    requests: tuple[RequestDone, ...]
    retried: int

    @property
    def rate(self) -> float:
        """Bytes of layers a second; over the wire go a third more."""
        return self.turn.combination.total / self.seconds

    @property
    def cpu_per_gib(self) -> float:
        """Processor seconds for each GiB of layers."""
        return self.cpu * GiB / self.turn.combination.total

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
    """An ``Emit`` that keeps what a sample needs, and passes all on.

    Args:
        face: who else listens.
    """

    def __init__(self, face: Emit) -> None:
        self._face = face
        self.forget()

    def __call__(self, event: Event) -> None:
        """Take *event*."""
        if isinstance(event, RequestDone):
            self.requests.append(event)
        elif isinstance(event, Retrying):
            self.retried += 1
        self._face(event)

    def forget(self) -> None:
        """Begin again."""
        self.requests: list[RequestDone] = []
        self.retried = 0


async def measure(
    turn: Trial, registry: Registry, repository: Repository, layers: Sequence[ContentBlob], recorder: Recorder
) -> Sample:
    """Push *layers* and say what it took.

    Args:
        turn: which push it is.
        registry: a connection of its own, so that each push opens its connections as any other does.
        repository: where they go, over that connection.
        layers: what is pushed; hashed already, as an image's are.
        recorder: hears that connection's events.

    Raises:
        RegistryError: the endpoint refused, or could not be reached in spite of all retries.
    """
    # Credentials are looked for with the first request: that is not a part of a push's speed.
    await repository.available([layers[0].descriptor.digest])
    recorder.forget()
    context = engine_of(registry).context
    cpu, began = time.process_time(), time.perf_counter()
    with only_cause():
        async with anyio.create_task_group() as tg:
            for layer in layers:
                tg.start_soon(push_layer, repository, layer, context)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    return Sample(turn, seconds, cpu, tuple(recorder.requests), recorder.retried)
