"""The bandwidth to ECR, shared between parts so that each part arrives while its signature is valid.

A signature is valid for five minutes, and ECR checks it once it has the whole part. If many parts shared a slow
connection, all of them would arrive too late. So few parts start at first, and more follow as answers show how fast the
connection is: bytes that have left this machine may still lie in buffers on the way, which hold megabytes of each TCP
connection. If the connection gets so slow that parts would arrive too late, the parts of which the fewest bytes have
left are stopped and sent again later.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import socket
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from itertools import count
from typing import Any

import aiohttp
import anyio

from asyncpush.ecr.request_body import unsent
from asyncpush.http.token_bucket import TokenBucket
from asyncpush.settings import MIN_PART_SIZE, SIGNATURE_LIFETIME

#: All times are shares of a signature's lifetime. A part starts if all parts then arrive within this time.
_TARGET = 0.4

#: The age at which a part may be expected to arrive before others are stopped for it, and the age to reach by that.
_TOO_LATE, _IN_TIME = 0.8, 0.6

#: The age at which a part that arrives has been late.
_LATE = 0.5

#: What one part should take at most.
_PART = 0.1

#: The time between two measurements, at first and then, and the time over which the rate is an average.
_FIRST_INTERVAL, _INTERVAL, _WINDOW = 1 / 6000, 1 / 300, 1 / 10

#: The most that buffers on the way hold of one connection: the largest receive buffer of Linux (``tcp_rmem``).
_MAX_BUFFERED = 6 * 1024 * 1024

#: The time within which all parts must arrive if a brake sets the rate: a part that is interrupted is sent again.
_BRAKED_TARGET = 1 / 30

#: The share of the brake's rate above which it is the brake that makes the connection slow.
_BRAKED = 0.5

#: The assumed rate before anything is measured, in bytes a second: it lets two parts of 10 MiB start.
_INITIAL_RATE = 234_000

#: The most that one part, or one measurement, may raise the rate by.
_MAX_RAISE_BY_PART, _MAX_RAISE_BY_MEASUREMENT = 2.0, 1.1

#: SO_LINGER that discards the socket's unsent bytes when it is closed.
_NO_LINGER = struct.pack("ii", 1, 0)


class TransferStoppedError(Exception):
    """A part was stopped to make room for others, or its signature expired on the way; it has to be sent again."""


class PartTransfer:
    """A part that is being sent.

    Attributes:
        size: bytes of its request body.
        started_at: when it was last started.
        accepted: bytes that the peer has accepted.
        may_stop: whether it may be stopped.
        is_stopped: whether it was stopped.
        brake: limits how fast its body is written; None does not.
        on_progress: called when the peer is seen to have accepted more.
    """

    def __init__(
        self,
        size: int,
        clock: Callable[[], float],
        total: Callable[[], int],
        *,
        may_stop: bool,
        brake: TokenBucket | None = None,
    ) -> None:
        self.size = size
        self.may_stop = may_stop
        self.brake = brake
        self.started_at = clock()
        self.accepted = 0
        self.is_stopped = False
        self.on_progress: Callable[[], None] | None = None
        self._clock = clock
        self._total = total
        self._total_at_start = 0
        self._writer: Any = None

    @property
    def age(self) -> float:
        """Seconds since the part was started."""
        return self._clock() - self.started_at

    @property
    def remaining(self) -> int:
        """Bytes that the peer has not accepted."""
        return 0 if self.is_stopped else max(self.size - self.accepted, 0)

    @property
    def delivered(self) -> int:
        """Bytes that have arrived for certain, however much the buffers on the way hold."""
        return max(self.accepted - _MAX_BUFFERED, 0)

    @property
    def throughput(self) -> float:
        """Bytes a second that all parts together delivered while this one, which has now arrived, was sent."""
        return (self._total() - self.delivered + self.size - self._total_at_start) / max(self.age, 1e-6)

    @property
    def is_leaving(self) -> bool:
        """Whether the part was started, and bytes of it have not left yet."""
        return self._writer is not None and bool(self.remaining)

    def start(self, writer: Any) -> None:
        """Note that aiohttp's *writer* is about to write the body."""
        self.started_at = self._clock()
        self.accepted = 0
        self.is_stopped = False
        self._total_at_start = self._total()
        self._writer = writer
        # The wait for the answer has a timeout of its own, which restarts on progress.
        writer.protocol.read_timeout = None

    def measure(self) -> int:
        """Bytes that the peer has accepted since the last measurement."""
        transport = self._writer and self._writer.transport
        if transport is None:
            return 0
        progress = int(min(self._writer.output_size - unsent(transport), self.size)) - self.accepted
        if progress <= 0:
            return 0
        self.accepted += progress
        if self.on_progress:
            self.on_progress()
        return progress

    def release(self) -> None:
        """Drop the references to the connection, which refers to its body, and so to this object."""
        self._writer = self.on_progress = None

    def stop(self) -> None:
        """Abort the connection, so that other parts have its bandwidth."""
        self.is_stopped = True
        transport = self._writer and self._writer.transport
        if transport is not None:
            self._writer.protocol.set_exception(aiohttp.ServerDisconnectedError("stopped to make room for other parts"))
            # Otherwise the kernel would go on sending what it has buffered.
            with suppress(OSError, AttributeError):
                transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            transport.abort()


