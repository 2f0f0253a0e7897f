"""Adds up the events of a run: bytes, rates, time left, images and layers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias

from asyncpush.events import (
    Event,
    ImageDone,
    ImageFailed,
    ImagePlanned,
    ImageStarted,
    LayerDone,
    LayerFailed,
    LayerStarted,
    Limited,
    PartSent,
    Retrying,
)

Clock: TypeAlias = Callable[[], float]

#: ECR takes about 0.3 s for a part of 10 MiB, so this spans about 30 parts of each layer: stable, but not sluggish.
WINDOW = 10.0

#: Parts that end within this time share a sample, so that the cost of a rate does not depend on the number of parts.
_SAMPLE = 0.25

#: A rate over less time is meaningless.
_SHORTEST = 0.5

#: Before a rate is this old, it can't predict the time left.
_FORECAST = 2.0


#: Seconds for which a limit binds after it made something wait: it is reported once a second while it does.
_BINDS = 2.5


class Rate:
    """Bytes a second over the last ``WINDOW`` seconds."""

    __slots__ = ("_moved", "_samples", "_since", "_sum")

    def __init__(self, now: float) -> None:
        self._samples: deque[tuple[float, int]] = deque()
        self._since = now
        self._sum = 0
        self._moved = False

    def resume(self, now: float) -> None:
        """Restart the time, unless bytes moved recently: idle time before the first byte does not count."""
        self._forget(now)
        if not self._samples:
            self._since = now

    def add(self, now: float, size: int) -> None:
        """Count *size* bytes at *now*."""
        self._sum += size
        self._moved = True
        if self._samples and now - self._samples[-1][0] < _SAMPLE:
            began, so_far = self._samples[-1]
            self._samples[-1] = (began, so_far + size)
            return
        self._forget(now)
        self._samples.append((now, size))

    def at(self, now: float) -> float | None:
        """The rate at *now*; None before the first byte."""
        self._forget(now)
        if not self._moved:
            return None
        return self._sum / max(min(now - self._since, WINDOW), _SHORTEST)

    def is_steady(self, now: float) -> bool:
        """Whether it is old enough to predict the time left."""
        return now - self._since >= _FORECAST

    def _forget(self, now: float) -> None:
        while self._samples and now - self._samples[0][0] > WINDOW:
            self._sum -= self._samples.popleft()[1]


@dataclass(slots=True)
class LayerProgress:
    """A layer in flight: its title, the bytes read of its ``size``, and its rate."""

    title: str
    destination: str
    size: int
    rate: Rate
    read: int = 0


@dataclass(frozen=True, slots=True)
class Totals:
    """The progress of a run. Sizes are bytes of the sources, times are seconds, rates are bytes a second.

    Attributes:
        images: how many there will be, as far as known.
        size: bytes to read in total; extrapolated if ``estimated``, since some images were not analyzed yet.
        in_flight: layers that are being sent.
        present_layers: layers that did not have to be sent.
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

    @property
    def percent(self) -> int:
        """The share of the bytes that have been read; 100 only once all have."""
        return 100 if self.read >= self.size else 100 * self.read // self.size


