"""What all pushes of one run share: limits, memory, the journal, and work that is done once for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import anyio

from asyncpush import open_files
from asyncpush.engine.concurrency import AdaptiveLimiter
from asyncpush.engine.memory import MemoryBudget
from asyncpush.engine.ordering import PipelineEstimator
from asyncpush.engine.parts import worker_threads
from asyncpush.engine.repositories import CreatedRepositories
from asyncpush.errors import SourceError
from asyncpush.events import Emit, Limited, ignore
from asyncpush.http.token_bucket import LimitReporter, TokenBucket
from asyncpush.model import Descriptor, PushedLayer
from asyncpush.protocols import Journal, LayerSender
from asyncpush.settings import Settings
from asyncpush.single_flight import FirstFailure, SingleFlight


@dataclass(frozen=True, slots=True)
class PutManifest:
    """A manifest that was put, and the time on the monotonic clock."""

    outcome: Literal["pushed", "present"]
    at: float


#: Bytes that leave at once under the slowest bandwidth; a third of a second of it.
_SMALLEST_GRANT = 16 * 1024


def _new_brake(settings: Settings, emit: Emit) -> TokenBucket | None:
    bandwidth = settings.bandwidth
    if bandwidth is None:
        return None
    report = LimitReporter(emit, lambda: Limited("bandwidth", bandwidth.rate_now() or 0.0, "user"))
    return TokenBucket(bandwidth.rate_now, smallest=_SMALLEST_GRANT, on_wait=report)


def _unreadable() -> FirstFailure:
    return FirstFailure(SourceError)


@dataclass(frozen=True, slots=True)
class PushContext:
    """What all pushes of one run share.

    Attributes:
        settings: the limits.
        emit: receives the run's events.
        memory: the memory for encoded parts.
        limiter: layers in flight; at most ``Settings.max_layers``.
        journal: records what ECR has acknowledged; None to keep that only in this process.
        pipeline: decides whether a part may leave before the one before it is acknowledged.
        threads: limits the worker threads that read, hash, encode and compress.
        sender: sends the layers that a repository lacks; None sends each layer to one repository.
        unreadable: blobs that could not be read; each is tried once.
        layers: the descriptors of sent layers, by repository and identity; None if the source knew the descriptor.
        manifests: the manifests without a tag that were put, by repository and digest.
        created: the repositories that this run has created.
        sent_before: the layers that images sent before they failed, by destination and identity.
        brake: lets the bytes of layers pass at the rate of ``Settings.bandwidth``; None without one.
    """

    settings: Settings
    emit: Emit
    memory: MemoryBudget
    limiter: AdaptiveLimiter
    journal: Journal | None = None
    pipeline: PipelineEstimator = field(default_factory=lambda: PipelineEstimator(allowed=False))
    threads: anyio.CapacityLimiter = field(default_factory=worker_threads)
    sender: LayerSender | None = None
    unreadable: FirstFailure = field(default_factory=_unreadable)
    layers: SingleFlight[Descriptor | None] = field(default_factory=SingleFlight)
    manifests: SingleFlight[PutManifest] = field(default_factory=SingleFlight)
    created: CreatedRepositories = field(default_factory=CreatedRepositories)
    sent_before: dict[str, Mapping[str, PushedLayer]] = field(default_factory=dict)
    brake: TokenBucket | None = None

    @classmethod
    def of(cls, settings: Settings, emit: Emit = ignore, journal: Journal | None = None) -> PushContext:
        """Make the context of a run with *settings*; call it in an event loop."""
        # The allocator needs a third more: a thread can't reuse what another one has freed.
        memory = MemoryBudget(settings.max_memory * 3 // 4)
        limiter = AdaptiveLimiter(open_files.share(settings.max_layers))
        pipeline = PipelineEstimator(allowed=settings.early_parts)
        created, brake = CreatedRepositories(emit), _new_brake(settings, emit)
        return cls(settings, emit, memory, limiter, journal, pipeline, created=created, brake=brake)

    def for_next_call(self) -> PushContext:
        """Return the context of another call: it tries unreadable blobs again, and has no sender."""
        return replace(self, unreadable=_unreadable(), created=CreatedRepositories(self.emit), sender=None)
