"""What was asked of the emulator, and how it ended; for tests and for those who watch."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass

#: Requests that are remembered; older ones are forgotten, so that a server that runs for weeks does not grow.
_REMEMBERED = 100_000


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request: the operation's name, or method and path below ``/v2/``; and the HTTP status of its answer.

    The status is 0 where faults cut the connection before anything was done.
    """

    operation: str
    status: int


class RequestLog(deque[RequestRecord]):
    """The last requests, oldest first."""

    def __init__(self) -> None:
        super().__init__(maxlen=_REMEMBERED)

    def record(self, operation: str, status: int) -> None:
        """Append a request."""
        self.append(RequestRecord(operation, status))

    def counts(self) -> Counter[str]:
        """How many there were of each operation."""
        return Counter(record.operation for record in self)
