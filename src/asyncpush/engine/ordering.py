"""Parts of one upload, sent in order; where it is worthwhile, a part leaves before the one before it is answered."""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, Awaitable, Callable

import anyio

from asyncpush.errors import InvalidLayerPartError, ServiceError
from asyncpush.protocols import Part

#: Seconds that the transfer of a part must take before the next one may leave early: on a faster network the next part
#: could arrive first.
_SHORTEST_TRANSFER = 0.1

#: Parts that are sent in turn after ECR has refused one that left early.
_PARTS_IN_TURN = 100

#: Consecutive refusals after which no part leaves early any more.
_MAX_REFUSALS = 2


class PipelineEstimator:
    """Decides whether a part may leave before the one before it is answered, from what all layers of a run have seen.

    ECR accepts parts in order and answers each part after storing it, so a layer waits for at least one round trip
    between two parts. The bytes of the next part can travel during that wait: ECR can't check a part's signature before
    it has all of the part. If the next part arrives first, ECR refuses it and it is sent again. Which error ECR returns
    then is unknown, so any refusal counts, and two in a row end early sending.

    Args:
        clock: returns the time in seconds.
        allowed: whether parts may leave early at all; ``Settings.early_parts``.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, allowed: bool = True) -> None:
        self.clock = clock
        self._is_allowed = allowed
        self._answer_time = float("inf")
        self._in_turn = 0
        self._refusals = 0

    def answered(self, seconds: float, *, early: bool = False) -> None:
        """Record the *seconds* between the end of a part's transfer and its answer, and whether it had left *early*."""
        self._answer_time = max(seconds, 0.0 if self._answer_time == float("inf") else self._answer_time * 0.9)
        self._in_turn = max(0, self._in_turn - 1)
        if early:
            self._refusals = 0

    def refused(self) -> None:
        """Record that ECR refused a part that had left early."""
        self._in_turn = max(self._in_turn, _PARTS_IN_TURN)
        self._refusals += 1
        if self._refusals >= _MAX_REFUSALS:
            self.stop()

    def stop(self) -> None:
        """Let no part leave early any more."""
        self._is_allowed = False

    def worthwhile(self, transfer: float, size: int, next_size: int) -> bool:
        """Whether a part of *next_size* bytes may leave now, after *size* bytes have left in *transfer* seconds."""
        if not self._is_allowed or self._in_turn:
            return False
        return transfer * next_size / size >= max(_SHORTEST_TRANSFER, 2 * self._answer_time)


class OrderedSender:
    """Sends the parts of one upload.

    Args:
        send: sends a part; it calls its second argument each time that the whole part has left.
        on_acknowledged: called with each part that ECR has stored.
        pipeline: decides whether a part may leave early.
    """

    def __init__(
        self,
        send: Callable[[Part, Callable[[], None]], Awaitable[None]],
        on_acknowledged: Callable[[Part], None],
        pipeline: PipelineEstimator,
    ) -> None:
        self._send = send
        self._on_acknowledged = on_acknowledged
        self._pipeline = pipeline
        self._last_started = -1

    async def send(self, parts: AsyncIterable[Part]) -> None:
        """Send all of *parts*; at most two are in flight.

        Raises:
            InvalidLayerPartError: a part does not follow what ECR has of the upload.
            UploadNotFoundError: ECR does not know the upload.
        """
        previous: _PartInFlight | None = None
        async with anyio.create_task_group() as tg:
            async for part in parts:
                if previous is not None:
                    await self._wait_for_turn(previous, part.size)
                previous = _PartInFlight(part.size, previous, self._pipeline.clock)
                self._last_started = part.last
                tg.start_soon(self._deliver, part, previous)
                del part  # or it would be held until the next one is made

    async def _wait_for_turn(self, previous: _PartInFlight, next_size: int) -> None:
        if previous.previous is not None:
            await previous.previous.acknowledged.wait()
        await previous.sent.wait()
        if not self._pipeline.worthwhile(previous.transfer_time, previous.size, next_size):
            await previous.acknowledged.wait()

    async def _deliver(self, part: Part, in_flight: _PartInFlight) -> None:
        is_early = in_flight.is_early
        try:
            await self._send(part, in_flight.mark_sent)
        except ServiceError as error:
            if not self._has_arrived(part, error):
                if not is_early:
                    raise
                is_early = False
                self._pipeline.refused()
                await in_flight.wait_for_previous()
                await self._send(part, in_flight.mark_sent)
        in_flight.mark_acknowledged()
        self._pipeline.answered(in_flight.answer_time, early=is_early)
        self._on_acknowledged(part)

    def _has_arrived(self, part: Part, error: ServiceError) -> bool:
        """Whether ECR has the part, and maybe the next one, from an earlier try whose answer was lost."""
        if not isinstance(error, InvalidLayerPartError):
            return False
        return error.last_valid_byte is not None and part.last <= error.last_valid_byte <= self._last_started


class _PartInFlight:
    """A part that was started, and the one before it."""

    def __init__(self, size: int, previous: _PartInFlight | None, clock: Callable[[], float]) -> None:
        self.size = size
        self.previous = previous
        self.sent = anyio.Event()
        self.acknowledged = anyio.Event()
        self.is_early = previous is not None and not previous.acknowledged.is_set()
        self.transfer_time = self.answer_time = 0.0
        self._clock = clock
        self._started_at = self._sent_at = clock()

    def mark_sent(self) -> None:
        self._sent_at = self._clock()
        self.transfer_time = self._sent_at - self._started_at
        self.sent.set()

    def mark_acknowledged(self) -> None:
        self.answer_time = self._clock() - self._sent_at
        self.previous = None
        self.sent.set()
        self.acknowledged.set()

    async def wait_for_previous(self) -> None:
        """Wait until ECR has the part before; this one is sent again from its beginning."""
        if self.previous is not None:
            await self.previous.acknowledged.wait()
        self._started_at = self._clock()
