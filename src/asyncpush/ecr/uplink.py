"""The line to ECR: no more parts are on their way than it carries while their signatures are good.

A signature is good for five minutes, and ECR looks at it when it has all of a part. Many parts that share a slow line
would all come too late, and be sent in vain. So few parts begin, and more follow as answers show what the line carries:
what has left this machine may lie in buffers on the way, which take megabytes of each connection at once. A line that
gets slower shows in what leaves, too; where parts would come too late then, those of which least has left are taken off
the line again.
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
from asyncpush.settings import MIN_PART_SIZE, SIGNATURE_LIFETIME

#: Shares of a signature's life: the time that all parts on their way may take when one more begins; the age at which
#: one may be expected before others leave the line to it, and that at which it should be then.
_AIM, _TOO_LATE, _IN_TIME = 0.4, 0.8, 0.6

#: Likewise: between two looks at what has left, over which looks the line is measured, and what a part should take.
_LOOK, _WINDOW, _PART = 1 / 300, 1 / 10, 0.1

#: The most that buffers on the way can hold of a connection: what Linux gives one to receive into (``tcp_rmem``).
_BUFFERED = 6 * 1024 * 1024

#: Bytes a second that the line is known to carry at first: two parts of 10 MiB are on their way by that.
_AT_FIRST = 234_000

#: Shares of a signature's life: between two looks while nothing is known, and the age of a part that arrived late.
_FIRST_LOOK, _LATE = 1 / 6000, 0.5

#: Of a connection that is closed: nothing of what has not left yet is sent any more.
_NO_LINGER = struct.pack("ii", 1, 0)

#: How many times as wide the line may be found than it was thought to be: by a part that took less time, and by a look.
_BY_PART, _BY_LOOK = 2.0, 1.1


class StoppedError(Exception):
    """A part was taken off the line, or has outlived its signature: it waits for its turn, and is sent again."""


class PartTransfer:
    """A part on its way.

    Attributes:
        size: bytes of its body.
        began: when it was sent, the last time that it was.
        taken: bytes of it that the peer has taken.
        may_stop: whether it may be taken off the line.
        stopped: whether it was taken off the line.
        moved: called when it has been seen that the peer has taken more.
    """

    def __init__(self, size: int, clock: Callable[[], float], passed: Callable[[], int], *, may_stop: bool) -> None:
        self.size = size
        self.may_stop = may_stop
        self.began = clock()
        self.taken = 0
        self.stopped = False
        self.moved: Callable[[], None] | None = None
        self._clock = clock
        self._passed = passed
        self._passed_before = 0
        self._writer: Any = None

    @property
    def age(self) -> float:
        """Seconds since it was sent."""
        return self._clock() - self.began

    @property
    def rest(self) -> int:
        """Bytes that the peer has not taken."""
        return 0 if self.stopped else max(self.size - self.taken, 0)

    @property
    def passed(self) -> int:
        """Bytes of it that have passed the line, whatever buffers hold."""
        return max(self.taken - _BUFFERED, 0)

    @property
    def carried(self) -> float:
        """Bytes a second that have passed the line since it was sent, of all parts, now that it has arrived."""
        return (self._passed() - self.passed + self.size - self._passed_before) / max(self.age, 1e-6)

    @property
    def is_leaving(self) -> bool:
        """Whether its bytes are on their way."""
        return self._writer is not None and bool(self.rest)

    def begin(self, writer: Any) -> None:
        """Hear that its body is about to be written, by aiohttp's *writer*."""
        self.began = self._clock()
        self.taken = 0
        self.stopped = False
        self._passed_before = self._passed()
        self._writer = writer
        # Its own wait for the answer begins again while the peer takes what is left (``moved``).
        writer.protocol.read_timeout = None

    def look(self) -> int:
        """See how many bytes the peer has taken since the last look."""
        transport = self._writer and self._writer.transport
        if transport is None:
            return 0
        more = int(min(self._writer.output_size - unsent(transport), self.size)) - self.taken
        if more <= 0:
            return 0
        self.taken += more
        if self.moved:
            self.moved()
        return more

    def end(self) -> None:
        """Let go of its connection, which knows its body, and through that itself."""
        self._writer = self.moved = None

    def stop(self) -> None:
        """Take it off the line."""
        self.stopped = True
        transport = self._writer and self._writer.transport
        if transport is not None:
            self._writer.protocol.set_exception(aiohttp.ServerDisconnectedError("it has left the line to others"))
            # Or the system would go on sending what it has of it.
            with suppress(OSError, AttributeError):
                transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            transport.abort()


