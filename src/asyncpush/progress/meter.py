"""Adds up the events of a run: bytes, rates, time left, images and layers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from asyncpush.events import (
    Event,
    ImageDone,
    ImageFailed,
    ImagePlanned,
    ImageStarted,
    ImageVerified,
    LayerDone,
    LayerFailed,
    LayerStarted,
    Limited,
    Listed,
    PartRead,
    PartSent,
    Retrying,
    Unanswered,
)
from asyncpush.progress.rates import WINDOW, Rate, Trend

#: The share of the bytes left that must have been read to predict the others.
_FORETOLD = 0.01

#: What a layer costs besides its bytes, where requests are limited: it takes three, and a part holds 10 MiB.
_LAYER_COST = 3 * 10 * 1024 * 1024

#: Operations whose limits make layers wait.
_LAYER_OPERATIONS = frozenset({"InitiateLayerUpload", "UploadLayerPart", "CompleteLayerUpload"})

Clock: TypeAlias = Callable[[], float]

#: Seconds for which a limit binds after it made something wait: it is reported once a second while it does.
_BINDS = 2.5


@dataclass(slots=True)
class LayerProgress:
    """A layer in flight.

    Attributes:
        title: its title.
        repository: where it goes.
        destination: the image that it counts for.
        size: bytes to read.
        rate: its rate.
        blob: equal for layers that are read together.
        read: bytes that were read.
    """

    title: str
    repository: str
    destination: str
    size: int
    rate: Rate
    blob: str
    read: int = 0


class RepositoryNames:
    """The shortest names that tell repositories apart: as many of the last words of their paths as that takes."""

    def __init__(self) -> None:
        self._known: set[str] = set()
        self._uses: Counter[str] = Counter()

    def add(self, repository: str) -> None:
        """Learn that there is *repository*."""
        if repository not in self._known:
            self._known.add(repository)
            self._uses.update(_endings(repository))

    def short(self, repository: str) -> str:
        """The shortest ending of *repository* that no other one has; empty if there is no other one."""
        if self._known == {repository}:
            return ""
        return next((ending for ending in _endings(repository) if self._uses[ending] <= 1), repository)


def _endings(repository: str) -> Iterator[str]:
    words = repository.split("/")
    return ("/".join(words[first:]) for first in range(len(words) - 1, -1, -1))


@dataclass(frozen=True, slots=True)
class Totals:
    """The progress of a run. Sizes are bytes of the sources, times are seconds, rates are bytes a second.

    Attributes:
        images: how many there will be, as far as known.
        size: bytes to read in total; extrapolated if ``estimated``, since some images were not analyzed yet.
        in_flight: layers that are being sent; one that goes to several repositories at once counts once.
        present_layers: layers that their repositories had before the run.
        shared_layers: layers that other images of the run send to the same repositories.
        images_present: images that were there before the run.
        listing: of the repositories of the sources, how many are listed, and how many there are; None once all are.
            Until then, no total is known.
        rate: over the last seconds; None while no layer is being sent.
        left: seconds left: for the bytes at this rate, or for the images at the pace at which they end, if that is what
            the run waits for; None if unknown.
        retries: requests that were sent again.
        throttled: those of them that had come too soon.
    """

    images: int
    images_done: int
    images_failed: int
    layers: int
    layers_done: int
    in_flight: int
    present_layers: int
    read: int
    size: int
    estimated: bool
    rate: float | None
    left: float | None
    elapsed: float
    retries: int = 0
    throttled: int = 0
    shared_layers: int = 0
    images_present: int = 0
    listing: tuple[int, int] | None = None

    @property
    def percent(self) -> int:
        """The share of the bytes that have been read; 100 only once all have, and all images have ended."""
        has_ended = self.images_done + self.images_failed >= self.images and self.layers_done >= self.layers
        part = 100 * self.read // self.size if self.read < self.size else 100
        return part if has_ended else min(part, 99)


@dataclass(slots=True)
class _Share:
    """The share of one destination: bytes planned, begun and read; layers planned but not done, present, shared."""

    planned: int = 0
    begun: int = 0
    read: int = 0
    layers: int = 0
    present: int = 0
    shared: int = 0
    ended: bool = False
    keys: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return self.read if self.ended else max(self.planned, self.begun)


@dataclass(slots=True)
class _Images:
    """The destinations that are images, by progress."""

    started: set[str] = field(default_factory=set)
    done: set[str] = field(default_factory=set)
    present: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)
    sized: set[str] = field(default_factory=set)


class Meter:
    """Adds up events. An event costs a few microseconds, regardless of the number of layers and images.

    Args:
        clock: a clock, in seconds.
        images: how many images there will be; None if only events tell.
    """

    def __init__(self, clock: Clock, images: int | None = None) -> None:
        self._clock = clock
        self._began = clock()
        self._expected_images = images or 0
        self._shares: dict[str, _Share] = {}
        self._images = _Images()
        self._layers: dict[str, LayerProgress] = {}
        self._blobs = Counter[str]()
        self._owners: dict[str, str] = {}
        self._layers_planned = self._layers_begun = self._layers_done = self._present = self._shared = 0
        self._read = self._size = 0
        self._rate = Rate(self._began)
        self._trend, self._cost_trend, self._image_trend = Trend(), Trend(), Trend()
        self._layers_left = 0
        self._retries = self._throttled = 0
        self._limits: dict[str, tuple[float, Limited]] = {}
        self._silent: dict[str, tuple[float, Unanswered]] = {}
        self._images_waited = self._layers_waited = -math.inf
        self._listing: tuple[int, int] | None = None
        self.repositories = RepositoryNames()

    @property
    def silent(self) -> list[Unanswered]:
        """The hosts that requests wait for now."""
        now = self._clock()
        return [
            replace(event, seconds=event.seconds + now - since)
            for since, event in self._silent.values()
            if now - since <= _BINDS
        ]

    @property
    def limits(self) -> list[Limited]:
        """The limits that make something wait now."""
        now = self._clock()
        return [limited for since, limited in self._limits.values() if now - since <= _BINDS]

    @property
    def layers(self) -> Mapping[str, LayerProgress]:
        """The layers in flight, oldest first."""
        return self._layers

    def moving(self, most: int) -> list[LayerProgress]:
        """At most so many of the layers in flight, oldest first: those of which bytes move, then others."""
        if len(self._layers) <= most:
            return list(self._layers.values())
        now = self._clock()
        keys = sorted(self._layers, key=lambda key: not self._layers[key].rate.at(now))[: max(most, 0)]
        shown = set(keys)
        return [layer for key, layer in self._layers.items() if key in shown]

    def name(self, layer: LayerProgress) -> str:
        """The repository and the title of *layer*, as short as they differ from others."""
        return f"{self.repositories.short(layer.repository)} {layer.title}".lstrip()

    def take(self, event: Event) -> None:
        """Count *event*; an event of an unknown layer changes nothing."""
        match event:
            case PartSent() | PartRead():
                self._part_done(event)
            case Retrying() | Limited() | Unanswered() | Listed():
                self._waits(event)
            case LayerStarted():
                self._layer_started(event)
            case LayerDone():
                self._layer_done(event)
            case LayerFailed():
                self._layer_failed(event)
            case ImageStarted():
                self._image_started(event.destination)
            case ImagePlanned():
                self._image_planned(event)
            case ImageDone() | ImageVerified() | ImageFailed():
                self._image_ended(event)
            case _:
                pass

    def totals(self) -> Totals:
        """The progress now."""
        now = self._clock()
        images = max(self._expected_images, len(self._images.started))
        sized = len(self._images.sized)
        estimated = 0 < sized < images and self._size > 0
        size = self._size * images // sized if estimated else self._size
        rate = self._rate.at(now) if self._layers else None
        return Totals(
            images=images,
            images_done=len(self._images.done),
            images_failed=len(self._images.failed),
            layers=max(self._layers_planned, self._layers_begun),
            layers_done=self._layers_done,
            in_flight=len(self._blobs),
            present_layers=self._present,
            read=self._read,
            size=size,
            estimated=estimated,
            rate=rate,
            left=self._left(now, max(size - self._read, 0), rate, images),
            elapsed=now - self._began,
            retries=self._retries,
            throttled=self._throttled,
            shared_layers=self._shared,
            images_present=len(self._images.present),
            listing=self._listing,
        )

    def _left(self, now: float, bytes_left: int, rate: float | None, images: int) -> float | None:
        """The seconds left: for the bytes, and for what waits for the rate of requests."""
        if bytes_left and not (rate and self._rate.is_steady(now) and self._read >= _FORETOLD * bytes_left):
            return None
        lefts: list[float | None] = [bytes_left / (self._trend.at(now) or rate)] if bytes_left and rate else []
        if not bytes_left or now - self._layers_waited <= WINDOW:
            sized = len(self._images.sized)
            layers_left = max(self._layers_left, 0) * (images / sized if 0 < sized < images else 1)
            lefts.append(self._cost_trend.left(now, _LAYER_COST * layers_left + bytes_left))
        if not bytes_left or now - self._images_waited <= WINDOW:
            lefts.append(self._image_trend.left(now, images - len(self._images.done) - len(self._images.failed)))
        return max((left for left in lefts if left), default=None)

    def _waits(self, event: Retrying | Limited | Unanswered | Listed) -> None:
        match event:
            case Limited(operation="PutImage") | Retrying(operation="PutImage", throttled=True):
                self._images_waited = self._clock()
            case Limited() | Retrying(throttled=True) if event.operation in _LAYER_OPERATIONS:
                self._layers_waited = self._clock()
            case _:
                pass
        if isinstance(event, Listed):
            self._listing = (event.repositories, event.total) if event.repositories < event.total else None
        elif isinstance(event, Limited):
            self._limits[event.operation] = self._clock(), event
        elif isinstance(event, Unanswered):
            self._silent[event.host] = self._clock(), event
        else:
            self._retries += 1
            self._throttled += event.throttled

    def _share(self, destination: str) -> _Share:
        return self._shares.setdefault(destination, _Share())

    @contextmanager
    def _resizing(self, share: _Share) -> Iterator[None]:
        self._size -= share.size
        yield
        self._size += share.size

    def _change(self, share: _Share, *, planned: int = 0, begun: int = 0, read: int = 0) -> None:
        with self._resizing(share):
            share.planned += planned
            share.begun += begun
            share.read += read
        self._read += read

    def _part_done(self, event: PartSent | PartRead) -> None:
        layer = self._layers.get(event.layer)
        if layer is None:
            return
        if not layer.read:
            self._cost_trend.add(self._clock(), 2 * _LAYER_COST // 3)
        layer.read += event.read
        self._change(self._share(layer.destination), read=event.read)
        # Bytes that ECR had from an earlier run, and bytes that are read again, do not count for the rate.
        if event.read > 0 and (isinstance(event, PartRead) or event.sent > 0):
            now = self._clock()
            layer.rate.add(now, event.read)
            self._rate.add(now, event.read)
            self._trend.add(now, event.read)
            self._cost_trend.add(now, event.read)
            self._image_trend.begin_later(now)

    def _layer_started(self, event: LayerStarted) -> None:
        now = self._clock()
        if not self._layers:
            self._rate.resume(now)
            self._trend.begin(now)
            self._cost_trend.begin(now)
        # A layer goes into a repository; its bytes count for the image that planned it.
        destination = self._owners.get(event.layer, event.destination)
        self.repositories.add(event.destination)
        self._end_flight(event.layer)
        blob = event.blob or event.layer
        self._blobs[blob] += 1
        self._layers[event.layer] = LayerProgress(
            event.title, event.destination, destination, event.size, Rate(now), blob
        )
        self._layers_begun += 1
        self._change(self._share(destination), begun=event.size)

    def _end_flight(self, key: str) -> LayerProgress | None:
        layer = self._layers.pop(key, None)
        if layer is not None:
            self._blobs[layer.blob] -= 1
            if not self._blobs[layer.blob]:
                del self._blobs[layer.blob]
        return layer

    def _layer_done(self, event: LayerDone) -> None:
        layer = self._end_flight(event.layer)
        self._owners.pop(event.layer, None)
        if layer is None:
            return
        self._layers_done += 1
        self._cost_trend.add(self._clock(), _LAYER_COST // 3)
        rest = layer.size - layer.read
        share = self._share(layer.destination)
        share.layers -= 1
        self._layers_left -= not share.ended
        if event.outcome not in ("pushed", "read"):
            self._present += 1
            self._change(share, planned=-rest, begun=-rest)
        else:
            self._change(share, read=rest)

    def _layer_failed(self, event: LayerFailed) -> None:
        layer = self._end_flight(event.layer)
        if layer is not None:
            rest = layer.size - layer.read
            self._change(self._share(layer.destination), planned=-rest, begun=-rest)

    def _image_started(self, destination: str) -> None:
        images, share = self._images, self._share(destination)
        self._image_trend.begin(self._clock())
        images.started.add(destination)
        for group in (images.done, images.present, images.failed, images.sized):
            group.discard(destination)
        # An image that is tried again is planned again; what was read before stays counted.
        self._layers_planned -= max(share.layers, 0)
        self._layers_left -= 0 if share.ended else max(share.layers, 0)
        self._present -= share.present
        self._shared -= share.shared
        share.layers = share.present = share.shared = 0
        with self._resizing(share):
            share.ended = False
            share.planned = share.begun = share.read

    def _image_planned(self, event: ImagePlanned) -> None:
        self._images.sized.add(event.destination)
        self._layers_planned += event.layers
        self._layers_left += event.layers
        self._present += event.present_layers
        self._shared += event.shared_layers
        share = self._share(event.destination)
        share.layers += event.layers
        share.present += event.present_layers
        share.shared += event.shared_layers
        self._owners.update(dict.fromkeys(event.layer_keys, event.destination))
        share.keys = event.layer_keys
        self._change(share, planned=event.size)

    def _image_ended(self, event: ImageDone | ImageVerified | ImageFailed) -> None:
        outcome = "failed" if isinstance(event, ImageFailed) else event.outcome
        group = self._images.failed if outcome in ("failed", "broken") else self._images.done
        present = [self._images.present] if outcome == "present" else []
        destination = event.destination
        for images in (self._images.started, self._images.sized, group, *present):
            images.add(destination)
        if not present:
            self._image_trend.add(self._clock(), 1)
        share = self._share(destination)
        self._layers_left -= 0 if share.ended else max(share.layers, 0)
        for key in share.keys:  # mounted layers never started
            if self._owners.get(key) == destination:
                del self._owners[key]
        share.keys = ()
        with self._resizing(share):
            share.ended = True
