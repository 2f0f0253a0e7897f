"""Which image uploads a layer first, where a registry mounts blobs: the others wait until they can mount it.

ECR mounts a layer only once an image refers to it. So the first image that lacks a layer uploads it, and the others
wait for that image's manifest; another image takes the upload over where waiting would cost too much.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Container, Iterable, Iterator
from dataclasses import dataclass, field

import anyio

from asyncpush.model import Digest
from asyncpush.protocols import Blob
from asyncpush.settings import MiB

#: Bytes that may be uploaded a second time to save waiting: this many, or this share of all uploads.
_MAX_RESENT = 4 * MiB
_MAX_RESENT_SHARE = 0.01

#: Seconds of waiting that a takeover must save; and where it resends more than the bytes above, how many seconds, and
#: how many times the seconds that the second upload takes.
MIN_GAIN = 1.0
MIN_LARGE_GAIN = 5.0
_MIN_LARGE_RATIO = 8

#: Bytes a second of one upload before any has ended: a guess must not cause a second upload.
_ASSUMED_RATE = MiB

#: Seconds between two checks whether a layer needs another uploader: at least, and at most if its upload took less.
CHECK_INTERVAL = 0.25
_MAX_CHECK_INTERVAL = 5.0


@dataclass(slots=True, eq=False)
class PendingImage:
    """An image that is being pushed into one repository, and the layers that it lacks there.

    Attributes:
        repository: the repository's name.
        missing: the sizes of the layers that the repository still lacks, by identity.
        started: when the upload of each of them started, where it has.
        first_uploads: of the layers that can be mounted, the upload that it waits for, or makes itself.
    """

    repository: str
    missing: dict[str, int]
    started: dict[str, float] = field(default_factory=dict)
    first_uploads: dict[Digest, FirstUpload] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes that are missing."""
        return sum(self.missing.values())

    def first_upload(self, blob: Blob) -> FirstUpload | None:
        """The first upload of *blob*; None if it can't be mounted, or already can."""
        return self.first_uploads.get(blob.descriptor.digest) if blob.descriptor else None

    def waits_for(self, upload: FirstUpload) -> bool:
        """Whether another image makes *upload*, and into another repository."""
        return not upload.settled and upload.uploader.repository != self.repository

    def awaited(self) -> list[FirstUpload]:
        """All uploads that it waits for."""
        return [upload for upload in self.first_uploads.values() if self.waits_for(upload)]

    def remaining_seconds(self, rate: float, now: float) -> float:
        """How long its missing layers will take, all at once, at *rate* bytes a second each."""
        return max(
            (size / rate - (now - self.started.get(identity, now)) for identity, size in self.missing.items()),
            default=0.0,
        )


@dataclass(slots=True, eq=False)
class FirstUpload:
    """The first upload of a layer into a registry.

    Attributes:
        size: the layer's bytes.
        uploader: the image that uploads it.
        started: when the first byte was sent.
        completed: when the whole layer was in the uploader's repository.
        duration: seconds from the first byte until then.
        takeovers: how often another image took it over after it had started.
        settled: whether all waiting has ended: an image refers to the layer, or none will.
        waiting: the other images that lack the layer.
    """

    size: int
    uploader: PendingImage
    started: float | None = None
    completed: float | None = None
    duration: float = 0.0
    takeovers: int = 0
    settled: bool = False
    waiting: set[PendingImage] = field(default_factory=set)
    _changed: anyio.Event = field(default_factory=anyio.Event, init=False)

    def settle(self) -> None:
        """End all waiting for it."""
        self.settled = True
        self.notify()

    def notify(self) -> None:
        """Wake all who wait, so that they look at it again."""
        self._changed.set()
        self._changed = anyio.Event()

    async def wait_for_change(self, seconds: float) -> None:
        """Wait until something of it changes, at most *seconds*."""
        changed = self._changed
        with anyio.move_on_after(seconds):
            await changed.wait()

    def seconds_since_completion(self, now: float) -> float:
        """Seconds for which the whole layer has been in the uploader's repository."""
        return 0.0 if self.completed is None else now - self.completed

    @property
    def due(self) -> float:
        """When others have waited for its image as long again as the upload took."""
        return float("inf") if self.completed is None else self.completed + self.duration


