"""What can happen during a push, as values. The engine emits them; faces (bars, lines, JSON) draw them.

Emitting never waits, and its failure is nobody's else. All sizes are in bytes, all times in seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from asyncpush.model import Digest
from asyncpush.redaction import shown

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ImageStarted:
    """An image's turn has come; nothing was asked or sent yet."""

    source: str
    destination: str


@dataclass(frozen=True, slots=True)
class ImagePlanned:
    """What one image needs is known.

    Attributes:
        layers: blobs that will be read and sent.
        size: their bytes, as the source holds them (before compression).
        present_layers: blobs that the repository has already.
        present_size: their bytes.
        layer_keys: what the blobs that will be sent are called in their own events, so that they are counted once.
    """

    destination: str
    layers: int
    size: int
    present_layers: int
    present_size: int
    layer_keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LayerStarted:
    """A layer is about to be sent. ``layer`` names it in all its later events.

    Attributes:
        layer: a key unique in the run.
        title: a short name for screens.
        size: bytes to read from the source.
    """

    layer: str
    title: str
    size: int
    destination: str


@dataclass(frozen=True, slots=True)
class PartSent:
    """ECR has acknowledged a part.

    Attributes:
        read: bytes of the source that this part accounts for; may be negative after a restart of the layer.
        sent: bytes of the layer that were uploaded with it.
    """

    layer: str
    read: int
    sent: int


@dataclass(frozen=True, slots=True)
class LayerDone:
    """A layer is in the repository.

    Attributes:
        outcome: ``pushed`` by us, ``present`` (LayerAlreadyExistsException), or ``mounted`` from another repository.
    """

    layer: str
    digest: Digest
    outcome: Literal["pushed", "present", "mounted"]


@dataclass(frozen=True, slots=True)
class LayerFailed:
    """A layer was given up."""

    layer: str


@dataclass(frozen=True, slots=True)
class ImageDone:
    """An image is in the repository, under its tag.

    Attributes:
        outcome: ``pushed``, or ``present`` where nothing had to be put.
    """

    destination: str
    digest: Digest
    outcome: Literal["pushed", "present"]


@dataclass(frozen=True, slots=True)
class ImageFailed:
    """An image was given up; ``reason`` is the one line that says why."""

    destination: str
    reason: str


@dataclass(frozen=True, slots=True)
class Retrying:
    """A request failed and will be sent again after ``delay`` seconds."""

    operation: str
    attempt: int
    delay: float
    reason: str


@dataclass(frozen=True, slots=True)
class RequestDone:
    """A request has ended, whichever way; each try is one. For those who measure: no face shows it.

    Attributes:
        operation: its name, such as ``UploadLayerPart``.
        seconds: from signing it to its answer; what it waited for its turn before is not counted.
        outcome: ``succeeded``, ``throttled`` (refused for its rate), ``refused`` (any other error in an answer), or
            ``unanswered`` (no connection, or a lost one).
    """

    operation: str
    seconds: float
    outcome: Literal["succeeded", "throttled", "refused", "unanswered"]


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that a user should read, but no failure."""

    text: str


Event: TypeAlias = (
    ImageStarted
    | ImagePlanned
    | LayerStarted
    | PartSent
    | LayerDone
    | LayerFailed
    | ImageDone
    | ImageFailed
    | Retrying
    | RequestDone
    | Notice
)

Emit: TypeAlias = Callable[[Event], None]


def ignore(event: Event) -> None:
    """An ``Emit`` for those who do not listen."""


#: Members with text of others: names at a source, answers of a registry.
_FOREIGN = ("source", "destination", "title", "reason", "text")


class Listener:
    """What passes events on to an *emit* of a caller's.

    It never fails: once *emit* has raised, it is called no more, and a warning in the log says so. What it passes on
    shows no secret, and nothing that would drive a terminal.
    """

    def __init__(self, emit: Emit) -> None:
        self._emit: Emit = emit

    def __call__(self, event: Event) -> None:
        """Pass *event* on."""
        try:
            self._emit(_presentable(event))
        except Exception:  # noqa: BLE001 - a listener of the caller's: whatever is wrong with it, the push must go on
            self._emit = ignore
            _log.warning("emit raised an exception, and is called no more; the push continues", exc_info=True)


def _presentable(event: Event) -> Event:
    if isinstance(event, PartSent | RequestDone):
        return event  # the many
    changed: dict[str, Any] = {}
    for name in _FOREIGN:
        text = getattr(event, name, None)
        if isinstance(text, str) and (presentable := shown(text)) != text:
            changed[name] = presentable
    return replace(event, **changed) if changed else event
