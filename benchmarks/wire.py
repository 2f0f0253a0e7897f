"""Traffic, by the endpoints' own logs: requests by kind, and bytes of layers."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from endpoints import Endpoint

Counts = Counter[str]

#: Where UploadLayerPart carries a layer's bytes, they are three quarters of its body: base64.
_PART = "UploadLayerPart"

_KINDS = {
    "uploads": re.compile(r".+/blobs/uploads/?.*"),
    "blob": re.compile(r".+/blobs/[^/]+"),
    "manifest": re.compile(r".+/manifests/[^/]+"),
    "tags": re.compile(r".+/tags/list"),
    "referrers": re.compile(r".+/referrers/[^/]+"),
}
_LOGGED = re.compile(rb'"(GET|HEAD|POST|PATCH|PUT|DELETE) (/v2/[^ "]*)')


@dataclass(frozen=True, slots=True)
class Received:
    """Bytes of layers that a target has received, by what became of them.

    Attributes:
        kept: acknowledged.
        refused: answered with an error.
        cut: the client disconnected before the answer, and can't know whether they were kept.
    """

    kept: int = 0
    refused: int = 0
    cut: int = 0

    @property
    def all(self) -> int:
        """All of them."""
        return self.kept + self.refused + self.cut


@dataclass(frozen=True, slots=True)
class Wire:
    """The traffic up to some moment.

    Attributes:
        target: requests at the target by kind.
        sources: requests at all sources by kind.
        mounted: blobs that were mounted from another repository of the target.
        throttled: requests that the target refused for their rate.
        received: bytes of layers.
    """

    target: Counts = field(default_factory=Counter)
    sources: Counts = field(default_factory=Counter)
    mounted: int = 0
    throttled: int = 0
    received: Received = Received()

    def since(self, before: Wire) -> Wire:
        """The traffic between *before* and this."""
        one, two = self.received, before.received
        return Wire(
            self.target - before.target,
            self.sources - before.sources,
            self.mounted - before.mounted,
            self.throttled - before.throttled,
            Received(one.kept - two.kept, one.refused - two.refused, one.cut - two.cut),
        )

    def document(self) -> dict[str, object]:
        """For JSON."""
        return {
            "target": dict(self.target),
            "sources": dict(self.sources),
            "source_requests": self.sources.total(),
            "mounted": self.mounted,
            "throttled": self.throttled,
            "bytes_kept": self.received.kept,
            "bytes_refused": self.received.refused,
            "bytes_cut": self.received.cut,
            "bytes_received": self.received.all,
        }


def look(target: Endpoint, sources: Iterable[Callable[[], Counts]]) -> Wire:
    """The traffic of *target*, an emulator, and of the sources so far."""
    log = json.loads(target.fetch("/_emulator/requests"))
    fault_config = json.loads(target.fetch("/_emulator/faults"))
    requests = [(kind_of(each["operation"]), each["status"]) for each in log["requests"]]
    return Wire(
        Counter(kind for kind, _ in requests),
        sum((asked() for asked in sources), Counter()),
        sum(kind == "POST uploads" and status == 201 for kind, status in requests),
        sum(rule["count"] for rule in fault_config["hit_counts"]),
        _received(json.loads(target.fetch("/_emulator/received"))["received"]),
    )


def emulator_counts(endpoint: Endpoint) -> Counts:
    """Requests that an emulator has had, by kind."""
    counts: Counts = Counter()
    for operation, count in json.loads(endpoint.fetch("/_emulator/requests"))["counts"].items():
        counts[kind_of(operation)] += count
    return counts


def logged_counts(log: Path) -> Counts:
    """Requests that docker-registry has logged, by kind."""
    found = _LOGGED.findall(log.read_bytes())
    return Counter(kind_of(f"{method.decode()} {path.decode()}") for method, path in found)


def kind_of(operation: str) -> str:
    """An operation's name, or a method and what its path below ``/v2/`` leads to: ``GET blob``."""
    method, space, path = operation.partition(" ")
    if not space or not path.startswith("/v2/"):
        return operation
    path = path.partition("?")[0]
    return f"{method} {next((kind for kind, pattern in _KINDS.items() if pattern.fullmatch(path)), 'other')}"


def under_way(target: Endpoint) -> int:
    """Bytes of layers in all requests that the target has not answered yet, as far as they were announced."""
    announced = json.loads(target.fetch("/_emulator/received"))["underWay"]
    return sum(_layer_bytes(operation, size) for operation, size in announced.items())


def _received(bodies: dict[str, dict[str, int]]) -> Received:
    counts = {"kept": 0, "refused": 0, "cut": 0}
    for operation, by_status in bodies.items():
        for status, size in by_status.items():
            became = "cut" if status == "0" else "kept" if status.startswith("2") else "refused"
            counts[became] += _layer_bytes(operation, size)
    return Received(**counts)


def _layer_bytes(operation: str, size: int) -> int:
    """What a body of *size* bytes brings of a layer; rounded up, since the members around the base64 count."""
    if operation == _PART:
        return -(-size * 3 // 4)
    return size if operation.endswith("-upload") else 0