class Uplink:
    """The bandwidth to one endpoint, and the parts that share it.

    While all parts in flight arrive within two minutes, no part waits. Otherwise the parts that are farthest into their
    layer go first, so that layers complete one after the other instead of all at the end.

    Args:
        notify: tells the user that the connection is slow.
        lifetime: seconds for which a signature is valid.
        clock: returns the time in seconds.
        brake: limits the bandwidth of all endpoints together; None does not.

    Attributes:
        lifetime: seconds for which a signature is valid.
        rate: the measured rate in bytes a second; None until the connection has been found to be slow.
    """

    def __init__(
        self,
        notify: Callable[[str], None],
        lifetime: float = SIGNATURE_LIFETIME,
        clock: Callable[[], float] = time.monotonic,
        brake: TokenBucket | None = None,
    ) -> None:
        self.lifetime = lifetime
        self._brake = brake
        self.rate: float | None = None
        self._proven_rate: float = _INITIAL_RATE
        self._arrived = 0
        self._notify = notify
        self._clock = clock
        self._transfers: set[PartTransfer] = set()
        self._waiting: list[tuple[int, int, PartTransfer, anyio.Event]] = []
        self._tickets = count()
        self._samples: deque[tuple[float, int]] = deque()
        self._measured_at = self._cleared_at = 0.0
        self._late_since = math.inf
        self._was_busy = self._is_watched = False
        self._unmeasured = 0

    def part_size(self, requested: int) -> int:
        """The size of an upload's parts: the minimum if *requested* bytes would take long, otherwise *requested*."""
        rate = min(self.rate or math.inf, self._braked_rate)
        is_slow = rate * self.lifetime * _PART < requested * 4 / 3
        return min(requested, MIN_PART_SIZE) if is_slow else requested

    @asynccontextmanager
    async def transfer(self, first: int, size: int, *, may_stop: bool = True) -> AsyncIterator[PartTransfer]:
        """Wait until there is room for a part, and reserve that for the block.

        Args:
            first: the part's first byte in its layer.
            size: bytes of its request body.
            may_stop: whether the part may be stopped for others; the bytes that have left are then lost.
        """
        transfer = PartTransfer(size, self._clock, self._total_delivered, may_stop=may_stop, brake=self._brake)
        granted = anyio.Event()
        heapq.heappush(self._waiting, (-first, next(self._tickets), transfer, granted))
        self._grant()
        try:
            await granted.wait()
            yield transfer
        finally:
            transfer.release()
            self._remove(transfer)

    def answer_timeout(self) -> float:
        """Seconds to wait for the answer to a part that has left: buffers on the way may still hold all parts.

        It is twice the time that all parts take at the proven rate.
        """
        return 2 * sum(transfer.size - transfer.delivered for transfer in self._transfers) / self._proven_rate

    def note_arrival(self, transfer: PartTransfer) -> None:
        """Note that ECR has answered a part."""
        self._unmeasured += transfer.size - transfer.accepted
        if transfer.age > self.lifetime * _LATE:
            self._lower_rate(transfer.throughput)
        else:
            self._proven_rate = max(self._proven_rate, transfer.throughput)
            part_rate = transfer.size / max(transfer.age, 1e-6)
            if self.rate is not None and part_rate > self.rate:
                self.rate = min(part_rate, self.rate * _MAX_RAISE_BY_PART)
        self._arrived += transfer.size
        transfer.accepted = 0

    def note_expiry(self, transfer: PartTransfer) -> None:
        """Note that a part arrived after its signature had expired."""
        self._lower_rate(min(self.rate or math.inf, transfer.size / transfer.age))

    def measure(self) -> None:
        """Measure the rate from what has left since the last measurement; stop or start parts accordingly."""
        now, sent = self._clock(), self._unmeasured
        self._unmeasured = 0
        for transfer in self._transfers:
            sent += transfer.measure()
            if transfer.delivered:
                self._proven_rate = max(self._proven_rate, transfer.delivered / transfer.age)
        is_busy = any(transfer.is_leaving for transfer in self._transfers)
        if is_busy and self._was_busy:
            self._samples.append((now - self._measured_at, sent))
        self._was_busy, self._measured_at = is_busy, now
        seconds = sum(seconds for seconds, _ in self._samples)
        if seconds < self.lifetime * _WINDOW:
            self._grant()
            return
        # A connection on which nothing leaves at all is silent, not slow: the timeouts of bodies handle that.
        if (total := sum(sent for _, sent in self._samples)) and now > self._cleared_at:
            self.rate = min(total / seconds, (self.rate or math.inf) * _MAX_RAISE_BY_MEASUREMENT)
            self._stop_late_parts(now, self.rate)
            if self._waiting and self._remaining + self._waiting[0][2].size > self.rate * self.lifetime * _TARGET:
                self._notify_slow(self.rate)
        while self._samples and seconds - self._samples[0][0] >= self.lifetime * _WINDOW:
            seconds -= self._samples.popleft()[0]
        self._grant()

    def _stop_late_parts(self, now: float, rate: float) -> None:
        """If a part would arrive too late, stop parts, those first of which the fewest bytes have left."""
        leaving = sorted(
            (transfer for transfer in self._transfers if transfer.is_leaving), key=lambda transfer: transfer.accepted
        )
        if _latest_arrival(leaving, now, rate) <= self.lifetime * _TOO_LATE:
            self._late_since = math.inf
            return
        self._late_since = min(self._late_since, now)
        if now - self._late_since < self.lifetime * _WINDOW:
            return
        self._lower_rate(rate)
        for transfer in [transfer for transfer in leaving[:-1] if transfer.may_stop]:
            leaving.remove(transfer)
            transfer.stop()
            # What has left of it still takes bandwidth until the buffers on the way are empty.
            self._cleared_at = max(now, self._cleared_at) + transfer.accepted / rate
            if _latest_arrival(leaving, now, rate) <= self.lifetime * _IN_TIME:
                return

    def _lower_rate(self, rate: float) -> None:
        self.rate = rate
        self._proven_rate = min(self._proven_rate, rate)
        self._notify_slow(rate)

    def _notify_slow(self, rate: float) -> None:
        if rate > _BRAKED * self._braked_rate:
            return
        self._notify(f"the connection to ECR carries about {rate / 1000:,.0f} kB/s: sending fewer parts at once")

    def _grant(self) -> None:
        """Start the parts in the queue that there is room for."""
        while self._waiting and self._has_room(self._waiting[0][2].size):
            _, _, transfer, granted = heapq.heappop(self._waiting)
            self._transfers.add(transfer)
            granted.set()
            if not self._is_watched:
                self._is_watched, self._measured_at = True, self._clock()
                self._schedule_measurement()

    def _has_room(self, size: int) -> bool:
        if not self._transfers:
            return True
        in_flight = size + sum(transfer.size - transfer.delivered for transfer in self._transfers)
        seconds, remaining = self.lifetime * _TARGET, self._remaining + size
        if remaining > self._braked_rate * self.lifetime * _BRAKED_TARGET:
            return False
        return in_flight <= self._proven_rate * seconds and remaining <= (self.rate or math.inf) * seconds

    def _schedule_measurement(self) -> None:
        interval = _FIRST_INTERVAL if self._proven_rate == _INITIAL_RATE else _INTERVAL
        asyncio.get_running_loop().call_later(self.lifetime * interval, self._tick)

    def _tick(self) -> None:
        self.measure()
        if self._transfers:
            self._schedule_measurement()
        else:
            self._was_busy = self._is_watched = False

    def _remove(self, transfer: PartTransfer) -> None:
        if transfer in self._transfers:
            self._transfers.discard(transfer)
        else:
            self._waiting = [entry for entry in self._waiting if entry[2] is not transfer]
            heapq.heapify(self._waiting)
        self._grant()

    def _total_delivered(self) -> int:
        return self._arrived + sum(transfer.delivered for transfer in self._transfers)

    @property
    def _braked_rate(self) -> float:
        """The rate that the brake allows; infinite without one."""
        return (self._brake.rate if self._brake is not None else None) or math.inf

    @property
    def _remaining(self) -> int:
        return sum(transfer.remaining for transfer in self._transfers)


def _latest_arrival(leaving: Sequence[PartTransfer], now: float, rate: float) -> float:
    """The greatest age at which one of *leaving* arrives, if they share *rate* equally."""
    total = sum(transfer.remaining for transfer in leaving)
    return max(
        (now - transfer.started_at + min(total, transfer.remaining * len(leaving)) / rate for transfer in leaving),
        default=0.0,
    )
