"""Parts of one upload, in order: the next one leaves while the one before waits for its answer, where that pays."""

from __future__ import annotations

import time
from collections.abc import AsyncIterable, Awaitable, Callable
from typing import Generic, Protocol, TypeVar

import anyio

from asyncpush.errors import InvalidLayerPartError, ServiceError
from asyncpush.protocols import Part

#: Seconds that a part must have been on its way for the wait behind it to be worth closing. On a fast network the next
#: part would overtake.
_SLOW = 0.1

#: Answered parts for which nothing is sent early after ECR has refused one that was.
_PAUSE = 100

#: Refusals in a row of parts that were sent early, after which none is sent early any more.
_MOST_REFUSALS = 2


class SendablePart(Protocol):
    """What is sent: a part, with whatever else its sender wants to know of it."""

    @property
    def part(self) -> Part:
        """The part."""
        ...


S = TypeVar("S", bound=SendablePart)


class PipelineEstimator:
    """Whether a part may leave before the one before is answered; what all layers of a run have learnt of it.

    ECR takes parts in order, and answers each after it has stored it: a round trip and more, in which the layer would
    stand still. The next part's bytes may travel meanwhile, since ECR can judge a part only when it has all of it, for
    the signature. It must arrive last, by far: else it is refused and must be sent again. What ECR's own code for that
    is, and whether all of ECR does it, is unknown: any refusal counts, and the second in a row ends it.

    Args:
        clock: the time in seconds.
        allowed: whether any part may; ``Settings.early_parts``.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, allowed: bool = True) -> None:
        self.clock = clock
        self._is_allowed = allowed
        self._answer = float("inf")
        self._pause = 0
        self._refusals = 0

    def answered(self, seconds: float, *, early: bool = False) -> None:
        """Hear how long a part, once it had left, waited for its answer; *early*: it was sent early, and taken."""
        self._answer = max(seconds, 0.0 if self._answer == float("inf") else self._answer * 0.9)
        self._pause = max(0, self._pause - 1)
        if early:
            self._refusals = 0

    def refused(self) -> None:
        """Hear that a part that was sent early has been refused."""
        self._pause = max(self._pause, _PAUSE)
        self._refusals += 1
        if self._refusals >= _MOST_REFUSALS:
            self.stop()

    def stop(self) -> None:
        """Send nothing early any more."""
        self._is_allowed = False

    def pays(self, transfer: float, size: int, following: int) -> bool:
        """Whether a part of *following* bytes may leave now, after one of *size* bytes has, in *transfer* seconds."""
        expected = transfer * following / size
        return self._is_allowed and not self._pause and expected >= _SLOW and expected >= 2 * self._answer


class OrderedSender(Generic[S]):
    """Sends the parts of one upload.

    Args:
        send: sends a part, and calls what it is given once all of it has left, each time that it sends it.
        acknowledge: hears of each part that ECR has.
        overlap: what is known of sending early.
    """

    def __init__(
        self,
        send: Callable[[Part, Callable[[], None]], Awaitable[None]],
        acknowledge: Callable[[S], None],
        overlap: PipelineEstimator,
    ) -> None:
        self._send = send
        self._acknowledge = acknowledge
        self._overlap = overlap
        self._handed_over = -1

    async def send(self, parts: AsyncIterable[S]) -> None:
        """Send all of *parts*; two are on their way at the most.

        Raises:
            InvalidLayerPartError: a part does not follow what ECR has of the upload.
            UploadNotFoundError: ECR does not know the upload.
        """
        before: _Sending | None = None
        async with anyio.create_task_group() as tg:
            async for each in parts:
                if before is not None:
                    await self._until_free(before, each.part.size)
                before = _Sending(each.part.size, before, self._overlap.clock)
                self._handed_over = each.part.last
                tg.start_soon(self._deliver, each, before)
                del each  # or it would be held until the next one is there

    async def _until_free(self, before: _Sending, following: int) -> None:
        if before.before is not None:
            await before.before.acknowledged.wait()
        await before.left.wait()
        if not self._overlap.pays(before.transfer, before.size, following):
            await before.acknowledged.wait()

    async def _deliver(self, each: S, sending: _Sending) -> None:
        is_early = sending.is_early
        try:
            await self._send(each.part, sending.leave)
        except ServiceError as error:
            if not self._has_arrived(each.part, error):
                if not is_early:
                    raise
                is_early = False
                self._overlap.refused()
                await sending.follow()
                await self._send(each.part, sending.leave)
        sending.answer()
        self._overlap.answered(sending.waited, early=is_early)
        self._acknowledge(each)

    def _has_arrived(self, part: Part, error: ServiceError) -> bool:
        """Whether an earlier try has arrived whose reply was lost, and perhaps the next part after it."""
        if not isinstance(error, InvalidLayerPartError):
            return False
        return error.last_valid_byte is not None and part.last <= error.last_valid_byte <= self._handed_over


class _Sending:
    """A part of some bytes on its way, and the one before it."""

    def __init__(self, size: int, before: _Sending | None, clock: Callable[[], float]) -> None:
        self.size = size
        self.before = before
        self.left = anyio.Event()
        self.acknowledged = anyio.Event()
        self.is_early = before is not None and not before.acknowledged.is_set()
        self.transfer = self.waited = 0.0
        self._clock = clock
        self._began = self._left = clock()

    def leave(self) -> None:
        """All of it was handed to the network."""
        self._left = self._clock()
        self.transfer = self._left - self._began
        self.left.set()

    def answer(self) -> None:
        """ECR has it."""
        self.waited = self._clock() - self._left
        self.before = None
        self.left.set()
        self.acknowledged.set()

    async def follow(self) -> None:
        """Wait until ECR has the part before; then this one is sent from its beginning."""
        if self.before is not None:
            await self.before.acknowledged.wait()
        self._began = self._clock()
