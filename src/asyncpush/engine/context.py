"""What all pushes of one run share: limits, memory, the journal, and work that is done once for all of them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import anyio

from asyncpush import open_files
from asyncpush.engine.concurrency import AdaptiveLimiter
from asyncpush.engine.memory import MemoryBudget
from asyncpush.engine.ordering import PipelineEstimator
from asyncpush.engine.parts import worker_threads
from asyncpush.errors import SourceError
from asyncpush.events import Emit, ignore
from asyncpush.model import Descriptor
from asyncpush.protocols import Journal, LayerSender
from asyncpush.settings import Settings
from asyncpush.single_flight import FirstFailure, SingleFlight


@dataclass(frozen=True, slots=True)
class PutManifest:
    """A manifest that was put, and the time on the monotonic clock."""

    outcome: Literal["pushed", "present"]
    at: float


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
        created: the repositories that this run has created, by address.
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
    created: SingleFlight[bool] = field(default_factory=SingleFlight)

    @classmethod
    def of(cls, settings: Settings, emit: Emit = ignore, journal: Journal | None = None) -> PushContext:
        """Make the context of a run with *settings*; call it in an event loop."""
        # The allocator needs a third more: a thread can't reuse what another one has freed.
        memory = MemoryBudget(settings.max_memory * 3 // 4)
        limiter = AdaptiveLimiter(open_files.share(settings.max_layers))
        return cls(settings, emit, memory, limiter, journal, PipelineEstimator(allowed=settings.early_parts))

    def for_next_call(self) -> PushContext:
        """Return the context of another call: it tries unreadable blobs again, and has no sender."""
        return replace(self, unreadable=_unreadable(), sender=None)
