"""The events of a push. The engine emits them; the progress displays (bars, lines, JSON) show them.

Emitting never waits, and an error in a listener does not stop the push. Sizes are in bytes, times in seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from asyncpush.model import Digest
from asyncpush.redaction import shown

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ImageStarted:
    """The push of an image starts, or its verification; no request was sent yet."""

    source: str
    destination: str


@dataclass(frozen=True, slots=True)
class ImagePlanned:
    """It is known which blobs of an image must be sent; or read back, by a deep verification.

    Attributes:
        layers: the number of blobs to read and send.
        size: their bytes in the source (before compression).
        present_layers: the number of blobs that the repository had before the run.
        present_size: their bytes.
        layer_keys: the names in later events of the blobs to send, so that each is counted once.
        shared_layers: the number of blobs that another image of the run sends, or has sent.
        shared_size: their bytes.
    """

    destination: str
    layers: int
    size: int
    present_layers: int
    present_size: int
    layer_keys: tuple[str, ...] = ()
    shared_layers: int = 0
    shared_size: int = 0


@dataclass(frozen=True, slots=True)
class LayerStarted:
    """The upload of a layer starts; or the download, by a deep verification.

    Attributes:
        layer: a unique key in the run, which names the layer in its later events.
        title: a short name for screens, which other repositories may have, too.
        size: bytes to read from the source.
        destination: the repository.
        blob: equal for layers of several repositories that are sent from one reading; they take one slot.
    """

    layer: str
    title: str
    size: int
    destination: str
    blob: str = ""


@dataclass(frozen=True, slots=True)
class PartSent:
    """ECR has acknowledged a part.

    Attributes:
        read: bytes of the source that were read for the part; negative when a layer starts again.
        sent: bytes of the layer in the part.
    """

    layer: str
    read: int
    sent: int


@dataclass(frozen=True, slots=True)
class PartRead:
    """A deep verification has read and hashed the next ``read`` bytes of a layer in ECR."""

    layer: str
    read: int


@dataclass(frozen=True, slots=True)
class LayerDone:
    """A layer is in the repository.

    Attributes:
        outcome: ``pushed`` by us, ``present`` (LayerAlreadyExistsException), ``mounted`` from another repository, or
            ``read`` back by a deep verification, whatever its bytes are.
    """

    layer: str
    digest: Digest
    outcome: Literal["pushed", "present", "mounted", "read"]


@dataclass(frozen=True, slots=True)
class LayerFailed:
    """The upload of a layer failed, or the download; or was ``interrupted``: cancelled, as by Ctrl-C."""

    layer: str
    interrupted: bool = False


@dataclass(frozen=True, slots=True)
class ImageDone:
    """An image is in the repository, under its tag.

    Attributes:
        outcome: ``pushed``, or ``present`` if the repository had the image already.
    """

    destination: str
    digest: Digest
    outcome: Literal["pushed", "present"]


@dataclass(frozen=True, slots=True)
class ImageVerified:
    """An image was verified, and is ``whole`` or ``broken``; one that can't be verified is an ``ImageFailed``.

    Attributes:
        digest: the digest of its manifest or index; None if there is none.
    """

    destination: str
    digest: Digest | None
    outcome: Literal["whole", "broken"]


@dataclass(frozen=True, slots=True)
class ImageFailed:
    """The push of an image failed, or its verification; ``reason`` is the error in one line."""

    destination: str
    reason: str


@dataclass(frozen=True, slots=True)
class Retrying:
    """A request failed and will be sent again.

    Attributes:
        operation: the name of the operation, such as ``UploadLayerPart``.
        attempt: how often it has failed.
        delay: seconds until it is sent again.
        reason: the failure in one line.
        throttled: whether it failed because it came too soon.
        host: the host that it is sent to; empty if it is not known.
        image: the destination of the image that it is for; empty for none, or for several.
        layer: the key of the layer that it is for; empty for none.
    """

    operation: str
    attempt: int
    delay: float
    reason: str
    throttled: bool = False
    host: str = ""
    image: str = ""
    layer: str = ""


@dataclass(frozen=True, slots=True)
class Unanswered:
    """A host has not answered for a while, and requests wait for it; repeated every second until it answers.

    Attributes:
        host: the host, with its port if it has one.
        seconds: time since its last sign of life.
    """

    host: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Listed:
    """The images of another repository of a migration's sources are known; until all are, so are no totals.

    Attributes:
        repositories: repositories, layouts and archives whose images are known.
        total: all of them.
    """

    repositories: int
    total: int


@dataclass(frozen=True, slots=True)
class Limited:
    """A limit makes requests, or the bytes of layers, wait; at most one event a second for each limit.

    Attributes:
        operation: what waits: an operation of ECR such as ``PutImage``, the host of a source registry, or
            ``bandwidth``.
        rate: requests a second that may start now; bytes a second for ``bandwidth``.
        reason: a ``quota`` of ECR, ECR's ``throttling``, the ``user``, by an option or the plan, or the ``source``,
            whose own limit is used up.
        quota: the quota in requests a second, if the reason is one.
        throttled: requests of the operation that were throttled so far.
        until: when a source takes requests again, in words; empty for other reasons.
    """

    operation: str
    rate: float
    reason: Literal["quota", "throttling", "user", "source"]
    quota: float | None = None
    throttled: int = 0
    until: str = ""


@dataclass(frozen=True, slots=True)
class RequestDone:
    """An attempt of a request has ended; for measurements, not shown by any progress display.

    Attributes:
        operation: the name of the operation, such as ``UploadLayerPart``.
        seconds: time from signing the request to its answer, without the wait for the rate limit.
        outcome: ``succeeded``, ``throttled`` (too many requests), ``refused`` (any other error in an answer), or
            ``unanswered`` (no connection, or a lost one).
    """

    operation: str
    seconds: float
    outcome: Literal["succeeded", "throttled", "refused", "unanswered"]


@dataclass(frozen=True, slots=True)
class Notice:
    """Information for the user that is not a failure."""

    text: str


Event: TypeAlias = (
    ImageStarted
    | ImagePlanned
    | LayerStarted
    | PartSent
    | PartRead
    | LayerDone
    | LayerFailed
    | ImageDone
    | ImageVerified
    | ImageFailed
    | Retrying
    | Unanswered
    | Listed
    | Limited
    | RequestDone
    | Notice
)

Emit: TypeAlias = Callable[[Event], None]


def ignore(event: Event) -> None:
    """Ignore the event: the default ``Emit``."""


@dataclass(frozen=True, slots=True)
class Purpose:
    """What requests are for: the destination of an image, the key of a layer; each may be empty."""

    image: str = ""
    layer: str = ""


_NO_PURPOSE = Purpose()
_purpose: ContextVar[Purpose] = ContextVar("purpose", default=_NO_PURPOSE)


def purpose() -> Purpose:
    """What the requests of this task are for."""
    return _purpose.get()


@contextmanager
def working_on(*, image: str | None = None, layer: str | None = None) -> Iterator[None]:
    """Tell what requests within the block are for, also those of tasks that it starts; None leaves that as it is."""
    outer = _purpose.get()
    token = _purpose.set(Purpose(outer.image if image is None else image, outer.layer if layer is None else layer))
    try:
        yield
    finally:
        _purpose.reset(token)


#: Attributes whose text comes from outside: names in a source, answers of a registry.
_UNTRUSTED_TEXTS = ("source", "destination", "title", "reason", "text", "host", "image")


class Listener:
    """Passes events to the *emit* function of a caller.

    It never fails: after *emit* has raised an exception, it is not called again, and a warning is logged. The events
    that it passes contain no secrets and no control characters.
    """

    def __init__(self, emit: Emit) -> None:
        self._emit: Emit = emit

    def __call__(self, event: Event) -> None:
        """Pass *event* to the caller."""
        try:
            self._emit(_presentable(event))
        except Exception:  # noqa: BLE001 - an error in the caller's code must not stop the push
            self._emit = ignore
            _log.warning("emit raised an exception, and is called no more; the push continues", exc_info=True)


def _presentable(event: Event) -> Event:
    if isinstance(event, PartSent | PartRead | RequestDone):
        return event  # frequent, and without untrusted text
    changed: dict[str, Any] = {}
    for name in _UNTRUSTED_TEXTS:
        text = getattr(event, name, None)
        if isinstance(text, str) and (presentable := shown(text)) != text:
            changed[name] = presentable
    return replace(event, **changed) if changed else event