class Uplink:
    """The line to one endpoint, and the parts that share it.

    As long as the line carries all that is on its way within two minutes, nothing waits. Where it doesn't, the parts
    whose uploads have come farthest go first, so that layers end one after the other instead of all at the end.

    Args:
        tell: tells the user that the line is slow.
        lifetime: seconds for which a signature is good.
        clock: the time in seconds.

    Attributes:
        lifetime: as it was given.
        rate: bytes a second that the line carries; None before that is known.
    """

    def __init__(
        self,
        tell: Callable[[str], None],
        lifetime: float = SIGNATURE_LIFETIME,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lifetime = lifetime
        self.rate: float | None = None
        self._proven: float = _AT_FIRST
        self._arrived = 0
        self._tell = tell
        self._clock = clock
        self._transfers: set[PartTransfer] = set()
        self._waiting: list[tuple[int, int, PartTransfer, anyio.Event]] = []
        self._asked = count()
        self._looks: deque[tuple[float, int]] = deque()
        self._looked = self._cleared = 0.0
        self._late_since = math.inf
        self._was_full = self._is_watched = False
        self._ended = 0

    def part_size(self, asked: int) -> int:
        """Bytes of an upload's parts, where ECR asks for *asked*: the least, where such parts take long."""
        slow = self.rate is not None and self.rate * self.lifetime * _PART < asked * 4 / 3
        return min(asked, MIN_PART_SIZE) if slow else asked

    @asynccontextmanager
    async def transfer(self, first: int, size: int, *, may_stop: bool = True) -> AsyncIterator[PartTransfer]:
        """Wait until the line has room for a part whose body has *size* bytes, and have that for the block.

        Args:
            first: the part's first byte in its upload.
            size: bytes of its body.
            may_stop: whether it may be taken off the line again; bytes that have left are then lost.
        """
        transfer, granted = PartTransfer(size, self._clock, self._passed, may_stop=may_stop), anyio.Event()
        heapq.heappush(self._waiting, (-first, next(self._asked), transfer, granted))
        self._grant()
        try:
            await granted.wait()
            yield transfer
        finally:
            transfer.end()
            self._leave(transfer)

    def answer_timeout(self) -> float:
        """Seconds in which a part arrives that has left: buffers on the way may hold all of it, and others.

        It is twice what the line needs for all, by what is known of it.
        """
        return 2 * sum(transfer.size - transfer.passed for transfer in self._transfers) / self._proven

    def arrived(self, transfer: PartTransfer) -> None:
        """Hear that ECR has answered for a part."""
        self._ended += transfer.size - transfer.taken
        if transfer.age > self.lifetime * _LATE:
            self._slow(transfer.carried)
        else:
            self._proven = max(self._proven, transfer.carried)
            alone = transfer.size / max(transfer.age, 1e-6)
            if self.rate is not None and alone > self.rate:
                self.rate = min(alone, self.rate * _BY_PART)
        self._arrived += transfer.size
        transfer.taken = 0

    def outlived(self, transfer: PartTransfer) -> None:
        """Hear that a part has come after its signature's end."""
        self._slow(min(self.rate or math.inf, transfer.size / transfer.age))

    def _passed(self) -> int:
        """Bytes that have passed the line, of all parts so far."""
        return self._arrived + sum(transfer.passed for transfer in self._transfers)

    def _look_later(self) -> None:
        share = _FIRST_LOOK if self._proven == _AT_FIRST else _LOOK
        asyncio.get_running_loop().call_later(self.lifetime * share, self._tick)

    def _tick(self) -> None:
        self.look()
        if self._transfers:
            self._look_later()
        else:
            self._was_full = self._is_watched = False

    def look(self) -> None:
        """See what has left since the last look, and what the line carries by that."""
        now, moved = self._clock(), self._ended
        self._ended = 0
        for transfer in self._transfers:
            moved += transfer.look()
            if transfer.passed:
                self._proven = max(self._proven, transfer.passed / transfer.age)
        is_full = any(transfer.is_leaving for transfer in self._transfers)
        if is_full and self._was_full:
            self._looks.append((now - self._looked, moved))
        self._was_full, self._looked = is_full, now
        seconds = sum(seconds for seconds, _ in self._looks)
        if seconds < self.lifetime * _WINDOW:
            self._grant()
            return
        # Where nothing leaves at all, that is silence and no slow line: others see to that.
        if (carried := sum(moved for _, moved in self._looks)) and now > self._cleared:
            self.rate = min(carried / seconds, (self.rate or math.inf) * _BY_LOOK)
            self._relieve(now, self.rate)
            if self._waiting and self._rest + self._waiting[0][2].size > self.rate * self.lifetime * _AIM:
                self._tell_rate(self.rate)
        while self._looks and seconds - self._looks[0][0] >= self.lifetime * _WINDOW:
            seconds -= self._looks.popleft()[0]
        self._grant()

    def _relieve(self, now: float, rate: float) -> None:
        """Where a part would come too late, take those off the line of which least has left."""
        leaving = sorted((each for each in self._transfers if each.is_leaving), key=lambda each: each.taken)
        if _latest(leaving, now, rate) <= self.lifetime * _TOO_LATE:
            self._late_since = math.inf
            return
        self._late_since = min(self._late_since, now)
        if now - self._late_since < self.lifetime * _WINDOW:
            return
        self._slow(rate)
        for each in [each for each in leaving[:-1] if each.may_stop]:
            leaving.remove(each)
            each.stop()
            # Until it is through, what has left of it takes its share of a line on which much is buffered.
            self._cleared = max(now, self._cleared) + each.taken / rate
            if _latest(leaving, now, rate) <= self.lifetime * _IN_TIME:
                return

    def _slow(self, rate: float) -> None:
        self.rate = rate
        self._proven = min(self._proven, rate)
        self._tell_rate(rate)

    def _tell_rate(self, rate: float) -> None:
        self._tell(f"the line to ECR carries about {rate / 1000:,.0f} kB/s: fewer parts are sent at once")

    def _leave(self, transfer: PartTransfer) -> None:
        if transfer in self._transfers:
            self._transfers.discard(transfer)
        else:
            self._waiting = [place for place in self._waiting if place[2] is not transfer]
            heapq.heapify(self._waiting)
        self._grant()

    def _has_room(self, size: int) -> bool:
        if not self._transfers:
            return True
        unproven = size + sum(transfer.size - transfer.passed for transfer in self._transfers)
        within = self.lifetime * _AIM
        return unproven <= self._proven * within and (self.rate is None or self._rest + size <= self.rate * within)

    @property
    def _rest(self) -> int:
        return sum(transfer.rest for transfer in self._transfers)

    def _grant(self) -> None:
        while self._waiting and self._has_room(self._waiting[0][2].size):
            _, _, transfer, granted = heapq.heappop(self._waiting)
            self._transfers.add(transfer)
            granted.set()
            if not self._is_watched:
                self._is_watched, self._looked = True, self._clock()
                self._look_later()


def _latest(leaving: Sequence[PartTransfer], now: float, rate: float) -> float:
    """The greatest age at which one of *leaving* arrives, if they share the line alike."""
    rest = sum(each.rest for each in leaving)
    return max((now - each.began + min(rest, each.rest * len(leaving)) / rate for each in leaving), default=0.0)
