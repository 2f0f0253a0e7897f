"""The requests of a run, by operation: how many were sent, sent again and throttled, and how fast they may be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from asyncpush.events import Event, PartSent, RequestDone, Retrying


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """The requests of a run, by operation: ``PutImage``, or ``GET blob`` at a source.

    Attributes:
        requests: requests that were sent, retries included.
        retries: requests that were sent again, for any reason.
        throttled: requests that were refused because they came too soon.
        pace: requests a second that may start, of each operation of ECR that a limit holds now.
    """

    requests: Mapping[str, int] = field(default_factory=dict)
    retries: Mapping[str, int] = field(default_factory=dict)
    throttled: Mapping[str, int] = field(default_factory=dict)
    pace: Mapping[str, float] = field(default_factory=dict)

    def document(self) -> dict[str, dict[str, int] | dict[str, float]]:
        """The members of a JSON document."""
        return {
            "requests": dict(sorted(self.requests.items())),
            "retries": dict(sorted(self.retries.items())),
            "throttled": dict(sorted(self.throttled.items())),
            "pace": {operation: round(rate, 3) for operation, rate in sorted(self.pace.items())},
        }


def total(parts: Iterable[Traffic]) -> Traffic:
    """The traffic of several processes together."""
    requests, retries, throttled = Counter[str](), Counter[str](), Counter[str]()
    pace: dict[str, float] = {}
    for part in parts:
        requests.update(part.requests)
        retries.update(part.retries)
        throttled.update(part.throttled)
        for operation, rate in part.pace.items():
            pace[operation] = pace.get(operation, 0.0) + rate
    return Traffic(requests=requests, retries=retries, throttled=throttled, pace=pace)


class TrafficCounter:
    """Counts retries, throttles and bytes: call it with each event.

    Attributes:
        sent: bytes of layers that were sent.
    """

    def __init__(self) -> None:
        self.sent = 0
        self._retries = Counter[str]()
        self._throttled = Counter[str]()
        self._timed: set[str] = set()

    def __call__(self, event: Event) -> None:
        """Take an event in."""
        match event:
            case PartSent():
                self.sent += event.sent
            case RequestDone():
                self._timed.add(event.operation)
                if event.outcome == "throttled":
                    self._throttled[event.operation] += 1
            case Retrying():
                self._retries[event.operation] += 1
                if event.throttled and event.operation not in self._timed:  # requests to sources have no RequestDone
                    self._throttled[event.operation] += 1
            case _:
                pass

    def traffic(self, requests: Mapping[str, int], pace: Mapping[str, float]) -> Traffic:
        """The traffic so far, with what others have counted."""
        return Traffic(
            requests=Counter(requests),
            retries=Counter(self._retries),
            throttled=Counter(self._throttled),
            pace=dict(pace),
        )