@dataclass(slots=True)
class _Share:
    """The share of one destination: bytes planned, begun and read, and layers planned but not done."""

    planned: int = 0
    begun: int = 0
    read: int = 0
    layers: int = 0
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
        self._owners: dict[str, str] = {}
        self._layers_planned = self._layers_begun = self._layers_done = self._present = 0
        self._read = self._size = 0
        self._rate = Rate(self._began)
        self._pace = Rate(self._began)
        self._retries = self._throttled = 0
        self._limits: dict[str, tuple[float, Limited]] = {}

    @property
    def limits(self) -> list[Limited]:
        """The limits that make something wait now."""
        now = self._clock()
        return [limited for since, limited in self._limits.values() if now - since <= _BINDS]

    @property
    def layers(self) -> Mapping[str, LayerProgress]:
        """The layers in flight, oldest first."""
        return self._layers

    def take(self, event: Event) -> None:
        """Count *event*; an event of an unknown layer changes nothing."""
        match event:
            case PartSent():
                self._part_sent(event)
            case Retrying() | Limited():
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
            case ImageDone():
                self._image_ended(event.destination, self._images.done)
            case ImageFailed():
                self._image_ended(event.destination, self._images.failed)
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
            in_flight=len(self._layers),
            present_layers=self._present,
            read=self._read,
            size=size,
            estimated=estimated,
            rate=rate,
            left=self._left(now, max(size - self._read, 0), rate, images),
            elapsed=now - self._began,
            retries=self._retries,
            throttled=self._throttled,
        )

    def _left(self, now: float, bytes_left: int, rate: float | None, images: int) -> float | None:
        """The seconds left: of bytes, and of the images that wait for PutImage."""
        by_bytes = bytes_left / rate if rate and self._rate.is_steady(now) else None
        if bytes_left and by_bytes is None:
            return None
        images_left = images - len(self._images.done) - len(self._images.failed)
        pace = self._pace.at(now)
        waits = not bytes_left or any(limited.operation == "PutImage" for limited in self.limits)
        by_images = images_left / pace if images_left and pace and waits and self._pace.is_steady(now) else None
        return max((left for left in (by_bytes, by_images) if left is not None), default=None)

    def _waits(self, event: Retrying | Limited) -> None:
        if isinstance(event, Limited):
            self._limits[event.operation] = self._clock(), event
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

    def _part_sent(self, event: PartSent) -> None:
        layer = self._layers.get(event.layer)
        if layer is None:
            return
        layer.read += event.read
        self._change(self._share(layer.destination), read=event.read)
        # Bytes that ECR had from an earlier run, and bytes that are read again, do not count for the rate.
        if event.sent > 0 and event.read > 0:
            now = self._clock()
            layer.rate.add(now, event.read)
            self._rate.add(now, event.read)

    def _layer_started(self, event: LayerStarted) -> None:
        now = self._clock()
        if not self._layers:
            self._rate.resume(now)
        # A layer goes into a repository; its bytes count for the image that planned it.
        destination = self._owners.get(event.layer, event.destination)
        self._layers[event.layer] = LayerProgress(event.title, destination, event.size, Rate(now))
        self._layers_begun += 1
        self._change(self._share(destination), begun=event.size)

    def _layer_done(self, event: LayerDone) -> None:
        layer = self._layers.pop(event.layer, None)
        self._owners.pop(event.layer, None)
        if layer is None:
            return
        self._layers_done += 1
        self._share(layer.destination).layers -= 1
        rest = layer.size - layer.read
        share = self._share(layer.destination)
        if event.outcome != "pushed":
            self._present += 1
            self._change(share, planned=-rest, begun=-rest)
        else:
            self._change(share, read=rest)

    def _layer_failed(self, event: LayerFailed) -> None:
        layer = self._layers.pop(event.layer, None)
        if layer is not None:
            rest = layer.size - layer.read
            self._change(self._share(layer.destination), planned=-rest, begun=-rest)

    def _image_started(self, destination: str) -> None:
        images, share = self._images, self._share(destination)
        images.started.add(destination)
        for group in (images.done, images.failed, images.sized):
            group.discard(destination)
        # An image that is tried again is planned again; what was read before stays counted.
        self._layers_planned -= max(share.layers, 0)
        share.layers = 0
        with self._resizing(share):
            share.ended = False
            share.planned = share.begun = share.read

    def _image_planned(self, event: ImagePlanned) -> None:
        self._images.sized.add(event.destination)
        self._layers_planned += event.layers
        self._present += event.present_layers
        share = self._share(event.destination)
        share.layers += event.layers
        self._owners.update(dict.fromkeys(event.layer_keys, event.destination))
        share.keys = event.layer_keys
        self._change(share, planned=event.size)

    def _image_ended(self, destination: str, group: set[str]) -> None:
        for images in (self._images.started, self._images.sized, group):
            images.add(destination)
        self._pace.add(self._clock(), 1)
        share = self._share(destination)
        for key in share.keys:  # mounted layers never started
            if self._owners.get(key) == destination:
                del self._owners[key]
        share.keys = ()
        with self._resizing(share):
            share.ended = True