@dataclass(slots=True)
class UploadTotals:
    """All uploads of a run so far.

    Attributes:
        size: their bytes.
        seconds: how long they took, one upload after the other.
        resent: bytes that were uploaded a second time to save waiting.
    """

    size: int = 0
    seconds: float = 0.0
    resent: int = 0

    @property
    def rate(self) -> float:
        """Bytes a second of one upload; a guess before the first has ended."""
        return self.size / self.seconds if self.size and self.seconds else _ASSUMED_RATE

    def add(self, size: int, seconds: float) -> None:
        """Count an upload."""
        self.size += size
        self.seconds += seconds

    def may_resend(self, size: int) -> bool:
        """Whether *size* more resent bytes are too few to matter."""
        return self.resent + size <= max(_MAX_RESENT, self.size * _MAX_RESENT_SHARE)


class FirstUploads:
    """The first uploads that are under way into one registry.

    Args:
        totals: the uploads into all registries.
        is_idle: whether there are slots that no layer waits for.
    """

    def __init__(self, totals: UploadTotals, is_idle: Callable[[], bool]) -> None:
        self._totals = totals
        self._is_idle = is_idle
        self._uploads: dict[Digest, FirstUpload] = {}
        self._images: defaultdict[str, set[PendingImage]] = defaultdict(set)

    def __contains__(self, digest: Digest | None) -> bool:
        return digest in self._uploads

    # An image comes and goes

    def add(
        self,
        repository: str,
        blobs: Iterable[Blob],
        mountable: Container[Digest],
        resumed: Collection[str],
        present: Iterable[Blob] = (),
    ) -> PendingImage:
        """Let an image upload those of *blobs* that no other image uploads yet, and wait for the others.

        Args:
            repository: the repository that it goes to.
            blobs: the layers that it lacks there.
            mountable: layers that can be mounted already.
            resumed: the identities of those that an interrupted run began to upload to that repository.
            present: layers that the repository has, which others can mount once the image is put.
        """
        lacking, now = list(blobs), time.monotonic()
        image = PendingImage(repository, {blob.identity: blob.source_size for blob in lacking})
        for blob in lacking:
            digest = _digest(blob)
            if digest is None or digest in mountable:
                continue
            if (upload := self._uploads.get(digest)) is not None:
                upload.waiting.add(image)
            else:
                started = now if blob.identity in resumed else None
                upload = self._uploads[digest] = FirstUpload(blob.source_size, image, started=started)
            image.first_uploads[digest] = upload
        for blob in present:
            digest = _digest(blob)
            if digest is not None and digest not in mountable and digest not in self._uploads:
                duration = blob.source_size / self._totals.rate
                upload = FirstUpload(blob.source_size, image, started=now, completed=now, duration=duration)
                image.first_uploads[digest] = self._uploads[digest] = upload
        self._images[repository].add(image)
        awaited = image.awaited()
        if all(upload.started is None and image.size < upload.uploader.size for upload in awaited):
            _take_over(awaited, image)  # nothing is lost yet, and a smaller image is put sooner
        return image

    def remove(self, image: PendingImage) -> None:
        """Let another image take over what *image* has not settled; where none can, end all waiting for it."""
        self._images[image.repository].discard(image)
        if not self._images[image.repository]:
            del self._images[image.repository]
        for digest, upload in image.first_uploads.items():
            if upload.uploader is not image or upload.settled:
                continue
            able = [other for other in upload.waiting if _waits_only_for(other, image)]
            if able:
                best = min(able, key=lambda other: other.size)
                _take_over([upload for upload in _uploaded_by_others(best) if upload.uploader is image], best)
            else:
                self.settle(digest)
        for upload in image.first_uploads.values():
            upload.waiting.discard(image)

    def settle(self, digest: Digest) -> None:
        """End all waiting for a layer."""
        if (upload := self._uploads.pop(digest, None)) is not None:
            upload.settle()

    def settle_all(self) -> None:
        """End all waiting."""
        for digest in list(self._uploads):
            self.settle(digest)

    # A layer on its way

    async def wait(self, image: PendingImage, upload: FirstUpload) -> None:
        """Wait for as long as another image makes *upload*, or until *image* takes it over."""
        pause = 0.0
        while image.waits_for(upload):
            await upload.wait_for_change(max(upload.due - time.monotonic(), pause))
            if image.waits_for(upload) and time.monotonic() >= upload.due:
                self._reconsider(upload)
                pause = max(min(2 * pause, _MAX_CHECK_INTERVAL), upload.duration, CHECK_INTERVAL)

    def start(self, image: PendingImage, blob: Blob) -> bool:
        """Note that *blob* has its turn; False if another image uploads it after all."""
        upload = image.first_upload(blob)
        if upload is not None and image.waits_for(upload):
            return False
        image.started[blob.identity] = time.monotonic()
        if upload is not None and upload.started is None:
            upload.started = time.monotonic()
        return True

    def complete(self, image: PendingImage, blob: Blob) -> None:
        """Note that *blob* is in the repository of *image*."""
        now = time.monotonic()
        started = image.started.get(blob.identity, now)
        for other in self._images.get(image.repository, ()):
            other.missing.pop(blob.identity, None)
        upload = image.first_upload(blob)
        if upload is not None and upload.uploader.repository == image.repository and upload.completed is None:
            upload.started, upload.completed, upload.duration = started, now, now - started
            upload.notify()

    def _reconsider(self, upload: FirstUpload) -> None:
        """Let the waiting image that lacks least take *upload* over, if that saves far more waiting than it costs."""
        if not self._is_idle():
            return  # who waits leaves its slot to others
        image = min((other for other in upload.waiting if other.waits_for(upload)), key=lambda other: other.size)
        awaited, now = image.awaited(), time.monotonic()
        if any(other.started is not None and now < other.due for other in awaited):
            return
        rate = self._totals.rate
        # An uploader that others have waited for so long may need as long again.
        waiting = max(
            max(
                other.uploader.remaining_seconds(rate, now),
                other.seconds_since_completion(now) / 2**other.takeovers,
            )
            for other in awaited
        )
        own = image.remaining_seconds(rate, now)
        if waiting < 2 * own + MIN_GAIN:
            return
        resent = sum(other.size for other in awaited if other.started is not None)
        if not self._totals.may_resend(resent) and waiting < _MIN_LARGE_RATIO * own + MIN_LARGE_GAIN:
            return
        self._totals.resent += resent
        _take_over(awaited, image)


def _digest(blob: Blob) -> Digest | None:
    return blob.descriptor.digest if blob.descriptor else None


def _uploaded_by_others(image: PendingImage) -> Iterator[FirstUpload]:
    """The uploads that other images make for *image*, into its own repository or another one."""
    return (upload for upload in image.first_uploads.values() if not upload.settled and upload.uploader is not image)


def _waits_only_for(image: PendingImage, uploader: PendingImage) -> bool:
    return all(upload.uploader is uploader for upload in _uploaded_by_others(image))


def _take_over(uploads: Iterable[FirstUpload], image: PendingImage) -> None:
    """Make *image* the uploader of *uploads*; the one before waits then."""
    for upload in uploads:
        upload.waiting.discard(image)
        if upload.started is not None:
            upload.takeovers += 1
        upload.waiting.add(upload.uploader)
        upload.uploader, upload.started, upload.completed = image, None, None
        upload.notify()
