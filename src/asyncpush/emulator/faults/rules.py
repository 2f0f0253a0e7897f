"""Fault rules, throttles and the whole fault configuration; each rule and throttle has a form of one line of text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Literal

from asyncpush.emulator.faults.operations import NAMES, V2, matching
from asyncpush.errors import UsageError
from asyncpush.units import format_number, parse_duration, parse_size

Action = Literal[
    "throttle",
    "server-error",
    "unavailable",
    "bad-gateway",
    "reset-before",
    "reset-during",
    "reset-after",
    "lost-reply",
    "slow-reply",
    "stall",
    "availability",
    "layers-not-found",
    "expired-token",
    "access-denied",
    "upload-expired",
    "retry-after",
    "unauthorized",
    "range-invalid",
]


@dataclass(frozen=True, slots=True)
class ActionKind:
    """Which requests an action applies to, and which value it takes.

    Attributes:
        operations: globs of the requests that it applies to.
        value: the kind of its value; None if it takes none.
    """

    operations: tuple[str, ...] = ("*",)
    value: Literal["seconds", "availability", "size"] | None = None


_BODIES = (f"{V2}POST-upload", f"{V2}PATCH-upload", f"{V2}PUT-upload")

ACTIONS: Mapping[Action, ActionKind] = {
    "throttle": ActionKind(),
    "server-error": ActionKind(),
    "unavailable": ActionKind(),
    "bad-gateway": ActionKind(),
    "reset-before": ActionKind(),
    "reset-during": ActionKind(_BODIES, value="size"),
    "reset-after": ActionKind(),
    "lost-reply": ActionKind(),
    "slow-reply": ActionKind(value="seconds"),
    "stall": ActionKind((f"{V2}*",), value="seconds"),
    "availability": ActionKind(("BatchCheckLayerAvailability",), value="availability"),
    "layers-not-found": ActionKind(("PutImage",)),
    "expired-token": ActionKind(),
    "access-denied": ActionKind(),
    "upload-expired": ActionKind(("UploadLayerPart", "CompleteLayerUpload", f"{V2}*-upload")),
    "retry-after": ActionKind((f"{V2}*",), value="seconds"),
    "unauthorized": ActionKind((f"{V2}*",)),
    "range-invalid": ActionKind((f"{V2}PATCH-upload", f"{V2}PUT-upload")),
}

#: The conditions of a rule, in the order in which they are written.
CONDITIONS = ("nth", "every", "first", "after", "probability", "limit", "lag")

#: A glob of repositories' names in a rule's text.
_GLOB = re.compile(r"[^,:\s]+")

_VALUES = {
    "seconds": "SECONDS",
    "availability": "AVAILABLE or availability=UNAVAILABLE",
    "size": "BYTES",
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One rule: which requests it selects, and what happens to which of them.

    It counts the requests that its operation and repository select; all of its conditions must hold for it to fire.

    Attributes:
        operation: a glob of operations' names, or of ``v2:METHOD-KIND`` (base, blob, manifest, referrers, tags,
            upload), such as ``v2:GET-blob``.
        action: what happens.
        repository: a glob of repositories' names; ``*`` stands for slashes, too.
        nth: fire for this request only, counted from 1.
        every: fire for each request whose number this divides.
        first: fire for the first requests, this many.
        after: skip the first requests, this many.
        probability: fire by chance, 0 to 1.
        limit: fire this often at most.
        lag: with ``layers-not-found``, fire while a layer of the manifest was completed less than these seconds ago.
        seconds: how long: with ``slow-reply``, the answer is delayed; with ``stall``, nothing more is received; with
            ``retry-after``, the client is told to wait.
        size: with ``reset-during``, after how many bytes of the body the connection is reset; they are kept.
        available: with ``availability``, whether all layers are answered to be available.

    Raises:
        UsageError: a value is invalid.
    """

    operation: str
    action: Action
    _: KW_ONLY
    repository: str = "*"
    nth: int | None = None
    every: int | None = None
    first: int | None = None
    after: int | None = None
    probability: float | None = None
    limit: int | None = None
    lag: float | None = None
    seconds: float | None = None
    size: int | None = None
    available: bool | None = None

    def __post_init__(self) -> None:
        check_operation(self.operation)
        if not _GLOB.fullmatch(self.repository):
            raise UsageError(f"invalid repository {self.repository!r}", hint="use a name or a glob, such as team/*")
        _check_action(self)
        for name in ("nth", "every", "first", "limit"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UsageError(f"invalid {name} {getattr(self, name)}", hint="use 1 or more")
        if self.after is not None and self.after < 0:
            raise UsageError(f"invalid after {self.after}", hint="use 0 or more")
        if self.probability is not None and not 0 <= self.probability <= 1:
            raise UsageError(f"invalid probability {self.probability}", hint="use 0 to 1")
        _check_seconds(self)

    def selects(self, operation: str) -> bool:
        """Whether it selects requests of this name."""
        fits = any(fnmatchcase(operation, glob) for glob in ACTIONS[self.action].operations)
        return fits and fnmatchcase(operation, self.operation)

    @property
    def is_particular(self) -> bool:
        """Whether a request's body must be read to decide if it fires, or to act."""
        return self.repository != "*" or self.action in ("layers-not-found", "upload-expired", "access-denied")

    def __str__(self) -> str:
        """The rule as the command line takes it."""
        selected = self.operation if self.repository == "*" else f"{self.operation},repository={self.repository}"
        return ":".join(word for word in (selected, ",".join(self._conditions()), self._act()) if word)

    def _conditions(self) -> Iterator[str]:
        for name in CONDITIONS:
            value = getattr(self, name)
            if value is not None:
                yield f"{name}={format_number(value)}"

    def _act(self) -> str:
        if self.seconds is not None:
            return f"{self.action}={format_number(self.seconds)}"
        if self.size is not None:
            return f"{self.action}={self.size}"
        if self.available is not None:
            return f"{self.action}={'AVAILABLE' if self.available else 'UNAVAILABLE'}"
        return self.action


def _check_action(fault: Fault) -> None:
    kind = ACTIONS.get(fault.action)
    if kind is None:
        raise UsageError(f"unknown action {fault.action!r}", hint=f"use one of: {', '.join(ACTIONS)}")
    if not any(fault.selects(name) for name in NAMES):
        raise UsageError(
            f"{fault.action} does not apply to {fault.operation}", hint=f"use it for {' or '.join(kind.operations)}"
        )
    given = {
        "seconds": fault.seconds is not None,
        "size": fault.size is not None,
        "availability": fault.available is not None,
    }
    for value, is_given in given.items():
        if is_given != (kind.value == value):
            hint = f"write {fault.action}={_VALUES[kind.value]}" if kind.value else f"write {fault.action}"
            raise UsageError(f"{fault.action} {'takes no such' if is_given else 'needs a'} value", hint=hint)
    if fault.size is not None and fault.size < 1:
        raise UsageError(f"invalid size {fault.size}", hint="use 1 byte or more")
    if fault.lag is not None and fault.action != "layers-not-found":
        raise UsageError("lag applies to layers-not-found only", hint="use first= or after= with other actions")


def _check_seconds(fault: Fault) -> None:
    for name in ("lag", "seconds"):
        value = getattr(fault, name)
        if value is not None and not 0 <= value < math.inf:
            raise UsageError(f"invalid {name} {value}", hint="use 0 seconds or more")


@dataclass(frozen=True, slots=True)
class Throttle:
    """The rate limit of an operation, for each account: a bucket of *burst* requests that gains *rate* a second.

    Attributes:
        operation: as in ``Fault``; each operation that it selects has a bucket of its own.
        rate: requests a second.
        burst: requests that may arrive at once; None is one second's worth, at least 1.

    Raises:
        UsageError: a value is invalid.
    """

    operation: str
    rate: float
    burst: int | None = None

    def __post_init__(self) -> None:
        check_operation(self.operation)
        if not 0 < self.rate < math.inf:
            raise UsageError(f"invalid rate {self.rate}", hint="use requests a second, more than 0")
        if self.burst is not None and self.burst < 1:
            raise UsageError(f"invalid burst {self.burst}", hint="use 1 or more")

    @property
    def size(self) -> float:
        """How many requests the full bucket holds."""
        return self.burst or max(1.0, self.rate)

    def __str__(self) -> str:
        """The throttle as the command line takes it."""
        burst = "" if self.burst is None else f":{self.burst}"
        return f"{self.operation}={format_number(self.rate)}{burst}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultConfig:
    """The faults of an emulator; without arguments, there are none.

    Attributes:
        latency: seconds that each request takes longer, as one round trip.
        jitter: seconds by which that varies, up and down.
        bandwidth: bytes a second, for each connection and direction; None is no limit.
        throttles: rate limits; of several for one operation, the first counts.
        quotas: ``"aws"`` for ECR's documented rates where no throttle says otherwise.
        faults: rules in order: the first that fires acts.
        seed: makes chance repeatable; None draws anew each time.

    Raises:
        UsageError: a value is invalid.
    """

    latency: float = 0.0
    jitter: float = 0.0
    bandwidth: float | None = None
    throttles: tuple[Throttle, ...] = ()
    quotas: Literal["aws"] | None = None
    faults: tuple[Fault, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("latency", "jitter"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"invalid {name} {getattr(self, name)}", hint="use 0 seconds or more")
        if self.bandwidth is not None and not 0 < self.bandwidth < math.inf:
            raise UsageError(f"invalid bandwidth {self.bandwidth}", hint="use more than 0 bytes a second, or none")

    @property
    def is_empty(self) -> bool:
        """Whether it changes nothing."""
        return self in (FaultConfig(), FaultConfig(seed=self.seed))


def check_operation(glob: str) -> None:
    """Check that a glob selects an operation.

    Raises:
        UsageError: it selects no operation of the emulator's.
    """
    if not matching(glob):
        near = get_close_matches(glob, NAMES, n=1)
        hint = f"did you mean {near[0]}?" if near else f"use one of ECR's, such as PutImage, or {V2}GET-blob, or *"
        raise UsageError(f"unknown operation {glob!r}", hint=hint)


_FORM = "write OPERATION[,repository=GLOB][:CONDITION=VALUE,...]:ACTION, such as PutImage:first=2:throttle"

_OPERATION = re.compile(r"(?:v2:)?[^,:=]+")

_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?(?:e-?[0-9]+)?")

_AVAILABILITY = {"AVAILABLE": True, "UNAVAILABLE": False}

_WHOLE = ("nth", "every", "first", "after", "limit")

_THROTTLE = re.compile(r"(?P<operation>[^=]+)=(?P<rate>[^:]+)(?::(?P<burst>[0-9]{1,9}))?")


def parse_fault(text: str) -> Fault:
    """Read a rule.

    Raises:
        UsageError: it is malformed; the message quotes it.
    """
    with _naming("rule", text):
        operation = _OPERATION.match(text.strip())
        rest = text.strip()[operation.end() :] if operation else ""
        middle, colon, act = rest.rpartition(":")
        if operation is None or not colon or not act:
            raise UsageError("the action is missing", hint=_FORM)
        selected = dict(_conditions(middle))
        return Fault(operation=operation[0], **_action(act), **selected)  # type: ignore[arg-type]


def parse_throttle(text: str) -> Throttle:
    """Read ``OPERATION=RATE[:BURST]``.

    Raises:
        UsageError: it is malformed; the message quotes it.
    """
    with _naming("throttle", text):
        match = _THROTTLE.fullmatch(text.strip())
        if match is None or not _NUMBER.fullmatch(match["rate"]):
            raise UsageError(
                "the rate is missing or invalid", hint="write OPERATION=RATE[:BURST], such as PutImage=10:20"
            )
        burst = match["burst"]
        return Throttle(match["operation"], float(match["rate"]), None if burst is None else int(burst))


def _conditions(text: str) -> Iterator[tuple[str, str | float]]:
    found: set[str] = set()
    for word in re.split("[,:]", text)[1:]:
        name, _, value = word.partition("=")
        if name not in CONDITIONS and name != "repository":
            known = ", ".join(CONDITIONS)
            raise UsageError(f"unknown condition {name!r}", hint=f"use one of: {known}, repository")
        if name in found:
            raise UsageError(f"{name} is given twice", hint="remove one")
        if not value:
            raise UsageError(f"{name} has no value", hint=f"write {name}=VALUE")
        found.add(name)
        yield name, _value(name, value)


def _value(name: str, text: str) -> str | float:
    if name == "repository":
        return text
    if name == "lag":
        return _seconds(text)
    if name in _WHOLE and re.fullmatch(r"[0-9]{1,9}", text):
        return int(text)
    if name == "probability" and _NUMBER.fullmatch(text):
        return float(text)
    kind = "a number from 0 to 1" if name == "probability" else "a whole number"
    raise UsageError(f"invalid {name} {text!r}", hint=f"use {kind}")


def _action(text: str) -> Mapping[str, object]:
    name, equals, value = text.partition("=")
    kind = next((kind for action, kind in ACTIONS.items() if action == name), None)
    if kind is None or not equals:
        return {"action": name}
    if kind.value == "seconds":
        return {"action": name, "seconds": _seconds(value)}
    if kind.value == "size":
        return {"action": name, "size": parse_size(value)}
    if kind.value == "availability" and value in _AVAILABILITY:
        return {"action": name, "available": _AVAILABILITY[value]}
    if kind.value == "availability":
        return {"action": name}
    raise UsageError(f"{name} takes no value", hint=f"write {name}")


def _seconds(text: str) -> float:
    return float(text) if _NUMBER.fullmatch(text) else parse_duration(text)


@contextmanager
def _naming(what: str, text: str) -> Iterator[None]:
    """Quote *text* in the message of what is wrong with it."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"invalid {what} {text!r}: {error.message}", hint=error.hint) from error
